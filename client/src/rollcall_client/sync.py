"""The client for programs without asyncio: the same one, run by an event loop in a thread of its own.

Of a batch, everything but the sending is done in the caller's thread, by the same ``Batch``: its messages are handed
over to the loop in passing, since a call there and back for each would cost more than all the rest.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from threading import Event, Lock, RLock
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar
from weakref import WeakSet

from anyio.from_thread import BlockingPortal, start_blocking_portal

from rollcall_client import environment
from rollcall_client.batch import Batch as AsyncBatch
from rollcall_client.client import INTERRUPTIONS, forked
from rollcall_client.client import Rollcall as AsyncRollcall
from rollcall_client.errors import RollcallError
from rollcall_client.events import FinalizedEvent
from rollcall_client.listening import Start
from rollcall_client.messages import Encoded, Message, encoded

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")

HANDED_OVER_AT_ONCE = 500
MOST_BYTES_ON_THE_WAY = 1024 * 1024


class _Client(AsyncRollcall):
    """The asynchronous client; its flush waits for what is still on the way to it, too."""

    hand_over: Callable[[], Coroutine[Any, Any, None]]

    async def flush(self) -> None:
        await self.hand_over()
        await super().flush()


class _Loop:
    """The thread of a client's event loop, and the messages on their way there: what its batches publish to."""

    def __init__(self, twin: _Client) -> None:
        self._twin = twin
        twin.hand_over = self._hand_over
        self._portal: BlockingPortal | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_anothers = False
        """Whether this process was forked since it was started: its thread is in the one before."""
        self._on_the_way: deque[Encoded] = deque()
        self._bytes_on_the_way = 0
        self._woken = False
        self._lock = RLock()  # a signal's handler may publish, too, in the midst of it
        self._one_at_a_time = asyncio.Lock()
        self._handing_over: set[asyncio.Task[None]] = set()
        self._listening: set[asyncio.Task[Any] | None] = set()

    @property
    def running(self) -> bool:
        return self._portal is not None

    def start(self, portal: BlockingPortal) -> None:
        self._loop = _called(portal, _this_loop)
        self._portal = portal
        _RUNNING.add(self)

    def leave_to_the_other_process(self) -> None:
        """To be called in a process that was forked, before anything else runs there."""
        portal, self._portal = self._portal, None
        if portal is not None:
            self.is_anothers = True
            self._lock = RLock()  # another thread may have held it
            with suppress(StopIteration, RuntimeError):
                portal.stop().send(None)  # else its context, once let go of, would wait for the thread to end it

    def end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take no more, and listen no more; what is on the way is handed over, unless this is an interruption."""
        with self._lock:
            portal, self._portal = self._portal, None
        if portal is None:
            return
        _called(portal, _cancel, self._listening)
        if not isinstance(error, INTERRUPTIONS):
            _called(portal, self._hand_over)

    def call(self, function: Callable[..., Coroutine[Any, Any, R]], *args: Any, **kwargs: Any) -> R:
        """Run it there, behind all that was published before, and wait for it."""

        async def behind_the_others() -> R:
            await self._hand_over()
            return await function(*args, **kwargs)

        return _called(self._there, behind_the_others)

    def listen(self, function: Callable[..., Coroutine[Any, Any, R]], *args: Any, **kwargs: Any) -> R:
        """As ``call``, for what may take for ever: raises RollcallError where the client is closed meanwhile.

        It waits for nothing that was published before: what does is the client's ``flush``, in its own time.
        """

        tasks: set[asyncio.Task[Any] | None] = set()
        interrupted = Event()

        async def until_closed() -> R:
            if self._portal is None or interrupted.is_set():
                raise _closed_meanwhile()
            task = asyncio.current_task()
            for each in (tasks, self._listening):
                each.add(task)
            try:
                return await function(*args, **kwargs)
            except asyncio.CancelledError:
                if self._portal is None:
                    raise _closed_meanwhile() from None
                raise
            finally:
                for each in (tasks, self._listening):
                    each.discard(task)

        portal = self._there
        try:
            return _called(portal, until_closed)
        except Exception:
            raise
        except BaseException:  # this thread was interrupted, whether its task has begun by now or not
            interrupted.set()
            _called(portal, _cancel_and_wait, tasks)
            raise

    # What a batch needs of a client: never awaits anything, but may block.

    @property
    def undelivered(self) -> bool:
        return self._twin.undelivered

    async def publish(self, message: Message) -> None:
        ready = encoded(message)
        size = len(ready.value)
        with self._lock:
            loop = self._loop
            if self._portal is None or loop is None:
                raise self._not_running()
            self._on_the_way.append(ready)
            self._bytes_on_the_way += size
            too_many = self._bytes_on_the_way > MOST_BYTES_ON_THE_WAY
            wake, self._woken = not self._woken, True
        if wake:
            loop.call_soon_threadsafe(self._wake)
        if too_many:
            _called(self._there, self._hand_over)

    def check_opened(self, batch_id: str) -> None:
        self._twin.check_opened(batch_id)

    async def flush(self) -> None:
        self.call(self._twin.flush)

    async def wait(self, batch_id: str, *, timeout: float | None = None) -> FinalizedEvent:
        return self.listen(self._twin.wait, batch_id, timeout=timeout)

    # In the loop's thread.

    def _wake(self) -> None:
        with self._lock:  # else it could be set to True again for a wake-up that was this one
            self._woken = False
        task = asyncio.ensure_future(self._hand_over())
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)

    async def _hand_over(self) -> None:
        async with self._one_at_a_time:
            count = 0
            while self._on_the_way:
                ready = self._on_the_way[0]
                await self._twin.publish_encoded(ready)
                with self._lock:  # only now: a call may be cut off while it hands over
                    self._on_the_way.popleft()
                    self._bytes_on_the_way -= len(ready.value)
                count += 1
                if not count % HANDED_OVER_AT_ONCE:
                    await asyncio.sleep(0)  # they have to be sent, too

    @property
    def _there(self) -> BlockingPortal:
        if self._portal is None:
            raise self._not_running()
        return self._portal

    def _not_running(self) -> RollcallError:
        return forked() if self.is_anothers else _not_started()


_RUNNING: WeakSet[_Loop] = WeakSet()


def _after_fork() -> None:
    for loop in list(_RUNNING):
        loop.leave_to_the_other_process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Twin(Generic[A]):
    """The blocking face of an asynchronous object."""

    _twin: A

    def _call(self, function: Callable[..., Coroutine[Any, Any, R]], *args: Any, **kwargs: Any) -> R:
        raise NotImplementedError


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

    def __init__(self, twin: AsyncBatch) -> None:
        self._twin = twin

    def _call(self, function: Callable[..., Coroutine[Any, Any, R]], *args: Any, **kwargs: Any) -> R:
        coroutine = function(self._twin, *args, **kwargs)
        try:
            coroutine.send(None)
        except StopIteration as ended:
            result: R = ended.value
            return result
        raise AssertionError("a batch awaits nothing but its client, and that one blocks")

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


def _listening(
    method: Callable[Concatenate[AsyncRollcall, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Rollcall, P], R]:
    def listening(self: Rollcall, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._loop.listen(method, self._twin, *args, **kwargs)

    listening.__doc__ = method.__doc__
    listening.__name__ = getattr(method, "__name__", "listening")
    return listening


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
    ``close`` are its two ends. A forked process needs a client of its own: there, this one raises RollcallError.
    """

    def __init__(self, bootstrap_servers: str | Sequence[str], api_url: str | None = None, **options: Any) -> None:
        client = _Client(bootstrap_servers, api_url, **options)
        self._twin = client
        self._loop = _Loop(client)
        self._exits = ExitStack()

    def _call(self, function: Callable[..., Coroutine[Any, Any, R]], *args: Any, **kwargs: Any) -> R:
        return self._loop.call(function, self._twin, *args, **kwargs)

    @classmethod
    def from_environment(cls, **options: Any) -> Self:
        """A client as the environment says; ``options`` go before it. See ``rollcall_client.environment``."""
        return cls(**{**environment.options(os.environ), **options})

    def start(self) -> None:
        """Connect; ``with`` does it. Raises RollcallError where Kafka or the topics are not there."""
        with ExitStack() as exits:
            portal = exits.enter_context(start_blocking_portal(name="rollcall-client"))
            exits.enter_context(portal.wrap_async_context_manager(self._twin))
            exits.push(self._loop.end)
            self._loop.start(portal)
            self._exits = exits.pop_all()

    def close(self) -> None:
        """Flush, and let go of all connections. Raises DeliveryError naming what Kafka did not acknowledge.

        Threads that listen or wait meanwhile get RollcallError.
        """
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._loop.is_anothers:  # else it has nothing here to let go of
            self._exits.__exit__(kind, error, trace)

    open = _opening(AsyncRollcall.open)
    flush = _blocking(AsyncRollcall.flush)
    wait = _listening(AsyncRollcall.wait)
    summary = _listening(AsyncRollcall.summary)

    def batch(self, batch_id: str) -> Batch:
        """A batch that was opened elsewhere, to publish results for it. Raises InvalidMessageError."""
        return self._wrapped(self._twin.batch(batch_id))

    @property
    def undelivered(self) -> bool:
        """Whether messages were given up; the next ``flush`` raises and names them."""
        return self._twin.undelivered

    def finalized(self, *, group: str | None = None, start: Start = "earliest") -> Iterator[FinalizedEvent]:
        """Finalized events as they come; see ``rollcall_client.Rollcall.finalized``.

        Raises RollcallError where another thread closes the client.
        """
        stream = self._call(_listen, group, start)
        try:
            while True:
                try:
                    yield self._loop.listen(_next, self._twin, stream)
                except StopAsyncIteration:
                    return
        finally:
            if self._loop.running:  # else it was closed with the client
                self._call(_close, stream)

    def _wrapped(self, opened: AsyncBatch) -> Batch:
        return Batch(opened.published_by(self._loop))


def _not_started() -> RollcallError:
    return RollcallError("this client is not started, or closed: use it as with Rollcall(...) as rc")


def _closed_meanwhile() -> RollcallError:
    return RollcallError("this client was closed while this thread listened: make a new one to go on")


def _called(portal: BlockingPortal, function: Callable[..., Coroutine[Any, Any, R]], *args: Any) -> R:
    """``portal.call``, whose waiting makes a RuntimeError of an interruption that comes as it lets go of its lock."""
    future: Future[R] = portal.start_task_soon(function, *args)
    done = Lock()
    done.acquire()
    future.add_done_callback(lambda _: done.release())
    done.acquire()
    return future.result()


async def _cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Once each; the portal would go on doing it, and so cut off how a consumer is closed."""
    for task in tasks:
        if task is not None:
            task.cancel()


async def _cancel_and_wait(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    running = [task for task in tasks if task is not None]
    await _cancel(running)
    await asyncio.gather(*running, return_exceptions=True)


async def _this_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def _listen(rc: AsyncRollcall, group: str | None, start: Start) -> AsyncGenerator[FinalizedEvent, None]:
    return rc.finalized(group=group, start=start)


async def _next(rc: AsyncRollcall, stream: AsyncGenerator[FinalizedEvent, None]) -> FinalizedEvent:
    return await anext(stream)


async def _close(rc: AsyncRollcall, stream: AsyncGenerator[FinalizedEvent, None]) -> None:
    await stream.aclose()
