"""Events as a job would publish them, for `tests.harness.topics.produce`."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.harness.topics import Headers


class Event(NamedTuple):
    """A record to be: key, value, headers."""

    key: bytes | None
    value: bytes
    headers: Headers = ()


def event(batch_id: str, **fields: Any) -> Event:
    return Event(batch_id.encode(), json.dumps({"batch_id": batch_id, **fields}).encode())


def opened(batch_id: str, **fields: Any) -> Event:
    return event(batch_id, type="batch.opened", **fields)


def result(batch_id: str, item_id: str, status: str = "succeeded", **fields: Any) -> Event:
    return event(batch_id, item_id=item_id, status=status, **fields)
