"""What can go wrong, each with a message of one line that says what to do."""

from collections.abc import Sequence
from functools import partial
from typing import Any

_NAMED = 20


class RollcallError(Exception):
    """The base of all errors of this package.

    ``may_pass`` says whether the cause is one outside that may be gone later, so that trying again can help.
    """

    may_pass = False


class InvalidMessageError(RollcallError, ValueError):
    """A message that Rollcall could not take; nothing of it was sent."""


class ConfigurationError(RollcallError, ValueError):
    """Something that was set or passed cannot work."""


class UnreachableError(RollcallError):
    """Kafka does not answer, or not as it should."""

    may_pass = True


class DeliveryError(RollcallError):
    """Messages that Kafka did not acknowledge in time; they may or may not be in the log.

    ``items`` names them: (batch id, item id), or (batch id, None) for a message about the batch itself; those behind
    the first 100,000 are only counted, ``unnamed``. ``may_pass`` is False where Kafka refuses all of them.
    """

    def __init__(
        self, items: Sequence[tuple[str, str | None]], cause: str, *, may_pass: bool = True, unnamed: int = 0
    ) -> None:
        self.items = list(items)
        self.cause = cause
        self.may_pass = may_pass
        self.unnamed = unnamed
        named = ", ".join(_named(*each) for each in self.items[:_NAMED])
        left = max(0, len(self.items) - _NAMED) + unnamed
        more = f" and {left} more" if left else ""
        super().__init__(f"not acknowledged by Kafka ({cause}), send again: {named}{more}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Else it could not be read in the process that a pool's worker raises it for: multiprocessing's waits for ever.
        made = partial(DeliveryError, may_pass=self.may_pass, unnamed=self.unnamed)
        return made, (self.items, self.cause)


class ApiError(RollcallError):
    """The service's API could not be asked, or refused; ``status`` is the HTTP status where there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        # A key or an address can be mended, too; other refusals are for what was asked.
        self.may_pass = status is None or status >= 500 or status in (401, 403, 404, 408, 429)


def _named(batch_id: str, item_id: str | None) -> str:
    return f"batch {batch_id}" if item_id is None else f"{item_id} of {batch_id}"
