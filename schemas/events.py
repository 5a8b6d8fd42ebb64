"""The messages on ``rollcall.events``, as upstream services publish them (docs/glossary.md, docs/lifecycle.md).

Each is a ``TypedDict`` validated by pydantic straight from the JSON bytes, at half the cost of a model. Usual ones are
decoded by a struct of ``streams.decoding`` that says the same. Types are strict (``"2"``, ``true`` and ``1.0`` are no
integers), unknown fields are ignored, and ``null`` in an optional field counts as absent.
"""

from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le, MaxLen
from pydantic import AllowInfNan, ConfigDict, Field, StringConstraints, TypeAdapter, with_config
from typing_extensions import TypedDict

SCHEMA_VERSION = 1

MAX_INT = 2**31 - 1
"""Attempts and totals fit 31 bits."""
MAX_REVISION = 2_000_000_000
"""That a correction may name: every revision that may follow has to be storable as well."""
MAX_ID_CHARS = 200
MAX_NAME_CHARS = 200
MAX_MANIFEST_CHUNK = 10_000
MAX_METADATA_BYTES = 16 * 1024
MAX_OUTPUT_BYTES = 64 * 1024
MAX_TEXT_BYTES = 4 * 1024
MAX_STACK_TRACE_BYTES = 16 * 1024

BatchId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_ID_CHARS, pattern=r"^[^/\u0000-\u001f\u007f-\u009f]+$"),
]
ItemId = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS, pattern=r"^[^\u0000-\u001f\u007f-\u009f]+$")
]
Name = Annotated[str, MaxLen(MAX_NAME_CHARS)]
# RFC 3339 with a zone; whether the day exists is checked when it is read.
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
Time = Annotated[str, StringConstraints(pattern=TIME_PATTERN), Field(json_schema_extra={"format": "date-time"})]
Count = Annotated[int, Ge(0), Le(MAX_INT)]
Revision = Annotated[int, Ge(0), Le(MAX_REVISION)]
Attempt = Annotated[int, Ge(1), Le(MAX_INT)]
Milliseconds = Annotated[float, Ge(0), AllowInfNan(False)]
Seconds = Annotated[float, Ge(0), AllowInfNan(False)]
Percentage = Annotated[float, Ge(0), Le(100), AllowInfNan(False)]
Number = Annotated[int | Annotated[float, AllowInfNan(False)], Field(union_mode="left_to_right")]
Manifest = Annotated[list[ItemId], MaxLen(MAX_MANIFEST_CHUNK), Field(json_schema_extra={"uniqueItems": True})]
SchemaVersion = Annotated[int, Ge(1), Le(SCHEMA_VERSION)]

_strict = with_config(ConfigDict(strict=True, extra="ignore"))


@_strict
class ItemError(TypedDict):
    """What went wrong with an item, or with a whole job."""

    code: NotRequired[str | None]
    message: str
    stack_trace: NotRequired[str | None]


@_strict
class Policy(TypedDict):
    """How a batch is judged; ``late_results`` defaults to ``record``."""

    tolerated_failure_count: NotRequired[Count | None]
    tolerated_failure_percentage: NotRequired[Percentage | None]
    late_results: NotRequired[Literal["record", "revise"] | None]
    slow_after_s: NotRequired[Seconds | None]
    stalled_after_s: NotRequired[Seconds | None]


@_strict
class ItemResult(TypedDict):
    """One item's answer; ``type`` defaults to ``item.result``."""

    batch_id: BatchId
    item_id: ItemId
    status: Literal["succeeded", "partial", "failed", "skipped", "retrying"]
    type: NotRequired[Literal["item.result"] | None]
    schema_version: NotRequired[SchemaVersion | None]
    attempt: NotRequired[Attempt | None]
    effect: NotRequired[Literal["created", "updated", "unchanged"] | None]
    duration_ms: NotRequired[Milliseconds | None]
    message: NotRequired[str | None]
    error: NotRequired[ItemError | None]
    output: NotRequired[Any]
    metrics: NotRequired[dict[str, Number] | None]
    worker: NotRequired[Name | None]
    occurred_at: NotRequired[Time | None]


@_strict
class BatchOpened(TypedDict):
    """A batch begins: with a total, with a manifest, or with neither (then unsealed)."""

    type: Literal["batch.opened"]
    batch_id: BatchId
    schema_version: NotRequired[SchemaVersion | None]
    total_items: NotRequired[Count | None]
    item_ids: NotRequired[Manifest | None]
    name: NotRequired[Name | None]
    sealed: NotRequired[bool | None]
    deadline_at: NotRequired[Time | None]
    policy: NotRequired[Policy | None]
    metadata: NotRequired[dict[str, Any] | None]
    retry_of: NotRequired[BatchId | None]
    request_retry: NotRequired[bool | None]
    occurred_at: NotRequired[Time | None]


@_strict
class BatchItemsExpected(TypedDict):
    """Adds to the manifest while the batch is unsealed."""

    type: Literal["batch.items_expected"]
    batch_id: BatchId
    schema_version: NotRequired[SchemaVersion | None]
    item_ids: Manifest


@_strict
class BatchSealed(TypedDict):
    """Nothing will be added; ``total_items`` is required where there is no manifest."""

    type: Literal["batch.sealed"]
    batch_id: BatchId
    schema_version: NotRequired[SchemaVersion | None]
    total_items: NotRequired[Count | None]


@_strict
class BatchCancelled(TypedDict):
    """Somebody ended the batch on purpose."""

    type: Literal["batch.cancelled"]
    batch_id: BatchId
    schema_version: NotRequired[SchemaVersion | None]
    reason: NotRequired[str | None]


@_strict
class BatchAborted(TypedDict):
    """A critical error stopped the job; the unanswered stay missing."""

    type: Literal["batch.aborted"]
    batch_id: BatchId
    schema_version: NotRequired[SchemaVersion | None]
    error: ItemError


@_strict
class BatchExpired(TypedDict):
    """The deadline passed; written by Rollcall's clock, applied only if both fields are the batch's current ones."""

    type: Literal["batch.expired"]
    batch_id: BatchId
    schema_version: NotRequired[SchemaVersion | None]
    deadline_at: Time
    generation: Count


@_strict
class BatchFinalizeRequested(TypedDict):
    """Ends a batch as it stands; on a finalized one only the summary is computed again."""

    type: Literal["batch.finalize_requested"]
    batch_id: BatchId
    schema_version: NotRequired[SchemaVersion | None]
    reason: NotRequired[str | None]


@_strict
class BatchReopened(TypedDict):
    """A new generation of a finalized batch; ``item_ids`` defaults to the failed and the missing."""

    type: Literal["batch.reopened"]
    batch_id: BatchId
    schema_version: NotRequired[SchemaVersion | None]
    item_ids: NotRequired[Manifest | None]
    revision: NotRequired[Count | None]
    deadline_at: NotRequired[Time | None]
    reason: NotRequired[str | None]


@_strict
class BatchCorrected(TypedDict):
    """What was published as ``revision`` is not what the log gives: the next revision says what it gives.

    Written when a replay is promoted whose outcomes differ; on a batch that is past that revision, or open at it, it
    changes nothing.
    """

    type: Literal["batch.corrected"]
    batch_id: BatchId
    schema_version: NotRequired[SchemaVersion | None]
    revision: Revision
    reason: NotRequired[str | None]


@_strict
class BatchPruned(TypedDict):
    """The items of a finalized batch, as of ``revision``, are no longer kept; what comes of it later changes nothing.

    Written by ``rollcall prune``; on an open batch, or one that is at another revision, it changes nothing.
    """

    type: Literal["batch.pruned"]
    batch_id: BatchId
    schema_version: NotRequired[SchemaVersion | None]
    revision: Count


ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "item.result": TypeAdapter(ItemResult),
    "batch.opened": TypeAdapter(BatchOpened),
    "batch.items_expected": TypeAdapter(BatchItemsExpected),
    "batch.sealed": TypeAdapter(BatchSealed),
    "batch.cancelled": TypeAdapter(BatchCancelled),
    "batch.aborted": TypeAdapter(BatchAborted),
    "batch.expired": TypeAdapter(BatchExpired),
    "batch.finalize_requested": TypeAdapter(BatchFinalizeRequested),
    "batch.reopened": TypeAdapter(BatchReopened),
    "batch.corrected": TypeAdapter(BatchCorrected),
    "batch.pruned": TypeAdapter(BatchPruned),
}
"""Every message type in, by its ``type``."""

BATCH_ID_ADAPTER: TypeAdapter[str] = TypeAdapter(BatchId, config=ConfigDict(strict=True))
