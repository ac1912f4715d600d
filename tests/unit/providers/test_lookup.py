"""What an answer to a look-up means: found, absent, several, of no use, or none at all."""

import json
from typing import Any

import pytest

from outbox_domain.errors import OutboxError
from outbox_providers.catalog import shipped
from outbox_providers.driver import build_lookup, read_lookup
from outbox_providers.lookup import Finding
from outbox_providers.wire import WireAnswer

CONTRACTS = {contract.tool: contract for contract in shipped()}
REFUND, CUSTOMER, TICKET = "stripe.refund.create", "stripe.customer.create", "sandbox.ticket.create"
MARKER = "obm_" + "0" * 64


def refund(id: str | None = "re_1", marker: str = MARKER, **more: Any) -> dict[str, Any]:
    """A refund as Stripe lists it."""
    return {"id": id, "amount": 1200, "currency": "eur", "status": "succeeded", "metadata": {"outbox": marker}, **more}


def page(*items: Any, has_more: object = False) -> bytes:
    """A page of a list."""
    return json.dumps({"object": "list", "data": list(items), "has_more": has_more}).encode()


def said(body: bytes, status: int = 200, tool: str = REFUND) -> Finding:
    """What an answer to the look-up of a tool says."""
    rule = CONTRACTS[tool].lookup
    assert rule is not None
    answer = WireAnswer(status=status, headers=(("Request-Id", "req_of_the_read"),), body=body)
    return read_lookup(CONTRACTS[tool], rule, answer, marker=MARKER)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (page(), 200, "absent"),
        (page(refund(marker="obm_other")), 200, "absent"),
        (page(refund()), 200, "found"),
        (page(refund("re_0", "obm_other"), refund(), has_more=True), 200, "found"),
        (page(refund(), refund()), 200, "found"),
        (page(refund(), refund("re_2")), 200, "several"),
        (page(has_more=True), 200, "unusable"),
        (page(has_more="perhaps"), 200, "unusable"),
        (page(refund(None)), 200, "unusable"),
        (page(refund("re with words")), 200, "unusable"),
        (b"", 200, "unusable"),
        (b"[]", 200, "unusable"),
        (b"{}", 200, "unusable"),
        (b'{"data": {}}', 200, "unusable"),
        (b'{"data": null}', 200, "unusable"),
        (page(refund())[:-5], 200, "unusable"),
        (b"<html>", 200, "unusable"),
        (page(), 301, "unusable"),
        (page(), 401, "unusable"),
        (page(), 404, "unusable"),
        (page(refund()), 403, "unusable"),
        (page(), 408, "unanswered"),
        (page(), 429, "unanswered"),
        (page(), 500, "unanswered"),
        (page(refund()), 503, "unanswered"),
    ],
)
def test_what_an_answer_says(body: bytes, status: int, says: str) -> None:
    """Only a complete list without a match is an absence."""
    assert said(body, status).says == says


def test_the_receipt_of_what_was_found() -> None:
    """The contract's projection of the object; what it takes from headers belongs to the read and is absent."""
    found = said(page(refund())).effect
    assert found is not None
    assert (found.external_reference, found.provider_request_id) == ("re_1", None)
    assert found.result == {"id": "re_1", "status": "succeeded", "amount": 1200, "currency": "eur"}
    assert (found.amount_reported, found.currency_reported) == (1200, "EUR")


def test_references_of_several() -> None:
    """Each is named, up to ten; no words of the provider's are in the reason."""
    found = said(page(*(refund(f"re_{number}") for number in range(20))))
    assert found.references == tuple(f"re_{number}" for number in range(10))
    assert found.reason == "HTTP 200, 20 effects"


def test_a_marker_is_never_an_expression() -> None:
    """A marker that would end the expression's text is refused."""
    rule = CONTRACTS[REFUND].lookup
    assert rule is not None
    with pytest.raises(ValueError, match="marker"):
        read_lookup(CONTRACTS[REFUND], rule, WireAnswer(status=200, headers=(), body=page()), marker="x' || 'y")


def test_the_request() -> None:
    """A GET with the credential and the contract's headers, without a body, a provider key or a content type; values are encoded."""
    contract = CONTRACTS[CUSTOMER]
    assert contract.lookup is not None
    wire = build_lookup(
        contract,
        contract.lookup,
        base_url="https://api.example.com",
        credential="sk_1",
        fixed_headers={"X-Team": "desk"},
        bound={"email": "a+b@example.com"},
        names={},
        marker=MARKER,
    )
    assert (wire.method, wire.body) == ("GET", b"")
    assert wire.url == "https://api.example.com/v1/customers?email=a%2Bb%40example.com&limit=100"
    assert dict(wire.headers) == {
        "Accept": "application/json",
        "X-Team": "desk",
        "Stripe-Version": "2023-08-16",
        "Authorization": "Bearer sk_1",
    }
    assert "a%2Bb" not in repr(wire)


def test_a_request_without_its_value() -> None:
    """An address that cannot be filled is refused; nothing is sent in its place."""
    contract = CONTRACTS[CUSTOMER]
    assert contract.lookup is not None
    with pytest.raises(OutboxError):
        build_lookup(
            contract,
            contract.lookup,
            base_url="https://api.example.com",
            credential=None,
            fixed_headers={},
            bound={},
            names={},
            marker=MARKER,
        )
