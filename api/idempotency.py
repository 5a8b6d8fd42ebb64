"""Idempotency-Key: the same request under the same key has one effect and one answer."""

import hashlib
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse

from api.access import Caller
from api.context import Context
from api.problems import Problem
from store import access
from streams.commanding import NotPossibleError

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x20-\x7e]+$",
        description="Repeated with the same body, the request has no second effect and the same answer, for a day.",
    ),
]


HARMLESS = "sending it again is harmless"


def again_with(member: str) -> str:
    """How a request can be repeated that is harmless only with this member of its body."""
    return f"send it again with {member} only"


@dataclass(frozen=True)
class Answer:
    """What is answered, now and under the same key again."""

    status: int
    body: dict[str, Any]
    location: str | None = None

    def response(self) -> JSONResponse:
        """As HTTP."""
        return JSONResponse(self.body, self.status, headers={"Location": self.location} if self.location else None)


@dataclass(frozen=True)
class Try:
    """One try of a request, under a key or under none.

    ``may_be_sent``: a try before this one came so far as to send, so a batch that is there may be its own. All tries
    under a key have one seed.
    """

    may_be_sent: bool = False
    owner: str = ""
    key: str | None = None
    seed: str | None = None

    def again(self, given: str | None, batch_id: str) -> str:
        """How the request can be repeated for the same batch; ``given`` is the id that it names itself."""
        return HARMLESS if given is not None or self.seed is not None else again_with(f'"batch_id": "{batch_id}"')

    def new_id(self, prefix: str = "") -> str:
        """An id for what is created: any, or the same in every try under a key."""
        return prefix + str(uuid.uuid4() if self.seed is None else uuid.uuid5(uuid.NAMESPACE_OID, self.seed))

    async def sends(self, connection: AsyncConnection) -> None:
        """Write down that something is about to be sent, for the tries behind this one."""
        if self.key is not None:
            await access.mark_sending(connection, self.owner, self.key)


NO_KEY = Try()


async def once(
    here: Context,
    caller: Caller,
    key: str | None,
    request: object,
    act: Callable[[Try], Awaitable[Answer]],
) -> Answer:
    """The answer to a request (route and body, as JSON), which ``act`` makes.

    An answer is kept once it is there. What was refused before anything was sent is forgotten; what failed behind that
    is left to the next try, which has to be harmless. Raises 409 while another one is at it, and 422 where the key was
    used for another request.
    """
    if key is None:
        return await act(NO_KEY)
    owner = caller.key_id or caller.name
    digest = hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).digest()
    async with here.writing() as connection:
        claim = await access.claim(connection, owner, key, digest)
    if not claim.same_request:
        raise Problem(422, "this Idempotency-Key was used for another request")
    if not claim.mine and claim.status is None:
        raise Problem(409, "a request with this Idempotency-Key is being worked on", headers={"Retry-After": "1"})
    if claim.status is not None:
        return Answer(claim.status, claim.body, claim.location)
    try:
        # Used anew after its day, a key is another one: what it made then must not be taken for what it is to make now.
        seed = f"{owner}\n{key}\n{claim.since.isoformat()}"
        answer = await act(Try(claim.may_be_sent, owner, key, seed))
    except BaseException as error:
        refused = isinstance(error, NotPossibleError) or (isinstance(error, Problem) and error.status < 500)
        async with here.writing() as connection:
            await access.release(connection, owner, key, forget=refused)
        raise
    async with here.writing() as connection:
        await access.keep_answer(connection, owner, key, answer.status, answer.location, answer.body)
    return answer
