"""Keeps child processes running: starts them, restarts those that end, and ends them all when `outbox up` ends.

One thread, no event loop: the kernel ties the signal that a child gets at its parent's death to the thread that forked it.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from outbox_standalone import child, watchdog
from outbox_standalone.embedded_postgres import PostgresStartError
from outbox_standalone.embedded_redis import RedisStartError
from outbox_standalone.refusal import Refusal

_BACK_OFF_SECONDS_MIN = 0.1
_BACK_OFF_SECONDS_MAX = 10.0
_STEADY_SECONDS = 30.0
_STARTS_MAX = 3
_PROBE_SECONDS = 0.05
_LOOK_SECONDS = 0.5
_LOG_TAIL_LINES = 12
_SERVICES_GRACE_SECONDS = 12.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(kw_only=True, eq=False)
class Child:
    """One kind of process to keep running, and how it fares.

    Attributes:
        name: as in the names of logs, e.g. `worker-2`.
        stage: `watchdog.SERVICES` or `watchdog.USED`; the services end first.
        log: where its output goes.
        start: starts it and returns the process.
        is_ready: whether the running process answers.
        stop_signal: what asks it to end.
        process: the running process.
        ready: whether it was seen ready since its last start.
        work_ids: ids of the processes that do the work, as last seen: the child's own, or those it started for that.
    """

    name: str
    stage: int
    log: Path
    start: Callable[[], subprocess.Popen[bytes]]
    is_ready: Callable[[], bool]
    stop_signal: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    work_ids: tuple[int, ...] = ()
    failures: int = field(default=0)
    started_at: float = field(default=0.0)
    start_again_at: float = field(default=0.0)

    def log_tail(self) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        except FileNotFoundError:
            return ""


def working_ids(process_id: int) -> tuple[int, ...]:
    """The processes that do the work of a child: the leaves below it, or itself when it has started none.

    Python's own resource tracker, which waits beside processes that `multiprocessing` spawned, does no work.
    """
    below = [one for one in child.descendants(process_id) if "resource_tracker" not in _command_line(one)]
    leaves = [one for one in below if not child.descendants(one)]
    return tuple(sorted(leaves)) or (process_id,)


def _command_line(process_id: int) -> str:
    try:
        return Path(f"/proc/{process_id}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


class Supervisor:
    """Starts children, keeps them running until a signal asks to stop, and ends them in order.

    Used as a context: leaving it, for whatever reason, ends every child.
    """

    def __init__(self, *, log_folder: Path, lock_fd: int, say: Callable[[str], None]) -> None:
        """Nothing runs yet.

        Args:
            log_folder: for the watchdog's log.
            lock_fd: descriptor of the data folder's lock, given to the watchdog.
            say: shows one line to the person at the terminal.
        """
        self.children: list[Child] = []
        self.stop_requested = False
        self._log_folder = log_folder
        self._lock_fd = lock_fd
        self._say = say
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._wake_read, self._wake_write = os.pipe()
        self._previous_handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Supervisor":
        """Takes the signals over and starts the watchdog."""
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        for number in (*_STOP_SIGNALS, signal.SIGCHLD):
            self._previous_handlers[number] = signal.getsignal(number)
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._start_watchdog()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all children, then lets the watchdog go and gives the signals back."""
        try:
            self._end_all()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in _STOP_SIGNALS:
            self.stop_requested = True

    def add(self, added: Child) -> None:
        """Starts a child and keeps it from now on."""
        self.children.append(added)
        self._start(added)

    def adopt(self, added: Child) -> None:
        """Keeps a child that runs and is ready already."""
        assert added.process is not None
        self.children.append(added)
        added.started_at = time.monotonic()
        added.ready, added.work_ids = True, (added.process.pid,)
        self._tell_watchdog(f"+ {added.process.pid} {added.stage}")

    def wait_until_ready(self, *, deadline_seconds: float) -> bool:
        """Waits until every child is ready; False when a signal asked to stop meanwhile.

        Raises:
            Refusal: a child ended three times, or was not ready in time; the message ends with its log.
        """
        deadline = time.monotonic() + deadline_seconds
        while not all(one.ready for one in self.children):
            if self.stop_requested:
                return False
            self._look()
            for one in self.children:
                if one.failures >= _STARTS_MAX:
                    raise Refusal(f"{one.name} does not start. The end of {one.log}:\n{one.log_tail()}")
                if not one.ready and time.monotonic() >= deadline:
                    raise Refusal(
                        f"{one.name} was not ready within {deadline_seconds:.0f} s. The end of {one.log}:\n{one.log_tail()}"
                    )
            self._sleep(_PROBE_SECONDS)
        return True

    def run(self, on_change: Callable[[], None]) -> None:
        """Keeps the children running until a signal asks to stop.

        Args:
            on_change: called whenever a child is ready again or its working processes are others than before.
        """
        while not self.stop_requested:
            changed = self._look()
            if changed and all(one.ready for one in self.children):
                on_change()
            self._sleep(_LOOK_SECONDS if all(one.ready for one in self.children) else _PROBE_SECONDS)

    def _look(self) -> bool:
        """Collects the ended, starts what is due, asks who is ready; returns whether anything became ready or changed."""
        if self._watchdog is not None and self._watchdog.poll() is not None:
            self._start_watchdog()
        changed = False
        for one in self.children:
            if one.process is not None and one.process.poll() is not None:
                self._collect(one)
            if one.process is None and time.monotonic() >= one.start_again_at:
                self._start(one)
            if one.process is not None and not one.ready and _answers(one):
                one.ready, changed = True, True
            if one.process is not None and one.ready:
                work_ids = working_ids(one.process.pid) if one.stage == watchdog.SERVICES else (one.process.pid,)
                if work_ids != one.work_ids:
                    one.work_ids, changed = work_ids, True
        return changed

    def _start(self, one: Child) -> None:
        one.started_at = time.monotonic()
        one.process = one.start()
        self._tell_watchdog(f"+ {one.process.pid} {one.stage}")

    def _collect(self, one: Child) -> None:
        """Notes that a child has ended, ends what it left behind, and decides when to start it again."""
        assert one.process is not None
        process, one.process, one.ready = one.process, None, False
        child.signal_group(process.pid, signal.SIGKILL)
        self._tell_watchdog(f"- {process.pid}")
        if time.monotonic() - one.started_at >= _STEADY_SECONDS:
            one.failures = 0
        delay = min(_BACK_OFF_SECONDS_MAX, _BACK_OFF_SECONDS_MIN * 2**one.failures)
        one.failures += 1
        one.start_again_at = time.monotonic() + delay
        self._say(f"{one.name} {_how_it_ended(process.returncode)}; it is started again in {delay:.1f} s (log: {one.log}).")

    def _sleep(self, seconds: float) -> None:
        """Sleeps until a signal arrives (the end of a child is one), at most so long."""
        ready, _, _ = select.select([self._wake_read], [], [], seconds)
        if ready:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._wake_read, 512):
                    pass

    def _start_watchdog(self) -> None:
        """Starts the watchdog and tells it of everything that runs.

        It leads a session of its own, so that neither the terminal nor a signal to our group reaches it.
        """
        log = child.open_log(self._log_folder / "watchdog.log")
        try:
            self._watchdog = subprocess.Popen(
                [sys.executable, "-P", "-m", "outbox_standalone.watchdog"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=(self._lock_fd,),
            )
        finally:
            os.close(log)
        for one in self.children:
            if one.process is not None:
                self._tell_watchdog(f"+ {one.process.pid} {one.stage}")

    def _tell_watchdog(self, line: str) -> None:
        """Writes one line; a watchdog that is gone is noticed and replaced by the next look."""
        if self._watchdog is not None and self._watchdog.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.write(line.encode() + b"\n")
                self._watchdog.stdin.flush()

    def _end_all(self) -> None:
        services = [one for one in self.children if one.stage == watchdog.SERVICES]
        used = [one for one in reversed(self.children) if one.stage == watchdog.USED]
        # All services are asked at once: waiting callers are answered by workers that still finish.
        self._end(services, grace_seconds=_SERVICES_GRACE_SECONDS)
        for one in used:
            self._end([one], grace_seconds=_SERVICES_GRACE_SECONDS)
        self._tell_watchdog(".")
        if self._watchdog is not None:
            with contextlib.suppress(BrokenPipeError):
                if self._watchdog.stdin is not None:
                    self._watchdog.stdin.close()
            self._watchdog.wait()

    def _end(self, group: Iterable[Child], *, grace_seconds: float) -> None:
        running = [one.process for one in group if one.process is not None and one.process.poll() is None]
        for one in group:
            if one.process is not None and one.process.poll() is None:
                one.process.send_signal(one.stop_signal)
        deadline = time.monotonic() + grace_seconds
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for one in group:
            if one.process is not None:
                if one.process.poll() is None:
                    self._say(f"{one.name} did not end in time and is ended by force (log: {one.log}).")
                    one.process.kill()
                one.process.wait()
                child.signal_group(one.process.pid, signal.SIGKILL)
                self._tell_watchdog(f"- {one.process.pid}")
                one.process = None


def _answers(one: Child) -> bool:
    """Whether the child is ready; one that has just ended is not, and is collected by the next look."""
    try:
        return one.is_ready()
    except (PostgresStartError, RedisStartError):
        return False


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


@contextlib.contextmanager
def removed_at_end(path: Path | None) -> Iterator[None]:
    """Removes a file before and after: a ready file that says what is no longer true misleads whoever waits for it."""
    if path is not None:
        path.unlink(missing_ok=True)
    try:
        yield
    finally:
        if path is not None:
            path.unlink(missing_ok=True)
