"""How much is taken on at once by whoever has a limited time for it."""

MAX_PATIENCE = 64


class Portion:
    """A number of records: halved where they were too much, then step by step more again, up to what is usual.

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

    def fitted(self, share: float = 1.0) -> None:
        """What was taken did fit, into this share of its time: twice as much the next time, or an eighth more.

        Less time only where it needed so little of it that it would also fit on a connection that is made anew for it,
        which has each statement to prepare.
        """
        grown = 2 * self.count if share <= 0.5 else self.count + 1 + self.count // 8
        self.count = min(grown, self.usual)
        self._missed = False
        while self.patience > 1 and share <= 1 / 16:
            self.patience //= 2
            share *= 2
