"""Sends dead letters to the log again, each with where it was first read: the place it has among its item's results.

A redriven result has the version of the original record, so it never beats a newer one, and twice is once.
"""

import asyncio
from collections.abc import Sequence

from schemas.headers import FORWARDED, REDRIVEN, REDRIVEN_LOG, REDRIVEN_OFFSET, REDRIVEN_PARTITION
from store.dead_letters import DeadLetter
from streams.kafka import KafkaConnection, started
from streams.reading import decoded_headers

SEND_TIMEOUT_S = 15.0
MAX_REQUEST_BYTES = 128 * 1024 * 1024
"""aiokafka holds it against what is not yet compressed; it was, when it came."""


def can_be_redriven(letter: DeadLetter) -> bool:
    """Whether it could ever be taken: a record without a value never is."""
    return bool(letter.value)


async def redrive(kafka: KafkaConnection, letters: Sequence[DeadLetter], log_id: str) -> None:
    """Send these, in order, to the topic and partition they came from; returns once the broker has all of them.

    Raises KafkaError or TimeoutError: then some may be in the log, and sending all again is harmless.
    """
    # Stopping has a time-out of its own: what the broker has not taken in time, aiokafka would send for ever.
    producer = kafka.producer(max_request_size=MAX_REQUEST_BYTES, compression_type="gzip")
    async with started(producer), asyncio.timeout(SEND_TIMEOUT_S):
        sent = []
        for letter in letters:
            topic, partition, offset = letter.key
            original = [
                (name, value) for name, value in decoded_headers(letter.headers) if name not in FORWARDED | REDRIVEN
            ]
            place = [
                (REDRIVEN_PARTITION, b"%d" % partition),
                (REDRIVEN_OFFSET, b"%d" % offset),
                (REDRIVEN_LOG, log_id.encode()),
            ]
            headers = original + place
            sent.append(
                await producer.send(topic, letter.value, key=letter.record_key, partition=partition, headers=headers)
            )
        await asyncio.gather(*sent)
