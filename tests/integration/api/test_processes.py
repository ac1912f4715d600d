"""Several API processes side by side: one effect whoever is asked, killed or stopped; waiters woken by notices."""

import asyncio
import signal
import socket
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.support import processes
from tests.support.api import RunningApi, Scene, bodies, executing_all, refund, stand_in, start_api, until
from tests.support.postgres import Database
from tests.support.processes import ChildProcess

from outbox_runtime.sealing import WrappingKey
from outbox_runtime.settings import RedisSettings, read
from outbox_runtime.wakeups import RedisWakeups


@pytest.fixture
async def pair(scene: Scene, start_module: Callable[..., ChildProcess], tmp_path: Path) -> tuple[RunningApi, RunningApi]:
    """Two API processes on one port."""
    first = start_api(start_module, scene.database, scene.wrapping_key, tmp_path, name="first")
    port = int(first.url.rsplit(":", 1)[1])
    return first, start_api(start_module, scene.database, scene.wrapping_key, tmp_path, name="second", port=port)


async def answered(api: RunningApi) -> int:
    """How many tool calls a process has answered."""
    async with httpx2.AsyncClient() as client:
        lines = (await client.get(f"{api.metrics_url}/metrics")).text.splitlines()
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("outbox_calls_total{")))


async def test_two_hundred_callers_one_effect(scene: Scene, pair: tuple[RunningApi, RunningApi]) -> None:
    """200 identical calls at once over two processes: one reservation, 200 equal receipts, one answer that is not a replay."""
    async with executing_all(scene, pause_seconds=0.2), pair[0].client(scene.agent_key) as agent:
        responses = await asyncio.gather(*(agent.post("/v1/tool-calls", json=refund(reference="case-1")) for _ in range(200)))
    assert {response.status_code for response in responses} == {200}
    assert len({response.content[response.content.index(b'"receipt"') :] for response in responses}) == 1
    assert len(bodies(responses, "result")) == 1
    assert sum(not response.json()["replayed"] for response in responses) == 1
    assert await scene.count("reservations") == await scene.count("receipts") == await scene.count("attempts") == 1
    shares = [await answered(api) for api in pair]
    assert sum(shares) == 200
    assert min(shares) > 0, "both processes took their part of the connections"


async def test_a_killed_process_harms_nobody_else(scene: Scene, pair: tuple[RunningApi, RunningApi]) -> None:
    """SIGKILL of one of two while callers wait: its process id is the one that works, the same calls made again get the receipt."""
    async with pair[0].client(scene.agent_key) as agent:
        waiting = [asyncio.create_task(agent.post("/v1/tool-calls", json=refund())) for _ in range(20)]
        await until(lambda: scene.fetch("select from reservations where {own}"))
        pair[0].process.kill(signal.SIGKILL)
        assert processes.gone([pair[0].process.pid])
        async with executing_all(scene):
            results = await asyncio.gather(*waiting, return_exceptions=True)
            responses = [result for result in results if isinstance(result, httpx2.Response)]
            again = len(results) - len(responses)
            responses += [await agent.post("/v1/tool-calls", json=refund()) for _ in range(again)]
    assert len(responses) == 20
    assert {response.status_code for response in responses} == {200}
    assert len(bodies(responses, "receipt")) == 1
    assert await scene.count("reservations") == 1


async def test_it_ends_in_order(scene: Scene, start_module: Callable[..., ChildProcess], tmp_path: Path) -> None:
    """SIGTERM while a caller waits: it is answered with what is known, what it asked is recorded, and the process exits 0."""
    api = start_api(start_module, scene.database, scene.wrapping_key, tmp_path, name="ending")
    async with api.client(scene.agent_key) as agent:
        waiting = asyncio.create_task(agent.post("/v1/tool-calls", json=refund()))
        await until(lambda: scene.fetch("select from reservations where {own}"))
        await asyncio.sleep(0.1)
        api.process.send(signal.SIGTERM)
        response = await waiting
        assert (response.status_code, response.json()["state"]) == (202, "reserved")
    assert await asyncio.to_thread(api.process.wait) == 0
    assert await scene.count("tool_calls") == 1
    assert "Traceback" not in api.process.log()
    assert '"level":"error"' not in api.process.log()


@pytest.mark.parametrize("with_redis", [False, True])
async def test_waiters_are_woken_by_notices(
    scene: Scene, start_module: Callable[..., ChildProcess], tmp_path: Path, request: pytest.FixtureRequest, with_redis: bool
) -> None:
    """A settled reservation reaches its waiting caller by a notice, not by the next look (times are printed, not asserted)."""
    variables = {"OUTBOX_REDIS_URL": request.getfixturevalue("redis_url")} if with_redis else {}
    api = start_api(start_module, scene.database, scene.wrapping_key, tmp_path, name="woken", **variables)
    loop = asyncio.get_running_loop()
    seconds = []
    async with api.client(scene.agent_key) as agent, stand_in(scene) as worker:
        wakeups = await _wakeups(variables)
        for number in range(15):
            call = refund(f"pi_{number}")
            waiting = asyncio.create_task(agent.post("/v1/tool-calls", json=call))

            async def reserved(number: int = number) -> UUID | None:
                rows = await scene.fetch("select id from reservations where {own} and operation_key = $1", f"refund:pi_{number}")
                return rows[0]["id"] if rows else None

            reservation_id = await until(reserved)
            attempt = await worker.claim(reservation_id)
            # Long enough that the safety net looks rarely: it would take half a second or more.
            await asyncio.sleep(0.8)
            await worker.settle(attempt)
            settled_at = loop.time()
            if wakeups is not None:
                await wakeups.announce([reservation_id])
            assert (await waiting).status_code == 200
            seconds.append(loop.time() - settled_at)
        if wakeups is not None:
            await wakeups.aclose()
    how = "Redis" if with_redis else "NOTIFY"
    print(
        f"\nfrom settlement to the answer, by {how}: median {statistics.median(seconds) * 1000:.1f} ms, most {max(seconds) * 1000:.1f} ms"
    )
    assert statistics.median(seconds) < 0.4


async def _wakeups(variables: dict[str, str]) -> RedisWakeups | None:
    """The worker's side of Redis notices; None where NOTIFY (which the stand-in sends) is all there is."""
    if "OUTBOX_REDIS_URL" not in variables:
        return None
    return RedisWakeups(read(RedisSettings, variables))


async def test_metrics_and_probes(api: RunningApi, agent: httpx2.AsyncClient) -> None:
    """Metrics and probes stand on a port of their own; an unknown tool is no label, and no identifier is one."""
    await agent.post("/v1/tool-calls", json={"tool": "made-up.by.a.caller", "input": {}})
    await agent.post("/v1/tool-calls", json=refund("pi_metric"), headers={"Prefer": "respond-async"})
    async with httpx2.AsyncClient() as client:
        metrics = (await client.get(f"{api.metrics_url}/metrics")).text
        assert (await client.get(f"{api.metrics_url}/readyz")).status_code == 200
    assert 'outbox_calls_total{code="unknown-tool",tool="unknown"}' in metrics
    assert 'outbox_calls_total{code="not-final",tool="stripe.refund.create"}' in metrics
    assert "outbox_reserve_seconds_bucket" in metrics
    assert "made-up" not in metrics
    assert "pi_metric" not in metrics
    assert (await agent.get("/metrics")).status_code == 404


async def test_a_lost_commit_answer_is_asked_for_again(api: RunningApi, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """The connection of a T1 is cut while it waits: the same row is sent again and is one reservation, with an ordinary answer."""
    async with scene.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        # Any T1 of this database waits behind this lock; there is no other test at work in it at the same time.
        await connection.execute("lock table sealed_inputs in share row exclusive mode")
        call = asyncio.create_task(agent.post("/v1/tool-calls", json=refund(), headers={"Prefer": "respond-async"}))
        waiting = """
            select pid from pg_stat_activity
            where usename = 'outbox_api' and datname = current_database() and wait_event_type = 'Lock' and query like '%not_after_seconds%'
        """
        [row] = await until(lambda: scene.fetch(waiting), what="a T1 that waits")
        await scene.fetch("select pg_terminate_backend($1)", row["pid"])
        [again] = await until(lambda: _other(scene, waiting, row["pid"]), what="the T1 sent again")
        assert again["pid"] != row["pid"]
        await transaction.rollback()
    response = await call
    assert (response.status_code, response.json()["replayed"]) == (202, False), response.text
    assert await scene.count("reservations") == await scene.count("sealed_inputs") == await scene.count("ledger_entries") == 1


async def _other(scene: Scene, query: str, process_id: int) -> list[dict[str, Any]]:
    return [row for row in await scene.fetch(query) if row["pid"] != process_id]


def test_a_wrong_setting_ends_the_process_with_a_sentence(
    shared_database: Database, wrapping_key: WrappingKey, start_module: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    """A missing or wrong key, a wrong password, a database without schema, a port that is taken: exit 1 and one sentence."""
    good = {"OUTBOX_POSTGRES_URL": shared_database.api_url, "OUTBOX_WRAPPING_KEY": wrapping_key.to_base64()}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        cases = {
            "no-key": ({"OUTBOX_WRAPPING_KEY": ""}, "OUTBOX_WRAPPING_KEY (or OUTBOX_WRAPPING_KEY_FILE) is not set."),
            "short-key": (
                {"OUTBOX_WRAPPING_KEY": "c2hvcnQ="},
                "OUTBOX_WRAPPING_KEY is wrong: a wrapping key is 32 bytes, this one is 5.",
            ),
            "password": (
                {"OUTBOX_POSTGRES_URL": shared_database.api_url.replace("outbox_api:", "outbox_api:not-")},
                "Postgres refused the connection (InvalidPasswordError); see OUTBOX_POSTGRES_URL.",
            ),
            "port": ({"OUTBOX_PORT": str(taken.getsockname()[1])}, "The API cannot listen on 127.0.0.1, port"),
        }
        started = {name: start_module("outbox_api", name=name, env={**good, **change}) for name, (change, _) in cases.items()}
        for name, (_, sentence) in cases.items():
            assert started[name].wait() == 1
            last = started[name].log().strip().splitlines()[-1]
            assert last.startswith(sentence), (name, last)
            assert wrapping_key.to_base64() not in started[name].log()
