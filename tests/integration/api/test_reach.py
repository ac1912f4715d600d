"""How far a key reaches, by every route and every id that it may have heard of. Postgres: the session's; no Redis.

What a key does not reach looks exactly like what does not exist.
"""

from typing import Any
from uuid import uuid4

import httpx2
import pytest
from tests.support.api import RunningApi, Scene, executing_all, make_scene, new_id, problem_of, refund

from outbox_store import organizations

ECHO = {"tool": "sandbox.echo", "input": {"x": 1}, "run": "thread-1"}


async def _done(api: RunningApi, scene: Scene, key: str, call: dict[str, object]) -> dict[str, object]:
    async with executing_all(scene), api.client(key) as client:
        answer = await client.post("/v1/tool-calls", json=call)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


async def _assert_unseen(api: RunningApi, key: str, done: dict[str, object]) -> None:
    """Neither the reservation nor its receipt is told to this key, and the answer is that of an id that names nothing."""
    receipt = done["receipt"]
    assert isinstance(receipt, dict)
    async with api.client(key) as client:
        for path, id in (("reservations", done["reservation_id"]), ("receipts", receipt["id"])):
            met = await client.get(f"/v1/{path}/{id}")
            problem_of(met, 404, "not-found")
            assert met.content == (await client.get(f"/v1/{path}/{uuid4()}")).content
            assert (
                met.content
                == (await client.get(f"/v1/{path}/{id}", params={"wait": "1"} if path == "reservations" else {})).content
            )
            listed = await client.get(f"/v1/{path}")
            assert listed.status_code == 200
            assert str(id) not in listed.text
            for name, value in (("operation_key", done["operation_key"]), ("external_reference", receipt["external_reference"])):
                assert (await client.get(f"/v1/{path}", params={name: str(value)})).json()["items"] == []


async def test_other_organization(api: RunningApi, scene: Scene) -> None:
    """An owner of another organization sees nothing by any id, list, filter or ledger, and the same call there is another effect."""
    done = await _done(api, scene, scene.agent_key, refund("pi_reach"))
    other = await make_scene(scene.database, scene.wrapping_key)
    await _assert_unseen(api, other.admin_key, done)
    await _assert_unseen(api, other.agent_key, done)
    async with api.client(other.admin_key) as client:
        entries = await client.get("/v1/ledger-entries", params={"reservation_id": str(done["reservation_id"])})
        assert entries.json()["items"] == []
        resolved = await client.post("/v1/tool-calls/resolve", json=refund("pi_reach"))
        assert (resolved.status_code, resolved.json()["state"]) == (200, None)
    again = await _done(api, other, other.agent_key, refund("pi_reach"))
    assert again["reservation_id"] != done["reservation_id"]


@pytest.mark.parametrize(
    "bound",
    [{"providers": ["sandbox"]}, {"tools": ["stripe.customer.*"]}, {"run": "another"}, {"project": "other"}],
    ids=["providers", "tools", "run", "project"],
)
async def test_narrower_key(api: RunningApi, scene: Scene, bound: dict[str, Any]) -> None:
    """The same agent with a key bound elsewhere sees nothing of it, and neither does a member's key that is bound so."""
    done = await _done(api, scene, scene.agent_key, refund("pi_narrow"))
    if "project" in bound:
        async with scene.connection() as connection:
            bound = {"project_id": await organizations.create_project(connection, scene.organization_id, new_id(), "other")}
    await _assert_unseen(api, await scene.key(**bound), done)
    await _assert_unseen(api, await scene.key(actor_id=scene.admin_id, **bound), done)


@pytest.mark.parametrize("dimension", ["run", "project"])
async def test_request_key_of_a_key_bound_elsewhere(api: RunningApi, scene: Scene, dimension: str) -> None:
    """Two keys of one agent that act in different runs or projects: a request key never hands one of them the other's answer."""
    headers = {"Idempotency-Key": "one"}
    call = {"tool": "sandbox.echo", "input": {"x": dimension}}
    if dimension == "run":
        first, second = await scene.key(run="run-1"), await scene.key(run="run-2")
    else:
        call = refund("pi_bound")
        async with scene.connection() as connection:
            project_id = await organizations.create_project(connection, scene.organization_id, new_id(), "other")
        first, second = await scene.key(), await scene.key(project_id=project_id)
    async with executing_all(scene), api.client(first) as one, api.client(second) as other:
        done = await one.post("/v1/tool-calls", json=call, headers=headers)
        assert done.status_code == 200, done.text
        problem_of(await other.post("/v1/tool-calls", json=call, headers=headers), 422, "request-key-reused")
        own = await other.post("/v1/tool-calls", json=call)
        assert own.json()["reservation_id"] != done.json()["reservation_id"]


@pytest.mark.parametrize("bound", [{"providers": ["stripe"]}, {"tools": ["stripe.*"]}], ids=["providers", "tools"])
async def test_request_key_of_a_narrower_key(api: RunningApi, scene: Scene, bound: dict[str, Any]) -> None:
    """A stored answer is told only to a key that reaches as far as the one it was given to."""
    headers = {"Idempotency-Key": "one"}
    async with executing_all(scene), api.client(scene.agent_key) as wide, api.client(await scene.key(**bound)) as narrow:
        done = await wide.post("/v1/tool-calls", json=ECHO, headers=headers)
        assert done.status_code == 200, done.text
        refused = await narrow.post("/v1/tool-calls", json=ECHO, headers=headers)
        assert refused.status_code in (403, 422)
        assert str(done.json()["reservation_id"]) not in refused.text


async def test_renewed_key_keeps_request_keys(api: RunningApi, scene: Scene) -> None:
    """A new key of the same agent that reaches as far gets the stored answer: rotation breaks no retry."""
    headers = {"Idempotency-Key": "one"}
    async with executing_all(scene), api.client(scene.agent_key) as old, api.client(await scene.key()) as new:
        done = await old.post("/v1/tool-calls", json=refund("pi_rotated"), headers=headers)
        again = await new.post("/v1/tool-calls", json=refund("pi_rotated"), headers=headers)
    assert (again.status_code, again.content) == (200, done.content)


async def test_said_twice(api: RunningApi, scene: Scene) -> None:
    """A header that says who asks, or in which run, counts once: said twice, the request is refused by every route."""
    both = [("Authorization", f"Bearer {scene.agent_key}"), ("Authorization", "Bearer obx_other")]
    async with httpx2.AsyncClient(base_url=api.url, timeout=30.0) as client:
        for method, path in (("GET", "/v1/reservations"), ("GET", "/v1/receipts"), ("POST", "/v1/tool-calls")):
            body = None if method == "GET" else refund("pi_twice")
            problem_of(await client.request(method, path, headers=both, json=body), 401, "invalid-key")
        for name in ("Outbox-Run", "Outbox-Checkpoint"):
            twice = [("Authorization", f"Bearer {scene.agent_key}"), (name, "a"), (name, "b")]
            for path in ("/v1/tool-calls", "/v1/tool-calls/resolve"):
                refused = await client.post(path, headers=twice, json={**ECHO, "run": None})
                # An agent may not resolve at all, which is told first.
                assert (
                    refused.status_code == (422 if path == "/v1/tool-calls" else 403) or refused.json()["code"] == "invalid-input"
                )
    assert await scene.count("reservations") == 0


async def test_times_at_the_edge_of_the_calendar(api: RunningApi, scene: Scene) -> None:
    """A time that has no counterpart in UTC is refused like any other that is none."""
    edge = "9999-12-31T23:59:59-14:00"
    async with api.client(scene.admin_key) as admin:
        for path in ("reservations", "receipts"):
            problem_of(await admin.get(f"/v1/{path}", params={"to": edge}), 422, "invalid-request")
            problem_of(await admin.get(f"/v1/{path}", params={"from": "0001-01-01T00:00:00+14:00"}), 422, "invalid-request")
        wish = {"environment": scene.environment, "actor": {"kind": "agent", "name": "a"}, "expires_at": edge}
        problem_of(await admin.post("/v1/scoped-keys", json=wish), 422, "invalid-request")
