"""What to do about a doubt, and how an attempt whose lease has lapsed becomes one.

A doubt is led through the contract's list of ways, each with its bounds: sent again with the same provider key (class A, inside
the provider's window and through the whole gate of T2), looked up, and in the end left to a person. Time alone ends nothing.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal
from uuid import UUID

import structlog

from outbox_domain.contract import LookupRule, ResendRule, ToolContract
from outbox_domain.recovery import Doubt, left_to_clients_seconds, next_way, recover_in_seconds, settle_seconds
from outbox_domain.reservation import State
from outbox_runtime.postgres import acquire
from outbox_store.claim import Claim, Claimed, NotClaimed
from outbox_store.epochs import Suspicion, suspect
from outbox_store.sweep import Due, Lapse, lapse, leave_to_a_person, postpone, postpone_all
from outbox_store.withdraw import withdraw
from outbox_worker import breaker
from outbox_worker.contracts import UNREADABLE_SECONDS, UNREADABLE_SETTLE_SECONDS, ContractUnreadable
from outbox_worker.execute import execute
from outbox_worker.look_up import look_up
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
        late: float | None = UNREADABLE_SECONDS
        try:
            contract = await worker.contracts.of(row.organization_id, row.tool, row.contract_version)
        except ContractUnreadable as error:
            log.error("contract-unreadable", reservation_id=str(row.reservation_id), tool=row.tool, reason=str(error))
        else:
            settle = settle_seconds(contract)
            if row.executor == "client":
                again = late = await _left_to_clients(worker, row)
            else:
                doubt = Doubt(resends=row.resends, stored_failure=False, late_write=False, unreachable=True)
                again = recover_in_seconds(contract, doubt)
                late = recover_in_seconds(contract, replace(doubt, late_write=True))
        lapses.append(
            Lapse(
                organization_id=row.organization_id,
                reservation_id=row.reservation_id,
                attempt_id=row.attempt_id,
                settle_seconds=settle,
                recover_seconds=again,
                late_recover_seconds=late,
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


async def leave_to_clients(worker: Worker, rows: Sequence[Due]) -> None:
    """Keep the time of client-executed effects: withdraw what is reserved and late, leave to a person what no caller may end.

    What an older epoch has left reserved is withdrawn by nobody: it may have been carried out in what was lost, so it is a doubt.

    Args:
        worker: what this process has.
        rows: due rows of clients whose attempts have not lapsed.
    """
    of_now, of_before = await _by_epoch(worker, [row for row in rows if row.state is State.RESERVED])
    doubts = [(row, await _left_to_clients(worker, row)) for row in rows if row.state is State.IN_DOUBT]
    changed: list[UUID] = []
    async with acquire(worker.pool) as connection:
        if of_now:
            rows_now = [(row.organization_id, row.reservation_id) for row in of_now]
            changed += await withdraw(connection, rows_now, reason="not-sent-in-time", late_only=True, actor_chain=None)
        if early := [row for row in of_now if row.not_after_seconds > 0]:
            # Its caller comes for it, or nobody does; looked at again and again in vain, many would take the places of others.
            await postpone_all(connection, [(row.organization_id, row.reservation_id, row.not_after_seconds) for row in early])
        if of_before:
            changed += await suspect(connection, of_before, lease_seconds=worker.settings.lease_seconds)
        for row, seconds in doubts:
            if seconds is not None:
                await postpone(connection, row.organization_id, row.reservation_id, seconds=seconds)
            elif await leave_to_a_person(connection, row.organization_id, row.reservation_id, attempt_id=row.last_attempt_id):
                changed.append(row.reservation_id)
    if changed:
        log.info("clients-too-late", count=len(changed), reservation_ids=[str(id) for id in changed[:20]])
        await worker.wakeups.announce(changed)


async def _by_epoch(worker: Worker, rows: Sequence[Due]) -> tuple[list[Due], list[Suspicion]]:
    """What is reserved in the newest epoch that this worker knows, and what an older one has left."""
    instance = worker.epoch.instance
    newest = 0 if instance is None else instance.epoch
    of_now = [row for row in rows if row.epoch >= newest]
    of_before = []
    for row in rows:
        if row.epoch >= newest:
            continue
        settle = UNREADABLE_SETTLE_SECONDS
        with contextlib.suppress(ContractUnreadable):
            settle = settle_seconds(await worker.contracts.of(row.organization_id, row.tool, row.contract_version))
        left = await _left_to_clients(worker, row)
        of_before.append(
            Suspicion(
                organization_id=row.organization_id,
                id=row.reservation_id,
                settle_seconds=settle,
                recover_seconds=left,
                late_recover_seconds=left,
            )
        )
    return of_now, of_before


async def _left_to_clients(worker: Worker, row: Due) -> float | None:
    """How long the next caller may end a doubt; None where only a person can."""
    try:
        contract = await worker.contracts.of(row.organization_id, row.tool, row.contract_version)
    except ContractUnreadable as error:
        log.error("contract-unreadable", reservation_id=str(row.reservation_id), tool=row.tool, reason=str(error))
        return UNREADABLE_SECONDS
    return left_to_clients_seconds(
        contract, sent_seconds_ago=row.possible_send_seconds_ago, not_after_seconds=row.not_after_seconds
    )


async def recover(worker: Worker, row: Due) -> Literal["resent", "looked-up", "left"]:
    """Take the next step out of a doubt.

    Args:
        worker: what this process has.
        row: a reservation in doubt whose recovery is due.

    Returns:
        `resent` when an attempt was made, `looked-up` when the provider was asked, `left` when nothing was done now, or nothing
        automatic is left to try.
    """
    try:
        contract = await worker.contracts.of(row.organization_id, row.tool, row.contract_version)
    except ContractUnreadable as error:
        log.error("contract-unreadable", reservation_id=str(row.reservation_id), tool=row.tool, reason=str(error))
        async with acquire(worker.pool) as connection:
            await postpone(connection, row.organization_id, row.reservation_id, seconds=UNREADABLE_SECONDS)
        return "left"
    doubt = Doubt(
        step=row.recovery_step,
        resends=row.resends,
        stored_failure=row.stored_failure,
        late_write=row.late_write,
        unreachable=row.last_status is None or row.last_status >= 500,
        conflicted=row.conflicted,
        age_seconds=row.doubt_seconds or 0.0,
        sent_seconds_ago=row.sent_seconds_ago,
    )
    while (way := next_way(contract, doubt)) is not None:
        step, rule = way
        if isinstance(rule, LookupRule):
            await look_up(worker, contract, rule, row, step=step)
            return "looked-up"
        if not isinstance(rule, ResendRule):
            break
        verdict = await _send_again(worker, contract, rule, row)
        if isinstance(verdict, Claimed):
            return "resent"
        if verdict is not None and verdict.reason == "held":
            return await _meanwhile(worker, contract, row)
        if verdict is None or verdict.reason != "no-resend":
            return "left"
        doubt = replace(doubt, step=step + 1)
    await _leave(worker, contract, row)
    return "left"


async def _send_again(worker: Worker, contract: ToolContract, rule: ResendRule, row: Due) -> Claimed | NotClaimed | None:
    return await execute(
        worker,
        Claim(
            organization_id=row.organization_id,
            reservation_id=row.reservation_id,
            attempt_id=worker.new_id(),
            worker=worker.name,
            lease_seconds=worker.settings.lease_seconds,
            resend_window_seconds=rule.within.total_seconds(),
            resend_needs_seconds=(contract.request.deadline + rule.margin).total_seconds(),
            # Beyond the bound only where `next_way` grants one more: the last one met no provider.
            resends_max=max(rule.times, row.resends + 1),
        ),
    )


async def _meanwhile(worker: Worker, contract: ToolContract, row: Due) -> Literal["looked-up", "left"]:
    """The breaker is open: resends wait, look-ups go on."""
    if contract.lookup is not None and not contract.lookup.cancels:
        await look_up(worker, contract, contract.lookup, row, step=row.recovery_step)
        return "looked-up"
    async with acquire(worker.pool) as connection:
        await breaker.hold(connection, row.organization_id, row.reservation_id, resend=True)
    return "left"


async def _leave(worker: Worker, contract: ToolContract, row: Due) -> None:
    """Automatic recovery has nothing left; the doubt stays until proof or a person ends it."""
    async with acquire(worker.pool) as connection:
        await leave_to_a_person(
            connection, row.organization_id, row.reservation_id, attempt_id=row.last_attempt_id, step=len(contract.recovery)
        )
    log.warning("person-asked", reservation_id=str(row.reservation_id), tool=row.tool)
    await worker.wakeups.announce([row.reservation_id])
