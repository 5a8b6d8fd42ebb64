"""The events that open a batch, a long manifest cut into several. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from schemas.events import MAX_MANIFEST_CHUNK

MAX_CHUNK_BYTES = 900 * 1024
"""Of the ids as JSON: with all else of an event it stays below the 1 MiB that the topic takes."""


def opening(opened: Mapping[str, Any], item_ids: Sequence[str] | None) -> list[dict[str, Any]]:
    """The events that open a batch with this manifest (None: with none).

    ``opened`` is the ``batch.opened`` without its ids. What one event cannot hold becomes openings that are not sealed,
    and the seal, unless the batch is to stay unsealed anyway. All of it may be sent again: what was sealed meanwhile
    takes no ``batch.items_expected``, but the same opening.
    """
    if item_ids is None:
        return [dict(opened)]
    pieces = list(chunks(item_ids)) or [[]]
    if len(pieces) == 1:
        return [{**opened, "item_ids": pieces[0]}]
    events = [{**opened, "item_ids": piece, "sealed": False} for piece in pieces]
    if opened.get("sealed") is not False:
        events.append({"type": "batch.sealed", "batch_id": opened["batch_id"]})
    return events


def chunks(item_ids: Sequence[str]) -> Iterator[list[str]]:
    """The ids in pieces that fit an event each."""
    chunk: list[str] = []
    size = 0
    for item_id in item_ids:
        cost = len(json.dumps(item_id, ensure_ascii=False).encode()) + 1
        if chunk and (len(chunk) == MAX_MANIFEST_CHUNK or size + cost > MAX_CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item_id)
        size += cost
    if chunk:
        yield chunk
