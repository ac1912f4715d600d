"""Keeps what became of effects until the gateway has it, and tells it: at once, and again for as long as nobody answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from agent_outbox.conversation import (
    Clock,
    Conversation,
    Headers,
    Heard,
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
    MalformedArgumentsError,
    OutboxError,
    Retry,
    TooLargeError,
    UnreachableError,
    unexpected,
)
from agent_outbox.results import CallResult, Waiting, read_answer_to_call, read_shown
from agent_outbox.spool import Entry, Spool

LOG = logging.getLogger(__name__)

SETTLE_SECONDS = 15.0
"""How long the caller waits until the gateway knows what became of its effect; afterwards it is delivered in the background."""

DELIVER_SECONDS = 10.0
"""How long one try takes to deliver what was kept."""

DELIVERED_AT_ONCE_MAX = 20
"""How many settlements that were kept are delivered before something new is begun, or anything else is looked at."""

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
    entry, taken = spool.keep(path, body), False
    patience = Patience(SETTLE_SECONDS, clock)
    try:
        heard = yield from _saying(path, body, headers, patience, patience)
        taken = heard.error is None or heard.error.code in NOT_TAKEN
        if taken:
            spool.remove(entry, refused=heard.error is not None and heard.error.code not in RECORDED)
    except OutboxError as error:
        # The handler has run, so nothing that happens on the way may look as if it had not.
        LOG.warning("what became of the effect %s could not be told (%s)", effect.reservation_id, error.detail)
    finally:
        if not taken:
            spool.release(entry)
    if not taken:
        return _not_delivered(effect, body)
    if heard.error is None:
        return read_shown(heard.document)
    if heard.error.code in DOUBTS:
        return read_answer_to_call(heard.status, heard.document, tool=effect.tool)
    if heard.error.code in LATE:
        return (yield from _looked_at(effect, headers, heard.error, clock))
    raise heard.error


def _saying(path: str, body: Mapping[str, Any], headers: Headers, patience: Patience, retries: Patience) -> Conversation[Heard]:
    """Tell a settlement; a success without what is said of it, where that would keep it from being one.

    Args:
        path: of the gateway's endpoint.
        body: of the settlement.
        headers: of the requests.
        patience: bounds each answer.
        retries: for how long it is asked again.

    Raises:
        OutboxError: as `ask`. What answers like nothing of the gateway's has not taken it.
    """
    heard = yield from ask(lambda: post(path, body, headers, answer_seconds(0, patience)), retries)
    if isinstance(heard.error, (TooLargeError, InvalidInputError)) and body.get("outcome") == "succeeded":
        bare = {"attempt_id": body["attempt_id"], "outcome": "succeeded", "result": {"$not_stored": {"type": "object"}}}
        heard = yield from ask(lambda: post(path, bare, headers, answer_seconds(0, patience)), retries)
    if heard.error is None and not isinstance(heard.document.get("state"), str):
        raise unexpected("it does not say how the reservation stands", status=heard.status)
    return heard


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
    try:
        heard = yield from _saying(entry.path, entry.body, headers, patience, Patience(0.0, clock))
    except UnreachableError:
        return "away"
    except MalformedArgumentsError as error:
        LOG.error("what is kept of an effect cannot be sent (%s); it is kept beside the others", error.detail)
        spool.remove(entry, refused=True)
        return "done"
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


def delivering_waiting(spool: Spool, headers: Headers, clock: Clock, *, again: bool) -> Conversation[int]:
    """Deliver what was kept while the gateway answers: first what was not tried yet, oldest first.

    Args:
        spool: keeps it.
        headers: of the requests.
        clock: monotonic seconds.
        again: try also what this process could not deliver before. Such a one is a matter between it and the gateway, and must
            keep neither others nor something new from going on.

    Returns:
        How many were delivered.
    """
    delivered = 0
    for entry in spool.waiting(again=again)[:DELIVERED_AT_ONCE_MAX]:
        delivery = yield from delivering(entry, spool, headers, clock)
        if delivery == "away":
            break
        if delivery == "later":
            spool.put_off(entry)
        delivered += delivery == "done"
    return delivered


def settle_path(effect: Effect) -> str:
    """Where an effect's attempts are settled."""
    return f"{reservation_path(effect.reservation_id)}/settle"
