"""Checks of effects that the caller's own code carries out: killed handlers, lapsed leases, wrong attempts, late answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from agent_outbox.conformance.checks import check
from agent_outbox.conformance.ground import PATIENCE_SECONDS, Answer, Broken, Ground, NotMade, at_once, must

CALLERS = 24
TIME_LIMIT_SECONDS = 2.0
LEASE_SECONDS_MAX = 60.0
PAUSE_SECONDS = 0.5
RESULT_BYTES_TOO_MANY = 300_000

ONE_HOLDER = "One caller at a time holds the attempt of an effect; who comes meanwhile joins, who comes later replays."
HAND_OVER = "An agent killed in the middle is finished by the next one, under the same provider key, where the class allows it."
NEVER_AGAIN = "Without evidence that an earlier attempt did not happen, nobody is told to make another."
OWN_ATTEMPT = "A settlement speaks of its own attempt; one of another attempt changes nothing but by a success."


@dataclass(frozen=True)
class Order:
    """An effect of the caller's own code, under an inline contract.

    Attributes:
        ground: where it is wanted.
        guarantee_class: `A`, `B` or `C`.
        token: names the order; nobody has used it.
    """

    ground: Ground
    guarantee_class: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def reference(self) -> str:
        """What the shop calls the order that was placed."""
        return f"ord_{self.token}"

    def reserve(self, attempt_id: str | None = None, *, limit: float | None = TIME_LIMIT_SECONDS, **members: Any) -> Answer:
        """Ask for the attempt, without waiting for another that is under way.

        Raises:
            NotMade: the gateway does not offer client-executed effects.
        """
        contract = {
            "key": "order:{order}",
            "scope": "environment",
            "class": self.guarantee_class,
            "owner": "conformance",
            "receipt": "id",
        }
        body: dict[str, Any] = {
            "tool": f"conformance.order.place-{self.guarantee_class.lower()}",
            "input": {"order": self.token},
            "run": f"conformance-{self.token[:12]}",
            "attempt_id": attempt_id or str(uuid.uuid4()),
            "contract": contract,
            **members,
        }
        if limit is not None:
            body["time_limit_seconds"] = limit
        answer = self.ground.gateway.ask("POST", "/v1/reservations", body, headers={"Prefer": "respond-async"})
        if answer.status in (404, 405, 501):
            raise NotMade(f"the gateway offers no client-executed effects: HTTP {answer.status}")
        return answer

    def held(self, attempt_id: str | None = None, **members: Any) -> Held:
        """Ask for the attempt and have it.

        Raises:
            Broken: it was not given.
        """
        answer = self.reserve(attempt_id, **members)
        must(answer.status == 201 and isinstance(answer.document.get("attempt"), dict), f"the attempt was not given: {answer}")
        return Held(order=self, reservation_id=answer.document["reservation_id"], attempt=answer.document["attempt"])

    def after_the_lease(self, expected: Callable[[Answer], bool], **members: Any) -> Answer:
        """Ask again and again, as whoever comes next does, until the answer is another than that an attempt is under way.

        Raises:
            Broken: no other came, or another than expected.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            answer = self.reserve(**members)
            if answer.status != 202:
                must(expected(answer), f"after the lease had lapsed the next caller was answered {answer}")
                return answer
            time.sleep(PAUSE_SECONDS)
        raise Broken(f"an attempt that nobody makes any more was under way for {PATIENCE_SECONDS:g} s")


@dataclass(frozen=True)
class Held:
    """An attempt that the caller holds."""

    order: Order
    reservation_id: str
    attempt: dict[str, Any]

    def settle(self, outcome: str = "succeeded", *, attempt_id: str | None = None, **members: Any) -> Answer:
        """Say what came of it; of a success, with what the shop answered."""
        if outcome == "succeeded":
            members = {"result": {"id": self.order.reference}, **members}
        body = {"attempt_id": attempt_id or self.attempt["id"], "outcome": outcome, **members}
        return self.order.ground.gateway.ask("POST", f"/v1/reservations/{self.reservation_id}/settle", body)

    def heartbeat(self, attempt_id: str | None = None) -> Answer:
        """Say that it is still being made."""
        body = {"attempt_id": attempt_id or self.attempt["id"]}
        return self.order.ground.gateway.ask("POST", f"/v1/reservations/{self.reservation_id}/heartbeat", body)

    def state(self) -> str:
        """Where the reservation stands."""
        return str(self.look().document.get("state"))

    def look(self) -> Answer:
        """The reservation as it stands."""
        return self.order.ground.gateway.ask("GET", f"/v1/reservations/{self.reservation_id}")

    def must_be_done(self, answer: Answer) -> None:
        """Go on only if it is done and the receipt names what the shop made."""
        must(answer.status == 200 and answer.document.get("state") == "succeeded", f"the shop has made it, and was told {answer}")
        named = answer.external_reference
        must(named == self.order.reference, f"the shop has made {self.order.reference}, the receipt names {named}")


def _refused(answer: Answer, status: int, code: str, what: str) -> None:
    """Go on only if something was refused with that problem."""
    must(answer.status == status and answer.document.get("code") == code, f"{what} was answered {answer}, not {status} {code}")


@check(promise=ONE_HOLDER)
def client_once(ground: Ground) -> None:
    """A caller takes the attempt, does it, settles it; the next one asks."""
    held = Order(ground, "A").held()
    must(held.state() == "executing", f"the attempt is held, and the reservation is {held.state()}")
    must(held.attempt.get("provider_key"), "the attempt comes without a provider key")
    must(held.attempt.get("recovering") is False, "the first attempt says that it recovers")
    settled = held.settle()
    held.must_be_done(settled)
    replayed = held.order.reserve()
    held.must_be_done(replayed)
    must(replayed.receipt == settled.receipt, "the next caller was given another receipt")


@check(promise=ONE_HOLDER)
def client_lost_answer(ground: Ground) -> None:
    """The answer to a reservation is lost, and the same request is made again."""
    order, attempt_id = Order(ground, "C"), str(uuid.uuid4())
    first, second = (order.held(attempt_id) for _ in range(2))
    must(first.reservation_id == second.reservation_id, "the same request made two reservations")
    for member in ("id", "number", "provider_key"):
        must(first.attempt[member] == second.attempt[member], f"the same request was given another attempt: {member} differs")
    first.must_be_done(first.settle())


@check(promise=ONE_HOLDER)
def client_at_the_same_moment(ground: Ground) -> None:
    """Many callers ask for the attempt at the same moment."""
    order = Order(ground, "C")
    answers = at_once([partial(order.reserve, limit=30.0)] * CALLERS)
    winners = [answer for answer in answers if answer.status == 201]
    must(len(winners) == 1, f"{len(winners)} of {CALLERS} callers were given the attempt")
    losers = {answer.status for answer in answers} - {201}
    must(losers <= {202}, f"the others were answered HTTP {sorted(losers)}")
    held = Held(order, winners[0].document["reservation_id"], winners[0].document["attempt"])
    held.must_be_done(held.settle())
    for answer in at_once([order.reserve] * 3):
        held.must_be_done(answer)


@check(promise=HAND_OVER)
def client_killed(ground: Ground) -> None:
    """Class A: a caller is killed between the effect and the settlement; the next one finishes it."""
    order = Order(ground, "A")
    first = order.held()
    answer = order.after_the_lease(lambda answer: answer.status == 201)
    second = Held(order, answer.document["reservation_id"], answer.document["attempt"])
    must(second.reservation_id == first.reservation_id, "the next caller was given another reservation")
    must(second.attempt["id"] != first.attempt["id"], "the next caller was given the attempt of the one that is gone")
    must(second.attempt["provider_key"] == first.attempt["provider_key"], "the next attempt has another provider key")
    must(second.attempt.get("recovering") is True, "the next caller is not told that an earlier attempt may have had its effect")
    second.must_be_done(second.settle())


@check(promise=OWN_ATTEMPT)
def client_wakes_late(ground: Ground) -> None:
    """Class A: a caller that was stopped past its lease says that it was refused; another has the attempt."""
    order = Order(ground, "A")
    first = order.held()
    answer = order.after_the_lease(lambda answer: answer.status == 201)
    second = Held(order, answer.document["reservation_id"], answer.document["attempt"])
    must(first.heartbeat().status == 409, "a lapsed lease was renewed")
    _refused(first.settle("rejected"), 409, "attempt-closed", "a late refusal of an attempt that had lapsed")
    must(second.state() == "executing", f"a late refusal of another attempt made the reservation {second.state()}")
    second.must_be_done(second.settle())


@check(promise=OWN_ATTEMPT)
def client_succeeds_late(ground: Ground) -> None:
    """Class C: a caller that was stopped past its lease had the effect, and says so."""
    order = Order(ground, "C")
    held = order.held()
    order.after_the_lease(lambda answer: answer.status == 409 and answer.document.get("state") == "in_doubt")
    held.must_be_done(held.settle())


@check(promise=NEVER_AGAIN)
def client_killed_without_identity(ground: Ground) -> None:
    """Class C: a caller is killed in the middle; nobody can know, so nobody is handed the attempt."""
    order = Order(ground, "C")
    order.held()
    for _ in range(3):
        answer = order.after_the_lease(lambda answer: answer.status == 409)
        must(answer.document.get("state") == "in_doubt", f"nobody knows, and the next caller was told {answer}")
        must(answer.document.get("attempt") is None, "a doubt of class C was handed over")
        time.sleep(PAUSE_SECONDS)


@check(promise=NEVER_AGAIN)
def client_killed_and_looked_up(ground: Ground) -> None:
    """Class B: a caller is killed in the middle; the next one looks first, and finds the effect."""
    order = Order(ground, "B")
    held = order.held()
    order.after_the_lease(lambda answer: answer.status == 409 and answer.document.get("state") == "in_doubt")
    asked = order.reserve(probe=True)
    must(asked.status == 201 and asked.document.get("attempt") is None, f"a caller that can look was answered {asked}")
    probe = asked.document.get("probe")
    must(isinstance(probe, dict), f"a caller that can look was not asked to: {asked}")
    path = f"/v1/reservations/{held.reservation_id}/probes"
    begun = ground.gateway.ask("POST", path, {"attempt_id": asked.document["probe"]["attempt_id"]})
    must(begun.status == 201, f"a look was answered {begun}")
    found = {"found": True, "external_reference": order.reference, "result": {"id": order.reference}}
    held.must_be_done(ground.gateway.ask("POST", f"{path}/{begun.document['probe_id']}", found))


@check(promise=OWN_ATTEMPT)
def client_wrong_attempt(ground: Ground) -> None:
    """A settlement and a heartbeat name an attempt that there never was."""
    held = Order(ground, "C").held(limit=30.0)
    stranger = str(uuid.uuid4())
    answer = held.settle(attempt_id=stranger)
    must(400 <= answer.status < 500 and answer.document.get("code") == "attempt-unknown", f"an unknown attempt settled: {answer}")
    must(held.heartbeat(stranger).status in (404, 409), "the lease was renewed by an attempt that there never was")
    must(held.state() == "executing", f"an unknown attempt made the reservation {held.state()}")
    held.must_be_done(held.settle())


@check(promise="What was settled is never changed; the same settlement again is answered with the same bytes.")
def client_settled_twice(ground: Ground) -> None:
    """A settlement is sent again, and then another outcome for the same attempt."""
    held = Order(ground, "A").held()
    first, second = held.settle(), held.settle()
    held.must_be_done(first)
    must(second.status == 200 and second.body == first.body, f"the same settlement again was answered {second}")
    _refused(held.settle("rejected"), 409, "outcome-differs", "another outcome for a settled attempt")
    held.must_be_done(held.look())


@check(promise="Without a time limit of the handler only class A is accepted.")
def client_without_limit(ground: Ground) -> None:
    """Handlers without a time limit, of each class."""
    for guarantee_class in ("B", "C"):
        answer = Order(ground, guarantee_class).reserve(limit=None)
        _refused(answer, 422, "time-limit-required", f"class {guarantee_class} without a time limit")
    Order(ground, "A").held(limit=None).settle()


@check(promise="A lease is renewed for whoever holds the attempt, and ends with the handler's time limit.")
def client_heartbeat(ground: Ground) -> None:
    """A caller renews its lease while it works, and for longer than it said it would."""
    held = Order(ground, "C").held()
    must(held.heartbeat().status == 200, f"the lease was not renewed: {held.heartbeat()}")
    deadline = time.monotonic() + LEASE_SECONDS_MAX
    while held.heartbeat().status == 200:
        kept = f"a handler limited to {TIME_LIMIT_SECONDS:g} s kept its lease for {LEASE_SECONDS_MAX:g} s"
        must(time.monotonic() < deadline, kept)
        time.sleep(PAUSE_SECONDS)
    must(held.state() != "succeeded", "a lapsed lease became a success")


@check(promise="What the caller's code was refused is failed, without a receipt, and its key is free.")
def client_rejected(ground: Ground) -> None:
    """The handler is refused for good; the agent tries again with the same key."""
    order = Order(ground, "C")
    held = order.held()
    refused = held.settle("rejected", provider_status=402, provider_code="card_declined")
    must(refused.status == 200 and refused.document.get("state") == "failed", f"a refusal was settled as {refused}")
    must(refused.document.get("receipt") is None, "a refusal has a receipt")
    again = order.held()
    must(again.reservation_id != held.reservation_id, "a closed reservation was opened again")
    again.must_be_done(again.settle())


@check(promise="What cannot be taken is refused with a typed problem and changes nothing.")
def client_bad_input(ground: Ground) -> None:
    """A result that is too large, an outcome that there is not, a reservation that there is not."""
    held = Order(ground, "A").held()
    _refused(held.settle(result={"id": "x" * RESULT_BYTES_TOO_MANY}), 413, "too-large", "a result that is too large")
    must(held.settle("perhaps").status in (400, 422), "an outcome that there is not was taken")
    stranger = Held(held.order, str(uuid.uuid4()), held.attempt)
    _refused(stranger.settle(), 404, "not-found", "a settlement of a reservation that there is not")
    must(held.state() == "executing", f"what was refused made the reservation {held.state()}")
    held.must_be_done(held.settle())
