"""Why a record could not be taken."""

from enum import StrEnum


class Reason(StrEnum):
    """The ``rollcall_dlt_reason`` of a dead letter."""

    INVALID_JSON = "invalid_json"
    INVALID_EVENT = "invalid_event"
    UNKNOWN_TYPE = "unknown_type"
    UNSUPPORTED_SCHEMA_VERSION = "unsupported_schema_version"
    UNSTORABLE = "unstorable"
    TOO_LARGE = "too_large"
    NOT_APPLICABLE = "not_applicable"


class Refused(Exception):  # noqa: N818 (a refusal is the expected outcome for bad input, not a fault)
    """A record is refused: it becomes a dead letter with this reason and message."""

    def __init__(self, reason: Reason, message: str, batch_id: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.batch_id = batch_id
