"""One attempt: claim the reservation (T2), send its request once, settle what came of it (T3).

The order is the promise. Nothing is sent before T2 has committed; no transaction is open while the provider is awaited;
whatever is not provably something else is unknown. Source: design sections 4 and 6.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import structlog
from opentelemetry import trace

from outbox_domain.contract import ToolContract
from outbox_domain.reservation import Outcome
from outbox_providers.driver import build_request, read_answer
from outbox_providers.wire import Reading, WireRequest
from outbox_runtime.postgres import NOT_NOW, acquire
from outbox_runtime.telemetry import context_of, traceparent_of
from outbox_store.batches import Failed
from outbox_store.claim import Claim, Claimed, NotClaimed, claim, plant, renew
from outbox_store.sweep import postpone
from outbox_worker import breaker
from outbox_worker.contracts import ContractUnreadable
from outbox_worker.settle import Came, settle
from outbox_worker.suspect import suspect
from outbox_worker.transport import Egress, Sent
from outbox_worker.worker import Worker

log = structlog.get_logger(__name__)

PARKED_SECONDS = 30.0
"""When a reservation is looked at again while a contradiction of its key is examined."""


@dataclass(frozen=True, kw_only=True)
class _Outgoing:
    """A request that is ready to leave."""

    wire: WireRequest
    provider_key: str | None


async def execute(
    worker: Worker, wish: Claim, *, on_claimed: Callable[[Claimed], None] | None = None
) -> Claimed | NotClaimed | None:
    """Carry a reservation one attempt further, if it may be claimed.

    Args:
        worker: what this process has.
        wish: the claim to make.
        on_claimed: told of the attempt as soon as it is open.

    Returns:
        The attempt that was made, why none was opened, or None where Postgres did not answer in time: if the claim was
        committed all the same, its lease lapses and recovery takes over.
    """
    # The clock starts before the claim statement leaves: the lease can only have been granted later (design 4).
    began = time.monotonic()
    verdict = await _claim(worker, wish, give_up=began + worker.settings.send_by_seconds)
    if not isinstance(verdict, Claimed):
        if isinstance(verdict, NotClaimed):
            await _not_claimed(worker, wish, verdict)
        return verdict
    worker.epoch.claimed(verdict)
    if on_claimed is not None:
        on_claimed(verdict)
    contract = await _contract(worker, verdict, give_up=began + worker.settings.send_by_seconds)
    if contract is None:
        # Nothing has left and nothing will: that is said, so that it does not end as a doubt when the lease lapses.
        await settle(worker, verdict, None, Came(outcome=Outcome.UNSENT, reason="contract not readable"))
        return verdict
    worker.metrics.queue_seconds.labels(tool=verdict.tool).observe(max(verdict.queued_seconds, 0.0))
    parent = context_of(verdict.traceparent)
    with worker.tracer.start_as_current_span("outbox.execute", context=parent, attributes={"outbox.tool": verdict.tool}) as span:
        span.set_attribute("outbox.reservation_id", str(verdict.reservation_id))
        span.set_attribute("outbox.attempt", verdict.number)
        await _attempt(worker, verdict, contract, send_by=began + worker.settings.send_by_seconds)
    return verdict


async def _not_claimed(worker: Worker, wish: Claim, verdict: NotClaimed) -> None:
    if verdict.reason == "voided":
        await worker.wakeups.announce([wish.reservation_id])
    if verdict.reason == "possibly-sent":
        await suspect(worker, wish.organization_id, wish.reservation_id)
        return
    if wish.organization_id is None or verdict.reason in ("gone", "not-due", "unverified"):
        return  # What a wake-up named is taken up again by the sweep, which knows whose it is.
    async with acquire(worker.pool) as connection:
        if verdict.reason == "parked":
            await postpone(connection, wish.organization_id, wish.reservation_id, seconds=PARKED_SECONDS)
        if verdict.reason != "held":
            await breaker.pass_on(connection, wish.organization_id, wish.reservation_id)
        elif wish.resend_window_seconds is None:
            await breaker.hold(connection, wish.organization_id, wish.reservation_id, resend=False)


async def _claim(worker: Worker, wish: Claim, *, give_up: float) -> Claimed | NotClaimed | None:
    """The claim's verdict; the same claim is sent again when its answer was lost, because it recognises its own attempt."""
    while True:
        instance = worker.epoch.instance
        if instance is None:
            return NotClaimed(reservation_id=wish.reservation_id, reason="unverified")
        try:
            async with acquire(worker.pool) as connection:
                [verdict] = await claim(connection, [wish], instance=instance)
        except NOT_NOW as error:
            if time.monotonic() >= give_up:
                log.warning("claim-unanswered", reservation_id=str(wish.reservation_id), error=type(error).__name__)
                return None
            await asyncio.sleep(0.05)
            continue
        if isinstance(verdict, Failed):
            log.error("claim-refused", reservation_id=str(wish.reservation_id), constraint=verdict.constraint)
            return None
        if isinstance(verdict, NotClaimed) and verdict.reason == "unverified":
            log.warning("another-postgres", reservation_id=str(wish.reservation_id))
            worker.epoch.ask(instance)
        return verdict


async def _contract(worker: Worker, attempt: Claimed, *, give_up: float) -> ToolContract | None:
    """The contract that the reservation pins; None where it cannot be read while something might still be sent."""
    while True:
        try:
            return await worker.contracts.of(attempt.organization_id, attempt.tool, attempt.contract_version)
        except ContractUnreadable as error:
            log.error("contract-unreadable", reservation_id=str(attempt.reservation_id), tool=attempt.tool, reason=str(error))
            return None
        except NOT_NOW as error:
            log.warning("contract-unanswered", reservation_id=str(attempt.reservation_id), error=type(error).__name__)
            if time.monotonic() >= give_up:
                return None
            await asyncio.sleep(0.05)


async def _attempt(worker: Worker, attempt: Claimed, contract: ToolContract, *, send_by: float) -> None:
    try:
        outgoing = await _outgoing(worker, attempt, contract)
    except Exception:
        # Nothing has left and nothing will: the request could not even be written. The reason stays in the log, because
        # an exception's text may carry what the caller sent.
        log.exception("request-not-written", reservation_id=str(attempt.reservation_id), tool=attempt.tool)
        await settle(worker, attempt, contract, Came(outcome=Outcome.UNSENT, reason="request not written"))
        return
    except asyncio.CancelledError:
        await settle(worker, attempt, contract, Came(outcome=Outcome.UNSENT, reason="cut off before it was sent"))
        raise
    came = Came(outcome=Outcome.UNKNOWN, reason="cut off", provider_key=outgoing.provider_key)
    try:
        async with _renewed(worker, attempt, contract):
            sent = await _send(worker, attempt, contract, outgoing, send_by)
            came = _came(attempt, contract, sent, outgoing.provider_key)
    finally:
        # Also when this task is cancelled or something unforeseen happens after the request was handed over: unknown.
        await settle(worker, attempt, contract, came)


async def _outgoing(worker: Worker, attempt: Claimed, contract: ToolContract) -> _Outgoing:
    shown = await worker.keyring.shown(attempt, contract, attempt_number=attempt.number)
    wire = build_request(
        contract,
        base_url=attempt.base_url,
        credential=worker.keyring.credential(attempt.organization_id, attempt.connection_id, attempt.sealed_credential),
        fixed_headers=attempt.fixed_headers,
        bound=shown.stored.input,
        names=shown.stored.names,
        provider_key=shown.provider_key,
        marker=shown.marker,
    )
    if shown.marker is not None and contract.webhook is not None:
        # The provider's own notice may come before its answer, and must find whose effect it speaks of.
        async with acquire(worker.pool) as connection:
            await plant(connection, attempt.organization_id, attempt.attempt_id, shown.marker)
    return _Outgoing(wire=wire, provider_key=shown.provider_key)


async def _send(worker: Worker, attempt: Claimed, contract: ToolContract, outgoing: _Outgoing, send_by: float) -> Sent:
    with worker.tracer.start_as_current_span("outbox.send", kind=trace.SpanKind.CLIENT) as span:
        sent = await worker.transport.send(
            outgoing.wire,
            connection=Egress(base_url=attempt.base_url, allow_private=attempt.allow_private),
            deadline_seconds=contract.request.deadline.total_seconds(),
            send_by=send_by,
            pause_allowance_seconds=worker.settings.pause_allowance_seconds,
            # An idle connection that the provider closes would make a doubt that nothing can end (model, hole 21).
            fresh_connection=contract.guarantee_class == "C",
            traceparent=traceparent_of(span),
        )
        if sent.answer is not None:
            span.set_attribute("http.response.status_code", sent.answer.status)
        if sent.fault is not None:
            span.set_attribute("outbox.fault", sent.fault)
    worker.metrics.provider_seconds.labels(tool=attempt.tool).observe(sent.provider_seconds)
    return sent


def _came(attempt: Claimed, contract: ToolContract, sent: Sent, key: str | None) -> Came:
    if sent.answer is None:
        outcome = Outcome.UNSENT if sent.fault == "unsent" else Outcome.UNKNOWN
        return Came(
            outcome=outcome,
            reason=sent.reason,
            late_write=sent.late_write,
            provider_seconds=sent.provider_seconds,
            provider_key=key,
        )
    reading: Reading = read_answer(contract, sent.answer)
    if attempt.possibly_sent and reading.stored and reading.replayed and contract.lookup is not None:
        # A refusal of before the loss. What was sent after it had the next provider key, and only the marker finds that.
        reading = replace(reading, outcome=Outcome.UNKNOWN, stored=False, stored_failure=True)
    return Came(
        outcome=reading.outcome,
        reason=f"HTTP {sent.answer.status}",
        late_write=sent.late_write,
        provider_seconds=sent.provider_seconds,
        provider_key=key,
        provider_status=sent.answer.status,
        reading=reading,
    )


@contextlib.asynccontextmanager
async def _renewed(worker: Worker, attempt: Claimed, contract: ToolContract) -> AsyncIterator[None]:
    """Keep the lease alive while the answer is awaited, at most until shortly after the contract's deadline."""
    renewing = asyncio.create_task(_renew(worker, attempt, contract))
    try:
        yield
    finally:
        renewing.cancel()
        # Whatever became of the renewals, it must not stand in the way of what the provider answered.
        [ended] = await asyncio.gather(renewing, return_exceptions=True)
        if isinstance(ended, Exception):
            log.error("renewal-broke-off", attempt_id=str(attempt.attempt_id), error=type(ended).__name__, exc_info=ended)


async def _renew(worker: Worker, attempt: Claimed, contract: ToolContract) -> None:
    settings = worker.settings
    until_seconds = contract.request.deadline.total_seconds() + settings.renew_margin_seconds
    while True:
        await asyncio.sleep(settings.renew_seconds)
        try:
            async with acquire(worker.pool) as connection:
                held = await renew(
                    connection,
                    attempt.organization_id,
                    attempt.attempt_id,
                    lease_seconds=settings.lease_seconds,
                    until_seconds=until_seconds,
                )
        except NOT_NOW as error:
            log.warning("renewal-unanswered", attempt_id=str(attempt.attempt_id), error=type(error).__name__)
            continue
        if not held:
            log.warning("lease-lost", attempt_id=str(attempt.attempt_id), reservation_id=str(attempt.reservation_id))
            return
