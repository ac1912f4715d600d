"""Spans continue the caller's trace, say of an error its class only, and leave the process where an endpoint is set."""

import asyncio
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from outbox_runtime import telemetry
from outbox_runtime.telemetry import Discreet, context_of, setup, trace_id_of, traceparent_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CANARY = "canary-4242"


def test_a_trace_goes_on_from_traceparent_to_traceparent() -> None:
    """The caller's trace id is the span's, and the one handed on names the span as its parent."""
    tracer = setup("test", {}).tracer
    with tracer.start_as_current_span("execute", context=context_of(PARENT)) as span:
        assert trace_id_of(span) == PARENT.split("-")[1]
        handed_on = traceparent_of(span)
        assert handed_on == f"00-{PARENT.split('-')[1]}-{span.get_span_context().span_id:016x}-01"
        assert trace.get_current_span() is span


@pytest.mark.parametrize("text", [None, "", "garbage", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "ff-x"])
def test_a_traceparent_that_is_none_begins_a_new_trace(text: str | None) -> None:
    """Absent or not well-formed: a trace of its own, and no error (W3C Trace Context, section 3.2.2.1)."""
    with setup("test", {}).tracer.start_as_current_span("execute", context=context_of(text)) as span:
        found = trace_id_of(span)
    assert found is not None
    assert len(found) == 32


def test_an_error_leaves_its_class_only() -> None:
    """No event, no status text: the message may quote what a caller or a provider sent."""
    provider, kept = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = Discreet(provider.get_tracer("test"))

    def fail() -> None:
        with tracer.start_as_current_span("send", record_exception=True, set_status_on_exception=True):
            raise ValueError(CANARY)

    with pytest.raises(ValueError, match=CANARY):
        fail()
    (span,) = kept.get_finished_spans()
    assert isinstance(span, ReadableSpan)
    assert CANARY not in str(span.to_json())
    assert span.attributes == {"error.type": "ValueError"}
    assert not span.status.is_ok


async def test_a_cancelled_span_ends() -> None:
    """A cancellation is no error of the span's; it ends all the same."""
    provider, kept = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = Discreet(provider.get_tracer("test"))

    async def wait() -> None:
        with tracer.start_as_current_span("send"):
            await asyncio.sleep(60)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert len(kept.get_finished_spans()) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_leaves_without_an_endpoint_or_when_switched_off(environment: dict[str, str]) -> None:
    """No endpoint, `OTEL_SDK_DISABLED`, or the exporter `none`: spans are made and kept."""
    assert not setup("test", environment).exporting


class _Receiver(BaseHTTPRequestHandler):
    received: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP receiver over HTTP: its address and what it received."""
    received: list[ExportTraceServiceRequest] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Receiver", (_Receiver,), {"received": received}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans_reach_an_otlp_receiver(
    receiver: tuple[str, list[ExportTraceServiceRequest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard variables are enough; the rest is flushed at shutdown."""
    address, received = receiver
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    made = setup("outbox-test")
    assert made.exporting
    with made.tracer.start_as_current_span("execute", context=context_of(PARENT)):
        pass
    made.shutdown()
    (batch,) = [resource for request in received for resource in request.resource_spans]
    attributes = {one.key: one.value.string_value for one in batch.resource.attributes}
    assert attributes["service.name"] == "outbox-test"
    assert attributes["service.version"] == telemetry._version()
    (span,) = batch.scope_spans[0].spans
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("execute", *PARENT.split("-")[1:3])
