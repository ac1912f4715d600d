"""Results that cannot be stored are noted in their place, the same for the first caller and for every replay."""

import enum
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from agent_outbox.stored_form import NOTE, RESULT_BYTES_MAX, stored_form
from outbox_domain import json_text


class Colour(enum.Enum):
    """An enumeration that is no text."""

    RED = 1


class Broken:
    """An object that fails however it is looked at."""

    def to_dict(self) -> dict[str, object]:
        """Fails."""
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


class BrokenMapping(dict[str, object]):
    """A mapping that fails when it is read."""

    def items(self) -> Any:
        """Fails."""
        raise RuntimeError("no")


class Model(BaseModel):
    """A model of pydantic's."""

    id: str
    at: datetime


@dataclass
class Record:
    """A dataclass."""

    id: str
    body: bytes


AT = datetime(2026, 1, 31, 8, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("result", "value", "notes"),
    [
        (None, None, ()),
        ({"id": "re_1", "list": (1, 2.5, True, None)}, {"id": "re_1", "list": [1, 2.5, True, None]}, ()),
        (12.0, 12, ()),
        ({"rate": float("nan")}, {"rate": {NOTE: {"type": "float", "text": "nan"}}}, ("$.rate",)),
        ([float("-inf")], [{NOTE: {"type": "float", "text": "-inf"}}], ("$[0]",)),
        (AT, {NOTE: {"type": "datetime", "text": "2026-01-31T08:15:00+00:00"}}, ("$",)),
        (date(2026, 1, 31), {NOTE: {"type": "date", "text": "2026-01-31"}}, ("$",)),
        ({"a": {"odd name": b"abc"}}, {"a": {"odd name": {NOTE: {"type": "bytes", "text": "3 bytes"}}}}, ('$.a["odd name"]',)),
        (Decimal("12.00"), {NOTE: {"type": "Decimal", "text": "12.00"}}, ("$",)),
        (UUID(int=1), {NOTE: {"type": "UUID", "text": "00000000-0000-0000-0000-000000000001"}}, ("$",)),
        (2**53, {NOTE: {"type": "int", "text": "a whole number beyond 2^53"}}, ("$",)),
        ("\ud800", {NOTE: {"type": "str"}}, ("$",)),
        ({1: "one"}, {NOTE: {"type": "dict", "text": "names that are no text"}}, ("$",)),
        ({1, 2}, {NOTE: {"type": "set"}}, ("$",)),
        (Colour.RED, {NOTE: {"type": "Colour"}}, ("$",)),
        (Record, {NOTE: {"type": "type"}}, ("$",)),
        ([Broken()], [{NOTE: {"type": "Broken"}}], ("$[0]",)),
        (BrokenMapping(a=1), {NOTE: {"type": "object"}}, ("$",)),
        (Record(id="1", body=b""), {"id": "1", "body": {NOTE: {"type": "bytes", "text": "0 bytes"}}}, ("$.body",)),
        (
            Model(id="1", at=AT),
            {"id": "1", "at": {NOTE: {"type": "datetime", "text": "2026-01-31T08:15:00+00:00"}}},
            ("$.at",),
        ),
    ],
)
def test_what_cannot_be_stored_is_noted_in_its_place(result: object, value: object, notes: tuple[str, ...]) -> None:
    """Every kind of result has a form; its notes name the type and, where it is harmless, the text."""
    form = stored_form(result)
    assert (form.value, form.notes) == (value, notes)


def test_a_result_inside_itself_has_a_form() -> None:
    """A list that holds itself ends at a bound."""
    endless: list[object] = []
    endless.append(endless)
    form = stored_form(endless)
    assert form.notes[0].count("[0]") == 32


def test_a_large_result_is_a_note() -> None:
    """What is larger than may be stored is noted with the bound, one byte beyond it too."""
    assert stored_form({"text": "x" * (RESULT_BYTES_MAX - 11)}).notes == ()
    for result in ({"text": "x" * (RESULT_BYTES_MAX - 10)}, ["€" * (RESULT_BYTES_MAX // 2)], [0] * RESULT_BYTES_MAX):
        form = stored_form(result)
        assert form.value[NOTE]["text"] == f"more than {RESULT_BYTES_MAX} bytes of JSON"
        assert form.notes == ("$",)


def test_a_result_inside_itself_twice_is_a_note() -> None:
    """What holds itself in two places, as parents and children that know one another do, is noted as too large and not walked through."""
    endless: dict[str, object] = {}
    endless["parent"] = endless["child"] = endless
    assert stored_form(endless).value == {NOTE: {"type": "dict", "text": f"more than {RESULT_BYTES_MAX} bytes of JSON"}}


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.datetimes()
    | st.decimals()
    | st.just(object()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers(), inner) | st.tuples(inner),
    max_leaves=15,
)


@given(anything)
def test_a_stored_form_is_what_every_replay_reads(result: object) -> None:
    """Whatever a handler returns has a form; the gateway reads its JSON, and reads the very value that the first caller got."""
    form = stored_form(result)
    text = json.dumps(form.value, allow_nan=False).encode()
    assert json_text.parse(text) == form.value
    assert stored_form(form.value).value == form.value
