"""What can go wrong, each with a message of one line that says what to do."""

from collections.abc import Sequence

_NAMED = 20


class RollcallError(Exception):
    """The base of all errors of this package."""


class InvalidMessageError(RollcallError, ValueError):
    """A message that Rollcall could not take; nothing of it was sent."""


class ConfigurationError(RollcallError, ValueError):
    """Something that was set or passed cannot work."""


class DeliveryError(RollcallError):
    """Messages that Kafka did not acknowledge in time; they may or may not be in the log.

    ``items`` names them: (batch id, item id), or (batch id, None) for a message about the batch itself.
    """

    def __init__(self, items: Sequence[tuple[str, str | None]], cause: str) -> None:
        self.items = list(items)
        named = ", ".join(_named(*each) for each in self.items[:_NAMED])
        more = f" and {len(self.items) - _NAMED} more" if len(self.items) > _NAMED else ""
        super().__init__(f"not acknowledged by Kafka ({cause}), send again: {named}{more}")


class ApiError(RollcallError):
    """The service's API could not be asked, or refused; ``status`` is the HTTP status where there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def _named(batch_id: str, item_id: str | None) -> str:
    return f"batch {batch_id}" if item_id is None else f"{item_id} of {batch_id}"
