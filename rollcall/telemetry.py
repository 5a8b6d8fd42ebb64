"""Switches OpenTelemetry's tracing on where the usual `OTEL_*` variables ask for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rollcall.settings import SettingsError

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue


def switch_on_tracing(role: str) -> None:
    """Export spans by OTLP where an endpoint or `OTEL_TRACES_EXPORTER=otlp` is given; else do, and import, nothing.

    Raises `SettingsError` where something is asked for that isn't there.
    """
    environment = os.environ
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    endpoint = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or exporter == "none" or not (exporter or endpoint):
        return
    if exporter not in ("", "otlp"):
        raise SettingsError(f"OTEL_TRACES_EXPORTER={exporter} is not supported: set it to otlp, or to none")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(name, "http/protobuf") != "http/protobuf":
            raise SettingsError(f"{name}={environment[name]} is not supported: set it to http/protobuf (port 4318)")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(
            "tracing is asked for by OTEL_* variables but not installed: install the wheel with its extra (pip install"
            " 'dist/rollcall-VERSION-py3-none-any.whl[otel]'), or set OTEL_SDK_DISABLED=true"
        ) from None
    from streams.tracing import switch_on

    attributes: dict[str, AttributeValue] = {"rollcall.role": role}
    if not _is_named():
        attributes["service.name"] = "rollcall"
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    switch_on(provider.get_tracer("rollcall"))


def _is_named() -> bool:
    return "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
