"""Sees to it that every partition of the input log has a reader, also those that were added while no worker ran.

A static member that comes back gets the partitions it had, without a rebalance: nobody looks whether there are more by
now. (aiokafka's leader does, but only while it runs.)
"""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from aiokafka.errors import KafkaError

from schemas.topics import Topics
from streams.kafka import KafkaConnection
from streams.observing import NoTopicError, administering, group, partitions_of
from streams.retrying import sleep

FIRST_S = 3.0
EVERY_S = 60.0
TIMEOUT_S = 30.0

log = structlog.get_logger(__name__)


async def keep_all_read(
    kafka: KafkaConnection, topics: Topics, consumer: Callable[[], Any], stop: asyncio.Event
) -> None:
    """Until ``stop`` is set, have this worker join its group anew where the settled group leaves partitions out.

    From the group's leader, whoever that is, this makes a rebalance; another member's changes nothing.
    """
    await sleep(stop, FIRST_S)
    while not stop.is_set():
        try:
            async with asyncio.timeout(TIMEOUT_S):
                left_out = await _left_out(kafka, topics)
            if left_out:
                log.warning("partitions that no worker reads, joining the group anew", partitions=left_out)
                consumer()._coordinator.request_rejoin()
        except (KafkaError, NoTopicError, OSError, TimeoutError) as error:
            log.debug("could not ask who reads which partition", error=repr(error))
        await sleep(stop, EVERY_S)


async def _left_out(kafka: KafkaConnection, topics: Topics) -> list[int]:
    async with administering(kafka) as admin:
        partitions = await partitions_of(admin, topics.events)
        found = await group(admin, topics.consumer_group, topics.events)
    if found.state != "Stable":
        return []  # it is just being shared out
    held = {partition for member in found.members for partition in member.partitions}
    return [partition for partition in partitions if partition not in held]
