"""Metrics: one registry and one port per process, without identifiers and with bounded labels.

Labels are the tool's name and words of our own (outcome, code). Tool names come from contracts, which organizations add, so their
number is bounded: beyond it a tool is counted as `other`. Source: design section 17; Prometheus, "Metric and label naming".
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import make_wsgi_app

from outbox_runtime.health import Health

TOOLS_MAX = 200
OTHER = "other"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _Tools:
    """The names that have a label of their own."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, tool: str) -> str:
        if tool not in self._known:
            if len(self._known) >= TOOLS_MAX:
                return OTHER
            self._known.add(tool)
        return tool


class PerTool:
    """A histogram with a label per tool."""

    def __init__(self, histogram: Histogram, tools: _Tools) -> None:
        """
        Args:
            histogram: has the one label `tool`.
            tools: bounds its values.
        """
        self._histogram = histogram
        self._tools = tools

    def labels(self, *, tool: str) -> Histogram:
        """The histogram of this tool."""
        return self._histogram.labels(tool=self._tools.label(tool))


class PerToolAndWord:
    """A counter with a label per tool and one with a word of ours."""

    def __init__(self, counter: Counter, tools: _Tools) -> None:
        """
        Args:
            counter: has the label `tool` and one more.
            tools: bounds the values of the first.
        """
        self._counter = counter
        self._tools = tools

    def labels(self, *, tool: str, **word: str) -> Counter:
        """The counter of this tool and word."""
        return self._counter.labels(tool=self._tools.label(tool), **word)


class Metrics:
    """What one process counts.

    Attributes:
        registry: holds them all, and the process's own figures.
        reserve_seconds: T1, from the parsed call to the commit, per tool.
        queue_seconds: from the reservation's commit to its claim, per tool.
        provider_seconds: from the request to the end of the answer, per tool.
        settle_seconds: T3, from the reading of the answer to the commit, per tool.
        calls: tool calls answered, per tool and code of the answer.
        refusals: requests refused before a tool was known, per code (401 and malformed bodies are only counted).
        attempts: attempts closed, per tool and outcome.
        lookups: look-ups made, per tool and what they found.
        breaker_openings: breakers that opened.
        breakers_open: breakers that are open now, of all connections; every worker tells the same.
        doubt_episodes: episodes that are open now, by attention; every worker tells the same.
        doubts_waiting: doubts that wait for a person now, by attention; every worker tells the same.
        settle_retries: settlements that had to be sent to Postgres again.
        lapsed: leases that lapsed.
        epoch: the number of the ledger's epoch; it grows when the ledger has lost its tail.
        epoch_possibly_lost: 1 while keys first seen are treated as possibly sent.
        epochs_raised: epochs that this process has declared.
        suspected: reservations that were not claimed because they may have been sent before a loss.
        sends_in_flight: requests to providers that are being sent or answered.
        waiters: callers that wait for a receipt.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        tools = _Tools()

        def histogram(name: str, text: str) -> PerTool:
            return PerTool(Histogram(name, text, ["tool"], buckets=_SECONDS, registry=self.registry), tools)

        def counter(name: str, text: str, word: str) -> PerToolAndWord:
            return PerToolAndWord(Counter(name, text, ["tool", word], registry=self.registry), tools)

        self.reserve_seconds = histogram("outbox_reserve_seconds", "From the parsed call to the committed reservation.")
        self.queue_seconds = histogram("outbox_queue_seconds", "From the committed reservation to its claim.")
        self.provider_seconds = histogram("outbox_provider_seconds", "From the request to the end of the provider's answer.")
        self.settle_seconds = histogram("outbox_settle_seconds", "From the reading of the answer to the committed settlement.")
        self.calls = counter("outbox_calls", "Tool calls answered.", "code")
        self.attempts = counter("outbox_attempts", "Attempts closed.", "outcome")
        self.lookups = counter("outbox_lookups", "Look-ups about doubts.", "finding")
        self.breaker_openings = Counter("outbox_breaker_openings", "Breakers that opened.", registry=self.registry)
        self.breakers_open = Gauge("outbox_breakers_open", "Breakers that are open.", registry=self.registry)
        self.doubt_episodes = Gauge("outbox_doubt_episodes", "Open episodes of doubts.", ["attention"], registry=self.registry)
        self.doubts_waiting = Gauge(
            "outbox_doubts_waiting", "Doubts that wait for a person.", ["attention"], registry=self.registry
        )
        self.refusals = Counter("outbox_refusals", "Requests refused without a record.", ["code"], registry=self.registry)
        self.settle_retries = Counter("outbox_settle_retries", "Settlements sent to Postgres again.", registry=self.registry)
        self.lapsed = Counter("outbox_leases_lapsed", "Leases that lapsed.", registry=self.registry)
        self.epoch = Gauge("outbox_epoch", "Number of the ledger's epoch.", registry=self.registry)
        self.epoch_possibly_lost = Gauge(
            "outbox_epoch_possibly_lost", "1 while keys first seen are treated as possibly sent.", registry=self.registry
        )
        self.epochs_raised = Counter("outbox_epochs_raised", "Epochs declared after a loss.", registry=self.registry)
        self.suspected = Counter(
            "outbox_suspected", "Reservations that may have been sent before a loss.", registry=self.registry
        )
        self.sends_in_flight = Gauge("outbox_sends_in_flight", "Requests to providers under way.", registry=self.registry)
        self.waiters = Gauge("outbox_waiters", "Callers that wait for a receipt.", registry=self.registry)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes and probes are not worth a line each."""


class MetricsServer:
    """Serves `/metrics`, `/healthz` and `/readyz` from a thread, so that a stalled event loop is seen and not shared."""

    def __init__(self, metrics: Metrics, health: Health, *, host: str, port: int, port_file: Path | None = None) -> None:
        """Bind and begin to serve.

        Args:
            metrics: what `/metrics` tells.
            health: what the probes tell.
            host: the address to bind.
            port: 0 takes a free one.
            port_file: where to write the port that was bound.

        Raises:
            OSError: the port is taken or the file cannot be written.
        """
        told = make_wsgi_app(metrics.registry)

        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ.get("PATH_INFO")
            if path == "/metrics":
                page: Iterable[bytes] = told(environ, start_response)
                return page
            if path == "/healthz":
                return _probe(start_response, health.alive, "alive" if health.alive else "the event loop is stalled")
            if path == "/readyz":
                return _probe(start_response, health.ready, health.phase)
            return _answer(start_response, "404 Not Found", "not found")

        self._server = make_server(host, port, application, _Server, handler_class=_Silent)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        if port_file is not None:
            _write_whole(port_file, str(self.port))

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _probe(start_response: Callable[..., Any], good: bool, text: str) -> Iterable[bytes]:
    return _answer(start_response, "200 OK" if good else "503 Service Unavailable", text)


def _answer(start_response: Callable[..., Any], status: str, text: str) -> Iterable[bytes]:
    body = text.encode() + b"\n"
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(name).replace(path)
