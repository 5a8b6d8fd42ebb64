"""The pages of whoever runs Rollcall: the system at work, and who did what."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

from aiokafka.errors import KafkaError
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import history
from api.access import Admin, Viewer
from api.context import Context, Here
from api.models import Text
from api.pages.rendering import PageRoute, rendered
from store import diagnosis, figures
from store.connection import driver
from store.diagnosis import Applied
from streams.observing import Group, administering, group

BROKER_TIMEOUT_S = 5.0
MEASURED_S = 1.0
"""For so long it is looked how fast the workers are."""
MOST_DEAD_LETTERS = 10_000
"""Dead letters that are counted, at most."""
ACTIONS = 100

router = APIRouter(route_class=PageRoute, include_in_schema=False)


class PartitionNow(NamedTuple):
    """A partition of the input log; ``end`` and ``behind`` are None where Kafka does not say."""

    partition: int
    applied: int
    end: int | None
    per_second: float
    taken: Mapping[int, int]

    @property
    def behind(self) -> int | None:
        """Records that are not applied yet."""
        return None if self.end is None else max(0, self.end - self.applied)


class WorkerNow(NamedTuple):
    """A worker, and what its partitions amount to."""

    name: str
    host: str
    partitions: Sequence[int]
    behind: int
    per_second: float


@router.get("/system")
async def system(request: Request, here: Here, caller: Viewer) -> Response:
    """Workers, lag, throughput, what waits to be published, dead letters, misplaced records."""
    async with here.snapshot() as connection:
        before = await diagnosis.applied(connection, here.topics.events)
    started = time.monotonic()
    (members, problem), _ = await asyncio.gather(_group(here), asyncio.sleep(MEASURED_S))
    async with here.snapshot() as connection:
        now = await diagnosis.applied(connection, here.topics.events)
        took_s = time.monotonic() - started
        letters = await diagnosis.dead_letter_reasons(connection, MOST_DEAD_LETTERS)
        counts = await figures.read(await driver(connection), here.topics.events)
    partitions = [_partition(here, number, now[number], before.get(number), took_s) for number in sorted(now)]
    return rendered(
        request,
        "system.html",
        caller,
        partitions=partitions,
        workers=_workers(members, partitions),
        figures=counts,
        letters=letters,
        letter_count=sum(each.count for each in letters),
        most_letters=MOST_DEAD_LETTERS,
        group=members,
        problem=problem,
        topics=here.topics,
    )


@router.get("/audit")
async def audit(
    request: Request,
    here: Here,
    caller: Admin,
    batch_id: Annotated[Text, Query(max_length=200)] = "",
    cursor: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
) -> Response:
    """Who did what, newest first."""
    page = await history.list_actions(here, caller, batch_id=batch_id or None, cursor=cursor, limit=ACTIONS)
    return rendered(request, "audit.html", caller, page=page, batch_id=batch_id, topic=here.topics.events)


def _partition(here: Context, number: int, now: Applied, before: Applied | None, took_s: float) -> PartitionNow:
    since = now.next_offset - (before.next_offset if before else 0)
    # Below nothing: another generation of the tables was promoted meanwhile.
    return PartitionNow(number, now.next_offset, here.log_ends.of(number), max(0, since) / took_s, now.taken)


def _workers(members: Group | None, partitions: Sequence[PartitionNow]) -> list[WorkerNow]:
    found = []
    for member in members.members if members else ():
        held = [each for each in partitions if each.partition in member.partitions]
        behind, per_second = sum(each.behind or 0 for each in held), sum(each.per_second for each in held)
        found.append(WorkerNow(member.client_id, member.host, sorted(member.partitions), behind, per_second))
    return sorted(found)


async def _group(here: Context) -> tuple[Group | None, str | None]:
    try:
        async with asyncio.timeout(BROKER_TIMEOUT_S), administering(here.kafka) as admin:
            return await group(admin, here.topics.consumer_group, here.topics.events), None
    except (KafkaError, TimeoutError, OSError) as error:
        return None, f"Kafka does not say who reads: {type(error).__name__}"
