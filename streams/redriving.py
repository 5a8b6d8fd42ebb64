"""Sends dead letters to the log again, each with where it was first read: the place it has among its item's results.

A redriven result has the version of the original record, so it never beats a newer one, and twice is once.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas.headers import (
    FORWARDED,
    REDRIVEN,
    REDRIVEN_LOG,
    REDRIVEN_OFFSET,
    REDRIVEN_PARTITION,
    REDRIVEN_TIMESTAMP,
)
from store.dead_letters import DeadLetter, Key
from streams.kafka import TOO_LARGE, KafkaConnection, started
from streams.reading import decoded_headers

SEND_TIMEOUT_S = 15.0
MAX_REQUEST_BYTES = 128 * 1024 * 1024
"""aiokafka holds it against what is not yet compressed; it was, when it came."""


def can_be_redriven(letter: DeadLetter) -> bool:
    """Whether it could ever be taken: a record without a value never is."""
    return bool(letter.value)


async def redrive(kafka: KafkaConnection, letters: Sequence[DeadLetter], log_id: str) -> dict[Key, KafkaError]:
    """Send these, in order, to the topic and partition they came from; returns once the broker has all of them.

    But for those returned, which it refuses for good. Raises KafkaError or TimeoutError: then some may be in the log,
    and sending all again is harmless.
    """
    refused: dict[Key, KafkaError] = {}
    async with started(_producer(kafka)) as producer:
        left = await _send_together(producer, letters, log_id)
    # A produce batch is refused as a whole; and aiokafka counts what was refused, the broker does not, so whatever came
    # behind it is out of order. Alone each shows which one it is.
    while left:
        async with started(_producer(kafka)) as producer:
            while left:
                letter = left.pop(0)
                try:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await (await _send(producer, letter, log_id))
                except TOO_LARGE as error:
                    refused[letter.key] = error
                    break
    return refused


def _producer(kafka: KafkaConnection) -> AIOKafkaProducer:
    return kafka.producer(max_request_size=MAX_REQUEST_BYTES, compression_type="gzip")


async def _send_together(producer: AIOKafkaProducer, letters: Sequence[DeadLetter], log_id: str) -> list[DeadLetter]:
    """Send them all; returns those that the broker did not take."""
    sent: list[asyncio.Future[Any]] = []
    # Stopping has a time-out of its own: what the broker has not taken in time, aiokafka would send for ever.
    async with asyncio.timeout(SEND_TIMEOUT_S):
        with suppress(*TOO_LARGE):  # by aiokafka itself
            for letter in letters:
                sent.append(await _send(producer, letter, log_id))  # noqa: PERF401 (those before the refused one count)
        results = await asyncio.gather(*sent, return_exceptions=True)
    failed = [letter for letter, result in zip(letters, results, strict=False) if isinstance(result, BaseException)]
    return [*failed, *letters[len(sent) :]]


async def _send(producer: AIOKafkaProducer, letter: DeadLetter, log_id: str) -> "asyncio.Future[Any]":
    topic, partition, offset = letter.key
    original = [(name, value) for name, value in decoded_headers(letter.headers) if name not in FORWARDED | REDRIVEN]
    place = [
        (REDRIVEN_PARTITION, b"%d" % partition),
        (REDRIVEN_OFFSET, b"%d" % offset),
        (REDRIVEN_TIMESTAMP, b"%d" % round(letter.appended_at.timestamp() * 1000)),
        (REDRIVEN_LOG, log_id.encode()),
    ]
    sent: asyncio.Future[Any] = await producer.send(
        topic, letter.value, key=letter.record_key, partition=partition, headers=original + place
    )
    return sent
