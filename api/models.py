"""What the API takes and answers with. Times are RFC 3339 in UTC, durations milliseconds."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from schemas.published import FinalizedBy, Outcome
from store import reads

Text = Annotated[str, StringConstraints(pattern=r"^[^\u0000]*$")]
"""Text that PostgreSQL can be asked about."""


class RequestBody(BaseModel):
    """What is sent to the API: types are strict, and unknown fields are refused, for they may be misspelt."""

    model_config = ConfigDict(strict=True, extra="forbid")

    def given(self) -> dict[str, Any]:
        """The fields that were given, without nulls."""
        return self.model_dump(exclude_none=True)


class LogPlace(BaseModel):
    """A record of the log."""

    topic: str
    partition: int
    offset: int


class Lag(BaseModel):
    """How far the workers are behind on a batch's partition."""

    records: int | None = Field(description="Records there that are not applied yet; null: Kafka does not say.")
    lagging: bool | None = Field(description="Whether there are any: what is shown may then change by itself.")
    next_offset: int | None = Field(description="Everything there before it is applied; null: nothing is.")


class Batch(BaseModel):
    """A batch: how far it is, or how it ended."""

    batch_id: str
    status: reads.BatchStatusName = Field(description="The outcome once there is one, else the state.")
    state: str = Field(description="`pending`, `processing` or `finalized`.")
    outcome: Outcome | None
    finalized_by: FinalizedBy | None
    revision: int = Field(description="Of the last finalization, from 1; 0: not finalized yet.")
    generation: int = Field(description="How often it was reopened.")
    name: str | None
    metadata: dict[str, Any] | None
    policy: dict[str, Any] | None
    sealed: bool
    total: int | None = Field(description="Items expected; null where nobody has said.")
    answered: int
    succeeded: int
    partial: int
    failed: int
    skipped: int
    retrying: int
    missing: int
    unexpected: int
    created: int
    updated: int
    unchanged: int
    duplicates: int
    late: int
    progress_percent: float | None
    error_summary: str | None
    reason: str | None
    error: dict[str, Any] | None = Field(description="What aborted it: `message`, and `code` where there is one.")
    summary_state: str | None
    deadline_at: datetime | None
    retry_of: str | None
    opened_at: datetime | None
    reopened_at: datetime | None
    first_result_at: datetime | None
    last_result_at: datetime | None
    completed_at: datetime | None
    finalized_at: datetime | None
    published_at: datetime | None
    pruned_at: datetime | None = Field(description="Since then its items are not kept: the numbers are what they were.")
    as_of: LogPlace | None = Field(
        description="The record that decided; of an open batch the last one applied on its partition."
    )
    lag: Lag


class BatchPage(BaseModel):
    """Batches, newest first; `next` is the `cursor` of the next page, null: there is none."""

    batches: list[Batch]
    next: str | None


class Item(BaseModel):
    """The result of an item, in brief."""

    item_id: str
    status: reads.ItemStatus
    attempt: int
    effect: str | None
    duration_ms: float | None
    message: str | None
    error_code: str | None
    error_message: str | None
    worker: str | None
    received_at: datetime
    partition: int
    offset: int = Field(description="Of the record that decided, on the batch's partition of the events topic.")


class ItemPage(BaseModel):
    """Items by id; `next` is the `cursor` of the next page, null: there is none."""

    items: list[Item]
    next: str | None


class ItemError(BaseModel):
    """What went wrong with an item. The stack trace is for operators only: null for viewers."""

    code: str | None
    message: str | None
    stack_trace: str | None


class ItemDetail(BaseModel):
    """All that is known of one item; `status` is `missing` where it is expected and has not answered."""

    batch_id: str
    item_id: str
    expected: bool = Field(description="Whether it is on the batch's manifest.")
    status: str
    attempt: int | None
    generation: int | None
    effect: str | None
    duration_ms: float | None
    message: str | None
    error: ItemError | None
    output: Any
    metrics: dict[str, float] | None
    worker: str | None
    occurred_at: datetime | None
    received_at: datetime | None
    partition: int
    offset: int | None
    late_status: str | None = Field(description="What a result said that came after the batch was finalized.")
    late_offset: int | None


class MissingPage(BaseModel):
    """Who has not answered, by id."""

    total: int | None
    missing: int
    item_ids: list[str] | None = Field(
        description="Null where only the number of the missing is known: no manifest names them, or they were pruned."
    )
    next: str | None


class FailureGroup(BaseModel):
    """Failures with one error."""

    error: str = Field(description="The code, or the message without what varies in it.")
    count: int
    item_ids: list[str] = Field(description="The first few.")


class FailureGroups(BaseModel):
    """Failures by error, the most frequent first."""

    failed: int
    grouped: int = Field(description="Of how many the groups speak: of an open batch with very many, the first ones.")
    groups: list[FailureGroup]


class TimelineEvent(BaseModel):
    """Something that happened to a batch; the place is where the record that says so is."""

    at: datetime | None
    what: str
    detail: str | None
    topic: str | None
    partition: int | None
    offset: int | None
    caller: str | None = Field(description="Who asked for it over HTTP; null for all but admins.")


class Timeline(BaseModel):
    """What happened to a batch, oldest first, as far as the database still holds it."""

    events: list[TimelineEvent]


class Summary(BaseModel):
    """The statistics of a finalized batch, as published on the summaries topic."""

    state: str
    summary: dict[str, Any]
