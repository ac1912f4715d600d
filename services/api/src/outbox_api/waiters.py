"""Callers who wait for reservations of this process, woken by notices and, should one be lost, by looking with back-off.

All who wait for one reservation share its readings: two hundred callers of one effect cost one query.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from outbox_domain.reservation import State
from outbox_runtime.postgres import NOT_NOW, Pool, acquire
from outbox_store import reservations
from outbox_store.reservations import ReservationView

log = structlog.stdlib.get_logger("outbox.api.waiters")

LOOK_FIRST_SECONDS = 0.1
"""When a reservation is first looked at without a notice; then the pause doubles."""

LOOK_SECONDS_MAX = 2.0
READING_AGE_SECONDS_MAX = 0.02
"""How old a reading may be that several callers share."""

TICK_SECONDS = 0.05
LOOKED_AT_ONCE_MAX = 1_000

LET_GO = frozenset({State.RESERVED, State.IN_DOUBT})
"""Where the next caller may take up what a client carries out."""

RUNNING = frozenset({State.RESERVED, State.EXECUTING, State.AWAITING_REVIEW})


@dataclass(eq=False)
class Watch:
    """One reservation that somebody here waits for."""

    organization_id: UUID
    reservation_id: UUID
    callers: int = 0
    news: int = 0
    noticed: asyncio.Event = field(default_factory=asyncio.Event)
    reading: "asyncio.Task[ReservationView | None] | None" = None
    reading_of: int = -1
    reading_began: float = 0.0
    look_at: float = 0.0
    pause: float = LOOK_FIRST_SECONDS


class Waiters:
    """The reservations that callers of this process wait for."""

    def __init__(self, pool: Pool, *, callers_max: int) -> None:
        """Reads from `pool`; beyond `callers_max` nobody waits."""
        self._pool = pool
        self._callers_max = callers_max
        self._watches: dict[UUID, Watch] = {}
        self._some = asyncio.Event()
        self.callers = 0
        """How many callers wait."""
        self.draining = False
        """True once the process is to end: whoever waits is answered now."""

    @property
    def full(self) -> bool:
        """Whether as many wait as may: one agent's patience must not take up every connection of the process."""
        return self.callers >= self._callers_max

    @contextlib.contextmanager
    def watching(self, organization_id: UUID, reservation_id: UUID) -> Iterator[Watch]:
        """Hear of a reservation from now on, until the block ends."""
        watch = self._watches.get(reservation_id)
        if watch is None:
            watch = Watch(
                organization_id=organization_id,
                reservation_id=reservation_id,
                look_at=time.monotonic() + LOOK_FIRST_SECONDS,
            )
            self._watches[reservation_id] = watch
            self._some.set()
        watch.callers += 1
        self.callers += 1
        try:
            yield watch
        finally:
            watch.callers -= 1
            self.callers -= 1
            if watch.callers == 0:
                self._watches.pop(reservation_id, None)

    async def read(self, watch: Watch) -> ReservationView | None:
        """How the reservation stands, read after the latest notice; None where its row is gone.

        Raises:
            one of `AWAY`: Postgres is away.
        """
        now = time.monotonic()
        # A reading that began before the latest notice may have missed what the notice is about, and a notice may be lost.
        old = watch.reading_of != watch.news or now - watch.reading_began > READING_AGE_SECONDS_MAX
        if watch.reading is None or old:
            watch.reading = asyncio.create_task(self._view(watch))
            watch.reading_of, watch.reading_began = watch.news, now
            watch.reading.add_done_callback(_retrieve)
        # Shielded: a caller who gives up must not take the reading away from the others.
        return await asyncio.shield(watch.reading)

    async def news(self, watch: Watch, *, after: int, until: float) -> None:
        """Wait for news beyond the `after`-th, until a time of the monotonic clock at most."""
        while watch.news == after and not self.draining:
            remaining = until - time.monotonic()
            if remaining <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await watch.noticed.wait()

    def tell(self, reservation_ids: Sequence[UUID]) -> None:
        """These reservations changed; none named: notices may have been missed, so look at all soon."""
        for reservation_id in reservation_ids:
            watch = self._watches.get(reservation_id)
            if watch is not None:
                self._tell(watch)
        if not reservation_ids:
            now = time.monotonic()
            for watch in self._watches.values():
                watch.look_at = now

    def drain(self) -> None:
        """Let everybody who waits be answered with what is known."""
        self.draining = True
        for watch in self._watches.values():
            self._tell(watch)

    async def look_without_notices(self, stop: asyncio.Event) -> None:
        """The safety net under the notices: look at what is watched, with back-off, until `stop` is set."""
        while not stop.is_set():
            if not self._watches:
                self._some.clear()
                await _either(self._some, stop)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await stop.wait()
            now = time.monotonic()
            due = [watch for watch in self._watches.values() if watch.look_at <= now][:LOOKED_AT_ONCE_MAX]
            if due:
                await self._look(due)

    async def _look(self, due: list[Watch]) -> None:
        for watch in due:
            watch.look_at = time.monotonic() + watch.pause
            watch.pause = min(watch.pause * 2, LOOK_SECONDS_MAX)
        try:
            async with acquire(self._pool) as connection:
                found = await reservations.states(connection, [(watch.organization_id, watch.reservation_id) for watch in due])
        except NOT_NOW as error:
            log.info("waiters-not-looked", error=type(error).__name__, watched=len(due))
            return
        for watch in due:
            state, recovery_due, executor = found.get(watch.reservation_id, (None, False, ""))
            # What a client let go of may be taken up by who waits for it.
            if state is None or not keeps_waiting(state, recovery_due) or (executor == "client" and state in LET_GO):
                self._tell(watch)

    async def _view(self, watch: Watch) -> ReservationView | None:
        async with acquire(self._pool) as connection:
            return await reservations.view(connection, watch.organization_id, watch.reservation_id)

    def _tell(self, watch: Watch) -> None:
        watch.news += 1
        # Whoever waits on this event is woken; whoever comes later waits on a new one.
        watch.noticed.set()
        watch.noticed = asyncio.Event()


def keeps_waiting(state: State, recovery_due: bool) -> bool:
    """Whether a caller waits on: while it runs, and through a doubt as long as automatic recovery is due."""
    return state in RUNNING or (state is State.IN_DOUBT and recovery_due)


def _retrieve(task: "asyncio.Task[ReservationView | None]") -> None:
    """Mark a failed reading as seen: everybody who waited for it may have given up."""
    if not task.cancelled():
        task.exception()


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    tasks = [asyncio.create_task(first.wait()), asyncio.create_task(second.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
