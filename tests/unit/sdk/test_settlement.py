"""What a settlement says can always be sent: an effect that happened is not lost for what was said beside it."""

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from agent_outbox import Classified, Effect, Rejected, Success, strict_json
from agent_outbox.effect import Lease
from agent_outbox.errors import MalformedArgumentsError
from agent_outbox.receipt import Money
from agent_outbox.settlement import exception_members, settle_body, success_members

ID = UUID(int=7)

# As code without a type checker calls them, with whatever it has at hand.
SUCCESS: Any = Success
MONEY: Any = Money
CLASSIFIED: Any = Classified
REJECTED: Any = Rejected


class Speechless:
    """An object that has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("success", "said"),
    [
        (
            SUCCESS(external_reference="re_1", provider_request_id="req_1"),
            {"external_reference": "re_1", "provider_request_id": "req_1"},
        ),
        (SUCCESS(external_reference=ID), {"external_reference": str(ID)}),
        (SUCCESS(external_reference=7, provider_request_id=8), {"external_reference": "7", "provider_request_id": "8"}),
        (SUCCESS(external_reference=True), {}),
        (SUCCESS(external_reference=object()), {}),
        (SUCCESS(external_reference=Speechless()), {}),
        (SUCCESS(external_reference=" ", provider_request_id="a\n"), {}),
        (SUCCESS(external_reference="a\ud800", provider_request_id="x" * 1_001), {}),
        (SUCCESS(amount=MONEY(value=1200, currency="EUR")), {"amount": {"value": 1200, "currency": "EUR"}}),
        (SUCCESS(amount=MONEY(value=Decimal("12.00"), currency="EUR")), {"amount": {"value": 12, "currency": "EUR"}}),
        (SUCCESS(amount=MONEY(value=12.5, currency="EUR")), {}),
        (SUCCESS(amount=MONEY(value=float("nan"), currency="EUR")), {}),
        (SUCCESS(amount=MONEY(value=2**53, currency="EUR")), {}),
        (SUCCESS(amount=MONEY(value=1, currency="euros")), {}),
        (SUCCESS(amount=1200), {}),
    ],
)
def test_what_cannot_be_said_of_a_success_is_left_out(success: Success, said: dict[str, Any]) -> None:
    """References, request ids and amounts of every kind: what the gateway takes is said, the rest is not, and nothing fails."""
    members = success_members(success, None)
    assert strict_json.write(members)
    assert members == {"outcome": "succeeded", "result": None, **said}


@pytest.mark.parametrize("found", [None, "", object(), Speechless(), "\ud800", {"id": 1}])
def test_a_receipt_function_that_finds_nothing_usable_leaves_the_success(found: object) -> None:
    """Whatever `receipt=` returns, the effect is recorded; only a name is taken for one."""
    assert success_members({"id": 1}, lambda result: found) == {"outcome": "succeeded", "result": {"id": 1}}


@pytest.mark.parametrize(
    "classified",
    [
        CLASSIFIED(outcome="rejected", reason=None, provider_status="402", provider_code=object()),
        CLASSIFIED(outcome="rejected", reason="\ud800", provider_status=True, provider_code="a\ud800"),
        CLASSIFIED(outcome="rejected", reason="", provider_status=99_999, provider_code=7),
    ],
)
def test_an_own_verdict_counts_whatever_stands_beside_it(classified: Classified) -> None:
    """A `classify=` that fills its verdict with what exceptions hold still says the outcome, and nothing that cannot be sent."""
    members = exception_members(ValueError("x"), lambda error: classified)
    assert strict_json.write(members)
    assert (members["outcome"], set(members)) == ("rejected", {"outcome", "reason"})


def test_a_refusal_with_a_status_of_another_kind_is_a_refusal() -> None:
    """`Rejected` with a status that is text is rejected all the same, without the status."""
    members = exception_members(REJECTED("no", code="declined", status="402"), None)
    assert members == {"outcome": "rejected", "reason": "Rejected", "provider_code": "declined"}


def test_a_settlement_that_cannot_be_sent_is_refused_before_it_is_kept() -> None:
    """`settle` of a refusal with a code that no JSON carries names the member and keeps nothing; words for people are told as they can be."""
    lease = Lease(asked_at=0.0, seconds=10.0)
    effect = Effect(
        tool="t",
        input={},
        reservation_id="r",
        operation_key=None,
        attempt_id="a",
        number=1,
        provider_key="k",
        marker="m",
        recovering=False,
        time_limit=None,
        deadline=None,
        lease=lease,
    )
    said: dict[str, Any] = {"reason": None, "provider_status": None, "stored": False}
    with pytest.raises(MalformedArgumentsError) as raised:
        settle_body(effect, "rejected", Success(), provider_code="\ud800", provider_message=None, **said)
    assert raised.value.path == "$.provider_code"
    body = settle_body(effect, "rejected", Success(), provider_code=None, provider_message="no caf\udce9", **said)
    assert body["provider_message"] == "no caf?"
