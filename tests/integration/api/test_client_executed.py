"""`POST /v1/reservations` and what a client says of its attempt, over HTTP against a real Postgres."""

from typing import Any
from uuid import UUID, uuid4

import httpx2
from tests.support.api import Scene

INLINE_A = {"key": "charge:{order}", "class": "A", "owner": "billing", "receipt": "id"}
TOOL = "billing.charge.create"


def charge(order: str = "o-1", *, attempt_id: UUID | None = None, **members: Any) -> dict[str, Any]:
    """A client-executed call under an inline contract of class A."""
    body: dict[str, Any] = {"tool": TOOL, "input": {"order": order, "amount": 5}, "attempt_id": str(attempt_id or uuid4())}
    return {**body, "contract": INLINE_A, **members}


async def opened(client: httpx2.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    """Reserve, and expect to be given the attempt."""
    response = await client.post("/v1/reservations", json=body)
    assert response.status_code == 201, response.text
    document: dict[str, Any] = response.json()
    assert document["attempt"] is not None, document
    return document


async def settled(
    client: httpx2.AsyncClient, held: dict[str, Any], outcome: str = "succeeded", **members: Any
) -> httpx2.Response:
    """Settle the attempt of an answer of `opened`."""
    body = {"attempt_id": held["attempt"]["id"], "outcome": outcome, **members}
    return await client.post(f"/v1/reservations/{held['reservation_id']}/settle", json=body)


async def test_straight_path(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A caller is given the attempt, settles it, and whoever asks again is told what was done: one attempt, one receipt."""
    held = await opened(agent, charge())
    assert held["state"] == "executing"
    assert held["is_error"] is False
    assert held["operation_key"] == "charge:o-1"
    attempt = held["attempt"]
    assert attempt["number"] == 1
    assert attempt["recovering"] is False
    assert attempt["provider_key"].startswith("obx_")
    assert attempt["marker"].startswith("obm_")
    assert 0 < attempt["lease_seconds"] <= 10
    first = await settled(agent, held, result={"id": "ch_1", "lines": [1, 2]}, provider_request_id="req_9")
    assert first.status_code == 200, first.text
    told = first.json()
    assert told["state"] == "succeeded"
    assert told["receipt"]["external_reference"] == "ch_1"
    assert told["receipt"]["confidence"] == "confirmed"
    assert told["result"] == {"id": "ch_1", "lines": [1, 2]}
    again = await agent.post("/v1/reservations", json=charge())
    assert again.status_code == 200
    assert again.headers["outbox-replayed"] == "true"
    assert again.json()["receipt"] == told["receipt"]
    assert again.json()["result"] == told["result"]
    assert await scene.count("attempts") == 1
    assert await scene.count("receipts") == 1
    assert await scene.count("sealed_inputs") == 0
