"""Checks of effects that the gateway carries out itself: a provider that breaks, callers that repeat, race, loop and fork."""

from __future__ import annotations

import time
import uuid
from functools import partial

from agent_outbox.conformance.checks import check
from agent_outbox.conformance.ground import Broken, Ground, Unanswered, Wish, at_once, must, until

CALLERS = 24
REPEATS = 12
SLOW_SECONDS = 2.0
STRUCK_SECONDS = 15.0

ONE_EFFECT = "One operation key has one effect, and the receipt names it."
SAME_RECEIPT = "Whoever repeats a call gets the same receipt, and the provider is not asked."
NOTHING_GUESSED = "An outcome is final or explicitly in doubt; nothing is guessed."
NEVER_AGAIN = "Without evidence that an earlier request did not happen, it is never sent again."
CONFLICT = "The same operation key with other values is refused; it neither replays nor acts."


def _started(wish: Wish) -> None:
    """Ask without waiting, and go on once the request is at the provider."""
    wish.call(wait=0)
    until(wish.sent, seconds=STRUCK_SECONDS, what="the request's arrival at the provider")


@check(lane="refunds", promise=ONE_EFFECT)
def one_call(ground: Ground) -> None:
    """An agent asks once."""
    wish = ground.refund()
    answer = wish.until_final()
    wish.must_be_done(answer)
    must(answer.document.get("replayed") is False, f"nobody asked before, and the answer says that it replays: {answer}")
    looked = ground.gateway.ask("GET", f"/v1/reservations/{answer.document['reservation_id']}")
    must(looked.status == 200, f"the reservation cannot be looked at: {looked}")
    must(looked.receipt == answer.receipt, "the reservation shows another receipt than the call was answered with")


@check(lane="refunds", promise=SAME_RECEIPT)
def repeated(ground: Ground) -> None:
    """The same call again and again after it was done, each time over a new connection, as a restarted agent makes it."""
    wish = ground.refund()
    first = wish.until_final()
    wish.must_be_done(first)
    for _ in range(3):
        again = wish.call()
        must(again.status == 200, f"a repetition was answered {again}")
        must(again.receipt == first.receipt, f"another receipt: {again.receipt!r} after {first.receipt!r}")
        must(again.document.get("replayed") is True, "a repetition does not say that it replays")
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times")


@check(lane="refunds", promise=ONE_EFFECT)
def lost_reply(ground: Ground) -> None:
    """The provider commits and closes the connection without an answer."""
    wish = ground.refund()
    ground.provider.plan(wish.path, "commit-then-drop")
    wish.must_be_done(wish.until_final())


@check(lane="refunds", promise=ONE_EFFECT)
def truncated_reply(ground: Ground) -> None:
    """The provider commits and sends half of its answer."""
    wish = ground.refund()
    ground.provider.plan(wish.path, "truncate-body")
    wish.must_be_done(wish.until_final())


@check(lane="refunds", promise=NOTHING_GUESSED)
def error_after_commit(ground: Ground) -> None:
    """The provider commits and answers 500, and again 500 to whoever repeats the request with its key."""
    wish = ground.refund()
    ground.provider.plan(wish.path, "commit-then-500")
    answer = wish.until_final()
    must(len(wish.effects()) == 1, f"the provider has made {len(wish.effects())} effects")
    if answer.document.get("state") == "in_doubt":
        must(answer.status == 409, f"a doubt was answered {answer}")
        return
    wish.must_be_done(answer)


@check(lane="refunds", promise=ONE_EFFECT)
def dropped_before_commit(ground: Ground) -> None:
    """The provider closes the connection and has done nothing; its key makes it safe to send again."""
    wish = ground.refund()
    ground.provider.plan(wish.path, "drop-before-commit")
    wish.must_be_done(wish.until_final())
    keys = {one["idempotency_key"] for one in wish.sent()}
    must(len(keys) == 1 and None not in keys, f"the provider was asked under {len(keys)} keys")


@check(lane="refunds", promise=ONE_EFFECT)
def slow_commit(ground: Ground) -> None:
    """The provider commits after the caller has stopped waiting; the caller asks again meanwhile and afterwards."""
    wish = ground.refund()
    ground.provider.plan(wish.path, "slow-commit", delay_seconds=SLOW_SECONDS)
    early = wish.call(wait=1)
    must(early.status == 202, f"nothing had happened yet, and the answer was {early}")
    wish.must_be_done(wish.until_final())
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times while it worked")


@check(lane="refunds", promise=ONE_EFFECT)
def caller_gone(ground: Ground) -> None:
    """The caller's connection breaks while the provider works; another process of the agent asks again."""
    wish = ground.refund()
    ground.provider.plan(wish.path, "delay", delay_seconds=SLOW_SECONDS)
    try:
        answer = wish.call(seconds=0.5)
    except Unanswered:
        pass
    else:
        raise Broken(f"nothing had happened yet, and the answer was {answer}")
    wish.must_be_done(wish.until_final())
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times while it worked")


@check(lane="refunds", promise=ONE_EFFECT)
def rate_limited(ground: Ground) -> None:
    """The provider answers 429 and names a time."""
    wish = ground.refund()
    ground.provider.plan(wish.path, "rate-limit", delay_seconds=1.0)
    wish.must_be_done(wish.until_final())
    first, *others = (float(one["received"]) for one in wish.sent())
    must(all(later - first >= 0.9 for later in others), "it was sent again before the time that the provider named")


@check(lane="refunds", promise=NOTHING_GUESSED)
def declined(ground: Ground) -> None:
    """The provider refuses for good; later the agent asks again and the provider agrees."""
    wish = ground.refund()
    ground.provider.plan(wish.path, "reject-402")
    refused = wish.until_final()
    must(refused.status == 422 and refused.document.get("state") == "failed", f"a decline was answered {refused}")
    must(not wish.effects(), "a declined refund has an effect")
    wish.must_be_done(wish.until_final())


@check(lane="refunds", promise=ONE_EFFECT)
def at_the_same_moment(ground: Ground) -> None:
    """Many callers ask for one effect at the same moment, and the provider takes its time."""
    wish = ground.refund()
    ground.provider.plan(wish.path, "delay", delay_seconds=0.5)
    at_once([wish.call] * CALLERS)
    answers = at_once([wish.until_final] * CALLERS)
    for answer in answers:
        wish.must_be_done(answer)
    must(len({answer.receipt for answer in answers}) == 1, "the callers were given different receipts")
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times")


@check(lane="refunds", promise=ONE_EFFECT)
def loop(ground: Ground) -> None:
    """A model loops: the same call in step after step, under new call ids."""
    wish = ground.refund()
    first = wish.until_final()
    for step in range(REPEATS):
        answer = wish.with_names(step=str(step), call_id=f"call_{step}").call()
        must(answer.receipt == first.receipt, f"step {step} was answered {answer}")
    wish.must_be_done(first)
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times")


@check(lane="refunds", promise=ONE_EFFECT)
def fork(ground: Ground) -> None:
    """A run is forked, and every fork asks for the effect, at the same moment and afterwards."""
    wish = ground.refund()
    forks = [wish.with_names(run=f"{wish.names['run']}-{number}") for number in range(8)]
    at_once([each.call for each in forks])
    answers = [each.until_final() for each in forks]
    for answer in answers:
        wish.must_be_done(answer)
    must(len({answer.receipt for answer in answers}) == 1, "the forks were given different receipts")
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times")


@check(lane="refunds", promise=CONFLICT)
def conflict(ground: Ground) -> None:
    """The same payment and case with another amount, while the first is under way and after it."""
    wish = ground.refund()
    other = wish.with_input(amount=1300)
    ground.provider.plan(wish.path, "delay", delay_seconds=SLOW_SECONDS)
    _started(wish)
    for moment in ("under way", "done"):
        answer = other.call()
        refused = answer.status == 422 and answer.document.get("code") == "conflict"
        must(refused, f"{moment}: another amount was answered {answer}")
        must("1200" not in str(answer.document.get("message")), "a conflict tells the values of the first call")
        wish.must_be_done(wish.until_final())
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times")


@check(lane="refunds", promise="A request key brings back the same bytes, and is refused for another request.")
def request_key(ground: Ground) -> None:
    """An agent repeats a request under its `Idempotency-Key`, then uses the key for another request."""
    wish = ground.refund()
    key = {"Idempotency-Key": str(uuid.uuid4())}
    wish.until_final()
    first, second = (wish.call(headers=key) for _ in range(2))
    must(first.status == 200 and first.body == second.body, "a repeated request was answered with other bytes")
    misused = ground.refund().call(headers=key)
    must(misused.status == 422, f"the key of another request was answered {misused}")
    must(len(wish.sent()) == 1, "a request key reached the provider twice")


@check(lane="refunds", promise=SAME_RECEIPT)
def keys_forgotten(ground: Ground) -> None:
    """Long after the effect the provider has forgotten its keys, and an agent repeats the call."""
    wish = ground.refund()
    first = wish.until_final()
    ground.provider.forget_keys()
    again = wish.until_final()
    wish.must_be_done(again)
    must(again.receipt == first.receipt, "another receipt after the provider forgot its keys")
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times")


@check(lane="refunds", promise="A verified webhook proves an effect once, whenever it comes; a forged one proves nothing.")
def webhooks(ground: Ground) -> None:
    """The provider tells of an effect before its answer, which is lost; tells of one twice; and somebody forges an event."""
    for mode, events in (("early", [200]), ("twice", [200, 200]), ("forged", [400])):
        wish = ground.refund()
        ground.provider.tell(ground.webhook, wish.path, mode)
        ground.provider.plan(wish.path, "commit-then-drop")
        answer = wish.until_final()
        wish.must_be_done(answer)
        effect = str(wish.effects()[0]["id"])
        until(partial(_all_ended, ground, effect, len(events)), seconds=STRUCK_SECONDS, what=f"the answer to a webhook ({mode})")
        statuses = ground.provider.told(effect)
        must(statuses == events, f"{mode}: webhooks were answered {statuses}")
        must(wish.call().receipt == answer.receipt, f"{mode}: a webhook changed the receipt")


def _all_ended(ground: Ground, effect: str, count: int) -> bool:
    return len(ground.provider.told(effect)) >= count


@check(lane="refunds", promise="What is malformed is refused before anything is sent.")
def malformed(ground: Ground) -> None:
    """Calls without an amount, with a negative one, with an unknown member, of an unknown tool."""
    wish = ground.refund()
    without = {"tool": wish.tool, "input": {"payment_intent": wish.input["payment_intent"]}, **wish.names}
    surplus = {**wish.body(), "surplus": 1}
    negative = wish.with_input(amount=-1).body()
    for body in (without, surplus, negative):
        answer = ground.gateway.ask("POST", "/v1/tool-calls", body)
        must(answer.status == 422, f"{body!r} was answered {answer}")
    unknown = ground.gateway.ask("POST", "/v1/tool-calls", {**wish.body(), "tool": "stripe.refund.undo"})
    must(unknown.status == 404, f"an unknown tool was answered {unknown}")
    must(not wish.sent(), "something was sent")


def _stays_in_doubt(wish: Wish, *, effects: int) -> None:
    """The doubt of a class C effect is said as one, and neither time nor repetition makes another request."""
    answer = wish.until_final()
    for moment in ("at first", "asked again", "asked again later"):
        told = answer.document
        must(answer.status == 409 and told.get("state") == "in_doubt", f"{moment}: nobody knows, and was told {answer}")
        must(told.get("receipt") is None, f"{moment}: a doubt came with a receipt")
        must(str(told.get("message")).startswith("UNKNOWN"), f"{moment}: the model was told {told.get('message')!r}")
        must(answer.action == "ask-human", f"{moment}: only a person can know, and the answer says {answer.action!r}")
        time.sleep(SLOW_SECONDS)
        answer = wish.with_names(step=moment).call()
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times")
    must(len(wish.effects()) == effects, f"the provider has made {len(wish.effects())} effects")


@check(lane="mails", promise=ONE_EFFECT)
def mail(ground: Ground) -> None:
    """A tool without any identity at its provider: one call, and the same call again."""
    wish = ground.mail()
    first = wish.until_final()
    wish.must_be_done(first)
    must(wish.call().receipt == first.receipt, "a repetition was given another receipt")
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times")


@check(lane="mails", promise=NEVER_AGAIN)
def mail_lost_reply(ground: Ground) -> None:
    """A mail is sent and the answer is lost."""
    wish = ground.mail()
    ground.provider.plan(wish.path, "commit-then-drop")
    _stays_in_doubt(wish, effects=1)


@check(lane="mails", promise=NOTHING_GUESSED)
def mail_dropped(ground: Ground) -> None:
    """A mail is not sent and no answer comes: nobody can tell that from one whose answer was lost."""
    wish = ground.mail()
    ground.provider.plan(wish.path, "drop-before-commit")
    _stays_in_doubt(wish, effects=0)


@check(lane="mails", promise=NOTHING_GUESSED)
def mail_error(ground: Ground) -> None:
    """A mail is sent and the provider answers 500."""
    wish = ground.mail()
    ground.provider.plan(wish.path, "commit-then-500")
    _stays_in_doubt(wish, effects=1)


@check(lane="mails", promise=ONE_EFFECT)
def mail_rate_limited(ground: Ground) -> None:
    """The provider refuses a mail before it begins (429): that one may be sent again."""
    wish = ground.mail()
    ground.provider.plan(wish.path, "rate-limit", delay_seconds=1.0)
    wish.must_be_done(wish.until_final())


@check(lane="mails", promise=ONE_EFFECT)
def mail_at_the_same_moment(ground: Ground) -> None:
    """Many callers ask for one mail at the same moment."""
    wish = ground.mail()
    ground.provider.plan(wish.path, "delay", delay_seconds=0.5)
    at_once([partial(wish.call, wait=1)] * CALLERS)
    for answer in at_once([wish.until_final] * CALLERS):
        wish.must_be_done(answer)
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times")


@check(lane="tickets", promise=ONE_EFFECT)
def ticket_lost_reply(ground: Ground) -> None:
    """A tool without keys that can be looked up: the answer is lost, and the effect is found."""
    wish = ground.ticket()
    ground.provider.plan(wish.path, "commit-then-drop")
    wish.must_be_done(wish.until_final())
    must(len(wish.sent()) == 1, f"the provider was asked {len(wish.sent())} times")


@check(lane="tickets", promise=ONE_EFFECT)
def ticket_dropped(ground: Ground) -> None:
    """A tool without keys that can be looked up: nothing happened, which is proven before it is sent again."""
    wish = ground.ticket()
    ground.provider.plan(wish.path, "drop-before-commit")
    wish.must_be_done(wish.until_final())
