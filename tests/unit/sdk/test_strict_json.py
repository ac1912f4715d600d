"""JSON that can be carried exactly, by the same rules as the gateway's."""

import enum
import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_outbox import strict_json
from agent_outbox.errors import InvalidInputError, MalformedArgumentsError
from outbox_domain import canonical, json_text

VECTORS = json.loads((Path(__file__).parents[3] / "docs" / "vectors" / "json-text.json").read_text(encoding="utf-8"))
SYNTAX = frozenset({'{"a":[1,2,}', '{"a":"x', "01", "[1] 2", '{"odd name":nul}', ""})
"""Refused texts that are no JSON at all; the client says at which character, the gateway at which path."""

scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda vector: vector["text"][:30])
def test_reads_what_the_gateway_reads(vector: dict[str, str]) -> None:
    """Every accepted text of the published vectors has the published canonical form."""
    assert canonical.canonical(strict_json.read(vector["text"])) == vector["canonical"].encode()


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["text"][:30])
def test_refuses_what_the_gateway_refuses(vector: dict[str, str]) -> None:
    """Every refused text of the published vectors is refused, and a value that cannot be carried is named by the same path."""
    with pytest.raises(MalformedArgumentsError) as caught:
        strict_json.read(vector["text"])
    if vector["text"] not in SYNTAX:
        assert caught.value.path == vector["path"]
    assert caught.value.as_tool_message().startswith("NOT SENT. $")


@given(values)
def test_what_is_written_is_read_by_the_gateway(value: Any) -> None:
    """Whatever can be written is read back by the gateway's own reader as the same value."""
    assert json_text.parse(strict_json.write(value)) == value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"amount": float("nan")}, "$.amount"),
        ({"a": [1, {"b": float("inf")}]}, "$.a[1].b"),
        ({"a": 2**53}, "$.a"),
        ({"a": -(2**53)}, "$.a"),
        ({"a": datetime(2026, 1, 31)}, "$.a"),
        ({"a": Decimal("12.00")}, "$.a"),
        ({"a": b"bytes"}, "$.a"),
        ({"a": {1, 2}}, "$.a"),
        ({"a": {1: "one"}}, "$.a"),
        ({"a": "\ud800"}, "$.a"),
        ({"\udfff": 1}, '$["\\udfff"]'),
        ({"odd name": float("nan")}, '$["odd name"]'),
    ],
)
def test_names_the_value_that_cannot_be_carried(value: object, path: str) -> None:
    """A value that is no JSON, or not exact, is refused with its path; the value itself is not repeated."""
    with pytest.raises(MalformedArgumentsError) as caught:
        strict_json.write(value)
    assert caught.value.path == path
    assert isinstance(caught.value, InvalidInputError)
    assert caught.value.retry.action == "change-input"


def test_values_that_contain_themselves_are_refused() -> None:
    """A list inside itself is too deep, not endless."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(MalformedArgumentsError, match="64 levels"):
        strict_json.write(endless)


def test_texts_that_are_too_deep_are_refused() -> None:
    """64 levels are read, 65 are not, and neither are a hundred thousand."""
    assert strict_json.read("[" * 64 + "]" * 64) is not None
    for depth in (65, 100_000):
        with pytest.raises(MalformedArgumentsError, match="64 levels"):
            strict_json.read("[" * depth + "]" * depth)


def test_numbers_of_many_digits_are_refused_quickly() -> None:
    """A number of a million digits is refused by its length."""
    for text in ("9" * 1_000_000, "0." + "9" * 1_000_000):
        with pytest.raises(MalformedArgumentsError):
            strict_json.read(text)


def test_copies_what_it_is_given() -> None:
    """Tuples become lists, an enumeration that is text becomes its value, and nothing is shared with the original."""

    class Reason(enum.StrEnum):
        DUPLICATE = "duplicate"

    original: dict[str, object] = {"list": (1, 2), "reason": Reason.DUPLICATE}
    copy: Any = strict_json.carried(original)
    original["list"] = ()
    assert copy == {"list": [1, 2], "reason": "duplicate"}
    assert type(copy["reason"]) is str
