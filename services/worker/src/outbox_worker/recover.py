"""What to do about a doubt, and how an attempt whose lease has lapsed becomes one.

Class A sends again with the same provider key, inside the provider's window and through the whole gate of T2. What
resending cannot end stays in doubt: it is never decided by time.
"""

from collections.abc import Sequence
from typing import Literal

import structlog

from outbox_domain.recovery import RESEND_MARGIN_SECONDS, resend_in_seconds, settle_seconds
from outbox_runtime.postgres import acquire
from outbox_store.claim import Claim, NotClaimed
from outbox_store.sweep import Due, Lapse, lapse, leave_to_a_person, postpone
from outbox_worker.contracts import UNREADABLE_SECONDS, UNREADABLE_SETTLE_SECONDS, ContractUnreadable
from outbox_worker.execute import execute
from outbox_worker.worker import Worker

log = structlog.get_logger(__name__)


async def lapse_all(worker: Worker, rows: Sequence[Due]) -> None:
    """Close attempts whose lease is over as unknown; their reservations are in doubt from then on.

    Args:
        worker: what this process has.
        rows: due rows whose attempt has lapsed.
    """
    lapses = []
    for row in rows:
        if row.attempt_id is None:
            continue
        # A lease lapses whether or not its contract can be read here; one that cannot must not keep the others from lapsing.
        settle = UNREADABLE_SETTLE_SECONDS
        again: float | None = UNREADABLE_SECONDS
        try:
            contract = await worker.contracts.of(row.organization_id, row.tool, row.contract_version)
        except ContractUnreadable as error:
            log.error("contract-unreadable", reservation_id=str(row.reservation_id), tool=row.tool, reason=str(error))
        else:
            settle = settle_seconds(contract)
            again = resend_in_seconds(contract, resends=row.resends, stored_failure=False, late_write=False)
        lapses.append(
            Lapse(
                organization_id=row.organization_id,
                reservation_id=row.reservation_id,
                attempt_id=row.attempt_id,
                settle_seconds=settle,
                recover_seconds=again,
            )
        )
    if not lapses:
        return
    async with acquire(worker.pool) as connection:
        moved = await lapse(connection, lapses)
    if moved:
        log.warning("leases-lapsed", count=len(moved), reservation_ids=[str(id) for id in moved[:20]])
        worker.metrics.lapsed.inc(len(moved))
        await worker.wakeups.announce(moved)


async def recover(worker: Worker, row: Due) -> Literal["resent", "left"]:
    """Take the next step out of a doubt.

    Args:
        worker: what this process has.
        row: a reservation in doubt whose recovery is due.

    Returns:
        `resent` when an attempt was made, `left` when nothing automatic is left to try now.
    """
    try:
        contract = await worker.contracts.of(row.organization_id, row.tool, row.contract_version)
    except ContractUnreadable as error:
        log.error("contract-unreadable", reservation_id=str(row.reservation_id), tool=row.tool, reason=str(error))
        async with acquire(worker.pool) as connection:
            await postpone(connection, row.organization_id, row.reservation_id, seconds=UNREADABLE_SECONDS)
        return "left"
    rule = contract.resend
    if rule is None or contract.guarantee_class != "A":
        await _leave(worker, row)
        return "left"
    verdict = await execute(
        worker,
        Claim(
            organization_id=row.organization_id,
            reservation_id=row.reservation_id,
            attempt_id=worker.new_id(),
            worker=worker.name,
            lease_seconds=worker.settings.lease_seconds,
            resend_window_seconds=rule.within.total_seconds(),
            resend_needs_seconds=contract.request.deadline.total_seconds() + RESEND_MARGIN_SECONDS,
            resends_max=rule.times,
        ),
    )
    if isinstance(verdict, NotClaimed):
        if verdict.reason == "no-resend":
            await _leave(worker, row)
        return "left"
    return "resent"


async def _leave(worker: Worker, row: Due) -> None:
    """Automatic recovery has nothing left; the doubt stays until proof or a person ends it."""
    async with acquire(worker.pool) as connection:
        await leave_to_a_person(connection, row.organization_id, row.reservation_id)
    log.warning("doubt-stays", reservation_id=str(row.reservation_id), tool=row.tool)
    await worker.wakeups.announce([row.reservation_id])
