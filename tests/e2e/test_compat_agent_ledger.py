"""Programs of agent-ledger over the running product: one import changed, and what they recorded before brought over.

One `outbox up` serves the module; each test has a namespace of its own.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.support.agent_ledger_table import ENDED, AgentLedgerTable
from tests.support.outbox_up import OutboxUp, running

from agent_outbox import AsyncOutbox, Outbox
from agent_outbox.classify import NotSent
from agent_outbox.compat.agent_ledger import (
    OURS,
    THEIRS,
    CommitFailed,
    CommitSucceeded,
    ConcurrencyOptions,
    Effect,
    EffectConflictError,
    EffectDeniedError,
    EffectError,
    EffectFailedError,
    EffectInDoubtError,
    EffectLedger,
    EffectLedgerOptions,
    EffectStatus,
    EffectStoreError,
    EffectTimeoutError,
    LedgerHooks,
    OutboxStore,
    PostgresStore,
    Profile,
    RunOptions,
    StaleOptions,
    ToolCall,
)
from agent_outbox.compat.safeagent import SettlementRequestRegistry

OUTBOX = str(Path(sys.executable).with_name("outbox"))
CHARGED = {"status": "charged", "id": "ch_123"}
IMPATIENT = RunOptions(concurrency=ConcurrencyOptions(effect_timeout_s=0.5))


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
def namespace() -> str:
    """Of this test's own."""
    return f"test-{uuid4().hex}"


def call(amount: int = 1000, **changes: Any) -> ToolCall:
    """A charge that their README shows."""
    return ToolCall(
        **{"workflow_id": "order-123", "tool": "stripe.charge", "args": {"amount": amount, "currency": "usd"}} | changes
    )


class Program:
    """A program of theirs with its store and ledger, in a process of its own as far as the gateway can tell.

    Attributes:
        ran: the effects that its handler carried out.
    """

    def __init__(self, up: OutboxUp, profile: Profile) -> None:
        """Makes store and ledger."""
        self.client = AsyncOutbox(url=up.url, key=up.ready()["agent_key"])
        self.store = OutboxStore(self.client, profile=profile)
        self.ledger: EffectLedger[None] = EffectLedger(EffectLedgerOptions(store=self.store))
        self.ran: list[Effect] = []

    async def charge(self, effect: Effect) -> dict[str, str]:
        """The handler."""
        self.ran.append(effect)
        return CHARGED

    async def run(self, wanted: ToolCall, **options: Any) -> Any:
        """One run with that handler."""
        return await self.ledger.run(wanted, self.charge, **options)


async def refuse(effect: Effect) -> None:
    """A handler that is never reached."""
    raise AssertionError("the handler ran")


# The facade.


async def test_an_effect_happens_once_and_every_program_replays_it(up: OutboxUp, namespace: str) -> None:
    """The handler runs in the first call; later calls of any process get its result; the gateway has one receipt."""
    profile = replace(OURS, namespace=namespace, owner="payments")
    one, other = Program(up, profile), Program(up, profile)
    assert [await one.run(call()), await one.run(call()), await other.run(call())] == [CHARGED] * 3
    assert (len(one.ran), len(other.ran)) == (1, 0)
    found = await other.ledger.find_by_idem_key(other.ledger.idem_key(call()))
    assert found is not None
    assert (found.status, found.result, found.tool, found.workflow_id) == (
        EffectStatus.SUCCEEDED,
        CHARGED,
        "stripe.charge",
        "order-123",
    )
    [attempt] = up.attempts(UUID(found.id))
    assert attempt["outcome"] == "succeeded"
    [effect] = one.ran
    assert effect.provider_key
    reservation = await one.client.get(found.id)
    assert reservation.receipt is not None
    assert (reservation.owner, reservation.tool, reservation.receipt.confidence) == (
        "payments",
        "agent_ledger.stripe.charge",
        "asserted",
    )


async def test_one_of_many_runs_carries_it_out_and_the_others_wait(up: OutboxUp, namespace: str) -> None:
    """Twelve runs of four programs at once: one handler, twelve equal results."""
    programs = [Program(up, replace(OURS, namespace=namespace)) for _ in range(4)]
    results = await asyncio.gather(*[program.run(call()) for program in programs for _ in range(3)])
    assert results == [CHARGED] * 12
    assert sum(len(program.ran) for program in programs) == 1


async def test_other_arguments_under_one_key_are_refused_unless_the_profile_replays(up: OutboxUp, namespace: str) -> None:
    """Ours names the conflict and runs nothing; theirs answers with what the key stands for."""
    first, second = call(1000, idempotency_keys=["currency"]), call(9000, idempotency_keys=["currency"])
    strict = Program(up, replace(OURS, namespace=namespace))
    assert await strict.run(first) == CHARGED
    with pytest.raises(EffectConflictError):
        await strict.ledger.run(second, refuse)
    relaxed = Program(up, replace(THEIRS, namespace=namespace))
    assert await relaxed.ledger.run(second, refuse) == CHARGED


async def test_an_exception_leaves_a_doubt_unless_it_proves_something(up: OutboxUp, namespace: str) -> None:
    """A time-out after which nobody knows blocks the key; a refusal to connect frees it; both are raised as they were."""
    program = Program(up, replace(OURS, namespace=namespace))

    async def times_out(effect: Effect) -> None:
        raise TimeoutError("no answer")

    async def sends_nothing(effect: Effect) -> None:
        raise NotSent("the provider is down")

    with pytest.raises(TimeoutError, match="no answer"):
        await program.ledger.run(call(1), times_out)
    with pytest.raises(EffectInDoubtError) as doubt:
        await program.ledger.run(call(1), refuse)
    assert up.state(UUID(doubt.value.reservation_id)) == "in_doubt"
    assert isinstance(doubt.value, EffectTimeoutError)
    with pytest.raises(NotSent):
        await program.ledger.run(call(2), sends_nothing)
    assert await program.run(call(2)) == CHARGED


async def test_exceptions_are_final_failures_under_their_profile(up: OutboxUp, namespace: str) -> None:
    """As in agent-ledger: the next run raises EffectFailedError with the message and runs nothing."""
    program = Program(up, replace(THEIRS, namespace=namespace))

    async def times_out(effect: Effect) -> None:
        raise TimeoutError("no answer")

    with pytest.raises(TimeoutError):
        await program.ledger.run(call(), times_out)
    with pytest.raises(EffectFailedError, match="no answer"):
        await program.ledger.run(call(), refuse)


async def test_what_was_begun_is_committed_by_whoever_knows(up: OutboxUp, namespace: str) -> None:
    """`begin` holds the effect, `commit` settles it, from another store of the same agent too; a second commit is told no."""
    profile = replace(OURS, namespace=namespace)
    one, other = Program(up, profile), Program(up, profile)
    begun = await one.ledger.begin(call())
    assert (begun.idempotency_status, begun.cached) == ("fresh", False)
    with pytest.raises(EffectTimeoutError, match=r"0\.5s"):
        await other.ledger.run(call(), refuse, run_options=IMPATIENT)
    assert await other.ledger.commit(begun.effect.id, CommitSucceeded(result="done"))
    assert not await one.ledger.commit(begun.effect.id, CommitFailed(error=EffectError(message="late")))
    again = await one.ledger.begin(call())
    assert (again.cached, again.cached_result, again.effect.dedup_count >= 1) == (True, "done", True)


async def test_a_call_that_needs_an_approval_runs_nothing(up: OutboxUp, namespace: str) -> None:
    """Nobody can approve yet, so the call is refused and given back: the key is free for a call that needs none."""
    program = Program(up, replace(OURS, namespace=namespace))
    hooks = LedgerHooks(requires_approval=lambda asked: asked.args["amount"] > 500)
    with pytest.raises(EffectDeniedError, match="approval"):
        await program.ledger.run(call(), refuse, hooks=hooks)
    assert await program.run(call()) == CHARGED


async def test_a_transaction_of_the_programs_pool_is_its_own(up: OutboxUp, namespace: str) -> None:
    """What a program wrote in its transaction is rolled back; the effect that it asked for meanwhile stays recorded."""
    from psycopg_pool import AsyncConnectionPool

    table = AgentLedgerTable(up.ready()["postgres_url"])
    program = Program(up, replace(OURS, namespace=namespace))
    async with AsyncConnectionPool(table.dsn, open=False) as pool:
        store = PostgresStore(pool, client=program.client, profile=program.store.profile)
        ledger: EffectLedger[Any] = EffectLedger(EffectLedgerOptions(store=store))

        async def work() -> None:
            async with store.transaction() as tx:
                await tx.execute("create table orders (id integer)")
                assert await ledger.run(call(), program.charge, tx=tx) == CHARGED
                raise RuntimeError("rolled back on purpose")

        with pytest.raises(EffectStoreError, match="rolled back on purpose"):
            await work()
        async with pool.connection() as connection:
            [[orders, effects]] = await (
                await connection.execute("select to_regclass('orders')::text, (select count(*) from effects)")
            ).fetchall()
    assert (orders, effects) == (None, 0)
    assert await program.ledger.run(call(), refuse) == CHARGED


KILLED = """
    import asyncio, os, signal, sys
    from dataclasses import replace
    from agent_outbox.compat.agent_ledger import *

    async def handler(effect):
        print(effect.provider_key, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    async def main():
        profile = replace(OURS, namespace=sys.argv[1], retry_safe=sys.argv[2] == "retry-safe")
        ledger = EffectLedger(EffectLedgerOptions(store=MemoryStore(profile=profile)))
        call = ToolCall(workflow_id="order-123", tool="stripe.charge", args={"amount": 1000, "currency": "usd"})
        await ledger.run(call, handler, run_options=RunOptions(stale=StaleOptions(after_ms=1000)))

    asyncio.run(main())
"""


def killed_in_its_handler(up: OutboxUp, namespace: str, kind: str) -> str:
    """Runs a program that is killed in its handler; returns the provider key that the handler was given."""
    environment = {**os.environ, "OUTBOX_URL": up.url, "OUTBOX_KEY": up.ready()["agent_key"]}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), namespace, kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


async def test_a_killed_run_of_a_retry_safe_tool_is_taken_over_with_the_same_provider_key(up: OutboxUp, namespace: str) -> None:
    """The program is started again and finishes by itself: its handler is told that it repeats, and with which key."""
    provider_key = killed_in_its_handler(up, namespace, "retry-safe")
    program = Program(up, replace(OURS, namespace=namespace, retry_safe=True))
    assert await program.run(call(), run_options=RunOptions(stale=StaleOptions(after_ms=1000))) == CHARGED
    [effect] = program.ran
    assert (effect.provider_key, effect.recovering) == (provider_key, True)


async def test_a_killed_run_of_any_other_tool_is_left_to_a_person(up: OutboxUp, namespace: str) -> None:
    """Whoever calls again is told that nobody knows, and runs nothing."""
    killed_in_its_handler(up, namespace, "not")
    program = Program(up, replace(OURS, namespace=namespace))
    with pytest.raises(EffectInDoubtError):
        await program.ledger.run(call(), refuse)


def test_safeagents_registry_carries_out_a_request_id_once(up: OutboxUp) -> None:
    """A repeat is told that it is one and of the same execution; an exception after which nobody knows is not tried again."""
    with Outbox(url=up.url, key=up.ready()["agent_key"]) as outbox:
        registry, request_id = SettlementRequestRegistry(outbox=outbox), uuid4().hex
        sent: list[dict[str, str]] = []
        payload = {"to": "c123@example.com"}
        receipts = [
            registry.execute(request_id=request_id, action="send_invoice", payload=payload, execute_fn=sent.append)
            for _ in range(2)
        ]
        assert sent == [payload]
        assert [(one["ok"], one["reason"]) for one in receipts] == [(True, "executed"), (True, "dedup_same_request_id")]
        assert receipts[0]["execution_id"] == receipts[1]["execution_id"]

        def loses_its_answer() -> None:
            sent.append({})
            raise TimeoutError("no answer")

        reasons = [
            registry.execute(request_id=f"{request_id}-2", action="send_invoice", payload=None, execute_fn=loses_its_answer)[
                "reason"
            ]
            for _ in range(2)
        ]
        assert (reasons, len(sent)) == (["claim_pending"] * 2, 2)
        assert (
            registry.execute(request_id=" ", action="x", payload=None, execute_fn=loses_its_answer)["reason"]
            == "missing_request_id"
        )


# The import.


def bring(up: OutboxUp, table: AgentLedgerTable, namespace: str, *options: str) -> tuple[int, dict[str, Any]]:
    """`outbox import agent-ledger`; returns its exit code and what it counted."""
    command = [
        OUTBOX,
        "import",
        "agent-ledger",
        "--dsn",
        table.dsn,
        "--namespace",
        namespace,
    ]
    environment = {**os.environ, "OUTBOX_URL": up.url, "OUTBOX_KEY": up.ready()["agent_key"]}
    done = subprocess.run([*command, "--json", *options], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def counted(report: dict[str, Any]) -> tuple[int, ...]:
    """Succeeded, failed, doubts, already there, in conflict."""
    return tuple(report[name] for name in ("succeeded", "failed", "doubt", "already", "conflicts_count"))


async def test_what_was_recorded_is_brought_over_and_not_done_again(up: OutboxUp, namespace: str) -> None:
    """Successes replay, what was in progress or had failed is a doubt; a dry run writes nothing, a second import changes nothing."""
    table = AgentLedgerTable(up.ready()["postgres_url"])
    id = table.add(call(1), "succeeded", result=CHARGED)
    table.add(call(2), "succeeded", result=None)
    table.add(call(3), "processing")
    table.add(call(4), "failed", error={"message": "no answer", "code": None})
    assert counted(bring(up, table, namespace, "--dry-run")[1]) == (2, 0, 2, 0, 0)
    code, report = bring(up, table, namespace)
    assert (code, counted(report)) == (0, (2, 0, 2, 0, 0))
    code, report = bring(up, table, namespace)
    assert (code, counted(report)) == (0, (0, 0, 0, 4, 0))

    program = Program(up, replace(OURS, namespace=namespace))
    assert await program.ledger.run(call(1), refuse) == CHARGED
    assert await program.ledger.run(call(2), refuse) is None
    for amount in (3, 4):
        with pytest.raises(EffectInDoubtError):
            await program.ledger.run(call(amount), refuse)
    assert await program.run(call(5)) == CHARGED

    found = await program.ledger.find_by_idem_key(program.ledger.idem_key(call(1)))
    assert found is not None
    assert found.completed_at is not None
    assert (found.workflow_id, found.tool, found.completed_at.isoformat()) == ("order-123", "stripe.charge", ENDED)
    reservation = await program.client.get(found.id)
    assert reservation.receipt is not None
    assert reservation.receipt.confidence == "asserted"
    assert reservation.document["result"]["effect"]["effect_id"] == id


async def test_failures_that_meant_nothing_free_their_keys(up: OutboxUp, namespace: str) -> None:
    """Who vouches for it gets the keys back: the same call is carried out; a second import does not undo that."""
    table = AgentLedgerTable(up.ready()["postgres_url"])
    table.add(call(1), "failed", error={"message": "declined", "code": "card_declined"})
    assert counted(bring(up, table, namespace, "--failed", "failed")[1]) == (0, 1, 0, 0, 0)
    assert counted(bring(up, table, namespace, "--failed", "failed")[1]) == (0, 0, 0, 1, 0)
    with pytest.raises(EffectFailedError, match="declined") as failed:
        await Program(up, replace(THEIRS, namespace=namespace)).ledger.run(call(1), refuse)
    assert failed.value.code == "card_declined"
    assert await Program(up, replace(OURS, namespace=namespace)).run(call(1)) == CHARGED
    assert counted(bring(up, table, namespace, "--failed", "failed")[1]) == (0, 0, 0, 1, 0)


async def test_an_import_goes_on_where_it_was_left_and_learns_what_ended_since(up: OutboxUp, namespace: str) -> None:
    """An effect that was in progress at the first import and has succeeded since is settled by the second."""
    table = AgentLedgerTable(up.ready()["postgres_url"])
    id = table.add(call(1), "processing")
    assert counted(bring(up, table, namespace)[1]) == (0, 0, 1, 0, 0)
    table.change(id, "succeeded", CHARGED)
    table.add(call(2), "succeeded", result=CHARGED)
    assert counted(bring(up, table, namespace)[1]) == (2, 0, 0, 0, 0)
    program = Program(up, replace(OURS, namespace=namespace))
    assert [await program.ledger.run(call(amount), refuse) for amount in (1, 2)] == [CHARGED] * 2


async def test_a_conflict_is_listed_and_nothing_is_brought_over(up: OutboxUp, namespace: str) -> None:
    """The gateway has another result under one key: the import refuses with that effect's id, until told to leave it out."""
    program = Program(up, replace(OURS, namespace=namespace))
    assert await program.run(call(1)) == CHARGED
    table = AgentLedgerTable(up.ready()["postgres_url"])
    id = table.add(call(1), "succeeded", result={"status": "charged", "id": "ch_999"})
    table.add(call(2), "succeeded", result=CHARGED)
    code, report = bring(up, table, namespace)
    assert (code, report["refused"], [one["effect_id"] for one in report["conflicts"]]) == (1, True, [id])
    assert await program.ledger.find_by_idem_key(program.ledger.idem_key(call(2))) is None
    code, report = bring(up, table, namespace, "--skip-conflicts")
    assert (code, counted(report)) == (0, (1, 0, 0, 0, 1))
    assert await program.ledger.run(call(1), refuse) == CHARGED


async def test_refused_approvals_are_not_forgotten_in_silence(up: OutboxUp, namespace: str) -> None:
    """What a person refused would be allowed here, so the import stops until somebody says that this is known."""
    table = AgentLedgerTable(up.ready()["postgres_url"])
    table.add(call(1), "denied", error={"message": "too much"})
    table.add(call(2), "succeeded", result=CHARGED)
    code, report = bring(up, table, namespace)
    assert (code, report["refused"], report["left_out"], report["succeeded"]) == (1, True, 1, 1)
    program = Program(up, replace(OURS, namespace=namespace))
    assert await program.ledger.find_by_idem_key(program.ledger.idem_key(call(2))) is None
    code, report = bring(up, table, namespace, "--leave-out-approvals")
    assert (code, counted(report), report["left_out"]) == (0, (1, 0, 0, 0, 0), 1)
