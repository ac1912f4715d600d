"""The one skeleton of every answer, and what an answer says in each state of a reservation.

Source: `interfaces.md` sections 1 and 2. The texts themselves are in `outbox_domain.messages`, the status of a problem in
`outbox_api.errors`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from outbox_api.errors import headers_of, problem_members, status_of
from outbox_domain import messages
from outbox_domain.canonical import digest_text
from outbox_domain.contract import ToolContract
from outbox_domain.epoch import CAUSE
from outbox_domain.errors import OutboxError, Retry
from outbox_domain.reservation import Outcome, State
from outbox_runtime.vault import Vault
from outbox_store.receipts import ReceiptView
from outbox_store.reservations import ReservationView
from outbox_store.runs import Run

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"

ASK_AGAIN_SECONDS = 2.0
"""When to ask again for what is running: most calls are over within a second or two."""

ASK_AGAIN_SECONDS_MAX = 60.0

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What goes back to the caller.

    Attributes:
        code: of the problem; `succeeded` or `not-final` where there is none.
        kept_body: what a request key keeps in place of the body, where they differ (a new key's secret is shown once).
    """

    status: int
    body: bytes
    code: str
    headers: tuple[tuple[str, str], ...] = ()
    state: State | None = None
    reservation_id: UUID | None = None
    replayed: bool = False
    kept_body: bytes | None = None

    @property
    def content_type(self) -> str:
        """Problems are told apart by their media type (RFC 9457 section 3)."""
        return PROBLEM_JSON if self.status >= 400 else JSON

    def with_headers(self, *headers: tuple[str, str]) -> "Answer":
        """The same answer with further headers."""
        return replace(self, headers=(*self.headers, *headers))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the wanted effect, whether or not a reservation exists."""

    reservation_id: UUID | None = None
    state: State | None = None
    operation_key: str | None = None
    input_digest: bytes | None = None
    guarantee_class: str | None = None
    owner: str | None = None
    run: dict[str, object] | None = None


NOTHING_KNOWN = Facts()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Who asks.

    Attributes:
        first: this very call made the reservation.
        run_id: the run it acts in, where there is one.
    """

    first: bool
    run_id: UUID | None


def encode(document: object) -> bytes:
    """The bytes of a JSON document; equal documents give equal bytes."""
    return msgspec.json.encode(document)


def reservation_url(reservation_id: UUID) -> str:
    """Where a reservation is looked at."""
    return f"/v1/reservations/{reservation_id}"


def run_document(run: Run | None) -> dict[str, object] | None:
    """The run an answer speaks of."""
    return None if run is None else {"id": run.id, "name": run.name, "lineage": run.lineage}


def facts_of(view: ReservationView) -> Facts:
    """What is known of a reservation."""
    return Facts(
        reservation_id=view.id,
        state=view.state,
        operation_key=view.operation_key,
        input_digest=view.input_digest,
        guarantee_class=view.guarantee_class,
        owner=view.owner,
        run=None if view.run_id is None else {"id": view.run_id, "name": view.run, "lineage": view.lineage},
    )


def skeleton(
    *,
    message: str,
    is_error: bool,
    retry: Retry,
    facts: Facts = NOTHING_KNOWN,
    replayed: bool = False,
    replay: dict[str, object] | None = None,
    result: dict[str, Any] | None = None,
    receipt: dict[str, object] | None = None,
    failure: dict[str, object] | None = None,
    decision: dict[str, Any] | None = None,
) -> dict[str, object]:
    """The members that every answer has, in their order."""
    document: dict[str, object] = {
        "message": message,
        "is_error": is_error,
        "state": facts.state,
        "retry": retry.document(),
        "replayed": replayed,
        "replay": replay,
        "reservation_id": facts.reservation_id,
        "operation_key": facts.operation_key,
        "input_digest": None if facts.input_digest is None else digest_text(facts.input_digest),
        "guarantee_class": facts.guarantee_class,
        "owner": facts.owner,
        "result": result,
        "receipt": receipt,
        "failure": failure,
    }
    if decision is not None:
        document["decision"] = decision
    document["review"] = None
    document["run"] = facts.run
    return document


def receipt_document(receipt: ReceiptView) -> dict[str, object]:
    """A receipt as everybody sees it, made from its row alone, so that it is the same bytes for all and for ever."""
    document: dict[str, object] = {
        "id": receipt.id,
        "reservation_id": receipt.reservation_id,
        "provider": receipt.provider,
        "connection": receipt.connection,
        "tool": receipt.tool,
        "contract_version": receipt.contract_version,
        "external_reference": receipt.external_reference,
        "confidence": receipt.confidence,
        "evidence": [entry | {"at": datetime.fromisoformat(str(entry["at"]))} for entry in receipt.evidence],
        "provider_request_id": receipt.provider_request_id,
        "actor_chain": receipt.actor_chain,
        "owner": receipt.owner,
        "policy": None if receipt.policy is None else {name: receipt.policy.get(of) for name, of in _POLICY_MEMBERS},
        "amount": None if receipt.amount is None else {"value": receipt.amount, "currency": receipt.currency},
        "settled_at": receipt.settled_at,
    }
    return {name: value for name, value in document.items() if value is not None}


_POLICY_MEMBERS = (("name", "policy"), ("version", "version"))


def problem(
    error: OutboxError,
    *,
    facts: Facts = NOTHING_KNOWN,
    replayed: bool = False,
    receipt: dict[str, object] | None = None,
    failure: dict[str, object] | None = None,
    headers: Headers = (),
) -> Answer:
    """A problem in the skeleton (RFC 9457 members first)."""
    decision = error.fields.get("decision")
    document = problem_members(error) | skeleton(
        message=error.message,
        is_error=True,
        retry=error.retry,
        facts=facts,
        replayed=replayed,
        receipt=receipt,
        failure=failure,
        decision=decision if isinstance(decision, dict) else None,
    )
    return Answer(
        status=status_of(error.code),
        body=encode(document),
        code=error.code,
        headers=(*headers_of(error), *headers),
        state=facts.state,
        reservation_id=facts.reservation_id,
        replayed=replayed,
    )


def not_final(facts: Facts, *, asked: Asked, after_seconds: float = ASK_AGAIN_SECONDS) -> Answer:
    """It is running or held: 202, and where and when to ask again."""
    assert facts.reservation_id is not None
    url = reservation_url(facts.reservation_id)
    document = skeleton(
        message=messages.running(after_seconds),
        is_error=False,
        retry=Retry(action="wait", after_seconds=after_seconds, url=url),
        facts=facts,
        replayed=not asked.first,
    )
    return Answer(
        status=202,
        body=encode(document),
        code="not-final",
        headers=(("Location", url), ("Retry-After", str(math.ceil(after_seconds)))),
        state=facts.state,
        reservation_id=facts.reservation_id,
        replayed=not asked.first,
    )


def answer_to(view: ReservationView, *, asked: Asked, contract: ToolContract | None, vault: Vault) -> Answer:
    """What a tool call is answered while its reservation stands as it does.

    Args:
        view: the reservation.
        asked: who asks.
        contract: the version that the reservation pins; without it (it cannot be read here) the tool stands for its summary.
        vault: opens the result and the provider's words.
    """
    facts = facts_of(view)
    if view.state is State.SUCCEEDED:
        document = _succeeded(view, facts, asked=asked, contract=contract, vault=vault)
        replay_headers = () if asked.first else (("Outbox-Replayed", "true"), ("Idempotent-Replayed", "true"))
        return Answer(
            status=200,
            body=encode(document),
            code="succeeded",
            headers=replay_headers,
            state=view.state,
            reservation_id=view.id,
            replayed=not asked.first,
        )
    error = _problem_of(view)
    if error is None:
        return not_final(facts, asked=asked, after_seconds=_ask_again_seconds(view))
    headers = (("Location", reservation_url(view.id)),) if view.state is State.IN_DOUBT else ()
    return problem(error, facts=facts, replayed=not asked.first, failure=_failure(view, vault), headers=headers)


def shown(view: ReservationView, *, contract: ToolContract | None, vault: Vault) -> dict[str, object]:
    """The skeleton of a reservation for somebody who looks at it: no problem, whatever its state."""
    facts = facts_of(view)
    if view.state is State.SUCCEEDED:
        return _succeeded(view, facts, asked=Asked(first=True, run_id=None), contract=contract, vault=vault)
    error = _problem_of(view)
    if error is None:
        after_seconds = _ask_again_seconds(view)
        retry = Retry(action="wait", after_seconds=after_seconds, url=reservation_url(view.id))
        return skeleton(message=messages.running(after_seconds), is_error=False, retry=retry, facts=facts, decision=view.decision)
    return skeleton(
        message=error.message,
        is_error=True,
        retry=error.retry,
        facts=facts,
        failure=_failure(view, vault),
        decision=view.decision,
    )


def _succeeded(
    view: ReservationView, facts: Facts, *, asked: Asked, contract: ToolContract | None, vault: Vault
) -> dict[str, object]:
    receipt = view.receipt
    if receipt is None:
        raise LookupError(f"the succeeded reservation {view.id} has no receipt")
    result = None if view.sealed_result is None else vault.open_result(view.id, view.sealed_result)
    replay: dict[str, object] | None = None
    if asked.first:
        summary = view.tool
        if contract is not None:
            members = result if isinstance(result, dict) else None
            summary = messages.summarise(contract, members, view.amount, view.currency, view.reference)
        message = messages.succeeded(summary, str(receipt.id))
    else:
        same_run = asked.run_id is not None and asked.run_id == view.run_id
        replay = {"settled_at": receipt.settled_at, "run": view.run, "same_run": same_run}
        if asked.run_id is None or view.run_id is None:
            told = messages.replayed_without_run
        else:
            told = messages.replayed_same_run if same_run else messages.replayed_other_run
        message = told(receipt.settled_at, str(receipt.id))
    return skeleton(
        message=message,
        is_error=False,
        retry=Retry(action="none"),
        facts=facts,
        replayed=not asked.first,
        replay=replay,
        result=result,
        receipt=receipt_document(receipt),
        decision=view.decision,
    )


def _problem_of(view: ReservationView) -> OutboxError | None:
    """The problem that a state is for a caller; None while it may still come to a good end by itself."""
    match view.state:
        case State.IN_DOUBT:
            return _in_doubt(view)
        case State.FAILED if view.executor == "client" and view.last_attempt_outcome in (Outcome.UNSENT, Outcome.DEFERRED):
            return OutboxError(
                "failed",
                "Nothing was carried out. The same request may be made again.",
                message=messages.failed(),
            )
        case State.FAILED if view.provider_status is not None:
            return OutboxError(
                "provider-refused",
                f"{view.provider} refused the request for good; nothing took effect.",
                message=messages.provider_refused(view.provider, view.provider_code, view.provider_status),
            )
        case State.FAILED:
            return OutboxError(
                "failed", "It is proven that nothing took effect, and the tries are used up.", message=messages.failed()
            )
        case State.VOIDED:
            reason = view.void_reason or "withdrawn"
            code = "provider-unreachable" if reason == "provider-unreachable" else "voided"
            return OutboxError(
                code,
                f"The reservation was withdrawn before it was sent: {reason}. The same request may be made again.",
                message=messages.voided(reason),
                retry=Retry(action="same-request", after_seconds=ASK_AGAIN_SECONDS),
                reason=reason,
            )
        case State.DENIED:
            return OutboxError("review-denied", "A reviewer refused it.", message=messages.review_denied())
    return None


def doubt_document(view: ReservationView) -> dict[str, object]:
    """What is known of a doubt: since when and why, who looks into it next and when, and from when an absence counts."""
    return {
        "since": view.doubt_since,
        "cause": view.doubt_cause,
        "recovery": "automatic" if view.recovery_due else "person",
        "next_check": view.next_check,
        "absence_counts_at": view.absence_counts_at,
    }


def _in_doubt(view: ReservationView) -> OutboxError:
    after_loss = view.doubt_cause == CAUSE
    sent = "The request was sent and no answer came."
    if after_loss:
        sent = "The ledger lost its newest entries, so it may have been sent before."
    if view.recovery_due:
        after_seconds = min(max(view.due_seconds or 0.0, ASK_AGAIN_SECONDS), ASK_AGAIN_SECONDS_MAX)
        retry = Retry(action="wait", after_seconds=after_seconds, url=reservation_url(view.id))
        detail = f"{sent} Recovery is under way; nothing is sent twice."
    else:
        retry = Retry(action="ask-human", url=reservation_url(view.id))
        detail = f"{sent} Only a person can find out what happened."
    message = messages.in_doubt(view.next_check, after_loss=after_loss)
    return OutboxError("in-doubt", detail, message=message, retry=retry, doubt=doubt_document(view))


def _ask_again_seconds(view: ReservationView) -> float:
    if view.state is State.RESERVED and view.due_seconds is not None:
        return min(max(view.due_seconds, ASK_AGAIN_SECONDS), ASK_AGAIN_SECONDS_MAX)
    return ASK_AGAIN_SECONDS


def _failure(view: ReservationView, vault: Vault) -> dict[str, object] | None:
    """What the provider said; its words only while they are kept (24 hours)."""
    if view.provider_status is None and view.sealed_failure is None:
        return None
    words = {} if view.sealed_failure is None else vault.open_failure(view.id, view.sealed_failure)
    return {
        "provider_status": view.provider_status,
        "provider_code": view.provider_code,
        "provider_message": words.get("provider_message"),
    }
