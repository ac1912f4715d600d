"""The fault battery, interrupted: it ends soon, and says no more of what it has seen than it knows."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from tests.fault.battery.network import ROOT
from tests.support.processes import start

READY_SECONDS = 120.0
END_SECONDS = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def workers_of(process_id: int) -> list[int]:
    """The workers among the children of a battery."""
    children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    return [int(one) for one in children if b"outbox_worker" in Path(f"/proc/{one}/cmdline").read_bytes()]


def events(history: Path) -> list[dict[str, object]]:
    """What a history holds so far; its last line may not be whole yet."""
    return [json.loads(line) for line in history.read_text().splitlines(keepends=True) if line.endswith("\n")]


def waiting(history: Path) -> set[object]:
    """The operation keys with a call that has not ended."""
    so_far = events(history)
    ended = {event["call"] for event in so_far if event["type"] != "invoke"}
    return {event["key"] for event in so_far if event["call"] not in ended}


def figure(page: str, pattern: str) -> int:
    """A number of the page."""
    found = re.search(pattern, page)
    assert found is not None, page
    return int(found[1].replace(",", ""))


def test_what_was_seen_is_written_and_what_has_no_end_is_not_counted(tmp_path: Path) -> None:
    """SIGINT while callers wait for workers that stand still: soon the evidence is there, says so, and counts what had ended alone."""
    evidence, history = tmp_path / "evidence.md", tmp_path / "battery" / "history.jsonl"
    options = ["--nemeses", "caller-api delay", "--connections", "2", "--disk-megabytes", "500"]
    options += ["--evidence", str(evidence), "--folder", str(history.parent)]
    battery = start("tests.fault.battery", *options, folder=tmp_path, env={"PYTHONPATH": str(ROOT)})
    try:
        battery.wait_for(lambda: "pass 0" in battery.log(), deadline_seconds=READY_SECONDS)
        workers = workers_of(battery.pid)
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        stopped = {event["key"] for event in events(history)}
        battery.wait_for(lambda: waiting(history) - stopped)
        battery.send(signal.SIGINT)
        assert battery.wait(deadline_seconds=END_SECONDS) == 0, battery.log()
    finally:
        battery.end()
    page = evidence.read_text()
    assert "It ended because it was interrupted." in page
    assert "No property was violated." in page
    counted = figure(page, r"\| operation keys \(effects wanted\) \| ([\d,]+) \|")
    restless = figure(page, r"([\d,]+) further operation keys had not come to rest")
    asked_for = {event["key"] for event in events(history)}
    assert stopped <= asked_for
    assert 0 < counted < len(asked_for) <= counted + restless
