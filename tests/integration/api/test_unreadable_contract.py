"""A contract that this version of the program cannot read, as a roll-back leaves it behind. Postgres: the session's; no Redis."""

from collections.abc import Callable
from pathlib import Path

from tests.support.api import Scene, executing_all, problem_of, refund, start_api
from tests.support.processes import ChildProcess


async def test_contract_of_a_newer_version(start_module: Callable[..., ChildProcess], scene: Scene, tmp_path: Path) -> None:
    """Its own tool is unknown and sends nothing; the other tools are called, and what it did before is still shown."""
    ticket = {"tool": "sandbox.ticket.create", "input": {"title": "Door"}, "reference": "case-1"}
    first = start_api(start_module, scene.database, scene.wrapping_key, tmp_path, name="before")
    async with executing_all(scene):
        async with first.client(scene.agent_key) as agent:
            done = await agent.post("/v1/tool-calls", json=ticket)
            assert done.status_code == 200, done.text
        async with scene.connection() as connection:
            await connection.execute(
                "update tool_contracts set document = document || '{\"of_a_newer_version\": 1}' "
                "where tool = 'sandbox.ticket.create' and organization_id = $1",
                scene.organization_id,
            )
        second = start_api(start_module, scene.database, scene.wrapping_key, tmp_path, name="after")
        async with second.client(scene.agent_key) as agent:
            problem_of(await agent.post("/v1/tool-calls", json=ticket), 404, "unknown-tool")
            assert (await agent.post("/v1/tool-calls", json=refund("pi_other"))).status_code == 200
            listed = await agent.get("/v1/reservations")
            assert listed.status_code == 200
            assert done.json()["reservation_id"] in [item["reservation_id"] for item in listed.json()["items"]]
            looked_at = await agent.get(f"/v1/reservations/{done.json()['reservation_id']}")
            assert looked_at.json()["receipt"] == done.json()["receipt"]
    assert "of_a_newer_version" not in second.process.log()
