"""Who may do what: API keys, browser sessions, roles, and protection against other sites and against floods.

Every route carries one `Rule`; `check_rules` refuses an application that has a route without one.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from starlette.routing import BaseRoute

from api.context import Context, Here
from api.problems import Problem

SESSION_COOKIE = "rollcall_session"
SESSION_LIFETIME = timedelta(hours=12)
CSRF_HEADER = "X-CSRF-Token"
KEY_PREFIX = "rollcall_"

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})

PUBLIC = frozenset(
    {
        ("GET", "/openapi.json"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/docs/asyncapi"),
        ("POST", "/api/session"),
        ("GET", "/sign-in"),
        ("POST", "/sign-in"),
        ("GET", "/static/{name}"),
    }
)
"""Routes without a rule of their own: what they tell is no secret, or they are how one shows who one is."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Role(IntEnum):
    """What a key may do; each may do what the one before it may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """As it is stored and shown."""
        return self.name.lower()


@dataclass(frozen=True)
class Caller:
    """Who asks. ``session`` is the cookie's value where it is a browser."""

    name: str
    role: Role
    key_id: str | None = None
    session: str | None = None

    @property
    def csrf_token(self) -> str | None:
        """What a page has to send along with every action; None where there is no session to protect."""
        return None if self.session is None else csrf_token(self.session)

    def may(self, role: Role) -> bool:
        """Whether this caller has at least that role."""
        return self.role >= role


ANYBODY = Caller("anonymous", Role.ADMIN)
"""Whoever asks where authentication is off."""

_bearer = HTTPBearer(auto_error=False, description="An API key: `rollcall api-key create`.")
_cookie = APIKeyCookie(name=SESSION_COOKIE, auto_error=False, description="A browser's session.")


class Rule:
    """A route's dependency: the caller, who has at least this role."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(
        self,
        request: Request,
        here: Here,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
        cookie: Annotated[str | None, Security(_cookie)],
    ) -> Caller:
        """Raises 401, 403 and 429."""
        if here.auth == "off":
            check_local(request)
            return ANYBODY
        caller = await authenticated(here, bearer.credentials if bearer else None, cookie)
        if caller.session is not None and request.method not in _SAFE:
            check_same_site(request)
            sent = request.headers.get(CSRF_HEADER, "")
            if not hmac.compare_digest(sent.encode(), csrf_token(caller.session).encode()):
                raise Problem(403, f"the header {CSRF_HEADER} is missing or wrong: get it from /api/session")
        here.keys.count_request(caller.key_id or "")
        if not caller.may(self.role):
            raise Problem(403, f"this takes the role {self.role.word}; the key has {caller.role.word}")
        return caller


VIEWER, OPERATOR, ADMIN = Rule(Role.VIEWER), Rule(Role.OPERATOR), Rule(Role.ADMIN)
Viewer = Annotated[Caller, Depends(VIEWER)]
Operator = Annotated[Caller, Depends(OPERATOR)]
Admin = Annotated[Caller, Depends(ADMIN)]


async def authenticated(here: Context, key: str | None, cookie: str | None) -> Caller:
    """Whose key or session this is. Raises 401."""
    if key is not None:
        found = await here.keys.of_key(digest(key))
        if found is not None:
            return Caller(found.name, Role[found.role.upper()], found.key_id)
        raise _unauthorized("the API key is not known, or it was revoked")
    if cookie:
        found = await here.keys.of_session(digest(cookie))
        if found is not None:
            return Caller(found.name, Role[found.role.upper()], found.key_id, cookie)
        raise _unauthorized("the session has ended: sign in again")
    raise _unauthorized("an API key is needed: Authorization: Bearer KEY")


def check_local(request: Request) -> None:
    """Without authentication only this machine's own programs and pages may ask: no other site, under any name.

    A browser's page of another site can send requests here, and with a name server of its own even under a name that
    resolves to this machine. Raises 403.
    """
    host = request.headers.get("host", "")
    if _hostname(host) not in LOOPBACK:
        raise Problem(403, "without authentication (ROLLCALL_AUTH=off) only requests to localhost are answered")
    if request.method not in _SAFE:
        check_same_site(request)


def check_same_site(request: Request) -> None:
    """What a browser sends on behalf of another site's page is refused. Raises 403."""
    origin = request.headers.get("origin")
    try:
        other = origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    except ValueError:  # no address at all
        other = True
    if other or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise Problem(403, "requests on behalf of other sites are refused")


def new_key() -> str:
    """A new API key: 256 random bits, so that its hash needs no salt and no slowness."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> bytes:
    """What is stored of a key or of a session."""
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def csrf_token(session: str) -> str:
    """Follows from the session and says nothing about it; another site can read neither."""
    return hmac.new(session.encode(), b"csrf", hashlib.sha256).hexdigest()


def rule_of(route: RouteContext) -> Rule | None:
    """The rule of a route, the strictest where it has several; None where it has none."""
    dependant = getattr(route, "dependant", None)
    found = [each.call for each in dependant.dependencies if isinstance(each.call, Rule)] if dependant else []
    return max(found, key=lambda rule: rule.role, default=None)


def check_rules(routes: Sequence[BaseRoute], public: frozenset[tuple[str, str]] = PUBLIC) -> None:
    """Raise ValueError where a route has no rule and is not among the public ones: to be wrong is to be closed."""
    for route in iter_route_contexts(routes):
        if rule_of(route) is None and not is_public(route, public):
            raise ValueError(f"the route {route.path} says nothing about who may use it")


def is_public(route: RouteContext, public: frozenset[tuple[str, str]] = PUBLIC) -> bool:
    """Whether anybody may use a route, with every method it has."""
    methods = (route.methods or {"*"}) - {"HEAD"}
    return all((method, route.path) in public for method in methods)


def _hostname(host: str) -> str:
    name, separator, port = host.rpartition(":")
    return (name if separator and port.isdigit() else host).lower()


def _unauthorized(detail: str) -> Problem:
    return Problem(401, detail, headers={"WWW-Authenticate": "Bearer"})
