"""Postgres away: 503, nothing sent; the same call succeeds afterwards; who was waiting is not told that nothing happened."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from tests.support import postgres
from tests.support.api import RunningApi, Scene, executing_all, make_scene, problem_of, refund, start_api, until, until_waiting
from tests.support.processes import ChildProcess


@pytest.fixture
async def own(
    stoppable_postgres: postgres.StoppablePostgres, start_module: Callable[..., ChildProcess], tmp_path: Path
) -> tuple[Scene, RunningApi]:
    """An organization on a server that may be stopped, and its API."""
    database = stoppable_postgres.server.migrated_database()
    scene = await make_scene(database)
    return scene, start_api(start_module, database, scene.wrapping_key, tmp_path)


async def test_calls_are_refused_while_postgres_is_away_and_succeed_afterwards(
    own: tuple[Scene, RunningApi], stoppable_postgres: postgres.StoppablePostgres
) -> None:
    """503 `unavailable` with Retry-After and nothing reserved, on every route; the process stays ready; then the same call works."""
    scene, api = own
    async with api.client(scene.agent_key) as agent, api.client(scene.admin_key) as admin:
        async with executing_all(scene):
            before = await agent.post("/v1/tool-calls", json=refund("pi_before"))
        assert before.status_code == 200
        stoppable_postgres.stop_immediately()
        for _ in range(3):
            refused = await agent.post("/v1/tool-calls", json=refund())
            problem = problem_of(refused, 503, "unavailable")
            assert int(refused.headers["retry-after"]) >= 1
            assert problem["message"] == "NOT SENT. Try the same call in 2 s; that is safe."
            assert problem["retry"]["action"] == "same-request"
            keyed = await agent.post("/v1/tool-calls", json=refund("pi_keyed"), headers={"Idempotency-Key": "k"})
            problem_of(keyed, 503, "unavailable")
        for path in ("/v1/reservations", "/v1/receipts", f"/v1/receipts/{before.json()['receipt']['id']}"):
            problem_of(await agent.get(path), 503, "unavailable")
        problem_of(await admin.post("/v1/scoped-keys", json={"environment": "sandbox"}), 503, "unavailable")
        assert (await agent.get("/readyz")).status_code == (await agent.get("/healthz")).status_code == 200
        stoppable_postgres.start()

        async def back() -> bool:
            return (await agent.get("/v1/reservations")).status_code == 200

        await until(back, deadline_seconds=15, what="the API to find Postgres again")
        assert await scene.count("reservations") == 1
        async with executing_all(scene):
            after = await agent.post("/v1/tool-calls", json=refund())
            again = await agent.post("/v1/tool-calls", json=refund("pi_before"))
            keyed = await agent.post("/v1/tool-calls", json=refund("pi_keyed"), headers={"Idempotency-Key": "k"})
    assert (after.status_code, after.json()["replayed"]) == (200, False)
    assert again.json()["receipt"] == before.json()["receipt"]
    assert keyed.status_code == 200
    assert await scene.count("reservations") == 3


async def test_a_waiting_caller_is_answered_truly(
    own: tuple[Scene, RunningApi], stoppable_postgres: postgres.StoppablePostgres
) -> None:
    """Postgres goes away under a waiting caller: 202 at its deadline, never "nothing was sent"; one who waits on gets the receipt."""
    scene, api = own
    async with api.client(scene.agent_key) as agent:
        short = asyncio.create_task(agent.post("/v1/tool-calls", json=refund(), headers={"Prefer": "wait=3"}))
        long = asyncio.create_task(agent.post("/v1/tool-calls", json=refund(), headers={"Prefer": "wait=40"}))
        await until_waiting(api, 2)
        stoppable_postgres.stop_immediately()
        response = await short
        assert response.status_code == 202, response.text
        assert response.json()["state"] == "reserved"
        assert response.json()["message"].startswith("Not finished.")
        stoppable_postgres.start()

        async def back() -> bool:
            try:
                return await scene.count("reservations") == 1
            except (OSError, asyncpg.PostgresError):
                return False

        await until(back, deadline_seconds=15)
        async with executing_all(scene):
            response = await long
    assert (response.status_code, response.json()["state"]) == (200, "succeeded")
