"""Metrics have bounded labels and a port per process that can be found; probes tell a stalled loop from a busy database."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox_runtime.health import Health
from outbox_runtime.metrics import TOOLS_MAX, Metrics, MetricsServer


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Metrics, Health, MetricsServer]]:
    """Metrics and health on a free port."""
    metrics, health = Metrics(), Health(stall_seconds=0.3)
    server = MetricsServer(metrics, health, host="127.0.0.1", port=0, port_file=tmp_path / "port")
    yield metrics, health, server
    server.close()


def get(server: MetricsServer, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_the_bound_port_is_written_to_a_file(served: tuple[Metrics, Health, MetricsServer], tmp_path: Path) -> None:
    """Port 0 takes a free one; the file tells which, and no half-written file is left."""
    assert (tmp_path / "port").read_text() == str(served[2].port)
    assert [path.name for path in tmp_path.iterdir()] == ["port"]


def test_metrics_are_told_per_tool(served: tuple[Metrics, Health, MetricsServer]) -> None:
    """The four parts of a call, and the outcomes of attempts."""
    metrics, _, server = served
    for histogram in (metrics.reserve_seconds, metrics.queue_seconds, metrics.provider_seconds, metrics.settle_seconds):
        histogram.labels(tool="stripe.refund.create").observe(0.004)
    metrics.attempts.labels(tool="stripe.refund.create", outcome="succeeded").inc()
    metrics.refusals.labels(code="invalid-key").inc()
    status, text = get(server, "/metrics")
    assert status == 200
    for name in ("reserve", "queue", "provider", "settle"):
        assert f'outbox_{name}_seconds_bucket{{le="0.005",tool="stripe.refund.create"}} 1.0' in text
    assert 'outbox_attempts_total{outcome="succeeded",tool="stripe.refund.create"} 1.0' in text
    assert 'outbox_refusals_total{code="invalid-key"} 1.0' in text
    assert "process_resident_memory_bytes" in text


def test_the_number_of_tools_is_bounded(served: tuple[Metrics, Health, MetricsServer]) -> None:
    """Organizations add contracts without end; beyond the bound a tool is counted as `other`, in every metric alike."""
    metrics, _, server = served
    for number in range(TOOLS_MAX + 50):
        metrics.attempts.labels(tool=f"tool-{number}", outcome="unknown").inc()
    metrics.queue_seconds.labels(tool="tool-1").observe(1)
    metrics.queue_seconds.labels(tool="tool-new").observe(1)
    _, text = get(server, "/metrics")
    assert 'outbox_attempts_total{outcome="unknown",tool="other"} 50.0' in text
    assert 'outbox_queue_seconds_count{tool="tool-1"} 1.0' in text
    assert 'outbox_queue_seconds_count{tool="other"} 1.0' in text
    assert text.count("outbox_attempts_total{") == TOOLS_MAX + 1


def test_readiness_follows_the_life_of_the_process(served: tuple[Metrics, Health, MetricsServer]) -> None:
    """Starting, ready, draining; a draining process does not become ready again."""
    _, health, server = served
    assert get(server, "/readyz") == (503, "starting\n")
    health.mark_ready()
    assert get(server, "/readyz") == (200, "ready\n")
    health.mark_draining()
    health.mark_ready()
    assert get(server, "/readyz") == (503, "draining\n")


def test_a_stalled_event_loop_is_not_alive() -> None:
    """The probe is answered by a thread: a loop that stands still is seen."""
    assert Health(stall_seconds=60).alive
    assert not Health(stall_seconds=0).alive


def test_another_path_is_not_found(served: tuple[Metrics, Health, MetricsServer]) -> None:
    """Only three paths."""
    assert get(served[2], "/")[0] == 404
