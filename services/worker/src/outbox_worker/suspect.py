"""A reservation that may have been sent before a loss becomes a doubt instead of being claimed; recovery takes it from there.

Class A is sent under the provider key that a lost attempt would have had, class B is looked up first, class C waits for a person.
Source: design section 4 (Epoch), ADR 0015.
"""

from uuid import UUID

import structlog

from outbox_runtime.postgres import acquire
from outbox_store import epochs
from outbox_store.epochs import Suspicion
from outbox_worker.contracts import ContractUnreadable
from outbox_worker.epoch import UNREADABLE, times_of
from outbox_worker.worker import Worker

log = structlog.get_logger(__name__)


async def suspect(worker: Worker, organization_id: UUID | None, reservation_id: UUID) -> None:
    """Put one reservation in doubt, if it still is what the claim found it to be.

    Args:
        worker: what this process has.
        organization_id: None where a wake-up named the reservation alone.
        reservation_id: refused by a claim as possibly sent.
    """
    async with acquire(worker.pool) as connection:
        pinned = await epochs.pinned(connection, organization_id, reservation_id)
    if pinned is None:
        return
    times = UNREADABLE
    try:
        times = times_of(await worker.contracts.of(*pinned))
    except ContractUnreadable as error:
        log.error("contract-unreadable", reservation_id=str(reservation_id), tool=pinned[1], reason=str(error))
    suspicion = Suspicion(
        organization_id=pinned[0],
        id=reservation_id,
        settle_seconds=times.settle_seconds,
        recover_seconds=times.recover_seconds,
        late_recover_seconds=times.late_recover_seconds,
    )
    async with acquire(worker.pool) as connection:
        moved = await epochs.suspect(connection, [suspicion], lease_seconds=worker.settings.lease_seconds)
    if moved:
        worker.metrics.suspected.inc()
        log.warning("possibly-sent-before-loss", reservation_id=str(reservation_id), tool=pinned[1])
        await worker.wakeups.announce([reservation_id])
