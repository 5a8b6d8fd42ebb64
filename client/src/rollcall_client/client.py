"""The client: opens batches, publishes their results, and listens for their end."""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakSet

import structlog
from aiokafka import ConsumerRecord

from rollcall_client import environment, listening, messages
from rollcall_client.api import Api, time_of
from rollcall_client.batch import Batch, Total
from rollcall_client.errors import ApiError, ConfigurationError, RollcallError
from rollcall_client.events import FinalizedEvent
from rollcall_client.kafka import Kafka
from rollcall_client.listening import Start
from rollcall_client.messages import Deadline, Encoded, Message, Policy
from rollcall_client.publishing import Appended, Publisher

_log = structlog.get_logger(__name__)

T = TypeVar("T")

DELIVERY_TIMEOUT_S = 120.0
BUFFER_BYTES = 16 * 1024 * 1024
REMEMBERED_BATCHES = 10_000
ASKED_TIMES, ASK_EVERY_S = 3, 0.2
INTERRUPTIONS = (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)
"""What ends a block at a time not to wait for a broker; SystemExit is an end that was chosen."""


class Rollcall:
    """A connection to one installation of Rollcall, used as ``async with Rollcall(...) as rc:``.

    ``bootstrap_servers`` are Kafka's, as "host:port,host:port" or a list. ``api_url`` is where the service's HTTP API
    is; without it everything works but the re-run of half-finished jobs, and ``wait`` reads more. ``kafka`` holds
    further options of aiokafka's (``security_protocol``, ``ssl_context``, ``sasl_mechanism`` ...). Messages are
    buffered up to ``buffer_bytes`` and sent again for ``delivery_timeout_s`` seconds; leaving the block flushes
    (also by ``sys.exit``, but not where it is cancelled or interrupted), and raises DeliveryError naming the items that
    Kafka did not acknowledge. ``compression`` is None, "gzip", or with aiokafka's extras "snappy", "lz4" or "zstd". A
    forked process needs a client of its own: there, this one raises RollcallError.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        api_url: str | None = None,
        *,
        api_key: str | None = None,
        topic_prefix: str = "rollcall.",
        kafka: Mapping[str, Any] | None = None,
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
        buffer_bytes: int = BUFFER_BYTES,
        compression: str | None = None,
    ) -> None:
        servers = bootstrap_servers if isinstance(bootstrap_servers, str) else ",".join(bootstrap_servers)
        self._kafka = Kafka(servers, topic_prefix, kafka or {})
        self._publisher: Publisher | None = None
        self._publisher_options: dict[str, Any] = {
            "delivery_timeout_s": delivery_timeout_s,
            "buffer_bytes": buffer_bytes,
            "compression": compression,
        }
        self._options: dict[str, Any] = {
            "bootstrap_servers": servers,
            "api_url": api_url,
            "api_key": api_key,
            "topic_prefix": topic_prefix,
            "kafka": kafka,
            **self._publisher_options,
        }
        self._api = None if api_url is None else Api(api_url, api_key)
        self._started_in: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fresh: dict[str, None] = {}
        self._listeners: WeakSet[AsyncGenerator[Any, None]] = WeakSet()

    @classmethod
    def from_environment(cls, **options: Any) -> Self:
        """A client as the environment says; ``options`` go before it. See ``rollcall_client.environment``."""
        return cls(**{**environment.options(os.environ), **options})

    @property
    def options(self) -> dict[str, Any]:
        """What this client was made with: makes another one like it."""
        return dict(self._options)

    @property
    def kafka(self) -> Kafka:
        """Where Kafka is."""
        return self._kafka

    @property
    def api(self) -> Api | None:
        """The service's API, where its address was given."""
        return self._api

    @property
    def undelivered(self) -> bool:
        """Whether messages were given up; the next ``flush`` raises and names them."""
        return self._publisher is not None and self._publisher.undelivered

    async def start(self) -> None:
        """Connect; ``async with`` does it. Raises RollcallError where Kafka or the topics are not there."""
        self._check_own()
        if self._publisher is not None:
            raise RollcallError("this client was started before: make a new one")
        self._started_in = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._publisher = Publisher(self._kafka, **self._publisher_options)
        await self._publisher.start()

    async def close(self) -> None:
        """Flush, and let go of all connections. Raises DeliveryError naming what Kafka did not acknowledge."""
        if self._is_anothers:
            return  # it has nothing here to let go of
        try:
            if self._publisher is not None:
                await self._publisher.close()
        finally:
            await self._let_go()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self._let_go()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, INTERRUPTIONS) or self._is_anothers:
            await self.close()
            return
        if self._publisher is not None:
            await self._publisher.abandon()
        await self._let_go()

    async def _let_go(self) -> None:
        for listener in list(self._listeners):
            with suppress(RuntimeError):  # it is being read: cancelling its reader closes it
                await listener.aclose()
        if self._api is not None:
            await self._api.close()

    # Publishing

    async def open(
        self,
        *,
        name: str | None = None,
        total_items: int | None = None,
        items: Iterable[str] | None = None,
        deadline: Deadline | None = None,
        policy: Policy | None = None,
        metadata: Mapping[str, Any] | None = None,
        batch_id: str | None = None,
        retry_of: str | None = None,
        sealed: bool | None = None,
    ) -> Batch:
        """Open a batch of ``total_items`` items, or of ``items`` (their ids, a manifest), or of neither.

        With neither, and with ``sealed=False``, it stays open for more until ``Batch.seal``. A long manifest goes out
        in several messages. With a ``batch_id`` of one's own the batch may be submitted again and again, also while it
        is half-finished; once it is finalized that changes nothing. ``deadline``: a time with a zone, or how long from
        now.

        Raises InvalidMessageError, and DeliveryError where some of a long manifest was given up meanwhile.
        """
        given = batch_id is not None
        total: Total = "not ours to say"
        if total_items is None and items is None:
            total = "told at the end" if given else "counted here"
        batch = Batch(self, batch_id if batch_id is not None else fresh_id(name), total=total)
        opened = partial(
            messages.opened,
            batch.batch_id,
            name=name,
            deadline_at=messages.deadline_text(deadline, datetime.now(UTC)),
            policy=policy,
            metadata=metadata,
            retry_of=retry_of,
        )
        if not given:
            self._remember(batch.batch_id)
        pieces = None if items is None else list(messages.manifest_pieces(items))
        if pieces is None or len(pieces) == 1:
            ids = None if pieces is None else pieces[0]
            await self._publish_opening(opened(total_items=total_items, item_ids=ids, sealed=sealed))
            return batch
        first, *others = pieces
        opening = opened(total_items=total_items, item_ids=first, sealed=False)
        await self._publish_opening(opening)
        for piece in others:
            # What was sealed before takes no batch.items_expected, but the same opening again.
            again = {**opening, "item_ids": piece} if given else messages.items_expected(batch.batch_id, piece)
            await self._publish_opening(again, first=False)
        if sealed is not False:
            await batch.seal()
        return batch

    def batch(self, batch_id: str) -> Batch:
        """A batch that was opened elsewhere, to publish results for it. Raises InvalidMessageError."""
        return Batch(self, batch_id)

    def appended_last(self, batch_id: str) -> Appended | None:
        """Where this client's last message about this batch itself is in the log, of those that are acknowledged.

        None where there is none, or Kafka did not say.
        """
        return None if self._publisher is None else self._publisher.appended_last(batch_id)

    async def publish(self, message: Message) -> None:
        """Publish a message of ``rollcall_client.messages``; waits only while the buffer is full."""
        await self.publish_encoded(messages.encoded(message))

    async def publish_encoded(self, message: Encoded) -> None:
        """Publish a message as it goes out."""
        await self._started.publish(*message)

    async def _publish_opening(self, message: Message, *, first: bool = True) -> None:
        ready = messages.encoded(message)
        if first:
            self._started.open_anew(ready.batch_id)
        await self._started.publish(*ready, opens=True)

    def check_opened(self, batch_id: str) -> None:
        """Raises DeliveryError where this client opened the batch last, and Kafka did not take all of that."""
        if self._publisher is not None:
            self._publisher.check_opened(batch_id)

    @property
    def _started(self) -> Publisher:
        if self._publisher is None:
            raise RollcallError("this client is not started: use it as async with Rollcall(...) as rc")
        self._check_own()
        if self._loop is not asyncio.get_running_loop():
            raise RollcallError(
                "this client was started in another event loop: make a new one here, or for threads one of "
                "rollcall_client.sync"
            )
        return self._publisher

    @property
    def _is_anothers(self) -> bool:
        """Whether this process was forked since it was started: its loop and connections are that one's."""
        return self._started_in not in (None, os.getpid())

    def _check_own(self) -> None:
        if self._is_anothers:
            raise forked()

    async def flush(self) -> None:
        """Wait until Kafka has acknowledged all that was published before.

        Raises DeliveryError, naming the items, where it did not within ``delivery_timeout_s``: each to
        every flush that waited for it, or to the first one after. A flush that is cut off leaves its messages to the
        next one, or to the end of the block.
        """
        if self._publisher is not None:
            await self._started.flush()

    def _remember(self, batch_id: str) -> None:
        if len(self._fresh) >= REMEMBERED_BATCHES:
            self._fresh.pop(next(iter(self._fresh)))
        self._fresh[batch_id] = None

    # Listening

    def finalized(self, *, group: str | None = None, start: Start = "earliest") -> AsyncGenerator[FinalizedEvent, None]:
        """Finalized events as they come: ``async for event in rc.finalized(group="billing"):``.

        Listeners of a ``group`` share the events, and go on where it has committed; ``start`` ("earliest", "latest", or
        a time with a zone) is where a new group begins. An event is committed after the loop's body is through with it,
        0.2 s later at most. Where the body raises, or leaves the loop, that event is not committed: whoever listens in
        the group next gets it again, and what comes behind it. So an event can come twice, with the same ``ce_id``.
        Without a group nothing is committed, and everything from ``start`` on comes.

        Raises RollcallError where Kafka does not answer, ConfigurationError where the topic is missing.
        """
        self._check_own()
        stream = listening.finalized(self._kafka, group=group, start=start)
        self._listeners.add(stream)
        return stream

    async def wait(
        self,
        batch_id: str,
        *,
        timeout: float | None = None,
        revision: int = 1,
        since: datetime | None = None,
    ) -> FinalizedEvent:
        """The latest finalized event of a batch, also when it was published before; ``revision`` is the least wanted.

        Reads one partition of ``rollcall.finalized``: from when this client opened the batch, or from what the API
        says, or ``since`` (a time with a zone before its end). Where all of these are unknown it reads that partition
        from its beginning: the topic is compacted, so that is about one record a batch.

        Raises TimeoutError after ``timeout`` seconds, RollcallError where Kafka does not answer.
        """

        def read(record: ConsumerRecord[bytes, bytes]) -> FinalizedEvent | None:
            event = listening.event_of(record)
            return event if event is not None and event.revision >= revision else None

        missed = _missed("finalized", revision)
        return await self._wait(batch_id, "finalized", read, since=since, missed=missed, timeout_s=timeout)

    async def summary(self, batch_id: str, *, revision: int = 1, timeout: float | None = None) -> Mapping[str, Any]:
        """The latest summary of a finalized batch, as on ``rollcall.summaries``; ``revision`` is the least wanted.

        Raises TimeoutError after ``timeout`` seconds, RollcallError where Kafka does not answer.
        """

        def read(record: ConsumerRecord[bytes, bytes]) -> Mapping[str, Any] | None:
            try:
                found = json.loads(record.value or b"null")
                return found if found["revision"] >= revision else None
            except (ValueError, TypeError, KeyError):
                return None  # somebody else's message

        missed = _missed("summarized", revision)
        return await self._wait(batch_id, "summaries", read, since=None, missed=missed, timeout_s=timeout)

    async def _wait(
        self,
        batch_id: str,
        topic: str,
        read: Callable[[ConsumerRecord[bytes, bytes]], T | None],
        *,
        since: datetime | None,
        missed: str,
        timeout_s: float | None,
    ) -> T:
        self._check_own()
        messages.check_batch_id(batch_id)
        if since is not None and since.tzinfo is None:
            raise ConfigurationError(f"since={since} has no zone: use datetime.now(UTC)")

        async def opened() -> None:
            if batch_id in self._fresh:
                await self.flush()

        async def begin() -> datetime | None:
            return since if since is not None else await self._since(batch_id)

        name = self._kafka.topic(topic)
        return await listening.wait_for(
            self._kafka, name, batch_id, read=read, first=opened, since=begin, missed=missed, timeout_s=timeout_s
        )

    async def _since(self, batch_id: str) -> datetime | None:
        """Not later than when the batch's event was, or will be, published."""
        if batch_id in self._fresh and self._publisher is not None:
            appended = self._publisher.appended(batch_id)
            if appended is not None and appended.at is not None:
                return appended.at
        if self._api is None:
            return None
        try:
            for _ in range(ASKED_TIMES):
                if (found := await self._api.batch(batch_id)) is not None:
                    return time_of(found.get("opened_at") or found.get("first_result_at"))
                await asyncio.sleep(ASK_EVERY_S)  # what was opened just now it will know in a moment
        except ApiError as error:
            _log.warning("the API could not be asked, reading a whole partition instead", error=str(error))
        # What it does not know may have been published all the same: its database may be behind, or begun anew.
        return None


def forked() -> RollcallError:
    """What a client is to say in another process than its own."""
    return RollcallError("this client was started before this process was forked: make a new one here")


def _missed(what: str, revision: int) -> str:
    return f"was not {what}" if revision == 1 else f"was not {what} as revision {revision}"


def fresh_id(name: str | None) -> str:
    """A batch id that nobody else has; begins with what can be used of the name."""
    spoken = "".join(each if each.isalnum() or each in "-_." else "-" for each in name or "batch")[:120]
    return f"{spoken}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
