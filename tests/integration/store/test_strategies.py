"""What stands in the way of a new reservation: an open occurrence, a doubt that blocks its run, an operation on its object.

Postgres itself holds to it, whoever writes and by whatever statement.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.integration.store.races import Store
from tests.support.ledger import claim_of, claimed, settled

from outbox_domain.reservation import Outcome, State
from outbox_store import connections, runs, tool_contracts
from outbox_store.claim import Claimed, NotClaimed, claim
from outbox_store.connection import Connection
from outbox_store.doubts import recheck
from outbox_store.epochs import Suspicion, suspect
from outbox_store.reserve import Barred, Held, NewReservation, Won, holders, reserve, reserve_within
from outbox_store.resolve import Resolution, Resolved, resolve
from outbox_store.sweep import Lapse, lapse

SETTLE_SECONDS = 120.0


async def reserved(store: Store, *rows: NewReservation) -> list[Any]:
    """The verdicts of one batch."""
    return list(await reserve(store.api, rows))


async def person_says(store: Store, row: NewReservation, *, happened: bool) -> str:
    """A person ends a doubt; an absence counts already."""
    await store.owner.execute(
        "update reservations set absence_counts_at = now() - interval '1 s' where id = $1 and state = 'in_doubt'", row.id
    )
    found = await store.reservation(row.id)
    [result] = await resolve(
        store.api,
        [
            Resolution(
                organization_id=row.organization_id,
                reservation_id=row.id,
                attempt_id=found["last_attempt_id"],
                happened=happened,
                by="person",
                asked_at=None,
                absences_needed=1,
                then="fail",
                again_seconds=0.0,
                receipt_id=uuid4(),
                provider="stripe",
                external_reference="re_1" if happened else None,
                provider_request_id=None,
                evidence=[{"kind": "person"}],
                sealed_result=None,
                said_by=["member:a"],
                reason="seen",
            )
        ],
        tries_max=20,
    )
    assert isinstance(result, Resolved), result
    return result.verdict


def setting(store: Store, object_key: str | None, **changes: Any) -> NewReservation:
    """An operation that sets an object."""
    return store.world.row(object_key=object_key, quiet_seconds=SETTLE_SECONDS, **changes)


# One operation per object.


async def test_one_open_operation_per_object(store: Store) -> None:
    """While one operation on an object is open, another is not reserved, of whatever tool; other objects and connections are free."""
    object_key = f"label:{uuid4()}"
    first = setting(store, object_key)
    assert await reserved(store, first) == [Won(id=first.id)]
    tool = "stripe.customer.create"
    await tool_contracts.install(store.owner, store.world.organization_id, [(tool, 1, {"tool": tool})])
    other_tool = setting(store, object_key, tool=tool)
    verdicts = await reserved(store, other_tool, setting(store, None), setting(store, f"{object_key}:b"))
    assert verdicts[0] == Barred(by="object", reservation_id=first.id, after_seconds=None)
    assert [type(verdict) for verdict in verdicts[1:]] == [Won, Won]
    assert await store.count("reservations", f"id = '{other_tool.id}'") == 0
    assert await store.count("sealed_inputs", f"reservation_id = '{other_tool.id}'") == 0
    again = store.world.row(first.operation_key, object_key=object_key, quiet_seconds=SETTLE_SECONDS)
    [held] = await reserved(store, again)
    assert isinstance(held, Held), "a duplicate joins, whatever is open"
    attempt = await claimed(store.worker, first)
    [barred] = await reserved(store, other_tool)
    assert isinstance(barred, Barred)
    await settled(store.worker, attempt, Outcome.SUCCEEDED)
    assert await reserved(store, other_tool) == [Won(id=other_tool.id)], "nothing of the first can still arrive"


async def test_two_operations_at_the_same_instant(store: Store) -> None:
    """Of two operations on one object in one batch, and of two in concurrent transactions, one is reserved."""
    object_key = f"label:{uuid4()}"
    one, two = setting(store, object_key), setting(store, object_key)
    verdicts = await reserved(store, one, two)
    assert sorted(type(verdict).__name__ for verdict in verdicts) == ["Barred", "Won"]
    for _ in range(5):
        object_key = f"label:{uuid4()}"
        rows = [setting(store, object_key) for _ in range(4)]
        connections = [await store.another(store.database.api_url) for _ in rows]
        found = await asyncio.gather(*(reserve(connection, [row]) for connection, row in zip(connections, rows, strict=True)))
        assert sorted(type(verdict).__name__ for [verdict] in found) == ["Barred", "Barred", "Barred", "Won"]


async def test_postgres_refuses_a_second_operation_by_itself(store: Store) -> None:
    """An insert that asks nothing is refused by the constraint, and the row is not there."""
    object_key = f"label:{uuid4()}"
    first = setting(store, object_key)
    await reserved(store, first)
    names = await store.one(
        "select string_agg(quote_ident(attname), ', ') from pg_attribute where attrelid = 'reservations'::regclass and attnum > 0 "
        "and not attisdropped and attname not in ('id', 'operation_key')"
    )
    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await store.owner.execute(
            f"insert into reservations (id, operation_key, {names}) select $1, 'another', {names} from reservations where id = $2",
            uuid4(),
            first.id,
        )
    assert refused.value.constraint_name == "one_open_reservation_per_object"
    assert await store.count("reservations", "operation_key = 'another'") == 0


async def test_an_object_stays_open_until_its_requests_are_quiet(store: Store) -> None:
    """A resend has succeeded, the first request is still on its way: the object is busy until it cannot arrive any more."""
    object_key = f"label:{uuid4()}"
    first = setting(store, object_key, guarantee_class="A")
    await reserved(store, first)
    await settled(store.worker, await claimed(store.worker, first), Outcome.UNKNOWN, settle_seconds=SETTLE_SECONDS)
    resend = await claimed(store.worker, first)
    await settled(store.worker, resend, Outcome.SUCCEEDED)
    second = setting(store, object_key)
    [barred] = await reserved(store, second)
    assert isinstance(barred, Barred)
    assert barred.after_seconds is not None
    lease_left = 120.0
    assert SETTLE_SECONDS - 5 < barred.after_seconds < SETTLE_SECONDS + lease_left + 5
    quiet_at = await store.one("select quiet_at from open_objects where object_key = $1", object_key)
    lapses_at = await store.one(
        "select max(lease_until) from attempts where reservation_id = $1 and outcome = 'unknown'", first.id
    )
    assert (quiet_at - lapses_at).total_seconds() == pytest.approx(SETTLE_SECONDS)
    await store.owner.execute("update open_objects set quiet_at = now() where object_key = $1", object_key)
    assert await reserved(store, second) == [Won(id=second.id)]
    assert (
        await store.one("select reservation_id from open_objects where object_key = $1 and quiet_at is null", object_key)
        == second.id
    )


async def test_an_object_whose_open_attempt_was_overtaken_stays_open(store: Store) -> None:
    """A person or a webhook settles while a request is on its way: that request counts as one that may arrive."""
    object_key = f"label:{uuid4()}"
    row = setting(store, object_key)
    await reserved(store, row)
    attempt = await claimed(store.worker, row)
    assert await person_says(store, row, happened=True) == "settled"
    [barred] = await reserved(store, setting(store, object_key))
    assert isinstance(barred, Barred)
    assert barred.after_seconds is not None
    lapses_at = (await store.attempt(attempt.attempt_id))["lease_until"]
    quiet_at = await store.one("select quiet_at from open_objects where object_key = $1", object_key)
    assert (quiet_at - lapses_at).total_seconds() == pytest.approx(SETTLE_SECONDS)


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.SUCCEEDED])
async def test_an_object_is_free_where_nothing_is_unknown(store: Store, outcome: Outcome) -> None:
    """An operation whose every attempt was answered frees its object as it is closed."""
    object_key = f"label:{uuid4()}"
    row = setting(store, object_key)
    await reserved(store, row)
    await settled(store.worker, await claimed(store.worker, row), Outcome.UNSENT)
    await settled(store.worker, await claimed(store.worker, row), outcome)
    assert await store.count("open_objects", f"object_key = '{object_key}'") == 0


async def test_a_doubt_keeps_its_object(store: Store) -> None:
    """While an operation is in doubt its object is busy, however long; proven absent and closed, it is free."""
    object_key = f"label:{uuid4()}"
    row = setting(store, object_key, guarantee_class="C")
    await reserved(store, row)
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.UNKNOWN, recover_seconds=None)
    await store.owner.execute("update attempts set lease_until = now() - interval '1 day' where id = $1", attempt.attempt_id)
    [barred] = await reserved(store, setting(store, object_key))
    assert barred == Barred(by="object", reservation_id=row.id, after_seconds=None)
    assert await person_says(store, row, happened=False) == "settled"
    assert await store.count("open_objects", f"object_key = '{object_key}'") == 0


async def written_late(store: Store, attempt: Claimed) -> str:
    """Its worker reports that the attempt's last byte left after its time."""
    late = await settled(
        store.worker, attempt, Outcome.UNKNOWN, late_write=True, settle_seconds=SETTLE_SECONDS, late_recover_seconds=None
    )
    return late.verdict


async def ended_as_absent(store: Store, object_key: str) -> tuple[NewReservation, Claimed]:
    """An operation that was closed because its one attempt was thought absent, and that attempt."""
    row = setting(store, object_key)
    await reserved(store, row)
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.UNKNOWN)
    assert await person_says(store, row, happened=False) == "settled"
    await store.owner.execute("update open_objects set quiet_at = now() - interval '1 s' where object_key = $1", object_key)
    return row, attempt


async def test_a_late_write_holds_the_object_of_what_had_ended(store: Store) -> None:
    """Thought absent and closed, its write left late: the object is busy again until that cannot arrive any more."""
    object_key = f"label:{uuid4()}"
    row, attempt = await ended_as_absent(store, object_key)
    await store.owner.execute("delete from open_objects where object_key = $1", object_key)
    assert await written_late(store, attempt) == "contradiction"
    second = setting(store, object_key)
    [barred] = await reserved(store, second)
    assert isinstance(barred, Barred)
    assert (barred.by, barred.reservation_id) == ("object", row.id)
    assert barred.after_seconds == pytest.approx(SETTLE_SECONDS, abs=5)
    await store.owner.execute("update open_objects set quiet_at = now(), late_until = now() where object_key = $1", object_key)
    assert await reserved(store, second) == [Won(id=second.id)]


async def test_a_late_write_of_an_attempt_beside_a_success_holds_the_object_longer(store: Store) -> None:
    """The object was to be free after the lease and the settle time; what left later arrives later."""
    object_key = f"label:{uuid4()}"
    row = setting(store, object_key)
    await reserved(store, row)
    first = await claimed(store.worker, row)
    await settled(store.worker, first, Outcome.UNKNOWN)
    await store.owner.execute("update attempts set closed_by = 'lapse' where id = $1", first.attempt_id)
    await settled(store.worker, await claimed(store.worker, row), Outcome.SUCCEEDED)
    await store.owner.execute("update open_objects set quiet_at = now() + interval '1 s' where object_key = $1", object_key)
    assert await written_late(store, first) == "evidence"
    [barred] = await reserved(store, setting(store, object_key))
    assert isinstance(barred, Barred)
    assert barred.after_seconds == pytest.approx(SETTLE_SECONDS, abs=5)


async def test_a_late_write_holds_back_whoever_has_taken_the_object(store: Store) -> None:
    """The next operation is reserved already: it is not sent before the late request has arrived or never will, and keeps its object so long."""
    object_key = f"label:{uuid4()}"
    _, attempt = await ended_as_absent(store, object_key)
    second, other = setting(store, object_key), setting(store, None)
    assert await reserved(store, second, other) == [Won(id=second.id), Won(id=other.id)]
    assert await written_late(store, attempt) == "contradiction"
    refused, granted = await claim(store.worker, [claim_of(second), claim_of(other)])
    assert refused == NotClaimed(reservation_id=second.id, reason="not-due")
    assert isinstance(granted, Claimed)
    assert (await store.reservation(second.id))["due_seconds"] == pytest.approx(SETTLE_SECONDS, abs=5)
    await store.owner.execute("update open_objects set late_until = now() where object_key = $1", object_key)
    await store.owner.execute("update open_reservations set due_at = now() where reservation_id = $1", second.id)
    newer = await claimed(store.worker, second)
    # Reported while the newer one is under way: nobody may set the object after it before the late one is quiet.
    await store.owner.execute("update open_objects set late_until = now() + interval '100 s' where object_key = $1", object_key)
    await settled(store.worker, newer, Outcome.SUCCEEDED)
    [barred] = await reserved(store, setting(store, object_key))
    assert isinstance(barred, Barred)
    assert barred.after_seconds == pytest.approx(100, abs=5)


async def test_without_the_trigger_an_object_is_set_twice(own_store: Store) -> None:
    """Negative control: with the constraint's trigger gone, two operations at the same instant are both reserved."""
    await own_store.owner.execute("drop trigger object_opened on reservations")
    object_key = f"label:{uuid4()}"
    verdicts = await reserved(own_store, setting(own_store, object_key), setting(own_store, object_key))
    assert [type(verdict).__name__ for verdict in verdicts] == ["Won", "Won"]


# Occurrences.


async def test_an_occurrence_waits_for_the_one_before(store: Store) -> None:
    """Occurrence 2 is refused while occurrence 1 is open, in doubt above all; once it has an end it is reserved."""
    first = store.world.row()
    second = store.world.row(first.operation_key, occurrence=2)
    await reserved(store, first)
    assert await reserved(store, second) == [Barred(by="occurrence", reservation_id=first.id, after_seconds=None)]
    await settled(store.worker, await claimed(store.worker, first), Outcome.UNKNOWN, recover_seconds=None)
    assert await reserved(store, second) == [Barred(by="occurrence", reservation_id=first.id, after_seconds=None)]
    assert await person_says(store, first, happened=True) == "settled"
    assert await reserved(store, second) == [Won(id=second.id)]
    third = store.world.row(first.operation_key, occurrence=3)
    assert await holders(store.api, [third]) == [Barred(by="occurrence", reservation_id=second.id, after_seconds=None)]


async def test_two_occurrences_in_one_batch(store: Store) -> None:
    """Asked for together, only the first is reserved."""
    first = store.world.row()
    second = store.world.row(first.operation_key, occurrence=2)
    assert await reserved(store, second, first) == [
        Barred(by="occurrence", reservation_id=first.id, after_seconds=None),
        Won(id=first.id),
    ]


@pytest.mark.parametrize("commit", [True, False])
async def test_two_occurrences_at_the_same_instant(store: Store, commit: bool) -> None:
    """Asked for in two transactions at once, the second waits for the first and is refused; where that one is given up it is reserved."""
    first = store.world.row()
    second = store.world.row(first.operation_key, occurrence=2)
    found = await store.beside(
        lambda holder: reserve_within(holder, first), lambda other: reserve(other, [second]), commit=commit
    )
    barred = Barred(by="occurrence", reservation_id=first.id, after_seconds=None)
    assert found == [barred if commit else Won(id=second.id)]
    assert await store.count("reservations", f"operation_key = '{first.operation_key}'") == 1


# Runs.


async def run_of(store: Store) -> dict[str, Any]:
    """A run of its own, as a reservation names it."""
    world = store.world
    run = await runs.ensure(store.api, world.organization_id, world.environment_id, world.project_id, f"run-{uuid4()}", uuid4())
    return {"run_id": run.id, "lineage": run.lineage, "run_name": run.name}


async def test_a_doubt_blocks_its_run(store: Store) -> None:
    """While it is open, also while it is sent again, nothing new is reserved in the run; joins are answered, other runs go on."""
    run = await run_of(store)
    first, beside = store.world.row(blocks_run=True, **run), store.world.row(**run)
    assert await reserved(store, first, beside) == [Won(id=first.id), Won(id=beside.id)], "no doubt yet"
    await settled(store.worker, await claimed(store.worker, first), Outcome.UNKNOWN)
    new = store.world.row(**run)
    blocked = [Barred(by="run", reservation_id=first.id, after_seconds=None)]
    assert await reserved(store, new) == blocked
    again = store.world.row(beside.operation_key, **run)
    [held] = await reserved(store, again)
    assert isinstance(held, Held)
    assert held.id == beside.id
    elsewhere = store.world.row(**await run_of(store))
    assert await reserved(store, elsewhere, store.world.row()) != blocked * 2
    resend = await claimed(store.worker, first)
    assert await reserved(store, new) == blocked, "it is sent again and still in doubt"
    await settled(store.worker, resend, Outcome.SUCCEEDED)
    assert await reserved(store, new) == [Won(id=new.id)]
    assert await store.count("blocked_runs") == 0


@pytest.mark.parametrize("happened", [True, False])
async def test_a_person_frees_a_blocked_run(store: Store, happened: bool) -> None:
    """Whatever a person says of the doubt, the run goes on."""
    run = await run_of(store)
    first = store.world.row(blocks_run=True, guarantee_class="C", **run)
    await reserved(store, first)
    await settled(store.worker, await claimed(store.worker, first), Outcome.UNKNOWN, recover_seconds=None)
    assert await store.count("blocked_runs") == 1
    assert await person_says(store, first, happened=happened) == "settled"
    new = store.world.row(**run)
    assert await reserved(store, new) == [Won(id=new.id)]


async def test_a_doubt_that_blocks_nothing(store: Store) -> None:
    """Without the contract's word a doubt holds nobody up."""
    run = await run_of(store)
    first = store.world.row(**run)
    await reserved(store, first)
    await settled(store.worker, await claimed(store.worker, first), Outcome.UNKNOWN)
    new = store.world.row(**run)
    assert await reserved(store, new) == [Won(id=new.id)]


async def test_rules_of_a_reservation_never_change(own_store: Store) -> None:
    """What the contract says of a doubt is pinned: no statement changes it on an open row."""
    row = setting(own_store, "label:a", blocks_run=True)
    await reserved(own_store, row)
    for name, value in (("object_key", "'b'"), ("quiet_seconds", "0"), ("attention", "'none'"), ("blocks_run", "false")):
        with pytest.raises(asyncpg.CheckViolationError) as refused:
            await own_store.owner.execute(f"update reservations set {name} = {value} where id = $1", row.id)
        assert refused.value.constraint_name == "reservation_identity", name


# Conflicts and cancellations.


def resolution(row: NewReservation, attempt: Claimed, **changes: Any) -> Resolution:
    """A cancellation of an attempt that was confirmed."""
    resolution = Resolution(
        organization_id=row.organization_id,
        reservation_id=row.id,
        attempt_id=attempt.attempt_id,
        happened=False,
        by="cancellation",
        asked_at=None,
        absences_needed=1,
        then="resend",
        again_seconds=0.0,
        receipt_id=uuid4(),
        provider="sandbox",
        external_reference=None,
        provider_request_id=None,
        evidence=[{"kind": "cancellation"}],
        sealed_result=None,
        said_by=None,
        reason="called off before it was due",
        cancel_within_seconds=50.0,
    )
    return replace(resolution, **changes)


async def in_doubt(store: Store, **changes: Any) -> tuple[NewReservation, Claimed]:
    """A doubt of class B and its attempt."""
    row = store.world.row(guarantee_class="B")
    await reserved(store, row)
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.UNKNOWN, **changes)
    return row, attempt


async def test_a_cancellation_in_time_proves_absence_before_the_settle_time(store: Store) -> None:
    """Confirmed before the effect could be due, whatever `absence_counts_at` says: the attempt is absent, and is sent again."""
    row, attempt = await in_doubt(store)
    [early] = await resolve(store.worker, [resolution(row, attempt, by="lookup")], tries_max=20)
    assert isinstance(early, Resolved)
    assert early.verdict == "too-early", "an absence that was merely seen does not count yet"
    [result] = await resolve(store.worker, [resolution(row, attempt)], tries_max=20)
    assert isinstance(result, Resolved)
    assert (result.verdict, result.state) == ("settled", State.RESERVED)
    assert (await store.attempt(attempt.attempt_id))["proven_absent"]


async def test_a_cancellation_that_came_too_late_proves_nothing(store: Store) -> None:
    """Recorded when the effect may be due already, or of a request that left late, or of an older attempt: thrown away."""
    row, attempt = await in_doubt(store)
    await store.owner.execute("update attempts set claimed_at = now() - interval '50 s' where id = $1", attempt.attempt_id)
    frozen, late = await in_doubt(store, late_write=True)
    other, first = await in_doubt(store)
    results = await resolve(
        store.worker,
        [resolution(row, attempt), resolution(frozen, late), resolution(other, first, attempt_id=uuid4())],
        tries_max=20,
    )
    assert [result.verdict for result in results if isinstance(result, Resolved)] == ["stale"] * 3
    for each in (row, frozen, other):
        assert (await store.reservation(each.id))["state"] == "in_doubt"


async def test_nothing_is_sent_again_after_a_conflict(store: Store) -> None:
    """The provider said that the identity is taken: no resend passes the gate, and no look-up's absence counts."""
    row = store.world.row()
    await reserved(store, row)
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.UNKNOWN, conflict=True)
    assert (await store.reservation(row.id))["conflicted"]
    [refused] = await claim(store.worker, [claim_of(row)])
    assert isinstance(refused, NotClaimed)
    assert refused.reason == "no-resend"
    await store.owner.execute("update reservations set absence_counts_at = now() where id = $1", row.id)
    [absent] = await resolve(store.worker, [resolution(row, attempt, by="lookup")], tries_max=20)
    assert isinstance(absent, Resolved)
    assert (absent.verdict, absent.state) == ("stale", State.IN_DOUBT)


# Episodes.


async def doubtful(store: Store, *, reason: str = "read timeout", attention: str = "queue", **changes: Any) -> NewReservation:
    """A doubt that needs a person."""
    row = store.world.row(guarantee_class="C", attention=attention, **changes)
    await reserved(store, row)
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.UNKNOWN, reason=reason, recover_seconds=None)
    return row


async def episodes(store: Store) -> list[tuple[Any, ...]]:
    """Cause, attention, how many wait, how many there were, whether it is over."""
    found = await store.owner.fetch(
        "select cause, attention, waiting, doubts, closed_at is not null from doubt_episodes where organization_id = $1 order by opened_at, cause",
        store.world.organization_id,
    )
    return [tuple(record) for record in found]


async def test_one_episode_per_connection_and_cause(store: Store) -> None:
    """Doubts of one connection and cause that need a person are one episode; it ends with the last of them, and the next is new."""
    rows = [await doubtful(store) for _ in range(3)]
    other = await doubtful(store, reason="HTTP 500")
    assert await episodes(store) == [("read timeout", "queue", 3, 3, False), ("HTTP 500", "queue", 1, 1, False)]
    await doubtful(store, reason="HTTP 500", attention="page")
    for row in rows[:2]:
        assert await person_says(store, row, happened=True) == "settled"
    assert await episodes(store) == [("read timeout", "queue", 1, 3, False), ("HTTP 500", "page", 2, 2, False)]
    assert await person_says(store, rows[2], happened=False) == "settled"
    assert await person_says(store, other, happened=False) == "settled"
    assert await episodes(store) == [("read timeout", "queue", 0, 3, True), ("HTTP 500", "page", 1, 2, False)]
    await doubtful(store)
    assert await episodes(store) == [
        ("read timeout", "queue", 0, 3, True),
        ("HTTP 500", "page", 1, 2, False),
        ("read timeout", "queue", 1, 1, False),
    ]
    kinds = await store.owner.fetch(
        "select kind, detail->>'cause' from ledger_entries where organization_id = $1 and kind like 'episode-%' order by xid, id",
        store.world.organization_id,
    )
    assert [tuple(record) for record in kinds] == [
        ("episode-opened", "read timeout"),
        ("episode-opened", "HTTP 500"),
        ("episode-closed", "read timeout"),
        ("episode-opened", "read timeout"),
    ]


async def test_a_doubt_that_recovery_takes_up_again_leaves_its_episode(store: Store) -> None:
    """Rechecked, nobody is needed for it; a proof that comes by itself ends it as well."""
    rechecked, proven = await doubtful(store), await doubtful(store)
    await store.owner.execute("update reservations set person_asked_at = null where id = $1", rechecked.id)
    assert await episodes(store) == [("read timeout", "queue", 1, 2, False)]
    assert await person_says(store, proven, happened=True) == "settled"
    assert (await store.reservation(proven.id))["state"] == State.SUCCEEDED
    assert await episodes(store) == [("read timeout", "queue", 0, 2, True)]


async def test_doubts_that_recover_by_themselves_are_no_episode(store: Store) -> None:
    """Nobody is asked while recovery has something left to try."""
    row = store.world.row()
    await reserved(store, row)
    await settled(store.worker, await claimed(store.worker, row), Outcome.UNKNOWN)
    assert await episodes(store) == []


async def cross(store: Store, what: str) -> tuple[list[NewReservation], Callable[[Connection], Awaitable[Any]]]:
    """Two doubts whose ids are in the other order than their connections, and what moves both into their episodes, or out of them."""
    connection_ids = sorted([store.world.connection_id, await another_connection(store)])
    ids = sorted([uuid4(), uuid4()])
    rows = [
        store.world.row(id=id, connection_id=connection_id, guarantee_class="C")
        for id, connection_id in zip(ids, reversed(connection_ids), strict=True)
    ]
    await reserved(store, *rows)
    attempts = [await claimed(store.worker, row) for row in rows]
    if what == "lapse":
        for attempt in attempts:
            await store.let_the_lease_lapse(attempt.attempt_id)
        lapses = [
            Lapse(
                organization_id=attempt.organization_id,
                reservation_id=attempt.reservation_id,
                attempt_id=attempt.attempt_id,
                settle_seconds=SETTLE_SECONDS,
                recover_seconds=None,
            )
            for attempt in attempts
        ]
        return rows, lambda connection: lapse(connection, lapses)
    if what == "recheck":
        for attempt in attempts:
            await settled(store.worker, attempt, Outcome.UNKNOWN, reason="lease lapsed", recover_seconds=None)
        again: dict[str, Any] = {"pause_seconds": 1.0, "actor_chain": ["member:a"], "reason": "again", "batch_id": uuid4()}
        return rows, lambda connection: recheck(connection, store.world.organization_id, ids, **again)
    await store.owner.execute(
        "insert into epochs (number, cause, system_identifier, timeline, lost_since, possibly_lost_until) "
        "select number + 1, 'tests', system_identifier, timeline, now(), now() from epochs order by number desc limit 1"
    )
    suspicions = [
        Suspicion(
            organization_id=row.organization_id,
            id=row.id,
            settle_seconds=SETTLE_SECONDS,
            recover_seconds=None,
            late_recover_seconds=None,
        )
        for row in rows
    ]
    return rows, lambda connection: suspect(connection, suspicions, lease_seconds=10.0)


async def another_connection(store: Store) -> UUID:
    """A second account at the provider."""
    row = connections.ConnectionRow(
        organization_id=store.world.organization_id,
        id=uuid4(),
        environment_id=store.world.environment_id,
        provider="stripe",
        name=f"stripe-{uuid4().hex[:8]}",
        base_url="http://127.0.0.1:1",
        fixed_headers={},
        currency="EUR",
        allow_private=True,
        is_default=False,
    )
    return await connections.ensure(store.owner, row)


@pytest.mark.parametrize(
    ("what", "cause", "already"),
    [
        ("lapse", "lease lapsed", True),
        ("lapse", "lease lapsed", False),
        ("recheck", "lease lapsed", False),
        ("suspect", "epoch", False),
    ],
)
async def test_episodes_are_locked_in_one_order(own_store: Store, what: str, cause: str, already: bool) -> None:
    """Whoever moves doubts of several connections waits for the first episode with none of the others in hand, whatever the rows' order."""
    store = own_store
    rows, moves = await cross(store, what)
    first, second = sorted(row.connection_id for row in rows)
    if already:
        for connection_id in (first, second):
            await doubtful(store, reason=cause, connection_id=connection_id)
    # Doubts of the same episodes that somebody else moves, the other side of a deadlock.
    beside = [store.world.row(connection_id=connection_id, guarantee_class="C") for connection_id in (first, second)]
    await reserved(store, *beside)
    attempts = [await claimed(store.worker, row) for row in beside]
    holder, other, third = [await store.another(store.database.superuser_url) for _ in range(3)]
    transaction = holder.transaction()
    await transaction.start()
    await settled(holder, attempts[0], Outcome.UNKNOWN, reason=cause, recover_seconds=None)
    moving = asyncio.ensure_future(moves(other))
    await store.until_blocked(other, moving)
    await third.execute("set lock_timeout = '2s'")
    await settled(third, attempts[1], Outcome.UNKNOWN, reason=cause, recover_seconds=None)
    await transaction.commit()
    assert len(await asyncio.wait_for(moving, 20)) == 2
    await store.assert_invariants()
