"""An OTLP receiver in a process of its own: takes traces by http/protobuf and writes them to a file, a line per export.

`python tests/support/otlp_receiver.py PORT FILE` runs it; `spans` reads what it has written.
"""

import gzip
import json
import sys
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


@dataclass(frozen=True, kw_only=True)
class Span:
    """A span as it was exported.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        parent_id: those of its parent, empty without one.
        service: the `service.name` of its process.
        kind: without the prefix of the protocol, e.g. `SERVER`.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    service: str
    kind: str
    attributes: dict[str, str]


def spans(file: Path) -> list[Span]:
    """Everything received so far."""
    return [Span(**one) for line in file.read_text().splitlines() for one in json.loads(line)["spans"]]


def _spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        Span(
            name=one.name,
            trace_id=one.trace_id.hex(),
            span_id=one.span_id.hex(),
            parent_id=one.parent_span_id.hex(),
            service=_attributes(resource.resource).get("service.name", ""),
            kind=one.SpanKind.Name(one.kind).removeprefix("SPAN_KIND_"),
            attributes=_attributes(one),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for one in scope.spans
    ]


def _attributes(holder: Any) -> dict[str, str]:
    """Keys and values; a value that is no text as the protocol's own text form."""
    return {one.key: one.value.string_value or str(one.value).strip() for one in holder.attributes}


class Receiver(BaseHTTPRequestHandler):
    """Answers `POST /v1/traces`."""

    protocol_version = "HTTP/1.1"
    file: Path
    lock = Lock()

    def do_POST(self) -> None:
        """Writes one export down, then says that it was taken."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        with self.lock, self.file.open("a") as file:
            # The text form is the whole export, events and links included, for who searches it.
            file.write(json.dumps({"spans": [asdict(one) for one in _spans(request)], "text": str(request)}) + "\n")
        content = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """Says that it is there."""
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


def main() -> None:
    """Receive until the process is ended."""
    port, file = sys.argv[1:]
    Receiver.file = Path(file)
    Receiver.file.touch()
    ThreadingHTTPServer(("127.0.0.1", int(port)), Receiver).serve_forever()


if __name__ == "__main__":
    main()
