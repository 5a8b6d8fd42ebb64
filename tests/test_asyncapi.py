"""The AsyncAPI document: current, true to the schemas, and understood by a parser that isn't ours."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from migrations.run import migrate
from rollcall.settings import Settings
from schemas.asyncapi import document, text
from schemas.events import ADAPTERS
from schemas.published import PUBLISHED
from schemas.topics import Topics
from tests.harness.api import serving
from tests.harness.histories import Shape, make_history

ROOT = Path(__file__).parents[1]
PARSER = ROOT / ".venv" / "asyncapi"
INSTALL = "npm install --prefix .venv/asyncapi --ignore-scripts @asyncapi/parser@3.6.3"


def test_the_document_is_current() -> None:
    stored = (ROOT / "docs" / "asyncapi.json").read_text()
    assert stored == text(Topics()), "run: python -m schemas.asyncapi docs/asyncapi.json"


def test_every_topic_and_every_message_is_in_it() -> None:
    made = document(Topics("mine."))
    addresses = {channel["address"]: set(channel["messages"]) for channel in made["channels"].values()}
    topics = Topics("mine.")
    assert addresses.keys() == {
        *(topics.events, topics.finalized, topics.summaries),
        *(topics.alerts, topics.requests, topics.dead_letters),
    }
    assert addresses["mine.events"] == ADAPTERS.keys()
    assert set().union(*addresses.values()) == {*ADAPTERS, *PUBLISHED, "dead-letter"}


def test_its_schemas_take_what_is_taken() -> None:
    made = document(Topics())
    history = make_history(3, sizes=[0, 1, 30], shapes=list(Shape))
    validators: dict[str, Any] = {}
    wrong = []
    for message in history:
        event = json.loads(message.value)
        kind = event.get("type") or "item.result"
        if kind not in validators:
            payload = made["components"]["messages"][kind]["payload"]
            validators[kind] = jsonschema.Draft7Validator({"allOf": [payload], "components": made["components"]})
        wrong += [f"{message.value!r}: {error.message[:200]}" for error in validators[kind].iter_errors(event)]
    assert validators.keys() >= {"item.result", "batch.opened"}
    assert wrong == []


def test_the_official_parser_understands_it() -> None:
    node = shutil.which("node")
    if node is None or not (PARSER / "node_modules" / "@asyncapi" / "parser").exists():
        why = f"AsyncAPI's own parser is not installed; with Node.js: {INSTALL}"
        if os.environ.get("ROLLCALL_REQUIRE_ASYNCAPI_PARSER") == "1":
            pytest.fail(why)
        pytest.skip(why)
    done = subprocess.run(
        [node, "tests/harness/parse_asyncapi.mjs", str(PARSER)],
        input=text(Topics()),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    found = json.loads(done.stdout)
    errors = [each for each in found["diagnostics"] if each["code"] != "asyncapi-latest-version"]
    assert errors == []
    assert found["channels"]["rollcall.finalized"] == ["batch.finalized"]
    assert set(found["channels"]["rollcall.events"]) == ADAPTERS.keys()


async def test_the_api_serves_the_document_of_its_own_topics(settings: Settings) -> None:
    await migrate(settings.database_url, settings.database_schema)
    async with serving(settings) as api:
        answer = await api.client.get("/docs/asyncapi")
        assert answer.headers["content-type"] == "application/vnd.aai.asyncapi+json;version=3.0.0"
        assert answer.json() == document(Topics(settings.topic_prefix))
        assert (await api.client.get("/livez")).status_code == 200
        assert (await api.client.get("/metrics")).status_code in (401, 404), "metrics are for a port of their own"
