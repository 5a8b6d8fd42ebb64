"""Spans for OpenTelemetry, where it is switched on; where it isn't nothing is imported and a span costs nothing.

A micro-batch or a relay's round belongs to many traces at once, so its span is linked to them. The trace that an event
carries on is that of the record that caused it, whether or not spans are made.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Tracer

MAX_LINKS = 128
"""What OpenTelemetry keeps of a span's links by default."""

_tracer: "Tracer | None" = None


def switch_on(tracer: "Tracer") -> None:
    """Make spans with this tracer from now on."""
    global _tracer
    _tracer = tracer


@contextmanager
def span(name: str, traceparents: Callable[[], Iterable[str]], **attributes: str | int) -> Iterator[None]:
    """A span linked to the traces of ``traceparents`` (W3C Trace Context), which is asked only if spans are made."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, links=_links(traceparents()), attributes=attributes):
        yield


def _links(traceparents: Iterable[str]) -> "list[Link]":
    from opentelemetry.trace import Link, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    links = []
    for traceparent in dict.fromkeys(traceparents):
        context = get_current_span(propagator.extract({"traceparent": traceparent})).get_span_context()
        if context.is_valid:
            links.append(Link(context))
        if len(links) == MAX_LINKS:
            break
    return links
