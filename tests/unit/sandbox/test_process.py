"""The sandbox as a process: ready file, signals, restart, the end of its parent, and its pace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

PATIENCE_SECONDS = 20.0
BEARER = {"Authorization": "Bearer sk_test_sandbox"}
# A parent that starts the sandbox, says so, and waits to be killed.
PARENT = """
import os, subprocess, sys
command = [sys.executable, "-m", "outbox_sandbox", "--ready-file", sys.argv[1], "--parent-pid", str(os.getpid())]
subprocess.Popen(command).wait()
"""


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` comes to once it is true."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, "gave up waiting"
        time.sleep(0.01)
    return found


def is_running(pid: int) -> bool:
    """Whether a process lives (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Process:
    """Sandbox processes of one test, started one after the other on the same files."""

    def __init__(self, folder: Path) -> None:
        self.state_file = folder / "state.sqlite"
        self.ready_file = folder / "ready.json"
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> str:
        self.ready_file.unlink(missing_ok=True)
        files = ("--state-file", str(self.state_file), "--ready-file", str(self.ready_file))
        self.child = subprocess.Popen([sys.executable, "-m", "outbox_sandbox", *files, *options])
        until(lambda: self.ready_file.exists() or self.child is None or self.child.poll() is not None)
        ready = json.loads(self.ready_file.read_text())
        assert ready["pid"] == self.child.pid
        url: str = ready["url"]
        return url

    def stop(self, number: signal.Signals) -> int:
        assert self.child is not None
        self.child.send_signal(number)
        code = self.child.wait(PATIENCE_SECONDS)
        self.child = None
        return code


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    if process.child is not None:
        process.stop(signal.SIGKILL)


def refund(url: str, key: str) -> httpx2.Response:
    """One refund under a key."""
    form = {"payment_intent": "pi_1", "amount": "1200"}
    return httpx2.post(f"{url}/v1/refunds", data=form, headers={**BEARER, "Idempotency-Key": key})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_effects_and_keys_survive_a_restart(process: Process, number: signal.Signals) -> None:
    """Killed or stopped and started again on its state file: the effect is there, and its key still answers with it."""
    url = process.start()
    first = refund(url, "k")
    process.stop(number)
    url = process.start("--port", url.rpartition(":")[2])
    [effect] = httpx2.get(f"{url}/_control/effects").json()
    assert effect["id"] == first.json()["id"]
    again = refund(url, "k")
    assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")
    assert [each["committed"] for each in httpx2.get(f"{url}/_control/requests").json()] == [True, False]
    assert len(httpx2.get(f"{url}/_control/effects").json()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_while_a_request_hangs(process: Process, number: signal.Signals) -> None:
    """SIGTERM, SIGINT: exit 0 within seconds though a caller hangs; the ready file is gone."""
    url = process.start()
    hang = {"path": "/v1/refunds", "fault": "hang", "delay_seconds": 3600}
    httpx2.post(f"{url}/_control/faults", json=hang).raise_for_status()
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{url}/v1/refunds", data={"payment_intent": "pi_1", "amount": "1"}, headers=BEARER, timeout=0.2)
    started = time.monotonic()
    assert process.stop(number) == 0
    assert time.monotonic() - started < 5
    assert not process.ready_file.exists()


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """--parent-pid: the parent is killed with SIGKILL, and the sandbox ends by itself."""
    ready_file = tmp_path / "ready.json"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(ready_file)])
    try:
        until(ready_file.exists)
        pid = json.loads(ready_file.read_text())["pid"]
        assert is_running(pid)
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not is_running(pid))


def test_a_state_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    """A wrong state file stops the process with one sentence and exit 1."""
    file = tmp_path / "state.sqlite"
    file.write_text("this is not a database, though it is long enough to look at\n" * 50)
    ended = subprocess.run(
        [sys.executable, "-m", "outbox_sandbox", "--state-file", str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert ended.returncode == 1
    assert "could not run" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_key_is_kept_as_long_as_asked(process: Process) -> None:
    """--key-life 0: no key is remembered, so a resend is a second effect."""
    url = process.start("--key-life", "0")
    for _ in range(2):
        assert "Idempotent-Replayed" not in refund(url, "k").headers
    assert len(httpx2.get(f"{url}/_control/effects").json()) == 2


async def test_hundreds_of_refunds_a_second(process: Process) -> None:
    """1,000 refunds by 16 callers: every one an effect, and no slower than 100 a second on a busy machine."""
    url = process.start()
    started = time.monotonic()
    async with httpx2.AsyncClient(headers=BEARER) as session:

        async def caller(number: int) -> None:
            for place in range(number, 1000, 16):
                form = {"payment_intent": "pi_1", "amount": "1", "metadata[outbox]": f"m{place}"}
                answer = await session.post(f"{url}/v1/refunds", data=form, headers={"Idempotency-Key": f"k{place}"})
                assert answer.status_code == 200

        await asyncio.gather(*(caller(number) for number in range(16)))
        took = time.monotonic() - started
        print(f"{1000 / took:.0f} refunds/s, {os.cpu_count()} processors")
        markers = [each["marker"] for each in (await session.get(f"{url}/_control/effects")).json()]
    assert sorted(markers) == sorted(f"m{place}" for place in range(1000))
    assert took < 10
