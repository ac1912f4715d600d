"""Lists: what a cursor promises, what each filter lets through, and what is refused as a cursor."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from tests.integration.store.races import DEADLINE_SECONDS, Store
from tests.support.ledger import TRIES_MAX, claimed, settled, settlement_of

from outbox_domain.errors import OutboxError
from outbox_domain.reservation import Outcome
from outbox_store import ledger_entries, organizations, receipts, reservations, runs, tool_calls, tool_contracts
from outbox_store.cursors import Cursor
from outbox_store.filters import Filter
from outbox_store.ledger_entries import Entry, NewEntry
from outbox_store.receipts import ReceiptView
from outbox_store.reservations import ReservationView
from outbox_store.reserve import NewReservation, reserve
from outbox_store.settle import settle

T = TypeVar("T")


async def refund(store: Store, outcome: Outcome | None = Outcome.SUCCEEDED, **changes: Any) -> NewReservation:
    """A reservation that ended so; None leaves it reserved."""
    row = store.world.row(**changes)
    await reserve(store.api, [row])
    if outcome is not None:
        await settled(store.worker, await claimed(store.worker, row), outcome)
    return row


async def page(
    store: Store, filter: Filter | None = None, *, after: Cursor | None = None, limit: int = 100
) -> tuple[list[ReservationView], Cursor | None]:
    """A page of reservations of this test's environment."""
    return await reservations.list_(
        store.api, store.world.organization_id, store.world.environment_id, filter or Filter(), after=after, limit=limit
    )


async def receipt_page(
    store: Store, filter: Filter | None = None, *, after: Cursor | None = None, limit: int = 100
) -> tuple[list[ReceiptView], Cursor | None]:
    """A page of receipts of this test's environment."""
    return await receipts.list_(
        store.api, store.world.organization_id, store.world.environment_id, filter or Filter(), after=after, limit=limit
    )


async def entries(
    store: Store, *, after: Cursor | None = None, limit: int = 1000, **filters: Any
) -> tuple[list[Entry], Cursor | None]:
    """A page of ledger entries of this test's environment."""
    return await ledger_entries.list_(
        store.api, store.world.organization_id, store.world.environment_id, after=after, limit=limit, **filters
    )


async def eventually(look: Callable[[], Awaitable[T]], is_right: Callable[[T], bool]) -> T:
    """Look until it is right: whoever writes on the same server holds back what is younger than their transaction."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not is_right(found := await look()):  # noqa: ASYNC110 - another process has no asyncio.Event
            await asyncio.sleep(0.01)
    return found


async def all_listed(store: Store, count: int) -> list[ReservationView]:
    """All reservations of this test's environment, once there are so many."""
    return (await eventually(lambda: page(store), lambda found: len(found[0]) == count))[0]


async def test_pages_go_from_the_newest_to_the_oldest(store: Store) -> None:
    """Reservations and receipts come newest first, page by page, each once, and the last page says so."""
    rows = [await refund(store) for _ in range(7)]
    assert [view.id for view in await all_listed(store, 7)] == [row.id for row in reversed(rows)]
    seen, after, pages = [], None, 0
    while True:
        views, after = await page(store, after=after, limit=3)
        seen += [view.id for view in views]
        pages += 1
        if after is None:
            break
        after = Cursor.read(after.text())
    assert (seen, pages) == ([row.id for row in reversed(rows)], 3)
    first, cursor = await receipt_page(store, limit=5)
    assert cursor is not None
    second, end = await receipt_page(store, after=cursor, limit=5)
    assert [view.reservation_id for view in [*first, *second]] == [row.id for row in reversed(rows)]
    assert end is None


async def test_rows_of_one_transaction_keep_their_order_across_pages(store: Store) -> None:
    """Rows that were reserved in one statement are told apart by their ids: none is skipped or given twice."""
    rows = [store.world.row() for _ in range(10)]
    await reserve(store.api, rows)
    await all_listed(store, 10)
    seen: list[UUID] = []
    after = None
    while True:
        views, after = await page(store, after=after, limit=3)
        seen += [view.id for view in views]
        if after is None:
            break
    assert seen == sorted((row.id for row in rows), reverse=True)


async def test_a_reservation_that_commits_late_is_never_skipped(store: Store) -> None:
    """While a T1 is open nothing younger is listed; after its commit it stands above what was given out before."""
    old = [await refund(store, None) for _ in range(3)]
    await all_listed(store, 3)
    late, young = store.world.row(), store.world.row()
    holder = await store.another(store.database.api_url)
    transaction = holder.transaction()
    await transaction.start()
    await reserve(holder, [late])
    await reserve(store.api, [young])
    views, cursor = await page(store, limit=2)
    assert [view.id for view in views] == [old[2].id, old[1].id]
    await transaction.commit()
    rest, _ = await page(store, after=cursor)
    assert [view.id for view in rest] == [old[0].id]
    assert [view.id for view in await all_listed(store, 5)] == [row.id for row in (young, late, *reversed(old))]


async def test_a_receipt_that_commits_late_is_never_skipped(store: Store) -> None:
    """The same of receipts: a settlement held open across a page appears above it, and hides no other for longer."""
    old = await refund(store)
    row, other = await refund(store, None), await refund(store, None)
    attempt, second = await claimed(store.worker, row), await claimed(store.worker, other)
    await eventually(lambda: receipt_page(store), lambda found: len(found[0]) == 1)
    holder = await store.another(store.database.worker_url)
    transaction = holder.transaction()
    await transaction.start()
    await settle(holder, [settlement_of(attempt, Outcome.SUCCEEDED)], tries_max=TRIES_MAX)
    await settled(store.worker, second, Outcome.SUCCEEDED)
    views, _ = await receipt_page(store)
    assert [view.reservation_id for view in views] == [old.id]
    await transaction.commit()
    views, _ = await eventually(lambda: receipt_page(store), lambda found: len(found[0]) == 3)
    assert [view.reservation_id for view in views] == [other.id, row.id, old.id]


@pytest.mark.parametrize("commit", [True, False], ids=["commits", "rolls back"])
async def test_a_follower_of_the_ledger_skips_nothing(store: Store, commit: bool) -> None:
    """Who keeps asking with the last cursor gets every entry once, in order, though entries commit out of the order of their ids."""
    first = await refund(store, None)
    seen, cursor = await eventually(lambda: entries(store), lambda found: len(found[0]) == 1)
    holder = await store.another(store.database.api_url)
    transaction = holder.transaction()
    await transaction.start()
    late = store.world.row()
    await reserve(holder, [late])
    young = await refund(store, None)
    more, same = await entries(store, after=cursor)
    assert (more, same) == ([], cursor)
    await (transaction.commit() if commit else transaction.rollback())
    expected = [first.id, late.id, young.id] if commit else [first.id, young.id]

    async def follow() -> list[Entry]:
        nonlocal cursor
        new, cursor = await entries(store, after=cursor, limit=1)
        seen.extend(new)
        return seen

    await eventually(follow, lambda all_: len(all_) >= len(expected))
    assert [entry.reservation_id for entry in seen] == expected
    assert (await entries(store, after=cursor))[0] == []


async def test_the_ledger_is_narrowed_and_read_back_whole(store: Store) -> None:
    """Entries come back as they were appended, of one environment, one reservation or one kind."""
    world = store.world
    row = await refund(store)
    entry = NewEntry(
        organization_id=world.organization_id,
        environment_id=world.environment_id,
        kind="refused",
        actor_chain=["agent:tests"],
        decision={"decision": "deny"},
        run="thread-1",
        tool="stripe.refund.create",
        operation_key="refund:pi_1",
        input_digest=bytes(32),
        declared={"amount": 1},
        trace_id="t1",
        detail={"code": "denied"},
    )
    await ledger_entries.append(store.api, entry)
    await ledger_entries.append(store.api, replace(entry, environment_id=None, kind="scoped-key-created"))
    found, _ = await eventually(
        lambda: ledger_entries.list_(store.api, world.organization_id, None, after=None, limit=100),
        lambda found: len(found[0]) == 5,
    )
    assert [one.kind for one in found] == ["reserved", "claimed", "settled", "refused", "scoped-key-created"]
    assert {name: getattr(found[3], name) for name in NewEntry.__dataclass_fields__} == {
        name: getattr(entry, name) for name in NewEntry.__dataclass_fields__
    }
    assert [one.kind for one in (await entries(store))[0]] == ["reserved", "claimed", "settled", "refused"]
    assert [one.kind for one in (await entries(store, reservation_id=row.id))[0]] == ["reserved", "claimed", "settled"]
    assert [one.reservation_id for one in (await entries(store, kind="claimed"))[0]] == [row.id]
    assert (await ledger_entries.list_(store.api, uuid4(), None, after=None, limit=100))[0] == []


async def two_worlds(store: Store) -> tuple[NewReservation, NewReservation, dict[str, tuple[Any, Any]]]:
    """Two settled reservations that differ in everything a filter can name, and what to ask for each."""
    world, owner = store.world, store.owner
    project = await organizations.create_project(owner, world.organization_id, uuid4(), "other")
    connection = uuid4()
    await owner.execute(
        "insert into connections (organization_id, id, environment_id, provider, name, base_url) values ($1, $2, $3, 'stripe', 'second', 'http://x')",
        world.organization_id,
        connection,
        world.environment_id,
    )
    await tool_contracts.install(
        owner, world.organization_id, [("stripe.customer.create", 1, {"tool": "stripe.customer.create"})]
    )
    run = await runs.ensure(owner, world.organization_id, world.environment_id, project, "thread-2", uuid4())
    one = store.world.row(
        "refund:one",
        reference="order-1",
        run_id=world.run_id,
        lineage=world.run_id,
        trace_id="trace-1",
        call_id="call-1",
        step="step-1",
        model="model-1",
        actor_chain=["agent:root", "subagent:one"],
    )
    two = store.world.row(
        "refund:two",
        reference="order-2",
        run_id=run.id,
        lineage=run.id,
        trace_id="trace-2",
        call_id="call-2",
        step="step-2",
        model="model-2",
        actor_chain=["agent:root", "subagent:two"],
        project_id=project,
        connection_id=connection,
        tool="stripe.customer.create",
    )
    for number, row in ((1, one), (2, two)):
        await reserve(store.api, [row])
        settlement = settlement_of(await claimed(store.worker, row), Outcome.SUCCEEDED)
        assert settlement.receipt is not None
        receipt = replace(settlement.receipt, external_reference=f"re_{number}", provider_request_id=f"req_{number}")
        await settle(store.worker, [replace(settlement, receipt=receipt)], tries_max=TRIES_MAX)
    return (
        one,
        two,
        {
            "tool": (one.tool, two.tool),
            "connection": ("stripe", "second"),
            "run": ("thread-1", "thread-2"),
            "agent": ("subagent:one", "subagent:two"),
            "operation_key": ("refund:one", "refund:two"),
            "reference": ("order-1", "order-2"),
            "external_reference": ("re_1", "re_2"),
            "provider_request_id": ("req_1", "req_2"),
            "trace_id": ("trace-1", "trace-2"),
            "call_id": ("call-1", "call-2"),
            "step": ("step-1", "step-2"),
            "model": ("model-1", "model-2"),
            "project_id": (world.project_id, project),
        },
    )


async def test_each_filter_lets_its_own_through(store: Store) -> None:
    """Every filter narrows both lists to the rows that have what it names, alone and together; what nothing has finds nothing."""
    one, two, asked = await two_worlds(store)
    await all_listed(store, 2)
    await eventually(lambda: receipt_page(store), lambda found: len(found[0]) == 2)
    for name, (first, second) in asked.items():
        for value, row in ((first, one), (second, two)):
            filter = Filter(**{name: value})
            assert [view.id for view in (await page(store, filter))[0]] == [row.id], name
            assert [view.reservation_id for view in (await receipt_page(store, filter))[0]] == [row.id], name
        other: Any = uuid4() if name == "project_id" else "nothing"
        nothing = Filter(**{name: other})
        assert (await page(store, nothing))[0] == []
        assert (await receipt_page(store, nothing))[0] == []
    everything = Filter(**{name: first for name, (first, _) in asked.items()}, state="succeeded")
    assert [view.id for view in (await page(store, everything))[0]] == [one.id]
    assert (await page(store, replace(everything, model="model-2")))[0] == []
    assert {view.id for view in (await page(store, Filter(agent="agent:root")))[0]} == {one.id, two.id}
    names = set(Filter.__dataclass_fields__) - {"state", "from_", "to"}
    assert names == set(asked), "a filter without a test"


async def test_states_and_times_filter_too(store: Store) -> None:
    """A state is one of the eight; from is inclusive and to exclusive, of creation or of settlement."""
    rows = {outcome: await refund(store, outcome) for outcome in (None, *Outcome)}
    await all_listed(store, 6)
    ended: dict[str, list[Outcome | None]] = {
        "succeeded": [Outcome.SUCCEEDED],
        "failed": [Outcome.REJECTED],
        "in_doubt": [Outcome.UNKNOWN],
        "reserved": [None, Outcome.DEFERRED, Outcome.UNSENT],
        "executing": [],
        "voided": [],
    }
    for state, outcomes in ended.items():
        views, _ = await page(store, Filter(state=state))
        assert {view.id for view in views} == {rows[outcome].id for outcome in outcomes}
    views, _ = await page(store)
    third = views[2]
    assert [view.id for view in (await page(store, Filter(from_=third.created_at)))[0]] == [view.id for view in views[:3]]
    assert [view.id for view in (await page(store, Filter(to=third.created_at)))[0]] == [view.id for view in views[3:]]
    [receipt], _ = await eventually(lambda: receipt_page(store), lambda found: len(found[0]) == 1)
    assert len((await receipt_page(store, Filter(from_=receipt.settled_at)))[0]) == 1
    assert (await receipt_page(store, Filter(to=receipt.settled_at)))[0] == []


async def test_no_list_crosses_an_environment_or_an_organization(store: Store) -> None:
    """Rows of another environment, or of another organization, are in no list."""
    world = store.world
    await refund(store)
    await all_listed(store, 1)
    for organization, environment in ((world.organization_id, uuid4()), (uuid4(), world.environment_id)):
        assert (await reservations.list_(store.api, organization, environment, Filter(), after=None, limit=10))[0] == []
        assert (await receipts.list_(store.api, organization, environment, Filter(), after=None, limit=10))[0] == []
        assert (await ledger_entries.list_(store.api, organization, environment, after=None, limit=10))[0] == []


UUID_TEXT = "6b3a55e0-0d9c-4c1f-8d0e-0d6f4f0c7c11"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "1",
        "1.",
        ".1",
        "a.1",
        "1.a",
        "-1.1",
        "1.-1",
        "1.1.1",
        " 1.1",
        "1.1 ",
        "1.1\x00",
        "٣.1",
        "1.²",
        "9" * 19 + ".1",
        "1." + "9" * 19,
        f"1.{UUID_TEXT.upper()}",
        f"1.{{{UUID_TEXT}}}",
        f"1.{UUID_TEXT[:-1]}",
        f"{UUID_TEXT}.1",
        "1.1' or true",
    ],
)
def test_garbage_is_no_cursor(text: str) -> None:
    """Only what an earlier page gave is read as a cursor; everything else is refused with its path."""
    with pytest.raises(OutboxError) as refused:
        Cursor.read(text)
    assert (refused.value.problem.code, refused.value.path) == ("invalid-request", "cursor")


@pytest.mark.parametrize("text", ["0.0", "7.42", "999999999999999999.999999999999999999", f"7.{UUID_TEXT}"])
def test_a_cursor_is_read_back(text: str) -> None:
    """What a page gave is read back as it was."""
    assert Cursor.read(text).text() == text


async def test_a_cursor_of_another_list_is_refused(store: Store) -> None:
    """A cursor with a number is none of reservations or receipts, one with a UUID none of the ledger."""
    await refund(store)
    number, uuid = Cursor.read("7.42"), Cursor.read(f"7.{UUID_TEXT}")
    for wrong in (page(store, after=number), receipt_page(store, after=number), entries(store, after=uuid)):
        with pytest.raises(OutboxError) as refused:
            await wrong
        assert refused.value.path == "cursor"


async def test_a_view_says_all_that_an_answer_needs(store: Store) -> None:
    """One reservation comes back with its names, receipt, sealed texts and the times of its next check; nobody else's does."""
    world = store.world
    row = await refund(store, None, run_id=world.run_id, lineage=world.run_id, reference="order-1")
    view = await reservations.view(store.api, world.organization_id, row.id)
    assert view is not None
    assert (view.project, view.connection, view.provider, view.run, view.reference) == (
        "default",
        "stripe",
        "stripe",
        "thread-1",
        "order-1",
    )
    assert (view.recovery_due, view.next_check, view.receipt, view.queued_seconds) == (False, None, None, None)
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.UNKNOWN, recover_seconds=60.0, provider_seconds=0.5, sealed_failure=b"words")
    view = await reservations.view(store.api, world.organization_id, row.id)
    assert view is not None
    assert (view.recovery_due, view.sealed_failure, view.provider_seconds) == (True, b"words", 0.5)
    assert view.next_check is not None
    assert view.next_check > datetime.now(UTC) + timedelta(seconds=30)
    assert await reservations.states(store.api, [(world.organization_id, row.id)]) == {row.id: (view.state, True, "gateway")}
    await store.owner.execute("update sealed_results set expires_at = now() where reservation_id = $1", row.id)
    view = await reservations.view(store.api, world.organization_id, row.id)
    assert view is not None
    assert view.sealed_failure is None
    await settled(store.worker, attempt, Outcome.SUCCEEDED)
    view = await reservations.view(store.api, world.organization_id, row.id)
    assert view is not None
    assert view.receipt is not None
    assert (view.receipt.reservation_id, view.sealed_result, view.recovery_due) == (row.id, b"sealed result", False)
    assert await receipts.by_id(store.api, world.organization_id, view.receipt.id) == view.receipt
    assert await receipts.by_id(store.api, uuid4(), view.receipt.id) is None
    assert await reservations.view(store.api, uuid4(), row.id) is None


async def test_the_detail_has_attempts_requesters_and_evidence(store: Store) -> None:
    """Attempts in their order, the calls that met the reservation, and what else became known of its effect."""
    world = store.world
    row = await refund(store, None)
    first = await claimed(store.worker, row)
    await settled(store.worker, first, Outcome.UNKNOWN)
    second = await claimed(store.worker, row)
    await settled(store.worker, second, Outcome.SUCCEEDED, variance={"reported": {"amount": 1}})
    await settled(store.worker, first, Outcome.REJECTED)
    await tool_calls.insert(
        store.api,
        [
            tool_calls.NewToolCall(
                organization_id=world.organization_id,
                id=uuid4(),
                at=datetime.now(UTC),
                reservation_id=row.id,
                environment_id=world.environment_id,
                tool=row.tool,
                actor_id=world.actor_id,
                actor_chain=["agent:tests"],
                key_id="k",
                run=None,
                checkpoint=None,
                step=None,
                call_id="call-9",
                model=None,
                trace_id=None,
                answer_code="ok",
                answer_state="succeeded",
                replayed=True,
            )
        ],
    )
    attempts, requesters, evidence = await reservations.detail(store.api, world.organization_id, row.id)
    assert [(one.id, one.outcome, one.resend) for one in attempts] == [
        (first.attempt_id, "unknown", False),
        (second.attempt_id, "succeeded", True),
    ]
    assert [(one.call_id, one.replayed, one.actor_chain) for one in requesters] == [("call-9", True, ["agent:tests"])]
    assert [(one.kind, one.attempt_id) for one in evidence] == [("variance", second.attempt_id), ("evidence", first.attempt_id)]
    assert await reservations.detail(store.api, uuid4(), row.id) == ([], [], [])
