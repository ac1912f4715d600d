"""T3: write down what an attempt came to, for as long as it takes.

A settlement that could not be committed is sent again unchanged for as long as the process lives; it recognises its own
work. If the process dies first, the lease lapses and recovery finds the effect.
"""

import asyncio
from dataclasses import asdict, dataclass, replace

import structlog

from outbox_domain import money
from outbox_domain.contract import ToolContract
from outbox_domain.recovery import Doubt, back_off_seconds, recover_in_seconds, settle_seconds
from outbox_domain.reservation import Confidence, Outcome, State
from outbox_providers.wire import Reading
from outbox_runtime.postgres import NOT_NOW, acquire
from outbox_runtime.vault import Vault
from outbox_store import settle as store
from outbox_store.batches import Failed
from outbox_store.claim import TRIES_MAX, Claimed
from outbox_store.settle import ReceiptDraft, Settled, Settlement
from outbox_worker import breaker
from outbox_worker.contracts import UNREADABLE_SECONDS, UNREADABLE_SETTLE_SECONDS
from outbox_worker.worker import Worker

log = structlog.get_logger(__name__)

RETRY_SECONDS_MAX = 2.0


@dataclass(frozen=True, kw_only=True)
class Came:
    """What an attempt came to, before it is written down.

    Attributes:
        reason: our own words for it; no foreign text.
        reading: of the provider's answer, where there was one.
        provider_seconds: the provider's own time.
    """

    outcome: Outcome
    reason: str
    late_write: bool = False
    provider_seconds: float | None = None
    provider_key: str | None = None
    provider_status: int | None = None
    reading: Reading | None = None


async def settle(worker: Worker, attempt: Claimed, contract: ToolContract | None, came: Came) -> None:
    """Close the attempt and move its reservation; wake who waits for it.

    Args:
        worker: what this process has.
        attempt: as it was claimed.
        contract: pinned on the reservation; None where it could not be read, so that nothing was sent.
        came: what the attempt came to.
    """
    with worker.tracer.start_as_current_span("outbox.settle"), worker.metrics.settle_seconds.labels(tool=attempt.tool).time():
        # Only words of the provider are sealed. What was never sent is settled also where the keys do not open.
        keys = await worker.keyring.of(attempt.organization_id) if came.reading is not None else None
        settlement = _settlement(worker, attempt, contract, came, keys)
        result = await asyncio.shield(_until_written(worker, settlement))
        if isinstance(result, Failed):
            # What the provider said cannot be stored. The effect may have happened, so this is a doubt, not a failure.
            log.error("settlement-refused", reservation_id=str(attempt.reservation_id), constraint=result.constraint)
            plain = Came(outcome=Outcome.UNKNOWN, reason="answer not storable", provider_seconds=came.provider_seconds)
            result = await asyncio.shield(_until_written(worker, _settlement(worker, attempt, contract, plain, keys)))
    if isinstance(result, Failed):
        log.critical("settlement-refused-again", reservation_id=str(attempt.reservation_id), constraint=result.constraint)
        return
    worker.metrics.attempts.labels(tool=attempt.tool, outcome=came.outcome.value).inc()
    log.info(
        "attempt-settled",
        reservation_id=str(attempt.reservation_id),
        attempt=attempt.number,
        tool=attempt.tool,
        outcome=came.outcome.value,
        reason=came.reason,
        verdict=result.verdict,
        state=result.state.value if result.state else None,
    )
    await breaker.note(worker, attempt, came.outcome, cause=came.reason)
    if result.state is State.RESERVED:
        return  # Nothing final, and nothing for a waiter to know; it is due again by its own row.
    await worker.wakeups.announce([attempt.reservation_id])


async def _until_written(worker: Worker, settlement: Settlement) -> Settled | Failed:
    pause = 0.05
    while True:
        try:
            async with acquire(worker.pool) as connection:
                [result] = await store.settle(connection, [settlement], tries_max=TRIES_MAX)
        except NOT_NOW as error:
            # Also what Postgres refuses for a while (a full disk, a deadlock): the outcome is known here and nowhere else.
            worker.metrics.settle_retries.inc()
            log.warning("settlement-unanswered", reservation_id=str(settlement.reservation_id), error=type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS_MAX)
            continue
        if isinstance(result, Settled) and result.verdict == "unknown-attempt":
            # The ledger has forgotten what it was told here: it must be declared before this proof has a doubt to end.
            log.warning("attempt-forgotten", reservation_id=str(settlement.reservation_id))
            worker.epoch.ask(worker.epoch.instance)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS_MAX)
            continue
        return result


def _settlement(worker: Worker, attempt: Claimed, contract: ToolContract | None, came: Came, keys: Vault | None) -> Settlement:
    reading = came.reading
    failure = reading.failure if reading is not None else None
    stored_failure = reading is not None and reading.stored_failure
    conflict = reading is not None and reading.conflict
    again_seconds = back_off_seconds(attempt.tries)
    if reading is not None and reading.retry_after_seconds is not None:
        again_seconds = max(again_seconds, reading.retry_after_seconds)
    recover_seconds = late_recover_seconds = UNREADABLE_SECONDS if contract is None else None
    if contract is not None:
        unreachable = came.provider_status is None or came.provider_status >= 500
        # A resend that was not sent or was put off is given back (the provider is not known to have had it) and is a try instead.
        given_back = int(attempt.resend and came.outcome in (Outcome.UNSENT, Outcome.DEFERRED))
        doubt = Doubt(
            resends=attempt.resends - given_back,
            tries=attempt.tries + given_back,
            stored_failure=stored_failure,
            conflicted=conflict,
            late_write=False,
            unreachable=unreachable,
        )
        recover_seconds = recover_in_seconds(contract, doubt)
        late_recover_seconds = recover_in_seconds(contract, replace(doubt, late_write=True))
    if recover_seconds is not None and reading is not None and reading.retry_after_seconds is not None:
        recover_seconds = max(recover_seconds, reading.retry_after_seconds)
    return Settlement(
        organization_id=attempt.organization_id,
        reservation_id=attempt.reservation_id,
        attempt_id=attempt.attempt_id,
        epoch=attempt.epoch,
        outcome=came.outcome,
        reason=came.reason,
        stored=reading is not None and reading.stored,
        stored_failure=stored_failure,
        conflict=conflict,
        late_write=came.late_write,
        settle_seconds=UNREADABLE_SETTLE_SECONDS if contract is None else settle_seconds(contract),
        again_seconds=again_seconds,
        recover_seconds=recover_seconds,
        late_recover_seconds=late_recover_seconds,
        receipt=_receipt(worker, attempt, contract, came, keys),
        provider_status=came.provider_status,
        provider_code=failure.provider_code if failure is not None else None,
        sealed_failure=None if failure is None or keys is None else keys.seal_failure(attempt.reservation_id, asdict(failure)),
        provider_seconds=came.provider_seconds,
        provider_key=came.provider_key,
        variance=_variance(attempt, reading),
    )


def _receipt(
    worker: Worker, attempt: Claimed, contract: ToolContract | None, came: Came, keys: Vault | None
) -> ReceiptDraft | None:
    reading = came.reading
    if came.outcome is not Outcome.SUCCEEDED or reading is None or reading.external_reference is None:
        return None
    if contract is None or keys is None:
        raise AssertionError("an answer was read without its contract or its keys")
    return ReceiptDraft(
        id=worker.new_id(),
        provider=contract.provider,
        external_reference=reading.external_reference,
        confidence=Confidence.CONFIRMED,
        evidence=[{"kind": "answer", "detail": came.reason}],
        provider_request_id=reading.provider_request_id,
        sealed_result=None if reading.result is None else keys.seal_result(attempt.reservation_id, reading.result),
    )


def _variance(attempt: Claimed, reading: Reading | None) -> dict[str, object] | None:
    """What the provider says it moved, where that is not what was asked: it is noted, never corrected."""
    if reading is None or reading.outcome is not Outcome.SUCCEEDED:
        return None
    return money.difference(attempt.amount, attempt.currency, reading.amount_reported, reading.currency_reported)
