"""What a check stands on: the gateway under test, the sandbox provider that counts, and effects that nobody else wants."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx2

T = TypeVar("T")

REFUNDS, MAILS, TICKETS = "/v1/refunds", "/v3/mail/send", "/v1/tickets"
"""Where the sandbox provider takes refunds, mails and tickets."""

ANSWER_SECONDS = 75.0
"""How long an answer is awaited: the longest that the API lets a caller wait, and some more."""

PAUSE_SECONDS = 0.1
PATIENCE_SECONDS = 90.0
"""How long a check waits for an effect to come to its end, a lapsed lease and a look-up's settle time included."""


class Broken(Exception):
    """A promise was broken; the text says what was seen."""


class NotMade(Exception):
    """A check could not be made; the text says why."""


class Unanswered(Exception):
    """No answer came."""


def must(held: object, seen: str) -> None:
    """Go on only if something held.

    Raises:
        Broken: it did not; `seen` says what was seen instead.
    """
    if not held:
        raise Broken(seen)


@dataclass(frozen=True)
class Answer:
    """One answer of the gateway.

    Attributes:
        status: of HTTP.
        headers: names in lower case.
        body: as it came.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            Broken: it is none.
        """
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Broken(f"HTTP {self.status} with a body that is no JSON object: {self.body[:200]!r}")
        return found

    def __str__(self) -> str:
        """Status, code, state and message, for people."""
        document = self.document
        told = [str(document[name]) for name in ("code", "state", "message") if document.get(name)]
        return f"HTTP {self.status} ({', '.join(told)})"

    @property
    def receipt(self) -> bytes:
        """The receipt as it stands in the body, byte for byte.

        Raises:
            Broken: there is none.
        """
        must(isinstance(self.document.get("receipt"), dict), f"no receipt in {self}")
        text = self.body.decode()
        start = text.index('"receipt"') + len('"receipt"')
        start += len(text[start:]) - len(text[start:].lstrip(": \n\t"))
        _, end = json.JSONDecoder().raw_decode(text, start)
        return text[start:end].encode()

    @property
    def external_reference(self) -> str:
        """The provider's own name of the effect, as the receipt says it."""
        must(isinstance(self.document.get("receipt"), dict), f"no receipt in {self}")
        return str(self.document["receipt"].get("external_reference"))

    @property
    def action(self) -> str:
        """What the answer says may be done next."""
        retry = self.document.get("retry")
        return str(retry.get("action")) if isinstance(retry, dict) else ""

    @property
    def is_final(self) -> bool:
        """Whether asking again brings nothing new: an end, or a doubt that only a person closes."""
        if self.status in (202, 503, 429):
            return False
        return not (self.status == 409 and self.action in ("wait", "same-request"))


class Gateway:
    """The gateway under test, asked over plain HTTP. Safe to share between threads."""

    def __init__(self, url: str, key: str) -> None:
        """
        Args:
            url: of the gateway.
            key: a scoped key of an agent.
        """
        self.url = url.rstrip("/")
        self._client = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            # Each request has a connection of its own, as in a process that was just started.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def ask(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> Answer:
        """One request on a connection of its own.

        Args:
            method: of HTTP.
            path: below the gateway's URL.
            document: the body; none when None.
            headers: besides the key and the type.
            seconds: how long the answer is awaited.

        Raises:
            Unanswered: none came.
        """
        content = None if document is None else json.dumps(document).encode()
        try:
            answer = self._client.request(method, path, content=content, headers=dict(headers or {}), timeout=seconds)
        except httpx2.TransportError as error:
            raise Unanswered(f"{method} {path}: {type(error).__name__}") from error
        found = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(status=answer.status_code, headers=found, body=answer.content)


@dataclass(frozen=True)
class Webhook:
    """Where the gateway takes the sandbox provider's events of refunds, and what they are signed with."""

    url: str
    secret: str


class Provider:
    """The sandbox provider's own account of what it was asked and what it did."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: of the sandbox provider.
        """
        self._client = httpx2.Client(base_url=url.rstrip("/"), timeout=30.0)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def effects(self, path: str) -> list[dict[str, Any]]:
        """Every effect of requests to a path, oldest first."""
        return self._list("effects", {"path": path})

    def requests(self, path: str) -> list[dict[str, Any]]:
        """Every request to a path that could make something, oldest first."""
        return self._list("requests", {"path": path, "method": "POST"})

    def plan(self, path: str, fault: str, *, times: int = 1, delay_seconds: float = 1.0) -> None:
        """The next requests to exactly that path meet a fault."""
        members = {"path": path, "fault": fault, "times": times, "delay_seconds": delay_seconds}
        self._client.post("/_control/faults", json=members).raise_for_status()

    def pending(self, path: str) -> int:
        """How often planned faults of a path will still strike."""
        return sum(int(each["times"]) for each in self._list("faults", {}) if each["path"] == path)

    def forget_keys(self) -> None:
        """Every stored answer is forgotten, as after the provider's own window."""
        self._client.post("/_control/faults", json={"fault": "forget-keys"}).raise_for_status()

    def tell(self, webhook: Webhook, path: str, mode: str) -> None:
        """Send the event of the next effect of a path to the gateway."""
        members = {"mode": mode, "path": path, "url": webhook.url, "secret": webhook.secret}
        self._client.post("/_control/webhooks", json=members).raise_for_status()

    def told(self, effect: str) -> list[int | None]:
        """What the events of an effect were answered with, those that have ended."""
        return [each["status"] for each in self._list("webhooks", {}) if each["effect"] == effect and each["ended"]]

    def _list(self, what: str, filters: Mapping[str, str]) -> list[dict[str, Any]]:
        answer = self._client.get(f"/_control/{what}", params=dict(filters))
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found


@dataclass(frozen=True)
class Wish:
    """One effect that an agent wants, and that nobody else has wanted before.

    Attributes:
        ground: where it is wanted.
        tool: the name of the tool.
        path: where the provider takes it.
        input: of the tool.
        token: stands in the input, so that the provider's effects of it can be told from others.
        names: the other members of the tool call.
        seen_before: how many requests the path had seen before.
    """

    ground: Ground
    tool: str
    path: str
    input: Mapping[str, Any]
    token: str
    names: Mapping[str, Any]
    seen_before: int = field(default=0)

    def with_input(self, **changes: Any) -> Wish:
        """The same wish with other values."""
        return replace(self, input={**self.input, **changes})

    def with_names(self, **changes: Any) -> Wish:
        """The same wish asked for under other names: another run, step or call id."""
        return replace(self, names={**self.names, **changes})

    def body(self) -> dict[str, Any]:
        """The body of the tool call."""
        return {"tool": self.tool, "input": dict(self.input), **self.names}

    def call(self, *, wait: float = 25, headers: Mapping[str, str] | None = None, seconds: float = ANSWER_SECONDS) -> Answer:
        """Ask for it once.

        Raises:
            Unanswered: no answer came.
        """
        prefer = {"Prefer": "respond-async" if wait == 0 else f"wait={wait:g}"}
        return self.ground.gateway.ask(
            "POST", "/v1/tool-calls", self.body(), headers={**prefer, **(headers or {})}, seconds=seconds
        )

    def until_final(self, seconds: float = PATIENCE_SECONDS) -> Answer:
        """Ask for it again and again, as a patient agent does, until the answer is final.

        Raises:
            Broken: it was not within `seconds`.
        """
        last: object = "no answer"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                answer = self.call(wait=5)
            except Unanswered as error:
                last = error
            else:
                if answer.is_final:
                    return answer
                last = answer
            time.sleep(PAUSE_SECONDS)
        raise Broken(f"no final answer within {seconds:g} s; the last was {last}")

    def effects(self) -> list[dict[str, Any]]:
        """What the provider has made of it."""
        return [one for one in self.ground.provider.effects(self.path) if self.token in json.dumps(one)]

    def sent(self) -> list[dict[str, Any]]:
        """The requests that have reached the provider since the wish was made. The checks of one path run one after the other."""
        return self.ground.provider.requests(self.path)[self.seen_before :]

    def must_be_done(self, answer: Answer) -> None:
        """Go on only if it is done, once, and the receipt names what the provider has made.

        Raises:
            Broken: it is not.
        """
        effects = self.effects()
        must(len(effects) == 1, f"the provider has made {len(effects)} effects, and the answer was {answer}")
        must(answer.status == 200 and answer.document.get("state") == "succeeded", f"one effect, but the answer was {answer}")
        made = str(effects[0]["id"])
        must(made == answer.external_reference, f"the provider has made {made}, the receipt names {answer.external_reference}")


class Ground:
    """The gateway and the provider of one run of checks."""

    def __init__(self, gateway: Gateway, provider: Provider | None, webhook: Webhook | None = None) -> None:
        """
        Args:
            gateway: under test.
            provider: where the gateway's connections lead; None where nobody named it.
            webhook: where the gateway takes events; None where nobody named it.
        """
        self.gateway = gateway
        self._provider = provider
        self._webhook = webhook

    def close(self) -> None:
        """Close every connection."""
        self.gateway.close()
        if self._provider is not None:
            self._provider.close()

    @property
    def provider(self) -> Provider:
        """The sandbox provider.

        Raises:
            NotMade: nobody named it.
        """
        if self._provider is None:
            raise NotMade("it needs the sandbox provider: --sandbox URL")
        return self._provider

    @property
    def webhook(self) -> Webhook:
        """Where the gateway takes events.

        Raises:
            NotMade: nobody named it.
        """
        if self._webhook is None:
            raise NotMade("it needs to know where the gateway takes webhooks: --webhook URL --webhook-secret SECRET")
        return self._webhook

    def refund(self) -> Wish:
        """A refund of a payment of its own: class A."""
        token = uuid.uuid4().hex
        return self._wish("stripe.refund.create", REFUNDS, {"payment_intent": f"pi_{token}", "amount": 1200}, token)

    def mail(self) -> Wish:
        """A mail of a case of its own: class C."""
        token = uuid.uuid4().hex
        input = {"from": "desk@example.com", "to": "a.berg@example.com", "subject": f"Case {token}", "text": "It is on its way."}
        return self._wish("sendgrid.mail.send", MAILS, input, token)

    def ticket(self) -> Wish:
        """A ticket of a case of its own: class B."""
        token = uuid.uuid4().hex
        return self._wish("sandbox.ticket.create", TICKETS, {"title": f"Door {token}"}, token)

    def _wish(self, tool: str, path: str, input: Mapping[str, Any], token: str) -> Wish:
        seen = len(self.provider.requests(path))
        names = {"reference": f"case-{token[:12]}", "run": f"conformance-{token[:12]}"}
        return Wish(ground=self, tool=tool, path=path, input=input, token=token, names=names, seen_before=seen)


def at_once(works: Sequence[Callable[[], T]]) -> list[T]:
    """Do several things at the same moment, each in a thread of its own, and give what each of them gave.

    Raises:
        Exception: what the first of them that failed raised.
    """
    gate = threading.Barrier(len(works))

    def after_the_gate(work: Callable[[], T]) -> T:
        gate.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(after_the_gate, works))


def until(condition: Callable[[], T], *, seconds: float, what: str) -> T:
    """Wait until something is so, and give it.

    Raises:
        Broken: it was not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        must(time.monotonic() < deadline, f"{what} was awaited for {seconds:g} s")
        time.sleep(PAUSE_SECONDS / 2)
