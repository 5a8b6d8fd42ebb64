"""What is known of API keys for a few seconds, and how much of its rate each has used. Bounded, in memory."""

import asyncio
import math
import time
from collections import OrderedDict

from sqlalchemy.ext.asyncio import AsyncEngine

from api.problems import Problem
from store import access
from store.access import ApiKey

BELIEVED_S = 5.0
"""How long a key is believed in without asking the database again: so long does a revocation take."""
MAX_KNOWN = 10_000
LOOK_UP_TIMEOUT_S = 15.0


class KnownKeys:
    """Looks keys up by their hashes, and counts their requests."""

    def __init__(self, engine: AsyncEngine, requests_per_second: float) -> None:
        self._engine = engine
        self._rate = requests_per_second
        self._known: OrderedDict[tuple[str, bytes], tuple[float, ApiKey | None]] = OrderedDict()
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def of_key(self, digest: bytes) -> ApiKey | None:
        """The key with this hash, unless it is revoked. Raises what the database raises."""
        return await self._looked_up("key", digest)

    async def of_session(self, digest: bytes) -> ApiKey | None:
        """The key behind the session with this hash. Raises what the database raises."""
        return await self._looked_up("session", digest)

    def forget_session(self, digest: bytes) -> None:
        """It has ended."""
        self._known.pop(("session", digest), None)

    def count_request(self, key_id: str) -> None:
        """Count a request of a key: its bucket holds two seconds' worth. Raises 429 where that is used up."""
        now = time.monotonic()
        holds = max(1.0, 2 * self._rate)
        level, since = self._used.pop(key_id, (0.0, now))
        level = max(0.0, level - (now - since) * self._rate)
        full = level + 1 > holds
        self._used[key_id] = (level if full else level + 1, now)
        if len(self._used) > MAX_KNOWN:
            self._used.popitem(last=False)
        if full:
            wait_s = max(1, math.ceil((level + 1 - holds) / self._rate))
            raise Problem(
                429,
                f"more than {self._rate:g} requests a second with this key",
                headers={"Retry-After": str(wait_s)},
            )

    async def _looked_up(self, kind: str, digest: bytes) -> ApiKey | None:
        until, found = self._known.get((kind, digest), (0.0, None))
        if until < time.monotonic():
            ask = access.key_of if kind == "key" else access.session_key
            async with asyncio.timeout(LOOK_UP_TIMEOUT_S), self._engine.connect() as connection:
                found = await ask(connection, digest)
            self._known[kind, digest] = (time.monotonic() + BELIEVED_S, found)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return found
