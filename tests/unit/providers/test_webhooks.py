"""Which events of a provider prove an effect: only those that the contract names, and only as they are."""

from typing import Any

import pytest

from outbox_domain.contract import WebhookRule
from outbox_providers.catalog import shipped
from outbox_providers.webhooks import Event, proves

RULES = {contract.tool: contract.webhook for contract in shipped() if contract.webhook is not None}


def event(kind: str | None, **members: Any) -> Event:
    """An event of an effect with these members."""
    return Event(id="evt_1", kind=kind, document={"type": kind, "data": {"object": members}})


@pytest.mark.parametrize(
    ("tool", "said", "proven"),
    [
        ("stripe.refund.create", event("refund.created", status="succeeded"), True),
        ("stripe.refund.create", event("refund.created", status="pending"), True),
        ("stripe.refund.create", event("refund.updated", status="requires_action"), True),
        ("stripe.refund.create", event("charge.refund.updated", status="succeeded"), True),
        ("stripe.refund.create", event("refund.created", status="failed"), False),
        ("stripe.refund.create", event("refund.updated", status="canceled"), False),
        ("stripe.refund.create", event("refund.updated", status="a_status_of_tomorrow"), False),
        ("stripe.refund.create", event("refund.created"), False),
        ("stripe.refund.create", event("refund.failed", status="failed"), False),
        ("stripe.refund.create", event("refund.failed", status="succeeded"), False),
        ("stripe.refund.create", event("customer.created", status="succeeded"), False),
        ("stripe.refund.create", event(None, status="succeeded"), False),
        ("stripe.customer.create", event("customer.created"), True),
        ("stripe.customer.create", event("customer.updated", deleted=True), False),
        ("stripe.customer.create", event("customer.deleted"), False),
    ],
)
def test_shipped_contracts_name_their_proofs(tool: str, said: Event, proven: bool) -> None:
    """An effect that failed, was cancelled or deleted is told of by the same marker and proves nothing; nor does what nobody named."""
    assert proves(RULES[tool], said) is proven


def test_a_rule_without_types_proves_nothing() -> None:
    """A contract of an earlier version, which named none, settles nothing by a webhook."""
    assert not proves(WebhookRule(signature="stripe", match="a"), event("refund.created", status="succeeded"))


@pytest.mark.parametrize("when", ["data.object.status.length(@)", "sum(data.object)", "data.object.nothing", "'' "])
def test_a_condition_that_cannot_be_asked_is_not_met(when: str) -> None:
    """An expression that errs on a foreign document, or yields nothing, is no proof."""
    assert not proves(
        WebhookRule(signature="stripe", match="a", types=("refund.created",), when=when), event("refund.created", status=1)
    )
