"""The OpenAPI document is what the API does: generated requests meet no 500 and no answer that is not in it."""

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from api.context import Limits
from rollcall.settings import Settings
from schemas.topics import Topics
from tests.harness.api import serving
from tests.harness.product import running
from tests.harness.servers import Servers
from tests.harness.stored import stored_rows

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 12


@pytest.fixture(scope="module")
async def url(servers: Servers) -> AsyncIterator[str]:
    """An API beside a worker, with a batch `b` that has an item `i`; it is asked from another thread."""
    unique = f"t{uuid.uuid4().hex[:7]}"
    ours = Settings(
        bootstrap_servers=servers.bootstrap_servers,
        database_url=servers.database_url,
        topic_prefix=f"{unique}.",
        database_schema=unique,
        auth="off",
    )
    async with running(ours, relay=False), serving(ours) as api, stored_rows(ours) as rows:
        await rows.batch("b", total_items=2)
        await rows.item("b", "i", "failed", error_message="x")
        yield api.url


def test_every_error_is_documented_as_the_problem_that_it_is() -> None:
    context: Any = SimpleNamespace(limits=Limits(), topics=Topics("rollcall."), auth="on")
    document = create_app(context).openapi()
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    assert document == create_app(context).openapi()
    errors = [
        response["content"]
        for path in document["paths"].values()
        for operation in path.values()
        for status, response in operation["responses"].items()
        if int(status) >= 400
    ]
    assert len(errors) > 150
    assert all(content == problem for content in errors)
    assert "HTTPValidationError" not in json.dumps(document)


async def test_generated_requests_are_answered_as_documented(url: str) -> None:
    seed = int(os.environ.get("ROLLCALL_TEST_SEED", uuid.uuid4().int % 2**32))
    print(f"ROLLCALL_TEST_SEED={seed}")
    asked = await asyncio.to_thread(ask_everything, f"{url}/openapi.json", seed)
    assert len(asked) >= 25


def ask_everything(document: str, seed: int) -> list[str]:
    from hypothesis import seed as seeded

    schema = schemathesis.openapi.from_url(document)
    asked = []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if operation.path.endswith("/events"):
            continue  # has no end; test_events is about it

        @seeded(seed)
        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case[Any]) -> None:
            for name in ("batch_id", "item_id"):
                # Half of the time something that is there.
                if name in (case.path_parameters or {}) and len(str(case.path_parameters[name])) % 2:
                    case.path_parameters[name] = name[0]
            case.call_and_validate(checks=CHECKS, timeout=30)

        ask()
        asked.append(f"{operation.method.upper()} {operation.path}")
    return asked
