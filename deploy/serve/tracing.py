"""OpenTelemetry traces, where its own environment variables ask for them; otherwise nothing is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, final

from fimaq.toolchain.errors import EnvironmentProblem

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVICE = "fimaq-tool"


class Span(Protocol):
    """One request while it is worked on."""

    def end(self, name: str, status: str, failed: bool, fields: Mapping[str, Any]) -> None:
        """Name the request and say how it went."""


class Tracing(Protocol):
    """Someone who is told about requests."""

    def request(self, headers: Mapping[str, str]) -> Any:
        """A context that lasts as long as the request and gives a Span; ``headers`` may carry a caller's trace."""

    def close(self) -> None:
        """Send what is not sent yet."""


def tracing() -> Tracing:
    """What the environment asks for. Raises EnvironmentProblem where that is not installed."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return NoTracing()
    try:
        return OpenTelemetry()
    except ImportError as error:
        raise EnvironmentProblem(
            f"{ENDPOINTS[0]} asks for traces and OpenTelemetry is not installed ({error}). "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or unset it."
        ) from error


@final
class NoTracing:
    """Tells no one."""

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[Span]:
        """A request that is not traced."""
        yield self

    def end(self, name: str, status: str, failed: bool, fields: Mapping[str, Any]) -> None:
        """Ignore it."""

    def close(self) -> None:
        """Nothing to send."""


@final
class OpenTelemetry:
    """One server span a request, exported by OTLP over HTTP as OpenTelemetry's variables say."""

    def __init__(self) -> None:
        from opentelemetry import propagate, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        name = os.environ.get("OTEL_SERVICE_NAME", SERVICE)
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(__name__)
        self._extract, self._server = propagate.extract, trace.SpanKind.SERVER

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[Span]:
        """A span, below the caller's where its headers carry one."""
        context = self._extract(dict(headers))
        with self._tracer.start_as_current_span("request", context=context, kind=self._server) as span:
            yield _OtelSpan(span)

    def close(self) -> None:
        """Send what is not sent yet, for a few seconds at most."""
        self._provider.shutdown()


@final
class _OtelSpan:
    def __init__(self, span: Any) -> None:
        self._span = span

    def end(self, name: str, status: str, failed: bool, fields: Mapping[str, Any]) -> None:
        """Name the span after the operation; the fields of the log are its attributes."""
        from opentelemetry.trace import Status, StatusCode

        self._span.update_name(name)
        self._span.set_attributes({"status": status, **fields})
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))
