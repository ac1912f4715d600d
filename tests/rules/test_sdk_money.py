"""The client's table of currencies is the gateway's: it may not import the domain, so this compares the two."""

import pytest

from agent_outbox import money as client
from outbox_domain import money as domain


def test_the_client_has_the_decimal_places_of_every_currency() -> None:
    """`agent_outbox.money.EXPONENTS` = `outbox_domain.money.EXPONENTS`."""
    assert dict(client.EXPONENTS) == dict(domain.EXPONENTS)


@pytest.mark.parametrize("currency", ["EUR", "eur", "JPY", "KWD", "CLF", "ZZZ"])
@pytest.mark.parametrize("value", [0, 1, 1200, -1205, 10**15])
def test_the_client_writes_an_amount_as_the_gateway_does(value: int, currency: str) -> None:
    """A table of `outbox doubts` and the message that a model reads name the same amount in the same words."""
    assert client.format(value, currency) == domain.format(value, currency)
