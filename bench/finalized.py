"""Reads an output topic as its consumers would: read_committed, one event a batch."""

import asyncio
import json
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer

from bench.workload import fails
from streams.kafka import KafkaConnection

TIMEOUT_S = 60.0


class Finalized:
    """The finalized events seen so far, by batch."""

    def __init__(self, kafka: KafkaConnection, topic: str) -> None:
        self.values: dict[bytes, bytes] = {}
        self.events = 0
        self._consumer: AIOKafkaConsumer = kafka.consumer(
            topic, auto_offset_reset="earliest", isolation_level="read_committed", fetch_max_wait_ms=100
        )

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    async def read(self) -> list[Any]:
        """What has come in the meantime."""
        found: list[Any] = []
        for records in (await self._consumer.getmany(timeout_ms=100, max_records=20_000)).values():
            found += records
        self.events += len(found)
        self.values |= {record.key: record.value for record in found}
        return found

    async def positions(self) -> dict[int, int]:
        """How far each partition was read. Raises TimeoutError where one was not begun."""
        async with asyncio.timeout(10.0):
            return {tp.partition: await self._consumer.position(tp) for tp in sorted(self._consumer.assignment())}

    async def expect(self, batches: int, items: int) -> None:
        """Read on until each batch, of so many items, has had its event.

        Raises RuntimeError where one has two, or none, or counts other than what was sent.
        """
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while len(self.values) < batches:
                    await self.read()
                await self.read()
        except TimeoutError:
            raise RuntimeError(f"{len(self.values)} of {batches} batches have a finalized event") from None
        if self.events != batches:
            raise RuntimeError(f"{self.events} finalized events for {batches} batches")
        failed = sum(map(fails, range(items)))
        wanted = {"total": items, "succeeded": items - failed, "failed": failed}
        for batch, value in self.values.items():
            counts = json.loads(value)["item_counts"]
            if (found := {name: counts[name] for name in wanted}) != wanted:
                raise RuntimeError(f"{batch.decode()} was counted as {found}, not as {wanted}")
