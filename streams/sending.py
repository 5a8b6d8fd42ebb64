"""Sends what people and programs submit to us: one idempotent producer for the process, made anew after a failure."""

import asyncio
import json
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, OutOfOrderSequenceNumber

from schemas.topics import MAX_RECORD_BYTES, Topics
from streams.kafka import TOO_LARGE, KafkaConnection, stop
from streams.reading import Homes

SEND_TIMEOUT_S = 10.0

_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def encoded(event: Mapping[str, Any]) -> bytes:
    """An event as a record's value. Raises ValueError for what JSON or UTF-8 cannot hold."""
    return _dumps(event).encode()


class Place(NamedTuple):
    """Where the broker put a record."""

    partition: int
    offset: int


class NotAllTakenError(MessageSizeTooLargeError):  # type: ignore[misc]  # aiokafka is untyped
    """The topic takes no record as large as some of these; they are told by their indexes.

    ``too_large`` were refused, each or with what was sent in one with it; ``behind`` came behind such a one, out of
    order therefore. Neither are in the log; all others are.
    """

    def __init__(self, too_large: Set[int], behind: Set[int]) -> None:
        super().__init__("the records are larger than the topic takes")
        self.too_large = too_large
        self.behind = behind


class _Record(NamedTuple):
    partition: int
    key: str
    value: bytes
    headers: Sequence[tuple[str, bytes]]


class Sender:
    """Puts events on the log, acknowledged by all replicas.

    Raises KafkaError or TimeoutError: then some may have arrived, and sending all again is harmless. NotAllTakenError
    says which have.
    """

    def __init__(self, kafka: KafkaConnection, topics: Topics, homes: Homes) -> None:
        self._kafka = kafka
        self._topic = topics.events
        self._homes = homes
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def events(self, events: Sequence[Mapping[str, Any]], traceparent: str | None = None) -> list[Place]:
        """Append events to the input log in this order, each on its batch's home; returns where they are."""
        values = [(event["batch_id"], encoded(event)) for event in events]
        return await self.encoded_events(values, [("traceparent", traceparent.encode())] if traceparent else [])

    async def encoded_events(
        self, events: Sequence[tuple[str, bytes]], headers: Sequence[tuple[str, bytes]] = ()
    ) -> list[Place]:
        """The same of (batch id, JSON), sent as it is."""
        homes = self._homes
        return await self._send([_Record(homes.of(batch_id), batch_id, value, headers) for batch_id, value in events])

    async def close(self) -> None:
        """Stop the producer; a later send starts a new one."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop(producer)

    async def _send(self, records: Sequence[_Record]) -> list[Place]:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            producer = await self._started()
            try:
                sent = [
                    await producer.send(
                        self._topic,
                        each.value,
                        key=each.key.encode(),
                        partition=each.partition,
                        headers=each.headers,
                    )
                    for each in records
                ]
                # All of them, so that none is left whose failure nobody hears.
                results = await asyncio.gather(*sent, return_exceptions=True)
            except (KafkaError, TimeoutError, asyncio.CancelledError):
                await self._discard(producer)
                raise
        places: list[Place] = []
        failed: dict[int, BaseException] = {}
        for index, result in enumerate(results):
            if isinstance(result, BaseException):
                failed[index] = result
            else:
                places.append(Place(result.partition, result.offset))
        if failed:
            await self._discard(producer)
            raise _which_failed(failed)
        return places

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = self._kafka.producer(max_request_size=MAX_RECORD_BYTES)
                try:
                    await producer.start()
                except BaseException:
                    await stop(producer)
                    raise
                self._producer = producer
            return self._producer

    async def _discard(self, producer: AIOKafkaProducer) -> None:
        """Throw a producer away that failed: what it still holds must not arrive behind what comes next."""
        if self._producer is producer:
            self._producer = None
            await stop(producer)


def _which_failed(failed: Mapping[int, BaseException]) -> BaseException:
    """What to raise: which records the topic refused, where that is all; else what befell the first."""
    too_large = {index for index, error in failed.items() if isinstance(error, TOO_LARGE)}
    # aiokafka counts what was refused, the broker does not.
    behind = {index for index, error in failed.items() if isinstance(error, OutOfOrderSequenceNumber)}
    if too_large and len(too_large | behind) == len(failed):
        return NotAllTakenError(too_large, behind)
    return next(iter(failed.values()))
