"""`python -m outbox_standalone.watchdog`: ends what `outbox up` started, should `outbox up` itself be killed.

It reads lines from standard input, the read end of a pipe whose only writer is `outbox up`:

* `+ PID STAGE`: a child, leader of its process group, was started; stage 0 are the services, stage 1 what they
  use: the stores and the sandbox provider;
* `- PID`: it has ended and was collected;
* `.`: everything was stopped in order, there is nothing left to do.

The end of the pipe without `.` means that the writer is gone. Then the services are asked to end (SIGTERM), afterwards what
they use (SIGINT, which Postgres calls a fast stop); who does not end in time is ended by force, with its whole group.
"""

import contextlib
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TextIO

from outbox_standalone import child

SERVICES, USED = 0, 1
_GRACE_SECONDS = {SERVICES: 3.0, USED: 8.0}
_IMMEDIATE_STOP_SECONDS = 2.0
_STOP_SIGNAL = {SERVICES: signal.SIGTERM, USED: signal.SIGINT}


@dataclass(kw_only=True)
class _Watched:
    """A child and, on Linux, a descriptor that names this very process even after its id was given to another."""

    process_id: int
    stage: int
    descriptor: int | None = field(default=None)

    def open(self) -> None:
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                self.descriptor = os.pidfd_open(self.process_id)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform.startswith("linux") and self.descriptor is not None:
                signal.pidfd_send_signal(self.descriptor, number)
            elif not sys.platform.startswith("linux"):
                os.kill(self.process_id, number)


def watch(lines: TextIO) -> dict[int, _Watched] | None:
    """Follows the lines until the pipe ends; returns the children that are left, or None when all is in order."""
    watched: dict[int, _Watched] = {}
    for line in lines:
        words = line.split()
        if words[0] == ".":
            return None
        process_id = int(words[1])
        if words[0] == "+":
            watched[process_id] = _Watched(process_id=process_id, stage=int(words[2]))
            watched[process_id].open()
        elif process_id in watched:
            watched.pop(process_id).close()
    return watched


def end_all(watched: dict[int, _Watched]) -> None:
    """Ends the children stage by stage."""
    for stage in (SERVICES, USED):
        members = [entry for entry in watched.values() if entry.stage == stage]
        below = {process_id for entry in members for process_id in child.descendants(entry.process_id)}
        for entry in members:
            entry.send(_STOP_SIGNAL[stage])
            # A stopped process would not see the request.
            entry.send(signal.SIGCONT)
        everyone = {entry.process_id for entry in members} | below
        _wait_until_gone(everyone, _GRACE_SECONDS[stage])
        if stage == USED:
            for entry in members:
                # Postgres: an immediate stop, which ends its children too; they lead groups of their own.
                entry.send(signal.SIGQUIT)
            _wait_until_gone({entry.process_id for entry in members}, _IMMEDIATE_STOP_SECONDS)
        for entry in members:
            child.signal_group(entry.process_id, signal.SIGKILL)


def _wait_until_gone(process_ids: set[int], seconds: float) -> None:
    child.wait_for(lambda: not any(child.is_alive(one) for one in process_ids), deadline_seconds=seconds)


def main() -> None:
    """Watches until the pipe ends. Signals meant for `outbox up` are ignored: it is the one to act on them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    left = watch(sys.stdin)
    if left is not None:
        end_all(left)


if __name__ == "__main__":
    main()
