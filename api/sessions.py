"""Signing in with a browser: a session cookie for an API key."""

import secrets

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from api.access import (
    SESSION_COOKIE,
    SESSION_LIFETIME,
    Viewer,
    authenticated,
    check_same_site,
    digest,
)
from api.context import Here
from api.models import RequestBody
from api.problems import Problem, documented
from store import access

router = APIRouter(tags=["session"])


class SignIn(RequestBody):
    """An API key."""

    key: str = Field(min_length=1, max_length=200)


class Session(BaseModel):
    """Who is signed in, and what actions of its pages have to bring along."""

    name: str
    role: str
    csrf_token: str | None = Field(description="To be sent as `X-CSRF-Token` with every action; null: not needed.")


@router.post("/session", status_code=204, responses=documented(400, 401, 403, 408, 409, 413, 422, 503))
async def sign_in(body: SignIn, request: Request, here: Here) -> Response:
    """Start a session: the cookie stands for the key, without holding it."""
    check_same_site(request)
    if here.auth == "off":
        raise Problem(409, "authentication is off here: there is nothing to sign in to")
    caller = await authenticated(here, body.key, None)
    cookie = secrets.token_urlsafe(32)
    async with here.writing() as connection:
        await access.start_session(connection, digest(cookie), caller.key_id or "", SESSION_LIFETIME)
    response = Response(status_code=204)
    response.set_cookie(
        SESSION_COOKIE,
        cookie,
        max_age=int(SESSION_LIFETIME.total_seconds()),
        httponly=True,
        secure=here.secure_cookies,
        samesite="lax",
    )
    return response


@router.get("/session", responses=documented(401, 403, 429, 503))
async def get_session(caller: Viewer) -> Session:
    """Who asks."""
    return Session(name=caller.name, role=caller.role.word, csrf_token=caller.csrf_token)


@router.delete("/session", status_code=204, responses=documented(401, 403, 429, 503))
async def sign_out(caller: Viewer, here: Here) -> Response:
    """End the session."""
    if caller.session is not None:
        async with here.writing() as connection:
            await access.end_session(connection, digest(caller.session))
        here.keys.forget_session(digest(caller.session))
    response = Response(status_code=204)
    response.delete_cookie(SESSION_COOKIE)
    return response
