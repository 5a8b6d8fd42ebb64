"""Who is done? A consumer of finalized events, in ten lines.

    ROLLCALL_BOOTSTRAP_SERVERS=localhost:9092 python examples/finalized_events.py

Run it several times at once: they share the events, and each is handled by one of them.
"""

import asyncio

from rollcall_client import Rollcall


async def main() -> None:
    async with Rollcall.from_environment() as rc:
        async for event in rc.finalized(group="examples-finalized", start="earliest"):
            print(event.batch_id, event.outcome, event.item_counts.failed, "failed", event.ce_id, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
