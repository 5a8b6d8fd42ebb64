"""docs/lifecycle.md, cell by cell: every state a batch can be in, by every message it can be told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from handlers.records import Disposition
from schemas.dead_letters import Reason, Refused
from schemas.events import ADAPTERS
from tests.harness.told import Told

DOCUMENT = Path(__file__).parent.parent / "docs" / "lifecycle.md"
DEADLINE = "2026-02-01T00:00:00Z"
MANIFEST = {"item_ids": ["a", "b"], "deadline_at": DEADLINE}


def _told(*steps: Callable[[Told], Any]) -> Callable[[], Told]:
    def build() -> Told:
        told = Told()
        for each in steps:
            each(told)
        return told

    return build


def _ended(end: Callable[[Told], Any], **opened: Any) -> Callable[[], Told]:
    """Of a manifest a and b, a has succeeded and b is missing when the end comes."""
    return _told(lambda told: told.opened(**MANIFEST | opened), lambda told: told.result("a"), end)


# The document's rows: a batch in each state, told here how it came into it.
STATES: dict[str, Callable[[], Told]] = {
    "unknown": _told(),
    "pending, unsealed": _told(lambda told: told.opened()),
    "pending, sealed": _told(lambda told: told.opened(total_items=2, deadline_at=DEADLINE)),
    "processing, never opened": _told(lambda told: told.result("a")),
    "processing, manifest unsealed": _told(
        lambda told: told.opened(sealed=False, **MANIFEST), lambda told: told.result("a")
    ),
    "processing, manifest sealed": _ended(lambda told: None),
    "processing, total": _told(
        lambda told: told.opened(total_items=2, deadline_at=DEADLINE), lambda told: told.result("a")
    ),
    "processing, reopened": _ended(lambda told: (told.expired(DEADLINE), told.reopened(deadline_at=DEADLINE))),
    "completed": _told(
        lambda told: told.opened(**MANIFEST), lambda told: told.result("a"), lambda told: told.result("b")
    ),
    "completed_with_errors": _ended(lambda told: told.result("b", "failed")),
    "failed, aborted": _ended(lambda told: told.aborted()),
    "cancelled": _ended(lambda told: told.cancelled()),
    "expired": _ended(lambda told: told.expired(DEADLINE)),
    "forced": _ended(lambda told: told.finalize_requested()),
    "expired, revise": _ended(lambda told: told.expired(DEADLINE), policy={"late_results": "revise"}),
    "cancelled, revise": _ended(lambda told: told.cancelled(), policy={"late_results": "revise"}),
    "pruned": _ended(lambda told: (told.result("b", "failed"), told.pruned())),
    "pruned, revise": _ended(
        lambda told: (told.finalize_requested(), told.pruned()), policy={"late_results": "revise"}
    ),
}

# The document's columns.
MESSAGES: dict[str, Callable[[Told], Disposition]] = {
    "opened, total": lambda told: told.opened(total_items=2),
    "opened, manifest": lambda told: told.opened(item_ids=["a", "b"]),
    "items_expected": lambda told: told.expected("c"),
    "sealed": lambda told: told.sealed(),
    "sealed, total": lambda told: told.sealed(total_items=1),
    "result of b": lambda told: told.result("b", message="new"),
    "result of a, again": lambda told: told.result("a"),
    "a retrying": lambda told: told.result("a", "retrying", attempt=2),
    "result of a stranger": lambda told: told.result("z"),
    "cancelled": lambda told: told.cancelled(),
    "aborted": lambda told: told.aborted(),
    "expired": lambda told: told.expired(DEADLINE, told.batch.generation),
    "expired, outdated": lambda told: told.expired("2020-01-01T00:00:00Z"),
    "finalize_requested": lambda told: told.finalize_requested(),
    "reopened": lambda told: told.reopened(),
    "reopened, another revision": lambda told: told.reopened(revision=7),
    "corrected": lambda told: told.corrected(revision=1),
    "corrected, later revision": lambda told: told.corrected(revision=3),
    "corrected, older revision": lambda told: told.corrected(revision=0),
    "pruned": lambda told: told.pruned(),
    "pruned, another revision": lambda told: told.pruned(revision=7),
}

# Steps of the diagram that no cell takes: the batch, and what it is told.
BESIDES: list[tuple[Callable[[], Told], Callable[[Told], Disposition]]] = [
    (_told(lambda told: told.opened(**MANIFEST), lambda told: told.cancelled()), lambda told: told.reopened()),
]


def answer(told: Told, tell: Callable[[Told], Disposition]) -> str:
    """What the record did, and where the batch then stands: `accepted: completed, 2 of 2, revision 1`."""
    before = told.batch.revision
    try:
        disposition = str(tell(told)).replace("_", " ")
    except Refused as refused:
        return "dead letter" if refused.reason is Reason.NOT_APPLICABLE else str(refused.reason)
    if disposition == "no effect":
        return "–"
    batch = told.batch
    total = "?" if batch.total is None else batch.total
    revision = "" if batch.revision == before else f", revision {batch.revision}"
    return f"{disposition}: {told.status} {batch.answered}/{total}{revision}"


def cells() -> Iterator[tuple[str, str, str]]:
    """(state, message, answer) of the document's table."""
    header: list[str] = []
    for line in DOCUMENT.read_text().splitlines():
        if not line.startswith("| "):
            continue
        names = [re.sub(r"[`*]|<br>", "", cell).strip() for cell in line.strip("|").split("|")]
        if names[0] == "state":
            header = names[1:]
        elif header and not set(line) <= set("|-: "):
            yield from ((names[0], message, said) for message, said in zip(header, names[1:], strict=True))


@pytest.mark.parametrize(("state", "message", "said"), list(cells()), ids=lambda each: str(each))
def test_a_batch_in_this_state_answers_this_message_as_documented(state: str, message: str, said: str) -> None:
    assert answer(STATES[state](), MESSAGES[message]) == said


def test_the_table_has_every_state_by_every_message() -> None:
    documented = {(state, message) for state, message, _ in cells()}
    assert documented == {(state, message) for state in STATES for message in MESSAGES}
    about_items = {name for name in MESSAGES if "result" in name or "retrying" in name}
    types = {"item.result"} | {f"batch.{name.split(',')[0]}" for name in MESSAGES.keys() - about_items}
    assert types == set(ADAPTERS)


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("state", STATES)
def test_where_the_table_says_nothing_happens_nothing_does(state: str, message: str) -> None:
    told = STATES[state]()
    before = repr(told.batch), repr(told.registers)
    if answer(told, MESSAGES[message]) in ("–", "dead letter"):
        assert (repr(told.batch), repr(told.registers)) == before


def test_the_diagram_has_every_step_that_the_tables_take_and_no_other() -> None:
    drawn = set(re.findall(r"^ {4}(\S+) --> (\S+):", DOCUMENT.read_text(), re.MULTILINE))
    taken = set()
    for build, tell in [*product(STATES.values(), MESSAGES.values()), *BESIDES]:
        told = build()
        before, revision = told.batch.state if told.next_offset else "[*]", told.batch.revision
        with suppress(Refused):
            if tell(told) is Disposition.NO_EFFECT:
                continue
            ended = told.batch.outcome is not None and told.batch.revision != revision
            if told.batch.state != before or ended:
                taken.add((before, told.batch.state))
    assert taken == drawn
