"""One batch, told to the fold record by record: for tests that need neither Kafka nor PostgreSQL."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from handlers import fold
from handlers.records import Disposition, Registers
from store.rows import Batch
from streams.decoding import decode

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Told:
    """A batch `b`, told record by record: offsets 0, 1, 2 …, a second apart."""

    def __init__(self) -> None:
        self.batch = Batch("b", 0)
        self.registers = Registers()
        self.next_offset = 0

    @property
    def status(self) -> str:
        return self.batch.outcome or self.batch.state

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.batch.succeeded, self.batch.partial, self.batch.failed, self.batch.skipped

    @property
    def alerts(self) -> list[tuple[str, int]]:
        """What was raised, by the offset of its cause."""
        return [(str(raised.alert), raised.offset) for raised in self.registers.alerts]

    def opened(self, **fields: Any) -> Disposition:
        return self.tell({"type": "batch.opened"} | fields)

    def expected(self, *item_ids: str) -> Disposition:
        return self.tell({"type": "batch.items_expected", "item_ids": list(item_ids)})

    def sealed(self, **fields: Any) -> Disposition:
        return self.tell({"type": "batch.sealed"} | fields)

    def result(self, item_id: str, status: str = "succeeded", **fields: Any) -> Disposition:
        return self.tell({"item_id": item_id, "status": status} | fields)

    def cancelled(self, **fields: Any) -> Disposition:
        return self.tell({"type": "batch.cancelled"} | fields)

    def aborted(self, message: str = "disk full", **fields: Any) -> Disposition:
        return self.tell({"type": "batch.aborted", "error": {"message": message} | fields})

    def expired(self, deadline_at: str, generation: int = 0) -> Disposition:
        return self.tell({"type": "batch.expired", "deadline_at": deadline_at, "generation": generation})

    def finalize_requested(self, **fields: Any) -> Disposition:
        return self.tell({"type": "batch.finalize_requested"} | fields)

    def reopened(self, **fields: Any) -> Disposition:
        return self.tell({"type": "batch.reopened"} | fields)

    def corrected(self, revision: int) -> Disposition:
        return self.tell({"type": "batch.corrected", "revision": revision})

    def pruned(self, revision: int = 1) -> Disposition:
        return self.tell({"type": "batch.pruned", "revision": revision})

    def tell(self, event: dict[str, Any]) -> Disposition:
        offset, self.next_offset = self.next_offset, self.next_offset + 1
        record = decode(json.dumps({"batch_id": "b"} | event).encode(), offset, EPOCH + timedelta(seconds=offset))
        return fold.step(self.batch, self.registers, record)
