"""Webhooks of the sandbox provider against the whole stack: early, late, twice, contradicting and forged."""

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from tests.support.outbox_up import PATHS, REFUND, Answer, OutboxUp, refund, request, running


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutboxUp]:
    """One `outbox up` for the tests of this module; every test uses payments of its own."""
    with running(tmp_path_factory.mktemp("up")) as started:
        yield started


@pytest.fixture
def up(stack: OutboxUp) -> Iterator[OutboxUp]:
    """The stack, asked for its invariants when the test is over."""
    with stack.checked():
        yield stack


def plan(up: OutboxUp, mode: str, **members: Any) -> None:
    """Have the provider tell of its next refund, or of the one named `effect`, as the ready file says."""
    target = up.ready()["webhooks"]["stripe"]
    if "effect" not in members:
        members["path"] = PATHS[REFUND]
    document = {"mode": mode, **target, **members}
    answer = request(up.sandbox.url, "POST", "/_control/webhooks", body=json.dumps(document).encode(), seconds=10)
    assert answer.status == 200, answer.body


def statuses(up: OutboxUp, effect: str, *, times: int = 1) -> list[int | None]:
    """What the provider's events of an effect were answered with, once so many were."""

    def sent() -> list[dict[str, Any]]:
        listed = request(up.sandbox.url, "GET", "/_control/webhooks", seconds=10).document
        return [one for one in listed if one["effect"] == effect and one["ended"]]

    up.wait(lambda: len(sent()) >= times, "the webhooks")
    return [one["status"] for one in sent()]


def effect_of(up: OutboxUp, input: dict[str, object]) -> str:
    """The one refund of a payment that the provider has made."""
    found = [one for one in up.sandbox.effects(PATHS[REFUND]) if one["fields"]["payment_intent"] == input["payment_intent"]]
    assert len(found) == 1, found
    return str(found[0]["id"])


def settled(answer: Answer) -> dict[str, Any]:
    """The receipt in the answer to a call that succeeded."""
    assert answer.status == 200, answer.body
    receipt: dict[str, Any] = answer.document["receipt"]
    return receipt


def test_an_event_before_the_answer(up: OutboxUp) -> None:
    """The caller has its receipt from the event while the provider still holds the answer back; nothing contradicts it later."""
    plan(up, "early")
    up.sandbox.plan(PATHS[REFUND], "hang", delay_seconds=4.0)
    input = refund()
    began = time.monotonic()
    receipt = settled(up.call(REFUND, input))
    assert time.monotonic() - began < 3.5
    assert (receipt["confidence"], receipt["external_reference"]) == ("confirmed-by-webhook", effect_of(up, input))
    late = "select late_outcome from attempts where reservation_id = $1"
    up.wait(lambda: up.ledger.value(late, UUID(receipt["reservation_id"])), "the answer that never came")
    detail = up.send("GET", f"/v1/reservations/{receipt['reservation_id']}").document
    assert (detail["state"], detail["receipt"]) == ("succeeded", receipt)
    assert [entry["kind"] for entry in detail["evidence"]].count("contradiction") == 0


@pytest.mark.parametrize("fault", [None, "commit-then-drop", "commit-then-500", "truncate-body"])
@pytest.mark.parametrize(("mode", "times"), [("early", 1), ("late", 1), ("twice", 2)])
def test_events_beside_answers(up: OutboxUp, fault: str | None, mode: str, times: int) -> None:
    """Whatever becomes of the answer and whenever the event comes, once or twice: one effect, one receipt, no contradiction."""
    plan(up, mode, **({} if mode == "early" else {"delay_seconds": 0.3}))
    if fault is not None:
        up.sandbox.plan(PATHS[REFUND], fault)
    input = refund()
    receipt = settled(up.call(REFUND, input))
    effect = effect_of(up, input)
    assert receipt["external_reference"] == effect
    assert statuses(up, effect, times=times) == [200] * times
    detail = up.send("GET", f"/v1/reservations/{receipt['reservation_id']}").document
    assert detail["receipt"] == receipt
    assert [entry["kind"] for entry in detail["evidence"]].count("contradiction") == 0


def test_a_forged_event(up: OutboxUp) -> None:
    """It is refused and changes nothing: the receipt is that of the answer."""
    plan(up, "forged")
    input = refund()
    receipt = settled(up.call(REFUND, input))
    assert receipt["confidence"] == "confirmed"
    assert statuses(up, effect_of(up, input)) == [400]


def test_an_event_of_a_failure(up: OutboxUp) -> None:
    """A refund that failed at the bank is told of by the same marker: the doubt is not ended by it, and its receipt stays another's."""
    plan(up, "failed")
    up.sandbox.plan(PATHS[REFUND], "commit-then-drop")
    input = refund()
    receipt = settled(up.call(REFUND, input))
    effect = effect_of(up, input)
    assert statuses(up, effect) == [200]
    assert receipt["confidence"] != "confirmed-by-webhook"
    assert receipt["external_reference"] == effect
    detail = up.send("GET", f"/v1/reservations/{receipt['reservation_id']}").document
    assert (detail["state"], detail["receipt"]) == ("succeeded", receipt)
    told = [entry["detail"] for entry in detail["evidence"] if entry["detail"].get("by") == "webhook"]
    assert [entry["type"] for entry in told] == ["refund.failed"]


def test_an_event_of_another_effect(up: OutboxUp) -> None:
    """Signed proof of a second effect of one marker is written down as a contradiction; the receipt stays as it is."""
    input = refund()
    receipt = settled(up.call(REFUND, input))
    effect = effect_of(up, input)
    plan(up, "contradicting", effect=effect)
    assert statuses(up, effect) == [200]
    detail = up.send("GET", f"/v1/reservations/{receipt['reservation_id']}").document
    assert detail["receipt"] == receipt
    [entry] = [entry for entry in detail["evidence"] if entry["kind"] == "contradiction"]
    assert entry["detail"]["external_reference"] == f"{effect}_other"
