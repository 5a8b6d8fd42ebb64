"""What the service's HTTP API is asked: how a batch stands, and which items are answered how."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Self, cast
from urllib.parse import quote

import httpx
import stamina

from rollcall_client.errors import ApiError

TIMEOUT_S = 10.0
ANSWER_S = 30.0
"""For a whole answer: httpx's time-out is for each piece of it."""
ATTEMPTS = 5
PAGE = 1000

_COME_BACK_LATER = frozenset({429, 502, 503, 504})


class Api:
    """The API of one installation. Every method raises ApiError where it cannot be asked, or refuses."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url.rstrip("/").removesuffix("/api")
        self._http = httpx.AsyncClient(base_url=f"{self._url}/api", headers=headers, timeout=TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def batch(self, batch_id: str) -> Mapping[str, Any] | None:
        """How a batch stands; None where the service does not know it (yet)."""
        # Asked of the list: a 404 can be a wrong address or a proxy's, and the path of a batch cannot hold all ids.
        path = "/batches"
        found = await self._get(path, {"batch_id": batch_id})
        try:
            [batch] = found["batches"] or [None]
            if batch is None or batch["batch_id"] == batch_id:
                return cast(Mapping[str, Any] | None, batch)
        except (KeyError, TypeError, ValueError):
            pass
        raise self._odd(path)

    async def items(self, batch_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """Every item of which there is a result, by id: {``item_id``, ``status``, ``attempt`` ...}."""
        # Percent-encoded, "." and ".." are no steps on the path.
        path = f"/batches/{quote(batch_id, safe='').replace('.', '%2E')}/items"
        query = {"limit": str(PAGE)}
        while True:
            page = await self._get(path, query)
            if "items" not in page or "next" not in page:
                raise self._odd(path)
            for item in page["items"]:
                yield item
            if page["next"] is None:
                return
            query["cursor"] = page["next"]

    async def _get(self, path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        try:
            answer = await self._answer(path, query)
        except httpx.HTTPStatusError as error:
            raise ApiError(
                f"{self._url} says {error.response.status_code} to {path}: {_detail(error.response)}",
                error.response.status_code,
            ) from None
        except (httpx.HTTPError, TimeoutError) as error:
            raise ApiError(f"{self._url} does not answer: {type(error).__name__} {error}") from error
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._odd(path)
        return found

    def _odd(self, path: str) -> ApiError:
        return ApiError(f"{self._url} answers {path} as Rollcall's API does not: is api_url right?")

    @stamina.retry(on=lambda error: _may_pass(error), attempts=ATTEMPTS, timeout=60)
    async def _answer(self, path: str, query: Mapping[str, str]) -> httpx.Response:
        async with asyncio.timeout(ANSWER_S):
            answer = await self._http.get(path, params=dict(query))
        answer.raise_for_status()
        return answer


def time_of(text: str | None) -> datetime | None:
    """A time of the API's answers."""
    return None if text is None else datetime.fromisoformat(text)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _COME_BACK_LATER
    return isinstance(error, httpx.TransportError | TimeoutError)


def _detail(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        return str(problem.get("detail") or problem.get("title"))
    except (ValueError, AttributeError):
        return answer.reason_phrase
