"""T3 of what a client carried out: close its attempt with what the client says it came to.

The statement is the worker's own (`outbox_store.settle`), so the rules are: a success settles from whichever attempt and however
late, an outcome speaks of its own attempt only, and whatever comes too late or differs is kept as evidence and changes nothing.
"""

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import msgspec
import structlog

from outbox_api.answers import facts_of
from outbox_api.api import Api, new_id
from outbox_api.errors import unavailable
from outbox_api.exchange import too_large
from outbox_api.reach import may_act
from outbox_api.reserve import Refused
from outbox_domain import messages, money
from outbox_domain.capability import Capability
from outbox_domain.client_call import ClientSettlement
from outbox_domain.contract import ToolContract
from outbox_domain.errors import OutboxError
from outbox_domain.recovery import left_to_clients_seconds, settle_seconds
from outbox_domain.reservation import Confidence, Outcome, State
from outbox_domain.scoped_key import ScopedKey
from outbox_providers.reading import project
from outbox_runtime.postgres import acquire, transaction
from outbox_runtime.vault import Vault
from outbox_store import client_attempts, reservations
from outbox_store.batches import Failed
from outbox_store.claim import TRIES_MAX
from outbox_store.client_attempts import ClientAttempt
from outbox_store.reservations import ReservationView
from outbox_store.settle import ReceiptDraft, Settled, Settlement, settle

log = structlog.stdlib.get_logger("outbox.api.settle_client")

RESULT_BYTES_MAX = 256 << 10
"""How large a result may be that is kept with a receipt."""


@dataclass(frozen=True, kw_only=True)
class _Proof:
    """What a success is proven by.

    Attributes:
        result: what is kept with the receipt.
    """

    external_reference: str
    confidence: Confidence
    provider_request_id: str | None
    amount: int | None
    currency: str | None
    result: Any


async def settle_client(api: Api, key: ScopedKey, reservation_id: UUID, said: ClientSettlement) -> ReservationView:
    """Settle an attempt as its client says.

    Args:
        api: what this process has.
        key: the client's; the attempt must be its actor's.
        reservation_id: whose attempt it is.
        said: what it came to.

    Returns:
        The reservation as it stands now; the same settlement again changes nothing and is answered alike.

    Raises:
        OutboxError, Refused: `out-of-scope`, `not-found`, `not-client-executed`; with the evidence kept and nothing changed
            `attempt-unknown`, `attempt-closed`, `outcome-differs`, `contradiction`, `too-large`.
    """
    view = await client_executed(api, key, reservation_id)
    attempt = await own_attempt(api, key, view, said.attempt_id)
    lost = attempt is None and said.outcome is Outcome.SUCCEEDED
    if lost:
        # A success is never thrown away: where a loss has taken its attempt along, it settles in the name of what stands for it.
        async with acquire(api.pool) as connection:
            attempt = await client_attempts.stands_for_lost(
                connection, key.organization_id, reservation_id, said.attempt_id, key.actor_id
            )
    if attempt is None:
        await _keep_evidence(api, key, view, said, "attempt unknown")
        raise Refused(attempt_unknown(), facts_of(view))
    contract = await api.directory.contract(key.organization_id, view.tool, view.contract_version)
    if contract is None:
        raise Refused(unavailable(possibly_reserved=True), facts_of(view))
    if said.has_result and len(msgspec.json.encode(said.result)) > RESULT_BYTES_MAX:
        await _keep_evidence(api, key, view, said, "result too large")
        raise Refused(too_large(RESULT_BYTES_MAX, path="$.result"), facts_of(view))
    settlement = _settlement(view, attempt, contract, await api.directory.vault(key.organization_id), said, lost=lost)
    if lost and view.state is State.SUCCEEDED:
        if _is_its_receipt(settlement, view):
            return view
        await _keep_evidence(api, key, view, said, "attempt unknown")
        raise Refused(attempt_unknown(), facts_of(view))
    async with acquire(api.pool) as connection:
        [result] = await settle(connection, [settlement], tries_max=TRIES_MAX)
    if isinstance(result, Failed):
        raise result.error
    if result.verdict == "unknown-attempt":
        # Proven absent a moment ago, so that it may be done anew.
        await _keep_evidence(api, key, view, said, "attempt unknown")
        raise Refused(attempt_unknown(), facts_of(view))
    if result.verdict == "settled":
        log.info(
            "client-settled", reservation_id=str(view.id), tool=view.tool, outcome=said.outcome.value, state=str(result.state)
        )
        await api.wakeups.announce([reservation_id])
    return await _standing(api, key, view, attempt.id, said, settlement, result)


async def client_executed(api: Api, key: ScopedKey, reservation_id: UUID) -> ReservationView:
    """The reservation, where the key's actor may act on it and a client carries it out.

    Raises:
        OutboxError, Refused: `out-of-scope`, `not-found`, `not-client-executed`.
    """
    key.require(Capability.EXECUTE_EFFECTS)
    async with acquire(api.pool) as connection:
        view = await reservations.view(connection, key.organization_id, reservation_id)
    if view is None or not may_act(key, view):
        raise OutboxError("not-found", "There is nothing under this address that this key reaches.")
    if view.executor != "client":
        raise Refused(
            OutboxError("not-client-executed", "A worker carries this out; its caller waits for it and settles nothing."),
            facts_of(view),
        )
    return view


async def own_attempt(api: Api, key: ScopedKey, view: ReservationView, attempt_id: UUID) -> ClientAttempt | None:
    """The attempt of this id, where it is this reservation's and the key's actor's."""
    async with acquire(api.pool) as connection:
        attempt = await client_attempts.find(connection, key.organization_id, view.id, attempt_id)
    return attempt if attempt is not None and attempt.actor_id == key.actor_id else None


def attempt_unknown() -> OutboxError:
    """The attempt that was named is none of this reservation, or another actor's."""
    return OutboxError(
        "attempt-unknown", "This reservation has no attempt of this id that this key's actor was given. Nothing was changed."
    )


async def _keep_evidence(api: Api, key: ScopedKey, view: ReservationView, said: ClientSettlement, reason: str) -> None:
    detail: dict[str, object] = {"reason": reason, "attempt_id": str(said.attempt_id)}
    if said.external_reference is not None:
        detail["external_reference"] = said.external_reference
    async with transaction(api.pool) as tx:
        await client_attempts.note(
            tx,
            key.organization_id,
            view.id,
            said.attempt_id,
            outcome=said.outcome,
            actor_chain=list(key.actor_chain),
            detail=detail,
        )


def _settlement(
    view: ReservationView, attempt: ClientAttempt, contract: ToolContract, vault: Vault, said: ClientSettlement, *, lost: bool
) -> Settlement:
    """What is to be settled; of an attempt that was lost only its client knows, so that its word is all there is."""
    proof = _proof(view, contract, said) if said.outcome is Outcome.SUCCEEDED else None
    failure = {
        "provider_status": said.provider_status,
        "provider_code": said.provider_code,
        "provider_message": said.provider_message,
    }
    left = left_to_clients_seconds(
        contract, sent_seconds_ago=attempt.sent_seconds_ago, not_after_seconds=attempt.not_after_seconds
    )
    return Settlement(
        organization_id=view.organization_id,
        reservation_id=view.id,
        attempt_id=said.attempt_id,
        epoch=attempt.epoch,
        outcome=said.outcome,
        reason=said.reason or f"{said.outcome} by its client",
        stored=said.stored,
        settle_seconds=settle_seconds(contract),
        again_seconds=0.0,
        recover_seconds=left,
        late_recover_seconds=left,
        receipt=None if proof is None else _draft(view, vault, said, proof, lost=lost),
        provider_status=said.provider_status,
        provider_code=said.provider_code,
        sealed_failure=None if proof is not None or not any(failure.values()) else vault.seal_failure(view.id, failure),
        variance=None if proof is None else money.difference(view.amount, view.currency, proof.amount, proof.currency),
    )


def _proof(view: ReservationView, contract: ToolContract, said: ClientSettlement) -> _Proof:
    """What the client's success is proven by: the reference it names, else the one its result has, else its word alone.

    Its word is the same for all attempts of class A, which are one effect under one provider key; attempts of other classes are
    told apart by it, so that two of them that both succeeded contradict each other.
    """
    found = project(contract, said.result)
    reference = said.external_reference or found.external_reference
    asserted = f"client:{view.id if view.guarantee_class == 'A' else said.attempt_id}"
    return _Proof(
        external_reference=reference or asserted,
        confidence=Confidence.ASSERTED if reference is None else Confidence.CONFIRMED,
        provider_request_id=said.provider_request_id or found.provider_request_id,
        amount=found.amount_reported if said.amount is None else said.amount,
        currency=found.currency_reported if said.currency is None else said.currency,
        result=found.result if contract.receipt.result else said.result,
    )


def _draft(view: ReservationView, vault: Vault, said: ClientSettlement, proof: _Proof, *, lost: bool) -> ReceiptDraft:
    detail = "no reference" if proof.confidence is Confidence.ASSERTED else said.reason or "settled"
    if lost:
        proof, detail = replace(proof, confidence=Confidence.ASSERTED), "attempt lost"
    return ReceiptDraft(
        id=new_id(),
        provider=view.provider,
        external_reference=proof.external_reference,
        confidence=proof.confidence,
        evidence=[{"kind": "client", "detail": detail}],
        provider_request_id=proof.provider_request_id,
        sealed_result=vault.seal_result(view.id, proof.result) if said.has_result else None,
    )


async def _standing(
    api: Api,
    key: ScopedKey,
    view: ReservationView,
    attempt_id: UUID,
    said: ClientSettlement,
    settlement: Settlement,
    result: Settled,
) -> ReservationView:
    """The reservation as it stands, where it stands as the client said; else the problem that says why not."""
    async with acquire(api.pool) as connection:
        attempt = await client_attempts.find(connection, key.organization_id, view.id, attempt_id)
        now = await reservations.view(connection, key.organization_id, view.id)
    if attempt is None or now is None:
        raise OutboxError("not-found", "The reservation is gone.")
    if settlement.receipt is not None:
        if _is_its_receipt(settlement, now):
            return now
    elif attempt.outcome is said.outcome or (result.verdict == "settled" and said.outcome is Outcome.UNSENT):
        return now
    facts = facts_of(now)
    if attempt.closed_by == "answer":
        raise Refused(_outcome_differs(attempt, contradicts=result.verdict == "contradiction"), facts)
    if settlement.receipt is not None:
        raise Refused(_contradiction(), facts)
    raise Refused(_attempt_closed(attempt), facts)


def _is_its_receipt(settlement: Settlement, view: ReservationView) -> bool:
    if settlement.receipt is None or view.receipt is None or view.state is not State.SUCCEEDED:
        return False
    return view.receipt.external_reference == settlement.receipt.external_reference


def _outcome_differs(attempt: ClientAttempt, *, contradicts: bool) -> OutboxError:
    what = " It contradicts what was settled, so a person examines it." if contradicts else ""
    return OutboxError(
        "outcome-differs",
        f"This attempt was settled as {attempt.outcome}. What is said now is kept as evidence and changed nothing.{what}",
        message=messages.contradicted() if contradicts else None,
        settled_as=attempt.outcome,
    )


def _contradiction() -> OutboxError:
    return OutboxError(
        "contradiction",
        "The effect is proven, and the reservation was settled otherwise meanwhile. The proof is kept, and a person examines it.",
        message=messages.contradicted(),
    )


def _attempt_closed(attempt: ClientAttempt) -> OutboxError:
    return OutboxError(
        "attempt-closed",
        f"This attempt was closed before as {attempt.outcome} ({attempt.closed_by}). What is said now is kept as evidence.",
        closed_by=attempt.closed_by,
    )
