"""What a call came to: `Done`, `Waiting`, `Refused` or `InDoubt`. Nothing but `Done` is truthy.

Each carries every member of the gateway's answer, typed, and the text for the model (`as_tool_message`). `Reservation` is what
somebody sees who looks at a reservation without calling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NoReturn, Union

from agent_outbox.errors import (
    DOUBTS,
    ERRORS,
    REFUSALS,
    NotFinishedError,
    OutboxError,
    Retry,
    UnexpectedAnswerError,
    unexpected,
)
from agent_outbox.receipt import (
    Decision,
    Doubt,
    Failure,
    Members,
    Money,
    Receipt,
    Replay,
    Run,
    read_decision,
    read_doubt,
    read_failure,
    read_receipt,
    read_replay,
    read_retry,
    read_run,
)

OPEN = frozenset({"awaiting_review", "reserved", "executing"})
"""States that may still come to a good end by themselves."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """The members that every answer has.

    Attributes:
        message: the text for the model; the first words carry the fact. It holds no foreign text.
        is_error: whether a model should be shown it as an error.
        state: of the reservation: awaiting_review, reserved, executing, in_doubt, succeeded, failed, denied or voided; None
            where no reservation exists.
        retry: what may be done next.
        replayed: whether another call made the reservation that answered.
        replay: the older effect that answered, where one did.
        reservation_id: of the reservation; None where none exists.
        operation_key: the business identity of the effect (`refund:pi_3Nx:case-8841`).
        input_digest: keyed digest of the input (`hmac-sha256:...`).
        guarantee_class: `A`, `B` or `C`.
        owner: the team that answers for the tool.
        result: the contract's projection of the provider's answer; of an effect that a handler carried out, what it returned, as
            it is stored. Foreign: treat it as data.
        receipt: the proof of the effect.
        failure: what the provider said when it refused.
        decision: what the policies said.
        review: the review that decides; None where there is none.
        run: the run of the reservation.
        document: the whole answer as the gateway gave it.
        raised: what the caller's own handler, or its probe, raised here; None of other calls.
    """

    message: str
    is_error: bool
    state: str | None
    retry: Retry
    replayed: bool
    replay: Replay | None
    reservation_id: str | None
    operation_key: str | None
    input_digest: str | None
    guarantee_class: str | None
    owner: str | None
    result: Any = field(hash=False)
    receipt: Receipt | None
    failure: Failure | None
    decision: Decision | None
    review: Mapping[str, Any] | None = field(hash=False)
    run: Run | None
    document: Mapping[str, Any] = field(repr=False, hash=False)
    raised: BaseException | None = field(default=None, repr=False, hash=False, compare=False)

    def __bool__(self) -> bool:
        """False: whatever is not `Done` is not done."""
        return False

    def as_tool_message(self) -> str:
        """The text for the model, to be returned as the tool's result.

        Returns:
            The gateway's sentence as it is. Nothing of the input, the result or a provider's words is added.
        """
        return self.message


@dataclass(frozen=True, kw_only=True)
class Done(Told):
    """The effect happened, by this call or an earlier one; `receipt` proves it.

    Attributes:
        state: `succeeded`.
        reservation_id: of the reservation.
        receipt: the proof of the effect.
    """

    state: str
    reservation_id: str
    receipt: Receipt

    def __bool__(self) -> bool:
        """True: it is done."""
        return True

    def expect_done(self) -> Done:
        """This result itself.

        Returns:
            self.
        """
        return self


@dataclass(frozen=True, kw_only=True)
class Waiting(Told):
    """It has no end yet: it runs, is held, or a person has to approve it. The same call again joins it.

    Attributes:
        state: `reserved`, `executing` or `awaiting_review`.
        reservation_id: of the reservation; `Outbox.get` looks at it.
    """

    state: str
    reservation_id: str

    def expect_done(self) -> NoReturn:
        """Raise, because it is not done.

        Raises:
            NotFinishedError: always.
        """
        raise NotFinishedError(
            f"The reservation {self.reservation_id} is {self.state}.",
            message=self.message,
            retry=self.retry,
            document=self.document,
        )


@dataclass(frozen=True, kw_only=True)
class Refused(Told):
    """This call did not bring the effect about: it was refused by the gateway or the provider, or withdrawn unsent.

    Attributes:
        code: the problem (`conflict`, `provider-refused`, `invalid-input`, ...).
        title: of the problem.
        status: the HTTP status it came with; None where the reservation was looked at after a 202.
        detail: what is wrong and what to change, for a developer.
        path: the JSON path of the offending value, where there is one.
    """

    code: str
    title: str
    status: int | None
    detail: str
    path: str | None

    @property
    def error(self) -> OutboxError:
        """The same as an exception, of the class that `agent_outbox.errors.ERRORS` has for its code."""
        return _error(self)

    def expect_done(self) -> NoReturn:
        """Raise the refusal.

        Raises:
            OutboxError: `error`.
        """
        raise self.error from self.raised


@dataclass(frozen=True, kw_only=True)
class InDoubt(Told):
    """It was sent and nobody knows whether it happened. It must not be repeated by another way, nor told as failed or done.

    Attributes:
        code: `in-doubt` or `contradiction`.
        title: of the problem.
        status: the HTTP status it came with; None where the reservation was looked at after a 202.
        detail: what is known, for a developer.
        doubt: since when, why, and what is done about it; None where the answer does not say.
    """

    code: str
    title: str
    status: int | None
    detail: str
    doubt: Doubt | None

    @property
    def error(self) -> OutboxError:
        """The same as an exception: `InDoubtError` or `ContradictionError`."""
        return _error(self)

    def expect_done(self) -> NoReturn:
        """Raise the doubt.

        Raises:
            OutboxError: `error`.
        """
        raise self.error from self.raised


CallResult = Union[Done, Waiting, Refused, InDoubt]
"""What `Outbox.call` returns."""


@dataclass(frozen=True, kw_only=True)
class Resolution(Told):
    """What a call would come to; nothing was written and nothing was sent.

    Attributes:
        state: of the live holder of the operation key, which the call would join; None where it would be reserved.
    """

    @property
    def would_join(self) -> bool:
        """Whether the call would meet an effect that exists or is under way."""
        return self.state is not None


@dataclass(frozen=True, kw_only=True)
class Reservation(Told):
    """A reservation as it stands.

    Attributes:
        reservation_id: of it.
        state: it is in.
        provider, connection, tool, contract_version, project: what it is about.
        occurrence: which intended repetition of the operation it is.
        reference: the caller's own name of the business case.
        amount: the money it moves, where the tool moves any.
        declared: the input fields that the contract keeps; numbers in clear, others as keyed digests.
        actor_chain: who acts, on whose behalf.
        checkpoint, step, call_id, model, trace_id: as the call named them.
        created_at, changed_at, settled_at, not_after: when it was made, last changed, closed, and until when it may be sent.
        attempts: each sending of its request; empty in lists.
        requesters: each tool call that met it; empty in lists.
        evidence: what became known beside the receipt; empty in lists.
    """

    reservation_id: str
    state: str
    provider: str
    connection: str
    tool: str
    contract_version: int
    project: str
    occurrence: int
    reference: str | None
    amount: Money | None
    declared: Mapping[str, Any] = field(hash=False)
    actor_chain: tuple[str, ...]
    checkpoint: str | None
    step: str | None
    call_id: str | None
    model: str | None
    trace_id: str | None
    created_at: datetime
    changed_at: datetime
    settled_at: datetime | None
    not_after: datetime | None
    attempts: tuple[Mapping[str, Any], ...] = field(hash=False, repr=False)
    requesters: tuple[Mapping[str, Any], ...] = field(hash=False, repr=False)
    evidence: tuple[Mapping[str, Any], ...] = field(hash=False, repr=False)

    def __bool__(self) -> bool:
        """Whether it succeeded."""
        return self.state == "succeeded"

    @property
    def answer(self) -> CallResult:
        """What whoever waits for this reservation is told now."""
        return read_shown(self.document)


def read_answer_to_call(status: int, document: Mapping[str, Any], *, tool: str) -> CallResult:
    """The result that an answer to a tool call is.

    Args:
        status: its HTTP status; below 400, or that of a problem in `REFUSALS` or `DOUBTS`.
        document: its body.
        tool: that was called; a receipt of another tool is no answer to this call.

    Raises:
        UnexpectedAnswerError: it is not as expected.
    """
    members = Members(document, "answer")
    if status >= 400:
        code = members.text("code")
        return _in_doubt(members, status) if code in DOUBTS else _refused(members, status)
    if status == 202:
        return _waiting(members)
    done = _done(members)
    if status != 200 or done.receipt.tool != tool:
        raise unexpected("it answers another call", status=status)
    return done


def read_shown(document: Mapping[str, Any], *, replayed: bool = False) -> CallResult:
    """The result that a reservation is, which was looked at after its call was answered 202.

    Args:
        document: the reservation.
        replayed: whether the call had met the reservation of another one.

    Raises:
        UnexpectedAnswerError: it is not as expected.
    """
    members = Members(document, "reservation")
    state = members.text("state")
    if state == "succeeded":
        return replace(_done(members), replayed=replayed)
    if state in OPEN:
        return replace(_waiting(members), replayed=replayed)
    if state == "in_doubt":
        return replace(_in_doubt(members, None), replayed=replayed)
    return replace(_refused(members, None), replayed=replayed)


def read_resolution(document: Mapping[str, Any]) -> Resolution:
    """What a call would come to.

    Args:
        document: the answer of `POST /v1/tool-calls/resolve`.

    Raises:
        UnexpectedAnswerError: it is not as expected.
    """
    return Resolution(**_told(Members(document, "answer")))


def read_reservation(document: object) -> Reservation:
    """A reservation.

    Args:
        document: as it stands in a list or alone.

    Raises:
        UnexpectedAnswerError: it is not as expected.
    """
    members = Members(document, "reservation")
    amount = members.object_or_none("amount")
    told = _told(members) | {"reservation_id": members.text("reservation_id"), "state": members.text("state")}
    return Reservation(
        **told,
        provider=members.text("provider"),
        connection=members.text("connection"),
        tool=members.text("tool"),
        contract_version=members.whole("contract_version"),
        project=members.text("project"),
        occurrence=members.whole("occurrence"),
        reference=members.text_or_none("reference"),
        amount=None if amount is None else Money(value=amount.whole("value"), currency=amount.text("currency")),
        declared=members.mapping_or_none("declared") or {},
        actor_chain=members.texts("actor_chain"),
        checkpoint=members.text_or_none("checkpoint"),
        step=members.text_or_none("step"),
        call_id=members.text_or_none("call_id"),
        model=members.text_or_none("model"),
        trace_id=members.text_or_none("trace_id"),
        created_at=members.moment("created_at"),
        changed_at=members.moment("changed_at"),
        settled_at=members.moment_or_none("settled_at"),
        not_after=members.moment_or_none("not_after"),
        attempts=tuple(Members(item, "attempt").document for item in members.list_of("attempts")),
        requesters=tuple(Members(item, "requester").document for item in members.list_of("requesters")),
        evidence=tuple(Members(item, "evidence").document for item in members.list_of("evidence")),
    )


def read_problem(status: int, document: Mapping[str, Any]) -> OutboxError:
    """The exception of a problem document.

    Args:
        status: the HTTP status it came with.
        document: as the gateway gave it. A code that this client does not know makes a plain `OutboxError`.

    Raises:
        UnexpectedAnswerError: it is none.
    """
    members = Members(document, "problem")
    code = members.text("code")
    return ERRORS.get(code, OutboxError)(
        members.text("detail"),
        message=members.text("message"),
        code=code,
        status=status,
        path=members.text_or_none("path"),
        retry=read_retry(document.get("retry")),
        document=document,
    )


def is_a_result(code: str) -> bool:
    """Whether a problem is a result of a call, and not an error that keeps it from being answered."""
    return code in REFUSALS or code in DOUBTS


def _told(members: Members) -> dict[str, Any]:
    receipt = members.mapping_or_none("receipt")
    return {
        "message": members.text("message"),
        "is_error": members.truth("is_error"),
        "state": members.text_or_none("state"),
        "retry": read_retry(members.document.get("retry")),
        "replayed": members.truth("replayed"),
        "replay": read_replay(members.object_or_none("replay")),
        "reservation_id": members.text_or_none("reservation_id"),
        "operation_key": members.text_or_none("operation_key"),
        "input_digest": members.text_or_none("input_digest"),
        "guarantee_class": members.text_or_none("guarantee_class"),
        "owner": members.text_or_none("owner"),
        "result": members.document.get("result"),
        "receipt": read_receipt(receipt) if receipt else None,
        "failure": read_failure(members.object_or_none("failure")),
        "decision": read_decision(members.object_or_none("decision")),
        "review": members.mapping_or_none("review"),
        "run": read_run(members.object_or_none("run")),
        "document": members.document,
    }


def _done(members: Members) -> Done:
    if members.text("state") != "succeeded" or not members.document.get("receipt"):
        raise unexpected("it says that it is done, without a receipt")
    told = _told(members) | {"state": "succeeded", "reservation_id": members.text("reservation_id")}
    return Done(**told)


def _waiting(members: Members) -> Waiting:
    told = _told(members) | {"state": members.text("state"), "reservation_id": members.text("reservation_id")}
    return Waiting(**told)


def _refused(members: Members, status: int | None) -> Refused:
    return Refused(**_told(members), **_problem(members, status), path=members.text_or_none("path"))


def _in_doubt(members: Members, status: int | None) -> InDoubt:
    return InDoubt(**_told(members), **_problem(members, status), doubt=read_doubt(members.object_or_none("doubt")))


def _problem(members: Members, status: int | None) -> dict[str, Any]:
    """The problem's own members; a reservation that was looked at has none, and its state says which problem it is."""
    code = members.text_or_none("code") or _code_of_state(members)
    known = ERRORS.get(code, OutboxError)
    return {
        "code": code,
        "title": members.text_or_none("title") or known.title,
        "status": status,
        "detail": members.text_or_none("detail") or f"{known.title}.",
    }


def _code_of_state(members: Members) -> str:
    state, failure = members.text("state"), members.object_or_none("failure")
    if state == "failed":
        return "failed" if failure is None or failure.whole_or_none("provider_status") is None else "provider-refused"
    codes = {"in_doubt": "in-doubt", "denied": "review-denied", "voided": "voided"}
    if state not in codes:
        raise UnexpectedAnswerError(f"There is no state {state!r} that this client knows.")
    return codes[state]


def _error(told: Refused | InDoubt) -> OutboxError:
    return ERRORS.get(told.code, OutboxError)(
        told.detail,
        message=told.message,
        code=told.code,
        status=told.status,
        path=told.path if isinstance(told, Refused) else None,
        retry=told.retry,
        document=told.document,
    )
