"""Doubts that end without a person, and those that must not: the contract's ways, against a real worker, provider and Postgres.

Each test asks the invariants of the ledger afterwards.
"""

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.support.invariants import assert_invariants
from tests.support.outbox_up import PATHS
from tests.support.postgres import PostgresServer
from tests.support.recovery_ground import Ground, Servers, is_for_a_person, make_ground, serving

REFUND, CUSTOMER, TICKET, MAIL, ECHO = (
    "stripe.refund.create",
    "stripe.customer.create",
    "sandbox.ticket.create",
    "sendgrid.mail.send",
    "sandbox.echo",
)


@pytest.fixture(scope="module")
def servers(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A database, a provider and a worker for this module; every test has an organization and so connections of its own."""
    database = postgres_server.migrated_database()
    with serving(database, tmp_path_factory.mktemp("recovery")) as running:
        yield running
    postgres_server.drop(database)


@pytest.fixture
async def ground(servers: Servers) -> AsyncIterator[Ground]:
    """An organization of this test's own; the invariants are asked afterwards."""
    yield await make_ground(servers)
    servers.sandbox.drop_faults()
    await assert_invariants(servers.database.superuser_url)


# Class B: looked up.


async def test_ticket_that_never_arrived(ground: Ground) -> None:
    """A ticket whose request was lost before the commit: absent twice after the settle time, then sent again; one effect."""
    row = await ground.faulty(TICKET, "drop-before-commit")
    found = await ground.until_state(row, "succeeded")
    assert (found["outcomes"], found["absent"]) == (["unknown", "succeeded"], [True, False])
    assert (found["confidence"], found["tries"]) == ("confirmed", 1)
    assert len(await ground.effects(row)) == 1
    absences = [entry for entry in found["evidence_entries"] if entry["by"] == "lookup"]
    assert len(absences) == 1, "the first absence is noted, the second one settles"


async def test_ticket_whose_reply_was_lost(ground: Ground) -> None:
    """A ticket that was made and whose reply was lost: found by its marker before any settle time, never sent again."""
    row = await ground.faulty(TICKET, "commit-then-drop")
    found = await ground.until_state(row, "succeeded", deadline_seconds=LEASE_AND_MORE)
    [effect] = await ground.effects(row)
    assert (found["outcomes"], found["confidence"]) == (["unknown"], "confirmed-by-lookup")
    assert found["external_reference"] == effect["id"]
    assert [one["kind"] for one in found["evidence"]] == ["lookup"]
    vault = await ground.scene.vault()
    [kept] = await ground.scene.fetch(
        "select sealed from sealed_results where {own} and reservation_id = $1 and kind = 'result'", row.id
    )
    assert vault.open_result(row.id, kept["sealed"]) == {"id": effect["id"], "title": effect["fields"]["title"]}


LEASE_AND_MORE = 15.0
