"""The client for programs without asyncio: the same one, run by an event loop in a thread of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from rollcall_client import environment
from rollcall_client.batch import Batch as AsyncBatch
from rollcall_client.client import Rollcall as AsyncRollcall
from rollcall_client.errors import RollcallError
from rollcall_client.events import FinalizedEvent
from rollcall_client.listening import Start

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")


class _Thread:
    """Where a client's event loop runs, between its start and its end."""

    def __init__(self) -> None:
        self.portal: BlockingPortal | None = None

    @property
    def running(self) -> BlockingPortal:
        if self.portal is None:
            raise RollcallError("this client is not started, or closed: use it as with Rollcall(...) as rc")
        return self.portal


class _Twin(Generic[A]):
    """The blocking face of an asynchronous object."""

    _thread: _Thread
    _twin: A

    def _call(self, function: Callable[..., Coroutine[Any, Any, R]], *args: Any, **kwargs: Any) -> R:
        async def call() -> R:
            return await function(self._twin, *args, **kwargs)

        return self._thread.running.call(call)


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

    def __init__(self, thread: _Thread, twin: AsyncBatch) -> None:
        self._thread = thread
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

    Takes the same arguments, and may be used by several threads at once. Where a block doesn't fit, ``start`` and
    ``close`` are its two ends.
    """

    def __init__(self, bootstrap_servers: str | Sequence[str], api_url: str | None = None, **options: Any) -> None:
        self._twin = AsyncRollcall(bootstrap_servers, api_url, **options)
        self._thread = _Thread()
        self._exits = ExitStack()

    @classmethod
    def from_environment(cls, **options: Any) -> Self:
        """A client as the environment says; ``options`` go before it. See ``rollcall_client.environment``."""
        return cls(**{**environment.options(os.environ), **options})

    def start(self) -> None:
        """Connect; ``with`` does it. Raises RollcallError where Kafka or the topics are not there."""
        with ExitStack() as exits:
            portal = exits.enter_context(start_blocking_portal(name="rollcall-client"))
            exits.enter_context(portal.wrap_async_context_manager(self._twin))
            exits.callback(self._ended)
            self._thread.portal = portal
            self._exits = exits.pop_all()

    def close(self) -> None:
        """Flush, and let go of all connections. Raises DeliveryError naming what Kafka did not acknowledge."""
        self._exits.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    def _ended(self) -> None:
        self._thread.portal = None

    open = _opening(AsyncRollcall.open)
    flush = _blocking(AsyncRollcall.flush)
    wait = _blocking(AsyncRollcall.wait)
    summary = _blocking(AsyncRollcall.summary)

    def batch(self, batch_id: str) -> Batch:
        """A batch that was opened elsewhere, to publish results for it. Raises InvalidMessageError."""
        return self._wrapped(self._twin.batch(batch_id))

    @property
    def undelivered(self) -> bool:
        """Whether messages were given up; the next ``flush`` raises and names them."""
        return self._twin.undelivered

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
            if self._thread.portal is not None:  # else it was closed with the client
                self._call(_close, stream)

    def _wrapped(self, opened: AsyncBatch) -> Batch:
        return Batch(self._thread, opened)


async def _listen(rc: AsyncRollcall, group: str | None, start: Start) -> AsyncGenerator[FinalizedEvent, None]:
    return rc.finalized(group=group, start=start)


async def _next(rc: AsyncRollcall, stream: AsyncGenerator[FinalizedEvent, None]) -> FinalizedEvent:
    return await anext(stream)


async def _close(rc: AsyncRollcall, stream: AsyncGenerator[FinalizedEvent, None]) -> None:
    await stream.aclose()
