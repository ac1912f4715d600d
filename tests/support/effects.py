"""Effects that tests want: a tool, an input with a token of its own, and a look at what the provider has made of it."""

import json
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from tests.support.outbox_up import MAIL, PATHS, REFUND, TICKET, Answer, OutboxUp


@dataclass(frozen=True, kw_only=True)
class Wish:
    """An effect that an agent wants.

    Attributes:
        token: stands in the input and nowhere else, so that the provider's effects of it can be told from others.
        names: the other members of the tool call.
    """

    tool: str
    token: str
    input: Mapping[str, object]
    names: Mapping[str, Any]

    @property
    def path(self) -> str:
        """Where the sandbox provider takes it."""
        return PATHS[self.tool]

    def start(self, up: OutboxUp) -> UUID:
        """Asks for it without waiting; returns the reservation."""
        return up.start_call(self.tool, self.input, **self.names)

    def call(self, up: OutboxUp, **headers: str) -> Answer:
        """Asks for it once and waits as long as the API does."""
        return up.call(self.tool, self.input, headers=headers, **self.names)

    def later(self, up: OutboxUp) -> "Future[Answer]":
        """Asks for it from another thread, while the test goes on."""
        return up.later(self.tool, self.input, **self.names)

    def until_answered(self, up: OutboxUp, *, deadline_seconds: float) -> Answer:
        """Asks for it again and again until the answer is final."""
        return up.until_answered(self.tool, self.input, deadline_seconds=deadline_seconds, **self.names)

    def effects(self, up: OutboxUp) -> list[dict[str, Any]]:
        """What the provider has made of it."""
        return [one for one in up.sandbox.effects(self.path) if self.token in json.dumps(one)]

    def start_faulty(self, up: OutboxUp, fault: str, *, delay_seconds: float) -> UUID:
        """Asks for it, and returns when its request, which meets the fault, has reached the provider."""
        before = up.received(self.tool)
        up.sandbox.plan(self.path, fault, delay_seconds=delay_seconds)
        reservation_id = self.start(up)
        up.wait_received(self.tool, before + 1)
        return reservation_id


def a_refund() -> Wish:
    """A refund of a payment of its own: class A."""
    token = uuid4().hex
    return Wish(tool=REFUND, token=token, input={"payment_intent": f"pi_{token}", "amount": 1200}, names={})


def a_mail() -> Wish:
    """A mail with a subject and a reference of its own: class C."""
    token = uuid4().hex
    input = {"from": "desk@example.com", "to": "a.berg@example.com", "subject": f"Case {token}", "text": "It is on its way."}
    return Wish(tool=MAIL, token=token, input=input, names={"reference": f"case-{token[:12]}"})


def a_ticket() -> Wish:
    """A ticket with a title and a reference of its own: class B."""
    token = uuid4().hex
    return Wish(tool=TICKET, token=token, input={"title": f"Door {token}"}, names={"reference": f"case-{token[:12]}"})
