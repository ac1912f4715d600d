"""Calls that are enqueued in the caller's own transaction, and the relay that submits them: against the running product.

The callers' database is one of its own beside the ledger's, on the same server.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from tests.support.outbox_up import PATHS, REFUND, OutboxUp, reference, refund, running
from tests.support.postgres import with_database
from tests.support.processes import ChildProcess, start_command, wait_until
from tests.support.scripted_gateway import RESERVATION_ID, Exchange, done, problem, says, serving, waiting

from agent_outbox import AsyncOutbox, Relay, ToolCall, enqueue, enqueue_ddl, errors

OUTBOX = str(Path(sys.executable).with_name("outbox"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutboxUp]:
    """One `outbox up` for the tests of this module."""
    with running(tmp_path_factory.mktemp("up")) as started:
        yield started


@pytest.fixture
def up(stack: OutboxUp) -> Iterator[OutboxUp]:
    """The stack, asked for its invariants when the test is over."""
    with stack.checked():
        yield stack


@pytest.fixture
def dsn(up: OutboxUp) -> Iterator[str]:
    """A database of the callers' own, with the table and one order."""
    name = f"callers_{uuid4().hex}"
    up.ledger.rows(f"create database {name}")
    made = with_database(up.ready()["postgres_url"], name)
    with psycopg.connect(made, autocommit=True) as connection:
        for _ in range(2):  # Running it again changes nothing.
            connection.execute(enqueue_ddl().encode())
        connection.execute("create table orders (id text primary key, refunded boolean not null)")
    yield made
    up.ledger.rows(f"drop database {name} with (force)")


@pytest.fixture
async def relay(up: OutboxUp, dsn: str) -> AsyncIterator[Relay]:
    """A relay in this process that a test drives step by step."""
    async with AsyncOutbox(url=up.url, key=up.ready()["agent_key"]) as outbox:
        made = Relay(dsn, outbox, lease=6)
        yield made
        await made.close()


def rows(dsn: str, query: str = "select * from agent_outbox_calls order by enqueued_at") -> list[dict[str, Any]]:
    """What stands in the callers' database."""
    with psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute(query.encode()).fetchall()


def refunds_of(up: OutboxUp, input: dict[str, object]) -> list[dict[str, Any]]:
    """The refunds that the provider has made of one payment."""
    return [one for one in up.sandbox.effects(PATHS[REFUND]) if one["fields"]["payment_intent"] == input["payment_intent"]]


async def write(library: str, dsn: str, call: ToolCall, *, commit: bool) -> str:
    """An order and its call in one transaction of that library, committed or rolled back; the id of the row."""
    insert = "insert into orders values ('8841', true) on conflict do nothing"
    if library == "psycopg":
        with psycopg.connect(dsn) as connection:
            connection.execute(insert)
            id = enqueue(connection, call)
            (connection.commit if commit else connection.rollback)()
        return id
    if library == "psycopg-async":
        async with await psycopg.AsyncConnection.connect(dsn) as by_psycopg:
            await by_psycopg.execute(insert)
            id = await enqueue(by_psycopg, call)
            await (by_psycopg.commit if commit else by_psycopg.rollback)()
        return id
    if library == "asyncpg-pool":
        async with asyncpg.create_pool(dsn, min_size=1) as pool, pool.acquire() as pooled:
            return await write_by_asyncpg(pooled, insert, call, commit=commit)
    by_asyncpg = await asyncpg.connect(dsn)
    try:
        return await write_by_asyncpg(by_asyncpg, insert, call, commit=commit)
    finally:
        await by_asyncpg.close()


async def write_by_asyncpg(connection: Any, insert: str, call: ToolCall, *, commit: bool) -> str:
    """The same in a transaction block."""
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(insert)
    id: str = await enqueue(connection, call)
    await (transaction.commit if commit else transaction.rollback)()
    return id


LIBRARIES = ("psycopg", "psycopg-async", "asyncpg", "asyncpg-pool")


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_commit_sends_once_and_a_rollback_nothing(up: OutboxUp, dsn: str, relay: Relay, library: str) -> None:
    """What a transaction enqueued is sent after its commit, once, with the receipt in the row; what was rolled back leaves no trace."""
    undone, done, case = refund(), refund(), reference()
    await write(library, dsn, ToolCall(tool=REFUND, input=undone, reference=case), commit=False)
    assert rows(dsn) == rows(dsn, "select * from orders") == []
    assert await relay.step() == 0
    id = await write(library, dsn, ToolCall(tool=REFUND, input=done, reference=case), commit=True)
    assert await relay.step() == 1
    assert await relay.step() == 0
    [row] = rows(dsn)
    [effect] = refunds_of(up, done)
    assert (str(row["id"]), row["tool"], row["state"], row["call"], row["code"]) == (id, REFUND, "done", None, None)
    assert row["receipt"]["external_reference"] == row["result"]["id"] == effect["id"]
    assert row["message"].startswith("Done. Refund ")
    assert refunds_of(up, undone) == []


async def test_nothing_is_sent_before_the_commit(up: OutboxUp, dsn: str, relay: Relay) -> None:
    """A relay that looks while the transaction is open finds nothing, and finds the call once it is committed."""
    input = refund()
    with psycopg.connect(dsn) as connection:
        enqueue(connection, ToolCall(tool=REFUND, input=input))
        assert await relay.step() == 0
        assert refunds_of(up, input) == []
        connection.commit()
    assert await relay.step() == 1
    assert len(refunds_of(up, input)) == 1


async def test_one_operation_enqueued_twice_is_one_effect(up: OutboxUp, dsn: str, relay: Relay) -> None:
    """Two transactions that ask for the same operation have two rows with one receipt, and the provider one refund."""
    input = refund()
    for _ in range(2):
        with psycopg.connect(dsn) as connection:
            enqueue(connection, ToolCall(tool=REFUND, input=input, reference="case-1"))
    assert await relay.step() == 2
    first, second = rows(dsn)
    assert first["receipt"] == second["receipt"] is not None
    assert len(refunds_of(up, input)) == 1


async def test_a_transaction_must_be_open(dsn: str) -> None:
    """Outside of a transaction, with a pool, and with what cannot be carried, enqueueing is refused and nothing is written."""
    call = ToolCall(tool=REFUND, input=refund())
    with psycopg.connect(dsn, autocommit=True) as connection:
        with pytest.raises(errors.SettingsError):
            enqueue(connection, call)
        with connection.transaction():
            enqueue(connection, call)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as by_psycopg:
        with pytest.raises(errors.SettingsError):
            await enqueue(by_psycopg, call)
    by_asyncpg = await asyncpg.connect(dsn)
    with pytest.raises(errors.SettingsError):
        await enqueue(by_asyncpg, call)
    await by_asyncpg.close()
    async with asyncpg.create_pool(dsn, min_size=1) as pool:
        with pytest.raises(TypeError):
            await enqueue(pool, call)
    with psycopg.connect(dsn) as connection:
        with pytest.raises(errors.MalformedArgumentsError):
            enqueue(connection, ToolCall(tool=REFUND, input={"amount": float("nan")}))
    assert len(rows(dsn)) == 1


async def test_what_is_refused_is_kept_for_a_person(up: OutboxUp, dsn: str, relay: Relay) -> None:
    """A refusal ends the row with its problem and the call, is listed, is never sent again by itself, and may be tried anew."""
    input = refund()
    up.sandbox.plan(PATHS[REFUND], "reject-402")
    id = await write("psycopg", dsn, ToolCall(tool=REFUND, input=input), commit=True)
    assert await relay.step() == 1
    [row] = rows(dsn)
    assert (row["state"], row["code"], json.loads(row["call"])["input"]) == ("refused", "provider-refused", input)
    assert await relay.step() == 0

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "COLUMNS": "200"}
        return subprocess.run([OUTBOX, "enqueue", *arguments, "--dsn", dsn], env=env, capture_output=True, text=True, timeout=60)

    listed = json.loads(command("list", "--json").stdout)
    assert (listed["id"], listed["code"]) == (id, "provider-refused")
    assert str(input["payment_intent"]) not in json.dumps(listed)
    assert "provider-refused" in command("list").stdout
    assert command("retry", str(uuid4())).returncode == 1
    assert command("retry", id).returncode == 0
    assert await relay.step() == 1
    [row] = rows(dsn)
    assert (row["state"], row["code"]) == ("done", None)
    assert len(refunds_of(up, input)) == 1
    assert command("list").stdout == "No calls.\n"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (problem("invalid-key", 401), "waiting"),
        (problem("unavailable", 503, action="same-request", after_seconds=60), "waiting"),
        (problem("quota-exceeded", 429, action="wait", after_seconds=60), "waiting"),
        (problem("policy-denied", 403), "refused"),
        (problem("out-of-scope", 403), "refused"),
        (problem("failed", 409, action="same-request", state="failed"), "refused"),
        (problem("not-enforced", 422, action="change-input"), "refused"),
    ],
    ids=lambda value: value["code"] if isinstance(value, dict) else value,
)
async def test_a_call_is_refused_only_for_what_is_said_of_it(dsn: str, answer: dict[str, Any], state: str) -> None:
    """What says that it may be asked again, or speaks of the relay's key, leaves the call waiting with a pause; the rest refuses it."""
    await write("psycopg", dsn, ToolCall(tool=REFUND, input=refund()), commit=True)
    with serving(says(answer["status"], answer)) as gateway:
        async with AsyncOutbox(url=gateway.url, key="obx_key") as outbox:
            relay = Relay(dsn, outbox, lease=3)
            assert await relay.step() == 1
            assert await relay.step() == 0
            await relay.close()
    [row] = rows(dsn)
    assert (row["state"], row["code"]) == (state, answer["code"])


@pytest.mark.parametrize("call", ["{", "[]", '"text"', '{"tool": "t"}', '{"tool": "t", "input": {}, "of_a_later_version": 1}'])
async def test_a_row_that_holds_no_call_stands_in_nobodys_way(dsn: str, call: str) -> None:
    """A row that this version cannot read waits with its problem, and every other row taken up with it is submitted."""
    for _ in range(2):
        await write("psycopg", dsn, ToolCall(tool=REFUND, input=refund()), commit=True)
    rows(
        dsn,
        f"update agent_outbox_calls set call = '{call}' where enqueued_at = (select min(enqueued_at) from agent_outbox_calls) returning id",
    )
    with serving(says(200, done())) as gateway:
        async with AsyncOutbox(url=gateway.url, key="obx_key") as outbox:
            relay = Relay(dsn, outbox, lease=3)
            assert await relay.step() == 2
            await relay.close()
    assert [(row["state"], row["code"]) for row in rows(dsn)] == [("waiting", "not-a-tool-call"), ("done", None)]


@pytest.mark.parametrize(
    ("late", "stands"),
    [
        ((403, problem("policy-denied", 403)), ("waiting", None)),
        ((429, problem("quota-exceeded", 429, action="wait", after_seconds=60)), ("waiting", None)),
        ((200, done()), ("done", None)),
    ],
    ids=["refusal", "leave-to-try-again", "success"],
)
async def test_a_relay_that_lost_its_row_may_only_tell_a_success(
    dsn: str, late: tuple[int, Any], stands: tuple[str, None]
) -> None:
    """An answer that comes after another relay has taken the row up decides nothing unless it is a success."""
    await write("psycopg", dsn, ToolCall(tool=REFUND, input=refund()), commit=True)
    asked, go = threading.Event(), threading.Event()

    def first_late(exchange: Exchange) -> None:
        if asked.is_set():
            exchange.answer(202, waiting(60.0))
        else:
            asked.set()
            go.wait(30)
            exchange.answer(*late)

    with serving(first_late) as gateway:
        async with AsyncOutbox(url=gateway.url, key="obx_key") as outbox:
            first, second = Relay(dsn, outbox, lease=45), Relay(dsn, outbox, lease=3)
            stepping = asyncio.ensure_future(first.step())
            assert await asyncio.to_thread(asked.wait, 30)
            rows(dsn, "update agent_outbox_calls set due_at = now() returning id")  # As when the first one's lease is over.
            assert await second.step() == 1
            go.set()
            await stepping
            await first.close()
            await second.close()
    [row] = rows(dsn)
    assert ((row["state"], row["code"]), row["refusals"]) == (stands, 0)
    if stands[0] == "waiting":
        assert row["reservation_id"] == RESERVATION_ID


async def test_an_earlier_transaction_that_commits_later_is_not_passed_over(dsn: str) -> None:
    """A call of a transaction that was open while later ones committed and were submitted is submitted after its own commit."""
    with serving(says(200, done())) as gateway:
        async with AsyncOutbox(url=gateway.url, key="obx_key") as outbox:
            relay = Relay(dsn, outbox, lease=3)
            with psycopg.connect(dsn) as early:
                first = enqueue(early, ToolCall(tool=REFUND, input=refund()))
                later = await write("psycopg", dsn, ToolCall(tool=REFUND, input=refund()), commit=True)
                assert await relay.step() == 1
                assert [(row["id"], row["state"]) for row in map(_with_text_id, rows(dsn))] == [(later, "done")]
            assert await relay.step() == 1
            await relay.close()
    assert {(row["id"], row["state"]) for row in map(_with_text_id, rows(dsn))} == {(first, "done"), (later, "done")}


def _with_text_id(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "id": str(row["id"])}


def test_a_call_is_written_whatever_the_encoding_of_the_connection(dsn: str) -> None:
    """Text that a connection's encoding has no characters for reaches the row unchanged."""
    input = {"note": "20 € 🙂 \x00"}
    for encoding in ("latin1", "sql_ascii", "utf8"):
        with psycopg.connect(dsn, client_encoding=encoding) as connection:
            enqueue(connection, ToolCall(tool=REFUND, input=input))
    assert [json.loads(row["call"])["input"] for row in rows(dsn)] == [input] * 3


# The relay as a process.


@contextlib.contextmanager
def relaying(up: OutboxUp, dsn: str, folder: Path, name: str, *options: str) -> Iterator[ChildProcess]:
    """`outbox relay` as a process of its own."""
    env = {"OUTBOX_URL": up.url, "OUTBOX_KEY": up.ready()["agent_key"], "OUTBOX_RELAY_DSN": dsn}
    process = start_command([OUTBOX, "relay", "--poll", "0.05", *options], env=env, folder=folder, name=name)
    try:
        yield process
    finally:
        process.end()


def until_done(dsn: str, count: int, deadline_seconds: float = 60) -> None:
    """Waits until so many rows are done."""

    def done() -> bool:
        return len(rows(dsn, "select 1 as one from agent_outbox_calls where state = 'done'")) == count

    wait_until(done, deadline_seconds=deadline_seconds, what=f"{count} rows that are done")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_relay_that_dies_under_way_sends_once(up: OutboxUp, dsn: str, tmp_path: Path, number: signal.Signals) -> None:
    """A relay is killed, or stopped past its lease, while the provider works: another one finds the call done, with one effect."""
    input = refund()
    up.sandbox.plan(PATHS[REFUND], "delay", delay_seconds=2)
    received = up.received(REFUND)
    with relaying(up, dsn, tmp_path, "first", "--lease", "3") as first:
        asyncio.run(write("psycopg", dsn, ToolCall(tool=REFUND, input=input, reference="case-1"), commit=True))
        up.wait_received(REFUND, received + 1)
        first.send(number)
        assert rows(dsn)[0]["state"] == "waiting"
        with relaying(up, dsn, tmp_path, "second", "--lease", "3"):
            until_done(dsn, 1)
        if number is signal.SIGSTOP:
            first.send(signal.SIGCONT)
            first.send(signal.SIGTERM)
            assert first.wait(deadline_seconds=30) == 0
    assert len(refunds_of(up, input)) == 1
    assert rows(dsn)[0]["receipt"]["external_reference"] == refunds_of(up, input)[0]["id"]


@pytest.mark.slow
def test_relays_share_many_calls(up: OutboxUp, dsn: str, tmp_path: Path) -> None:
    """Three relays, one of them killed in the middle, submit 200 calls: each has one effect and one receipt."""
    inputs = [refund() for _ in range(200)]
    with psycopg.connect(dsn) as connection:
        for input in inputs:
            enqueue(connection, ToolCall(tool=REFUND, input=input))
    with contextlib.ExitStack() as relays:
        first, *_ = (relays.enter_context(relaying(up, dsn, tmp_path, f"relay-{n}", "--lease", "5")) for n in range(3))
        wait_until(
            lambda: any(row["state"] == "done" for row in rows(dsn)), deadline_seconds=60, what="the first call that is done"
        )
        first.send(signal.SIGKILL)
        until_done(dsn, 200, 120)
    payments = {row["fields"]["payment_intent"]: row["id"] for row in up.sandbox.effects(PATHS[REFUND])}
    made = [
        row
        for row in up.sandbox.effects(PATHS[REFUND])
        if row["fields"]["payment_intent"] in {i["payment_intent"] for i in inputs}
    ]
    assert len(made) == 200
    receipts = {row["receipt"]["external_reference"] for row in rows(dsn)}
    assert receipts == {payments[input["payment_intent"]] for input in inputs}


def test_a_gateway_that_comes_back_is_asked_again(up: OutboxUp, dsn: str, tmp_path: Path) -> None:
    """With the API away the call waits and says why; it is done once the API is back. A relay that is told to end ends in order."""
    input = refund()
    with serving(says(200, b"This is not the gateway.")) as nobody:
        env = {"OUTBOX_URL": nobody.url, "OUTBOX_KEY": up.ready()["agent_key"], "OUTBOX_RELAY_DSN": dsn}
        process = start_command([OUTBOX, "relay", "--poll", "0.05", "--lease", "3"], env=env, folder=tmp_path, name="lost")
        asyncio.run(write("psycopg", dsn, ToolCall(tool=REFUND, input=input), commit=True))
        wait_until(lambda: rows(dsn)[0]["code"] == "unexpected-answer", deadline_seconds=30, what="a try that failed")
        process.send(signal.SIGTERM)
        assert process.wait(deadline_seconds=30) == 0
    with relaying(up, dsn, tmp_path, "found", "--lease", "3") as relay:
        until_done(dsn, 1)
        relay.send(signal.SIGTERM)
        assert relay.wait(deadline_seconds=30) == 0
    assert len(refunds_of(up, input)) == 1


async def test_the_relay_works_with_either_library(up: OutboxUp, dsn: str, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where asyncpg is not installed the relay uses psycopg; where neither is, it says what to install."""
    found = {"asyncpg": None, "psycopg": object()}
    monkeypatch.setattr("agent_outbox.relay.importlib.util.find_spec", lambda name: found[name])
    input = refund()
    await write("psycopg", dsn, ToolCall(tool=REFUND, input=input), commit=True)
    async with AsyncOutbox(url=up.url, key=up.ready()["agent_key"]) as outbox:
        by_psycopg = Relay(dsn, outbox)
        assert await by_psycopg.step() == 1
        await by_psycopg.close()
        assert rows(dsn)[0]["state"] == "done"
        found["psycopg"] = None
        with pytest.raises(errors.SettingsError, match="relay"):
            Relay(dsn, outbox)
