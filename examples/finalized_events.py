"""Who is done? A consumer of finalized events, in ten lines.

    python examples/finalized_events.py localhost:9092

Run it several times at once: they share the events, and each is handled by one of them.
"""

import asyncio
import sys

from rollcall_client import Rollcall


async def main(bootstrap_servers: str) -> None:
    async with Rollcall(bootstrap_servers) as rc:
        async for event in rc.finalized(group="examples-finalized", start="earliest"):
            print(event.batch_id, event.outcome, event.item_counts.failed, "failed", event.ce_id, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
