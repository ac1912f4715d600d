"""Is this still the ledger that we know? Asked at the start, every few seconds, and whenever Postgres is another process.

Until it is answered nothing is claimed and nothing is recovered: the claim itself compares the running Postgres with the one that
was asked about, so that no failover slips in between. Where the ledger has lost its tail, this declares the new epoch.
Source: design section 4 (Epoch), ADR 0015.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from outbox_domain.contract import ToolContract
from outbox_domain.epoch import Mark, Witness, loss
from outbox_domain.recovery import Doubt, recover_in_seconds, settle_seconds
from outbox_runtime.marks import Marks
from outbox_runtime.metrics import Metrics
from outbox_runtime.postgres import NOT_NOW, Pool, acquire, transaction
from outbox_runtime.settings import WorkerSettings
from outbox_store import epochs
from outbox_store.claim import Claimed
from outbox_store.epochs import ContractKey, Instance, Look, Raised, Times
from outbox_worker.contracts import UNREADABLE_SECONDS, UNREADABLE_SETTLE_SECONDS, Contracts, ContractUnreadable

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 0.2
"""How soon an unanswered look is repeated while nothing may be claimed."""

ROUNDS_MAX = 5
"""Looks in one check: after a raise, and after a failover between a look and its beat, another one is due at once."""

UNREADABLE = Times(
    settle_seconds=UNREADABLE_SETTLE_SECONDS, recover_seconds=UNREADABLE_SECONDS, late_recover_seconds=UNREADABLE_SECONDS
)


def times_of(contract: ToolContract) -> Times:
    """When what may have been sent before a loss is recovered, and from when its absence counts."""
    doubt = Doubt(resends=0, stored_failure=False, late_write=False, unreachable=True)
    return Times(
        settle_seconds=settle_seconds(contract),
        recover_seconds=recover_in_seconds(contract, doubt),
        late_recover_seconds=recover_in_seconds(contract, replace(doubt, late_write=True)),
    )


class EpochWatch:
    """What this process knows of the Postgres it talks to.

    Attributes:
        instance: the Postgres that was compared with the marks, and the epoch in it; None: nothing may be claimed.
    """

    def __init__(
        self, *, pool: Pool, marks: Marks, contracts: Contracts, settings: WorkerSettings, metrics: Metrics, name: str
    ) -> None:
        """Nothing is known before `run`."""
        self._pool = pool
        self._marks = marks
        self._contracts = contracts
        self._settings = settings
        self._metrics = metrics
        self._name = name
        self._asked = asyncio.Event()
        self._on_verified: Callable[[], None] = lambda: None
        self.instance: Instance | None = None

    def when_verified(self, callback: Callable[[], None]) -> None:
        """Have `callback` called whenever claims are allowed that were not."""
        self._on_verified = callback

    def claimed(self, attempt: Claimed) -> None:
        """Remember an attempt whose claim was answered, before anything of it is sent."""
        witness = Witness(organization_id=attempt.organization_id, attempt_id=attempt.attempt_id)
        self._marks.saw(witness, epoch=attempt.epoch)

    def ask(self, doubted: Instance | None) -> None:
        """Look again at once: the Postgres that answered is not the one that was compared, or the ledger misses what we know.

        Args:
            doubted: what was believed when that was noticed; another check may have been made since.
        """
        if self.instance == doubted:
            self.instance = None
        self._asked.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Look again and again until `stop`; Postgres going away never ends it."""
        while not stop.is_set():
            self._asked.clear()
            try:
                await self.check()
            except NOT_NOW as error:
                log.warning("epoch-unanswered", error=type(error).__name__)
            except Exception:
                # Nothing is claimed until a later look succeeds.
                self.instance = None
                log.exception("epoch-check-broke-off")
            await self._pause(stop)

    async def check(self) -> None:
        """Compare the ledger with the marks once, raise the epoch where it has lost its tail, and mark how far it is.

        Raises:
            one of `NOT_NOW`: Postgres did not answer; what was known before is still believed, because every claim compares.
        """
        for _ in range(ROUNDS_MAX):
            # In this order: what is marked was committed before, so a ledger read afterwards has it.
            marks = await self._marks.read()
            async with acquire(self._pool) as connection:
                found = await epochs.look(connection, marks)
            if loss(found.standing, marks, found.missing) is not None:
                self.instance = None
                await self._raise(marks)
                continue
            async with acquire(self._pool) as connection:
                beat = await epochs.beat(connection, found.instance)
            if beat is None:
                self.instance = None
                continue
            await self._marks.write(
                Mark(
                    installation_id=found.standing.installation_id,
                    epoch=found.instance.epoch,
                    beat=beat.number,
                    # Rounded up: what happened after the mark must not seem to have happened before it.
                    at_ms=int(beat.at.timestamp() * 1000) + 1,
                    witness=None,
                )
            )
            self._believe(found)
            return
        raise TimeoutError("the ledger or its server changed at every look")

    def _believe(self, found: Look) -> None:
        self._metrics.epoch.set(found.instance.epoch)
        self._metrics.epoch_possibly_lost.set(found.possibly_lost)
        if self.instance == found.instance:
            return
        log.info("ledger-known", epoch=found.instance.epoch, timeline=found.instance.timeline)
        self.instance = found.instance
        self._on_verified()

    async def _raise(self, marks: list[Mark]) -> Raised | None:
        async with acquire(self._pool) as connection:
            keys = await epochs.open_contracts(connection)
        times: dict[ContractKey, Times] = {}
        for key in keys:
            try:
                times[key] = times_of(await self._contracts.of(*key))
            except ContractUnreadable as error:
                log.error("contract-unreadable", tool=key[1], reason=str(error))
        async with transaction(self._pool) as tx:
            raised = await epochs.raise_epoch(
                tx,
                marks,
                times=times,
                unreadable=UNREADABLE,
                lease_seconds=self._settings.lease_seconds,
                possibly_lost_seconds=self._settings.possibly_lost_seconds,
                by=f"worker:{self._name}",
            )
        if raised is not None:
            self._metrics.epochs_raised.inc()
            log.critical(
                "epoch-raised",
                epoch=raised.number,
                cause=raised.cause,
                lost_since=raised.lost_since.isoformat(),
                possibly_lost_until=raised.possibly_lost_until.isoformat(),
                in_doubt=raised.suspected,
            )
        return raised

    async def _pause(self, stop: asyncio.Event) -> None:
        seconds = AGAIN_SECONDS if self.instance is None else self._settings.epoch_check_seconds
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(self._asked.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
