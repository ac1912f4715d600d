"""Child processes of tests: started as users start them, waited for by a condition, ended by their own id."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from outbox_standalone import child

T = TypeVar("T")
_POLL_SECONDS = 0.01


def wait_until(condition: Callable[[], T], *, deadline_seconds: float, what: str = "the condition") -> T:
    """Polls until `condition` returns something true and returns that.

    Raises:
        TimeoutError: it did not within the deadline; `what` says what was waited for.
    """
    deadline = time.monotonic() + deadline_seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {deadline_seconds:g} s for {what}")
        time.sleep(_POLL_SECONDS)


def gone(process_ids: Iterable[int]) -> bool:
    """Whether none of these processes runs any more."""
    return not any(child.is_alive(process_id) for process_id in process_ids)


class ChildProcess:
    """A process that a test has started; its output goes to a file that the test can read.

    Attributes:
        name: for messages.
        log_path: both outputs, after those of earlier processes of the same name.
    """

    def __init__(self, process: subprocess.Popen[bytes], *, name: str, log_path: Path, log_from: int) -> None:
        """Wraps a process that was just started, when its log already held `log_from` bytes."""
        self.process = process
        self.name = name
        self.log_path = log_path
        self._log_from = log_from

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def log(self) -> str:
        """Everything it has written so far (and nothing of an earlier process that wrote to the same file)."""
        return self.log_path.read_bytes()[self._log_from :].decode(errors="replace")

    def wait_for(self, condition: Callable[[], T], *, deadline_seconds: float = 30.0) -> T:
        """Polls until `condition` returns something true and returns that.

        Raises:
            RuntimeError: the process ended first; the message carries its output.
            TimeoutError: the deadline passed; the message carries its output.
        """
        deadline = time.monotonic() + deadline_seconds
        while True:
            found = condition()
            if found:
                return found
            code = self.process.poll()
            if code is not None:
                raise RuntimeError(f"{self.name} ended with {code} before it was expected to:\n{self.log()}")
            if time.monotonic() >= deadline:
                raise TimeoutError(f"waited {deadline_seconds:g} s for {self.name}; it has written:\n{self.log()}")
            time.sleep(_POLL_SECONDS)

    def send(self, number: signal.Signals) -> None:
        """Sends it one signal, SIGSTOP for instance."""
        self.process.send_signal(number)

    def wait(self, *, deadline_seconds: float = 30.0) -> int:
        """Waits until it has ended and returns its exit code (negative: the signal that ended it).

        Raises:
            subprocess.TimeoutExpired: it still runs at the deadline.
        """
        return self.process.wait(deadline_seconds)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends the signal (SIGKILL unless named) and waits for the end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def end(self) -> None:
        """Ends it whatever state it is in, SIGSTOP included, together with the group it leads."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        child.signal_group(self.process.pid, signal.SIGKILL)


def start(
    module: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    folder: Path,
    name: str | None = None,
    inherit: bool = True,
) -> ChildProcess:
    """Starts `python -m module` in a process group of its own.

    The kernel ends the child when the test process dies, so an interrupted session leaves nothing behind.

    Args:
        module: as after `python -m`.
        arguments: of the command line.
        env: variables added to this process's environment (without its OUTBOX_* ones).
        folder: where it starts and where its log is written.
        name: of the log; the module's unless given.
        inherit: False gives it `env` alone, plus PATH.
    """
    return start_command([sys.executable, "-m", module, *arguments], env=env, folder=folder, name=name or module, inherit=inherit)


def start_command(
    command: list[str], *, env: Mapping[str, str] | None = None, folder: Path, name: str, inherit: bool = True
) -> ChildProcess:
    """Starts any command as `start` does a module."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("OUTBOX_", "OTEL_"))}
    environment = {**(own if inherit else {"PATH": os.environ.get("PATH", os.defpath)}), **(env or {})}
    environment.setdefault("PYTHONUNBUFFERED", "1")
    log_path = folder / f"{name}.log"
    log_from = log_path.stat().st_size if log_path.exists() else 0
    process = child.start(command, environment=environment, log=log_path, death_signal=signal.SIGKILL, working_folder=folder)
    return ChildProcess(process, name=name, log_path=log_path, log_from=log_from)
