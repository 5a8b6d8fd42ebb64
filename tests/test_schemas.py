"""The published schemas: current, true to what is taken and sent, and stable in their order."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema.protocols import Validator

from schemas.events import ADAPTERS
from schemas.export import documents, main
from schemas.published import PUBLISHED, BatchFinalized
from tests.harness.broken_records import BROKEN, INVALID_EVENT, TRICKY_GOOD
from tests.harness.histories import Shape, make_history

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"
DOCUMENTS = {name: json.loads(text) for name, text in documents().items()}


def validators() -> dict[str, Validator]:
    kinds = {name.removeprefix("in.").removesuffix(".json"): each for name, each in DOCUMENTS.items() if "in." in name}
    return {kind: jsonschema.Draft202012Validator(document) for kind, document in kinds.items() if kind in ADAPTERS}


VALIDATORS = validators()


def validator_of(event: Any) -> Validator | None:
    kind = (event.get("type") if isinstance(event, dict) else None) or "item.result"
    return VALIDATORS.get(kind) if isinstance(kind, str) else None


def test_the_exported_schemas_are_current() -> None:
    stored = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert stored == documents(), "run: python -m schemas.export docs/schemas"


def test_exporting_removes_what_is_no_more(tmp_path: Path) -> None:
    (tmp_path / "in.gone.json").write_text("{}")
    main(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == documents().keys()


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_each_document_is_a_json_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENTS[name])


def test_every_message_of_the_design_has_a_schema() -> None:
    assert VALIDATORS.keys() == ADAPTERS.keys()
    assert len(VALIDATORS) == 11


def test_what_is_taken_is_valid_by_the_schema() -> None:
    wrong = []
    for good in TRICKY_GOOD:
        event = json.loads(good.value)
        validator = validator_of(event)
        assert validator is not None
        wrong += [f"{good.name}: {error.message[:200]}" for error in validator.iter_errors(event)]
    history = make_history(3, sizes=[0, 1, 30, 100], shapes=list(Shape))
    for message in history:
        event = json.loads(message.value)
        validator = validator_of(event)
        assert validator is not None
        wrong += [f"{message.value!r}: {error.message[:200]}" for error in validator.iter_errors(event)]
    assert wrong == []


def test_most_of_what_is_refused_for_its_fields_is_invalid_by_the_schema() -> None:
    # What no JSON Schema can say: which days exist, that 1.0 is no integer, that of two fields one is enough (and
    # Python's `$` lets a trailing newline pass).
    passed: Counter[str] = Counter()
    refused = 0
    for broken in BROKEN:
        if broken.reason != INVALID_EVENT:
            continue
        event = json.loads(broken.value or b"null")
        validator = validator_of(event)
        if validator is None:
            continue
        if validator.is_valid(event):
            passed[broken.name] += 1
        else:
            refused += 1
    print(refused, "refused by the schema, passed:", *passed, sep="\n  ")
    inexpressible = re.compile(r"occurred_at|deadline_at|\\n|1\.0|2\.0|[12][eE]0|manifest")
    assert refused > 400
    assert [name for name in passed if not inexpressible.search(name)] == []


def test_a_finalized_event_is_ordered_as_the_design_says() -> None:
    assert list(BatchFinalized.model_fields) == [
        *("batch_id", "revision", "supersedes", "outcome", "finalized_by", "item_counts", "write_counts"),
        *("error_summary", "failed_item_ids", "missing_item_ids", "name", "metadata", "retry_of", "opened_at"),
        *("first_result_at", "finalized_at", "duration_ms", "as_of"),
    ]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_messages_have_no_defaults_so_that_every_field_is_always_there(name: str) -> None:
    model = PUBLISHED[name]
    assert all(each.is_required() for each in model.model_fields.values())
    assert set(DOCUMENTS[f"out.{name}.json"]["required"]) == set(model.model_fields)
