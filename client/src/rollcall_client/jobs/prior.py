"""What earlier runs of a batch left to do, as the service's API knows it."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rollcall_client import listening
from rollcall_client.api import Api, time_of
from rollcall_client.client import ASK_EVERY_S, Rollcall
from rollcall_client.errors import ApiError, ConfigurationError
from rollcall_client.jobs.execution import Prior
from rollcall_client.publishing import Appended

DONE = frozenset({"succeeded", "partial", "skipped"})
CAUGHT_UP_S = 120.0


async def prior_of(client: Rollcall, batch_id: str) -> Prior:
    """How a batch stands, and what of it is done.

    Asked once Rollcall has read this client's opening of it, or where there is none, all that is in its partition now:
    so nothing that is in the log is done twice. Raises ApiError, UnreachableError.
    """
    if client.api is None:
        raise ConfigurationError("what is done of a batch is asked of Rollcall's API: give api_url")
    prior = await standing_of(client, client.api, batch_id)
    if prior.finalized:
        return prior
    done: set[str] = set()
    attempts: dict[str, int] = {}
    async for item in client.api.items(batch_id):
        if item["status"] in DONE:
            done.add(item["item_id"])
        else:
            attempts[item["item_id"]] = item["attempt"]
    return replace(prior, done=done, attempts=attempts)


async def standing_of(client: Rollcall, api: Api, batch_id: str) -> Prior:
    """As ``prior_of``, without the items."""
    await client.flush()
    place = client.appended_last(batch_id) or await _last_place(client, batch_id)
    try:
        found = await _caught_up(client, api, batch_id, place)
        return Prior(revision=found["revision"], finalized=found["outcome"] is not None)
    except KeyError as error:
        raise ApiError(
            f"Rollcall's API does not say {error} of batch {batch_id}: it is older than this client, upgrade it"
        ) from error


async def _last_place(client: Rollcall, batch_id: str) -> Appended:
    """The last place in a batch's home partition, asked of Kafka: the API's own view of it is seconds old."""
    partition, end = await listening.home_end(client.kafka, client.kafka.topic("events"), batch_id)
    return Appended(partition, end - 1, None)


async def _caught_up(client: Rollcall, api: Api, batch_id: str, place: Appended) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(CAUGHT_UP_S):
            while True:
                found = await api.batch(batch_id)
                if found is not None and _home(found, place) != place.partition:
                    place = await _forwarded(client, batch_id, place, found)
                elif found is not None and (found["lag"]["next_offset"] or 0) > place.offset:
                    return found  # that a batch has ended does not say so: it may have been reopened since
                await asyncio.sleep(ASK_EVERY_S)
    except TimeoutError:
        raise ApiError(
            f"Rollcall has not read what is published of batch {batch_id} within {CAUGHT_UP_S:g} s: do its workers run?"
        ) from None


def _home(found: Mapping[str, Any], place: Appended) -> int:
    """The partition that the batch is applied from: another than one's own where partitions were added."""
    decided = found["as_of"]
    return place.partition if decided is None else int(decided["partition"])


async def _forwarded(client: Rollcall, batch_id: str, place: Appended, found: Mapping[str, Any]) -> Appended:
    """The last place of the batch's home once all up to this one is forwarded there."""
    home = _home(found, place)
    opened_at = time_of(found.get("opened_at") or found.get("first_result_at"))  # weeks ago, maybe
    end = await listening.home_end_behind(
        client.kafka,
        client.kafka.topic("events"),
        batch_id,
        partition=place.partition,
        offset=place.offset,
        home=home,
        since=place.at or opened_at,
        own=place == client.appended_last(batch_id),
    )
    return Appended(home, end - 1, None)
