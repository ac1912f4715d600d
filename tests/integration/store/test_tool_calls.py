"""Tool calls as they are recorded: every request once, a repeated refusal counted."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.integration.store.races import Store

from outbox_store.connection import Connection
from outbox_store.ledger_entries import NewEntry
from outbox_store.reserve import reserve
from outbox_store.tool_calls import NewToolCall, insert, record_refusal

DIGEST = bytes(32)


def call_of(store: Store, **changes: Any) -> NewToolCall:
    """A tool call of this test's actor that was refused."""
    call = NewToolCall(
        organization_id=store.world.organization_id,
        id=uuid4(),
        at=datetime.now(UTC),
        reservation_id=None,
        environment_id=store.world.environment_id,
        tool="stripe.refund.create",
        actor_id=store.world.actor_id,
        actor_chain=("agent:root", "subagent:tests"),
        key_id="k",
        run="thread-1",
        checkpoint="c1",
        step="s1",
        call_id="call-1",
        model="m1",
        trace_id="t1",
        answer_code="denied",
        answer_state=None,
        replayed=False,
    )
    return replace(call, **changes)


def entry_of(call: NewToolCall) -> NewEntry:
    """The ledger entry of a refusal."""
    return NewEntry(
        organization_id=call.organization_id,
        environment_id=call.environment_id,
        kind="refused",
        actor_chain=list(call.actor_chain),
        tool=call.tool,
        run=call.run,
    )


async def refuse(connection: "asyncpg.Connection[asyncpg.Record]", call: NewToolCall, digest: bytes = DIGEST) -> bool:
    """Record a refusal in a transaction of its own."""
    async with connection.transaction():
        return await record_refusal(connection, call, digest, entry_of(call))


async def test_a_call_is_recorded_as_it_was(store: Store) -> None:
    """Who asked, where, with what trace and what was answered is kept column by column."""
    row = store.world.row()
    await reserve(store.api, [row])
    call = call_of(store, reservation_id=row.id, answer_code="ok", answer_state="reserved", replayed=True)
    await insert(store.api, [call])
    record = await store.owner.fetchrow("select * from tool_calls where id = $1", call.id)
    assert record is not None
    for name in NewToolCall.__dataclass_fields__:
        expected = getattr(call, name)
        assert record[name] == (list(expected) if isinstance(expected, tuple) else expected), name
    assert (record["refusal_digest"], record["repeats"]) == (None, 0)


async def test_a_batch_sent_again_adds_nothing(store: Store) -> None:
    """Ids are the caller's: a batch whose answer was lost may be sent again, whole or in part."""
    calls = [call_of(store) for _ in range(200)]
    await insert(store.api, calls[:150])
    await insert(store.api, calls)
    await insert(store.api, calls)
    assert await store.count("tool_calls") == 200
    await insert(store.api, [])


async def test_a_call_of_an_unknown_organization_is_refused(store: Store) -> None:
    """No row without an organization that exists."""
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await insert(store.api, [call_of(store, organization_id=uuid4())])


async def test_the_same_refusal_within_a_minute_is_counted(store: Store) -> None:
    """A loop that is refused again and again leaves one row, one ledger entry and a count."""
    calls = [call_of(store) for _ in range(5)]
    assert [await refuse(store.api, call) for call in calls] == [True, False, False, False, False]
    record = await store.owner.fetchrow(
        "select id, repeats from tool_calls where organization_id = $1", store.world.organization_id
    )
    assert record is not None
    assert tuple(record) == (calls[0].id, 4)
    assert await store.count("ledger_entries", "kind = 'refused'") == 1


async def test_another_refusal_is_another_entry(store: Store) -> None:
    """Another digest, another organization and a later minute are recorded anew."""
    first = call_of(store)
    assert await refuse(store.api, first)
    assert await refuse(store.api, call_of(store), b"\x01" * 32)
    elsewhere = await Store.open(store.database)
    assert await refuse(elsewhere.api, call_of(elsewhere))
    await elsewhere.close()
    later = call_of(store, at=first.at + timedelta(seconds=61))
    assert await refuse(store.api, later)
    assert not await refuse(store.api, call_of(store, at=first.at + timedelta(seconds=62)))
    assert await store.one("select repeats from tool_calls where id = $1", later.id) == 1


@pytest.mark.parametrize("skew", [timedelta(minutes=-10), timedelta(minutes=10)], ids=["behind", "ahead"])
async def test_a_process_with_a_wrong_clock_counts_too(store: Store, skew: timedelta) -> None:
    """The minute is told by the clock that wrote the rows: a process whose clock is wrong does not flood the ledger."""
    start = datetime.now(UTC) + skew
    calls = [call_of(store, at=start + timedelta(seconds=number)) for number in (0, 1, 2, 61, 62)]
    assert [await refuse(store.api, call) for call in calls] == [True, False, False, True, False]


async def test_equal_refusals_at_once_are_one_entry(store: Store) -> None:
    """Of ten equal refusals at the same moment one is recorded and nine are counted."""
    connections = [await store.another(store.database.api_url) for _ in range(10)]
    recorded = await asyncio.gather(*(refuse(connection, call_of(store)) for connection in connections))
    assert recorded.count(True) == 1
    assert await store.one("select sum(repeats) from tool_calls where organization_id = $1", store.world.organization_id) == 9
    assert await store.count("ledger_entries", "kind = 'refused'") == 1


@pytest.mark.parametrize("commit", [True, False], ids=["commits", "rolls back"])
async def test_a_refusal_that_waits_for_an_equal_one(store: Store, commit: bool) -> None:
    """Who waits counts what was committed and records what was not; row and entry stand or fall together."""
    ids: list[UUID] = []

    async def first(holder: Connection) -> None:
        call = call_of(store)
        ids.append(call.id)
        assert await record_refusal(holder, call, DIGEST, entry_of(call))

    assert await store.beside(first, lambda other: refuse(other, call_of(store)), commit=commit) is not commit
    assert await store.count("tool_calls") == await store.count("ledger_entries", "kind = 'refused'") == 1
    assert (await store.one("select count(*) from tool_calls where id = $1", ids[0])) == int(commit)
