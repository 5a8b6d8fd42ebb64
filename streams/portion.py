"""How much is taken on at once by whoever has a limited time for it."""

MAX_PATIENCE = 64


class Portion:
    """A number of records: halved where they were too much, then slowly more again, up to what is usual.

    What does not fit into the time (or the size) there is would not fit the next time either. Where half of it does
    not fit as well, or it was a single record, its number may not be what takes so long: then twice the time is to be
    given to the next, ``patience`` times the usual.
    """

    __slots__ = ("_missed", "count", "patience", "usual")

    def __init__(self, usual: int) -> None:
        self.usual = usual
        self.count = usual
        self.patience = 1
        self._missed = False

    def too_much(self, taken: int) -> None:
        """So many did not fit."""
        self.count = max(1, taken // 2)
        if self._missed or taken <= 1:
            self.patience = min(self.patience * 2, MAX_PATIENCE)
        self._missed = True

    def fitted(self, share: float = 0.0) -> None:
        """What was taken did fit, into this share of its time: an eighth more the next time, and no needless time."""
        self.count = min(self.count + 1 + self.count // 8, self.usual)
        self._missed = False
        while self.patience > 1 and share <= 0.25:
            self.patience //= 2
            share *= 2
