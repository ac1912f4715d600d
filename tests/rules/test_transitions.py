"""The life of a reservation is written three times and is the same each time.

Needs Postgres (fixture `database`).
"""

import re

import asyncpg
import pytest
from tests.rules.house import ROOT
from tests.support.postgres import Database

from outbox_domain.reservation import LIVE, TERMINAL, TRANSITIONS, Outcome, State

LIFECYCLE = ROOT / "docs" / "lifecycle.md"
ARROW = re.compile(r"^\s*(\[\*\]|\w+) --> (\[\*\]|\w+)(?:\s*:.*)?$", re.MULTILINE)

Pairs = set[tuple[str, str]]


def in_domain() -> Pairs:
    """The pairs of `TRANSITIONS`."""
    return {(str(state), str(following)) for state, states in TRANSITIONS.items() for following in states}


def drawn(page: str) -> Pairs:
    """Every arrow of the state diagram of a page, `[*]` included."""
    diagrams = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", page, re.DOTALL)
    assert len(diagrams) == 1
    return set(ARROW.findall(diagrams[0]))


def between_states(pairs: Pairs) -> Pairs:
    """The arrows without those from the start and to the end."""
    return {pair for pair in pairs if "[*]" not in pair}


def test_the_diagram_shows_exactly_the_transitions() -> None:
    """Arrows between states in docs/lifecycle.md = TRANSITIONS; arrows to the end = the terminal states."""
    arrows = drawn(LIFECYCLE.read_text(encoding="utf-8"))
    assert between_states(arrows) == in_domain()
    assert {state for state, following in arrows if following == "[*]"} == {str(state) for state in TERMINAL}
    assert {following for state, following in arrows if state == "[*]"} == {"reserved", "awaiting_review", "succeeded"}


def test_a_diagram_with_an_arrow_less_is_noticed() -> None:
    """Negative control: the comparison sees a missing and an additional arrow."""
    page = LIFECYCLE.read_text(encoding="utf-8")
    without = re.sub(r"^\s*executing --> in_doubt.*\n", "", page, flags=re.MULTILINE)
    added = page.replace("stateDiagram-v2\n", "stateDiagram-v2\n    failed --> reserved\n")
    assert between_states(drawn(without)) == in_domain() - {("executing", "in_doubt")}
    assert between_states(drawn(added)) == in_domain() | {("failed", "reserved")}


async def test_postgres_allows_exactly_the_transitions(database: Database) -> None:
    """Rows of reservation_transitions = TRANSITIONS."""
    connection = await asyncpg.connect(database.superuser_url)
    try:
        rows = await connection.fetch("select from_state, to_state from reservation_transitions")
    finally:
        await connection.close()
    assert {(row["from_state"], row["to_state"]) for row in rows} == in_domain()


async def test_postgres_knows_the_same_states(database: Database) -> None:
    """The states and the live states that the constraints of `reservations` name are those of the domain."""
    connection = await asyncpg.connect(database.superuser_url)
    try:
        rows = await connection.fetch(
            "select conname, pg_get_constraintdef(oid) as definition from pg_constraint where conname = any($1)",
            ["reservation_state", "reservation_live"],
        )
    finally:
        await connection.close()
    named = {row["conname"]: set(re.findall(r"'(\w+)'", row["definition"])) for row in rows}
    assert named == {"reservation_state": {str(state) for state in State}, "reservation_live": {str(state) for state in LIVE}}


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_page_explains_every_outcome(outcome: Outcome) -> None:
    """The table of outcomes in docs/lifecycle.md has a row for each outcome of an attempt."""
    assert re.search(rf"^\| {outcome} \|", LIFECYCLE.read_text(encoding="utf-8"), re.MULTILINE)
