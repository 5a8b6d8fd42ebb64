"""How much is taken on at once by whoever has a limited time for it."""

MAX_PATIENCE = 64


class Portion:
    """A number of records: halved where they were too much, then slowly more again, up to what is usual.

    What does not fit into the time (or the size) there is would not fit the next time either. A single record cannot be
    halved: where that was too much, twice the time is to be given to it, ``patience`` times the usual.
    """

    __slots__ = ("count", "patience", "usual")

    def __init__(self, usual: int) -> None:
        self.usual = usual
        self.count = usual
        self.patience = 1

    def too_much(self, taken: int) -> None:
        """So many did not fit."""
        self.count = max(1, taken // 2)
        if taken <= 1:
            self.patience = min(self.patience * 2, MAX_PATIENCE)

    def fitted(self) -> None:
        """What was taken did fit: an eighth more the next time."""
        self.count = min(self.count + 1 + self.count // 8, self.usual)
        self.patience = 1
