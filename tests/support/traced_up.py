"""`outbox up` that exports its traces to an OTLP receiver in a process of its own."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import otlp_receiver
from tests.support.outbox_up import OutboxUp, Unanswered, request, running
from tests.support.processes import start_command

from outbox_standalone import child


@dataclass(frozen=True, kw_only=True)
class TracedUp:
    """The stack and what the receiver has taken.

    Attributes:
        traces_url: where the receiver takes OTLP by http/protobuf.
        traces_file: what it has written.
    """

    up: OutboxUp
    traces_url: str
    traces_file: Path

    def spans(self, trace_id: str) -> list[otlp_receiver.Span]:
        """The spans of one trace that have arrived."""
        return [one for one in otlp_receiver.spans(self.traces_file) if one.trace_id == trace_id]

    def wait_spans(self, trace_id: str, *names: str) -> dict[str, otlp_receiver.Span]:
        """Waits until a trace has spans of all these names; returns its spans by name."""

        def found() -> dict[str, otlp_receiver.Span]:
            spans = {one.name: one for one in self.spans(trace_id)}
            return spans if spans.keys() >= set(names) else {}

        return self.up.wait(found, f"spans {', '.join(names)} of trace {trace_id}")


@contextlib.contextmanager
def running_traced(folder: Path, *options: str, **env: str) -> Iterator[TracedUp]:
    """A running `outbox up` beside a running receiver; both end with the context."""
    port = child.free_port()
    url, file = f"http://127.0.0.1:{port}", folder / "traces.jsonl"
    command = [sys.executable, otlp_receiver.__file__, str(port), str(file)]
    receiver = start_command(command, folder=folder, name="otlp-receiver")
    try:
        receiver.wait_for(lambda: _answers(url), deadline_seconds=20)
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100", **env}
        with running(folder, *options, env=environment) as up:
            yield TracedUp(up=up, traces_url=url, traces_file=file)
    finally:
        receiver.end()


def _answers(url: str) -> bool:
    try:
        return request(url, "GET", "/", seconds=2).status == 204
    except Unanswered:
        return False
