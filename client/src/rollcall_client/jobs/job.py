"""What a job is: how one item is handled, and under which limits."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, overload

from rollcall_client.errors import ConfigurationError, RollcallError
from rollcall_client.jobs.rates import Rate, Retry, time_bucket
from rollcall_client.messages import Deadline, Policy

Items = Iterable[Any] | AsyncIterable[Any]

ACCEPTED = ("completed", "completed_with_errors")


class CriticalError(RollcallError):
    """Raised by a job's ``handle``: there is no use in going on. What ran is reported, the batch aborted."""


class Job:
    """A job: subclass it and write ``handle``, or decorate a function with ``@job``.

    ``handle(item)`` does the work for one item and returns an outcome (``Created()``, ``Partial(error)`` ...), None for
    succeeded, or any other value, which is kept as the item's output. What it raises makes the item failed, with the
    exception's type as code and its stack trace, or retrying while ``retries`` has attempts left for that type. A
    ``handle`` that is no coroutine function runs in threads; a coroutine that it returns is awaited.
    """

    name: str = ""
    """What its batches are called; by default the class's or function's name."""
    concurrency: int = 16
    """Items handled at a time."""
    chunk_size: int = 1
    """Items that one of those takes at a time; more of them save time where ``handle`` is quick and runs in threads."""
    rate: str | Rate | None = None
    """Most starts per time, retries included: "1 per 1.5 s", "100/s"."""
    retries: Retry | Mapping[type[Exception], Retry] | None = None
    """For every exception, or by its type (the nearest counts)."""
    item_timeout_s: float | None = None
    """After which an attempt counts as failed. A thread can't be stopped: it goes on, unheard."""
    memory_limit_mb: float | None = None
    """Resident memory of this process above which no new item starts."""
    bucket: str | None = None
    """One run a slot of time ("1m", "1h", "1d"): its batch id is made of the job's name and the slot."""
    after: type[Job] | Job | None = None
    """Another job with a bucket: this one starts when that one's batch of this time is finalized."""
    after_outcomes: Collection[str] = ACCEPTED
    """Which outcomes of the other job let this one start."""
    policy: Policy | None = None
    deadline: Deadline | None = None

    def __init__(self) -> None:
        if not self.name:
            self.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()
        self.check()

    def handle(self, item: Any) -> Any:
        """Do the work for one item; may be a coroutine function."""
        raise NotImplementedError(f"{type(self).__name__} has no handle(item)")

    def item_id(self, item: Any) -> str:
        """An item's id: by default a text or number itself, a mapping's "id", a tuple's first."""
        if isinstance(item, str):
            return item
        if isinstance(item, int) and not isinstance(item, bool):
            return str(item)
        if isinstance(item, Mapping) and "id" in item:
            return str(item["id"])
        if isinstance(item, tuple) and item:
            return str(item[0])
        raise ConfigurationError(f"{self.name}: item_id(item) has to say what the id of {item!r:.100} is")

    def items(self, **params: Any) -> Items | Awaitable[Items]:
        """All items of a run, for ``rollcall-job`` and for requested runs; ``params`` are the request's.

        May be a generator, an asynchronous one, or a coroutine function.
        """
        raise ConfigurationError(f"{self.name} does not say what its items are: define items(), or pass them")

    def items_for(self, item_ids: Collection[str]) -> Items | Awaitable[Items]:
        """The items with these ids, for requested retries; by default the ids themselves."""
        return item_ids

    async def begin(self) -> None:
        """Called before the first item, in every process: open connections here."""

    async def end(self) -> None:
        """Called after the last item, whatever happened."""

    # What follows is fixed.

    @property
    def is_async(self) -> bool:
        """Whether ``handle`` is a coroutine function."""
        return inspect.iscoroutinefunction(self.handle)

    def batch_id_at(self, now: datetime) -> str | None:
        """The id of the run of ``now``'s slot of time; None where the job has no bucket."""
        return None if self.bucket is None else f"{self.name}-{time_bucket(now, self.bucket):%Y%m%dT%H%M%SZ}"

    def retry_for(self, error: BaseException) -> Retry | None:
        """Which retries this exception has."""
        if self.retries is None or isinstance(self.retries, Retry):
            return self.retries
        return next((self.retries[kind] for kind in type(error).__mro__ if kind in self.retries), None)

    def check(self) -> None:
        """Raises ConfigurationError where something that was set cannot work."""
        if self.concurrency < 1 or self.chunk_size < 1:
            raise ConfigurationError(f"{self.name}: concurrency and chunk_size are from 1")
        if isinstance(self.rate, str):
            Rate.of(self.rate)
        if self.item_timeout_s is not None and self.item_timeout_s <= 0:
            raise ConfigurationError(f"{self.name}: item_timeout_s is above 0")
        if self.chunk_size > 1 and self.item_timeout_s is not None and not self.is_async:
            raise ConfigurationError(f"{self.name}: a chunk in a thread has no time-out an item: use chunk_size=1")
        if re.search(r"[/\x00-\x1f]", self.name) or not 0 < len(self.name) <= 120:
            raise ConfigurationError(f"a job's name is up to 120 characters without '/', not {self.name!r}")


class FunctionJob(Job):
    """A decorated function."""

    def __init__(self, function: Callable[[Any], Any], **settings: Any) -> None:
        unknown = sorted(name for name in settings if name not in _SETTINGS)
        if unknown:
            raise ConfigurationError(f"a job has {', '.join(sorted(_SETTINGS))}, not {', '.join(unknown)}")
        self.__doc__ = function.__doc__
        self.function = function
        self.handle = function  # type: ignore[method-assign, assignment]
        for name, value in settings.items():
            setattr(self, name, value)
        self.name = self.name or function.__name__.replace("_", "-")
        super().__init__()

    def __call__(self, item: Any) -> Any:
        """The function itself, as if it weren't decorated."""
        return self.function(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return load_job, (f"{self.function.__module__}:{self.function.__qualname__}",)


_SETTINGS = frozenset({*Job.__annotations__, "item_id", "items", "items_for", "begin", "end"})


@overload
def job(function: Callable[[Any], Any], /) -> FunctionJob: ...
@overload
def job(**settings: Any) -> Callable[[Callable[[Any], Any]], FunctionJob]: ...
def job(
    function: Callable[[Any], Any] | None = None, /, **settings: Any
) -> FunctionJob | Callable[[Callable[[Any], Any]], FunctionJob]:
    """Make a job of a function of one item: ``@job``, or ``@job(concurrency=4, retries=Retry(5), ...)``.

    Takes what a ``Job`` has: ``name``, ``concurrency``, ``rate``, ``retries``, ``item_timeout_s``, ``bucket``,
    ``items`` (a function of the request's params), ``item_id`` (a function of the item) and so on. The function can
    still be called.
    """
    if function is not None:
        return FunctionJob(function, **settings)
    return lambda decorated: FunctionJob(decorated, **settings)


def as_job(given: Job | type[Job] | Callable[[Any], Any]) -> Job:
    """A job of what stands for one. Raises ConfigurationError."""
    if isinstance(given, Job):
        return given
    if isinstance(given, type):
        if not issubclass(given, Job):
            raise ConfigurationError(f"{given.__name__} is no Job")
        return given()
    return FunctionJob(given)


async def drawable(job: Job, given: Items | Awaitable[Items]) -> Items:
    """Items to draw, of what a job or a caller gave as such. Raises ConfigurationError where it is no such thing.

    To be asked before a batch is opened: of what cannot be drawn it would have none, and be complete.
    """
    items = await given if inspect.isawaitable(given) else given
    if not isinstance(items, Iterable | AsyncIterable) and isinstance(given, AsyncIterable):
        items = given  # a cursor of asyncpg's is both, and what it gives when it is awaited is nothing to iterate
    if isinstance(items, Iterable | AsyncIterable):
        return items
    raise ConfigurationError(
        f"{job.name}: {items!r:.100} is no list of items: items() has to return them, or yield each"
    )


def load_job(reference: str) -> Job:
    """The job that ``module:name`` names. Raises ConfigurationError."""
    module_name, colon, name = reference.partition(":")
    if not colon:
        raise ConfigurationError(f"a job is named as module:job, not {reference!r}")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ConfigurationError(f"{reference}: {error}") from error
    except AttributeError:
        raise ConfigurationError(f"{reference}: {module_name} has no {name}") from None
    return as_job(found)


def jobs_in(reference: str) -> dict[str, Job]:
    """The jobs of a module, by name, or the one that ``module:name`` names. Raises ConfigurationError."""
    if ":" in reference:
        one = load_job(reference)
        return {one.name: one}
    try:
        module = importlib.import_module(reference)
    except ImportError as error:
        raise ConfigurationError(f"{reference}: {error}") from error
    found = [
        as_job(each)
        for each in vars(module).values()
        if isinstance(each, Job)
        or (isinstance(each, type) and issubclass(each, Job) and each.__module__ == module.__name__)
    ]
    if not found:
        raise ConfigurationError(f"there is no job in {reference}")
    return {each.name: each for each in found}


@dataclass(slots=True)
class Current:
    """What is being handled: ``current()`` inside of ``handle``.

    ``job_metrics`` takes numbers about the whole run, for its result.
    """

    batch_id: str
    item_id: str
    attempt: int
    worker: str
    job_metrics: dict[str, float]


_current: ContextVar[Current] = ContextVar("rollcall_job_current")


def current() -> Current:
    """The item that this code is running for. Raises LookupError outside of a job."""
    return _current.get()


def set_current(handled: Current) -> None:
    """Say what this context is running for."""
    _current.set(handled)
