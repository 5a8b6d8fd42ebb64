"""The corpus is what it claims to be: judged with Python's own parser, not with the product's."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

import pytest

from tests.harness.broken_records import BROKEN, EITHER, MAX_DEPTH, READABLE_DEPTH, TRICKY_GOOD, Broken, Good
from tests.harness.model import Model

# The contract's reasons, spelled out here again so that a typo in the corpus shows.
REASONS = {
    "invalid_json",
    "invalid_event",
    "unknown_type",
    "unsupported_schema_version",
    "unstorable",
    "too_large",
}
EVERYTHING: tuple[Broken | Good, ...] = (*BROKEN, *TRICKY_GOOD, *EITHER)


class UnstorableError(Exception):
    """Legal JSON that PostgreSQL or a double cannot hold."""


def strictly_parsed(value: bytes) -> Any:
    """The value by RFC 8259: ValueError where it is no JSON, UnstorableError where nothing can hold it."""
    text = value.decode("utf-8")
    depth = deepest_level(text)
    if depth > READABLE_DEPTH:
        raise UnstorableError(f"{depth} levels")
    parsed = json.loads(text, parse_int=held_integer, parse_float=held_double, parse_constant=no_constant)
    if depth > MAX_DEPTH:
        raise UnstorableError(f"{depth} levels")
    for string in strings_of(parsed):
        if "\0" in string or re.search("[\ud800-\udfff]", string):
            raise UnstorableError(repr(string))
    return parsed


def no_constant(literal: str) -> float:
    raise ValueError(f"{literal} is no JSON")


def held_double(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise UnstorableError(literal[:40])
    return number


def held_integer(literal: str) -> int:
    held_double(literal)
    return int(literal)


def deepest_level(text: str) -> int:
    outside_strings = re.sub(r'"(?:[^"\\]|\\.)*"', "", text, flags=re.DOTALL)
    depth = deepest = 0
    for character in outside_strings:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def strings_of(parsed: Any) -> list[str]:
    if isinstance(parsed, str):
        return [parsed]
    if isinstance(parsed, dict):
        return [string for pair in parsed.items() for part in pair for string in strings_of(part)]
    if isinstance(parsed, list):
        return [string for member in parsed for string in strings_of(member)]
    return []


def named(record: Broken | Good) -> str:
    return record.name.encode("ascii", "backslashreplace").decode()


def test_there_are_a_few_hundred_kinds_of_broken_record_and_every_reason_among_them() -> None:
    reasons = Counter(broken.reason for broken in BROKEN)
    assert len(BROKEN) >= 300
    assert set(reasons) == REASONS
    assert min(reasons.values()) >= 10, reasons


def test_every_record_has_a_name_of_its_own() -> None:
    names = Counter(record.name for record in EVERYTHING)
    assert [name for name, count in names.items() if count > 1] == []


def test_readable_batch_ids_are_never_shared() -> None:
    ids = Counter(record.batch_id for record in EVERYTHING if record.batch_id is not None)
    assert [batch_id for batch_id, count in ids.items() if count > 1] == []


def test_every_record_fits_a_topic_of_one_mebibyte() -> None:
    assert max(len(record.value or b"") for record in EVERYTHING) < 1_000_000


@pytest.mark.parametrize("broken", [b for b in BROKEN if b.reason == "invalid_json"], ids=named)
def test_what_is_called_no_json_is_none(broken: Broken) -> None:
    if broken.value is not None:
        with pytest.raises(ValueError):  # noqa: PT011  UnicodeDecodeError and JSONDecodeError are both of it
            strictly_parsed(broken.value)
    assert broken.batch_id is None


@pytest.mark.parametrize("broken", [b for b in BROKEN if b.reason == "unstorable"], ids=named)
def test_what_is_called_unstorable_is_json_that_nothing_can_hold(broken: Broken) -> None:
    assert broken.value is not None
    with pytest.raises(UnstorableError):
        strictly_parsed(broken.value)


@pytest.mark.parametrize("broken", [b for b in BROKEN if b.reason not in ("invalid_json", "unstorable")], ids=named)
def test_every_other_broken_record_is_sound_json_whose_batch_can_be_read(broken: Broken) -> None:
    assert broken.value is not None
    parsed = strictly_parsed(broken.value)
    if broken.batch_id is not None:
        assert parsed["batch_id"] == broken.batch_id
    elif isinstance(parsed, dict) and isinstance(said := parsed.get("batch_id"), str):
        assert said == "" or len(said) > 200 or re.search(r"[\x00-\x1f\x7f-\x9f/]", said)


@pytest.mark.parametrize("good", TRICKY_GOOD, ids=named)
def test_every_tricky_record_is_sound_and_the_model_takes_it(good: Good) -> None:
    parsed = strictly_parsed(good.value)
    assert parsed["batch_id"] == good.batch_id
    assert Model().apply(0, 0, parsed) == "accepted"


@pytest.mark.parametrize("either", EITHER, ids=named)
def test_what_the_contract_leaves_open_is_sound_json_at_least(either: Good) -> None:
    assert strictly_parsed(either.value.replace(b"1e999", b"1"))["batch_id"] == either.batch_id


def test_broken_records_come_without_key_with_a_broken_key_and_in_odd_headers() -> None:
    assert {None, b"", b"\xff\xfe\x00"} < {broken.key for broken in BROKEN}
    assert any(b"\xff" in value for broken in BROKEN for _, value in broken.headers)
    assert any(b"\xff" in value for good in TRICKY_GOOD for _, value in good.headers)
