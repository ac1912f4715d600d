"""The server that a session of tests uses: one that runs already, or an `outbox up` of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 120.0
END_SECONDS = 20.0
POLL_SECONDS = 0.05
LOG_CHARACTERS_SHOWN = 4000
_PR_SET_PDEATHSIG = 1

_START = "from agent_outbox.testing.local_server import become_outbox; become_outbox()"
_OUTBOX = "from agent_outbox.command_line import main; main()"
"""The command `outbox`, whether its script is on the PATH or not."""


class StartFailed(RuntimeError):
    """The server did not start; the text says what it has written."""


@dataclass(frozen=True)
class Server:
    """A server of Agent Outbox for tests.

    Attributes:
        url: of the gateway.
        admin_key: of a member who may make projects and keys.
        sandbox_url: of the sandbox provider that its connections lead to; None where nobody named one.
    """

    url: str
    admin_key: str
    sandbox_url: str | None


def named(environment: Mapping[str, str]) -> Server | None:
    """The server that `OUTBOX_TEST_URL`, `OUTBOX_TEST_ADMIN_KEY` and `OUTBOX_TEST_SANDBOX_URL` name; None without the first.

    Args:
        environment: the variables.

    Raises:
        StartFailed: the admin key is missing.
    """
    url = environment.get("OUTBOX_TEST_URL")
    if not url:
        return None
    key = environment.get("OUTBOX_TEST_ADMIN_KEY")
    if not key:
        raise StartFailed("OUTBOX_TEST_URL is set and OUTBOX_TEST_ADMIN_KEY is not; each test makes a project and a key there.")
    return Server(url=url, admin_key=key, sandbox_url=environment.get("OUTBOX_TEST_SANDBOX_URL") or None)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Server]:
    """An `outbox up` that ends with this block, and with this process should it be killed.

    Args:
        folder: empty; of its data and its log.

    Raises:
        StartFailed: it did not start.
    """
    ready_file, log_file = folder / "ready.json", folder / "up.log"
    command = [sys.executable, "-c", _START, "up", "--data-dir", str(folder / "data"), "--ready-file", str(ready_file)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    with log_file.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - this very interpreter
            command, cwd=folder, env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _await(process, ready_file, log_file)
        ready = json.loads(ready_file.read_text(encoding="utf-8"))
        yield Server(url=ready["url"], admin_key=ready["admin_key"], sandbox_url=ready["sandbox_url"])
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # Its own watchdog ends what it has started.
            process.wait()


def _await(process: subprocess.Popen[bytes], ready_file: Path, log_file: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not ready_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            written = log_file.read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS_SHOWN:]
            raise StartFailed(f"`outbox up` did not start; it has written:\n{written}")
        time.sleep(POLL_SECONDS)


def become_outbox() -> None:
    """Become the command `outbox` with this process's arguments, and end with whoever started it (on Linux)."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:
        os.execv(sys.executable, [sys.executable, "-c", _OUTBOX, *sys.argv[1:]])  # noqa: S606 - this very interpreter
