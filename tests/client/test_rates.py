"""Rates, retries and slots of time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall_client import ConfigurationError
from rollcall_client.jobs import Job, Rate, Retry, time_bucket


@pytest.mark.parametrize(
    ("text", "count", "seconds"),
    [("1 per 1.5 s", 1, 1.5), ("100/s", 100, 1), ("5/ 2m", 5, 120), ("3 per 500ms", 3, 0.5), ("60 per h", 60, 3600)],
)
def test_a_rate_is_written_as_one_says_it(text: str, count: float, seconds: float) -> None:
    assert Rate.of(text) == Rate(count, seconds)


@pytest.mark.parametrize("text", ["", "fast", "0/s", "1 per 0 s", "1..2/s", "1/fortnight", "-1/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Rate.of(text)


async def test_starts_are_no_denser_than_the_rate() -> None:
    limiter = Rate.of("200/s").limiter()
    loop = asyncio.get_running_loop()
    starts: list[float] = []

    async def start() -> None:
        await limiter.acquire()
        starts.append(loop.time())

    await asyncio.gather(*(start() for _ in range(60)))
    # At least so long: a slow machine only makes it longer.
    assert starts[-1] - starts[0] >= (60 - 1 - 200 * 0.02) / 200 * 0.9


@given(attempt=st.integers(1, 5_000), jitter=st.floats(0, 1))
def test_waits_grow_to_their_longest(attempt: int, jitter: float) -> None:
    retry = Retry(attempts=10, initial_s=0.5, factor=2, max_s=30, jitter=jitter)
    longest = min(30, 0.5 * 2 ** min(attempt - 1, 100))
    assert longest * (1 - jitter) <= retry.wait_s(attempt) <= longest


def test_the_nearest_type_of_an_exception_has_its_retries() -> None:
    class Picky(Job):
        retries = {OSError: Retry(2), ConnectionError: Retry(5)}  # noqa: RUF012

    picky = Picky()
    assert picky.retry_for(ConnectionResetError()) == Retry(5)
    assert picky.retry_for(FileNotFoundError()) == Retry(2)
    assert picky.retry_for(ValueError()) is None
    with pytest.raises(ConfigurationError):
        Retry(attempts=0)


def test_a_slot_of_time_begins_where_all_agree() -> None:
    now = datetime(2026, 11, 24, 3, 17, 42, 5, tzinfo=UTC)
    assert time_bucket(now, "1m") == datetime(2026, 11, 24, 3, 17, tzinfo=UTC)
    assert time_bucket(now, "15m") == datetime(2026, 11, 24, 3, 15, tzinfo=UTC)
    assert time_bucket(now, "1d") == datetime(2026, 11, 24, tzinfo=UTC)
    assert time_bucket(now.astimezone(timezone(timedelta(hours=5, minutes=30))), "1h") == datetime(
        2026, 11, 24, 3, tzinfo=UTC
    )
    for wrong in ("", "0s", "100ms", "1.5s", "soon"):
        with pytest.raises(ConfigurationError):
            time_bucket(now, wrong)
    with pytest.raises(ConfigurationError, match="zone"):
        time_bucket(now.replace(tzinfo=None), "1m")
