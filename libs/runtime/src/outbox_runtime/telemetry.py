"""Traces: one from the agent's `traceparent` to the provider, exported over OTLP by the standard `OTEL_*` variables.

Spans carry ids and states, never bodies: the message of an error stays out of them, as it stays out of logs. Source: design
sections 9 and 17; OpenTelemetry specification, "OpenTelemetry Environment Variable Specification"; W3C Trace Context.
"""

import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any
from uuid import uuid4

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util._decorator import _agnosticcontextmanager
from opentelemetry.util.types import Attributes

log = structlog.stdlib.get_logger("outbox.telemetry")

FLUSH_SECONDS_MAX = 3.0
_PROPAGATOR = TraceContextTextMapPropagator()


class Discreet(Tracer):
    """A tracer whose spans say of an error only its class: an error's message may quote what a caller or a provider sent."""

    def __init__(self, tracer: Tracer) -> None:
        """
        Args:
            tracer: who makes the spans.
        """
        self._tracer = tracer

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Any = None,
        start_time: int | None = None,
        record_exception: bool = False,
        set_status_on_exception: bool = False,
    ) -> Span:
        """Start a span; the two last arguments are part of the interface and do nothing."""
        return self._tracer.start_span(
            name, context, kind, attributes, links, start_time, record_exception=False, set_status_on_exception=False
        )

    @_agnosticcontextmanager
    def start_as_current_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Any = None,
        start_time: int | None = None,
        record_exception: bool = False,
        set_status_on_exception: bool = False,
        end_on_exit: bool = True,
    ) -> Iterator[Span]:
        """Start a span and make it the current one until the block ends."""
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with trace.use_span(span, end_on_exit=end_on_exit, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise


class Telemetry:
    """The tracing of one process."""

    def __init__(self, provider: TracerProvider, *, exporting: bool) -> None:
        """
        Args:
            provider: makes the tracers.
            exporting: whether spans leave the process.
        """
        self._provider = provider
        self.exporting = exporting
        self.tracer: Tracer = Discreet(provider.get_tracer("agent-outbox", _version()))

    def shutdown(self) -> None:
        """Export what is left, for a few seconds at most. Blocks: call it in a thread or when the loop has ended."""
        self._provider.force_flush(int(FLUSH_SECONDS_MAX * 1000))
        self._provider.shutdown()


def setup(service_name: str, environment: Mapping[str, str] | None = None) -> Telemetry:
    """Set up the traces of this process.

    Spans are made in any case, so that ledger entries have trace ids; they are exported only where an OTLP endpoint is set. The
    exporter, the batches, the sampler and the resource follow the `OTEL_*` variables of the process.

    Args:
        service_name: `service.name` unless `OTEL_SERVICE_NAME` is set.
        environment: decides whether to export; the variables of the process unless given.
    """
    given = os.environ if environment is None else environment
    attributes = {"service.version": _version(), "service.instance.id": str(uuid4())}
    if not given.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = service_name
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    exporting = _wanted(given)
    if exporting:
        protocol = given.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or given.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
        if protocol != "http/protobuf":
            log.warning("otlp-protocol-not-spoken", protocol=protocol, used="http/protobuf")
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Telemetry(provider, exporting=exporting)


def _wanted(given: Mapping[str, str]) -> bool:
    if given.get("OTEL_SDK_DISABLED", "").lower() == "true" or given.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return False
    return bool(given.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or given.get("OTEL_EXPORTER_OTLP_ENDPOINT"))


def _version() -> str:
    return metadata.version("outbox-runtime")


def context_of(traceparent: str | None) -> Context:
    """The context that continues a trace; an empty one without a `traceparent` or with one that is not well-formed."""
    return _PROPAGATOR.extract({"traceparent": traceparent} if traceparent else {}, context=Context())


def traceparent_of(span: Span) -> str | None:
    """The W3C `traceparent` that continues a span elsewhere; None for a span that is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(span, Context()))
    return carrier.get("traceparent")


def trace_id_of(span: Span) -> str | None:
    """The trace id of a span as 32 hexadecimal digits; None for a span that is none."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
