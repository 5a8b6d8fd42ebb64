"""Watches the whole installation for Prometheus: lag by partition, open batches, what waits to be published.

Lag is asked of Kafka and PostgreSQL, not of the workers: it grows visibly where none is running.
"""

import asyncio
import math
from datetime import UTC, datetime

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.topics import Topics
from store.connection import Database
from store.figures import Figures, read
from streams.health import health
from streams.kafka import KafkaConnection
from streams.kafka import stop as stop_client
from streams.metrics import InstallationMetrics, installation_metrics
from streams.retrying import attempts, sleep

EVERY_S = 5.0
COMMAND_TIMEOUT_S = 10.0
STATES = ("pending", "processing")
CHANNELS = ("finalized", "summaries", "alerts", "requests")


async def run(kafka: KafkaConnection, database: Database, topics: Topics, partitions: int, stop: asyncio.Event) -> None:
    """Look every few seconds until ``stop`` is set. Raises what is a bug."""
    metrics = installation_metrics()
    async for attempt in attempts("reading figures failed, trying again", stop, lambda: health.beat("figures")):
        with attempt:
            connection = await database.connect("figures", command_timeout=COMMAND_TIMEOUT_S)
            # The high watermark counts what is in open transactions, too: it has arrived and is not applied.
            consumer = kafka.consumer(isolation_level="read_uncommitted", enable_auto_commit=False)
            try:
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    await consumer.start()
                while not stop.is_set():
                    health.beat("figures")
                    figures = await read(connection, topics.events)
                    _show(metrics, figures, await _lags(consumer, topics.events, partitions, figures.applied))
                    attempt.retry_state.attempt_number = 1
                    await sleep(stop, EVERY_S)
            finally:
                # Somebody else's are newer now: an alert takes the greatest of what the relays say.
                _forget(metrics)
                health.end("figures")
                connection.terminate()
                await stop_client(consumer)


async def _lags(
    consumer: AIOKafkaConsumer, topic: str, partitions: int, applied: dict[int, int]
) -> dict[TopicPartition, int]:
    """Offsets behind what is applied; all there are where no worker has ever read a partition."""
    wanted = [TopicPartition(topic, number) for number in sorted({*range(partitions), *applied})]
    async with asyncio.timeout(COMMAND_TIMEOUT_S):
        ends = await consumer.end_offsets(wanted)
        starts = await consumer.beginning_offsets(wanted)
    return {tp: max(0, ends[tp] - applied.get(tp.partition, starts[tp])) for tp in wanted}


def _show(metrics: InstallationMetrics, figures: Figures, lags: dict[TopicPartition, int]) -> None:
    now = datetime.now(UTC)
    for tp, lag in lags.items():
        metrics.lag.labels(str(tp.partition)).set(lag)
    for state in STATES:
        metrics.open_batches.labels(state).set(figures.open_batches.get(state, 0))
    oldest = figures.oldest_open
    metrics.oldest.set(0 if oldest is None else max(0.0, (now - oldest).total_seconds()))
    for channel in CHANNELS:
        metrics.outbox.labels(channel).set(figures.outbox.get(channel, 0))
    metrics.dead_letters.set(figures.unpublished_dead_letters)
    metrics.observed.set(now.timestamp())


def _forget(metrics: InstallationMetrics) -> None:
    for labelled in (metrics.lag, metrics.open_batches, metrics.outbox):
        labelled.clear()
    for single in (metrics.oldest, metrics.dead_letters):
        single.set(math.nan)
