"""The sweep: whatever is due is found in Postgres, with or without a wake-up.

A wake-up names a reservation; the sweep finds those whose wake-up was lost, whose time to be sent again has come, whose
lease has lapsed, and those that came while every slot was taken. No more is claimed than can be sent at once: a row that
waits in memory past its time would be a doubt of our own making.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any
from uuid import UUID

import structlog

from outbox_domain.recovery import pace_seconds
from outbox_domain.reservation import State
from outbox_runtime.postgres import NOT_NOW, acquire
from outbox_store.breakers import count_open, trials
from outbox_store.claim import Claim
from outbox_store.doubts import measure
from outbox_store.sweep import Due, due, erase_expired, forget_quiet_objects, postpone_all, take_turns
from outbox_worker.contracts import ContractUnreadable
from outbox_worker.execute import execute
from outbox_worker.recover import lapse_all, leave_to_clients, recover
from outbox_worker.worker import Worker

log = structlog.get_logger(__name__)

BATCH_MAX = 500
"""Due rows that one look takes in."""

WAKE_UP_SECONDS = 0.2
"""How long a wake-up is given to arrive before the sweep takes a reservation up itself."""

SHARE_OF_ONE_CONNECTION = 0.75
"""How much of the slots the sends of one connection may take up: a provider that hangs must leave room for the others."""

RECOVERY_PACE_SECONDS = 0.1
RECOVERIES_AT_ONCE = 10
"""The pace of a connection's recovery where the contract names none: so many doubts at once, the others one after the other."""

TRIAL_SECONDS = 60.0
"""How long a breaker's trial may take before another is chosen: its sending, its lease, and a worker that is gone."""

MEASURE_EVERY_SECONDS = 5.0
ATTENTIONS = ("page", "queue", "none")

ERASE_EVERY_SECONDS = 60.0
ERASE_BATCH = 1000


class Sweep:
    """The slots of one process and what fills them."""

    def __init__(self, worker: Worker) -> None:
        """Nothing is claimed before `run`."""
        self._worker = worker
        self._running: dict[UUID, asyncio.Task[None]] = {}
        self._connections: dict[UUID, UUID] = {}
        self._share = max(1, int(worker.settings.worker_slots * SHARE_OF_ONE_CONNECTION))
        self._kick = asyncio.Event()
        self._turned_away = False
        self._draining = False
        worker.epoch.when_verified(self._kick.set)

    @property
    def free_slots(self) -> int:
        """How many sends may start now."""
        return 0 if self._draining else self._worker.settings.worker_slots - len(self._running)

    @property
    def accepting(self) -> bool:
        """Whether a wake-up is of use here. It does not say whose connection it is about, so the last slots are the sweep's."""
        return not self._draining and self._worker.epoch.instance is not None and len(self._running) < self._share

    async def ring(self, reservation_ids: Sequence[UUID]) -> None:
        """Take up reservations that a wake-up named; those that come while it is not accepting are found by the sweep.

        No name at all says that wake-ups may have been missed: the sweep looks at once.
        """
        if not reservation_ids:
            self._kick.set()
        for id in reservation_ids:
            if not self.accepting:
                self._turned_away = True
                return
            self._start(id, self._first(None, id))

    async def run(self, stop: asyncio.Event) -> None:
        """Look for what is due until `stop`, then let what was sent come to an end.

        Args:
            stop: set when the process is asked to end; from then on nothing is claimed.
        """
        erase_at = measure_at = 0.0
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            try:
                await self._look()
                if loop.time() >= measure_at:
                    measure_at = loop.time() + MEASURE_EVERY_SECONDS
                    await self._measure()
                if loop.time() >= erase_at:
                    erase_at = loop.time() + ERASE_EVERY_SECONDS
                    await self._erase()
            except NOT_NOW as error:
                log.warning("sweep-unanswered", error=type(error).__name__)
            except Exception:
                # One row that nobody foresaw must not end the sends of all others; wake-ups go on, and the next look may do.
                log.exception("sweep-broke-off")
            await self._pause(stop)
        await self._drain()

    async def _look(self) -> None:
        if self._worker.epoch.instance is None:
            return  # Nobody has asked yet whether this ledger is the one that we know; its answer kicks the next look.
        sends = Counter(self._connections.values())
        busy = [id for id, count in sends.items() if count >= self._share]
        async with acquire(self._worker.pool) as connection:
            for trial in await trials(connection, trial_seconds=TRIAL_SECONDS):
                log.info("breaker-trial", connection_id=str(trial.connection_id), reservation_id=str(trial.reservation_id))
            found = await due(connection, overdue_seconds=0.0, limit=BATCH_MAX, busy_connections=busy)
        await lapse_all(self._worker, [row for row in found if row.lapsed])
        if clients := [row for row in found if row.executor == "client" and not row.lapsed]:
            await leave_to_clients(self._worker, clients)
        for row in await self._paced(found, self._within_slots(found, sends)):
            if self.free_slots <= 0:  # Wake-ups have come meanwhile.
                self._turned_away = True
                return
            work = self._recover(row) if row.state is State.IN_DOUBT else self._first(row.organization_id, row.reservation_id)
            if self._start(row.reservation_id, work):
                self._connections[row.reservation_id] = row.connection_id

    def _within_slots(self, rows: list[Due], sends: Counter[UUID]) -> list[Due]:
        """What there are slots for, in the order in which it is due."""
        chosen: list[Due] = []
        for row in rows:
            if row.lapsed or row.executor == "client" or row.state not in (State.RESERVED, State.IN_DOUBT):
                continue
            if row.reservation_id in self._running or (row.state is State.RESERVED and row.overdue_seconds < WAKE_UP_SECONDS):
                continue
            if len(chosen) >= self.free_slots:
                self._turned_away = True
                break
            if sends[row.connection_id] >= self._share:
                self._turned_away = True
                continue
            sends[row.connection_id] += 1
            chosen.append(row)
        return chosen

    async def _paced(self, rows: list[Due], chosen: list[Due]) -> list[Due]:
        """Of what there are slots for, what is not beyond the pace of its connection; doubts beyond it get a later time each.

        A turn is asked for with a slot in hand: without one it would be lost to the workers that have one, and its doubt would
        lose its place among what is due.
        """
        slots = {row.reservation_id for row in chosen}
        paced: dict[tuple[UUID, UUID, float, int], list[Due]] = {}
        for row in rows:
            # What is under way here has left the order; another time for it would take it out of its own hands.
            if row.state is not State.IN_DOUBT or row.executor != "gateway" or row.trial or row.reservation_id in self._running:
                continue
            paced.setdefault((row.organization_id, row.connection_id, *await self._pace_of(row)), []).append(row)
        later: list[tuple[UUID, UUID, float]] = []
        for (organization_id, connection_id, pace, at_once), doubts in paced.items():
            wanted = sum(row.reservation_id in slots for row in doubts)
            if wanted == 0:
                continue
            async with acquire(self._worker.pool) as connection:
                taken, wait_seconds = await take_turns(
                    connection, organization_id, connection_id, pace_seconds=pace, at_once=at_once, wanted=wanted
                )
            if taken < wanted:
                later += [
                    (organization_id, row.reservation_id, wait_seconds + place * pace) for place, row in enumerate(doubts[taken:])
                ]
        if later:
            async with acquire(self._worker.pool) as connection:
                await postpone_all(connection, later)
            log.info("recovery-paced", postponed=len(later))
            self._kick.set()  # Their slots are for what comes after them.
        not_now = {id for _, id, _ in later}
        return [row for row in chosen if row.reservation_id not in not_now]

    async def _pace_of(self, row: Due) -> tuple[float, int]:
        """Seconds between two doubts of a connection, as its contract says or by default, and how many may come at once."""
        with contextlib.suppress(ContractUnreadable):
            contract = await self._worker.contracts.of(row.organization_id, row.tool, row.contract_version)
            if pace := pace_seconds(contract, row.recovery_step):
                return pace, 1
        return RECOVERY_PACE_SECONDS, RECOVERIES_AT_ONCE

    async def _first(self, organization_id: UUID | None, reservation_id: UUID) -> None:
        worker = self._worker
        await execute(
            worker,
            Claim(
                organization_id=organization_id,
                reservation_id=reservation_id,
                attempt_id=worker.new_id(),
                worker=worker.name,
                lease_seconds=worker.settings.lease_seconds,
            ),
            on_claimed=lambda attempt: self._connections.update({attempt.reservation_id: attempt.connection_id}),
        )

    async def _recover(self, row: Due) -> None:
        await recover(self._worker, row)

    def _start(self, id: UUID, work: Coroutine[Any, Any, None]) -> bool:
        if id in self._running:
            work.close()  # It is under way in this very process; two hints are one.
            return False
        self._running[id] = task = asyncio.create_task(work)
        task.add_done_callback(lambda done: self._ended(id, done))
        return True

    def _ended(self, id: UUID, task: asyncio.Task[None]) -> None:
        self._running.pop(id, None)
        self._connections.pop(id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The lease lapses and recovery takes over; nothing here may decide what became of the effect.
            log.error("attempt-broke-off", reservation_id=str(id), error=type(error).__name__, exc_info=error)
        if self._turned_away:
            self._turned_away = False
            self._kick.set()

    async def _pause(self, stop: asyncio.Event) -> None:
        """Until the next look: some time, spread so that workers do not look all at once, or until a slot is free again."""
        seconds = self._worker.settings.sweep_seconds * random.SystemRandom().uniform(0.8, 1.2)
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(self._kick.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            self._kick.clear()

    async def _drain(self) -> None:
        """Sends in flight are given their time; what must be cut is settled as unknown."""
        self._draining = True
        tasks = list(self._running.values())
        if not tasks:
            return
        log.info("draining", in_flight=len(tasks))
        _, pending = await asyncio.wait(tasks, timeout=self._worker.settings.drain_seconds)
        for task in pending:
            task.cancel()
        if pending:
            log.warning("cut-off", count=len(pending))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._worker.settings.send_by_seconds):
                    await asyncio.gather(*pending, return_exceptions=True)

    async def _measure(self) -> None:
        """What alerts are made of: it is in Postgres, so that a restart of a worker does not hide it."""
        metrics = self._worker.metrics
        async with acquire(self._worker.pool) as connection:
            found = await measure(connection)
            metrics.breakers_open.set(await count_open(connection))
        for attention in ATTENTIONS:
            episodes, waiting = found.get(attention, (0, 0))
            metrics.doubt_episodes.labels(attention=attention).set(episodes)
            metrics.doubts_waiting.labels(attention=attention).set(waiting)

    async def _erase(self) -> None:
        async with acquire(self._worker.pool) as connection:
            erased = await erase_expired(connection, limit=ERASE_BATCH)
            await forget_quiet_objects(connection, limit=ERASE_BATCH)
        if erased:
            log.info("expired-texts-erased", count=erased)
