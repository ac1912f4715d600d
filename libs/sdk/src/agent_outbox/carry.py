"""Effects that the caller's own code carries out: what is asked of the gateway before, while and after.

It is pure like `conversation`, but for what it keeps in the spool. A conversation here may also yield `Perform`: whoever carries
it out calls the handler (or the probe), keeps the lease meanwhile, and sends back what came of it. The order is always the same:

1. What earlier processes could not deliver is delivered first.
2. The attempt is reserved. Without an answer that says so no handler runs.
3. The handler runs, once.
4. What became of it is kept on disk, then told to the gateway; what the gateway says stands is the result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Literal, TypeVar, Union
from urllib.parse import quote
from uuid import uuid4

from agent_outbox import strict_json
from agent_outbox.classify import Classified, classify
from agent_outbox.conversation import (
    ANSWER_SECONDS_MAX,
    PAUSE_SECONDS_MIN,
    Answer,
    Clock,
    Heard,
    NoAnswer,
    Patience,
    Pause,
    Request,
    answer_seconds,
    ask,
    hear,
    reservation_path,
    seconds_to_ask,
)
from agent_outbox.effect import AsyncHandler, AsyncProbe, Classify, Effect, Found, Handler, Lease, Probe, ReceiptOf, Success
from agent_outbox.errors import (
    ASK_AGAIN_SECONDS,
    DOUBTS,
    BadHandlerError,
    InvalidInputError,
    OutboxError,
    Retry,
    SpoolFullError,
    TooLargeError,
    UnreachableError,
    unexpected,
    unreachable,
)
from agent_outbox.receipt import Members
from agent_outbox.results import CallResult, InDoubt, Waiting, is_a_result, read_answer_to_call, read_shown
from agent_outbox.spool import Entry, Spool
from agent_outbox.stored_form import stored_form

LOG = logging.getLogger(__name__)

T = TypeVar("T")

SETTLE_SECONDS = 15.0
"""How long the caller waits until the gateway knows what became of its effect; afterwards it is delivered in the background."""

DELIVER_SECONDS = 10.0
"""How long one try takes to deliver what was kept."""

ASK_AGAIN_SECONDS_MAX = 5.0
"""How long nobody asks at most while another's attempt or doubt is waited for."""

DELIVERED_FIRST_MAX = 20
"""How many settlements that were kept are delivered before something new is begun."""

ATTEMPTS_MAX = 5
"""How many attempts one call begins whose lease is over before its handler could begin."""

LATE = frozenset({"attempt-closed", "outcome-differs"})
"""The attempt was closed without this settlement; it is kept as evidence, and what stands is looked at."""

RECORDED = LATE | DOUBTS
"""Problems after which the gateway has what it was told."""

NOT_TAKEN = frozenset({"attempt-unknown", "not-found", "not-client-executed", "too-large", "invalid-input", *RECORDED})
"""Problems by which the gateway refuses a settlement for good."""

MOVED_ON = frozenset({"not-probed", "attempt-unknown", "attempt-closed"})
"""A look is not wanted any more: the doubt has an end, or somebody else has it."""

_MESSAGE = "Not finished. Ask again in {seconds} s with the same arguments; that joins this one and starts nothing new."


@dataclass(frozen=True, kw_only=True)
class Want:
    """An effect that is wanted, ready to be asked for.

    Attributes:
        tool: that is called.
        document: the members of the request, but the attempt's id.
        headers: of every request.
        handler: carries the effect out; None: the caller does, later.
        probe: looks whether it exists.
        time_limit: of the handler, in seconds.
        receipt: finds the provider's name of the effect in a result.
        classify: what an exception says, before the lists are asked.
        wait: how many seconds others' attempts and doubts are waited for; None leaves it to the gateway.
        deadline: how many seconds the gateway may take to answer, waiting included; None without end.
        attempt_id: of the attempt; None: a new one is made up.
    """

    tool: str
    document: Mapping[str, Any]
    headers: tuple[tuple[str, str], ...]
    handler: Handler | AsyncHandler | None
    probe: Probe | AsyncProbe | None
    time_limit: float | None
    receipt: ReceiptOf | None
    classify: Classify | None
    wait: float | None
    deadline: float | None
    attempt_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Perform:
    """The caller's own code is called.

    Attributes:
        function: the handler or the probe.
        effect: what it is given.
        is_probe: a probe has no lease and changes nothing.
        want: whose it is.
    """

    function: Callable[[Effect], Any]
    effect: Effect
    is_probe: bool
    want: Want


@dataclass(frozen=True, kw_only=True)
class Performed:
    """What came of it.

    Attributes:
        value: it returned, where `error` and `cut_off` are None.
        error: it raised.
        cut_off: why it had no time any more (`time limit`, `lease over`, `lease lost`); it may go on all the same.
        raise_: what the caller is to be told after all, such as that it was cancelled.
    """

    value: object = None
    error: BaseException | None = None
    cut_off: str | None = None
    raise_: BaseException | None = None


Delivery = Literal["done", "later", "away"]

Carrying = Generator[Union[Request, Pause, Perform], Union[Answer, NoAnswer, Performed, None], T]
"""A conversation in which the caller's own code has a part."""


@dataclass(frozen=True, kw_only=True)
class ProbeFirst:
    """The caller must look whether an earlier attempt had its effect.

    Attributes:
        effect: for the probe.
        document: the gateway's answer.
        again_seconds: how long to wait between two looks that count.
    """

    effect: Effect
    document: Mapping[str, Any]
    again_seconds: float


def carrying(want: Want, spool: Spool, clock: Clock) -> Carrying[CallResult]:
    """Have an effect carried out by the caller's handler, once.

    Args:
        want: what is wanted.
        spool: keeps what became of it.
        clock: monotonic seconds that go on while the machine sleeps.

    Returns:
        What came of it, here or with somebody else who carries the same effect out.

    Raises:
        OutboxError: it could not be asked for, or was not answered in time; then no handler has run. Or the gateway would not
            take what became of it, and nothing is known of what stands.
    """
    yield from delivering_waiting(spool, want.headers, clock)
    if spool.is_full():
        raise SpoolFullError(f"Too much waits in {spool.folder} to be delivered; nothing new is begun.")
    patience = Patience(want.deadline, clock)
    waiting = Patience(0.0 if want.wait is None else want.wait, clock)
    for _ in range(ATTEMPTS_MAX):
        reserved = yield from reserving(want, patience, waiting, clock)
        while isinstance(reserved, ProbeFirst):
            looked = yield from _looking_first(want, reserved, patience, waiting, clock)
            if looked is not None:
                return looked
            reserved = yield from reserving(want, patience, waiting, clock)
        if not isinstance(reserved, Effect):
            return reserved
        if (yield from _is_held(reserved, want.headers, clock)):
            assert want.handler is not None
            reserved.lease.begin(want.time_limit)
            performed = yield Perform(function=want.handler, effect=reserved, is_probe=False, want=want)
            assert isinstance(performed, Performed)
            return (yield from concluding(want, reserved, performed, spool, clock))
        # The lease was over before the handler could begin, so nothing was sent under it.
        unsent = {"attempt_id": reserved.attempt_id, "outcome": "unsent", "reason": "lease over before it began"}
        yield from _telling(want, reserved, unsent, spool, clock)
    raise unreachable("no lease lasted until the handler could begin", possibly_recorded=True)


def reserving(want: Want, patience: Patience, waiting: Patience, clock: Clock) -> Carrying[Effect | ProbeFirst | CallResult]:
    """Ask for the right to an effect, waiting for whoever has it.

    Args:
        want: what is wanted.
        patience, waiting: what is left of both.
        clock: monotonic seconds.

    Returns:
        The attempt; or that a look at the provider is due first; or what came of somebody else's.
    """
    attempt_id, asked_at, asked_seconds = want.attempt_id or str(uuid4()), 0.0, 0

    def request() -> Request:
        nonlocal asked_at, asked_seconds
        headers = (*want.headers, ("Content-Type", "application/json"))
        asked_at, asked_seconds = clock(), 60
        if want.wait is not None:
            asked_seconds = seconds_to_ask(waiting, patience)
            headers += (("Prefer", f"wait={asked_seconds}" if asked_seconds else "respond-async"),)
        return Request(
            method="POST",
            path="/v1/reservations",
            headers=headers,
            body=strict_json.write({**want.document, "attempt_id": attempt_id}),
            seconds=answer_seconds(asked_seconds, patience),
        )

    while True:
        heard = yield from ask(request, patience)
        error = heard.error
        if want.attempt_id is None and _is_of_our_own(heard, attempt_id):
            # A grant was answered into the void and its lease is over. No handler ran under it, and nobody else can know that.
            reservation_id = heard.document.get("reservation_id")
            if isinstance(reservation_id, str):
                yield from _disowning(reservation_id, attempt_id, want.headers, patience)
            attempt_id = str(uuid4())
            continue
        if error is not None and not is_a_result(error.code):
            raise error
        if heard.status == 201:
            return _given(want, heard, attempt_id, asked_at, clock)
        result = read_answer_to_call(heard.status, heard.document, tool=want.tool)
        if not isinstance(result, Waiting) and not (isinstance(result, InDoubt) and result.retry.action == "wait"):
            return result
        left = min(waiting.left(), patience.left())
        if left < 1:
            return result
        if not (asked_seconds > 0 and clock() - asked_at >= 0.9 * asked_seconds):
            after = result.retry.after_seconds
            # Somebody else may end it long before the gateway expects it.
            after = ASK_AGAIN_SECONDS if after is None else min(after, ASK_AGAIN_SECONDS_MAX)
            yield Pause(seconds=min(max(after, PAUSE_SECONDS_MIN), left))


def reserving_alone(want: Want, spool: Spool, clock: Clock) -> Carrying[Effect | CallResult]:
    """Ask for the right to an effect that the caller carries out without a handler; as `carrying` until the handler begins."""
    yield from delivering_waiting(spool, want.headers, clock)
    if spool.is_full():
        raise SpoolFullError(f"Too much waits in {spool.folder} to be delivered; nothing new is begun.")
    patience = Patience(want.deadline, clock)
    reserved = yield from reserving(want, patience, Patience(0.0 if want.wait is None else want.wait, clock), clock)
    if isinstance(reserved, ProbeFirst):
        raise unexpected("it asks for a look that was not offered", status=201)
    if isinstance(reserved, Effect):
        if not (yield from _is_held(reserved, want.headers, clock)):
            raise unreachable("the lease was over before it could begin", possibly_recorded=True)
        reserved.lease.begin(want.time_limit)
    return reserved


def heartbeating(effect: Effect, headers: tuple[tuple[str, str], ...], clock: Clock) -> Carrying[bool]:
    """Ask once for the lease to be renewed.

    Args:
        effect: whose lease.
        headers: of the request.
        clock: monotonic seconds.

    Returns:
        Whether it was. Where the attempt is somebody else's by now, the lease says so from now on; where there was no answer, it
        stays as it is.
    """
    asked_at = clock()
    seconds = max(min(ANSWER_SECONDS_MAX, effect.lease.seconds / 3), PAUSE_SECONDS_MIN)
    reply = yield _post(effect, "heartbeat", {"attempt_id": effect.attempt_id}, headers, seconds)
    try:
        assert not isinstance(reply, Performed)
        heard = hear(reply)
    except OutboxError:
        return False
    if heard.error is not None:
        if heard.error.code in ("lease-lost", "attempt-unknown", "attempt-closed", "not-found"):
            effect.lease.lost = True
        return False
    granted = heard.document.get("lease_seconds")
    if isinstance(granted, bool) or not isinstance(granted, (int, float)):
        return False
    effect.lease.extend(asked_at=asked_at, seconds=float(granted))
    return True


def telling_unknown(effect: Effect, reason: str, headers: tuple[tuple[str, str], ...], clock: Clock) -> Carrying[bool]:
    """Tell once that an effect is in doubt whose handler goes on after its time. Where nobody hears it, the lease says it too.

    Returns:
        Whether the gateway has it.
    """
    body = {"attempt_id": effect.attempt_id, "outcome": "unknown", "reason": _plain(reason)}
    reply = yield _post(effect, "settle", body, headers, ANSWER_SECONDS_MAX)
    try:
        assert not isinstance(reply, Performed)
        return hear(reply).error is None
    except OutboxError:
        return False


def concluding(want: Want, effect: Effect, performed: Performed, spool: Spool, clock: Clock) -> Carrying[CallResult]:
    """Keep and tell what became of an effect.

    Args:
        want: what was wanted.
        effect: the attempt.
        performed: what the handler did.
        spool: keeps it.
        clock: monotonic seconds.

    Returns:
        What stands at the gateway now. Where the gateway cannot be reached: that it has no end yet; it is delivered later.

    Raises:
        BaseException: `performed.raise_`, after it was kept.
        OutboxError: the gateway would not take it, and nothing is known of what stands.
    """
    body = settlement(want, effect, performed)
    if performed.raise_ is not None:
        entry = spool.keep(settle_path(effect), body)
        spool.release(entry)
        raise performed.raise_
    result = yield from _telling(want, effect, body, spool, clock)
    return replace(result, raised=performed.error)


def settlement(want: Want, effect: Effect, performed: Performed) -> dict[str, Any]:
    """The body that tells the gateway what a handler did. Never fails: what a result cannot say is left out of it.

    Args:
        want: whose `receipt` and `classify` are asked.
        effect: the attempt.
        performed: what the handler did.
    """
    if performed.cut_off is not None:
        return {"attempt_id": effect.attempt_id, "outcome": "unknown", "reason": performed.cut_off}
    if performed.error is not None:
        return {"attempt_id": effect.attempt_id, **_told_of(performed.error, want.classify)}
    return {"attempt_id": effect.attempt_id, **success_members(performed.value, want.receipt)}


def success_members(value: object, receipt: ReceiptOf | None) -> dict[str, Any]:
    """What a settlement says of a success.

    Args:
        value: as the handler returned it, a `Success` or any other.
        receipt: finds the provider's name of the effect in it.
    """
    success = value if isinstance(value, Success) else Success(result=value)
    reference = success.external_reference
    if reference is None and receipt is not None:
        try:
            found = receipt(success.result)
            reference = None if found is None else str(found)
        except Exception as error:
            LOG.warning("receipt= found nothing in the result (%s); the effect is recorded without it", type(error).__name__)
    members: dict[str, Any] = {"outcome": "succeeded", "result": stored_form(success.result).value}
    if reference is not None:
        members["external_reference"] = reference
    if success.provider_request_id is not None:
        members["provider_request_id"] = success.provider_request_id
    if success.amount is not None:
        members["amount"] = {"value": success.amount.value, "currency": success.amount.currency}
    return members


def settle_body(
    effect: Effect,
    outcome: str,
    success: Success,
    *,
    reason: str | None,
    provider_status: int | None,
    provider_code: str | None,
    provider_message: str | None,
    stored: bool,
) -> dict[str, Any]:
    """The body of a settlement that the caller has worded.

    Args:
        effect: the attempt.
        outcome: what it came to.
        success: what is said of one.
        reason: a few plain words.
        provider_status, provider_code, provider_message, stored: of a refusal.
    """
    body: dict[str, Any] = {"attempt_id": effect.attempt_id, "outcome": outcome}
    if outcome == "succeeded":
        body.update(success_members(success, None))
    said = {
        "reason": None if reason is None else _plain(reason),
        "provider_status": provider_status,
        "provider_code": provider_code,
        "provider_message": provider_message,
        "stored": True if stored else None,
    }
    return {**body, **{name: value for name, value in said.items() if value is not None}}


def settling(want: Want, effect: Effect, body: Mapping[str, Any], spool: Spool, clock: Clock) -> Carrying[CallResult]:
    """Keep and tell a settlement that the caller has written; as `concluding`."""
    return (yield from _telling(want, effect, body, spool, clock))


def voiding(want: Want, effect: Effect, reason: str, clock: Clock) -> Carrying[CallResult]:
    """Give the right to an effect back; nothing was sent.

    Args:
        want: what was wanted.
        effect: the attempt.
        reason: a few plain words.
        clock: monotonic seconds.

    Raises:
        OutboxError: any problem.
    """
    patience = Patience(SETTLE_SECONDS, clock)
    body = {"attempt_id": effect.attempt_id, "reason": reason}
    heard = yield from ask(lambda: _post(effect, "void", body, want.headers, answer_seconds(0, patience)), patience)
    if heard.error is not None:
        raise heard.error
    return read_shown(heard.document)


def delivering(entry: Entry, spool: Spool, headers: tuple[tuple[str, str], ...], clock: Clock) -> Carrying[Delivery]:
    """Deliver one settlement that was kept.

    Args:
        entry: of the spool.
        spool: keeps it.
        headers: of the request.
        clock: monotonic seconds.

    Returns:
        `done`: the gateway has answered it, and it is not kept any more; `later`: not this one now; `away`: none now.
    """
    patience = Patience(DELIVER_SECONDS, clock)
    request = _bare(entry.path, entry.body, headers, patience)
    try:
        heard = yield from ask(lambda: request, Patience(0.0, clock))
    except UnreachableError:
        return "away"
    except OutboxError:
        return "later"
    if heard.error is None:
        spool.remove(entry)
        return "done"
    if heard.error.code not in NOT_TAKEN:
        return "later"
    refused = heard.error.code not in RECORDED
    if refused:
        LOG.error("the gateway does not take what became of an effect (%s); it is kept beside the others", heard.error.code)
    spool.remove(entry, refused=refused)
    return "done"


def delivering_waiting(spool: Spool, headers: tuple[tuple[str, str], ...], clock: Clock) -> Carrying[bool]:
    """Deliver what was kept, oldest first, while the gateway answers.

    Returns:
        Whether nothing waits any more.
    """
    entries = spool.waiting()
    done = len(entries) <= DELIVERED_FIRST_MAX
    for entry in entries[:DELIVERED_FIRST_MAX]:
        delivery = yield from delivering(entry, spool, headers, clock)
        if delivery == "away":
            return False
        done = done and delivery == "done"
    return done


def _is_of_our_own(heard: Heard, attempt_id: str) -> bool:
    """Whether an answer may speak of an attempt that an earlier try of the same request was granted."""
    if heard.error is not None:
        return heard.error.code == "attempt-closed" or (heard.error.code == "in-doubt" and heard.possibly_recorded)
    probe = heard.document.get("probe")
    return heard.status == 201 and isinstance(probe, Mapping) and probe.get("attempt_id") == attempt_id


def _disowning(reservation_id: str, attempt_id: str, headers: tuple[tuple[str, str], ...], patience: Patience) -> Carrying[None]:
    """Tell that nothing was sent under an attempt. Where it is none of ours after all, that changes nothing."""
    body = {"attempt_id": attempt_id, "outcome": "unsent", "reason": "its grant was never heard"}
    path = f"{reservation_path(reservation_id)}/settle"
    try:
        yield from ask(lambda: _bare(path, body, headers, patience), patience)
    except OutboxError:
        return


def settle_path(effect: Effect) -> str:
    """Where an effect's attempts are settled."""
    return f"{reservation_path(effect.reservation_id)}/settle"


def _given(want: Want, heard: Heard, attempt_id: str, asked_at: float, clock: Clock) -> Effect | ProbeFirst:
    """The attempt, or the look, that a 201 grants."""
    members = Members(heard.document, "answer")
    attempt, probe = members.object_or_none("attempt"), members.object_or_none("probe")
    if attempt is None and probe is not None and want.probe is not None:
        effect = Effect(
            tool=want.tool,
            input=want.document["input"],
            reservation_id=members.text("reservation_id"),
            operation_key=members.text_or_none("operation_key"),
            attempt_id=probe.text("attempt_id"),
            number=probe.whole_or_none("number") or 0,
            provider_key=probe.text_or_none("provider_key") or "",
            marker=probe.text("marker"),
            recovering=True,
            time_limit=None,
            deadline=None,
            lease=Lease(asked_at=clock(), seconds=float("inf"), clock=clock),
        )
        return ProbeFirst(effect=effect, document=heard.document, again_seconds=_seconds(probe, "again_seconds"))
    if attempt is None or attempt.text("id") != attempt_id:
        raise unexpected("it grants another attempt than was asked for", status=heard.status)
    deadline = None if want.time_limit is None else datetime.now(timezone.utc) + timedelta(seconds=want.time_limit)
    return Effect(
        tool=want.tool,
        input=want.document["input"],
        reservation_id=members.text("reservation_id"),
        operation_key=members.text_or_none("operation_key"),
        attempt_id=attempt_id,
        number=attempt.whole("number"),
        provider_key=attempt.text("provider_key"),
        marker=attempt.text("marker"),
        recovering=attempt.truth("recovering"),
        time_limit=want.time_limit,
        deadline=deadline,
        lease=Lease(asked_at=asked_at, seconds=_seconds(attempt, "lease_seconds"), clock=clock),
    )


def _is_held(effect: Effect, headers: tuple[tuple[str, str], ...], clock: Clock) -> Carrying[bool]:
    """Whether enough is left of a lease to begin. Where the answer took long, nobody knows since when it runs: it is renewed."""
    lease = effect.lease
    if lease.left() >= 0.7 * lease.seconds:
        return True
    while not lease.lost:
        if (yield from heartbeating(effect, headers, clock)):
            return lease.over() is None
        if lease.over() is not None:
            return False
        yield Pause(seconds=max(min(0.2, lease.left()), PAUSE_SECONDS_MIN))
    return False


def _telling(want: Want, effect: Effect, body: Mapping[str, Any], spool: Spool, clock: Clock) -> Carrying[CallResult]:
    path = settle_path(effect)
    entry = spool.keep(path, body)
    patience = Patience(SETTLE_SECONDS, clock)
    told = False
    try:
        heard = yield from ask(lambda: _bare(path, body, want.headers, patience), patience)
        if (
            heard.error is not None
            and body["outcome"] == "succeeded"
            and isinstance(heard.error, (TooLargeError, InvalidInputError))
        ):
            # What is said of a success must not keep it from being one.
            bare = {"attempt_id": effect.attempt_id, "outcome": "succeeded", "result": {"$not_stored": {"type": "object"}}}
            heard = yield from ask(lambda: _bare(path, bare, want.headers, patience), patience)
        told = heard.error is None or heard.error.code in NOT_TAKEN
        if told:
            spool.remove(entry, refused=heard.error is not None and heard.error.code not in RECORDED)
    except UnreachableError:
        return _not_delivered(effect, body)
    finally:
        if not told:
            spool.release(entry)
    error = heard.error
    if error is None:
        return read_shown(heard.document)
    if error.code in DOUBTS:
        return read_answer_to_call(heard.status, heard.document, tool=want.tool)
    if error.code in LATE:
        return (yield from _looked_at(effect, want.headers, error, clock))
    if error.retry.action in ("same-request", "wait"):
        return _not_delivered(effect, body)
    raise error


def _looked_at(effect: Effect, headers: tuple[tuple[str, str], ...], error: OutboxError, clock: Clock) -> Carrying[CallResult]:
    """What stands, where an attempt was closed by somebody else."""
    patience = Patience(SETTLE_SECONDS, clock)

    def request() -> Request:
        return Request(
            method="GET", path=reservation_path(effect.reservation_id), headers=headers, seconds=answer_seconds(0, patience)
        )

    try:
        heard = yield from ask(request, patience, records=False)
    except OutboxError:
        raise error from None
    if heard.error is not None:
        raise error
    return read_shown(heard.document, replayed=True)


def _not_delivered(effect: Effect, body: Mapping[str, Any]) -> Waiting:
    """The effect was carried out, or not, and the gateway does not know yet: it has no end."""
    LOG.warning("what became of the effect %s is not delivered yet; it is kept and tried again", effect.reservation_id)
    message, seconds = _MESSAGE.format(seconds=int(ASK_AGAIN_SECONDS)), ASK_AGAIN_SECONDS
    return Waiting(
        message=message,
        is_error=False,
        state="executing",
        retry=Retry(action="wait", after_seconds=seconds, url=reservation_path(effect.reservation_id)),
        replayed=False,
        replay=None,
        reservation_id=effect.reservation_id,
        operation_key=effect.operation_key,
        input_digest=None,
        guarantee_class=None,
        owner=None,
        result=body.get("result"),
        receipt=None,
        failure=None,
        decision=None,
        review=None,
        run=None,
        document={},
    )


def _looking_first(
    want: Want, first: ProbeFirst, patience: Patience, waiting: Patience, clock: Clock
) -> Carrying[CallResult | None]:
    """Look whether an earlier attempt had its effect, until that is known or the time is over.

    Returns:
        What stands; None where the effect is proven absent, so that it may be asked for again.
    """
    effect, last = first.effect, read_shown(first.document)
    assert want.probe is not None
    path = f"{reservation_path(effect.reservation_id)}/probes"
    begin = partial(_bare, path, {"attempt_id": effect.attempt_id}, want.headers, patience)
    while True:
        begun = yield from ask(begin, patience)
        if begun.error is not None:
            # The doubt has moved on: another attempt, an end, or somebody else's answer.
            if begun.error.code in MOVED_ON:
                return None
            raise begun.error
        look = Members(begun.document, "probe")
        performed = yield Perform(function=want.probe, effect=effect, is_probe=True, want=want)
        assert isinstance(performed, Performed)
        if performed.raise_ is not None:
            raise performed.raise_
        pause = first.again_seconds
        if performed.error is not None:
            LOG.warning("the probe failed (%s), so it says nothing", type(performed.error).__name__)
            last = replace(last, raised=performed.error)
        else:
            answer = _looked(performed.value, want.receipt)
            where = f"{path}/{quote(look.text('probe_id'), safe='')}"
            heard = yield from ask(partial(_bare, where, answer, want.headers, patience), patience)
            if heard.error is not None:
                if heard.error.code in MOVED_ON:
                    return None
                raise heard.error
            last = read_shown(heard.document)
            if last.state == "reserved":
                return None
            again = Members(heard.document, "answer").object_or_none("probe")
            if not isinstance(last, InDoubt):
                return None if last.state == "executing" else last
            if again is not None and again.document.get("again_seconds") is not None:
                pause = _seconds(again, "again_seconds")
        if not look.truth("counts"):
            pause = max(pause if performed.error is not None else 0.0, _seconds(look, "counts_in_seconds"))
        if pause >= min(waiting.left(), patience.left()):
            return last
        yield Pause(seconds=max(pause, PAUSE_SECONDS_MIN))


def _looked(value: object, receipt: ReceiptOf | None) -> dict[str, Any]:
    """The answer of a probe, as the gateway is told it."""
    if value is None:
        return {"found": False}
    if isinstance(value, str) and value:
        return {"found": True, "external_reference": value}
    if isinstance(value, Found) and value.external_reference:
        result = {} if value.result is None else {"result": stored_form(value.result).value}
        return {"found": True, "external_reference": value.external_reference, **result}
    raise BadHandlerError(f"probe: expected it to return the effect's reference, Found(...) or None, not {type(value).__name__}.")


def _told_of(error: BaseException, own: Classify | None) -> dict[str, Any]:
    """What a settlement says of an exception."""
    classified: Classified | None = None
    if own is not None and isinstance(error, Exception):
        try:
            verdict = own(error)
            classified = Classified(outcome=verdict, reason=type(error).__name__) if isinstance(verdict, str) else verdict
            if classified is not None and classified.outcome not in ("rejected", "deferred", "unsent", "unknown"):
                raise ValueError("no such outcome")
        except Exception as raised:
            LOG.warning("classify= failed (%s), so the exception says nothing", type(raised).__name__)
            classified = Classified(outcome="unknown", reason=type(error).__name__)
    if classified is None:
        classified = classify(error)
    members: dict[str, Any] = {"outcome": classified.outcome, "reason": _plain(classified.reason)}
    if classified.provider_status is not None and 100 <= classified.provider_status <= 999:
        members["provider_status"] = classified.provider_status
    if classified.provider_code is not None:
        members["provider_code"] = classified.provider_code
    if classified.stored and classified.outcome == "rejected":
        members["stored"] = True
    return members


def _plain(reason: str) -> str:
    """A reason as the gateway takes one: a few plain words."""
    words = "".join(
        character if character.isascii() and (character.isalnum() or character in " _.:/-") else " " for character in reason
    )
    return words.strip()[:100] or "exception"


def _post(effect: Effect, verb: str, body: Mapping[str, Any], headers: tuple[tuple[str, str], ...], seconds: float) -> Request:
    return Request(
        method="POST",
        path=f"{reservation_path(effect.reservation_id)}/{verb}",
        headers=(*headers, ("Content-Type", "application/json")),
        body=strict_json.write(body),
        seconds=seconds,
    )


def _bare(path: str, body: Mapping[str, Any], headers: tuple[tuple[str, str], ...], patience: Patience) -> Request:
    return Request(
        method="POST",
        path=path,
        headers=(*headers, ("Content-Type", "application/json")),
        body=strict_json.write(body),
        seconds=answer_seconds(0, patience),
    )


def _seconds(members: Members, name: str) -> float:
    value = members.document.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise unexpected(f"{name} is no number of seconds")
    return max(float(value), 0.0)
