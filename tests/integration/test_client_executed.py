"""What a worker does with effects that clients carry out: it keeps their time, and sends nothing of them."""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest
from tests.support.invariants import assert_invariants
from tests.support.ledger import claim_of
from tests.support.postgres import PostgresServer
from tests.support.recovery_ground import QUICK, Ground, Servers, is_for_a_person, make_ground, serving

from outbox_store.claim import ClaimedByClient, claim_by_client
from outbox_store.reserve import NewReservation, Won, reserve

REFUND, TICKET, MAIL = "stripe.refund.create", "sandbox.ticket.create", "sendgrid.mail.send"


@pytest.fixture(scope="module")
def servers(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A database, a provider and a worker for this module."""
    database = postgres_server.migrated_database()
    with serving(database, tmp_path_factory.mktemp("client-executed")) as running:
        yield running
    postgres_server.drop(database)


@pytest.fixture
async def ground(servers: Servers) -> AsyncIterator[Ground]:
    """An organization of this test's own; the invariants are asked afterwards."""
    yield await make_ground(servers)
    await assert_invariants(servers.database.superuser_url)


async def reserved(ground: Ground, tool: str, **changes: Any) -> NewReservation:
    """A reservation of a client that nobody holds, as after proven absence."""
    contract = ground.contracts[tool]
    [of] = await ground.scene.fetch("select id from connections where {own} and provider = $1", contract.provider)
    row = ground.world.row(
        f"{tool}:{uuid4().hex}",
        tool=tool,
        guarantee_class=contract.guarantee_class,
        contract_version=QUICK,
        connection_id=of["id"],
        executor="client",
        **changes,
    )
    async with ground.scene.connection(ground.scene.database.api_url) as connection:
        assert await reserve(connection, [row]) == [Won(id=row.id)]
    return row


async def lapsed(ground: Ground, tool: str) -> NewReservation:
    """A reservation of a client whose lease is over in a moment, because it was killed."""
    row = await reserved(ground, tool)
    async with ground.scene.connection(ground.scene.database.api_url) as connection:
        wish = claim_of(row, executor="client", actor_id=row.actor_id, lease_seconds=0.2, time_limit_seconds=5.0)
        assert isinstance(await claim_by_client(connection, wish), ClaimedByClient)
    return row


async def test_a_killed_clients_lease_lapses(ground: Ground) -> None:
    """The sweep puts it in doubt and leaves it to the next caller: nothing is sent or looked up, until its time is over."""
    for tool in (REFUND, TICKET):
        row = await lapsed(ground, tool)
        found = await ground.until_state(row, "in_doubt")
        assert found["outcomes"] == ["unknown"]
        # The window of the refund is longer; `not_after` ends both after an hour.
        assert 3500 < found["due_seconds"] <= 3600
        # Somebody lets recovery begin again: it is still the next caller's.
        await ground.change("update open_reservations set due_at = now() where reservation_id = $1", row.id)
        found = await ground.until(row, lambda found: found["due_seconds"] > 60)
        assert found["due_seconds"] <= 3600
        await ground.change("update reservations set not_after = now() where id = $1", row.id)
        await ground.change("update open_reservations set due_at = now() where reservation_id = $1", row.id)
        found = await ground.until_a_person(row)
        assert (found["lookups"], found["outcomes"]) == (0, ["unknown"])
        assert await ground.effects(row) == []
    assert await ground.lookups(TICKET) == []


async def test_class_c_is_a_persons_at_once(ground: Ground) -> None:
    """A lapsed lease of class C is left to a person by the same step."""
    row = await lapsed(ground, MAIL)
    found = await ground.until_state(row, "in_doubt")
    assert is_for_a_person(found)
    assert found["person_asked_at"] is not None


async def test_what_nobody_took_up_is_withdrawn(ground: Ground) -> None:
    """A client's reservation is never sent by a worker, however long it waits, is looked at again at its last moment, and voided then."""
    row = await reserved(ground, REFUND, not_after_seconds=3600.0)
    await ground.until(row, lambda found: found["due_seconds"] > 3000)
    await ground.change("update reservations set not_after = now() where id = $1", row.id)
    await ground.change("update open_reservations set due_at = now() where reservation_id = $1", row.id)
    found = await ground.until_state(row, "voided")
    assert (found["outcomes"], await ground.effects(row)) == ([], [])


async def test_what_waited_before_a_loss_is_withdrawn_by_nobody(ground: Ground) -> None:
    """Reserved for a client in an older epoch and late: it may have been carried out in what was lost, so a person is asked, once."""
    row = await reserved(ground, REFUND, not_after_seconds=1.0)
    await ground.change(
        "insert into epochs (number, cause, system_identifier, timeline, lost_since, possibly_lost_until) "
        "select number + 1, 'tests', system_identifier, timeline, now(), now() from epochs order by number desc limit 1"
    )
    found = await ground.until_a_person(row)
    assert (found["state"], found["outcomes"], await ground.effects(row)) == ("in_doubt", ["unknown"], [])
