"""Keeps what became of effects until the gateway has it, and tells it: at once, and again for as long as nobody answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from agent_outbox.conversation import (
    Clock,
    Conversation,
    Headers,
    Patience,
    Request,
    answer_seconds,
    ask,
    post,
    reservation_path,
)
from agent_outbox.effect import Effect
from agent_outbox.errors import (
    ASK_AGAIN_SECONDS,
    DOUBTS,
    InvalidInputError,
    OutboxError,
    Retry,
    TooLargeError,
    UnreachableError,
)
from agent_outbox.results import CallResult, Waiting, read_answer_to_call, read_shown
from agent_outbox.spool import Entry, Spool

LOG = logging.getLogger(__name__)

SETTLE_SECONDS = 15.0
"""How long the caller waits until the gateway knows what became of its effect; afterwards it is delivered in the background."""

DELIVER_SECONDS = 10.0
"""How long one try takes to deliver what was kept."""

DELIVERED_FIRST_MAX = 20
"""How many settlements that were kept are delivered before something new is begun."""

LATE = frozenset({"attempt-closed", "outcome-differs"})
"""The attempt was closed without this settlement; it is kept as evidence, and what stands is looked at."""

RECORDED = LATE | DOUBTS
"""Problems after which the gateway has what it was told."""

NOT_TAKEN = frozenset({"attempt-unknown", "not-found", "not-client-executed", "too-large", "invalid-input", *RECORDED})
"""Problems by which the gateway refuses a settlement for good."""

_MESSAGE = "Not finished. Ask again in {seconds} s with the same arguments; that joins this one and starts nothing new."

Delivery = Literal["done", "later", "away"]


def telling(effect: Effect, body: Mapping[str, Any], headers: Headers, spool: Spool, clock: Clock) -> Conversation[CallResult]:
    """Keep what became of an effect, tell it, and learn what stands.

    Args:
        effect: the attempt.
        body: of the settlement.
        headers: of the requests.
        spool: keeps it until the gateway has it.
        clock: monotonic seconds.

    Returns:
        What stands at the gateway now. Where the gateway cannot be reached: that it has no end yet; it is delivered later.

    Raises:
        OutboxError: the gateway would not take it, and nothing is known of what stands.
    """
    path = settle_path(effect)
    entry = spool.keep(path, body)
    patience = Patience(SETTLE_SECONDS, clock)
    told = False
    try:
        heard = yield from ask(lambda: post(path, body, headers, answer_seconds(0, patience)), patience)
        if (
            heard.error is not None
            and body["outcome"] == "succeeded"
            and isinstance(heard.error, (TooLargeError, InvalidInputError))
        ):
            # What is said of a success must not keep it from being one.
            bare = {"attempt_id": effect.attempt_id, "outcome": "succeeded", "result": {"$not_stored": {"type": "object"}}}
            heard = yield from ask(lambda: post(path, bare, headers, answer_seconds(0, patience)), patience)
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
        return read_answer_to_call(heard.status, heard.document, tool=effect.tool)
    if error.code in LATE:
        return (yield from _looked_at(effect, headers, error, clock))
    if error.retry.action in ("same-request", "wait"):
        return _not_delivered(effect, body)
    raise error


def _looked_at(effect: Effect, headers: Headers, error: OutboxError, clock: Clock) -> Conversation[CallResult]:
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


def delivering(entry: Entry, spool: Spool, headers: Headers, clock: Clock) -> Conversation[Delivery]:
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
    request = post(entry.path, entry.body, headers, answer_seconds(0, patience))
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


def delivering_waiting(spool: Spool, headers: Headers, clock: Clock) -> Conversation[bool]:
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


def settle_path(effect: Effect) -> str:
    """Where an effect's attempts are settled."""
    return f"{reservation_path(effect.reservation_id)}/settle"
