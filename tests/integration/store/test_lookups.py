"""Look-ups are bound to the newest attempt, counted before they are sent, and made by one worker at a time."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from tests.integration.store.races import Store
from tests.support.ledger import TRIES_MAX, claimed, settled

from outbox_domain.reservation import Outcome, State
from outbox_store import lookups
from outbox_store.claim import Claimed
from outbox_store.lookups import Lookup
from outbox_store.reserve import NewReservation, Won, reserve
from outbox_store.resolve import Resolution, Resolved, resolve
from outbox_store.sweep import leave_to_a_person


async def in_doubt(store: Store, **changes: Any) -> tuple[NewReservation, Claimed]:
    """A reservation whose attempt ended unknown, with its settle time over."""
    row = store.world.row(**changes)
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.UNKNOWN)
    await past_the_time(store, row)
    return row, attempt


async def past_the_time(store: Store, row: NewReservation) -> None:
    """From now on an absence counts."""
    await store.owner.execute("update reservations set absence_counts_at = now() - interval '1 second' where id = $1", row.id)


async def begin(store: Store, row: NewReservation, attempt: Claimed) -> Lookup | None:
    """Take the doubt up for a look-up about an attempt."""
    return await lookups.begin(store.worker, row.organization_id, row.id, attempt.attempt_id, step=1, away_seconds=30.0)


async def due(store: Store, row: NewReservation) -> None:
    """The doubt is due now."""
    await store.owner.execute("update open_reservations set due_at = now() where reservation_id = $1", row.id)


async def absent(store: Store, lookup: Lookup, **changes: Any) -> Resolved:
    """The look-up found nothing."""
    return await answer(store, lookup.organization_id, lookup.reservation_id, lookup.attempt_id, lookup.asked_at, **changes)


async def answer(
    store: Store, organization_id: Any, reservation_id: Any, attempt_id: Any, asked_at: datetime, **changes: Any
) -> Resolved:
    """An absence that was asked for at a time, about an attempt."""
    row = Resolution(
        organization_id=organization_id,
        reservation_id=reservation_id,
        attempt_id=attempt_id,
        happened=False,
        by="lookup",
        asked_at=asked_at,
        absences_needed=2,
        then="resend",
        again_seconds=0.0,
        receipt_id=uuid4(),
        provider="stripe",
        external_reference=None,
        provider_request_id=None,
        evidence=[],
        sealed_result=None,
        said_by=None,
        reason="absent by look-up",
    )
    [result] = await resolve(store.worker, [replace(row, **changes)], tries_max=TRIES_MAX)
    assert isinstance(result, Resolved)
    return result


async def test_a_resend_between_two_look_ups_throws_the_first_away(store: Store) -> None:
    """An absence of the first attempt says nothing of the second: each attempt needs its own two, and an old one is stale."""
    row, first = await in_doubt(store)
    looked = await begin(store, row, first)
    assert looked is not None
    assert (await absent(store, looked)).verdict == "noted"
    await due(store, row)
    second = await claimed(store.worker, row)
    await settled(store.worker, second, Outcome.UNKNOWN)
    await past_the_time(store, row)
    assert await begin(store, row, first) is None, "nobody asks about an older attempt"
    assert (await absent(store, looked)).verdict == "stale"
    record = await store.reservation(row.id)
    assert (record["state"], record["absences"], record["lookups"]) == ("in_doubt", 0, 0)
    for verdict in ("noted", "settled"):
        await due(store, row)
        again = await begin(store, row, second)
        assert again is not None
        assert (await absent(store, again)).verdict == verdict
    assert (await store.reservation(row.id))["state"] == "reserved"
    assert (await store.attempt(first.attempt_id))["proven_absent"] is True


async def test_an_answer_that_comes_late_was_asked_early(store: Store) -> None:
    """What was asked before the time and answered after it is no absence."""
    row, attempt = await in_doubt(store)
    looked = await begin(store, row, attempt)
    assert looked is not None
    early = looked.asked_at - timedelta(seconds=2)
    result = await answer(store, row.organization_id, row.id, attempt.attempt_id, early)
    assert (result.verdict, result.state) == ("too-early", State.IN_DOUBT)


async def test_one_worker_looks_up_at_a_time(store: Store) -> None:
    """While a look-up is under way the doubt is due for no other, and comes back should its worker be gone."""
    row, attempt = await in_doubt(store)
    looked = await begin(store, row, attempt)
    assert looked is not None
    assert (looked.lookups, looked.absences, looked.connection) == (1, 0, "stripe")
    assert await begin(store, row, attempt) is None
    record = await store.reservation(row.id)
    assert 25.0 < record["due_seconds"] <= 30.0
    assert (record["lookups"], record["recovery_step"]) == (1, 1)


async def test_two_workers_that_begin_at_once(store: Store) -> None:
    """The one that waited for the other's statement finds the doubt taken up."""
    row, attempt = await in_doubt(store)

    async def other_begins(holder: Any) -> None:
        assert await lookups.begin(holder, row.organization_id, row.id, attempt.attempt_id, step=1, away_seconds=30.0) is not None

    async def begins(other: Any) -> Lookup | None:
        return await lookups.begin(other, row.organization_id, row.id, attempt.attempt_id, step=1, away_seconds=30.0)

    assert await store.beside(other_begins, begins) is None
    assert (await store.reservation(row.id))["lookups"] == 1


async def test_a_look_up_that_ends_late_changes_no_time_of_another(store: Store) -> None:
    """A doubt that was left to a person, or was sent again, keeps its own time."""
    left, attempt = await in_doubt(store)
    looked = await begin(store, left, attempt)
    assert looked is not None
    assert await leave_to_a_person(store.worker, left.organization_id, left.id, attempt_id=attempt.attempt_id, step=2)
    await lookups.again(store.worker, looked, seconds=0.0)
    record = await store.reservation(left.id)
    assert (record["due_seconds"], record["recovery_step"]) == (float("inf"), 2)
    assert record["person_asked_at"] is not None
    sent, first = await in_doubt(store)
    looked = await begin(store, sent, first)
    assert looked is not None
    await due(store, sent)
    await claimed(store.worker, sent)
    await lookups.again(store.worker, looked, seconds=0.0)
    assert (await store.reservation(sent.id))["due_seconds"] > 5.0
    assert not await leave_to_a_person(store.worker, sent.organization_id, sent.id, attempt_id=first.attempt_id)
