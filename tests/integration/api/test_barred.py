"""Calls that something open stands in the way of: told so with a problem of their own, kept nothing of, and free later."""

from typing import Any
from uuid import UUID

import httpx2
from tests.support.api import Scene, problem_of
from tests.support.ledger import World, claimed, settled

from outbox_domain.reservation import Outcome
from outbox_providers.catalog import shipped
from outbox_store import tool_contracts

LABEL, TICKET = "sandbox.label.set", "sandbox.ticket.create"
NOW = {"Prefer": "respond-async"}


def label(value: str, reference: str, name: str = "colour") -> dict[str, Any]:
    """A tool call that sets a label."""
    return {"tool": LABEL, "input": {"name": name, "value": value}, "reference": reference}


def ticket(reference: str, run: str) -> dict[str, Any]:
    """A tool call that files a ticket in a run."""
    return {"tool": TICKET, "input": {"title": "t"}, "reference": reference, "run": run}


async def come_to(scene: Scene, id: str, outcome: Outcome) -> None:
    """A worker's one attempt at a reservation comes to this."""
    [row] = await scene.fetch("select * from reservations where {own} and id = $1", UUID(id))
    world = World(
        organization_id=scene.organization_id,
        project_id=scene.project_id,
        environment_id=scene.environment_id,
        connection_id=row["connection_id"],
        actor_id=scene.agent_id,
        run_id=row["run_id"],
    )
    async with scene.connection(scene.database.worker_url) as worker:
        await settled(worker, await claimed(worker, world.row(id=row["id"])), outcome)


async def test_an_object_that_is_busy(agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, scene: Scene) -> None:
    """Another operation on the same object is 409 `object-busy`: not sent, nothing reserved, wait; a duplicate joins the first."""
    first = await agent.post("/v1/tool-calls", json=label("red", "case-1"), headers=NOW)
    assert first.status_code == 202
    for client, path in ((agent, "/v1/tool-calls"), (admin, "/v1/tool-calls/resolve")):
        problem = problem_of(await client.post(path, json=label("blue", "case-2"), headers=NOW), 409, "object-busy")
        assert problem["message"].startswith("NOT SENT. Another operation on the same object is not finished.")
        assert (problem["retry"]["action"], problem["state"], problem["reservation_id"]) == ("wait", None, None)
        assert problem["open_reservation_id"] == first.json()["reservation_id"]
        assert problem["retry"]["url"] == f"/v1/reservations/{first.json()['reservation_id']}"
    again = await agent.post("/v1/tool-calls", json=label("red", "case-1"), headers=NOW)
    assert (again.status_code, again.json()["reservation_id"]) == (202, first.json()["reservation_id"])
    elsewhere = await agent.post("/v1/tool-calls", json=label("blue", "case-3", name="size"), headers=NOW)
    assert elsewhere.status_code == 202
    assert await scene.count("reservations") == 2


async def test_a_refusal_is_not_kept_for_the_request_key(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """The same request with the same `Idempotency-Key` is answered anew once the object is free."""
    first = (await agent.post("/v1/tool-calls", json=label("red", "case-1"), headers=NOW)).json()["reservation_id"]
    headers = NOW | {"Idempotency-Key": "request-1"}
    problem_of(await agent.post("/v1/tool-calls", json=label("blue", "case-2"), headers=headers), 409, "object-busy")
    await come_to(scene, first, Outcome.SUCCEEDED)
    assert (await agent.post("/v1/tool-calls", json=label("blue", "case-2"), headers=headers)).status_code == 202


async def test_a_run_that_is_blocked(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """While a doubt whose contract says so is open, a new call of its run is 409 `run-blocked`; joins and other runs are answered."""
    contract = next(each for each in shipped() if each.tool == TICKET)
    document = contract.document() | {"version": 2, "doubt": {"attention": "page", "blocks_run": True}}
    async with scene.connection() as connection:
        await tool_contracts.install(connection, scene.organization_id, [(TICKET, 2, document)])

    first = (await agent.post("/v1/tool-calls", json=ticket("case-1", "run-1"), headers=NOW)).json()["reservation_id"]
    await come_to(scene, first, Outcome.UNKNOWN)
    problem = problem_of(await agent.post("/v1/tool-calls", json=ticket("case-2", "run-1"), headers=NOW), 409, "run-blocked")
    assert problem["open_reservation_id"] == first
    assert problem["message"].startswith("NOT SENT. An earlier effect of this run is in doubt")
    joined = await agent.post("/v1/tool-calls", json=ticket("case-1", "run-1"), headers=NOW)
    assert joined.json()["code"] == "in-doubt"
    assert (await agent.post("/v1/tool-calls", json=ticket("case-3", "run-2"), headers=NOW)).status_code == 202
