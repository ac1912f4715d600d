"""What ends a doubt from outside its attempt, beside everything else that may happen to it at the same moment."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.integration.store.races import Store
from tests.integration.store.test_lookups import absent, begin, due, in_doubt, past_the_time
from tests.integration.store.test_strategies import run_of
from tests.support.ledger import TRIES_MAX, claimed, settled, settlement_of

from outbox_domain.reservation import Outcome, State
from outbox_store import doubts, lookups, tool_contracts
from outbox_store.claim import Claim, Claimed, NotClaimed, claim
from outbox_store.connection import Connection
from outbox_store.lookups import Lookup
from outbox_store.reserve import Contradicted, NewReservation, Won, reserve
from outbox_store.resolve import Resolution, Resolved, resolve
from outbox_store.settle import Settled, settle
from outbox_store.sweep import Lapse, lapse, leave_to_a_person, postpone_all

UNKNOWN, SUCCEEDED, UNSENT, REJECTED = Outcome.UNKNOWN, Outcome.SUCCEEDED, Outcome.UNSENT, Outcome.REJECTED


def said(row: NewReservation, attempt_id: UUID | None = None, **changes: Any) -> Resolution:
    """A person's word: it happened where there is a reference, else it did not."""
    reference = changes.pop("reference", None)
    resolution = Resolution(
        organization_id=row.organization_id,
        reservation_id=row.id,
        attempt_id=attempt_id,
        happened=reference is not None,
        by="person",
        asked_at=None,
        absences_needed=1,
        then="fail",
        again_seconds=0.0,
        receipt_id=uuid4(),
        provider="stripe",
        external_reference=reference,
        provider_request_id=None,
        evidence=[{"kind": "person", "detail": {"by": "person:ada"}}],
        sealed_result=None,
        said_by=["person:ada"],
        reason="looked",
    )
    return replace(resolution, **changes)


async def told(connection: Connection, resolution: Resolution) -> Resolved:
    """What came of it."""
    [result] = await resolve(connection, [resolution], tries_max=TRIES_MAX)
    assert isinstance(result, Resolved), result
    return result


async def looked(store: Store, row: NewReservation, attempt: Claimed) -> Lookup:
    """A look-up that is under way."""
    await due(store, row)
    found = await begin(store, row, attempt)
    assert found is not None
    return found


async def thought_absent(store: Store, **changes: Any) -> tuple[NewReservation, Claimed]:
    """A doubt whose effect two look-ups did not find: it is reserved again."""
    row, attempt = await in_doubt(store, **changes)
    assert (await absent(store, await looked(store, row, attempt))).verdict == "noted"
    assert (await absent(store, await looked(store, row, attempt))).state is State.RESERVED
    return row, attempt


def wish(row: NewReservation) -> Claim:
    """A worker's wish to send, within a window of a day."""
    return Claim(
        organization_id=row.organization_id,
        reservation_id=row.id,
        attempt_id=uuid4(),
        worker="tests",
        lease_seconds=60.0,
        resend_window_seconds=86400.0,
        resends_max=5,
    )


def late(attempt: Claimed) -> Any:
    """The report of a process that was stopped, woke long after its lease, and has written."""
    return settlement_of(attempt, UNKNOWN, late_write=True, recover_seconds=0.0, late_recover_seconds=None)


async def reports(connection: Connection, settlement: Any) -> Settled:
    """A settlement's verdict."""
    [result] = await settle(connection, [settlement], tries_max=TRIES_MAX)
    assert isinstance(result, Settled), result
    return result


# What was thought absent.


async def test_a_late_write_of_what_was_thought_absent_is_a_doubt_again(store: Store) -> None:
    """Reserved again upon two absences, not sent yet: the report of a late write brings the doubt back, once, and for a person."""
    row, attempt = await thought_absent(store)
    assert await reports(store.worker, late(attempt)) == Settled(verdict="settled", state=State.IN_DOUBT)
    record = await store.reservation(row.id)
    assert (record["unknown_attempts"], record["late_write"], record["due_seconds"]) == (1, True, float("inf"))
    assert record["possible_send_at"] == (await store.attempt(attempt.attempt_id))["claimed_at"]
    assert 110.0 < record["absence_seconds"] <= 130.0, "from the later of the report and the lease"
    assert record["person_asked_at"] is not None
    assert (await store.attempt(attempt.attempt_id))["proven_absent"] is False
    assert (await store.entries(row.id))[-1] == ("in-doubt", "reserved", "in_doubt")
    assert await reports(store.worker, late(attempt)) == Settled(verdict="already", state=State.IN_DOUBT)
    await due(store, row)
    assert await claim(store.worker, [wish(row)]) == [NotClaimed(reservation_id=row.id, reason="no-resend")]
    await past_the_time(store, row)
    assert (await absent(store, await looked(store, row, attempt))).verdict == "stale", "no look-up proves it absent any more"
    assert (await told(store.worker, said(row, attempt.attempt_id))).state is State.FAILED
    assert (await reports(store.worker, late(attempt))).verdict in ("already", "evidence"), "the person knew of the late write"
    assert await store.count("contradictions") == 0


async def test_a_late_write_after_a_persons_absence_refuses_the_key(store: Store) -> None:
    """Closed as absent and its key free: the report of a late write blocks the key until a person has looked, once."""
    row, attempt = await in_doubt(store)
    assert (await told(store.worker, said(row, attempt.attempt_id))).state is State.FAILED
    assert await reports(store.worker, late(attempt)) == Settled(verdict="contradiction", state=State.FAILED)
    assert await reports(store.worker, late(attempt)) == Settled(verdict="already", state=State.FAILED)
    assert await store.count("contradictions") == 1
    assert [kind for kind, *_ in await store.entries(row.id)].count("contradiction") == 1
    [verdict] = await reserve(store.api, [store.world.row(row.operation_key)])
    assert isinstance(verdict, Contradicted)


async def test_a_late_write_while_what_was_thought_absent_is_sent_again(store: Store) -> None:
    """The attempt counts as unknown again, so that a refusal of the newer one does not close the reservation."""
    row, first = await thought_absent(store)
    await due(store, row)
    second = await claimed(store.worker, row)
    assert await reports(store.worker, late(first)) == Settled(verdict="evidence", state=State.EXECUTING)
    assert await settled(store.worker, second, REJECTED) == Settled(verdict="settled", state=State.IN_DOUBT)
    record = await store.reservation(row.id)
    assert (record["unknown_attempts"], record["late_write"]) == (1, True)


async def test_a_success_of_what_was_thought_absent_is_kept(store: Store) -> None:
    """Reserved again, it settles with its receipt and nothing is sent any more; sent again, it closes the newer attempt too."""
    row, attempt = await thought_absent(store)
    await due(store, row)
    assert await settled(store.worker, attempt, SUCCEEDED) == Settled(verdict="settled", state=State.SUCCEEDED)
    assert await claim(store.worker, [wish(row)]) == [NotClaimed(reservation_id=row.id, reason="gone")]
    answered = await store.attempt(attempt.attempt_id)
    assert (answered["outcome"], answered["proven_absent"]) == ("succeeded", False)
    other, first = await thought_absent(store)
    await due(store, other)
    second = await claimed(store.worker, other)
    assert await settled(store.worker, first, SUCCEEDED) == Settled(verdict="settled", state=State.SUCCEEDED)
    closed = await store.attempt(second.attempt_id)
    assert (closed["outcome"], closed["closed_by"]) == ("unknown", "other-attempt")
    assert await store.count("receipts", f"reservation_id = '{other.id}' and attempt_id = '{first.attempt_id}'") == 1


@pytest.mark.parametrize(
    ("by", "names", "confidence"),
    [("webhook", False, "confirmed-by-webhook"), ("person", False, "asserted"), ("lookup", True, "confirmed-by-lookup")],
)
async def test_it_happened_although_it_was_thought_absent(store: Store, by: str, names: bool, confidence: str) -> None:
    """Reserved again and not sent since: proof settles it, its attempt is absent no more, its run goes on, its object ends with its request."""
    row, attempt = await thought_absent(store, object_key=f"label:{uuid4()}", blocks_run=True, **await run_of(store))
    named = attempt.attempt_id if names else None
    proof = said(row, named, reference="re_1", by=by)
    assert await told(store.api, proof) == Resolved(verdict="settled", state=State.SUCCEEDED, counts_at=None)
    assert (await told(store.api, proof)).verdict == "known"
    closed = await store.attempt(attempt.attempt_id)
    assert (closed["outcome"], closed["closed_by"], closed["proven_absent"]) == ("unknown", "answer", False)
    assert await store.one("select confidence from receipts where reservation_id = $1", row.id) == confidence
    for table in ("sealed_inputs", "open_reservations", "blocked_runs"):
        assert await store.count(table, f"reservation_id = '{row.id}'") == 0
    assert await store.count("open_objects", f"reservation_id = '{row.id}' and quiet_at > now()") == 1
    assert await claim(store.worker, [wish(row)]) == [NotClaimed(reservation_id=row.id, reason="gone")]
    assert (await store.entries(row.id))[-1] == ("settled", "reserved", "succeeded")


async def test_proof_of_what_was_never_sent_contradicts_it(store: Store) -> None:
    """What has no attempt, or not the one that is named, has no effect of its own: its key is refused until a person has looked."""
    never = store.world.row()
    assert await reserve(store.api, [never]) == [Won(id=never.id)]
    again, _ = await thought_absent(store)
    _, foreign = await thought_absent(store)
    for row, named in ((never, None), (again, foreign.attempt_id), (again, uuid4())):
        proof = said(row, named, reference=f"re_{uuid4()}", by="webhook")
        assert await told(store.api, proof) == Resolved(verdict="contradiction", state=State.RESERVED, counts_at=None)
    assert await store.count("receipts") == 0


# What is counted, and for how long.


async def test_one_answer_is_one_absence(store: Store) -> None:
    """The same look-up written down again, as after a lost answer of Postgres, does not prove what takes two."""
    row, attempt = await in_doubt(store)
    asked = await looked(store, row, attempt)
    assert (await absent(store, asked)).verdict == "noted"
    assert (await absent(store, asked)).verdict == "stale"
    assert (await store.reservation(row.id))["absences"] == 1
    assert (await absent(store, await looked(store, row, attempt))).state is State.RESERVED


async def test_two_absences_right_after_each_other_are_one(store: Store) -> None:
    """A look-up that a person had sent while another one was under way proves nothing beside it; one that comes later does."""
    row, attempt = await in_doubt(store)
    first = await looked(store, row, attempt)
    again = await doubts.recheck(
        store.api, row.organization_id, [row.id], pause_seconds=0.0, actor_chain=["person:ada"], reason="now", batch_id=uuid4()
    )
    assert again == [row.id]
    second = await begin(store, row, attempt)
    assert second is not None
    assert (await absent(store, first, between_seconds=10.0)).verdict == "noted"
    assert (await absent(store, second, between_seconds=10.0)).verdict == "too-early"
    record = await store.reservation(row.id)
    assert (record["state"], record["absences"]) == ("in_doubt", 1)
    await store.owner.execute("update reservations set absent_at = absent_at - interval '10 seconds' where id = $1", row.id)
    third = await looked(store, row, attempt)
    assert (await absent(store, third, between_seconds=10.0)).state is State.RESERVED


async def test_doubts_of_others_take_no_place(store: Store) -> None:
    """A list has as many doubts as are asked for of what is reached, however many older ones are not."""
    world = store.world
    await tool_contracts.install(store.owner, world.organization_id, [("sandbox.echo", 1, {})])
    for _ in range(3):
        await in_doubt(store, tool="sandbox.echo")
    row, _ = await in_doubt(store)
    listed = await doubts.list_(
        store.api,
        world.organization_id,
        world.environment_id,
        doubts.Where(),
        reaches=lambda tool, provider: (tool, provider) == (row.tool, "stripe"),
        limit=2,
    )
    assert [doubt.id for doubt in listed] == [row.id]


async def test_a_new_sending_begins_anew(store: Store) -> None:
    """Steps, look-ups and absences of one sending say nothing of the next; resends of an earlier doubt do not bound a later one."""
    row, first = await in_doubt(store)
    await absent(store, await looked(store, row, first))
    await store.owner.execute("update reservations set recovery_step = 1, resends = 4 where id = $1", row.id)
    await due(store, row)
    second = await claimed(store.worker, row)
    record = await store.reservation(row.id)
    assert (record["recovery_step"], record["lookups"], record["absences"], record["resends"]) == (0, 0, 0, 5)
    await settled(store.worker, second, UNKNOWN)
    await past_the_time(store, row)
    for _ in range(2):
        await absent(store, await looked(store, row, second))
    await due(store, row)
    third = await claimed(store.worker, row)
    record = await store.reservation(row.id)
    assert (record["state"], record["resends"], third.resends) == ("executing", 0, 0)


async def test_a_late_unsent_puts_off_earlier_absences(store: Store) -> None:
    """An absence that was noted before the doubt's time moved is not counted with one after it."""
    row, first = await in_doubt(store)
    await due(store, row)
    second = await claimed(store.worker, row)
    await settled(store.worker, second, UNKNOWN)
    await past_the_time(store, row)
    assert (await absent(store, await looked(store, row, second))).verdict == "noted"
    assert await settled(store.worker, second, UNSENT) == Settled(verdict="settled", state=State.IN_DOUBT)
    assert (await store.reservation(row.id))["absences"] == 0
    assert first.attempt_id != second.attempt_id


@pytest.mark.parametrize("ends", ["refused", "voided"])
async def test_a_stored_failure_that_proved_absent_changes_the_provider_key_for_good(store: Store, ends: str) -> None:
    """The provider goes on replaying what it stored: the next sending has another generation, and so has the next reservation."""
    row = store.world.row()
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, UNKNOWN, stored_failure=True)
    await past_the_time(store, row)
    for _ in range(2):
        await absent(store, await looked(store, row, attempt))
    record = await store.reservation(row.id)
    assert (record["state"], record["generation"], record["stored_failure"]) == ("reserved", 1, False)
    await due(store, row)
    if ends == "refused":
        await settled(store.worker, await claimed(store.worker, row), REJECTED)
    else:
        await store.owner.execute("update reservations set not_after = now() where id = $1", row.id)
        assert await claim(store.worker, [wish(row)]) == [NotClaimed(reservation_id=row.id, reason="voided")]
    again = store.world.row(row.operation_key)
    assert await reserve(store.api, [again]) == [Won(id=again.id)]
    assert (await claimed(store.worker, again)).generation == 1


@pytest.mark.parametrize("over", ["tries", "not_after"])
async def test_absent_after_its_end_is_a_failure(store: Store, over: str) -> None:
    """Absence proven counts as unsent: with its tries or its time used up it fails, and its input is erased."""
    row, attempt = await in_doubt(store)
    await absent(store, await looked(store, row, attempt))
    end = f"tries = {TRIES_MAX - 1}" if over == "tries" else "not_after = now()"
    await store.owner.execute(f"update reservations set {end} where id = $1", row.id)
    assert (await absent(store, await looked(store, row, attempt))).state is State.FAILED
    assert await store.count("sealed_inputs", f"reservation_id = '{row.id}'") == 0
    assert (await store.attempt(attempt.attempt_id))["proven_absent"] is True


async def test_a_person_who_finds_nothing_ends_it(store: Store) -> None:
    """One person's absence is enough and fails it, but never before its time, nor of what has moved on."""
    row, attempt = await in_doubt(store)
    await store.owner.execute("update reservations set absence_counts_at = now() + interval '1 hour' where id = $1", row.id)
    assert (await told(store.worker, said(row, attempt.attempt_id))).verdict == "too-early"
    await past_the_time(store, row)
    assert (await told(store.worker, said(row, uuid4()))).verdict == "stale"
    assert (await told(store.worker, said(row, attempt.attempt_id))).state is State.FAILED
    assert (await told(store.worker, said(row, attempt.attempt_id))).verdict == "stale"


async def test_nobody_asks_about_what_is_no_doubt(store: Store) -> None:
    """Reserved again, a due reservation is not looked up."""
    row, attempt = await thought_absent(store)
    await due(store, row)
    assert await begin(store, row, attempt) is None
    assert (await store.reservation(row.id))["lookups"] == 0


async def test_it_happened_while_it_is_executed(store: Store) -> None:
    """A person's or a webhook's proof closes the open attempt, erases the input, and knows itself again; another is a contradiction."""
    row = store.world.row()
    await reserve(store.api, [row])
    attempt = await claimed(store.worker, row)
    assert await told(store.api, said(row, reference="re_1")) == Resolved(
        verdict="settled", state=State.SUCCEEDED, counts_at=None
    )
    closed = await store.attempt(attempt.attempt_id)
    assert (closed["outcome"], closed["closed_by"]) == ("unknown", "person")
    assert await store.count("sealed_inputs", f"reservation_id = '{row.id}'") == 0
    assert (await told(store.api, said(row, reference="re_1"))).verdict == "known"
    assert (await told(store.api, said(row, reference="re_2"))).verdict == "contradiction"
    assert await store.count("receipts", f"reservation_id = '{row.id}' and external_reference = 're_1'") == 1


# At the same moment.


async def test_an_absence_that_waited_for_a_success(store: Store) -> None:
    """The success stands; the absence is thrown away."""
    row, attempt = await in_doubt(store)

    async def succeeds(holder: Connection) -> None:
        await settled(holder, attempt, SUCCEEDED)

    assert (await store.beside(succeeds, lambda other: told(other, said(row, attempt.attempt_id)))).verdict == "stale"
    assert (await store.reservation(row.id))["state"] == "succeeded"


async def test_a_success_that_waited_for_an_absence(store: Store) -> None:
    """It is kept as a contradiction, not lost."""
    row, attempt = await in_doubt(store)

    async def fails(holder: Connection) -> None:
        assert (await told(holder, said(row, attempt.attempt_id))).state is State.FAILED

    verdict = await store.beside(fails, lambda other: settled(other, attempt, SUCCEEDED))
    assert verdict == Settled(verdict="contradiction", state=State.FAILED)
    assert await store.count("contradictions") == 1


@pytest.mark.parametrize("by", ["lookup", "webhook", "person"])
async def test_what_was_examined_is_no_proof_anew(store: Store, by: Any) -> None:
    """A person has said of an effect that it does not stand: of what is asked for again only a person can say that it is its effect."""
    first, early = await in_doubt(store)
    await told(store.api, said(first, early.attempt_id))
    assert (await told(store.api, said(first, reference="re_1"))).verdict == "contradiction"
    await store.owner.execute("update contradictions set closed_at = now() where reservation_id = $1", first.id)
    second, other = store.world.row(first.operation_key), store.world.row()
    assert await reserve(store.api, [second, other]) == [Won(id=second.id), Won(id=other.id)]
    attempts = [await claimed(store.worker, row) for row in (second, other)]
    for attempt in attempts:
        await settled(store.worker, attempt, UNKNOWN)
    verdicts = [
        (await told(store.api, said(row, attempt.attempt_id, reference="re_1", by=by))).verdict
        for row, attempt in zip((second, other), attempts, strict=True)
    ]
    assert verdicts == ["settled" if by == "person" else "stale", "settled"]
    assert (await store.reservation(second.id))["state"] == ("succeeded" if by == "person" else "in_doubt")


@pytest.mark.parametrize("by", ["answer", "webhook"])
async def test_a_success_that_waited_for_the_absence_that_frees(store: Store, by: str) -> None:
    """It finds the reservation reserved again, and settles it."""
    row, attempt = await in_doubt(store)

    async def finds_nothing(holder: Connection) -> None:
        assert (
            await told(holder, said(row, attempt.attempt_id, by="lookup", asked_at=None, then="resend"))
        ).state is State.RESERVED

    async def succeeds(other: Connection) -> Settled | Resolved:
        if by == "answer":
            return await settled(other, attempt, SUCCEEDED)
        return await told(other, said(row, reference="re_1", by="webhook"))

    found = await store.beside(finds_nothing, succeeds)
    assert (found.verdict, found.state) == ("settled", State.SUCCEEDED)
    assert (await store.attempt(attempt.attempt_id))["proven_absent"] is False


async def test_a_proof_that_waited_for_the_next_sending_closes_it(store: Store) -> None:
    """Thought absent and sent again meanwhile: the attempt that the proof could not see is closed."""
    row, _ = await thought_absent(store)
    await due(store, row)
    wanted = wish(row)

    async def sends_again(holder: Connection) -> None:
        [verdict] = await claim(holder, [wanted])
        assert isinstance(verdict, Claimed)

    found = await store.beside(sends_again, lambda other: told(other, said(row, reference="re_1", by="webhook")))
    assert (found.verdict, found.state) == ("settled", State.SUCCEEDED)
    closed = await store.attempt(wanted.attempt_id)
    assert (closed["outcome"], closed["closed_by"]) == ("unknown", "webhook")


async def test_a_late_write_that_waited_for_the_last_absence(store: Store) -> None:
    """Whichever comes first, it ends as a doubt."""
    row, attempt = await in_doubt(store)
    await absent(store, await looked(store, row, attempt))
    last = await looked(store, row, attempt)

    async def finds_nothing(holder: Connection) -> None:
        resolution = said(row, attempt.attempt_id, by="lookup", asked_at=last.asked_at, absences_needed=2, then="resend")
        assert (await told(holder, resolution)).state is State.RESERVED

    verdict = await store.beside(finds_nothing, lambda other: reports(other, late(attempt)))
    assert verdict == Settled(verdict="settled", state=State.IN_DOUBT)
    assert (await absent(store, last)).verdict in ("stale", "too-early")


Happens = Callable[[Connection], Awaitable[Any]]


async def test_a_proof_that_waited_for_a_resend_closes_it(store: Store) -> None:
    """The attempt that it could not see is closed with the others."""
    row, _ = await in_doubt(store)
    await due(store, row)
    wanted = wish(row)

    async def sends_again(holder: Connection) -> None:
        [verdict] = await claim(holder, [wanted])
        assert isinstance(verdict, Claimed)

    verdict = await store.beside(sends_again, lambda other: told(other, said(row, reference="re_1", by="webhook")))
    assert (verdict.verdict, verdict.state) == ("settled", State.SUCCEEDED)
    closed = await store.attempt(wanted.attempt_id)
    assert (closed["outcome"], closed["closed_by"]) == ("unknown", "webhook")


async def test_an_absence_that_waited_for_a_resend(store: Store) -> None:
    """It spoke of the attempt before: it is thrown away."""
    row, attempt = await in_doubt(store)
    await due(store, row)

    async def sends_again(holder: Connection) -> None:
        await claim(holder, [wish(row)])

    verdict = await store.beside(sends_again, lambda other: told(other, said(row, attempt.attempt_id)))
    assert (verdict.verdict, verdict.state) == ("stale", State.EXECUTING)


async def test_a_claim_that_waited_for_a_proof(store: Store) -> None:
    """Nothing is sent again of what is known to have happened."""
    row, _ = await in_doubt(store)
    await due(store, row)

    async def happened(holder: Connection) -> None:
        await told(holder, said(row, reference="re_1"))

    found = await store.beside(happened, lambda other: claim(other, [wish(row)]))
    assert found == [NotClaimed(reservation_id=row.id, reason="gone")]


async def test_a_lapse_that_waited_for_a_proof(store: Store) -> None:
    """What a webhook has settled does not become a doubt."""
    row = store.world.row()
    await reserve(store.api, [row])
    attempt = await claimed(store.worker, row)
    await store.let_the_lease_lapse(attempt.attempt_id)
    lapsing = Lapse(
        organization_id=row.organization_id,
        reservation_id=row.id,
        attempt_id=attempt.attempt_id,
        settle_seconds=120.0,
        recover_seconds=0.0,
    )

    async def happened(holder: Connection) -> None:
        await told(holder, said(row, reference="re_1", by="webhook"))

    assert await store.beside(happened, lambda other: lapse(other, [lapsing])) == []
    assert (await store.reservation(row.id))["state"] == "succeeded"


async def test_an_absence_that_waited_for_a_lapse(store: Store) -> None:
    """It was asked before the time that the lapse has set."""
    row, first = await in_doubt(store)
    await due(store, row)
    second = await claimed(store.worker, row)
    await store.let_the_lease_lapse(second.attempt_id)
    asked_at: datetime = await store.one("select now()")

    async def lapses(holder: Connection) -> None:
        lapsing = Lapse(
            organization_id=row.organization_id,
            reservation_id=row.id,
            attempt_id=second.attempt_id,
            settle_seconds=120.0,
            recover_seconds=0.0,
        )
        assert await lapse(holder, [lapsing]) == [row.id]

    resolution = said(row, second.attempt_id, by="lookup", asked_at=asked_at)
    verdict = await store.beside(lapses, lambda other: told(other, resolution))
    assert (verdict.verdict, verdict.state) == ("too-early", State.IN_DOUBT)
    assert first.attempt_id != second.attempt_id


@pytest.mark.parametrize(("second", "verdict"), [("re_1", "known"), ("re_2", "contradiction")])
async def test_two_proofs_at_once(store: Store, second: str, verdict: str) -> None:
    """A person and a webhook: one receipt; the same reference is known, another contradicts."""
    row, _ = await in_doubt(store)

    async def happened(holder: Connection) -> None:
        await told(holder, said(row, reference="re_1", by="webhook"))

    found = await store.beside(happened, lambda other: told(other, said(row, reference=second)))
    assert found.verdict == verdict
    assert await store.count("receipts", f"reservation_id = '{row.id}'") == 1


async def test_a_look_up_that_waited_for_a_resend_is_not_sent(store: Store) -> None:
    """Nobody asks about an attempt that is not the newest any more."""
    row, attempt = await in_doubt(store)
    await due(store, row)

    async def sends_again(holder: Connection) -> None:
        await claim(holder, [wish(row)])

    async def begins(other: Connection) -> Lookup | None:
        return await lookups.begin(other, row.organization_id, row.id, attempt.attempt_id, step=1, away_seconds=30.0)

    assert await store.beside(sends_again, begins) is None
    record = await store.reservation(row.id)
    assert (record["state"], record["lookups"]) == ("executing", 0)
    assert record["due_seconds"] > 50.0, "the lease keeps its time"


async def test_nobody_is_asked_of_what_is_sent_again(store: Store) -> None:
    """Giving up waited for the absence that freed the reservation: it stays due."""
    row, attempt = await in_doubt(store)

    async def frees(holder: Connection) -> None:
        await told(holder, said(row, attempt.attempt_id, by="lookup", asked_at=None, then="resend"))

    async def gives_up(other: Connection) -> bool:
        return await leave_to_a_person(other, row.organization_id, row.id, attempt_id=attempt.attempt_id)

    assert await store.beside(frees, gives_up) is False
    record = await store.reservation(row.id)
    assert (record["state"], record["person_asked_at"]) == ("reserved", None)
    assert record["due_seconds"] <= 0.0


@pytest.mark.parametrize("what", ["postpone", "recheck"])
async def test_many_are_moved_in_one_order(store: Store, what: str) -> None:
    """Whoever changes the times of many rows waits for the first of them with none of the others in its hand."""
    rows = sorted([(await in_doubt(store))[0] for _ in range(2)], key=lambda row: row.id)
    for row in rows:
        await due(store, row)

    async def holds_the_first(holder: Connection) -> None:
        await holder.execute("select from open_reservations where reservation_id = $1 for update", rows[0].id)

    async def moves(other: Connection) -> None:
        wanted = [row.id for row in reversed(rows)]
        if what == "postpone":
            await postpone_all(other, [(store.world.organization_id, id, 60.0) for id in wanted])
        else:
            await doubts.recheck(
                other,
                store.world.organization_id,
                wanted,
                pause_seconds=60.0,
                actor_chain=["person:ada"],
                reason="again",
                batch_id=uuid4(),
            )

    holder, other = [await store.another(store.database.superuser_url) for _ in range(2)]
    transaction = holder.transaction()
    await transaction.start()
    await holds_the_first(holder)
    moving = asyncio.ensure_future(moves(other))
    await store.until_blocked(other, moving)
    await store.owner.execute("select from open_reservations where reservation_id = $1 for update nowait", rows[1].id)
    await transaction.rollback()
    await moving
    assert {round((await store.reservation(row.id))["due_seconds"] / 60) for row in rows} == (
        {1} if what == "postpone" else {0, 1}
    )
