"""Rollcall's job as one would write it with Quix Streams; runs in an environment of its own (requirements.txt).

Each result is an upsert into the state of its batch's key, with duplicate detection; counts per batch; one finalized
record a batch. State is bytes, not Quix' JSON, and messages are parsed by orjson, since both make it faster.
"""

import argparse
import struct
from typing import Any

import orjson
from quixstreams import Application

STATUSES = ("succeeded", "partial", "failed", "skipped", "retrying")
EFFECTS = ("created", "updated", "unchanged")
RETRYING = 4
COUNTS = struct.Struct("<q???qqq5q3q")
HEAD = struct.Struct("<?bbi")
BATCH = "/batch"


def fold(value: bytes, key: bytes, timestamp: int, headers: Any, state: Any) -> bytes | None:
    event = orjson.loads(value)
    stored = state.get_bytes(BATCH)
    total, manifest, sealed, finalized, matched, duplicates, late, *counts = (
        COUNTS.unpack(stored) if stored else (-1, False, False, False, 0, 0, 0, *(0,) * 8)
    )
    kind = event.get("type", "item.result")
    if kind == "item.result":
        item, status = event["item_id"], STATUSES.index(event["status"])
        attempt, effect = event.get("attempt", 1), event.get("effect")
        effect_index = -1 if effect is None else EFFECTS.index(effect)
        before = state.get_bytes(item)
        expected, old_status, old_effect, old_attempt = HEAD.unpack_from(before) if before else (False, -1, -1, 0)
        after = HEAD.pack(expected, status, effect_index, attempt) + value
        if old_status >= 0 and (
            before == after or attempt < old_attempt or (attempt == old_attempt and status == RETRYING != old_status)
        ):
            duplicates += 1
        elif finalized:
            late += 1
        else:
            for number, which, what in ((-1, old_status, old_effect), (1, status, effect_index)):
                if which >= 0:
                    counts[which] += number
                    matched += number if expected and which != RETRYING else 0
                if what >= 0:
                    counts[len(STATUSES) + what] += number
            state.set_bytes(item, after)
    elif kind in ("batch.opened", "batch.items_expected"):
        if kind == "batch.opened":
            total = max(total, event.get("total_items", -1))
            sealed = event.get("sealed", True) and ("total_items" in event or "item_ids" in event)
        if "item_ids" in event:
            manifest, total = True, max(total, 0) + len(event["item_ids"])
            for item in event["item_ids"]:
                before = state.get_bytes(item)
                _, old_status, old_effect, old_attempt = HEAD.unpack_from(before) if before else (False, -1, -1, 0)
                matched += 0 <= old_status < RETRYING
                state.set_bytes(
                    item, HEAD.pack(True, old_status, old_effect, old_attempt) + (before or b"")[HEAD.size :]
                )
    elif kind == "batch.sealed":
        sealed = True
    else:
        raise ValueError(f"unknown type {kind}")
    done = sealed and not finalized and (matched if manifest else sum(counts[:RETRYING])) >= total
    state.set_bytes(BATCH, COUNTS.pack(total, manifest, sealed, finalized or done, matched, duplicates, late, *counts))
    if not done:
        return None
    outcome = "completed" if not counts[2] else "completed_with_errors" if counts[0] + counts[1] else "failed"
    finalized_event: bytes = orjson.dumps(
        {
            "batch_id": key.decode(),
            "revision": 1,
            "outcome": outcome,
            "item_counts": {"total": total, **dict(zip(STATUSES[:RETRYING], counts[:RETRYING], strict=True))},
            "write_counts": dict(zip(EFFECTS, counts[len(STATUSES) :], strict=True)),
        }
    )
    return finalized_event


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    for name in ("--bootstrap", "--topic", "--finalized", "--group", "--state"):
        arguments.add_argument(name, required=True)
    arguments.add_argument("--commit-s", type=float, default=0.1)
    options = arguments.parse_args()
    app = Application(
        broker_address=options.bootstrap,
        consumer_group=options.group,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=options.commit_s,
        state_dir=options.state,
        loglevel="ERROR",
        auto_create_topics=True,
        max_partition_buffer_size=50_000,
        consumer_extra_config={"max.partition.fetch.bytes": 4 * 1024 * 1024, "queued.min.messages": 200_000},
        producer_extra_config={"linger.ms": 20, "batch.size": 512 * 1024, "queue.buffering.max.messages": 500_000},
    )
    events = app.topic(options.topic, key_deserializer="bytes", value_deserializer="bytes")
    finalized = app.topic(options.finalized, key_serializer="bytes", value_serializer="bytes")
    frame = app.dataframe(events).apply(fold, stateful=True, metadata=True)
    frame.filter(lambda event: event is not None).to_topic(finalized)
    app.run()


if __name__ == "__main__":
    main()
