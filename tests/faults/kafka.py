"""Harm to Kafka, and to the way there."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from rollcall.embedded.servers import log_since, log_size
from store.leadership import database_name
from tests.faults import cluster
from tests.faults.producing import Message
from tests.faults.round import WORKERS, Round, during, feed, restart, send_signal, start_again, until
from tests.faults.stage import ID_EXPIRATION_MS
from tests.harness.topics import drain
from tests.harness.waiting import eventually

CHANNELS = ("events", "dead-letters")
READS_BACK = "reading back waits"
"""What the log says, of its topics, where a channel has read all but what an open transaction holds back."""
GIVEN_UP = tuple(f"publish {name} failed, beginning anew" for name in CHANNELS)
"""What the log says of a relay that threw its producer away."""


async def kill_kafka(each: Round) -> None:
    """And an upstream service dies with it, so that nobody knows of some records whether they are in the log."""
    await each.stage.kafka.kill()
    await each.running.begin_anew()
    each.notes.append(f"of {each.running.forgotten} records the outcome is not known")
    await start_again(each.stage.kafka.start)


async def restart_kafka(each: Round) -> None:
    await restart(each.stage.kafka)


async def away(each: Round) -> None:
    await restart(each.stage.kafka, each.away_s)


async def slow(each: Round) -> None:
    each.stage.kafka_proxy.delay_s = each.some(0.4, 1.0)
    await asyncio.sleep(each.away_s)
    each.stage.kafka_proxy.heal()


async def cut(each: Round) -> None:
    for _ in range(4):
        each.stage.kafka_proxy.cut()
        each.stage.kafka_proxy.refuse(each.random.random() < 0.5)
        await asyncio.sleep(each.some(0.05, 1.5))
    each.stage.kafka_proxy.heal()


async def black_hole(each: Round) -> None:
    each.stage.kafka_proxy.black_hole()
    await asyncio.sleep(max(12.0, each.away_s))
    each.stage.kafka_proxy.heal()


async def late(each: Round) -> None:
    """What was under way on the connections there are arrives long after the product gave it up."""
    async with during(feed(each)):  # so that the relay has something under way
        written = await each.product.written()
        await until(lambda: each.product.publishes_behind(written), "a relay that publishes")
        await asyncio.sleep(each.some(0.5, 1.5))
        since = log_size(each.product.log)
        for _ in range(3):
            each.stage.kafka_proxy.stall()
            await asyncio.sleep(0.2)
        await asyncio.sleep(each.some(15, 17))

        async def has_given_up() -> bool:
            return any(line in log_since(each.product.log, since) for line in GIVEN_UP)

        await until(has_given_up, "the relay has given up what was under way")
        each.stage.kafka_proxy.heal()


async def foreign_transaction(each: Round) -> None:
    """Somebody's open transaction holds the last stable offset of the output back, while the relay begins anew."""
    producer = AIOKafkaProducer(
        bootstrap_servers=each.product.direct.bootstrap_servers,
        transactional_id=f"foreign-{each.prefix}",
        transaction_timeout_ms=120_000,
    )
    held_back = (each.product.topics.finalized, each.product.topics.dead_letters)
    async with producer, during(feed(each)):  # so that there is something to publish
        await producer.begin_transaction()
        for partition in range(3):
            for topic in held_back:
                await producer.send_and_wait(topic, b"{}", key=b"foreign", partition=partition)
        before = await until(lambda: each.product.at_work("relay"), "a relay that leads")
        for found in before:
            send_signal(found, signal.SIGKILL)
            await asyncio.to_thread(found.wait, 10)
        written = await each.product.written()
        since = log_size(each.product.log)

        async def reads_back() -> bool:
            said = [line for line in log_since(each.product.log, since).splitlines() if READS_BACK in line]
            return all(any(topic in line for line in said) for topic in held_back)

        await until(reads_back, "a relay that waits for the open transaction to end")

        async def is_due() -> bool:
            return all(rows for rows, _ in (await each.product.behind(written)).values())

        await until(is_due, "events and dead letters to publish")
        waiting = await each.product.behind(written)
        if any(published for _, published in waiting.values()):
            each.problems.append(f"published before it had read back to the end (rows, published): {waiting}")
        each.notes.append(f"not published while the transaction was open: {waiting}")
        await producer.abort_transaction()


async def id_expired(each: Round) -> None:
    """Nothing to publish for longer than the broker remembers an idle transactional id (8 s here)."""
    try:
        each.running.paused.set()
        await asyncio.sleep(8 + each.some(5, 7))
        for name in CHANNELS:
            # Which the relay used last when it had published what was behind, on a busy machine a while from now.
            forgotten = partial(_is_forgotten, each, name)
            await eventually(forgotten, 60, interval_s=1.0, message=f"the id of the relay for {name} is forgotten")
        written = await each.product.written()
        each.running.paused.clear()
        async with during(feed(each)):
            await until(
                lambda: each.product.publishes_behind(written), "the relay publishes, by ids that were forgotten"
            )
            await asyncio.sleep(each.some(0, 2))
    finally:
        each.stage.kafka.id_expiration_ms = ID_EXPIRATION_MS
        await restart_kafka(each)


async def _is_forgotten(each: Round, name: str) -> bool:
    """Whether the broker has replaced what it kept of one of the relay's transactional ids by a tombstone."""
    async with each.product.connection() as connection:
        database = await database_name(connection)
    known = each.product.topics.relay_transactional_id(name, database).encode()
    try:
        kept = await drain(each.product.direct.bootstrap_servers, "__transaction_state")
    except KafkaError:
        return False  # not said now
    values = [record.value for record in kept if record.key is not None and known in record.key]
    return bool(values) and values[-1] is None


async def with_expiring_ids(each: Round) -> list[Message]:
    each.stage.kafka.id_expiration_ms = 8_000
    await restart_kafka(each)
    return []


async def move_coordinators(each: Round) -> None:
    """Of the workers' group and of the relay's transactional ids, each time to the other broker."""
    kafka, topics = each.stage.cluster, each.product.topics
    async with each.product.connection() as connection:
        database = await database_name(connection)
    both = [
        cluster.group(topics.consumer_group),
        cluster.transactions(topics.relay_transactional_id("events", database)),
    ]
    moves = both * 3
    each.random.shuffle(moves)
    async with during(feed(each)):
        for number, coordinated in enumerate(moves, 1):
            await asyncio.sleep(each.some(0.1, 1.5))
            move = await kafka.move(coordinated, each.random)
            begun = time.monotonic()
            if number == len(moves):
                each.over.set()
            await _used(each)
            each.notes.append(f"{move}, used after {time.monotonic() - begun:.1f} s")
            await kafka.start()
    await each.product.ready(WORKERS)
    await kafka.elect(*(coordinated.topic for coordinated in both))


async def _used(each: Round) -> None:
    """Wait until workers have committed to, and the relay has published by, the coordinators that there are now."""
    kafka, group_id = each.stage.cluster, each.product.topics.consumer_group
    committed = await eventually(lambda: kafka.committed(group_id), message="what the workers have committed") or 0
    written = await each.product.written()

    async def is_used() -> bool:
        return await each.product.publishes_behind(written) and (await kafka.committed(group_id) or 0) > committed

    await until(is_used, "workers and relay use the coordinators after a move", each.patience_s)
