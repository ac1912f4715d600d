"""Leaves of the ledger and ids: pure functions, each value in one form."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_domain import ids, ledger
from outbox_domain.reservation import Outcome, State

AT = datetime(2026, 1, 31, 8, 15, 0, 123456, tzinfo=UTC)
ROW: dict[str, Any] = {
    "organization_id": UUID(int=1),
    "id": 7,
    "at": AT,
    "kind": "settled",
    "reservation_id": UUID(int=2),
    "from_state": State.EXECUTING,
    "to_state": State.SUCCEEDED,
    "outcome": Outcome.SUCCEEDED,
    "actor_chain": ["agent:refunds"],
    "declared": {"amount": 1200},
    "input_digest": bytes(32),
    "detail": {},
}


def test_a_leaf_depends_on_the_row_alone() -> None:
    """Order of columns, the zone a time came in, text instead of UUID or enum, and null columns change nothing."""
    leaf = ledger.leaf(ROW)
    assert ledger.leaf(dict(reversed(ROW.items()))) == leaf
    assert ledger.leaf({**ROW, "at": AT.astimezone(timezone(timedelta(hours=-7)))}) == leaf
    assert ledger.leaf({**ROW, "from_state": "executing", "outcome": "succeeded", "organization_id": str(UUID(int=1))}) == leaf
    assert ledger.leaf({**ROW, "run": None, "trace_id": None, "attempt_id": None}) == leaf
    assert ledger.leaf({**ROW, "xid": 12345}) == leaf


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("organization_id", UUID(int=9)),
        ("id", 8),
        ("at", AT + timedelta(microseconds=1)),
        ("environment_id", UUID(int=9)),
        ("kind", "voided"),
        ("reservation_id", UUID(int=9)),
        ("attempt_id", UUID(int=9)),
        ("from_state", State.IN_DOUBT),
        ("to_state", State.FAILED),
        ("outcome", Outcome.UNKNOWN),
        ("decision", {"decision": "allow"}),
        ("actor_chain", ["agent:other"]),
        ("run", "thread-77"),
        ("tool", "a.b"),
        ("operation_key", "k"),
        ("input_digest", bytes(31) + b"\x01"),
        ("declared", {"amount": 1201}),
        ("trace_id", "0" * 32),
        ("detail", {"reason": "x"}),
    ],
)
def test_every_column_is_sealed(column: str, value: object) -> None:
    """A changed column is another leaf; the list names all of version 1."""
    assert ledger.leaf({**ROW, column: value}) != ledger.leaf(ROW)


def test_the_columns_of_version_1_are_all_tried() -> None:
    """A column that is added to the table needs a member here and a case above."""
    mark = next(mark for mark in test_every_column_is_sealed.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {column for column, _ in mark.args[1]} == set(ledger.MEMBERS)


def test_a_column_that_no_version_knows_is_refused() -> None:
    """It would look sealed and would not be."""
    with pytest.raises(ValueError, match="colour"):
        ledger.leaf({**ROW, "colour": "red"})


@pytest.mark.parametrize("column", ["organization_id", "id", "at", "kind", "actor_chain"])
def test_an_entry_without_who_when_and_what_is_refused(column: str) -> None:
    """Null is as absent as absent."""
    with pytest.raises(ValueError, match=column):
        ledger.leaf({**ROW, column: None})


def test_a_time_without_a_zone_is_refused() -> None:
    """Two readers would take it for two moments."""
    with pytest.raises(ValueError, match="zone"):
        ledger.leaf({**ROW, "at": AT.replace(tzinfo=None)})


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_an_id_tells_its_time_and_its_version(milliseconds: int, random: bytes) -> None:
    """A UUIDv7 of the RFC's variant, made of what was handed in."""
    made = ids.uuid7(milliseconds, random)
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert ids.milliseconds_of(made) == milliseconds
    assert made == ids.uuid7(milliseconds, random)


@given(st.integers(0, 2**48 - 2), st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_later_ids_sort_later(milliseconds: int, one: bytes, other: bytes) -> None:
    """As numbers and as texts, whatever the random bits are."""
    earlier, later = ids.uuid7(milliseconds, one), ids.uuid7(milliseconds + 1, other)
    assert earlier < later
    assert str(earlier) < str(later)


@pytest.mark.parametrize(("milliseconds", "random"), [(-1, bytes(10)), (2**48, bytes(10)), (0, bytes(9)), (0, bytes(16))])
def test_ids_are_made_of_48_and_80_bits(milliseconds: int, random: bytes) -> None:
    """Anything else is a mistake of the caller."""
    with pytest.raises(ValueError, match="UUIDv7"):
        ids.uuid7(milliseconds, random)


def test_other_versions_tell_no_time() -> None:
    """A random UUID has none."""
    with pytest.raises(ValueError, match="UUIDv7"):
        ids.milliseconds_of(UUID("2c1d43b8-e6d7-476f-9a8b-d5a2f5f8b1d4"))
