"""Epochs in the store: who may claim on which Postgres, what a loss puts in doubt, and how a supposed attempt ends."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.integration.store.races import Store
from tests.support.ledger import TRIES_MAX, claim_of, claimed, settled, settlement_of

from outbox_domain.epoch import Mark, Witness
from outbox_domain.reservation import Outcome, State
from outbox_store import epochs, organizations
from outbox_store.claim import Claimed, ClaimedByClient, NotClaimed, claim, claim_by_client
from outbox_store.epochs import Suspicion, Times
from outbox_store.reserve import NewReservation, Won, reserve
from outbox_store.resolve import Resolution, Resolved, resolve
from outbox_store.settle import Settled, settle

TIMES = Times(settle_seconds=2.0, recover_seconds=0.0, late_recover_seconds=0.0)
LEASE_SECONDS = 10.0


async def reserved(store: Store, key: str | None = None, **changes: Any) -> NewReservation:
    """A reservation that the API has made."""
    row = store.world.row(key, **changes)
    [verdict] = await reserve(store.api, [row])
    assert isinstance(verdict, Won)
    return row


async def mark_of(store: Store, witness: Witness | None = None) -> Mark:
    """The mark of a worker that has just looked and beaten."""
    found = await epochs.look(store.worker, [])
    beat = await epochs.beat(store.worker, found.instance)
    assert beat is not None
    at_ms = int(beat.at.timestamp() * 1000) + 1
    standing = found.standing
    return Mark(installation_id=standing.installation_id, epoch=standing.epoch, beat=beat.number, at_ms=at_ms, witness=witness)


async def lose(store: Store, *marks: Mark, times: Times = TIMES) -> epochs.Raised | None:
    """Declare a loss as a worker does; without marks the ledger's timeline is made another one first."""
    if not marks:
        await store.owner.execute("update epochs set timeline = 99 where number = (select max(number) from epochs)")
    keys = await epochs.open_contracts(store.worker)
    async with store.worker.transaction():
        return await epochs.raise_epoch(
            store.worker,
            marks,
            times=dict.fromkeys(keys, times),
            unreadable=TIMES,
            lease_seconds=LEASE_SECONDS,
            possibly_lost_seconds=3600.0,
            by="worker:tests",
        )


async def suspected(store: Store, row: NewReservation, times: Times = TIMES) -> list[UUID]:
    """Put a reservation in doubt as a worker does that was refused its claim."""
    suspicion = Suspicion(
        organization_id=row.organization_id,
        id=row.id,
        settle_seconds=times.settle_seconds,
        recover_seconds=times.recover_seconds,
        late_recover_seconds=times.late_recover_seconds,
    )
    return await epochs.suspect(store.worker, [suspicion], lease_seconds=LEASE_SECONDS)


async def absent(store: Store, row: NewReservation, *, by: Any = "lookup", then: Any = "resend") -> Resolved:
    """Say that the newest attempt had no effect, at a time when that counts."""
    await store.owner.execute("update reservations set absence_counts_at = now() where id = $1", row.id)
    now = await store.one("select now()")
    said = Resolution(
        organization_id=row.organization_id,
        reservation_id=row.id,
        attempt_id=(await store.reservation(row.id))["last_attempt_id"],
        happened=False,
        by=by,
        asked_at=now if by == "lookup" else None,
        absences_needed=1,
        then=then,
        again_seconds=0.0,
        receipt_id=uuid4(),
        provider="stripe",
        external_reference=None,
        provider_request_id=None,
        evidence=[],
        sealed_result=None,
        said_by=["member:tests"] if by == "person" else None,
        reason="looked",
    )
    [result] = await resolve(store.worker, [said], tries_max=TRIES_MAX)
    assert isinstance(result, Resolved), result
    return result


async def refused(store: Store, row: NewReservation, **changes: Any) -> str:
    """Why a claim is not granted."""
    [verdict] = await claim(store.worker, [claim_of(row, **changes)])
    assert isinstance(verdict, NotClaimed), verdict
    return verdict.reason


async def test_a_claim_is_granted_on_the_compared_postgres_only(own_store: Store) -> None:
    """Another start, another timeline and another epoch than the caller has compared are refused; none of them changes the row."""
    row = await reserved(own_store)
    instance = (await epochs.look(own_store.worker, [])).instance
    for other in (
        replace(instance, started_at=instance.started_at - timedelta(microseconds=1)),
        replace(instance, timeline=instance.timeline + 1),
        replace(instance, epoch=instance.epoch + 1),
    ):
        [verdict] = await claim(own_store.worker, [claim_of(row)], instance=other)
        assert verdict == NotClaimed(reservation_id=row.id, reason="unverified")
        assert await epochs.beat(own_store.worker, other) is None
    [granted] = await claim(own_store.worker, [claim_of(row)], instance=instance)
    assert isinstance(granted, Claimed)
    assert granted.possibly_sent is False
    await own_store.assert_invariants()


async def test_without_a_comparison_nothing_is_claimed_and_no_absence_counts(own_store: Store) -> None:
    """On a start of Postgres that no worker has compared, a claim waits and an absence is too early; after a beat both go on."""
    row, doubtful = await reserved(own_store), await reserved(own_store)
    attempt = await claimed(own_store.worker, doubtful)
    await settled(own_store.worker, attempt, Outcome.UNKNOWN)
    await own_store.owner.execute("update instances set started_at = started_at - interval '1 hour'")
    assert await refused(own_store, row) == "unverified"
    assert (await absent(own_store, doubtful)).verdict == "too-early"
    await mark_of(own_store)
    assert isinstance((await claim(own_store.worker, [claim_of(row)]))[0], Claimed)
    assert (await absent(own_store, doubtful)).verdict == "settled"
    await own_store.assert_invariants()


async def test_a_loss_is_declared_once(own_store: Store) -> None:
    """Who comes second finds nothing lost; the number passes every mark's, so that none is ever used again."""
    await reserved(own_store)
    mark = await mark_of(own_store)
    ahead = replace(mark, epoch=7, beat=1)
    raised = await lose(own_store, ahead)
    assert raised is not None
    assert (raised.number, raised.cause, raised.suspected) == (8, "a mark is ahead of the ledger", 1)
    assert await lose(own_store, ahead) is None
    assert await lose(own_store, replace(mark, beat=mark.beat + 100)) is None
    kinds = await own_store.owner.fetch("select kind, detail from ledger_entries where kind = 'epoch'")
    assert [(row["kind"], row["detail"]["epoch"]) for row in kinds] == [("epoch", 8)]


async def test_when_the_lost_tail_began(own_store: Store) -> None:
    """Not before the last beat that survived; a worker without marks that came first does not hide when that was."""
    mark = await mark_of(own_store)
    survived = await own_store.one("select beat_at from installation")
    # Postgres starts anew from an older copy, and a worker that remembers nothing finds it in order.
    await own_store.owner.execute(
        "update instances set started_at = started_at - interval '1 hour', verified_at = verified_at - interval '1 hour'"
    )
    weak = await mark_of(own_store)
    assert weak.beat == mark.beat + 1
    raised = await lose(own_store, replace(mark, beat=mark.beat + 50))
    assert raised is not None
    assert raised.lost_since == survived


@pytest.mark.parametrize("state", ["reserved", "executing", "in_doubt"])
async def test_everything_open_is_in_doubt(own_store: Store, state: str) -> None:
    """What was reserved gets a supposed attempt, what was executed is unknown, a doubt begins anew; an absence counts from then on."""
    row = await reserved(own_store)
    if state != "reserved":
        attempt = await claimed(own_store.worker, row)
        if state == "in_doubt":
            await settled(own_store.worker, attempt, Outcome.UNKNOWN)
            await own_store.owner.execute("update reservations set absences = 1, absence_counts_at = now() - interval '1 hour'")
    raised = await lose(own_store)
    assert raised is not None
    assert raised.suspected == 1
    found = await own_store.reservation(row.id)
    assert (found["state"], found["unknown_attempts"], found["absences"], found["suspected_epoch"]) == ("in_doubt", 1, 0, 2)
    started = await own_store.one("select started_at from epochs where number = 2")
    assert found["absence_counts_at"] >= started + timedelta(seconds=LEASE_SECONDS + TIMES.settle_seconds)
    last = await own_store.attempt(found["last_attempt_id"])
    closed_by = {"reserved": "epoch", "executing": "epoch", "in_doubt": "answer"}[state]
    assert (last["outcome"], last["closed_by"], last["supposed"]) == ("unknown", closed_by, state == "reserved")
    await own_store.assert_invariants()


async def test_what_was_reserved_while_the_epoch_rose_is_not_claimed(own_store: Store) -> None:
    """A row of the epoch before that the raise did not see is refused like a key first seen, whatever its organization has cleared."""
    row = await reserved(own_store)
    await own_store.owner.execute("update epochs set timeline = 99")
    async with own_store.worker.transaction():
        # The raise runs to its end without this row: it is committed after the raise has looked.
        await own_store.owner.execute("delete from open_reservations where reservation_id = $1", row.id)
        await epochs.raise_epoch(
            own_store.worker,
            [],
            times={},
            unreadable=TIMES,
            lease_seconds=LEASE_SECONDS,
            possibly_lost_seconds=3600.0,
            by="worker:tests",
        )
    await own_store.owner.execute(
        "insert into open_reservations (organization_id, reservation_id, due_at) values ($1, $2, now())",
        row.organization_id,
        row.id,
    )
    await epochs.clear(
        own_store.api, row.organization_id, row.environment_id, 2, actor_chain=["member:tests"], reason="Nothing was lost."
    )
    assert await refused(own_store, row) == "possibly-sent"
    assert await suspected(own_store, row) == [row.id]
    assert await suspected(own_store, row) == []
    await own_store.assert_invariants()


async def test_a_key_first_seen_is_a_doubt_until_its_absence_is_proven(own_store: Store) -> None:
    """It is not claimed first; once absent it is, and is not suspected a second time."""
    await lose(own_store)
    row = await reserved(own_store)
    assert await refused(own_store, row) == "possibly-sent"
    assert await suspected(own_store, row) == [row.id]
    assert (await absent(own_store, row)).state is State.RESERVED
    attempt = await claimed(own_store.worker, row)
    assert (attempt.number, attempt.resend, attempt.possibly_sent) == (2, False, False)
    await settled(own_store.worker, attempt, Outcome.SUCCEEDED)
    await own_store.assert_invariants()


@pytest.mark.parametrize(("by", "then"), [("person", "fail"), ("lookup", "fail"), ("lookup", "resend")])
async def test_the_absence_of_a_supposed_attempt_lets_it_be_sent(own_store: Store, by: str, then: str) -> None:
    """Whoever proves it and whatever the contract does after absences: this reservation has never been sent."""
    await lose(own_store)
    row = await reserved(own_store, guarantee_class="C")
    await suspected(own_store, row)
    assert (await absent(own_store, row, by=by, then=then)).state is State.RESERVED
    await settled(own_store.worker, await claimed(own_store.worker, row), Outcome.UNKNOWN)
    # The attempt in question is a real one from now on.
    assert (await absent(own_store, row, by="person", then="fail")).state is State.FAILED
    await own_store.assert_invariants()


async def test_a_key_that_was_proven_absent_is_new(own_store: Store) -> None:
    """Past its time it fails instead of being sent; who repeats it meets a key that was seen in this epoch before."""
    await lose(own_store)
    row = await reserved(own_store, "refund:pi_late")
    await suspected(own_store, row)
    await own_store.owner.execute("update reservations set not_after = now() where id = $1", row.id)
    assert (await absent(own_store, row, by="person", then="fail")).state is State.FAILED
    again = await reserved(own_store, "refund:pi_late")
    assert (await claimed(own_store.worker, again)).possibly_sent is False
    await own_store.assert_invariants()


async def test_a_stored_refusal_proves_nothing_of_the_next_generation(own_store: Store) -> None:
    """After a refusal that the provider had stored, the next reservation of the key is suspected too, under the next generation."""
    await lose(own_store)
    row = await reserved(own_store, "refund:pi_declined")
    await suspected(own_store, row)
    attempt = await claimed(own_store.worker, row)
    assert (attempt.resend, attempt.possibly_sent, attempt.generation) == (True, True, 0)
    assert (await settled(own_store.worker, attempt, Outcome.REJECTED, stored=True)).state is State.FAILED
    again = await reserved(own_store, "refund:pi_declined")
    assert await refused(own_store, again) == "possibly-sent"
    await suspected(own_store, again)
    assert (await claimed(own_store.worker, again)).generation == 1
    await own_store.assert_invariants()


async def test_the_window_begins_when_the_tail_was_lost(own_store: Store) -> None:
    """Class A is sent while the provider still keeps a key that was used right after the last beat, and not later."""
    await mark_of(own_store)
    raised = await lose(own_store)
    assert raised is not None
    row = await reserved(own_store)
    await suspected(own_store, row)
    assert (await own_store.reservation(row.id))["possible_send_at"] == raised.lost_since
    await own_store.owner.execute("update reservations set possible_send_at = now() - interval '22 hours 59 minutes 30 seconds'")
    assert await refused(own_store, row) == "no-resend"
    await own_store.owner.execute("update reservations set possible_send_at = now() - interval '22 hours'")
    assert (await claimed(own_store.worker, row)).resend is True


async def test_what_clients_carry_out(own_store: Store) -> None:
    """A client's attempt is in doubt for its handler's time too; so is what waits for the next caller, because it may have been carried out."""
    row, waiting = await reserved(own_store, executor="client"), await reserved(own_store, executor="client")
    by_client: dict[str, Any] = {"executor": "client", "actor_id": own_store.world.actor_id}
    opened = await claim_by_client(own_store.api, claim_of(row, time_limit_seconds=300.0, **by_client))
    assert isinstance(opened, ClaimedByClient)
    raised = await lose(own_store)
    assert raised is not None
    assert raised.suspected == 2
    found = await own_store.reservation(row.id)
    assert found["state"] == "in_doubt"
    assert found["absence_counts_at"] >= opened.lease_until + timedelta(seconds=300 + TIMES.settle_seconds)
    assert (await own_store.reservation(waiting.id))["state"] == "in_doubt"
    again = await claim_by_client(own_store.api, claim_of(waiting, **by_client))
    assert isinstance(again, ClaimedByClient)
    assert (again.number, again.resend, again.generation) == (2, True, 0)
    await own_store.assert_invariants()


async def test_a_client_asks_for_a_key_first_seen(own_store: Store) -> None:
    """It is refused as possibly sent; put in doubt by the API, it is handed over under the key that a lost attempt would have had."""
    await lose(own_store)
    row = await reserved(own_store, executor="client")
    by_client: dict[str, Any] = {"executor": "client", "actor_id": own_store.world.actor_id}
    refusal = await claim_by_client(own_store.api, claim_of(row, **by_client))
    assert refusal == NotClaimed(reservation_id=row.id, reason="possibly-sent")
    suspicion = Suspicion(
        organization_id=row.organization_id,
        id=row.id,
        settle_seconds=2.0,
        recover_seconds=60.0,
        late_recover_seconds=60.0,
    )
    assert await epochs.suspect(own_store.api, [suspicion], lease_seconds=LEASE_SECONDS) == [row.id]
    again = await claim_by_client(own_store.api, claim_of(row, **by_client))
    assert isinstance(again, ClaimedByClient)
    assert (again.number, again.resend, again.generation) == (2, True, 0)
    await own_store.assert_invariants()


async def test_what_waits_for_a_client_keeps_its_handlers_time(own_store: Store) -> None:
    """After proven absence the next caller may have carried it out in the lost tail: an absence counts after its handler's limit."""
    row = await reserved(own_store, executor="client", guarantee_class="B")
    by_client: dict[str, Any] = {"executor": "client", "actor_id": own_store.world.actor_id}
    opened = await claim_by_client(own_store.api, claim_of(row, time_limit_seconds=300.0, **by_client))
    assert isinstance(opened, ClaimedByClient)
    await settled(own_store.api, opened, Outcome.UNKNOWN)
    assert (await absent(own_store, row)).state is State.RESERVED
    await lose(own_store)
    found = await own_store.reservation(row.id)
    started = await own_store.one("select started_at from epochs where number = 2")
    assert found["state"] == "in_doubt"
    assert found["absence_counts_at"] >= started + timedelta(seconds=300 + TIMES.settle_seconds)
    assert (await own_store.attempt(found["last_attempt_id"]))["supposed"] is True
    await own_store.assert_invariants()


async def test_two_losses_in_a_row(own_store: Store) -> None:
    """The second one puts in doubt what the first one had cleared up, and counts the tail from the first one while it is open."""
    first = await lose(own_store)
    row = await reserved(own_store)
    await suspected(own_store, row)
    assert (await absent(own_store, row)).state is State.RESERVED
    second = await lose(own_store)
    assert first is not None
    assert second is not None
    assert (second.number, second.suspected, second.lost_since) == (3, 1, first.lost_since)
    assert (await own_store.reservation(row.id))["state"] == "in_doubt"
    await own_store.assert_invariants()


async def test_a_late_answer_of_before(own_store: Store) -> None:
    """After a loss a late "nothing was sent" is evidence only; a success settles, in the name of whatever stands for its attempt."""
    kept, forgotten = await reserved(own_store), await reserved(own_store)
    attempt = await claimed(own_store.worker, kept)
    gone = replace(attempt, reservation_id=forgotten.id, attempt_id=uuid4())
    success = settlement_of(gone, Outcome.SUCCEEDED)
    # Its claim is lost and nobody has declared it: the proof has to wait.
    assert await settle(own_store.worker, [success], tries_max=TRIES_MAX) == [
        Settled(verdict="unknown-attempt", state=State.RESERVED)
    ]
    await lose(own_store)
    assert (await settled(own_store.worker, attempt, Outcome.UNSENT)).verdict == "evidence"
    assert (await own_store.reservation(kept.id))["state"] == "in_doubt"
    assert (await settled(own_store.worker, attempt, Outcome.SUCCEEDED)).state is State.SUCCEEDED
    assert await settle(own_store.worker, [success], tries_max=TRIES_MAX) == [Settled(verdict="settled", state=State.SUCCEEDED)]
    row = await own_store.reservation(forgotten.id)
    assert (await own_store.attempt(row["settled_attempt_id"]))["supposed"] is True
    await own_store.assert_invariants()


@pytest.mark.parametrize("under_way", [True, False])
async def test_a_lost_success_beside_a_newer_attempt(own_store: Store, under_way: bool) -> None:
    """Its absence was believed and it is sent anew: the success of the lost attempt is named by what stands for it, no newer attempt."""
    await lose(own_store)
    row = await reserved(own_store)
    await suspected(own_store, row)
    supposed = (await own_store.reservation(row.id))["last_attempt_id"]
    assert (await absent(own_store, row)).state is State.RESERVED
    newer = await claimed(own_store.worker, row)
    if not under_way:
        await settled(own_store.worker, newer, Outcome.UNSENT)
    assert (await settled(own_store.worker, replace(newer, attempt_id=uuid4()), Outcome.SUCCEEDED)).verdict == "settled"
    assert (await own_store.reservation(row.id))["settled_attempt_id"] == supposed
    assert await own_store.one("select attempt_id from receipts where reservation_id = $1", row.id) == supposed
    assert (await own_store.attempt(supposed))["proven_absent"] is False
    assert (await own_store.attempt(newer.attempt_id))["outcome"] == ("unknown" if under_way else "unsent")
    await own_store.assert_invariants()


async def test_a_witness_that_is_there_is_no_loss(own_store: Store) -> None:
    """A mark's attempt is looked for by its own organization and id; one that is missing is named."""
    row = await reserved(own_store)
    attempt = await claimed(own_store.worker, row)
    there = Witness(organization_id=row.organization_id, attempt_id=attempt.attempt_id)
    gone = Witness(organization_id=row.organization_id, attempt_id=uuid4())
    marks = [await mark_of(own_store, there), await mark_of(own_store, gone), await mark_of(own_store)]
    assert (await epochs.look(own_store.worker, marks)).missing == [gone.attempt_id]
    assert await lose(own_store, marks[0], marks[2]) is None
    raised = await lose(own_store, marks[1])
    assert raised is not None
    assert raised.cause == "an attempt is missing from the ledger"


async def test_a_cleared_epoch(own_store: Store) -> None:
    """Once a person has said that nothing was lost, a key first seen is new in that environment, and in no other; the entry says who."""
    await lose(own_store)
    row = await reserved(own_store)
    before = await epochs.current(own_store.api, row.organization_id, row.environment_id)
    assert (before.number, before.possibly_lost, before.cleared_at, before.in_doubt) == (2, True, None, 0)
    await epochs.clear(own_store.api, row.organization_id, row.environment_id, 1, actor_chain=["member:a"], reason="An old one.")
    sandbox = await organizations.create_environment(own_store.owner, row.organization_id, uuid4(), "another", None)
    await epochs.clear(own_store.api, row.organization_id, sandbox, 2, actor_chain=["member:c"], reason="Of a sandbox.")
    assert await refused(own_store, row) == "possibly-sent"
    await epochs.clear(
        own_store.api, row.organization_id, row.environment_id, 2, actor_chain=["member:a"], reason="It was pg_upgrade."
    )
    await epochs.clear(own_store.api, row.organization_id, row.environment_id, 2, actor_chain=["member:b"], reason="Again.")
    after = await epochs.current(own_store.api, row.organization_id, row.environment_id)
    assert (after.possibly_lost, after.cleared_by, after.reason) == (False, ["member:a"], "It was pg_upgrade.")
    assert isinstance((await claim(own_store.worker, [claim_of(row)]))[0], Claimed)
    entries = await own_store.owner.fetch(
        "select actor_chain, detail from ledger_entries where kind = 'epoch-cleared' and environment_id = $1", row.environment_id
    )
    assert [(entry["actor_chain"], entry["detail"]["epoch"]) for entry in entries] == [(["member:a"], 2)]


async def test_possibly_lost_time_ends(own_store: Store) -> None:
    """After the stated time a key first seen is new again."""
    await lose(own_store)
    row = await reserved(own_store)
    assert await refused(own_store, row) == "possibly-sent"
    await own_store.owner.execute("update epochs set possibly_lost_until = now()")
    assert isinstance((await claim(own_store.worker, [claim_of(row)]))[0], Claimed)
