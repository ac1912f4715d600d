"""T1: every verdict of a reserve, what it writes, and what it does when it meets another transaction."""

import asyncio
from dataclasses import replace
from hashlib import sha256
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.store.races import Between, Store
from tests.support.ledger import TRIES_MAX, claim_of, claimed, settled, settlement_of

from outbox_domain.reservation import Outcome, State
from outbox_store import organizations, tool_contracts
from outbox_store.batches import Failed
from outbox_store.claim import claim
from outbox_store.reserve import HOLDERS, INSERT, Contended, Contradicted, Held, NewReservation, Verdict, Won, holders, reserve
from outbox_store.settle import settle
from outbox_store.sweep import leave_to_a_person

TABLES = ("reservations", "sealed_inputs", "open_reservations", "ledger_entries")


async def counts(store: Store) -> list[int]:
    """How many rows each table of T1 has."""
    return [await store.count(table) for table in TABLES]


async def contradict(store: Store, key: str) -> NewReservation:
    """A failed reservation of the key whose attempt turns out to have had its effect."""
    row = store.world.row(key)
    await reserve(store.api, [row])
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.REJECTED)
    assert (await settled(store.worker, attempt, Outcome.SUCCEEDED)).verdict == "contradiction"
    return row


async def test_a_new_key_is_won_with_everything_that_belongs_to_it(store: Store) -> None:
    """Won writes the reservation, its sealed input, its place in the sweep and its ledger entry, with Postgres's times."""
    world = store.world
    row = world.row(
        scope=f"run:{world.run_id}",
        run_id=world.run_id,
        lineage=world.run_id,
        run_name="thread-1",
        checkpoint="c1",
        step="refund",
        call_id="call_1",
        model="m1",
        trace_id="0af7651916cd43dd8448eb211c80319c",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        decision={"decision": "allow"},
        not_after_seconds=120.0,
        reference="order-1",
    )
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    record = await store.reservation(row.id)
    for name in NewReservation.__dataclass_fields__:
        if name not in ("run_name", "not_after_seconds", "sealed_input"):
            assert record[name] == getattr(row, name), name
    assert (record["state"], record["live"], record["epoch"], record["generation"], record["attempts"]) == (
        "reserved",
        True,
        1,
        0,
        0,
    )
    assert (record["not_after"] - record["created_at"]).total_seconds() == 120.0
    assert record["due_at"] == record["created_at"]
    assert await store.one("select sealed from sealed_inputs where reservation_id = $1", row.id) == b"sealed"
    entry = await store.owner.fetchrow("select * from ledger_entries where reservation_id = $1", row.id)
    assert entry is not None
    assert (entry["kind"], entry["from_state"], entry["to_state"], entry["run"]) == ("reserved", None, "reserved", "thread-1")
    assert (entry["input_digest"], entry["declared"], entry["decision"]) == (
        row.input_digest,
        {"amount": 1200},
        {"decision": "allow"},
    )
    assert (entry["trace_id"], entry["operation_key"], entry["actor_chain"]) == (row.trace_id, row.operation_key, ["agent:tests"])


async def test_a_taken_key_is_held_and_nothing_is_written(store: Store) -> None:
    """Who loses a key learns the holder's id, state, digest and declared fields, and leaves no trace."""
    first = store.world.row("refund:pi_1")
    await reserve(store.api, [first])
    before = await counts(store)
    second = store.world.row("refund:pi_1", input_digest=sha256(b"other").digest(), declared={"amount": 5})
    assert await reserve(store.api, [second]) == [
        Held(
            id=first.id,
            state=State.RESERVED,
            input_digest=first.input_digest,
            declared={"amount": 1200},
            contract_version=1,
            settled_at=None,
            executor="gateway",
            open_attempt_id=None,
            last_attempt_id=None,
            lease_seconds=None,
        )
    ]
    assert await counts(store) == before


async def test_the_same_rows_again_are_recognised(store: Store) -> None:
    """A batch sent again after its answer was lost gets the same verdicts and adds no row, wherever its rows stand by then."""
    rows = [store.world.row() for _ in range(5)]
    taken = store.world.row(rows[0].operation_key)
    batch = [*rows, taken]
    first = await reserve(store.api, batch)
    assert first[:5] == [Won(id=row.id) for row in rows]
    before = await counts(store)
    assert await reserve(store.api, batch) == first
    assert await counts(store) == before
    attempt = await claimed(store.worker, rows[1])
    await settled(store.worker, attempt, Outcome.REJECTED)
    assert (await reserve(store.api, [rows[1]])) == [Won(id=rows[1].id)]


async def test_every_scope_column_is_part_of_the_key(store: Store) -> None:
    """Another project, environment, connection, tool, scope, key or (once the one before has ended) occurrence is another effect."""
    world, owner = store.world, store.owner
    project = await organizations.create_project(owner, world.organization_id, uuid4(), "other")
    environment = await organizations.create_environment(owner, world.organization_id, uuid4(), "staging", None)
    connection = uuid4()
    await owner.execute(
        "insert into connections (organization_id, id, environment_id, provider, name, base_url) values ($1, $2, $3, 'stripe', 'other', 'http://x')",
        world.organization_id,
        connection,
        world.environment_id,
    )
    await tool_contracts.install(
        owner, world.organization_id, [("stripe.customer.create", 1, {"tool": "stripe.customer.create"})]
    )
    base = world.row("refund:pi_1")
    rows = [
        base,
        replace(base, id=uuid4(), project_id=project),
        replace(base, id=uuid4(), environment_id=environment),
        replace(base, id=uuid4(), connection_id=connection),
        replace(base, id=uuid4(), tool="stripe.customer.create"),
        replace(base, id=uuid4(), scope=f"run:{world.run_id}", run_id=world.run_id, lineage=world.run_id),
        replace(base, id=uuid4(), operation_key="refund:pi_2"),
    ]
    assert await reserve(store.api, rows) == [Won(id=row.id) for row in rows]
    await settled(store.worker, await claimed(store.worker, base), Outcome.SUCCEEDED)
    rows.append(replace(base, id=uuid4(), occurrence=2))
    assert await reserve(store.api, rows[-1:]) == [Won(id=rows[-1].id)]
    again = [replace(row, id=uuid4()) for row in rows]
    assert [verdict.id for verdict in await reserve(store.api, again) if isinstance(verdict, Held)] == [row.id for row in rows]


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.REJECTED, Outcome.UNKNOWN, Outcome.DEFERRED, Outcome.UNSENT])
async def test_a_key_is_free_again_only_after_a_proven_failure(store: Store, outcome: Outcome) -> None:
    """A success, a doubt and a try to come keep the key; a refusal gives it back."""
    row = store.world.row("refund:pi_1")
    await reserve(store.api, [row])
    await settled(store.worker, await claimed(store.worker, row), outcome)
    again = store.world.row("refund:pi_1")
    [verdict] = await reserve(store.api, [again])
    if outcome is Outcome.REJECTED:
        assert verdict == Won(id=again.id)
    else:
        assert isinstance(verdict, Held)
        assert verdict.id == row.id
        assert (verdict.settled_at is not None) == (outcome is Outcome.SUCCEEDED)


async def test_a_voided_key_is_free_again(store: Store) -> None:
    """What was withdrawn before it was sent can be asked for again."""
    row = store.world.row("refund:pi_1", not_after_seconds=-1.0)
    await reserve(store.api, [row])
    await claim(store.worker, [claim_of(row)])
    again = store.world.row("refund:pi_1")
    assert await reserve(store.api, [again]) == [Won(id=again.id)]


async def test_a_contradiction_blocks_its_key_until_a_person_closes_it(store: Store) -> None:
    """Proof of an effect that a failed reservation denies refuses every occurrence of the key and no other key."""
    failed = await contradict(store, "refund:pi_1")
    blocked = [store.world.row("refund:pi_1"), store.world.row("refund:pi_1", occurrence=2)]
    free = store.world.row("refund:pi_2")
    before = await counts(store)
    verdicts = await reserve(store.api, [*blocked, free])
    assert [verdict.reservation_id for verdict in verdicts if isinstance(verdict, Contradicted)] == [failed.id, failed.id]
    assert verdicts[2] == Won(id=free.id)
    assert await counts(store) == [before[0] + 1, before[1] + 1, before[2] + 1, before[3] + 1]
    await store.owner.execute(
        "update contradictions set closed_at = now() where organization_id = $1", store.world.organization_id
    )
    assert await reserve(store.api, blocked[:1]) == [Won(id=blocked[0].id)]


async def test_a_live_holder_is_told_before_a_contradiction(store: Store) -> None:
    """Who repeats a call whose own reservation stands joins it, whatever is examined about an earlier one."""
    first = store.world.row("refund:pi_1")
    await reserve(store.api, [first])
    attempt = await claimed(store.worker, first)
    await settled(store.worker, attempt, Outcome.REJECTED)
    second = store.world.row("refund:pi_1")
    await reserve(store.api, [second])
    await settled(store.worker, attempt, Outcome.SUCCEEDED)
    [verdict] = await reserve(store.api, [store.world.row("refund:pi_1")])
    assert isinstance(verdict, Held)
    assert verdict.id == second.id


async def test_holders_reads_without_writing(store: Store) -> None:
    """Asking who holds keys writes nothing: nobody, the caller's own row, another's, or a contradiction."""
    mine, theirs = store.world.row(), store.world.row()
    await reserve(store.api, [mine, theirs])
    await contradict(store, "refund:pi_contradicted")
    before = await counts(store)
    found = await holders(
        store.api, [store.world.row(), mine, store.world.row(theirs.operation_key), store.world.row("refund:pi_contradicted")]
    )
    assert found[0] is None
    assert found[1] == Won(id=mine.id)
    assert isinstance(found[2], Held)
    assert found[2].id == theirs.id
    assert isinstance(found[3], Contradicted)
    assert await holders(store.api, []) == []
    assert await reserve(store.api, []) == []
    assert await counts(store) == before


REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"scope": "run:6b3a55e0-0d9c-4c1f-8d0e-0d6f4f0c7c11"}, "reservation_scope"),
    ({"scope": "anything"}, "reservation_scope"),
    ({"operation_key": ""}, "reservations_operation_key_check"),
    ({"operation_key": "k" * 513}, "reservations_operation_key_check"),
    ({"occurrence": 0}, "reservations_occurrence_check"),
    ({"input_digest": b"short"}, "reservations_input_digest_check"),
    ({"review_digest": b"short"}, "reservations_review_digest_check"),
    ({"currency": None}, "reservation_money"),
    ({"currency": "eur"}, "reservations_currency_check"),
    ({"guarantee_class": "D"}, "reservations_guarantee_class_check"),
    ({"contract_version": 7}, "reservations_organization_id_tool_contract_version_fkey"),
    ({"project_id": uuid4()}, "reservations_organization_id_project_id_fkey"),
    ({"environment_id": uuid4()}, "reservations_organization_id_environment_id_fkey"),
    ({"connection_id": uuid4()}, "reservations_organization_id_connection_id_fkey"),
    ({"actor_id": uuid4()}, "reservations_organization_id_actor_id_fkey"),
    ({"run_id": uuid4()}, "reservation_run"),
    ({"lineage": uuid4()}, "reservation_run"),
    ({"actor_id": None}, None),
    ({"key_id": None}, None),
    ({"owner": None}, None),
    ({"sealed_input": None}, None),
    ({"declared": {"note": "\ud800"}}, None),
    ({"declared": {"note": "\x00"}}, None),
    ({"declared": {"note": object()}}, None),
    ({"operation_key": "a\x00b"}, None),
    ({"amount": 2**70}, None),
    ({"amount": "12"}, None),
]
"""Rows that the schema refuses, or that have no form in it, and the name of what refuses them."""


async def test_a_row_that_breaks_a_constraint_is_refused_alone(store: Store) -> None:
    """A row that cannot be stored comes back as failed with the constraint that refused it; the rows beside it are won."""
    for changes, constraint in REFUSED:
        rows = [store.world.row(), store.world.row(**changes), store.world.row()]
        verdicts = await reserve(store.api, rows)
        assert verdicts[0] == Won(id=rows[0].id)
        assert verdicts[2] == Won(id=rows[2].id)
        assert isinstance(verdicts[1], Failed), changes
        assert verdicts[1].constraint == constraint, changes
    assert await store.count("reservations") == 2 * len(REFUSED)


async def test_a_value_too_large_for_an_index_is_refused_alone(store: Store) -> None:
    """A reference that no index row can hold fails its own row only, though Postgres does not call it a data error."""
    reference = "".join(chr(0x4E00 + number * number * 7919 % 20000) for number in range(2000))
    rows = [store.world.row(), store.world.row(reference=reference)]
    verdicts = await reserve(store.api, rows)
    assert verdicts[0] == Won(id=rows[0].id)
    assert isinstance(verdicts[1], Failed)


async def test_the_holder_commits_meanwhile(store: Store) -> None:
    """A reserve that waits for another's insert of the same key is held by it after its commit: never nothing, never both."""
    first, second = store.world.row("refund:pi_1"), store.world.row("refund:pi_1")
    [verdict] = await store.beside(lambda holder: reserve(holder, [first]), lambda other: reserve(other, [second]))
    assert isinstance(verdict, Held)
    assert verdict.id == first.id
    assert await store.count("reservations") == 1


async def test_the_holder_rolls_back_meanwhile(store: Store) -> None:
    """A reserve that waits for an insert that is undone wins the key."""
    first, second = store.world.row("refund:pi_1"), store.world.row("refund:pi_1")
    verdicts = await store.beside(lambda holder: reserve(holder, [first]), lambda other: reserve(other, [second]), commit=False)
    assert verdicts == [Won(id=second.id)]


async def test_the_same_batch_while_its_first_sending_still_runs(store: Store) -> None:
    """A batch sent again before the lost first sending is over recognises its rows after waiting for it."""
    rows = [store.world.row() for _ in range(3)]
    verdicts = await store.beside(lambda holder: reserve(holder, rows), lambda other: reserve(other, rows))
    assert verdicts == [Won(id=row.id) for row in rows]
    assert await store.count("reservations") == 3


async def test_the_holder_fails_meanwhile(store: Store) -> None:
    """A reserve that waits for a settlement as failed wins the key, once."""
    row = store.world.row("refund:pi_1")
    await reserve(store.api, [row])
    attempt = await claimed(store.worker, row)
    second = store.world.row("refund:pi_1")
    verdicts = await store.beside(
        lambda holder: settle(holder, [settlement_of(attempt, Outcome.REJECTED)], tries_max=TRIES_MAX),
        lambda other: reserve(other, [second]),
    )
    assert verdicts == [Won(id=second.id)]
    assert await store.count("reservations", "live") == 1


async def test_the_settlement_of_the_holder_is_undone_meanwhile(store: Store) -> None:
    """A reserve that waits for a settlement as failed that rolls back is held."""
    row = store.world.row("refund:pi_1")
    await reserve(store.api, [row])
    attempt = await claimed(store.worker, row)
    [verdict] = await store.beside(
        lambda holder: settle(holder, [settlement_of(attempt, Outcome.REJECTED)], tries_max=TRIES_MAX),
        lambda other: reserve(other, [store.world.row("refund:pi_1")]),
        commit=False,
    )
    assert isinstance(verdict, Held)
    assert (verdict.id, verdict.state) == (row.id, State.EXECUTING)


async def test_the_holder_succeeds_meanwhile(store: Store) -> None:
    """A success never leaves the unique index, not even for the moment of its settlement: the key is held throughout."""
    row = store.world.row("refund:pi_1")
    await reserve(store.api, [row])
    attempt = await claimed(store.worker, row)
    [verdict] = await store.beside(
        lambda holder: settle(holder, [settlement_of(attempt, Outcome.SUCCEEDED)], tries_max=TRIES_MAX),
        lambda other: reserve(other, [store.world.row("refund:pi_1")]),
    )
    assert isinstance(verdict, Held)
    assert (verdict.id, verdict.state) == (row.id, State.SUCCEEDED)


async def test_the_holder_closes_between_the_two_statements(store: Store) -> None:
    """Who loses a key to a holder that is gone when it is looked for tries again and wins."""
    row = store.world.row("refund:pi_1")
    await reserve(store.api, [row])
    attempt = await claimed(store.worker, row)
    again = store.world.row("refund:pi_1")
    fails = Between.on(store.api, {HOLDERS: lambda: settled(store.worker, attempt, Outcome.REJECTED)})
    assert await reserve(fails, [again]) == [Won(id=again.id)]


async def test_a_key_that_changes_hands_without_end_is_contended(store: Store) -> None:
    """A key that closes each time it is looked at ends the rounds; nothing was written for the caller."""
    keys: list[NewReservation] = []

    async def change_hands() -> None:
        for row in keys:
            await settled(store.worker, await claimed(store.worker, row), Outcome.REJECTED)
        keys.clear()

    async def taken() -> None:
        keys.append(store.world.row("refund:pi_1"))
        await reserve(store.owner, keys)

    mine = store.world.row("refund:pi_1")
    assert await reserve(Between.on(store.api, {INSERT: taken, HOLDERS: change_hands}), [mine]) == [Contended()]
    assert await store.one("select count(*) from reservations where id = $1", mine.id) == 0


async def test_two_unsorted_batches_at_once(store: Store) -> None:
    """Two batches with the same 300 keys in opposite orders never deadlock: each key has one winner, the other is held by it."""
    keys = [f"refund:pi_{number}" for number in range(300)]
    one = [store.world.row(key) for key in keys]
    two = [store.world.row(key) for key in reversed(keys)]
    second = await store.another(store.database.api_url)
    first_answers, second_answers = await asyncio.gather(reserve(store.api, one), reserve(second, two))
    for mine, other in zip(first_answers, reversed(second_answers), strict=True):
        assert isinstance(mine, (Won, Held))
        assert isinstance(other, (Won, Held))
        assert mine.id == other.id
        assert isinstance(mine, Won) != isinstance(other, Won)


async def test_two_unsorted_batches_meet_in_the_middle(store: Store) -> None:
    """A batch that waits for the last key of another holds none that the other still wants."""
    keys = [f"refund:pi_{number:03}" for number in range(100)]
    one = [store.world.row(key) for key in reversed(keys)]
    two = [store.world.row(key) for key in keys]
    verdicts = await store.beside(lambda holder: reserve(holder, one[:50]), lambda other: reserve(other, two))
    assert [verdict.id for verdict in verdicts[50:] if isinstance(verdict, Held)] == [row.id for row in reversed(one[:50])]
    assert verdicts[:50] == [Won(id=row.id) for row in two[:50]]


BARRIER = 7_021_978_777
PAUSE_BEFORE_THE_SECOND_ROW = f"""
create function pause() returns trigger language plpgsql as $$
begin
  if current_setting('tests.first', true) = pg_current_xact_id()::text then
    perform pg_advisory_xact_lock_shared({BARRIER});
  end if;
  perform set_config('tests.first', pg_current_xact_id()::text, true);
  return new;
end $$;
create trigger pause before insert on reservations for each row execute function pause();
"""


async def meet_between_two_rows(store: Store) -> list[list[Verdict | Failed]]:
    """Two callers with two keys in opposite orders, both stopped when they have inserted one row, then let go."""
    await store.owner.execute(PAUSE_BEFORE_THE_SECOND_ROW)
    gate = await store.another(store.database.superuser_url)
    await gate.execute("select pg_advisory_lock($1)", BARRIER)
    one, two = await store.another(store.database.superuser_url), await store.another(store.database.superuser_url)
    keys = ["refund:pi_a", "refund:pi_b"]
    callers = [
        asyncio.ensure_future(reserve(connection, [store.world.row(key) for key in order]))
        for connection, order in ((one, keys), (two, keys[::-1]))
    ]
    for connection, running in zip((one, two), callers, strict=True):
        await store.until_blocked(connection, running)
    await gate.execute("select pg_advisory_unlock($1)", BARRIER)
    return await asyncio.gather(*callers)


async def test_rows_are_inserted_in_the_order_of_their_keys(own_store: Store) -> None:
    """Whatever order a caller gives, both reach for the first key first: one waits there, and neither for the other's second."""
    first, second = await meet_between_two_rows(own_store)
    assert sorted(type(verdict).__name__ for verdict in [*first, *second]) == ["Held", "Held", "Won", "Won"]
    await own_store.assert_invariants()


async def test_a_doubt_left_to_a_person_still_holds_its_key(store: Store) -> None:
    """Time never frees a key in doubt."""
    row = store.world.row("refund:pi_1")
    await reserve(store.api, [row])
    await settled(store.worker, await claimed(store.worker, row), Outcome.UNKNOWN)
    await leave_to_a_person(store.worker, row.organization_id, row.id)
    [verdict] = await reserve(store.api, [store.world.row("refund:pi_1")])
    assert isinstance(verdict, Held)
    assert verdict.state is State.IN_DOUBT
