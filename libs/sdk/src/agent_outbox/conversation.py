"""What is asked of the gateway, when it is asked again, and what comes of it: pure, without a socket, a clock or a sleep.

A conversation is a generator. It yields a `Request` and is sent the `Answer` or `NoAnswer` to it, or yields a `Pause` and is sent
None when it is over; what it returns is the result. The synchronous and the asynchronous client carry out the same ones.

When something is asked again:

* no answer came (refused, broken, silent): a call is idempotent by its operation key, so the same bytes are sent again;
* the problem itself says so: `same-request` or `wait`, not before its `after_seconds`;
* never past the deadline, and never once a reservation has come to an end (failed, denied, voided): the same call would reserve
  anew then, and whether that is wanted is the caller's to decide;
* what is waited for is looked at under its reservation's id; the call is not repeated for that.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, Union
from urllib.parse import quote

from agent_outbox import strict_json
from agent_outbox.errors import ASK_AGAIN_SECONDS, OutboxError, Retry, UnreachableError, unexpected, unreachable
from agent_outbox.results import CallResult, InDoubt, Waiting, is_a_result, read_answer_to_call, read_problem, read_shown

T = TypeVar("T")

WAIT_SECONDS_MAX = 60
"""How long the gateway lets one request wait."""

ANSWER_SECONDS_MAX = 15.0
"""How long an answer may take beyond the time that the gateway was asked to wait."""

BACK_OFF_SECONDS = 0.2
BACK_OFF_SECONDS_MAX = 10.0
"""The pause after the first try without an answer, doubling up to the second figure; a random half of it is left out."""

PAUSE_SECONDS_MIN = 0.05
"""No two tries are closer together, whatever an answer says."""

_WAIT_APPLIED = re.compile(r"\bwait=([0-9]{1,9})\b")

Headers = tuple[tuple[str, str], ...]
"""Headers of a request, as names and values."""

FINAL_STATES = frozenset({"failed", "denied", "voided"})
BETWEEN_US = frozenset({502, 503, 504})
"""Statuses by which a proxy says that it could not reach the gateway."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One HTTP request.

    Attributes:
        method, path, query, headers, body: of it; the path begins below the gateway's address.
        seconds: how long its answer may take.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Headers = ()
    body: bytes | None = None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Nothing is asked for so many seconds."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class NoAnswer:
    """None came.

    Attributes:
        reason: what happened instead.
        possibly_sent: some of the request may have reached the other side.
    """

    reason: str
    possibly_sent: bool


Step = Union[Request, Pause]
Reply = Union[Answer, NoAnswer, None]
Conversation = Generator[Step, Reply, T]
Clock = Callable[[], float]


class Patience:
    """The time that is left."""

    def __init__(self, seconds: float | None, clock: Clock) -> None:
        """
        Args:
            seconds: from now on; None means without end.
            clock: monotonic seconds.
        """
        self._clock = clock
        self._until = math.inf if seconds is None else clock() + seconds

    def left(self) -> float:
        """Seconds until it is over; infinite where there is no bound, negative afterwards."""
        return self._until - self._clock()


@dataclass(frozen=True, kw_only=True)
class Heard:
    """An answer of the gateway's.

    Attributes:
        error: the problem that it is; None where it is none.
        wait_applied: how many seconds the gateway says that it was ready to wait; None where it does not say.
        possibly_recorded: an earlier try may have been recorded.
    """

    status: int
    document: dict[str, Any]
    error: OutboxError | None
    wait_applied: int | None = None
    possibly_recorded: bool = False


@dataclass(frozen=True, kw_only=True)
class Call:
    """A tool call, ready to be sent.

    Attributes:
        tool: that is called.
        body: of every try.
        headers: of every try.
        wait: how many seconds its end is waited for; None leaves it to the gateway.
        deadline: how many seconds it may take with all its retries; None means without end.
    """

    tool: str
    body: bytes
    headers: Headers
    wait: float | None
    deadline: float | None


def calling(call: Call, clock: Clock) -> Conversation[CallResult]:
    """Make a tool call and wait for its end.

    Args:
        call: what is asked for.
        clock: monotonic seconds.

    Returns:
        What came of it.

    Raises:
        OutboxError: it could not be asked, or was not answered in time. `possibly_recorded` says whether something may have been
            recorded all the same.
    """
    patience = Patience(call.deadline, clock)
    waiting = None if call.wait is None else Patience(call.wait, clock)
    asked_at, asked_seconds = clock(), 0

    def request() -> Request:
        nonlocal asked_at, asked_seconds
        headers = call.headers
        asked_at, asked_seconds = clock(), WAIT_SECONDS_MAX
        if waiting is not None:
            asked_seconds = seconds_to_ask(waiting, patience)
            headers += (("Prefer", f"wait={asked_seconds}" if asked_seconds else "respond-async"),)
        return Request(
            method="POST",
            path="/v1/tool-calls",
            headers=headers,
            body=call.body,
            seconds=answer_seconds(asked_seconds, patience),
        )

    heard = yield from ask(request, patience)
    error = heard.error
    if error is not None and (not is_a_result(error.code) or (heard.possibly_recorded and error.code == "out-of-scope")):
        raise error
    result = read_answer_to_call(heard.status, heard.document, tool=call.tool)
    if waiting is None:
        return result
    seconds_max = WAIT_SECONDS_MAX
    if heard.wait_applied is not None and heard.wait_applied < asked_seconds:
        # This gateway lets nobody wait as long as it was asked to, and would refuse to be asked so by another way.
        seconds_max = asked_seconds = heard.wait_applied
    held = _was_held(clock() - asked_at, asked_seconds)
    return (yield from _follow(call, result, waiting, patience, clock, held=held, seconds_max=seconds_max))


def resolving(body: bytes, headers: Headers, deadline: float | None, clock: Clock) -> Conversation[Heard]:
    """Ask what a tool call would come to.

    Args:
        body, headers: of every try.
        deadline: how many seconds it may take.
        clock: monotonic seconds.

    Returns:
        The answer, a problem among them where it is a result.

    Raises:
        OutboxError: it could not be asked, or was not answered in time.
    """
    patience = Patience(deadline, clock)

    def request() -> Request:
        seconds = answer_seconds(0, patience)
        return Request(method="POST", path="/v1/tool-calls/resolve", headers=headers, body=body, seconds=seconds)

    heard = yield from ask(request, patience, records=False)
    if heard.error is not None and (heard.error.code == "out-of-scope" or not is_a_result(heard.error.code)):
        raise heard.error
    return heard


def looking(
    path: str,
    query: tuple[tuple[str, str], ...],
    headers: Headers,
    *,
    wait: float,
    deadline: float | None,
    clock: Clock,
) -> Conversation[dict[str, Any]]:
    """Read something.

    Args:
        path, query, headers: of the request.
        wait: how many seconds the gateway is asked to wait before it answers; part of the query where it is not 0.
        deadline: how many seconds it may take with all its retries.
        clock: monotonic seconds.

    Returns:
        The document.

    Raises:
        OutboxError: any problem.
    """
    patience = Patience(deadline, clock)
    waiting = Patience(wait, clock)

    def request() -> Request:
        seconds = seconds_to_ask(waiting, patience)
        asked = (*query, ("wait", str(seconds))) if seconds else query
        return Request(method="GET", path=path, query=asked, headers=headers, seconds=answer_seconds(seconds, patience))

    heard = yield from ask(request, patience, records=False)
    if heard.error is not None:
        raise heard.error
    return heard.document


def reservation_path(reservation_id: str) -> str:
    """Where a reservation is looked at."""
    return f"/v1/reservations/{quote(reservation_id, safe='')}"


def post(path: str, body: Mapping[str, Any], headers: Headers, seconds: float) -> Request:
    """A request that changes something.

    Args:
        path: below the gateway's address.
        body: JSON.
        headers: beside its content type.
        seconds: how long its answer may take.
    """
    return Request(
        method="POST",
        path=path,
        headers=(*headers, ("Content-Type", "application/json")),
        body=strict_json.write(body),
        seconds=seconds,
    )


def receipt_path(receipt_id: str) -> str:
    """Where a receipt is looked at."""
    return f"/v1/receipts/{quote(receipt_id, safe='')}"


def _follow(
    call: Call, result: CallResult, waiting: Patience, patience: Patience, clock: Clock, *, held: bool, seconds_max: int
) -> Conversation[CallResult]:
    """Wait on for what has no end yet, by looking at its reservation.

    Args:
        held: the last answer came after as long a wait as was asked for; else the gateway is not asked again at once.
        seconds_max: how long the gateway lets one request wait.

    Returns:
        The end; or, when the time is over or nothing more can be learned, the last that was known.
    """
    headers = tuple((name, value) for name, value in call.headers if name in ("Authorization", "traceparent", "tracestate"))
    number, looked = 0, False
    while isinstance(result, Waiting) or (isinstance(result, InDoubt) and result.retry.action == "wait"):
        left = min(waiting.left(), patience.left())
        if left < 1 or result.reservation_id is None:
            return result
        if not held:
            after = result.retry.after_seconds
            yield Pause(seconds=min(max(after if after is not None else ASK_AGAIN_SECONDS, PAUSE_SECONDS_MIN), left))
        seconds = min(seconds_to_ask(waiting, patience), seconds_max)
        asked_at = clock()
        reply = yield Request(
            method="GET",
            path=reservation_path(result.reservation_id),
            query=(("wait", str(seconds)),),
            headers=headers,
            seconds=answer_seconds(seconds, patience),
        )
        try:
            heard = hear(reply)
            if heard.error is not None:
                raise heard.error
            result = read_shown(heard.document, replayed=result.replayed)
            number, looked = 0, True
        except OutboxError as error:
            pause = _pause_before_retry(error, number, min(waiting.left(), patience.left()))
            if pause is None:
                # The last that was known is still true; whoever calls again meets the problem itself.
                return result
            number += 1
            yield Pause(seconds=pause)
        held = _was_held(clock() - asked_at, seconds)
    if looked and result and result.replayed:
        result = yield from _told_of_replay(call, result, patience)
    return result


def _told_of_replay(call: Call, result: CallResult, patience: Patience) -> Conversation[CallResult]:
    """What the gateway tells a call that had joined another one's: that this call sent nothing.

    The key of a success stays taken, so the same call meets it again; where it cannot be asked, what was seen is told.
    """
    seconds = answer_seconds(0, patience)
    headers = (*call.headers, ("Prefer", "respond-async"))
    reply = yield Request(method="POST", path="/v1/tool-calls", headers=headers, body=call.body, seconds=seconds)
    try:
        heard = hear(reply)
        told = read_answer_to_call(heard.status, heard.document, tool=call.tool) if heard.error is None else result
    except OutboxError:
        return result
    return told if told and told.reservation_id == result.reservation_id else result


def ask(request: Callable[[], Request], patience: Patience, *, records: bool = True) -> Conversation[Heard]:
    """Ask until there is an answer that stands.

    Args:
        request: makes each try.
        patience: bounds all of them together.
        records: the request may have been recorded though no answer came.

    Returns:
        An answer; its problem is one after which asking again is of no use.

    Raises:
        OutboxError: no answer came in time, or what came is none.
    """
    number, possibly_recorded = 0, False
    while True:
        reply = yield request()
        heard: Heard | None = None
        try:
            heard = hear(reply)
            error = heard.error
        except OutboxError as raised:
            error = raised
        if error is None:
            assert heard is not None
            return heard
        possibly_recorded = records and (possibly_recorded or _may_have_recorded(error))
        error.possibly_recorded = possibly_recorded
        pause = _pause_before_retry(error, number, patience.left())
        if pause is None:
            if heard is None:
                raise error
            return replace(heard, possibly_recorded=possibly_recorded)
        number += 1
        yield Pause(seconds=pause)


def hear(reply: Reply) -> Heard:
    """Read a reply.

    Args:
        reply: of a request.

    Returns:
        The answer, a problem among them.

    Raises:
        UnreachableError: there is none, or a proxy says that it could not reach the gateway.
        UnexpectedAnswerError: it is not one of the gateway's.
    """
    if reply is None or isinstance(reply, NoAnswer):
        raise unreachable(reply.reason if reply else "nothing was asked", possibly_recorded=reply is None or reply.possibly_sent)
    try:
        document = strict_json.read_answer(reply.body)
    except ValueError:
        document = None
    if isinstance(document, dict) and reply.status in (200, 201, 202):
        return Heard(status=reply.status, document=document, error=None, wait_applied=_wait_applied(reply))
    if isinstance(document, dict) and reply.status >= 400 and {"code", "detail", "message", "retry"} <= document.keys():
        error = read_problem(reply.status, document)
        return Heard(status=reply.status, document=document, error=error, wait_applied=_wait_applied(reply))
    if reply.status in BETWEEN_US:
        after = reply.headers.get("retry-after", "")
        after_seconds = float(after) if after.isascii() and after.isdigit() and len(after) <= 9 else None
        raise unreachable(f"HTTP {reply.status} from something before it", possibly_recorded=True, after_seconds=after_seconds)
    raise unexpected(f"HTTP {reply.status} without its document", status=reply.status)


def _was_held(seconds: float, asked_seconds: int) -> bool:
    """Whether the gateway kept an answer back for the time that it was asked to wait."""
    return asked_seconds > 0 and seconds >= 0.9 * asked_seconds


def _wait_applied(answer: Answer) -> int | None:
    found = _WAIT_APPLIED.search(answer.headers.get("preference-applied", ""))
    return None if found is None else int(found[1])


def _may_have_recorded(error: OutboxError) -> bool:
    """Whether the request may have been recorded although this came of it."""
    if error.status is None or not error.document:
        return error.possibly_recorded
    if error.code == "unavailable":
        # The ledger may have gone away while it recorded the call; the gateway's text says whether it did before.
        return not error.message.startswith("NOT SENT")
    return error.code in ("internal", "request-in-progress")


def _pause_before_retry(error: OutboxError, number: int, left: float) -> float | None:
    """How many seconds to pause before the same is asked again; None where it is not, or not in time.

    Args:
        error: what came of the last try.
        number: of tries that were repeated before.
        left: seconds that are left for everything.
    """
    retry: Retry = error.retry
    if retry.action not in ("same-request", "wait") or error.code == "in-doubt" or error.document.get("state") in FINAL_STATES:
        return None
    if isinstance(error, UnreachableError) or retry.after_seconds is None:
        back_off: float = min(BACK_OFF_SECONDS * 2 ** min(number, 16), BACK_OFF_SECONDS_MAX)
        pause = max(back_off * random.SystemRandom().uniform(0.5, 1.0), retry.after_seconds or 0.0)
    else:
        pause = retry.after_seconds
    pause = max(pause, PAUSE_SECONDS_MIN)
    return pause if pause < left else None


def seconds_to_ask(waiting: Patience, patience: Patience) -> int:
    """How many whole seconds the gateway is asked to wait: what is left of the wait, and a second less than of the deadline."""
    wanted = math.ceil(min(max(waiting.left(), 0.0), WAIT_SECONDS_MAX))
    return max(0, math.floor(min(wanted, patience.left() - 1)))


def answer_seconds(asked_seconds: float, patience: Patience) -> float:
    """How many seconds an answer may take, where the gateway was asked to wait for so many."""
    return max(min(asked_seconds + ANSWER_SECONDS_MAX, patience.left()), PAUSE_SECONDS_MIN)
