"""What one caller may hold of a process, and for how long. Postgres: the session's; no Redis."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import asyncpg
import httpx2
import pytest
from tests.support.api import RunningApi, Scene, executing_all, problem_of, refund, start_api, until
from tests.support.processes import ChildProcess

from outbox_api.api import Api
from outbox_api.routes.lists import listing
from outbox_domain.errors import OutboxError


async def test_more_callers_than_may_wait(start_module: Callable[..., ChildProcess], scene: Scene, tmp_path: Path) -> None:
    """Whoever comes when as many wait as may is answered at once with what is known, by each way of waiting; nothing is lost."""
    api = start_api(start_module, scene.database, scene.wrapping_key, tmp_path, OUTBOX_WAITING_CALLERS_MAX="2")
    async with api.client(scene.agent_key) as agent:
        held = [asyncio.create_task(agent.post("/v1/tool-calls", json=refund(f"pi_{name}"))) for name in "ab"]

        async def both() -> bool:
            return await scene.count("reservations") == 2

        await until(both)
        began = time.monotonic()
        third = await agent.post("/v1/tool-calls", json=refund("pi_c"), headers={"Prefer": "wait=20"})
        looked_at = await agent.get(third.headers["Location"], params={"wait": "20"})
        joined = await agent.post("/v1/tool-calls", json=refund("pi_c"), headers={"Prefer": "wait=20"})
        assert time.monotonic() - began < 5.0
        assert [answer.status_code for answer in (third, looked_at, joined)] == [202, 200, 202]
        async with executing_all(scene):
            assert [answer.status_code for answer in await asyncio.gather(*held)] == [200, 200]
        assert (await agent.post("/v1/tool-calls", json=refund("pi_c"))).status_code == 200


async def test_body_that_does_not_come(start_module: Callable[..., ChildProcess], scene: Scene, tmp_path: Path) -> None:
    """A body that trickles in is given up after its time, with an answer; the process goes on."""
    api = start_api(start_module, scene.database, scene.wrapping_key, tmp_path, OUTBOX_BODY_SECONDS_MAX="0.5")

    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" "
            await asyncio.sleep(0.1)

    async with api.client(scene.agent_key) as agent:
        began = time.monotonic()
        try:
            answer = await agent.post("/v1/tool-calls", content=trickle(), headers={"Content-Type": "application/json"})
        except httpx2.TransportError:
            pass  # It was answered and closed before everything was written, which it may.
        else:
            problem_of(answer, 422, "invalid-request")
        assert time.monotonic() - began < 10.0
        async with executing_all(scene):
            assert (await agent.post("/v1/tool-calls", json=refund("pi_d"))).status_code == 200


async def test_lists_leave_room_for_tool_calls(api: RunningApi, scene: Scene) -> None:
    """As many lists are read at once as may be, and no more: whoever comes beyond them waits a while, then is told to come again."""
    async with asyncpg.create_pool(scene.database.api_url, min_size=1, max_size=2) as pool:
        few = SimpleNamespace(pool=pool, lists=asyncio.Semaphore(1))
        async with listing(cast(Api, few)):
            with pytest.raises(OutboxError) as refused:
                async with listing(cast(Api, few), wait_seconds_max=0.05):
                    pass
        assert (refused.value.code, refused.value.retry.action) == ("rate-limited", "wait")
        async with listing(cast(Api, few), wait_seconds_max=0.05) as connection:
            assert await connection.fetchval("select 1") == 1
    async with api.client(scene.agent_key) as agent:
        answers = await asyncio.gather(*(agent.get(f"/v1/{path}") for path in ("reservations", "receipts") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}


async def test_refusals_of_postgres_end_no_process(
    start_module: Callable[..., ChildProcess], scene: Scene, tmp_path: Path
) -> None:
    """A lock that is not to be had in time, where keys are renewed and reservations are looked at: noted, and tried again."""
    database_name = scene.database.api_url.rpartition("/")[2]
    async with scene.connection() as holder, scene.connection() as other:
        await other.execute(f"alter role outbox_api in database \"{database_name}\" set lock_timeout = '50ms'")
        try:
            api = start_api(start_module, scene.database, scene.wrapping_key, tmp_path)
            async with api.client(scene.agent_key) as agent:
                call = agent.post("/v1/tool-calls", json=refund("pi_locked"), headers={"Idempotency-Key": "k"})
                waiting = asyncio.create_task(call)

                async def reserved() -> bool:
                    return await scene.count("reservations") == 1

                await until(reserved)
                async with holder.transaction():
                    await holder.execute("lock table request_keys, open_reservations in access exclusive mode")
                    noted = {"request-keys-not-renewed", "waiters-not-looked"}
                    api.process.wait_for(lambda: all(name in api.process.log() for name in noted), deadline_seconds=10.0)
                async with executing_all(scene):
                    assert (await waiting).status_code == 200
        finally:
            await other.execute(f'alter role outbox_api in database "{database_name}" reset lock_timeout')
