"""Health of a process: alive while its event loop turns, ready from the checks at start until it drains.

Postgres being away makes neither false: the API stays ready and answers 503 itself, and restarting a process heals no database.
Source: design section 17.
"""

import asyncio
import time
from typing import Literal

Phase = Literal["starting", "ready", "draining"]

BEAT_SECONDS = 1.0
STALL_SECONDS = 15.0


class Health:
    """What the probes of one process are told. Read from other threads, changed by the event loop."""

    def __init__(self, *, stall_seconds: float = STALL_SECONDS) -> None:
        """
        Args:
            stall_seconds: a loop that did not turn for this long counts as stalled.
        """
        self._stall_seconds = stall_seconds
        self._beat = time.monotonic()
        self._phase: Phase = "starting"

    @property
    def alive(self) -> bool:
        """True while the event loop turns."""
        return time.monotonic() - self._beat < self._stall_seconds

    @property
    def ready(self) -> bool:
        """True from `mark_ready` to `mark_draining`."""
        return self._phase == "ready"

    @property
    def phase(self) -> Phase:
        """Where the process is in its life."""
        return self._phase

    def mark_ready(self) -> None:
        """Settings and the schema window were seen, and everything that must answer does. A draining process stays one."""
        if self._phase == "starting":
            self._phase = "ready"

    def mark_draining(self) -> None:
        """From now on no new work is taken."""
        self._phase = "draining"

    async def watch(self) -> None:
        """Beat for ever; run as a task."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)
