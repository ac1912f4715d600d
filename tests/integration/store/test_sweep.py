"""What is due, what lapses, what is left to a person, and what is erased with time."""

from typing import Any
from uuid import uuid4

import pytest
from tests.integration.store.races import Store
from tests.support.ledger import claim_of, claimed, settled

from outbox_domain.reservation import Outcome, State
from outbox_store.claim import Claimed, NotClaimed, claim
from outbox_store.connection import Connection
from outbox_store.reserve import NewReservation, Won, reserve
from outbox_store.sweep import Due, Lapse, due, erase_expired, lapse, leave_to_a_person, take_turns


async def reserved(store: Store, **changes: Any) -> NewReservation:
    """A reservation that waits to be sent."""
    row = store.world.row(**changes)
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    return row


def lapse_of(attempt: Claimed, **changes: Any) -> Lapse:
    """The sweep's wish to close an attempt whose lease is over."""
    given: dict[str, Any] = {
        "organization_id": attempt.organization_id,
        "reservation_id": attempt.reservation_id,
        "attempt_id": attempt.attempt_id,
        "settle_seconds": 120.0,
        "recover_seconds": 0.0,
    }
    return Lapse(**{**given, **changes})


async def mine(store: Store, *, overdue_seconds: float = 0.0, limit: int = 10_000) -> list[Due]:
    """What is due in this test's organization."""
    return [
        row
        for row in await due(store.worker, overdue_seconds=overdue_seconds, limit=limit)
        if row.organization_id == store.world.organization_id
    ]


async def move_due(store: Store, id: object, to: str) -> None:
    """Move the time at which a reservation is looked at."""
    await store.owner.execute(f"update open_reservations set due_at = {to} where reservation_id = $1", id)


async def test_what_waits_is_due_and_what_is_closed_is_not(store: Store) -> None:
    """New and doubtful reservations are due; executing ones within their lease, closed ones and a person's are not."""
    new, doubtful, executing, done, parked = [await reserved(store) for _ in range(5)]
    await settled(store.worker, await claimed(store.worker, doubtful), Outcome.UNKNOWN)
    await claimed(store.worker, executing)
    await settled(store.worker, await claimed(store.worker, done), Outcome.SUCCEEDED)
    await settled(store.worker, await claimed(store.worker, parked), Outcome.UNKNOWN, recover_seconds=None)
    rows = {row.reservation_id: row for row in await mine(store)}
    assert set(rows) == {new.id, doubtful.id}
    assert (rows[new.id].state, rows[new.id].attempt_id, rows[new.id].lapsed) == (State.RESERVED, None, False)
    assert rows[new.id].possible_send_seconds_ago is None
    doubt = rows[doubtful.id]
    assert (doubt.state, doubt.resends, doubt.tool, doubt.contract_version) == (State.IN_DOUBT, 0, "stripe.refund.create", 1)
    assert doubt.possible_send_seconds_ago is not None
    assert doubt.possible_send_seconds_ago > 0.0


async def test_the_longest_waiting_comes_first(store: Store) -> None:
    """Due rows come in the order of their time, at most so many, and only those late enough."""
    rows = [await reserved(store) for _ in range(3)]
    for row, seconds in zip(rows, (10_000_001, 10_000_003, 10_000_002), strict=True):
        await move_due(store, row.id, f"now() - interval '{seconds} seconds'")
    assert [row.reservation_id for row in await mine(store)] == [rows[1].id, rows[2].id, rows[0].id]
    assert [row.reservation_id for row in await mine(store, limit=2)] == [rows[1].id, rows[2].id]
    assert [row.reservation_id for row in await mine(store, overdue_seconds=10_000_002.5)] == [rows[1].id]
    assert (await mine(store))[0].overdue_seconds >= 10_000_003.0


async def test_a_lease_decides_and_not_the_time_of_the_look(store: Store) -> None:
    """An attempt that was renewed past the time of the sweep's look is left alone; one whose lease is over is due as lapsed."""
    renewed, over = await reserved(store), await reserved(store)
    await claimed(store.worker, renewed)
    attempt = await claimed(store.worker, over)
    await store.let_the_lease_lapse(attempt.attempt_id)
    for row in (renewed, over):
        await move_due(store, row.id, "now()")
    [row_due] = await mine(store)
    assert (row_due.reservation_id, row_due.attempt_id, row_due.lapsed) == (over.id, attempt.attempt_id, True)


async def test_what_a_client_executes_is_not_the_workers_to_sweep(store: Store) -> None:
    """Client-executed reservations are told apart, and no worker's claim opens an attempt on one."""
    row = await reserved(store, executor="client")
    [found] = await mine(store)
    assert (found.reservation_id, found.executor) == (row.id, "client")
    assert await claim(store.worker, [claim_of(row)]) == [NotClaimed(reservation_id=row.id, reason="gone")]


async def test_a_lapsed_attempt_is_unknown(store: Store) -> None:
    """The sweep closes the attempt as unknown and puts its reservation in doubt, with the ledger entry and the next look."""
    world = store.world
    row = await reserved(store, scope=f"run:{world.run_id}", run_id=world.run_id, lineage=world.run_id)
    attempt = await claimed(store.worker, row)
    await store.let_the_lease_lapse(attempt.attempt_id)
    assert await lapse(store.worker, [lapse_of(attempt, recover_seconds=30.0)]) == [row.id]
    record, closed = await store.reservation(row.id), await store.attempt(attempt.attempt_id)
    assert (record["state"], record["open_attempt_id"], record["unknown_attempts"]) == ("in_doubt", None, 1)
    assert (record["doubt_cause"], record["last_attempt_outcome"]) == ("lease lapsed", "unknown")
    assert (closed["outcome"], closed["closed_by"], closed["late_write"]) == ("unknown", "lapse", False)
    assert 29.0 < record["due_seconds"] <= 30.0
    assert (record["absence_counts_at"] - closed["lease_until"]).total_seconds() == 120.0
    assert (await store.entries(row.id))[-1] == ("in-doubt", "executing", "in_doubt")
    assert await store.one("select run from ledger_entries where reservation_id = $1 and kind = 'in-doubt'", row.id) == "thread-1"
    assert await store.count("sealed_inputs") == 1
    assert await lapse(store.worker, [lapse_of(attempt)]) == []


@pytest.mark.parametrize("late_write", [False, True])
async def test_a_lapse_without_a_way_out_is_left_to_a_person(store: Store, late_write: bool) -> None:
    """Where there is nothing automatic, or an earlier write left late, nobody looks by itself again."""
    row = await reserved(store)
    attempt = await claimed(store.worker, row)
    await store.let_the_lease_lapse(attempt.attempt_id)
    await store.owner.execute("update reservations set late_write = $2 where id = $1", row.id, late_write)
    await lapse(store.worker, [lapse_of(attempt, recover_seconds=0.0 if late_write else None)])
    assert (await store.reservation(row.id))["due_seconds"] == float("inf")


async def test_nothing_but_a_lapsed_open_attempt_lapses(store: Store) -> None:
    """A running lease, another attempt, a closed reservation and an unknown one are left alone; the lapsed one beside them is not."""
    running, other, done, over = [await reserved(store) for _ in range(4)]
    attempts = [await claimed(store.worker, row) for row in (running, other, done, over)]
    for attempt in attempts[1:]:
        await store.let_the_lease_lapse(attempt.attempt_id)
    await settled(store.worker, attempts[2], Outcome.REJECTED)
    wishes = [lapse_of(attempt) for attempt in attempts]
    wishes[1] = lapse_of(attempts[1], attempt_id=attempts[0].attempt_id)
    wishes.append(lapse_of(attempts[3], reservation_id=uuid4()))
    assert await lapse(store.worker, wishes) == [over.id]
    assert await lapse(store.worker, []) == []


async def test_one_attempt_twice_in_one_array_lapses_once(store: Store) -> None:
    """A doubled wish leaves one doubt and one ledger entry."""
    row = await reserved(store)
    attempt = await claimed(store.worker, row)
    await store.let_the_lease_lapse(attempt.attempt_id)
    assert await lapse(store.worker, [lapse_of(attempt), lapse_of(attempt)]) == [row.id]
    assert (await store.reservation(row.id))["unknown_attempts"] == 1
    assert len(await store.entries(row.id)) == 3


async def test_two_sweeps_at_once_lapse_once(store: Store) -> None:
    """Who waits for another's lapse moves nothing."""
    rows = [await reserved(store) for _ in range(3)]
    attempts = [await claimed(store.worker, row) for row in rows]
    for attempt in attempts:
        await store.let_the_lease_lapse(attempt.attempt_id)
    wishes = [lapse_of(attempt) for attempt in attempts]
    moved = await store.beside(lambda holder: lapse(holder, wishes), lambda other: lapse(other, wishes[::-1]))
    assert moved == []
    assert await store.count("ledger_entries", "kind = 'in-doubt'") == 3


async def test_a_doubt_is_left_to_a_person(store: Store) -> None:
    """Nobody looks at a doubt that was given up; giving up what is not in doubt changes nothing."""
    doubtful, new = await reserved(store), await reserved(store)
    await settled(store.worker, await claimed(store.worker, doubtful), Outcome.UNKNOWN)
    for row in (doubtful, new):
        await leave_to_a_person(store.worker, row.organization_id, row.id)
    assert [row.reservation_id for row in await mine(store)] == [new.id]
    assert (await store.reservation(doubtful.id))["due_seconds"] == float("inf")


async def test_a_doubt_that_ends_meanwhile_is_not_left_to_a_person(store: Store) -> None:
    """Who gives a doubt up while it turns out unsent does not hide the reservation that is to be sent again."""
    row = await reserved(store)
    attempt = await claimed(store.worker, row)
    await store.let_the_lease_lapse(attempt.attempt_id)
    await lapse(store.worker, [lapse_of(attempt)])

    async def turns_out_unsent(holder: Connection) -> None:
        assert (await settled(holder, attempt, Outcome.UNSENT)).state is State.RESERVED

    await store.beside(turns_out_unsent, lambda other: leave_to_a_person(other, row.organization_id, row.id))
    assert [one.reservation_id for one in await mine(store)] == [row.id]


async def test_words_are_erased_with_their_time_and_results_are_kept(store: Store) -> None:
    """Sealed texts past their life go, at most so many at a time; what has no end, and what has not reached it, stays."""
    rows = [await reserved(store) for _ in range(4)]
    for row in rows[:3]:
        await settled(store.worker, await claimed(store.worker, row), Outcome.REJECTED, sealed_failure=b"words")
    await settled(store.worker, await claimed(store.worker, rows[3]), Outcome.SUCCEEDED)
    assert await erase_expired(store.worker, limit=10) == 0
    await store.owner.execute(
        "update sealed_results set expires_at = now() - interval '1 second' where reservation_id = any($1::uuid[])",
        [row.id for row in rows[:2]],
    )
    assert await erase_expired(store.worker, limit=1) == 1
    assert await erase_expired(store.worker, limit=10) == 1
    assert await store.count("sealed_results", "kind = 'failure'") == 1
    assert await store.count("sealed_results", "kind = 'result'") == 1


async def test_two_erasers_at_once_do_not_wait_for_each_other(store: Store) -> None:
    """What one worker erases another passes over."""
    row = await reserved(store)
    await settled(store.worker, await claimed(store.worker, row), Outcome.REJECTED, sealed_failure=b"words")
    await store.owner.execute("update sealed_results set expires_at = now() where reservation_id = $1", row.id)
    holder = await store.another(store.database.worker_url)
    async with holder.transaction():
        assert await erase_expired(holder, limit=10) == 1
        assert await erase_expired(store.worker, limit=10) == 0


async def test_what_is_due_can_be_claimed(store: Store) -> None:
    """Every reservation that the sweep hands out opens an attempt, is withdrawn, or says why not; afterwards nothing is due."""
    rows = [await reserved(store) for _ in range(6)]
    await settled(store.worker, await claimed(store.worker, rows[0]), Outcome.UNKNOWN)
    await settled(store.worker, await claimed(store.worker, rows[1]), Outcome.DEFERRED)
    await store.owner.execute("update reservations set not_after = now() where id = $1", rows[2].id)
    handed_out = await mine(store)
    assert len(handed_out) == 6
    await claim(store.worker, [claim_of(row) for row in rows])
    assert await mine(store) == []


async def turns(
    store: Store, connection: Connection, *, pace: float = 60.0, at_once: int = 1, wanted: int = 1
) -> tuple[int, float]:
    """Turns of the world's connection."""
    of = (store.world.organization_id, store.world.connection_id)
    return await take_turns(connection, *of, pace_seconds=pace, at_once=at_once, wanted=wanted)


async def pass_by(store: Store, seconds: float) -> None:
    """So long ago was the last turn."""
    await store.owner.execute("update recovery_turns set taken_at = taken_at - make_interval(secs => $1)", seconds)


async def test_all_workers_keep_one_pace(own_store: Store) -> None:
    """A turn is taken once within the pace, by whoever comes first, also in the same instant; the other is told when the next is."""
    assert await turns(own_store, own_store.worker, wanted=9) == (1, 60.0)
    await pass_by(own_store, 60.0)
    taken, wait_seconds = await own_store.beside(lambda holder: turns(own_store, holder), lambda other: turns(own_store, other))
    assert (taken, 0.0 < wait_seconds <= 60.1) == (0, True)
    taken, wait_seconds = await turns(own_store, own_store.worker)
    assert (taken, 0.0 < wait_seconds <= 60.0) == (0, True)
    await pass_by(own_store, 60.0)
    assert await turns(own_store, own_store.worker) == (1, 60.0)


async def test_all_workers_share_what_may_be_taken_at_once(own_store: Store) -> None:
    """Ten turns at once are ten of all workers together, also in the same instant; after that one comes for each pace that passes."""
    ten: dict[str, Any] = {"pace": 60.0, "at_once": 10}
    assert await turns(own_store, own_store.worker, **ten, wanted=0) == (0, 0.0)
    taken, _ = await own_store.beside(
        lambda holder: turns(own_store, holder, **ten, wanted=6), lambda other: turns(own_store, other, **ten, wanted=6)
    )
    assert taken == 4
    taken, wait_seconds = await turns(own_store, own_store.worker, **ten, wanted=6)
    assert (taken, 0.0 < wait_seconds <= 60.0) == (0, True)
    await pass_by(own_store, 180.0)
    assert (await turns(own_store, own_store.worker, **ten, wanted=6))[0] == 3
    await pass_by(own_store, 86400.0)
    assert (await turns(own_store, own_store.worker, **ten, wanted=99))[0] == 10


async def test_a_quick_pace_does_not_use_up_the_turns_of_a_slow_one(own_store: Store) -> None:
    """Two ways of one connection that keep different paces wait for their own kind only."""
    assert (await turns(own_store, own_store.worker, pace=60.0))[0] == 1
    await pass_by(own_store, 60.0)
    assert (await turns(own_store, own_store.worker, pace=1.0))[0] == 1
    assert (await turns(own_store, own_store.worker, pace=60.0))[0] == 1
