"""Rollcall as a test runs it: real worker and relay processes on the run's servers."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from migrations.run import migrate
from rollcall.children import Child
from rollcall.settings import ENV_PREFIX, Settings
from rollcall.stack import all_assigned
from schemas.topics import Topics
from store import failpoints
from store.connection import Connection
from tests.harness.topics import end_offsets
from tests.harness.waiting import eventually


@dataclass
class Product:
    """Processes of one installation, by name."""

    settings: Settings
    children: dict[str, Child] = field(default_factory=dict)

    @property
    def topics(self) -> Topics:
        return Topics(self.settings.topic_prefix)

    async def start_worker(self, slot: int = 0) -> Child:
        return await self._start(f"worker-{slot}", "worker", "--slot", str(slot))

    async def start_relay(self, name: str = "relay", failpoint: str = "") -> Child:
        return await self._start(name, "relay", failpoint=failpoint)

    async def start_clock(self, name: str = "clock") -> Child:
        return await self._start(name, "clock")

    async def start_api(self, name: str = "api") -> Child:
        return await self._start(name, "api")

    async def assigned(self, workers: int) -> None:
        admin = self.settings.kafka_connection().admin()
        await admin.start()
        try:
            await eventually(lambda: all_assigned(admin, self.topics, workers), 60, message="workers assigned")
        finally:
            await admin.close()

    async def settled(self, timeout_s: float = 60) -> None:
        """Wait until all that is in the log is applied, and all that comes of it published and marked."""
        await eventually(self._is_caught_up, timeout_s, message="positions at the end of the log")
        await eventually(self._is_published, timeout_s, message="everything published")

    async def await_applied(self, records: int, timeout_s: float = 60) -> None:
        """Wait until this many offsets of the log are behind the stored positions."""

        async def enough() -> bool:
            applied = sum((await self.positions()).values())
            assert applied >= records, f"{applied} of {records} offsets applied"
            return True

        await eventually(enough, timeout_s, interval_s=0.01)

    async def positions(self) -> dict[int, int]:
        """The next offset of each partition of the input log, as stored."""
        async with self.connection() as connection:
            rows = await connection.fetch(
                "SELECT partition, next_offset FROM positions WHERE topic = $1", self.topics.events
            )
        return {row[0]: row[1] for row in rows}

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        connection = await self.settings.database().connect("test")
        try:
            yield connection
        finally:
            await connection.close()

    async def _is_caught_up(self) -> bool:
        # The ends are read last: what was forwarded before a position was stored lies before them.
        stored = await self.positions()
        ends = await end_offsets(self.settings.bootstrap_servers, self.topics.events)
        current = {tp.partition: end for tp, end in ends.items()}
        assert stored == current, f"the log ends at {current}, applied is what is before {stored}"
        return True

    async def _is_published(self) -> bool:
        async with self.connection() as connection:
            left = {
                table: await connection.fetchval(
                    f"SELECT count(*) FROM {table} WHERE published_at IS NULL AND refused IS NULL"
                )
                for table in ("outbox", "dead_letters")
            }
        assert not any(left.values()), f"not published: {left}"
        return True

    async def _start(self, name: str, *role: str, failpoint: str = "") -> Child:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        environment |= self.settings.environment() | {failpoints.VARIABLE: failpoint}
        child = await Child.spawn([sys.executable, "-P", "-m", "rollcall", *role], name=name, env=environment)
        self.children[name] = child
        return child

    async def stop(self) -> None:
        for child in self.children.values():
            child.send_signal(signal.SIGCONT)
            await child.stop(15)


@asynccontextmanager
async def running(settings: Settings, *, workers: int = 1, relay: bool = True) -> AsyncIterator[Product]:
    """A migrated schema, and workers and relay that are ready."""
    await migrate(settings.database_url, settings.database_schema)
    product = Product(settings)
    try:
        if relay:
            await product.start_relay()
        for slot in range(workers):
            await product.start_worker(slot)
        if workers:
            await product.assigned(workers)
        yield product
    finally:
        await product.stop()
