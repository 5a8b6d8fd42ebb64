"""What the API answers with. Times are RFC 3339 in UTC, durations milliseconds."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from schemas.published import FinalizedBy, Outcome
from store import reads


class LogPlace(BaseModel):
    """A record of the log."""

    topic: str
    partition: int
    offset: int


class Lag(BaseModel):
    """How far the workers are behind on a batch's partition."""

    records: int | None = Field(description="Records there that are not applied yet; null: Kafka does not say.")
    lagging: bool | None = Field(description="Whether there are any: what is shown may then change by itself.")


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
    error: dict[str, Any] | None
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
    as_of: LogPlace | None = Field(
        description="The record that decided; of an open batch the last one applied on its partition."
    )
    lag: Lag
