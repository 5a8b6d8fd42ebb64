"""Who may do what: every route with every role, from the route table itself; sessions, other sites, rates."""

import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import RouteContext, iter_route_contexts

from api.access import CSRF_HEADER, SESSION_COOKIE, Role, check_rules, digest, is_public, new_key, rule_of
from rollcall.settings import Settings
from store import access
from tests.harness.api import ServedApi, serving
from tests.harness.commands import rollcall
from tests.harness.stored import StoredRows
from tests.harness.waiting import eventually


@dataclass(frozen=True)
class Keyed:
    """An API that asks for keys, and a key of each role."""

    api: ServedApi
    keys: dict[Role, str]
    ids: dict[Role, str]

    def of(self, role: Role) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[role]}"}


@pytest.fixture
async def keyed(migrated: Settings) -> AsyncIterator[Keyed]:
    guarded = migrated.model_copy(update={"auth": "on"})
    async with serving(guarded, requests_per_second=10_000) as api:
        keys = {role: new_key() for role in Role}
        ids = {role: secrets.token_hex(4) for role in Role}
        async with api.context.writing() as connection:
            for role, key in keys.items():
                await access.create_key(connection, ids[role], f"the {role.word}", role.word, digest(key))
        yield Keyed(api, keys, ids)


def routes(app: FastAPI) -> list[tuple[str, str, RouteContext]]:
    """(method, path, route) of all there is; parameters of paths filled with something that is not there."""
    found = []
    for route in iter_route_contexts(app.routes):
        path = (route.path or "").replace("{item_id:path}", "x/y")
        for name in ("batch_id", "name"):
            path = path.replace(f"{{{name}}}", "nobody")
        found += [(method, path, route) for method in sorted((route.methods or {"GET"}) - {"HEAD"})]
    return found


async def test_every_route_lets_in_whom_its_rule_says_and_nobody_else(keyed: Keyed) -> None:
    seen = 0
    for method, path, route in routes(keyed.api.app):
        rule = rule_of(route)
        # A body that no route takes: whoever is let in gets no further than that.
        body: dict[str, Any] = {"json": []} if method == "POST" else {}
        if rule is None:
            assert is_public(route), path
            continue
        # A page sends whom it does not know to where one signs in.
        unknown = {401} if path.startswith("/api/") else {401, 303}
        status = await status_with(keyed.api.client, method, path, {}, body)
        assert status in unknown, f"{method} {path} without a key: {status}"
        status = await status_with(keyed.api.client, method, path, {"Authorization": "Bearer wrong"}, body)
        assert status in unknown, f"{method} {path} with a wrong key: {status}"
        for role in Role:
            status = await status_with(keyed.api.client, method, path, keyed.of(role), body)
            let_in = status not in {403, *unknown}
            assert let_in == (role >= rule.role), f"{method} {path} as {role.word}: {status}"
            seen += 1
    assert seen >= 3 * 20


async def status_with(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str], body: dict[str, Any]
) -> int:
    async with client.stream(method, path, headers=headers, **body) as response:  # an event stream has no end
        return response.status_code


def test_a_route_without_a_rule_makes_the_application_fail() -> None:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    router = APIRouter()
    router.add_api_route("/forgotten", lambda: None)
    app.include_router(router, prefix="/api")
    with pytest.raises(ValueError, match="/api/forgotten"):
        check_rules(app.routes)


async def test_only_operators_see_stack_traces(keyed: Keyed, rows: StoredRows) -> None:
    await rows.batch("b")
    await rows.item("b", "i", "failed", error_message="broken", stack_trace="secret path")
    for role, shown in ((Role.VIEWER, None), (Role.OPERATOR, "secret path"), (Role.ADMIN, "secret path")):
        client, headers = keyed.api.client, keyed.of(role)
        found = (await client.get("/api/batches/b/items/i", headers=headers)).json()
        assert found["error"] == {"code": None, "message": "broken", "stack_trace": shown}
        for form in ("csv", "ndjson"):
            download = await client.get("/api/batches/b/results", params={"format": form}, headers=headers)
            assert "broken" in download.text
            assert ("secret" in download.text) == (shown is not None and form == "ndjson")


async def test_the_error_that_aborted_a_batch_is_shown_without_its_stack_trace(keyed: Keyed, rows: StoredRows) -> None:
    error = json.dumps({"code": "E1", "message": "broken", "stack_trace": "secret path"})
    await rows.finalized("b", outcome="failed", finalized_by="aborted", error=error)
    client, headers = keyed.api.client, keyed.of(Role.VIEWER)
    for path in ("/api/batches/b", "/api/batches", "/api/batches?batch_id=b", "/batches/b", "/api/batches/b/timeline"):
        assert "secret" not in (await client.get(path, headers=headers)).text
    assert (await client.get("/api/batches/b", headers=headers)).json()["error"] == {"code": "E1", "message": "broken"}


async def test_only_admins_see_who_did_what(keyed: Keyed, rows: StoredRows) -> None:
    await rows.batch("b")
    await rows.connection.execute("INSERT INTO audit (caller, action, batch_id) VALUES ('somebody', 'cancel', 'b')")
    for role in Role:
        client, headers = keyed.api.client, keyed.of(role)
        events = (await client.get("/api/batches/b/timeline", headers=headers)).json()["events"]
        [action] = [each for each in events if each["what"] == "action"]
        assert (action["detail"], action["caller"]) == ("cancel", "somebody" if role is Role.ADMIN else None)
        assert ("somebody" in (await client.get("/batches/b", headers=headers)).text) == (role is Role.ADMIN)


async def test_a_browser_signs_in_acts_with_its_token_and_signs_out(keyed: Keyed) -> None:
    client = keyed.api.client
    refused = await client.post("/api/session", json={"key": "wrong"})
    assert refused.status_code == 401
    signed_in = await client.post("/api/session", json={"key": keyed.keys[Role.OPERATOR]})
    assert signed_in.status_code == 204
    cookie = signed_in.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Path=/"))
    assert keyed.keys[Role.OPERATOR] not in cookie

    session = (await client.get("/api/session")).json()
    assert (session["name"], session["role"]) == ("the operator", "operator")
    without_token = await client.post("/api/batches/nobody/cancel")
    assert without_token.status_code == 403
    assert CSRF_HEADER in without_token.json()["detail"]
    token = {CSRF_HEADER: session["csrf_token"]}
    elsewhere = await client.post("/api/batches/nobody/retry", headers={**token, "Origin": "https://evil.example"})
    assert elsewhere.status_code == 403
    here = await client.post("/api/batches/nobody/retry", headers={**token, "Origin": keyed.api.url})
    assert here.status_code == 404

    value = client.cookies[SESSION_COOKIE]
    assert (await client.delete("/api/session", headers=token)).status_code == 204
    client.cookies.set(SESSION_COOKIE, value)
    assert (await client.get("/api/batches")).status_code == 401


async def test_a_revoked_key_is_shut_out_with_its_sessions(keyed: Keyed) -> None:
    client = keyed.api.client
    await client.post("/api/session", json={"key": keyed.keys[Role.VIEWER]})
    assert (await client.get("/api/batches")).status_code == 200
    async with keyed.api.context.writing() as connection:
        assert await access.revoke_key(connection, keyed.ids[Role.VIEWER])

    async def shut_out() -> bool:
        by_cookie = await client.get("/api/batches")
        by_key = await client.get("/api/batches", headers=keyed.of(Role.VIEWER))
        return by_cookie.status_code == by_key.status_code == 401

    await eventually(shut_out)
    assert (await client.get("/api/batches", headers=keyed.of(Role.ADMIN))).status_code == 200


async def test_a_key_has_its_rate_and_no_other_suffers(migrated: Settings) -> None:
    guarded = migrated.model_copy(update={"auth": "on"})
    async with serving(guarded, requests_per_second=0.5) as api:
        many, few = new_key(), new_key()
        async with api.context.writing() as connection:
            await access.create_key(connection, "many", "many", "viewer", digest(many))
            await access.create_key(connection, "few", "few", "viewer", digest(few))
        headers = {"Authorization": f"Bearer {many}"}
        answers = [await api.client.get("/api/session", headers=headers) for _ in range(3)]
        assert (answers[0].status_code, answers[-1].status_code) == (200, 429)
        assert int(answers[-1].headers["retry-after"]) >= 1
        other = await api.client.get("/api/session", headers={"Authorization": f"Bearer {few}"})
        assert other.status_code == 200


async def test_without_authentication_only_this_machine_is_answered(api: ServedApi) -> None:
    async def status(method: str, **headers: str) -> int:
        return (await api.client.request(method, "/api/batches", headers=headers)).status_code

    assert await status("GET") == 200
    assert await status("GET", Host="localhost:1") == 200
    assert await status("GET", Host="[::1]:1") == 200
    assert await status("GET", Host="rebound.example") == 403
    assert await status("GET", Host="127.0.0.1.evil.example") == 403
    assert await status("POST", Origin="https://evil.example") == 403
    assert await status("POST", Origin="null") == 403
    assert await status("POST", Origin="http://[") == 403
    assert await status("POST", **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert await status("POST", Origin=api.url) == 422
    assert (await api.get("session"))["csrf_token"] is None


async def test_keys_are_made_listed_and_revoked_by_command(migrated: Settings) -> None:
    made = await rollcall(migrated, "api-key", "create", "ci", "--role", "operator")
    assert made.exit_code == 0, made.stderr
    key = made.stdout.strip()
    async with serving(migrated.model_copy(update={"auth": "on"})) as api:
        headers = {"Authorization": f"Bearer {key}"}
        assert (await api.client.get("/api/session", headers=headers)).json()["role"] == "operator"
        stored = "".join(str(row) for row in await everything(api))
        assert key not in stored
        listed = await rollcall(migrated, "api-key", "list", "--json")
        assert key not in listed.stdout
        key_id = made.stderr.split()[1]
        assert key_id in listed.stdout
        assert (await rollcall(migrated, "api-key", "revoke", key_id)).exit_code == 0
        again = await rollcall(migrated, "api-key", "revoke", key_id)
        assert (again.exit_code, again.stderr.count("\n")) == (1, 1)

        async def shut_out() -> bool:
            return (await api.client.get("/api/session", headers=headers)).status_code == 401

        await eventually(shut_out)


async def everything(api: ServedApi) -> list[Any]:
    async with api.context.reading() as connection:
        return list(await access.keys(connection))
