"""What a job says about an item."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rollcall_client.messages import Effect, Error, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an item went. ``message`` is a line for people, ``output`` any JSON, ``metrics`` numbers by name."""

    message: str | None = None
    output: Any = None
    metrics: Mapping[str, float] | None = None

    status: ClassVar[Status] = "succeeded"
    effect: ClassVar[Effect | None] = None

    @property
    def problem(self) -> Error | None:
        """What went wrong, where something did."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded(Outcome):
    """Done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Created(Outcome):
    """Done, and something new is there."""

    effect: ClassVar[Effect | None] = "created"


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated(Outcome):
    """Done, and something was changed."""

    effect: ClassVar[Effect | None] = "updated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged(Outcome):
    """Done, and all was as it should be."""

    effect: ClassVar[Effect | None] = "unchanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped(Outcome):
    """There was nothing to do."""

    status: ClassVar[Status] = "skipped"


@dataclass(frozen=True, slots=True)
class Partial(Outcome):
    """The main work is in, a side effect failed: ``error`` says what. Counts as done."""

    error: Error
    status: ClassVar[Status] = "partial"

    @property
    def problem(self) -> Error | None:
        """What went wrong."""
        return self.error


@dataclass(frozen=True, slots=True)
class Failed(Outcome):
    """Not done, for good: no further attempt. ``error``: a sentence, an exception, or a mapping with ``message``."""

    error: Error
    status: ClassVar[Status] = "failed"

    @property
    def problem(self) -> Error | None:
        """What went wrong."""
        return self.error
