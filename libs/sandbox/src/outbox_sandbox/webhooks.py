"""Webhooks as Stripe signs and sends them, and how they go wrong: early, late, twice, contradicting, failed, forged.

Source: docs.stripe.com/webhooks (signature of time, dot and body; events are sent at least once and in no order).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256

import aiohttp

from outbox_sandbox.exchange import Fields
from outbox_sandbox.faults import read_containing
from outbox_sandbox.records import CommittedEffect
from outbox_sandbox.stripe import EVENT_TYPES, ID_PREFIXES, event_of

PATHS = ("/v1/refunds", "/v1/customers")
"""Whose effects Stripe tells of."""

TIMES_MAX = 1_000_000
DELAY_SECONDS_MAX = 3600.0
SEND_SECONDS_MAX = 10.0
SENT_MAX = 100_000
"""How many sendings are remembered; the oldest are forgotten."""


class Mode(StrEnum):
    """How an event is sent.

    | mode | when | what |
    |---|---|---|
    | early | when the effect is committed, answered before the request is | the true event |
    | late | delay_seconds after the effect is committed | the true event |
    | twice | as late, and once more | the true event, the same id |
    | contradicting | as late | an event of another effect with the same marker |
    | failed | as late | the effect has failed afterwards: another type, and the effect says so itself |
    | forged | as late | the true event, signed with another secret |
    """

    EARLY = "early"
    LATE = "late"
    TWICE = "twice"
    CONTRADICTING = "contradicting"
    FAILED = "failed"
    FORGED = "forged"


class MalformedWebhook(ValueError):
    """What was asked for is no webhook; the text names the member at fault."""


@dataclass(kw_only=True)
class WebhookPlan:
    """The next `times` effects of `path`, or the one named `effect`, are told of at `url`.

    `containing` narrows it to effects in whose fields this text stands.
    """

    mode: Mode
    path: str | None
    effect: str | None
    url: str
    secret: str = field(repr=False)
    delay_seconds: float
    times: int
    containing: str | None = None

    def means(self, effect: CommittedEffect) -> bool:
        """Whether the plan is about an effect with such fields."""
        return self.containing is None or self.containing in json.dumps(effect.effect.fields, ensure_ascii=False)

    def document(self) -> dict[str, object]:
        """The plan as it is answered; the secret is not said."""
        return {
            "mode": self.mode.value,
            "path": self.path,
            "effect": self.effect,
            "url": self.url,
            "delay_seconds": self.delay_seconds,
            "times": self.times,
            "containing": self.containing,
        }


@dataclass(kw_only=True)
class SentWebhook:
    """One sending. `status` is None where it was not answered."""

    mode: Mode
    event: str
    effect: str
    status: int | None = None
    ended: bool = False

    def document(self) -> dict[str, object]:
        """The sending as it is listed."""
        return {
            "mode": self.mode.value,
            "event": self.event,
            "effect": self.effect,
            "status": self.status,
            "ended": self.ended,
        }


def read_webhook(members: Mapping[str, object]) -> WebhookPlan:
    """A plan from the members of a control request: `mode`, `url`, `secret`, and either `path` or `effect`.

    `delay_seconds` (default 0), `times` (default 1) and `containing` may be left out. Raises `MalformedWebhook` naming the first
    member that is unknown, missing or of the wrong kind.
    """
    unknown = sorted(set(members) - {"mode", "path", "effect", "url", "secret", "delay_seconds", "times", "containing"})
    if unknown:
        raise MalformedWebhook(f"unknown member {unknown[0]!r}")
    mode = members.get("mode")
    if not isinstance(mode, str) or mode not in {each.value for each in Mode}:
        raise MalformedWebhook(f"mode: {mode!r} is not one of {', '.join(Mode)}")
    path, effect = members.get("path"), members.get("effect")
    if (path is None) == (effect is None):
        raise MalformedWebhook("expected either path or effect")
    if path is not None and path not in PATHS:
        raise MalformedWebhook(f"path: {path!r} is not one of {', '.join(PATHS)}")
    if effect is not None and not (isinstance(effect, str) and effect.startswith(tuple(ID_PREFIXES.values()))):
        raise MalformedWebhook(f"effect: {effect!r} is not the id of a refund or a customer")
    url, secret = members.get("url"), members.get("secret")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise MalformedWebhook(f"url: {url!r} is not an address")
    if not isinstance(secret, str) or not secret:
        raise MalformedWebhook("secret: expected what events are signed with")
    delay, times = members.get("delay_seconds", 0), members.get("times", 1)
    if not isinstance(delay, int | float) or isinstance(delay, bool) or not math.isfinite(delay):
        raise MalformedWebhook(f"delay_seconds: {delay!r} is not a number of seconds")
    if not 0 <= delay <= DELAY_SECONDS_MAX:
        raise MalformedWebhook(f"delay_seconds: {delay!r} is not between 0 and {DELAY_SECONDS_MAX:g}")
    if not isinstance(times, int) or isinstance(times, bool) or not 1 <= times <= TIMES_MAX:
        raise MalformedWebhook(f"times: {times!r} is not a whole number from 1 to {TIMES_MAX}")
    return WebhookPlan(
        mode=Mode(mode),
        path=None if path is None else str(path),
        effect=None if effect is None else str(effect),
        url=url,
        secret=secret,
        delay_seconds=float(delay),
        times=times,
        containing=read_containing(members, MalformedWebhook),
    )


class Webhooks:
    """Planned and sent webhooks. They live in memory: a restarted sandbox sends nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since the epoch."""
        self.planned: list[WebhookPlan] = []
        self.sent: list[SentWebhook] = []
        self._clock = clock
        self._running: set[asyncio.Task[None]] = set()
        self._early: dict[str, asyncio.Task[None]] = {}

    def committed(self, effect: CommittedEffect) -> None:
        """Send what is planned for an effect that was committed just now."""
        for plan in self.planned:
            if plan.path == effect.path and effect.effect.resource in EVENT_TYPES.values() and plan.means(effect):
                plan.times -= 1
                if plan.times == 0:
                    self.planned.remove(plan)
                task = self.send(plan, effect)
                if plan.mode is Mode.EARLY:
                    self._early[effect.request_id] = task
                return

    async def before_answer(self, request_id: str) -> None:
        """Wait until the early webhook of a request, if it has one, was answered."""
        task = self._early.pop(request_id, None)
        if task is not None:
            await asyncio.wait({task})

    def send(self, plan: WebhookPlan, effect: CommittedEffect) -> asyncio.Task[None]:
        """Begin to tell of an effect as planned."""
        task = asyncio.create_task(self._send(plan, effect))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def forget(self) -> None:
        """Drop what is planned, under way and remembered."""
        self.planned.clear()
        self.sent.clear()
        self.abandon()

    def abandon(self) -> None:
        """Drop what is under way."""
        self._early.clear()
        for task in self._running:
            task.cancel()

    async def _send(self, plan: WebhookPlan, effect: CommittedEffect) -> None:
        if plan.mode is not Mode.EARLY:
            await asyncio.sleep(plan.delay_seconds)
        event = event_of(effect)
        if plan.mode is Mode.CONTRADICTING:
            event = _of_another_effect(event, effect)
        elif plan.mode is Mode.FAILED:
            event = _of_its_failure(event, effect)
        body = json.dumps(event, ensure_ascii=False, indent=2).encode()
        secret = f"{plan.secret}-forged" if plan.mode is Mode.FORGED else plan.secret
        for _ in range(2 if plan.mode is Mode.TWICE else 1):
            sent = SentWebhook(mode=plan.mode, event=str(event["id"]), effect=effect.effect.id)
            self.sent.append(sent)
            del self.sent[:-SENT_MAX]
            headers = {"Content-Type": "application/json; charset=utf-8", "Stripe-Signature": sign(secret, body, self._clock())}
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                timeout = aiohttp.ClientTimeout(total=SEND_SECONDS_MAX)
                async with aiohttp.ClientSession(timeout=timeout) as session:
                    async with session.post(plan.url, data=body, headers=headers, allow_redirects=False) as answer:
                        sent.status = answer.status
            sent.ended = True


def sign(secret: str, body: bytes, seconds: float) -> str:
    """The header `Stripe-Signature` of a body that is sent at a time, in seconds since the epoch."""
    signed_at = str(int(seconds))
    signature = hmac.new(secret.encode(), signed_at.encode() + b"." + body, sha256).hexdigest()
    return f"t={signed_at},v1={signature},v0={'0' * 64}"


def _of_another_effect(event: Fields, effect: CommittedEffect) -> Fields:
    """The same event, but of an effect with another id."""
    other = effect.effect.id + "_other"
    return {**event, "id": f"{event['id']}_other", "data": {"object": {**effect.effect.result, "id": other}}}


def _of_its_failure(event: Fields, effect: CommittedEffect) -> Fields:
    """What is told when the effect failed after it was made: a refund that the bank sent back, by the same marker."""
    resource = effect.effect.resource
    failed = {**effect.effect.result, "status": "failed"}
    return {**event, "id": f"{event['id']}_failed", "type": f"{resource}.failed", "data": {"object": failed}}
