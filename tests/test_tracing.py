"""OpenTelemetry tracing: spans of real processes, as a collector receives them; and nothing at all where it is off."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from rollcall.settings import Settings, SettingsError
from rollcall.telemetry import switch_on_tracing
from schemas.topics import Topics
from tests.harness.product import running
from tests.harness.tables import finalized_events
from tests.harness.topics import create_topic, produce
from tests.harness.waiting import eventually

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class _Message:
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class Collector:
    """What an OTLP collector was sent: the role of the sender, and the span."""

    url: str
    spans: list[tuple[str, Span]]


@contextmanager
def collecting() -> Iterator[Collector]:
    spans: list[tuple[str, Span]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in request.resource_spans:
                named = {each.key: each.value.string_value for each in resource.resource.attributes}
                spans.extend((named["rollcall.role"], span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Collector(f"http://127.0.0.1:{server.server_port}", spans)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_trace_leads_from_a_result_through_spans_to_the_finalized_event(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = {name: f"00-{number:032x}-{number:016x}-01" for number, name in enumerate(("opened", "result"), 0xA1)}
    messages = [
        _Message(b"b", json.dumps(event).encode(), (("traceparent", traces[name].encode()),))
        for name, event in {
            "opened": {"type": "batch.opened", "batch_id": "b", "total_items": 1},
            "result": {"batch_id": "b", "item_id": "i", "status": "succeeded"},
        }.items()
    ]
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events)
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        async with running(settings) as product:
            await produce(settings.bootstrap_servers, topics.events, messages)
            await product.settled()

            def linked(role: str) -> set[str]:
                return {
                    f"{link.trace_id.hex()}-{link.span_id.hex()}"
                    for sender, span in collector.spans
                    if sender == role
                    for link in span.links
                }

            decided = traces["result"][3:-3]
            await eventually(lambda: linked("worker") == {each[3:-3] for each in traces.values()})
            await eventually(lambda: decided in linked("relay"))
    names = {(sender, span.name) for sender, span in collector.spans}
    assert {("worker", "micro-batch"), ("relay", "publish events")} <= names
    [[event]] = (await finalized_events(settings)).values()
    assert dict(event.headers)["traceparent"] == traces["result"].encode()


def test_nothing_of_it_is_imported_where_it_is_off() -> None:
    code = """
import sys
from rollcall.telemetry import switch_on_tracing
import rollcall.processes
switch_on_tracing("worker")
parts = ("opentelemetry.sdk", "opentelemetry.trace", "opentelemetry.exporter")
print([name for name in sys.modules if name.startswith(parts)])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin is not supported"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc is not supported",
        ),
    ],
)
def test_what_cannot_be_had_is_said(variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        switch_on_tracing("worker")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    switch_on_tracing("worker")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"install 'dist/rollcall-VERSION-py3-none-any\.whl\[otel\]'"):
        switch_on_tracing("worker")
