"""The shapes of rows as they travel between decoding, fold and statements."""

from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from rollcall_native import compiled

RETRYING = "retrying"


class ItemRow(NamedTuple):
    """A row of ``item_results`` or ``late_results``: one item's register. Also the decoded form of an ``item.result``.

    ``version`` is the record's offset on the batch's home partition and ``received_at`` its append time;
    ``output`` and ``metrics`` are compact JSON text, ``duration_ms`` milliseconds.
    """

    batch_id: str
    item_id: str
    status: str
    attempt: int
    generation: int
    version: int
    received_at: datetime
    effect: str | None
    duration_ms: float | None
    message: str | None
    error_code: str | None
    error_message: str | None
    stack_trace: str | None
    output: str | None
    metrics: str | None
    worker: str | None
    occurred_at: datetime | None

    @property
    def offset(self) -> int:
        """Where it lies in the log."""
        return self.version


if TYPE_CHECKING or compiled:
    from rollcall_native.results import UsualResult as UsualResult
else:

    class UsualResult:
        """A usual result that is no row yet; in Python each is one at once."""


TakenResult = ItemRow | UsualResult
"""A result as it was taken from the log. Both kinds can be counted and copied; `fold.rows` makes rows of them."""


class Batch(msgspec.Struct, gc=False):  # of plain values: it is in no cycle that would have to be found
    """A row of ``batches``, without ``published_at``, which is the relay's.

    ``total_items`` is the total as given; ``expected`` the size of the manifest, None where there is none.
    ``matched`` counts answered items on the manifest, ``retrying`` items whose register is not terminal.
    """

    batch_id: str
    partition: int
    state: str = "pending"
    outcome: str | None = None
    finalized_by: str | None = None
    revision: int = 0
    generation: int = 0
    sealed: bool = False
    total_items: int | None = None
    expected: int | None = None
    matched: int = 0
    succeeded: int = 0
    partial: int = 0
    failed: int = 0
    skipped: int = 0
    retrying: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0
    late: int = 0
    name: str | None = None
    metadata: str | None = None
    policy: str | None = None
    deadline_at: datetime | None = None
    retry_of: str | None = None
    request_retry: bool = False
    opened_at: datetime | None = None
    first_result_at: datetime | None = None
    last_result_at: datetime | None = None
    last_result_offset: int | None = None  # its version: of a redriven one where it lay first, while the time is now
    last_answer_at: datetime | None = None
    completed_at: datetime | None = None
    finalized_at: datetime | None = None
    decided_offset: int | None = None
    reopened_at: datetime | None = None
    reason: str | None = None
    error: str | None = None
    failure_seen: bool = False
    threshold_exceeded: bool = False
    pruned_at: datetime | None = None

    @property
    def answered(self) -> int:
        """Distinct items with a terminal status."""
        return self.succeeded + self.partial + self.failed + self.skipped

    @property
    def has_rows(self) -> bool:
        """Whether any item of this batch has a row."""
        return self.answered + self.retrying > 0

    @property
    def total(self) -> int | None:
        """Items to wait for; where nobody said, None, and once finalized what was answered."""
        if self.expected is not None:
            return self.expected
        if self.total_items is None and self.outcome is not None:
            return self.answered
        return self.total_items

    @property
    def missing(self) -> int:
        """Items that have not answered, as far as known."""
        if self.expected is not None:
            return self.expected - self.matched
        return max(0, (self.total_items or 0) - self.answered)

    @property
    def unexpected(self) -> int:
        """Answers that nobody asked for."""
        if self.expected is not None:
            return self.answered - self.matched
        return 0 if self.total_items is None else max(0, self.answered - self.total_items)


class DeadLetterRow(NamedTuple):
    """A row of ``dead_letters``; the position is the one at which the record was first read."""

    topic: str
    partition: int
    record_offset: int
    appended_at: datetime
    reason: str
    message: str
    batch_id: str | None
    key: bytes | None
    value: bytes | None
    headers: str


class OutboxRow(NamedTuple):
    """A row of ``outbox``: an event under its deterministic id. ``channel`` names the topic without prefix."""

    id: str
    channel: str
    batch_id: str | None
    revision: int | None
    value: str
    headers: str


class SummaryRequest(NamedTuple):
    """Which revision of a batch to summarize, and the place and time of the record that asked for it."""

    revision: int
    requested_at: datetime
    requested_offset: int


class Position(NamedTuple):
    """Where reading of one partition stands, with what proves that the log is still the same one.

    ``taken`` maps a source partition to the highest original offset taken from it by forwarding.
    """

    partition: int
    next_offset: int
    last_offset: int | None
    last_timestamp: int | None
    last_checksum: int | None
    taken: dict[int, int]
