"""The client for programs without asyncio: the same one, run by an event loop in a thread of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from rollcall_client.batch import Batch as AsyncBatch
from rollcall_client.client import Rollcall as AsyncRollcall
from rollcall_client.errors import RollcallError
from rollcall_client.events import FinalizedEvent
from rollcall_client.listening import Start

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
T = TypeVar("T")


class _Twin(Generic[A]):
    """The blocking face of an asynchronous object."""

    _portal: BlockingPortal | None
    _twin: A

    def _call(self, function: Callable[..., Coroutine[Any, Any, R]], *args: Any, **kwargs: Any) -> R:
        if self._portal is None:
            raise RollcallError("this client is not started: use it as with Rollcall(...) as rc")

        async def call() -> R:
            return await function(self._twin, *args, **kwargs)

        return self._portal.call(call)


def _blocking(
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[_Twin[A], P], R]:
    def blocking(self: _Twin[A], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._call(method, *args, **kwargs)

    blocking.__doc__ = method.__doc__
    blocking.__name__ = getattr(method, "__name__", "blocking")
    return blocking


class Batch(_Twin[AsyncBatch]):
    """``rollcall_client.Batch`` with methods that block."""

    def __init__(self, portal: BlockingPortal, twin: AsyncBatch) -> None:
        self._portal = portal
        self._twin = twin

    @property
    def batch_id(self) -> str:
        """The batch's id."""
        return self._twin.batch_id

    @property
    def undelivered(self) -> bool:
        """Whether messages of this client were given up; the next ``Rollcall.flush`` raises and names them."""
        return self._twin.undelivered

    result = _blocking(AsyncBatch.result)
    succeeded = _blocking(AsyncBatch.succeeded)
    failed = _blocking(AsyncBatch.failed)
    partial = _blocking(AsyncBatch.partial)
    skipped = _blocking(AsyncBatch.skipped)
    retrying = _blocking(AsyncBatch.retrying)
    seal = _blocking(AsyncBatch.seal)
    cancel = _blocking(AsyncBatch.cancel)
    abort = _blocking(AsyncBatch.abort)
    wait = _blocking(AsyncBatch.wait)


def _opening(
    method: Callable[Concatenate[AsyncRollcall, P], Coroutine[Any, Any, AsyncBatch]],
) -> Callable[Concatenate[Rollcall, P], Batch]:
    def opening(self: Rollcall, /, *args: P.args, **kwargs: P.kwargs) -> Batch:
        return self._wrapped(self._call(method, *args, **kwargs))

    opening.__doc__ = method.__doc__
    return opening


class Rollcall(_Twin[AsyncRollcall]):
    """``rollcall_client.Rollcall`` with methods that block, used as ``with Rollcall(...) as rc:``.

    Takes the same arguments, and may be used by several threads at once.
    """

    def __init__(self, bootstrap_servers: str, api_url: str | None = None, **options: Any) -> None:
        self._make = lambda: AsyncRollcall(bootstrap_servers, api_url, **options)
        self._portal = None
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            portal = exits.enter_context(start_blocking_portal())
            self._twin = portal.call(_made, self._make)
            exits.enter_context(portal.wrap_async_context_manager(self._twin))
            self._exits = exits.pop_all()
        self._portal = portal
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    open = _opening(AsyncRollcall.open)
    flush = _blocking(AsyncRollcall.flush)
    wait = _blocking(AsyncRollcall.wait)
    summary = _blocking(AsyncRollcall.summary)

    def batch(self, batch_id: str) -> Batch:
        """A batch that was opened elsewhere, to publish results for it. Raises InvalidMessageError."""
        return self._wrapped(self._twin.batch(batch_id))

    def finalized(self, *, group: str | None = None, start: Start = "earliest") -> Iterator[FinalizedEvent]:
        """Finalized events as they come; see ``rollcall_client.Rollcall.finalized``."""
        stream = self._call(_listen, group, start)
        try:
            while True:
                try:
                    yield self._call(_next, stream)
                except StopAsyncIteration:
                    return
        finally:
            self._call(_close, stream)

    def _wrapped(self, opened: AsyncBatch) -> Batch:
        if self._portal is None:
            raise RollcallError("this client is not started: use it as with Rollcall(...) as rc")
        return Batch(self._portal, opened)


async def _made(make: Callable[[], T]) -> T:
    return make()


async def _listen(rc: AsyncRollcall, group: str | None, start: Start) -> AsyncGenerator[FinalizedEvent, None]:
    return rc.finalized(group=group, start=start)


async def _next(rc: AsyncRollcall, stream: AsyncGenerator[FinalizedEvent, None]) -> FinalizedEvent:
    return await anext(stream)


async def _close(rc: AsyncRollcall, stream: AsyncGenerator[FinalizedEvent, None]) -> None:
    await stream.aclose()
