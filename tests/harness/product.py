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

    async def start_relay(self) -> Child:
        return await self._start("relay", "relay")

    async def assigned(self, workers: int) -> None:
        admin = self.settings.kafka_connection().admin()
        await admin.start()
        try:
            await eventually(lambda: all_assigned(admin, self.topics, workers), 60, message="workers assigned")
        finally:
            await admin.close()

    async def _start(self, name: str, *role: str) -> Child:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        child = await Child.spawn(
            [sys.executable, "-P", "-m", "rollcall", *role], name=name, env=environment | self.settings.environment()
        )
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
