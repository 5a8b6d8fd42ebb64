"""A batch as the one who publishes it sees it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, Unpack

from rollcall_client import messages
from rollcall_client.errors import InvalidMessageError
from rollcall_client.events import FinalizedEvent
from rollcall_client.messages import Effect, Error, Message, Status


class ResultFields(TypedDict, total=False):
    """What else a result may say; all of it may be left out or None.

    ``attempt`` counts from 1, ``duration_ms`` are milliseconds, ``message`` is a line for people, ``output`` any JSON
    up to 64 KiB, ``metrics`` numbers by name, ``worker`` who did it, ``occurred_at`` when (with a zone).
    """

    attempt: int | None
    effect: Effect | None
    duration_ms: float | None
    message: str | None
    output: Any
    metrics: Mapping[str, float] | None
    worker: str | None
    occurred_at: datetime | None


COUNTED_AT_MOST = 1_000_000
"""Distinct items of a batch that are counted for its sealing: their ids take memory."""

Total: TypeAlias = Literal["not ours to say", "counted here", "told at the end"]
"""Where the total comes from that seals a batch: it needs none or the caller knows, this object saw all of its items,
or the caller has to say."""


class Publishing(Protocol):
    """What a batch needs of a client."""

    @property
    def undelivered(self) -> bool:
        """Whether messages were given up."""
        ...

    async def publish(self, message: Message) -> None:
        """Buffer a message."""
        ...

    def check_opened(self, batch_id: str) -> None:
        """Raises DeliveryError where some of what opened the batch was given up."""
        ...

    async def flush(self) -> None:
        """Wait until Kafka has acknowledged all that was published before."""
        ...

    async def wait(self, batch_id: str, *, timeout: float | None = None) -> FinalizedEvent:
        """The batch's finalized event."""
        ...


class Batch:
    """One batch. Its methods buffer a message and wait only while the buffer is full; see ``Rollcall.flush``.

    They raise InvalidMessageError for what Rollcall could not take; nothing of it is sent then.
    """

    def __init__(self, client: Publishing, batch_id: str, *, total: Total = "not ours to say") -> None:
        self._client = client
        self._total = total
        self._seen: set[str] = set()
        self.batch_id = messages.check_batch_id(batch_id)

    def published_by(self, client: Publishing) -> Batch:
        """The same batch on another client."""
        return Batch(client, self.batch_id, total=self._total)

    def __repr__(self) -> str:
        return f"Batch({self.batch_id!r})"

    @property
    def undelivered(self) -> bool:
        """Whether messages of this client were given up; the next ``Rollcall.flush`` raises and names them."""
        return self._client.undelivered

    async def result(
        self, item_id: str, status: Status, *, error: Error | None = None, **fields: Unpack[ResultFields]
    ) -> None:
        """How an item went. Sent twice it changes nothing; a higher ``attempt`` replaces a lower one."""
        result = messages.item_result(self.batch_id, item_id, status, error=error, **fields)
        await self._client.publish(result)
        if self._total == "counted here":
            self._count(item_id)

    async def succeeded(self, item_id: str, **fields: Unpack[ResultFields]) -> None:
        """The item is done."""
        await self.result(item_id, "succeeded", **fields)

    async def failed(self, item_id: str, error: Error | None = None, **fields: Unpack[ResultFields]) -> None:
        """The item failed for good. ``error``: a sentence, an exception, or a mapping with ``message``."""
        await self.result(item_id, "failed", error=error, **fields)

    async def partial(self, item_id: str, error: Error | None = None, **fields: Unpack[ResultFields]) -> None:
        """The item's main work is in, a side effect failed: done, not failed."""
        await self.result(item_id, "partial", error=error, **fields)

    async def skipped(self, item_id: str, **fields: Unpack[ResultFields]) -> None:
        """There was nothing to do for the item."""
        await self.result(item_id, "skipped", **fields)

    async def retrying(self, item_id: str, error: Error | None = None, **fields: Unpack[ResultFields]) -> None:
        """An attempt failed and another follows: no answer yet."""
        await self.result(item_id, "retrying", error=error, **fields)

    async def seal(self, total_items: int | None = None) -> None:
        """Say that no more items come; a batch without a manifest has ``total_items``.

        Left out, and the batch opened by this client with neither total nor items nor a batch id: it has the items
        that results were published of through this object, which holds up to a million ids for that.

        Raises DeliveryError where this client opened the batch and Kafka did not take all of that: the batch would end
        with a part of its items. Open it again. Where that shows only while this waits for room, the next flush raises.
        """
        self._client.check_opened(self.batch_id)
        if total_items is None and self._total == "counted here":
            total_items = len(self._seen)
        if total_items is None and self._total == "told at the end":
            raise InvalidMessageError(
                f"how many items batch {self.batch_id} has is not known here (it may have been submitted before, or "
                f"they are more than {COUNTED_AT_MOST}): seal(total_items=...)"
            )
        await self._client.publish(messages.sealed(self.batch_id, total_items))

    def _count(self, item_id: str) -> None:
        self._seen.add(item_id)
        if len(self._seen) > COUNTED_AT_MOST:
            self._total, self._seen = "told at the end", set()

    async def cancel(self, reason: str | None = None) -> None:
        """End the batch on purpose: outcome ``cancelled``. What was published before is in first."""
        await self._client.flush()
        await self._client.publish(messages.cancelled(self.batch_id, reason))

    async def abort(self, error: Error) -> None:
        """End the batch by a critical error: outcome ``failed``, the unanswered stay missing."""
        await self._client.flush()
        await self._client.publish(messages.aborted(self.batch_id, error))

    async def wait(self, *, timeout: float | None = None) -> FinalizedEvent:
        """The batch's finalized event; see ``Rollcall.wait``."""
        return await self._client.wait(self.batch_id, timeout=timeout)
