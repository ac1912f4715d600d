"""The form encoding: brackets for what is nested, read back by a reader that shares nothing with the writer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.provider_specs import read_form

from outbox_domain.errors import OutboxError
from outbox_providers.http_form import encode

names = st.text(st.characters(exclude_characters="[]", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    # An object whose names are 0, 1, 2 ... cannot be told from a list in a form; no provider here has such names.
    lambda name: not name.isdecimal()
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    texts,
    lambda children: st.lists(children, min_size=1, max_size=4) | st.dictionaries(names, children, min_size=1, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(names, values, min_size=1, max_size=5))
def test_a_form_reads_back(body: dict[str, Any]) -> None:
    """Whatever the names and texts, the reader gets the same nested value."""
    assert read_form(encode(body)) == body


@given(st.dictionaries(names, values, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(body: dict[str, Any], random: Any) -> None:
    """One body has one encoding, so a resend is byte for byte the same."""
    members = list(body.items())
    random.shuffle(members)
    assert encode(dict(members)) == encode(body)


@given(st.dictionaries(names, values, max_size=5))
def test_a_form_is_plain_ascii(body: dict[str, Any]) -> None:
    """No control character, space or raw bracket leaves us: nothing in a value can begin another field."""
    assert set(encode(body)) <= set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%&=")


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ({}, b""),
        ({"b": 1, "a": 2}, b"a=2&b=1"),
        ({"a": True, "b": False}, b"a=true&b=false"),
        ({"a": 1.5, "b": -3}, b"a=1.5&b=-3"),
        ({"a": ""}, b"a="),
        ({"a": None, "b": {"c": None}, "d": [], "e": {}}, b""),
        ({"metadata": {"k": "v", "a b": "ü&="}}, b"metadata%5Ba%20b%5D=%C3%BC%26%3D&metadata%5Bk%5D=v"),
        ({"items": [{"price": "p_1"}, {"price": "p_2"}]}, b"items%5B0%5D%5Bprice%5D=p_1&items%5B1%5D%5Bprice%5D=p_2"),
        ({"expand": [str(index) for index in range(11)]}, b"&".join(b"expand%%5B%d%%5D=%d" % (i, i) for i in range(11))),
        ({"a": "x&amount=1\r\n"}, b"a=x%26amount%3D1%0D%0A"),
    ],
)
def test_the_bytes_of_a_form(body: dict[str, Any], form: bytes) -> None:
    """Stripe's way of writing nested values; lists keep their order beyond ten."""
    assert encode(body) == form


@pytest.mark.parametrize("name", ["", "a]", "[a", "x][outbox", "[]"])
def test_a_name_that_would_address_another_field_is_refused(name: str) -> None:
    """At the top and within; the schema should have refused it, and the writer does too."""
    for body in ({name: "v"}, {"metadata": {name: "v"}}, {"items": [{name: "v"}]}):
        with pytest.raises(OutboxError, match="bracket"):
            encode(body)


def test_a_number_that_is_none_is_refused() -> None:
    """NaN has no spelling in a form."""
    with pytest.raises(ValueError, match="JSON"):
        encode({"a": float("nan")})
