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
from typing import Any, TypeVar, Union
from urllib.parse import quote
from uuid import uuid4

from agent_outbox import strict_json
from agent_outbox.conversation import (
    ANSWER_SECONDS_MAX,
    PAUSE_SECONDS_MIN,
    Answer,
    Clock,
    Headers,
    Heard,
    NoAnswer,
    Patience,
    Pause,
    Request,
    answer_seconds,
    ask,
    hear,
    post,
    reservation_path,
    seconds_to_ask,
)
from agent_outbox.delivery import SETTLE_SECONDS, delivering_waiting, settle_path, telling
from agent_outbox.effect import AsyncHandler, AsyncProbe, Classify, Effect, Found, Handler, Lease, Probe, ReceiptOf
from agent_outbox.errors import (
    ASK_AGAIN_SECONDS,
    BadHandlerError,
    OutboxError,
    SpoolFullError,
    unexpected,
    unreachable,
)
from agent_outbox.receipt import Members
from agent_outbox.results import CallResult, InDoubt, Waiting, is_a_result, read_answer_to_call, read_shown
from agent_outbox.settlement import exception_members, plain_reason, success_members
from agent_outbox.spool import Spool
from agent_outbox.stored_form import stored_form

LOG = logging.getLogger(__name__)

T = TypeVar("T")

ASK_AGAIN_SECONDS_MAX = 5.0
"""How long nobody asks at most while another's attempt or doubt is waited for."""

ATTEMPTS_MAX = 5
"""How many attempts one call begins whose lease is over before its handler could begin."""

MOVED_ON = frozenset({"not-probed", "attempt-unknown", "attempt-closed"})
"""A look is not wanted any more: the doubt has an end, or somebody else has it."""


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
    headers: Headers
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
    yield from delivering_waiting(spool, want.headers, clock, again=False)
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
        yield from telling(reserved, unsent, want.headers, spool, clock)
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
    yield from delivering_waiting(spool, want.headers, clock, again=False)
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


def heartbeating(effect: Effect, headers: Headers, clock: Clock) -> Carrying[bool]:
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
    reply = yield post(
        f"{reservation_path(effect.reservation_id)}/heartbeat", {"attempt_id": effect.attempt_id}, headers, seconds
    )
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


def telling_unknown(effect: Effect, reason: str, headers: Headers, clock: Clock) -> Carrying[bool]:
    """Tell once that an effect is in doubt whose handler goes on after its time. Where nobody hears it, the lease says it too.

    Returns:
        Whether the gateway has it.
    """
    body = {"attempt_id": effect.attempt_id, "outcome": "unknown", "reason": plain_reason(reason)}
    reply = yield post(settle_path(effect), body, headers, ANSWER_SECONDS_MAX)
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
    result = yield from telling(effect, body, want.headers, spool, clock)
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
        return {"attempt_id": effect.attempt_id, **exception_members(performed.error, want.classify)}
    return {"attempt_id": effect.attempt_id, **success_members(performed.value, want.receipt)}


def voiding(effect: Effect, reason: str, headers: Headers, clock: Clock) -> Carrying[CallResult]:
    """Give the right to an effect back; nothing was sent.

    Args:
        effect: the attempt.
        reason: a few plain words.
        headers: of the request.
        clock: monotonic seconds.

    Raises:
        OutboxError: any problem.
    """
    patience = Patience(SETTLE_SECONDS, clock)
    path, body = f"{reservation_path(effect.reservation_id)}/void", {"attempt_id": effect.attempt_id, "reason": reason}
    heard = yield from ask(lambda: post(path, body, headers, answer_seconds(0, patience)), patience)
    if heard.error is not None:
        raise heard.error
    return read_shown(heard.document)


def _is_of_our_own(heard: Heard, attempt_id: str) -> bool:
    """Whether an answer may speak of an attempt that an earlier try of the same request was granted."""
    if heard.error is not None:
        return heard.error.code == "attempt-closed" or (heard.error.code == "in-doubt" and heard.possibly_recorded)
    probe = heard.document.get("probe")
    return heard.status == 201 and isinstance(probe, Mapping) and probe.get("attempt_id") == attempt_id


def _disowning(reservation_id: str, attempt_id: str, headers: Headers, patience: Patience) -> Carrying[None]:
    """Tell that nothing was sent under an attempt. Where it is none of ours after all, that changes nothing."""
    body = {"attempt_id": attempt_id, "outcome": "unsent", "reason": "its grant was never heard"}
    path = f"{reservation_path(reservation_id)}/settle"
    try:
        yield from ask(lambda: post(path, body, headers, answer_seconds(0, patience)), patience)
    except OutboxError:
        return


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


def _is_held(effect: Effect, headers: Headers, clock: Clock) -> Carrying[bool]:
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

    def ask_to(where: str, body: Mapping[str, Any]) -> Carrying[Heard]:
        return (yield from ask(lambda: post(where, body, want.headers, answer_seconds(0, patience)), patience))

    while True:
        begun = yield from ask_to(path, {"attempt_id": effect.attempt_id})
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
            heard = yield from ask_to(where, answer)
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


def _seconds(members: Members, name: str) -> float:
    value = members.document.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise unexpected(f"{name} is no number of seconds")
    return max(float(value), 0.0)
