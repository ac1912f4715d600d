"""The timeline of `outbox explain`."""

from typing import Any

from agent_outbox.commands.explain import moments

AT = "2026-11-28T13:57:19.564514Z"
ATTEMPT: dict[str, Any] = {
    "number": 1,
    "claimed_at": AT,
    "resend": False,
    "worker": "w:1",
    "closed_at": AT,
    "outcome": "succeeded",
    "closed_by": "answer",
    "reason": "HTTP 200",
    "provider_status": 200,
    "provider_code": None,
    "provider_seconds": 0.002,
    "proven_absent": False,
    "late_write": False,
}
RESERVATION: dict[str, Any] = {
    "state": "executing",
    "created_at": AT,
    "settled_at": None,
    "actor_chain": ["agent:a"],
    "guarantee_class": "A",
    "amount": {"value": 1200, "currency": "EUR"},
    "attempts": [ATTEMPT],
    "evidence": [
        {"at": AT, "kind": "contradiction", "detail": {"by": "webhook", "external_reference": "re_1", "reason": "webhook"}}
    ],
}


def test_what_is_known_twice_is_said_once() -> None:
    """A status is not repeated where it is the reason too, nor the way in which a contradiction was seen."""
    shown = {moment.what: moment.more for moment in moments(RESERVATION)}
    assert shown["attempt 1 succeeded"] == "HTTP 200, 2 ms at the provider"
    assert shown["contradiction"] == "webhook, re_1"
    assert shown["reserved"] == "by agent:a, 12.00 EUR, class A"
