"""The model of a contract: closed, immutable, and the same after a journey through JSON."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from outbox_domain.contract import LookupRule, PersonRule, ResendRule, ToolContract, format_duration, parse_duration, placeholders
from outbox_providers import catalog


def contract_named(tool: str) -> ToolContract:
    """The shipped contract of a tool."""
    return next(each for each in catalog.shipped() if each.tool == tool)


@pytest.mark.parametrize("contract", catalog.shipped(), ids=lambda each: each.tool)
def test_a_contract_survives_its_document(contract: ToolContract) -> None:
    """A contract read back from its JSON document is the same contract, even if the database reorders the members."""
    stored = json.loads(json.dumps(contract.document(), sort_keys=True))
    again = ToolContract.from_document(stored)
    assert again == contract
    assert again.document() == contract.document()
    assert again.input_schema_text == contract.input_schema_text


def test_an_unknown_member_is_refused_at_every_level() -> None:
    """A misspelt member is an error, never silently a default."""
    document = contract_named("stripe.refund.create").document()
    places: list[dict[str, Any]] = [document, document["request"], document["receipt"], document["identity"][0]]
    for place in [*places, document["outcomes"][0], document["amount"], document["recovery"][0]["resend"]]:
        place["not_afterr"] = "1h"
        with pytest.raises(ValidationError, match="not_afterr"):
            ToolContract.from_document(document)
        del place["not_afterr"]
    ToolContract.from_document(document)


def test_a_contract_cannot_be_changed() -> None:
    """Contracts are values: pinned on reservations and shared between calls."""
    with pytest.raises(ValidationError, match="frozen"):
        contract_named("sandbox.echo").version = 2


def test_an_identity_is_a_key_or_a_digest() -> None:
    """Neither and both are refused, because the first rule whose fields are present must say one thing."""
    document = contract_named("sandbox.echo").document()
    for identity in ({"scope": "run"}, {"scope": "run", "key": "a:{b}", "digest": "input"}):
        with pytest.raises(ValidationError, match="either a key or a digest"):
            ToolContract.from_document(document | {"identity": identity})


@pytest.mark.parametrize(
    "tool", ["stripe", "Stripe.refund", "stripe..refund", "stripe.refund.", "a." + "b" * 100, "stripe.re fund", ""]
)
def test_a_tool_has_a_dotted_name(tool: str) -> None:
    """provider.noun.verb in lower case, so that the provider is its first word."""
    with pytest.raises(ValidationError, match=r"provider\.noun\.verb"):
        ToolContract.from_document(contract_named("sandbox.echo").document() | {"tool": tool})


def test_recovery_keeps_its_order_and_its_bounds() -> None:
    """The refund recovers by resend, then lookup; mail only by a person."""
    refund = contract_named("stripe.refund.create")
    assert [type(rule) for rule in refund.recovery] == [ResendRule, LookupRule]
    assert refund.resend is not None
    assert refund.resend.within == timedelta(hours=23)
    assert refund.lookup is not None
    assert (refund.lookup.settle, refund.lookup.times, refund.lookup.on_absent) == (timedelta(seconds=120), 2, "resend")
    assert contract_named("sendgrid.mail.send").recovery == (PersonRule(),)


def test_attention_follows_the_money_unless_declared() -> None:
    """A doubt about money pages, another queues, and the contract's own word wins."""
    refund = contract_named("stripe.refund.create").document()
    echo = contract_named("sandbox.echo").document()
    assert ToolContract.from_document(refund | {"doubt": None}).attention == "page"
    assert ToolContract.from_document(echo | {"doubt": None}).attention == "queue"
    assert ToolContract.from_document(echo | {"doubt": {"attention": "none"}}).attention == "none"


@pytest.mark.parametrize("text", ["20", 20, "s", "-1s", "1.5s", "1 s", "1w", "", None, True, "9999999999999s", "1s\n"])
def test_a_duration_has_a_unit(text: object) -> None:
    """A bare number could be anything."""
    with pytest.raises(ValueError, match="digits and a unit"):
        parse_duration(text)


def test_an_endless_duration_is_refused() -> None:
    """Digits that no duration can hold are a bad value, not a crash."""
    with pytest.raises(ValueError, match="at most 3650d"):
        parse_duration("999999999999d")


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400)))
def test_a_duration_reads_back(duration: timedelta) -> None:
    """What is written is read as the same duration, to the millisecond."""
    whole = timedelta(milliseconds=duration // timedelta(milliseconds=1))
    assert parse_duration(format_duration(whole)) == whole


def test_placeholders_are_names_in_braces() -> None:
    """Only dotted names count; JSON-like braces and digits do not."""
    assert placeholders("refund:{payment_intent}:{reference} {input.a.b} {0} {} {a-b}") == (
        "payment_intent",
        "reference",
        "input.a.b",
    )
    assert contract_named("stripe.refund.create").identity[0].fields == ("payment_intent", "reference")
