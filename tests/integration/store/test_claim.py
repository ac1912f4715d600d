"""T2: every verdict of a claim, the gate of a resend, leases, and what happens when claims meet other transactions."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.store.races import Store
from tests.support.ledger import TRIES_MAX, claim_of, claimed, settled, settlement_of

from outbox_domain.reservation import Outcome
from outbox_store.batches import Failed
from outbox_store.claim import TRIES_MAX as CLAIM_TRIES_MAX
from outbox_store.claim import Claim, Claimed, NotClaimed, claim, renew
from outbox_store.connection import Connection
from outbox_store.reserve import NewReservation, Won, reserve
from outbox_store.settle import settle
from outbox_store.sweep import Lapse, lapse, leave_to_a_person


async def reserved(store: Store, **changes: Any) -> NewReservation:
    """A reservation that waits to be sent."""
    row = store.world.row(**changes)
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    return row


async def in_doubt(store: Store, **changes: Any) -> NewReservation:
    """A reservation whose first attempt ended unknown."""
    row = await reserved(store, **changes)
    await settled(store.worker, await claimed(store.worker, row), Outcome.UNKNOWN)
    return row


async def reason(store: Store, wish: Claim) -> str:
    """Why a claim opened no attempt; fails the test when it did."""
    [verdict] = await claim(store.worker, [wish])
    assert isinstance(verdict, NotClaimed), verdict
    assert verdict.reservation_id == wish.reservation_id
    return verdict.reason


def lapse_of(attempt: Claimed) -> Lapse:
    """The sweep's wish to close an attempt whose lease is over."""
    return Lapse(
        organization_id=attempt.organization_id,
        reservation_id=attempt.reservation_id,
        attempt_id=attempt.attempt_id,
        settle_seconds=120.0,
        recover_seconds=0.0,
    )


async def test_a_claim_opens_an_attempt_with_all_that_its_request_is_made_of(store: Store) -> None:
    """The attempt is open, leased and in the ledger; the names a provider key is made of come with it."""
    world, owner = store.world, store.owner
    fork = uuid4()
    await owner.execute(
        "insert into runs (organization_id, id, environment_id, project_id, name, parent_id, lineage) values ($1, $2, $3, $4, 'fork-1', $5, $5)",
        world.organization_id,
        fork,
        world.environment_id,
        world.project_id,
        world.run_id,
    )
    await owner.execute(
        "insert into provider_credentials (organization_id, connection_id, sealed) values ($1, $2, 'secret')",
        world.organization_id,
        world.connection_id,
    )
    row = await reserved(
        store, scope=f"run:{world.run_id}", run_id=fork, lineage=world.run_id, reference="order-1", traceparent="00-a-b-01"
    )
    wish = claim_of(row)
    [attempt] = await claim(store.worker, [wish])
    assert isinstance(attempt, Claimed)
    assert (attempt.attempt_id, attempt.number, attempt.epoch, attempt.resend, attempt.generation) == (
        wish.attempt_id,
        1,
        1,
        False,
        0,
    )
    assert (attempt.project, attempt.environment, attempt.connection) == ("default", "sandbox", "stripe")
    assert attempt.organization.startswith("org-")
    assert (attempt.run_name, attempt.lineage_name) == ("fork-1", "thread-1")
    assert (attempt.operation_key, attempt.scope, attempt.occurrence) == (row.operation_key, row.scope, 1)
    assert (attempt.amount, attempt.currency, attempt.reference) == (1200, "EUR", "order-1")
    assert (attempt.sealed_input, attempt.sealed_credential, attempt.traceparent) == (b"sealed", b"secret", "00-a-b-01")
    record, opened = await store.reservation(row.id), await store.attempt(wish.attempt_id)
    assert (record["state"], record["attempts"], record["open_attempt_id"]) == ("executing", 1, wish.attempt_id)
    assert record["possible_send_at"] == opened["claimed_at"]
    assert (opened["lease_until"] - opened["claimed_at"]).total_seconds() == 10.0
    assert record["due_at"] == opened["lease_until"]
    assert (opened["worker"], opened["actor_id"], opened["resend"], opened["outcome"]) == ("tests", world.actor_id, False, None)
    assert await store.entries(row.id) == [("reserved", None, "reserved"), ("claimed", "reserved", "executing")]


async def test_what_another_holds_or_what_is_closed_is_gone(store: Store) -> None:
    """An executing, a settled, an unknown and a client-executed reservation open no attempt."""
    executing, done, clients = await reserved(store), await reserved(store), await reserved(store, executor="client")
    await claimed(store.worker, executing)
    await settled(store.worker, await claimed(store.worker, done), Outcome.SUCCEEDED)
    wishes = [claim_of(executing), claim_of(done), claim_of(store.world.row()), claim_of(clients)]
    verdicts = await claim(store.worker, wishes)
    assert verdicts == [NotClaimed(reservation_id=wish.reservation_id, reason="gone") for wish in wishes]
    assert await store.count("attempts") == 2
    assert await claim(store.worker, []) == []


@pytest.mark.parametrize("named", [True, False], ids=["organization", "no organization"])
async def test_a_wake_up_may_name_the_reservation_alone(store: Store, named: bool) -> None:
    """A claim without its organization finds it; of a closed reservation it says gone, in its own place."""
    rows = [await reserved(store) for _ in range(3)]
    await settled(store.worker, await claimed(store.worker, rows[1]), Outcome.REJECTED)
    changes = {} if named else {"organization_id": None}
    verdicts = await claim(store.worker, [claim_of(row, **changes) for row in rows])
    assert [type(verdict) for verdict in verdicts] == [Claimed, NotClaimed, Claimed]
    assert [verdict.reservation_id for verdict in verdicts if not isinstance(verdict, Failed)] == [row.id for row in rows]
    assert {verdict.organization_id for verdict in verdicts if isinstance(verdict, Claimed)} == {store.world.organization_id}


async def test_what_is_not_due_yet_stays_as_it_is(store: Store) -> None:
    """A deferred reservation is not sent before the stated time, and is at it."""
    row = await reserved(store)
    await settled(store.worker, await claimed(store.worker, row), Outcome.DEFERRED, again_seconds=60.0)
    assert await reason(store, claim_of(row)) == "not-due"
    await store.owner.execute("update open_reservations set due_at = now() where reservation_id = $1", row.id)
    assert (await claimed(store.worker, row)).number == 2


@pytest.mark.parametrize(
    ("outcome", "expired", "why"),
    [
        (Outcome.DEFERRED, False, "tries-exhausted"),
        (Outcome.UNSENT, False, "provider-unreachable"),
        (Outcome.UNSENT, True, "not-sent-in-time"),
        (None, True, "not-sent-in-time"),
    ],
)
async def test_what_must_not_be_sent_any_more_is_voided(store: Store, outcome: Outcome | None, expired: bool, why: str) -> None:
    """After the last try, or past its time, the next claim withdraws the reservation, erases its input and frees its key."""
    assert CLAIM_TRIES_MAX == TRIES_MAX
    row = await reserved(store)
    if outcome is not None:
        attempt = await claimed(store.worker, row)
        await store.owner.execute("update reservations set tries = $2 where id = $1", row.id, TRIES_MAX - 1)
        await settled(store.worker, attempt, outcome, again_seconds=3600.0)
    if expired:
        await store.owner.execute("update reservations set not_after = now() where id = $1", row.id)
    assert await reason(store, claim_of(row)) == "voided"
    record = await store.reservation(row.id)
    assert (record["state"], record["live"], record["void_reason"], record["due_at"]) == ("voided", False, why, None)
    assert record["settled_at"] is not None
    assert await store.count("sealed_inputs") == 0
    assert (await store.entries(row.id))[-1] == ("voided", "reserved", "voided")
    detail = await store.one("select detail from ledger_entries where reservation_id = $1 and kind = 'voided'", row.id)
    assert detail == {"reason": why}
    assert await reason(store, claim_of(row)) == "gone"
    await reserved(store, key=row.operation_key)


async def test_the_last_try_is_due_at_once(store: Store) -> None:
    """A reservation without a try left does not wait for its back-off: the next look withdraws it."""
    row = await reserved(store)
    attempt = await claimed(store.worker, row)
    await store.owner.execute("update reservations set tries = $2 where id = $1", row.id, TRIES_MAX - 1)
    await settled(store.worker, attempt, Outcome.DEFERRED, again_seconds=3600.0)
    assert (await store.reservation(row.id))["due_seconds"] <= 0.0


async def test_a_back_off_ends_where_the_time_to_send_does(store: Store) -> None:
    """Somebody looks at the latest when the reservation may not be sent any more."""
    row = await reserved(store, not_after_seconds=30.0)
    await settled(store.worker, await claimed(store.worker, row), Outcome.DEFERRED, again_seconds=3600.0)
    record = await store.reservation(row.id)
    assert record["due_at"] == record["not_after"]


async def test_a_contradiction_parks_what_is_not_sent_yet(store: Store) -> None:
    """While proof against an earlier reservation of the key is examined, neither a first sending nor a resend leaves."""
    first = await reserved(store, key="refund:pi_parked")
    old = await claimed(store.worker, first)
    await settled(store.worker, old, Outcome.REJECTED)
    second = await reserved(store, key="refund:pi_parked")
    assert (await settled(store.worker, old, Outcome.SUCCEEDED)).verdict == "contradiction"
    assert await reason(store, claim_of(second)) == "parked"
    other = await reserved(store, key="refund:pi_other")
    await claimed(store.worker, other)
    await store.owner.execute(
        "update contradictions set closed_at = now() where organization_id = $1", store.world.organization_id
    )
    await settled(store.worker, await claimed(store.worker, second), Outcome.UNKNOWN)
    await store.owner.execute(
        "update contradictions set closed_at = null where organization_id = $1", store.world.organization_id
    )
    assert await reason(store, claim_of(second)) == "parked"


async def test_a_parked_reservation_still_ends_with_its_time(store: Store) -> None:
    """A contradiction keeps nothing alive past the time it may be sent."""
    first = await reserved(store, key="refund:pi_parked")
    old = await claimed(store.worker, first)
    await settled(store.worker, old, Outcome.REJECTED)
    second = await reserved(store, key="refund:pi_parked", not_after_seconds=0.0)
    await settled(store.worker, old, Outcome.SUCCEEDED)
    assert await reason(store, claim_of(second)) == "voided"


async def test_a_resend_counts_and_keeps_the_first_window(store: Store) -> None:
    """A resend is an attempt of its own; the provider's window keeps counting from the first possible sending."""
    row = await in_doubt(store)
    first = (await store.reservation(row.id))["possible_send_at"]
    resend = await claimed(store.worker, row)
    assert (resend.number, resend.resend, resend.resends, resend.unknown_attempts) == (2, True, 1, 1)
    record = await store.reservation(row.id)
    assert (record["state"], record["possible_send_at"], record["resends"]) == ("executing", first, 1)
    assert (await store.attempt(resend.attempt_id))["resend"] is True
    await settled(store.worker, resend, Outcome.UNSENT)
    assert (await store.reservation(row.id))["possible_send_at"] == first


@pytest.mark.parametrize("outcome", [Outcome.UNSENT, Outcome.DEFERRED])
async def test_a_resend_that_was_not_taken_is_a_try(store: Store, outcome: Outcome) -> None:
    """A resend that never left, or that the provider put off, uses up a try and no resend: an outage asks no person by itself."""
    row = await in_doubt(store)
    for tried in range(7):
        resend = await claimed(store.worker, row, resends_max=5)
        assert (resend.resends, resend.tries) == (1, tried)
        await settled(store.worker, resend, outcome)
    record = await store.reservation(row.id)
    assert (record["state"], record["resends"], record["tries"], record["unknown_attempts"]) == ("in_doubt", 0, 7, 1)


@pytest.mark.parametrize(
    ("wish", "moved", "opens"),
    [
        ({}, "", True),
        ({"resend_window_seconds": None}, "", False),
        ({"resends_max": 0}, "", False),
        ({}, "resends = 5", False),
        ({}, "resends = 4", True),
        ({}, "tries = 20", False),
        ({}, "tries = 19", True),
        ({}, "late_write = true", False),
        ({}, "stored_failure = true", False),
        ({}, "not_after = now()", False),
        ({"resend_window_seconds": 100.0}, "possible_send_at = now() - interval '39 seconds'", True),
        ({"resend_window_seconds": 100.0}, "possible_send_at = now() - interval '40 seconds'", False),
        ({"resend_window_seconds": 100.0}, "possible_send_at = now() - interval '101 seconds'", False),
        ({"resend_window_seconds": 60.0}, "", False),
    ],
)
async def test_the_gate_of_a_resend(store: Store, wish: dict[str, Any], moved: str, opens: bool) -> None:
    """Out of doubt only a class with a window resends: inside it with the margin to spare, in time, bounded, never after a late write or a stored failure."""
    row = await in_doubt(store)
    if moved:
        await store.owner.execute(f"update reservations set {moved} where id = $1", row.id)
    [verdict] = await claim(store.worker, [claim_of(row, **wish)])
    if opens:
        assert isinstance(verdict, Claimed)
        assert verdict.resend
    else:
        assert verdict == NotClaimed(reservation_id=row.id, reason="no-resend")
        assert (await store.reservation(row.id))["state"] == "in_doubt"


async def test_a_doubt_is_never_voided(store: Store) -> None:
    """Neither used-up tries nor passed time ends a doubt."""
    row = await in_doubt(store)
    await store.owner.execute("update reservations set tries = 99, not_after = now() - interval '1 day' where id = $1", row.id)
    assert await reason(store, claim_of(row)) == "no-resend"
    assert (await store.reservation(row.id))["state"] == "in_doubt"


async def test_nothing_counts_the_window_of_what_was_never_sent(store: Store) -> None:
    """An unsent first attempt starts no window: it starts with the next one."""
    row = await reserved(store)
    await settled(store.worker, await claimed(store.worker, row), Outcome.UNSENT)
    assert (await store.reservation(row.id))["possible_send_at"] is None
    second = await claimed(store.worker, row)
    assert second.resend is False
    assert (await store.reservation(row.id))["possible_send_at"] == (await store.attempt(second.attempt_id))["claimed_at"]


async def test_the_generation_counts_the_stored_refusals_of_the_same_key(store: Store) -> None:
    """Only refusals that the provider keeps under this very key make a new provider key; it stays for the reservation's life."""
    key = "refund:pi_generation"

    async def refuse(stored: bool, **changes: Any) -> Claimed:
        row = await reserved(store, **{"key": key, **changes})
        attempt = await claimed(store.worker, row)
        await settled(store.worker, attempt, Outcome.REJECTED, stored=stored)
        return attempt

    assert (await refuse(stored=False)).generation == 0
    assert (await refuse(stored=True)).generation == 0
    await refuse(stored=True, key="refund:pi_another")
    await refuse(stored=True, occurrence=2)
    assert (await refuse(stored=True)).generation == 1
    row = await reserved(store, key=key)
    first = await claimed(store.worker, row)
    assert first.generation == 2
    await settled(store.worker, first, Outcome.UNKNOWN)
    assert (await claimed(store.worker, row)).generation == 2


async def test_a_claim_sent_again_finds_its_own_attempt(store: Store) -> None:
    """After a lost answer the same claims return the same attempts and open no second one, first sendings and resends."""
    first, second = await reserved(store), await in_doubt(store)
    wishes = [claim_of(first), claim_of(second)]
    before = await claim(store.worker, wishes)
    again = await claim(store.worker, wishes)
    for one, other in zip(before, again, strict=True):
        assert isinstance(one, Claimed)
        assert isinstance(other, Claimed)
        assert (one.attempt_id, one.number, one.epoch, one.resend, one.generation, one.resends, one.sealed_input) == (
            other.attempt_id,
            other.number,
            other.epoch,
            other.resend,
            other.generation,
            other.resends,
            other.sealed_input,
        )
    assert await store.count("attempts") == 3
    assert [entry[0] for entry in await store.entries(first.id)] == ["reserved", "claimed"]


@pytest.mark.parametrize("resend", [False, True], ids=["first sending", "resend"])
async def test_a_claim_sent_again_while_the_first_still_runs(store: Store, resend: bool) -> None:
    """A claim that waits for its own lost first sending is told of that attempt, and truly whether it is a resend."""
    row = await (in_doubt if resend else reserved)(store)
    wish = claim_of(row)
    [verdict] = await store.beside(lambda holder: claim(holder, [wish]), lambda other: claim(other, [wish]))
    assert isinstance(verdict, Claimed)
    assert (verdict.attempt_id, verdict.number, verdict.resend) == (wish.attempt_id, 2 if resend else 1, resend)
    assert await store.count("attempts") == (2 if resend else 1)


async def test_a_claim_sent_again_after_its_attempt_was_closed_opens_nothing(store: Store) -> None:
    """An attempt's id is used once: neither after a refusal to send nor out of doubt does the old claim open it again."""
    row = await reserved(store)
    wish = claim_of(row)
    [attempt] = await claim(store.worker, [wish])
    assert isinstance(attempt, Claimed)
    await settled(store.worker, attempt, Outcome.UNSENT)
    other = await reserved(store)
    again = await claim(store.worker, [wish, claim_of(other)])
    assert isinstance(again[0], Failed)
    assert isinstance(again[1], Claimed)
    assert (await store.reservation(row.id))["state"] == "reserved"


async def test_one_reservation_twice_in_one_array_opens_one_attempt(store: Store) -> None:
    """Two hints for one reservation that land in one claim open one attempt; the rows beside them are not held up."""
    row, other = await reserved(store), await reserved(store)
    verdicts = await claim(store.worker, [claim_of(row), claim_of(other), claim_of(row)])
    assert sum(isinstance(verdict, Claimed) and verdict.reservation_id == row.id for verdict in verdicts) == 1
    assert isinstance(verdicts[1], Claimed)
    assert await store.count("attempts") == 2


async def test_two_claims_at_once_open_one_attempt(store: Store) -> None:
    """A claim that waits for another's finds the reservation gone."""
    row = await reserved(store)
    verdicts = await store.beside(lambda holder: claim(holder, [claim_of(row)]), lambda other: claim(other, [claim_of(row)]))
    assert verdicts == [NotClaimed(reservation_id=row.id, reason="gone")]
    assert await store.count("attempts") == 1


async def test_a_claim_that_is_undone_leaves_the_reservation_to_the_next(store: Store) -> None:
    """A claim that waits for one that rolls back opens the first attempt."""
    row = await reserved(store)
    [verdict] = await store.beside(
        lambda holder: claim(holder, [claim_of(row)]), lambda other: claim(other, [claim_of(row)]), commit=False
    )
    assert isinstance(verdict, Claimed)
    assert verdict.number == 1


@pytest.mark.parametrize(
    ("outcome", "changes"),
    [
        (Outcome.DEFERRED, {"again_seconds": 60.0}),
        (Outcome.UNKNOWN, {"recover_seconds": 60.0}),
        (Outcome.UNKNOWN, {"recover_seconds": None}),
    ],
    ids=["deferred", "unknown", "left to a person"],
)
async def test_a_claim_that_waited_keeps_to_the_time_it_could_not_see(
    store: Store, outcome: Outcome, changes: dict[str, Any]
) -> None:
    """An attempt that is opened and settled while a second claim waits leaves a time before which that claim sends nothing.

    The waiting statement sees the reservation as it is, and every other table as it was.
    """
    row = await reserved(store)

    async def send_once(holder: Connection) -> None:
        await settled(holder, await claimed(holder, row), outcome, **changes)

    verdicts = await store.beside(send_once, lambda other: claim(other, [claim_of(row)]))
    assert verdicts == [NotClaimed(reservation_id=row.id, reason="not-due")]
    assert await store.count("attempts") == 1


async def test_a_claim_that_waited_for_a_refusal_finds_the_reservation_gone(store: Store) -> None:
    """What was settled for good while a claim waited is not opened again."""
    row = await reserved(store)

    async def send_once(holder: Connection) -> None:
        await settled(holder, await claimed(holder, row), Outcome.REJECTED)

    verdicts = await store.beside(send_once, lambda other: claim(other, [claim_of(row)]))
    assert verdicts == [NotClaimed(reservation_id=row.id, reason="gone")]


async def test_a_doubt_is_not_left_to_a_person_while_it_is_sent_again(store: Store) -> None:
    """Who gives a doubt up while another opens a resend does not hide that attempt from the sweep."""
    row = await in_doubt(store)
    await store.beside(
        lambda holder: claim(holder, [claim_of(row)]), lambda other: leave_to_a_person(other, row.organization_id, row.id)
    )
    record = await store.reservation(row.id)
    assert record["state"] == "executing"
    assert 0.0 < record["due_seconds"] <= 10.0


async def test_a_resend_is_not_opened_on_what_was_just_left_to_a_person(store: Store) -> None:
    """The other order: the doubt is given up first, so the waiting resend is not due."""
    row = await in_doubt(store)
    verdicts = await store.beside(
        lambda holder: leave_to_a_person(holder, row.organization_id, row.id), lambda other: claim(other, [claim_of(row)])
    )
    assert verdicts == [NotClaimed(reservation_id=row.id, reason="not-due")]


async def test_a_lease_is_renewed_up_to_its_bound(store: Store) -> None:
    """A renewal extends the lease, never shortens it and never passes the time bound from the claim."""
    row = await reserved(store)
    attempt = await claimed(store.worker, row)

    async def lease_seconds() -> float:
        opened = await store.attempt(attempt.attempt_id)
        return float((opened["lease_until"] - opened["claimed_at"]).total_seconds())

    of = (attempt.organization_id, attempt.attempt_id)
    assert await renew(store.worker, *of, lease_seconds=30.0, until_seconds=60.0)
    extended = await lease_seconds()
    assert 30.0 < extended < 60.0
    assert await renew(store.worker, *of, lease_seconds=1.0, until_seconds=60.0)
    assert await lease_seconds() == extended
    assert await renew(store.worker, *of, lease_seconds=300.0, until_seconds=60.0)
    assert await lease_seconds() == 60.0


async def test_a_lapsed_or_closed_lease_is_not_renewed(store: Store) -> None:
    """A lease that is over stays over, whether or not the sweep has seen it."""
    row, other = await reserved(store), await reserved(store)
    attempt, closed = await claimed(store.worker, row), await claimed(store.worker, other)
    await store.let_the_lease_lapse(attempt.attempt_id)
    assert not await renew(store.worker, attempt.organization_id, attempt.attempt_id, lease_seconds=10.0, until_seconds=60.0)
    await settled(store.worker, closed, Outcome.REJECTED)
    assert not await renew(store.worker, closed.organization_id, closed.attempt_id, lease_seconds=10.0, until_seconds=60.0)


async def test_a_lapse_that_waited_for_a_renewal_leaves_the_attempt_open(store: Store) -> None:
    """The sweep judges the lease as it is when it holds the attempt, not as it was when it looked.

    The lease is over for everybody who looks before the open transaction ends; that transaction is one that renews.
    """
    row = await reserved(store)
    attempt = await claimed(store.worker, row)
    await store.let_the_lease_lapse(attempt.attempt_id)

    async def renewal(holder: Connection) -> None:
        await holder.execute("update attempts set lease_until = now() + interval '10 seconds' where id = $1", attempt.attempt_id)

    assert await store.beside(renewal, lambda other: lapse(other, [lapse_of(attempt)])) == []
    assert (await store.reservation(row.id))["state"] == "executing"
    await store.let_the_lease_lapse(attempt.attempt_id)
    assert await store.beside(renewal, lambda other: lapse(other, [lapse_of(attempt)]), commit=False) == [row.id]


async def test_a_renewal_that_waited_for_a_lapse_is_told_so(store: Store) -> None:
    """A worker whose attempt lapses while it renews learns that the lease is gone."""
    row = await reserved(store)
    attempt = await claimed(store.worker, row)

    async def lapse_now(holder: Connection) -> None:
        await holder.execute("update attempts set lease_until = now() - interval '1 second' where id = $1", attempt.attempt_id)
        assert await lapse(holder, [lapse_of(attempt)]) == [row.id]

    assert not await store.beside(
        lapse_now,
        lambda other: renew(other, attempt.organization_id, attempt.attempt_id, lease_seconds=10.0, until_seconds=60.0),
    )
    assert (await store.reservation(row.id))["state"] == "in_doubt"


async def test_a_settlement_that_waited_for_a_claim_is_evidence(store: Store) -> None:
    """A refusal of the lapsed first attempt that waits while a resend is claimed says nothing of the resend."""
    row = await reserved(store)
    first = await claimed(store.worker, row)
    await store.let_the_lease_lapse(first.attempt_id)
    await lapse(store.worker, [lapse_of(first)])
    [verdict] = await store.beside(
        lambda holder: claim(holder, [claim_of(row)]),
        lambda other: settle(other, [settlement_of(first, Outcome.REJECTED)], tries_max=TRIES_MAX),
    )
    assert not isinstance(verdict, Failed)
    assert verdict.verdict == "evidence"
    assert (await store.reservation(row.id))["state"] == "executing"


async def test_a_lapse_that_postgres_refuses_takes_no_other_along(store: Store) -> None:
    """A settle time beyond every calendar keeps its own attempt open; the other lease of the same batch lapses."""
    rows = [await reserved(store), await reserved(store)]
    attempts = [await claimed(store.worker, row) for row in rows]
    for attempt in attempts:
        await store.let_the_lease_lapse(attempt.attempt_id)
    bad, good = lapse_of(attempts[0]), lapse_of(attempts[1])
    assert await lapse(store.worker, [replace(bad, settle_seconds=1e15), good]) == [rows[1].id]
    assert await lapse(store.worker, [bad]) == [rows[0].id]
