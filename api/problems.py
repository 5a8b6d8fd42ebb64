"""Errors as RFC 9457 problem details: one shape for every answer that is none."""

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from aiokafka.errors import KafkaError
from asyncpg import InterfaceError, PostgresError
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from store.failures import is_transient
from streams.commanding import NotPossibleError

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
"""What a client is told to wait where a server of ours is away."""

_SCHEMA = {"$ref": "#/components/schemas/ProblemDetails"}


class FieldProblem(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="Where: a parameter, or the path to a member of the body, as `results.3.status`.")
    message: str


class ProblemDetails(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(
        default="about:blank", description="Always `about:blank`: the status says what kind of problem it is."
    )
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What is wrong here, in one line.")
    errors: list[FieldProblem] | None = Field(default=None, description="What exactly is wrong with the request.")


class Problem(Exception):  # noqa: N818 (named as the RFC does)
    """An answer that is an error. ``errors`` are (field, message) pairs."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers

    def response(self) -> Response:
        """This problem as an answer."""
        details = ProblemDetails(
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
            errors=[FieldProblem(field=field, message=message) for field, message in self.errors] or None,
        )
        # ASCII: what a caller sent may hold half of a surrogate pair, which no UTF-8 can.
        text = json.dumps(details.model_dump(exclude_none=True))
        return Response(text, self.status, headers=self.headers, media_type=MEDIA_TYPE)


def not_found(what: str) -> Problem:
    """404."""
    return Problem(404, what)


def invalid(field: str, message: str) -> Problem:
    """422 about one field."""
    return Problem(422, f"{field}: {message}", errors=[(field, message)])


def unavailable(what: str, retry_after_s: float = RETRY_AFTER_S) -> Problem:
    """503: a server of ours is away for now."""
    return Problem(503, what, headers={"Retry-After": str(math.ceil(retry_after_s))})


def is_database_away(error: Exception) -> bool:
    """Whether this is how the database being away shows, and no bug."""
    cause = _cause(error)
    return isinstance(cause, TimeoutError | PoolTimeoutError) or is_transient(cause)


_DESCRIPTIONS = {
    400: "The request is malformed.",
    401: "No valid API key or session.",
    403: "The role does not allow this, or the request comes from another site.",
    404: "There is no such thing.",
    408: "The body stopped coming.",
    409: "The state does not allow this.",
    413: "The body, or an event of it, is too large.",
    422: "The request is well-formed, but wrong; `errors` names the fields.",
    429: "Too many requests; `Retry-After` says when to go on.",
    503: "The database or the broker is away; `Retry-After` says when to try again.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's ``responses`` of a route that may answer with these problems."""
    return {status: {"model": ProblemDetails, "description": _DESCRIPTIONS[status]} for status in sorted(statuses)}


def describe(openapi: dict[str, Any]) -> None:
    """Let an OpenAPI document say of every error that it is a problem, which is all that is ever answered.

    FastAPI says of those that have a model that they may be plain JSON, and has a 422 of its own.
    """
    for path in openapi["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    response["content"] = {MEDIA_TYPE: {"schema": _SCHEMA}}
                    response["description"] = _DESCRIPTIONS[int(status)]
    for name in ("HTTPValidationError", "ValidationError"):
        openapi["components"]["schemas"].pop(name, None)


def add_handlers(app: FastAPI) -> None:
    """Let every error of the app be answered as a problem."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(NotPossibleError, _not_possible)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(Exception, _unexpected)
    # asyncpg's own come from statements that are written as text.
    for away in (DBAPIError, PoolTimeoutError, PostgresError, InterfaceError, KafkaError, OSError, TimeoutError):
        app.add_exception_handler(away, _away)


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _not_possible(_: Request, error: Exception) -> Response:
    assert isinstance(error, NotPossibleError)
    return (Problem(409, str(error)) if error.field is None else invalid(error.field, str(error))).response()


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = "there is no such path" if error.status_code == 404 and error.detail == "Not Found" else error.detail
    return Problem(error.status_code, detail, headers=error.headers).response()


async def _validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        return Problem(400, f"the body is not JSON: {found[0]['ctx']['error']}").response()
    errors = [(_field(each["loc"]), _message(each)) for each in found[:20]]
    return Problem(422, "; ".join(": ".join(each) for each in errors[:3]), errors=errors).response()


async def _away(request: Request, error: Exception) -> Response:
    kafka = isinstance(error, KafkaError)
    if not kafka and not is_database_away(error):
        return await _unexpected(request, error)
    server = "broker" if kafka else "database"
    log.warning(f"answered 503: the {server} is away", error=repr(_cause(error)), path=request.url.path)
    return unavailable(f"the {server} cannot be reached at the moment").response()


def _cause(error: Exception) -> BaseException:
    """What went wrong beneath SQLAlchemy."""
    return error.orig.__cause__ or error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("answered 500", path=request.url.path, exc_info=error)
    return Problem(500, "an error of ours; the log has it").response()


def _field(location: Sequence[Any]) -> str:
    names = [str(each) for each in location]
    return ".".join(names[1:] if names[0] in ("body", "query", "path", "header") and len(names) > 1 else names)


def _message(error: Mapping[str, Any]) -> str:
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
