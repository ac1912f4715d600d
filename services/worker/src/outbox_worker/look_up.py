"""Ask the provider about a doubt: one read, and what it proves.

*It is there* settles the doubt at any time, with the receipt that the contract takes from what was found. *It is absent*
counts only when it was asked after `absence_counts_at`, so many times, about the newest attempt (`outbox_store.resolve`).
A cancellation that was confirmed in time says of its attempt that nothing will come of it. What stands under our identity and is
not what was asked for is somebody else's effect: a person decides.
Everything else proves nothing and is asked again. Addresses of look-ups may carry what is personal: they are in no log and in
no trace.
"""

import time
from dataclasses import replace

import structlog
from opentelemetry import trace

from outbox_domain import money
from outbox_domain.contract import LookupRule, ToolContract
from outbox_domain.errors import OutboxError
from outbox_domain.recovery import LOOKUPS_MAX, between_absences_seconds, is_over, look_again_seconds
from outbox_domain.reservation import State
from outbox_providers.driver import build_lookup, read_lookup
from outbox_providers.lookup import Finding
from outbox_providers.reading import Projection
from outbox_providers.wire import WireRequest
from outbox_runtime.postgres import acquire
from outbox_runtime.telemetry import context_of, traceparent_of
from outbox_store import lookups
from outbox_store.batches import Failed
from outbox_store.claim import TRIES_MAX
from outbox_store.lookups import Lookup
from outbox_store.resolve import Resolution, Resolved, resolve
from outbox_store.sweep import Due, leave_to_a_person
from outbox_worker.keyring import Shown
from outbox_worker.transport import Egress
from outbox_worker.worker import Worker

log = structlog.get_logger(__name__)

DEADLINE_SECONDS_MAX = 10.0
"""A read that takes longer is asked again; the contract's own deadline is for the effect."""

AWAY_MARGIN_SECONDS = 10.0
"""Beyond the deadline, after which another worker may ask: this one is gone, or its answer is of no use any more."""


async def look_up(worker: Worker, contract: ToolContract, rule: LookupRule, row: Due, *, step: int) -> None:
    """Make the one look-up that is due now.

    Args:
        worker: what this process has.
        contract: pinned on the reservation.
        rule: its look-up.
        row: the doubt.
        step: the place of the rule in the contract's list.
    """
    if row.last_attempt_id is None:
        return
    deadline_seconds = min(contract.request.deadline.total_seconds(), DEADLINE_SECONDS_MAX)
    async with acquire(worker.pool) as connection:
        lookup = await lookups.begin(
            connection,
            row.organization_id,
            row.reservation_id,
            row.last_attempt_id,
            step=step,
            away_seconds=deadline_seconds + AWAY_MARGIN_SECONDS,
            cancel_within_seconds=rule.cancel_within.total_seconds() if rule.cancels else None,
        )
    if lookup is None:
        return
    with worker.tracer.start_as_current_span(
        "outbox.lookup",
        context=context_of(lookup.traceparent),
        kind=trace.SpanKind.CLIENT,
        attributes={"outbox.tool": lookup.tool, "outbox.reservation_id": str(lookup.reservation_id)},
    ) as span:
        finding = await _ask(worker, contract, rule, lookup, deadline_seconds, traceparent_of(span))
        span.set_attribute("outbox.finding", finding.says)
    worker.metrics.lookups.labels(tool=lookup.tool, finding=finding.says).inc()
    log.info(
        "looked-up",
        reservation_id=str(lookup.reservation_id),
        tool=lookup.tool,
        number=lookup.lookups,
        finding=finding.says,
        reason=finding.reason,
    )
    await _conclude(worker, contract, rule, lookup, finding, step)


async def _ask(
    worker: Worker, contract: ToolContract, rule: LookupRule, lookup: Lookup, deadline_seconds: float, traceparent: str | None
) -> Finding:
    try:
        wire, shown = await _question(worker, contract, rule, lookup)
    except (LookupError, ValueError, OutboxError) as error:
        # The text of an exception may carry what the caller sent.
        log.error("lookup-not-written", reservation_id=str(lookup.reservation_id), error=type(error).__name__)
        return Finding(says="unusable", reason="look-up not written")
    sent = await worker.transport.send(
        wire,
        connection=Egress(base_url=lookup.base_url, allow_private=lookup.allow_private),
        deadline_seconds=deadline_seconds,
        send_by=time.monotonic() + deadline_seconds,
        pause_allowance_seconds=worker.settings.pause_allowance_seconds,
        fresh_connection=False,
        traceparent=traceparent,
    )
    if sent.answer is None:
        return Finding(says="unanswered", reason=sent.reason)
    return read_lookup(
        contract,
        rule,
        sent.answer,
        marker=shown.marker,
        provider_key=shown.provider_key,
        bound=shown.stored.input,
        names=shown.stored.names,
    )


async def _question(worker: Worker, contract: ToolContract, rule: LookupRule, lookup: Lookup) -> tuple[WireRequest, Shown]:
    shown = await worker.keyring.shown(lookup, contract, attempt_number=lookup.attempt_number)
    wire = build_lookup(
        contract,
        rule,
        base_url=lookup.base_url,
        credential=worker.keyring.credential(lookup.organization_id, lookup.connection_id, lookup.sealed_credential),
        fixed_headers=lookup.fixed_headers,
        bound=shown.stored.input,
        names=shown.stored.names,
        marker=shown.marker,
        provider_key=shown.provider_key,
    )
    return wire, shown


async def _conclude(
    worker: Worker, contract: ToolContract, rule: LookupRule, lookup: Lookup, finding: Finding, step: int
) -> None:
    if finding.effect is not None:
        resolved = await _resolve(worker, await _found(worker, contract, rule, lookup, finding, finding.effect))
        if resolved is not None and resolved.verdict == "stale":
            # A person has said that this effect does not stand. What hides behind it only a person can see.
            evidence: dict[str, object] = {
                "by": "lookup",
                "reason": "an effect that was examined",
                "references": [finding.effect.external_reference],
            }
            await _ask_a_person(worker, contract, lookup, evidence)
    elif finding.says == "several":
        # Two effects of one marker: nobody but a person can say which of them stays.
        evidence = {"by": "lookup", "reason": "several effects", "references": list(finding.references)}
        await _ask_a_person(worker, contract, lookup, evidence)
    elif finding.says == "different":
        evidence = {
            "by": "lookup",
            "reason": "another effect under this identity",
            "references": list(finding.references),
            "fields": list(finding.fields),
        }
        await _ask_a_person(worker, contract, lookup, evidence)
    elif finding.says == "cancelled":
        resolved = await _resolve(worker, _cancelled(worker, contract, rule, lookup, finding))
        if resolved is None or resolved.verdict in ("stale", "too-early"):
            await _again(worker, lookup)
    elif finding.says in ("absent", "unusable") and is_over(rule, lookup.doubt_seconds):
        evidence = {"by": "lookup", "reason": f"looked up for as long as the contract says: {finding.reason}"}
        await _ask_a_person(worker, contract, lookup, evidence)
    elif finding.says == "absent" and not lookup.late_write and not lookup.conflicted:
        resolved = await _resolve(worker, _absent(worker, contract, rule, lookup, finding))
        if resolved is None or resolved.verdict == "too-early":
            await _again(worker, lookup)
    elif finding.says == "absent" and (lookup.counts_in_seconds or 0) <= 0:
        # A request left late, and may still arrive; or the provider said that the identity is taken. An absence proves nothing.
        await _ask_a_person(worker, contract, lookup, None)
    elif finding.says == "unusable" and lookup.lookups >= LOOKUPS_MAX:
        evidence = {"by": "lookup", "reason": f"no usable answer: {finding.reason}"}
        await _ask_a_person(worker, contract, lookup, evidence)
    else:
        await _again(worker, lookup)


async def _again(worker: Worker, lookup: Lookup) -> None:
    seconds = look_again_seconds(looked=lookup.lookups, counts_in_seconds=lookup.counts_in_seconds)
    async with acquire(worker.pool) as connection:
        await lookups.again(connection, lookup, seconds=seconds)


async def _ask_a_person(worker: Worker, contract: ToolContract, lookup: Lookup, evidence: dict[str, object] | None) -> None:
    async with acquire(worker.pool) as connection:
        asked = await leave_to_a_person(
            connection,
            lookup.organization_id,
            lookup.reservation_id,
            attempt_id=lookup.attempt_id,
            step=len(contract.recovery),
            evidence=evidence,
        )
    if asked:
        log.warning("person-asked", reservation_id=str(lookup.reservation_id), tool=lookup.tool)
        await worker.wakeups.announce([lookup.reservation_id])


async def _found(
    worker: Worker, contract: ToolContract, rule: LookupRule, lookup: Lookup, finding: Finding, effect: Projection
) -> Resolution:
    keys = await worker.keyring.of(lookup.organization_id)
    evidence: list[dict[str, object]] = [{"kind": "lookup", "detail": finding.reason}]
    difference = money.difference(lookup.amount, lookup.currency, effect.amount_reported, effect.currency_reported)
    if difference is not None:
        evidence.append({"kind": "variance", "detail": difference})
        log.warning("lookup-differs", reservation_id=str(lookup.reservation_id), tool=lookup.tool)
    return Resolution(
        organization_id=lookup.organization_id,
        reservation_id=lookup.reservation_id,
        attempt_id=lookup.attempt_id,
        happened=True,
        by="lookup",
        asked_at=None,
        absences_needed=rule.times,
        then=rule.on_absent,
        again_seconds=0.0,
        receipt_id=worker.new_id(),
        provider=contract.provider,
        external_reference=effect.external_reference,
        provider_request_id=effect.provider_request_id,
        evidence=evidence,
        sealed_result=keys.seal_result(lookup.reservation_id, effect.result),
        said_by=None,
        reason="found by look-up",
    )


def _absent(worker: Worker, contract: ToolContract, rule: LookupRule, lookup: Lookup, finding: Finding) -> Resolution:
    proves = lookup.absences + 1 >= rule.times
    return Resolution(
        organization_id=lookup.organization_id,
        reservation_id=lookup.reservation_id,
        attempt_id=lookup.attempt_id,
        happened=False,
        by="lookup",
        asked_at=lookup.asked_at,
        absences_needed=rule.times,
        between_seconds=between_absences_seconds(rule),
        then=rule.on_absent,
        again_seconds=0.0 if proves else between_absences_seconds(rule),
        receipt_id=worker.new_id(),
        provider=contract.provider,
        external_reference=None,
        provider_request_id=None,
        evidence=[{"kind": "lookup", "detail": finding.reason}],
        sealed_result=None,
        said_by=None,
        reason="absent by look-up",
    )


def _cancelled(worker: Worker, contract: ToolContract, rule: LookupRule, lookup: Lookup, finding: Finding) -> Resolution:
    absent = _absent(worker, contract, rule, lookup, finding)
    return replace(
        absent,
        by="cancellation",
        absences_needed=1,
        again_seconds=0.0,
        evidence=[{"kind": "cancellation", "detail": finding.reason}],
        reason="called off before it was due",
        cancel_within_seconds=rule.cancel_within.total_seconds(),
    )


async def _resolve(worker: Worker, resolution: Resolution) -> Resolved | None:
    """Write down what was learned; None where Postgres refused it, so that nothing has changed."""
    async with acquire(worker.pool) as connection:
        [result] = await resolve(connection, [resolution], tries_max=TRIES_MAX)
    if isinstance(result, Failed):
        log.error("resolution-refused", reservation_id=str(resolution.reservation_id), constraint=result.constraint)
        return None
    log.info(
        "doubt-answered",
        reservation_id=str(resolution.reservation_id),
        happened=resolution.happened,
        verdict=result.verdict,
        state=result.state.value if result.state else None,
    )
    if result.verdict == "settled" and result.state is State.RESERVED:
        await worker.wakeups.wake([resolution.reservation_id])
    elif result.verdict == "settled":
        await worker.wakeups.announce([resolution.reservation_id])
    return result
