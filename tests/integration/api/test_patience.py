"""What one caller may hold of a process, and for how long. Postgres: the session's; no Redis."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
from tests.support.api import Scene, executing_all, problem_of, refund, start_api, until
from tests.support.processes import ChildProcess


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
