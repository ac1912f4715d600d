"""Child processes that cannot outlive their parent: how one is started, watched and ended.

Every child leads its own process group, so that a Ctrl+C in the terminal reaches `outbox up` alone and what a child
started itself can be ended with it. On Linux the kernel sends each child a signal when its parent dies; the watchdog
(`watchdog.py`) covers grandchildren and other systems.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOG_BYTES_MAX = 16 * 1024 * 1024
_POLL_SECONDS = 0.01


def _death_signal_setter(death_signal: signal.Signals) -> Callable[[], None] | None:
    """A function for the moment between fork and exec that asks for `death_signal` when the parent ends.

    It is None where the system has no such request. A parent that died before the request was made is noticed by
    its changed id.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def ask_for_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask_for_death_signal


def open_log(path: Path) -> int:
    """Opens a child's log for appending and returns its descriptor; one above 16 MiB is first moved to `<name>.1`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.stat().st_size > _LOG_BYTES_MAX:
            path.replace(path.with_name(path.name + ".1"))
    except FileNotFoundError:
        pass
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def start(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    log: Path,
    death_signal: signal.Signals = signal.SIGTERM,
    user: int | None = None,
    group: int | None = None,
    pass_fds: Sequence[int] = (),
    working_folder: Path = Path("/"),
) -> subprocess.Popen[bytes]:
    """Starts a child in its own process group with both outputs appended to `log`.

    Must be called from the main thread: the kernel ties the death signal to the *thread* that forked.

    Args:
        command: program and arguments.
        environment: the child's whole environment; nothing is inherited.
        log: file that stdout and stderr are appended to (created with mode 0600).
        death_signal: what the kernel sends the child when this process dies (Linux).
        user: id to run under, if not this process's; all supplementary groups are dropped with it.
        group: id of the group that belongs to `user`.
        pass_fds: descriptors the child inherits under the same numbers.
        working_folder: where it starts; the root unless given, so that it holds no folder it does not need.

    Raises:
        OSError: the program cannot be executed (for that user).
    """
    log_fd = open_log(log)
    try:
        return subprocess.Popen(  # noqa: S603
            [os.fspath(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            env=dict(environment),
            cwd=working_folder,
            process_group=0,
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
            pass_fds=tuple(pass_fds),
            preexec_fn=_death_signal_setter(death_signal),
        )
    finally:
        os.close(log_fd)


def signal_group(process_id: int, signal_number: signal.Signals) -> None:
    """Signals every process of the group that `process_id` leads; a group that is gone is no error."""
    try:
        os.killpg(process_id, signal_number)
    except (ProcessLookupError, PermissionError):
        # macOS answers EPERM for a group that has only zombies left.
        return


def stop(process: subprocess.Popen[bytes], *, with_signal: signal.Signals, grace_seconds: float) -> int:
    """Asks a child to end, waits `grace_seconds`, then ends what is left of its group by force.

    Returns:
        The exit code as `subprocess` gives it (negative: the signal that ended the child).
    """
    if process.poll() is None:
        process.send_signal(with_signal)
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    code = process.wait()
    signal_group(process.pid, signal.SIGKILL)
    return code


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago. Another process may still take it first: callers retry."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_alive(process_id: int) -> bool:
    """True while the process exists and is not merely a zombie that nobody has collected."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # The state is the first field after the command, whose name may itself contain spaces and brackets.
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        # Either no /proc on this system, or the process ended between the two questions.
        return not Path("/proc/self/stat").exists()


def _children(process_id: int) -> list[int]:
    """Ids of the living children of one process; empty where /proc is absent."""
    found: set[int] = set()
    for listed in Path(f"/proc/{process_id}/task").glob("*/children"):
        try:
            found.update(int(word) for word in listed.read_text().split())
        except OSError:
            continue
    return sorted(one for one in found if is_alive(one))


def descendants(process_id: int) -> list[int]:
    """Ids of all living processes below `process_id`, parents before children; empty where /proc is absent."""
    found: list[int] = []
    waiting = _children(process_id)
    while waiting:
        current = waiting.pop(0)
        found.append(current)
        waiting.extend(_children(current))
    return found


def wait_for(condition: Callable[[], bool], *, deadline_seconds: float) -> bool:
    """Polls `condition` every 10 ms until it holds or the deadline has passed; returns whether it held."""
    deadline = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
