"""How fast, how often, and in which slot of time."""

import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from aiolimiter import AsyncLimiter

from rollcall_client.errors import ConfigurationError

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_UNIT = "|".join(sorted(_SECONDS, key=len, reverse=True))
_RATE = re.compile(rf"\s*(?P<count>[0-9.]+)\s*(?:/|per)\s*(?P<number>[0-9.]+)?\s*(?P<unit>{_UNIT})\s*")
_SPAN = re.compile(rf"\s*(?P<number>[0-9.]+)\s*(?P<unit>{_UNIT})\s*")

BURST_S = 0.02
"""How much of a rate may come at once: timers are no finer."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many starts in so many seconds: ``Rate.of("1 per 1.5 s")``, ``Rate.of("100/s")``."""

    count: float
    seconds: float

    @classmethod
    def of(cls, text: str) -> Self:
        """From a text. Raises ConfigurationError."""
        found = _RATE.fullmatch(text)
        if found is None:
            raise ConfigurationError(f'a rate is written like "1 per 1.5 s" or "100/s", not {text!r}')
        count, seconds = _number(found["count"], text), _number(found["number"] or "1", text) * _SECONDS[found["unit"]]
        if count <= 0 or seconds <= 0:
            raise ConfigurationError(f"a rate is above 0, not {text!r}")
        return cls(count, seconds)

    def limiter(self) -> AsyncLimiter:
        """What to pass at each start; starts are spread evenly."""
        at_once = max(1.0, self.count / self.seconds * BURST_S)
        return AsyncLimiter(at_once, at_once * self.seconds / self.count)


@dataclass(frozen=True, slots=True)
class Retry:
    """Up to ``attempts`` in all, waiting ``initial_s`` and then ``factor`` times as long each, ``max_s`` at most.

    ``jitter`` is the share of a wait that is left to chance, so that not all come back at once.
    """

    attempts: int = 3
    initial_s: float = 0.5
    factor: float = 2.0
    max_s: float = 30.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.initial_s < 0 or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"attempts and factor are from 1, initial_s from 0, jitter from 0 to 1: {self}")

    def wait_s(self, attempt: int) -> float:
        """How long to wait after this attempt (from 1) failed."""
        longest = min(self.max_s, self.initial_s * self.factor ** min(attempt - 1, 100))
        return longest * (1 - self.jitter * random.random())


def time_bucket(now: datetime, span: str) -> datetime:
    """The beginning, in UTC, of the slot of time that ``now`` lies in: ``time_bucket(now, "15m")``.

    Slots of less than a day begin at midnight, UTC. Raises ConfigurationError.
    """
    if now.tzinfo is None:
        raise ConfigurationError(f"the time {now} has no zone: use datetime.now(UTC)")
    found = _SPAN.fullmatch(span)
    seconds = 0.0 if found is None else _number(found["number"], span) * _SECONDS[found["unit"]]
    if seconds < 1 or seconds != int(seconds):
        raise ConfigurationError(f'a slot of time is written like "30s", "15m", "1h" or "1d", not {span!r}')
    beginning = datetime(2000, 1, 1, tzinfo=UTC)
    return beginning + timedelta(seconds=(now - beginning) // timedelta(seconds=seconds) * seconds)


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} in {whole!r} is no number") from None
