"""Attempts of clients in the ledger: who may claim what, and two statements that meet on one attempt."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.integration.store.races import Store
from tests.support.api import until
from tests.support.ledger import claim_of, claimed, settled

from outbox_domain.reservation import Outcome, State
from outbox_store import claim as claims
from outbox_store import client_attempts, probes, tool_contracts
from outbox_store.batches import Failed
from outbox_store.claim import Claim, ClaimedByClient, NotClaimed, claim, claim_by_client
from outbox_store.client_attempts import Lease
from outbox_store.connection import Connection
from outbox_store.reserve import NewReservation, Won, reserve
from outbox_store.sweep import Lapse, due, lapse
from outbox_store.withdraw import withdraw


def wish_of(row: NewReservation, **changes: Any) -> Claim:
    """A client's claim of a row."""
    return claim_of(row, **{"executor": "client", "actor_id": row.actor_id, "time_limit_seconds": 30.0, **changes})


async def held(store: Store, **changes: Any) -> tuple[NewReservation, ClaimedByClient]:
    """A reservation of a client whose attempt is open."""
    row = store.world.row(executor="client", **changes)
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    attempt = await claim_by_client(store.api, wish_of(row))
    assert isinstance(attempt, ClaimedByClient), attempt
    return row, attempt


def lapse_of(attempt: ClaimedByClient, **changes: Any) -> Lapse:
    """What the sweep says of a lapsed attempt."""
    wish = Lapse(
        organization_id=attempt.organization_id,
        reservation_id=attempt.reservation_id,
        attempt_id=attempt.attempt_id,
        settle_seconds=120.0,
        recover_seconds=600.0,
    )
    return replace(wish, **changes)


async def renewed(connection: Connection, attempt: ClaimedByClient) -> Lease | None:
    """A heartbeat."""
    return await client_attempts.renew(
        connection,
        attempt.organization_id,
        attempt.reservation_id,
        attempt.attempt_id,
        attempt.actor_id,
        margin_seconds=5.0,
        window_seconds=None,
    )


async def test_each_claims_its_own_only(store: Store) -> None:
    """A worker opens no attempt of a client's reservation, a client none of a worker's."""
    row, mine = store.world.row(), store.world.row(executor="client")
    await reserve(store.api, [row, mine])
    assert await claim(store.worker, [claim_of(mine)]) == [NotClaimed(reservation_id=mine.id, reason="gone")]
    assert await claim_by_client(store.api, wish_of(row)) == NotClaimed(reservation_id=row.id, reason="gone")
    assert await store.count("attempts") == 0
    await claimed(store.worker, row)
    assert isinstance(await claim_by_client(store.api, wish_of(mine)), ClaimedByClient)


async def test_the_claim_names_the_attempt_and_its_owner(store: Store) -> None:
    """A claim carries number, epoch, lease, limit and owner; the same claim again finds its own attempt."""
    row, attempt = await held(store)
    wish = wish_of(row, attempt_id=attempt.attempt_id)
    again = await claim_by_client(store.api, wish)
    assert isinstance(again, ClaimedByClient)
    assert replace(again, lease_seconds=attempt.lease_seconds) == attempt
    assert (attempt.number, attempt.epoch, attempt.resend, attempt.lease_seconds) == (1, 1, False, 10.0)
    record = await store.attempt(attempt.attempt_id)
    assert (record["actor_id"], record["lease_seconds"], record["time_limit_seconds"]) == (row.actor_id, 10.0, 30.0)
    assert await store.entries(row.id) == [("reserved", None, "reserved"), ("claimed", "reserved", "executing")]
    taken = await claim_by_client(store.api, wish_of(row))
    assert taken == NotClaimed(reservation_id=row.id, reason="gone")


async def test_an_attempt_id_is_used_once(store: Store) -> None:
    """An attempt id that exists already refuses the claim for good, and the reservation stays as it was."""
    _, attempt = await held(store)
    row = store.world.row(executor="client")
    await reserve(store.api, [row])
    refused = await claim_by_client(store.api, wish_of(row, attempt_id=attempt.attempt_id))
    assert isinstance(refused, Failed)
    assert refused.constraint == "attempts_pkey"
    assert (await store.reservation(row.id))["state"] == "reserved"


async def test_reserving_and_claiming_are_one_transaction(store: Store) -> None:
    """What breaks off between T1 and T2 of a client leaves nothing: no reservation that nobody holds."""
    row = store.world.row(executor="client")
    transaction = store.api.transaction()
    await transaction.start()
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    await transaction.rollback()
    for table in ("reservations", "sealed_inputs", "open_reservations", "ledger_entries"):
        assert await store.count(table) == 0


async def test_of_two_hand_overs_one_is_given(store: Store) -> None:
    """Two callers take over a doubt at once: one has the attempt, the other finds it taken."""
    row, attempt = await held(store)
    await store.let_the_lease_lapse(attempt.attempt_id)
    await lapse(store.worker, [lapse_of(attempt)])
    first, second = wish_of(row), wish_of(row)
    verdict = await store.beside(
        lambda connection: claim_by_client(connection, first), lambda connection: claim_by_client(connection, second)
    )
    assert verdict == NotClaimed(reservation_id=row.id, reason="gone")
    record = await store.reservation(row.id)
    assert (record["open_attempt_id"], record["attempts"], record["resends"]) == (first.attempt_id, 2, 1)


async def test_a_heartbeat_beside_a_lapse(store: Store) -> None:
    """A lapse that waited for a renewal leaves the attempt open; a lease that is over is not renewed, lapsed already or not."""
    _, attempt = await held(store)
    over_at = await store.one(
        "update attempts set lease_until = now() + interval '0.3 seconds' where id = $1 returning lease_until", attempt.attempt_id
    )

    async def renew_and_wait(connection: Connection) -> None:
        assert await renewed(connection, attempt) is not None
        # The lease as it stood before is over by Postgres's clock.
        await until(lambda: store.one("select clock_timestamp() > $1", over_at))

    assert await store.beside(renew_and_wait, lambda connection: lapse(connection, [lapse_of(attempt)])) == []
    await store.let_the_lease_lapse(attempt.attempt_id)
    assert await renewed(store.api, attempt) is None
    assert await lapse(store.worker, [lapse_of(attempt)]) == [attempt.reservation_id]
    assert await renewed(store.api, attempt) is None


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.REJECTED])
async def test_a_settlement_beside_a_lapse(store: Store, outcome: Outcome) -> None:
    """A settlement before the lapse stands; after it a success still settles, and a refusal is evidence."""
    row, attempt = await held(store)
    await store.let_the_lease_lapse(attempt.attempt_id)
    assert (
        await store.beside(
            lambda connection: settled(connection, attempt, outcome), lambda connection: lapse(connection, [lapse_of(attempt)])
        )
        == []
    )
    _, other = await held(store)
    await store.let_the_lease_lapse(other.attempt_id)
    late = await store.beside(
        lambda connection: lapse(connection, [lapse_of(other)]), lambda connection: settled(connection, other, outcome)
    )
    succeeded = outcome is Outcome.SUCCEEDED
    assert (late.verdict, late.state) == (("settled", State.SUCCEEDED) if succeeded else ("evidence", State.IN_DOUBT))
    assert (await store.reservation(row.id))["state"] == ("succeeded" if succeeded else "failed")


async def test_a_late_success_beside_a_hand_over(store: Store) -> None:
    """A late success and a hand-over at once, in either order: the success is the receipt, and nobody is sent out twice."""
    row, attempt = await held(store)
    await store.let_the_lease_lapse(attempt.attempt_id)
    await lapse(store.worker, [lapse_of(attempt)])
    taken = await store.beside(
        lambda connection: settled(connection, attempt, Outcome.SUCCEEDED),
        lambda connection: claim_by_client(connection, wish_of(row)),
    )
    assert taken == NotClaimed(reservation_id=row.id, reason="gone")
    row, attempt = await held(store)
    await store.let_the_lease_lapse(attempt.attempt_id)
    await lapse(store.worker, [lapse_of(attempt)])
    second = wish_of(row)
    late = await store.beside(
        lambda connection: claim_by_client(connection, second),
        lambda connection: settled(connection, attempt, Outcome.SUCCEEDED),
    )
    assert (late.verdict, late.state) == ("settled", State.SUCCEEDED)
    closed = await store.attempt(second.attempt_id)
    assert (closed["outcome"], closed["closed_by"]) == ("unknown", "other-attempt")


async def test_an_absence_counts_after_lease_limit_and_settle_time(store: Store) -> None:
    """The time limit is how long a handler may be stopped right before its last byte, so it is waited for as well."""
    row, attempt = await held(store)
    await store.let_the_lease_lapse(attempt.attempt_id)
    await lapse(store.worker, [lapse_of(attempt, settle_seconds=100.0)])
    record, closed = await store.reservation(row.id), await store.attempt(attempt.attempt_id)
    assert (record["absence_counts_at"] - closed["lease_until"]).total_seconds() == 130.0
    _, other = await held(store)
    await settled(store.api, other, Outcome.UNKNOWN, settle_seconds=100.0)
    record, closed = await store.reservation(other.reservation_id), await store.attempt(other.attempt_id)
    assert (record["absence_counts_at"] - closed["lease_until"]).total_seconds() == 130.0


async def test_what_was_not_sent_is_failed(store: Store) -> None:
    """Unsent and deferred attempts of a client fail their reservation; nothing waits for a worker that would never come."""
    for outcome in (Outcome.UNSENT, Outcome.DEFERRED):
        row, attempt = await held(store)
        assert (await settled(store.api, attempt, outcome)).state is State.FAILED
        assert (await store.reservation(row.id))["live"] is False
    row, attempt = await held(store)
    await store.let_the_lease_lapse(attempt.attempt_id)
    await lapse(store.worker, [lapse_of(attempt)])
    assert (await settled(store.api, attempt, Outcome.UNSENT)).state is State.FAILED


async def test_what_is_late_is_withdrawn(store: Store) -> None:
    """A client's reservation past its last moment is voided by the sweep; before it, under way or a worker's it stays."""
    late, early = store.world.row(executor="client"), store.world.row(executor="client")
    workers = store.world.row()
    await reserve(store.api, [late, early, workers])
    under_way, _ = await held(store)
    await store.owner.execute("update reservations set not_after = now() where id = any($1)", [late.id, workers.id, under_way.id])
    rows = [(row.organization_id, row.id) for row in (late, early, workers, under_way)]
    assert await withdraw(store.worker, rows, reason="not-sent-in-time", late_only=True, actor_chain=None) == [late.id]
    assert (await store.entries(late.id))[-1] == ("voided", "reserved", "voided")
    by_caller = await withdraw(store.api, rows, reason="withdrawn", late_only=False, actor_chain=["agent:tests"])
    assert by_caller == [early.id]
    found = {row.reservation_id: row.executor for row in await due(store.worker, overdue_seconds=0.0, limit=10_000)}
    assert early.id not in found
    assert found[workers.id] == "gateway"


async def noted(connection: Connection, row: NewReservation, *, attempt_id: str) -> None:
    """Keep that a client named an attempt of nobody's."""
    async with connection.transaction():
        await client_attempts.note(
            connection,
            row.organization_id,
            row.id,
            UUID(attempt_id),
            outcome=Outcome.SUCCEEDED,
            actor_chain=["agent:tests"],
            detail={"reason": "attempt unknown", "attempt_id": attempt_id},
        )


async def test_what_clients_say_of_attempts_of_nobodys_is_bounded(store: Store) -> None:
    """The same is kept once, also by two at once, and a reservation has a small number of such entries."""
    row, _ = await held(store)
    said = str(uuid4())
    await store.beside(lambda holder: noted(holder, row, attempt_id=said), lambda other: noted(other, row, attempt_id=said))
    assert [kind for kind, *_ in await store.entries(row.id)].count("evidence") == 1
    for _ in range(client_attempts.EVIDENCE_MAX + 5):
        await noted(store.api, row, attempt_id=str(uuid4()))
    assert [kind for kind, *_ in await store.entries(row.id)].count("evidence") == client_attempts.EVIDENCE_MAX


async def test_who_says_now_this_and_now_that_is_written_down_once_each(store: Store) -> None:
    """Every outcome of a closed attempt is evidence once, in whatever order and however often it is said; a success still settles."""
    row, attempt = await held(store)
    await settled(store.api, attempt, Outcome.UNKNOWN)
    await claim_by_client(store.api, wish_of(row, resend_window_seconds=3600.0, resends_max=3))
    for _ in range(4):
        for outcome in (Outcome.REJECTED, Outcome.UNSENT, Outcome.DEFERRED, Outcome.UNKNOWN):
            await settled(store.api, attempt, outcome)
    assert (await store.attempt(attempt.attempt_id))["late_outcomes"] == ["rejected", "unsent", "deferred"]
    assert [kind for kind, *_ in await store.entries(row.id)].count("evidence") == 3
    proven = await settled(store.api, attempt, Outcome.SUCCEEDED)
    assert (proven.verdict, proven.state) == ("settled", State.SUCCEEDED)


async def test_probes_are_bounded(store: Store) -> None:
    """Who begins over and over leaves the newest probes and those that counted; nobody else's are forgotten for it."""
    row, attempt = await held(store)
    await settled(store.api, attempt, Outcome.UNKNOWN)
    of = (row.organization_id, row.id)
    other = UUID(int=row.actor_id.int ^ 1)
    await store.owner.execute(
        "insert into actors (organization_id, id, kind, name) select organization_id, $2, kind, 'another' from actors where id = $1",
        row.actor_id,
        other,
    )
    for actor_id in (row.actor_id, other):
        await probes.offer(store.api, row.organization_id, attempt.attempt_id, actor_id)
    counted, foreign = uuid4(), uuid4()
    await probes.begin(store.api, *of, foreign, attempt.attempt_id, other)
    await probes.begin(store.api, *of, counted, attempt.attempt_id, row.actor_id)
    await probes.say(store.api, row.organization_id, counted, found=False, verdict="noted")
    begun = [uuid4() for _ in range(probes.PROBES_MAX + 5)]
    for place, id in enumerate(begun):
        assert await probes.begin(store.api, *of, id, attempt.attempt_id, row.actor_id) is not None
        if place % 2:
            await probes.say(store.api, row.organization_id, id, found=False, verdict="too-early")
    kept = {record["id"] for record in await store.owner.fetch("select id from probes where reservation_id = $1", row.id)}
    assert kept == {counted, foreign, *begun[-probes.PROBES_MAX :]}


async def test_inline_contracts_are_numbered_and_counted(store: Store) -> None:
    """Callers at once with one contract get one version, further ones the next, and beyond the bound none."""
    of = store.world.organization_id

    async def install(connection: Connection, tool: str, name: bytes) -> int | None:
        async with connection.transaction():
            return await tool_contracts.install_inline(
                connection, of, tool, {"tool": tool}, name * 32, first_version=1 << 30, installed_max=3
            )

    connections = [await store.another(store.database.api_url) for _ in range(4)]
    versions = await asyncio.gather(*(install(connection, "a.b", b"1") for connection in connections))
    assert set(versions) == {1 << 30}
    assert await install(store.api, "a.b", b"2") == (1 << 30) + 1
    assert await install(store.api, "c.d", b"1") == 1 << 30
    assert await install(store.api, "c.d", b"2") is None
    assert await install(store.api, "a.b", b"1") == 1 << 30
    assert await tool_contracts.one(store.api, of, "a.b", (1 << 30) + 1) == {"tool": "a.b", "version": (1 << 30) + 1}
    assert [tool for tool, _, _ in await tool_contracts.all_of(store.api, of)] == ["stripe.refund.create"]


async def test_the_executors_are_held_apart_twice(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without the claim's condition the trigger refuses, and without both a worker sends a client's effect."""
    store = own_store
    row = store.world.row(executor="client")
    await reserve(store.api, [row])
    wish = claim_of(row, attempt_id=uuid4())
    monkeypatch.setattr(claims, "CLAIM", claims.CLAIM.replace("r.executor = i.claimed_by and", ""))
    [refused] = await claim(store.worker, [wish])
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, asyncpg.InsufficientPrivilegeError)
    await store.owner.execute("drop trigger reservation_executor on reservations")
    [refused] = await claim(store.worker, [wish])
    assert isinstance(refused, Failed)
    await store.owner.execute("drop trigger attempt_executor on attempts")
    [opened] = await claim(store.worker, [wish])
    assert isinstance(opened, claims.Claimed)


async def test_without_the_triggers_the_api_sends(own_store: Store) -> None:
    """The negative control of the triggers: it is they, and not the grants, that keep the API off a worker's attempt."""
    store = own_store
    row = store.world.row()
    await reserve(store.api, [row])
    attempt = await claimed(store.worker, row)
    lengthen = "update attempts set lease_until = lease_until + interval '1 day' where id = $1"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await store.api.execute(lengthen, attempt.attempt_id)
    await store.owner.execute("drop trigger attempt_executor on attempts")
    await store.api.execute(lengthen, attempt.attempt_id)
    again = "update reservations set resends = 0, attempts = 0 where id = $1"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await store.api.execute(again, row.id)
    await store.owner.execute("drop trigger reservation_executor on reservations")
    await store.api.execute(again, row.id)
    installs = "insert into tool_contracts (organization_id, tool, version, document) values ($1, 'a.b', 1, '{}')"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await store.api.execute(installs, row.organization_id)
    await store.owner.execute("drop trigger inline_only on tool_contracts")
    await store.api.execute(installs, row.organization_id)
