"""Agents as processes: forked, so that they have the test's handler and stubs, and can be killed."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AGENT_SECONDS = 120.0
_BYTES = 65536


class AgentFailed(RuntimeError):
    """An agent ended with an exception that is not the kit's; the text is its traceback."""


@dataclass(frozen=True)
class Execution:
    """One line of the journal.

    Attributes:
        provider_key: of the attempt.
        ended: whether the handler came to its end; else it was only begun.
    """

    provider_key: str
    ended: bool


class Journal:
    """What handlers have done, in a file that a killed process leaves complete."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: of the file; it need not be there yet.
        """
        self._path = path

    def note(self, provider_key: str, *, ended: bool) -> None:
        """Write that an execution began, or that it came to its end. One write of one line, which no other tears."""
        line = json.dumps({"provider_key": provider_key, "ended": ended}) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def executions(self) -> list[Execution]:
        """Every line, oldest first."""
        if not self._path.exists():
            return []
        return [Execution(**json.loads(line)) for line in self._path.read_text(encoding="utf-8").splitlines()]


class Edge:
    """The moment at which an agent waits to be killed, and its parent learns of it."""

    def __init__(self) -> None:
        """A pipe that the fork shares."""
        self._reader, self._writer = os.pipe()

    def wait_here(self) -> None:
        """In the agent: say that it is there, and never go on."""
        os.write(self._writer, b"!")
        while True:
            signal.pause()

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self._writer)

    @property
    def reader(self) -> int:
        """The end that becomes readable when the agent is there."""
        return self._reader


class Agent:
    """A forked process that does one thing and says what came of it."""

    def __init__(self, work: Callable[[], list[str]]) -> None:
        """Start it.

        Args:
            work: runs in the child; gives what the agent was told, each time it asked.
        """
        self._reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python warns of forks in processes with threads. The child calls nothing that those threads could have held.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            self._be(work, writer)
        os.close(writer)

    @staticmethod
    def _be(work: Callable[[], list[str]], writer: int) -> None:
        try:
            said: Mapping[str, Any] = {"told": work()}
        except BaseException:
            said = {"failed": traceback.format_exc()}
        content = json.dumps(said).encode()
        while content:
            content = content[os.write(writer, content) :]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # Nothing of the test's own is run in the child: no fixture's end, no exit handler.

    def told(self) -> list[str]:
        """Wait for its end; what it was told.

        Raises:
            AgentFailed: it ended otherwise, or not at all.
        """
        content, deadline = b"", time.monotonic() + AGENT_SECONDS
        while True:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.kill()
                raise AgentFailed(f"an agent did not end within {AGENT_SECONDS:g} s")
            part = os.read(self._reader, _BYTES)
            if not part:
                break
            content += part
        os.close(self._reader)
        _, status = os.waitpid(self.pid, 0)
        said: dict[str, Any] = json.loads(content) if content else {"failed": f"it ended with status {status} and said nothing"}
        if "failed" in said:
            raise AgentFailed(str(said["failed"]))
        return list(said["told"])

    def kill_at(self, edge: Edge) -> bool:
        """Kill it (SIGKILL) as soon as it is at an edge; False where it came to its end before.

        Raises:
            AgentFailed: it did neither.
        """
        ready, _, _ = select.select([edge.reader, self._reader], [], [], AGENT_SECONDS)
        if edge.reader in ready:
            self.kill()
            return True
        if not ready:
            self.kill()
            raise AgentFailed(f"an agent did not come to its end within {AGENT_SECONDS:g} s")
        return False

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._reader)
