"""Lists: filters, cursors that skip nothing, and how far a key may read."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx2
from tests.support.api import RunningApi, Scene, executing_all, make_scene, problem_of, refund

from outbox_runtime.sealing import WrappingKey
from outbox_store import actors


async def pages(client: httpx2.AsyncClient, path: str, **parameters: Any) -> list[dict[str, Any]]:
    """Every item of a list, page after page."""
    items: list[dict[str, Any]] = []
    while True:
        response = await client.get(path, params=parameters)
        assert response.status_code == 200, response.text
        document = response.json()
        assert document.keys() == {"items", "next_cursor"}
        items += document["items"]
        if not document["items"] or document["next_cursor"] is None:
            return items
        parameters["cursor"] = document["next_cursor"]


async def test_filters_narrow_and_unknown_ones_are_refused(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Every filter finds its row and nothing else; an unknown parameter is refused, because ignoring it would list too much."""
    trace_id = uuid4().hex
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    call = refund("pi_1", reference="case-1", run="thread-1", step="7", call_id="call_9", model="vendor/model", checkpoint="c3")
    async with executing_all(scene):
        settled = (await agent.post("/v1/tool-calls", json=call, headers=headers)).json()
        other = {"tool": "sandbox.echo", "input": {}, "run": "thread-2"}
        await agent.post("/v1/tool-calls", json=other)
    await agent.post("/v1/tool-calls", json=refund("pi_open"), headers={"Prefer": "respond-async"})
    past, future = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)
    finding = {
        "tool": "stripe.refund.create",
        "connection": "stripe",
        "run": "thread-1",
        "operation_key": "refund:pi_1:case-1",
        "reference": "case-1",
        "external_reference": settled["receipt"]["external_reference"],
        "trace_id": trace_id,
        "call_id": "call_9",
        "step": "7",
        "model": "vendor/model",
    }
    for path, name in (("/v1/reservations", "reservation_id"), ("/v1/receipts", "reservation_id")):
        for filter, value in finding.items():
            found = await pages(agent, path, **{filter: value, "state": "succeeded"})
            assert [item[name] for item in found] == [settled["reservation_id"]], (path, filter)
            assert await pages(agent, path, **{filter: "nothing-has-this"}) == []
        assert len(await pages(agent, path, agent="agent:refunds")) >= 2
        assert len(await pages(agent, path, provider_request_id="req_1")) == 2
        assert len(await pages(agent, path, **{"from": past.isoformat(), "to": future.isoformat()})) >= 2
        assert await pages(agent, path, **{"from": future.isoformat()}) == []
        for parameters, named in (({"colour": "red"}, "colour"), ({"limit": 0}, "limit"), ({"limit": "x"}, "limit")):
            assert problem_of(await agent.get(path, params=parameters), 422, "invalid-request")["path"] == named
        for parameters in ({"cursor": "x"}, {"from": "yesterday"}, {"state": "done"}, {"tool": ""}):
            problem_of(await agent.get(path, params=parameters), 422, "invalid-request")
    assert [item["state"] for item in await pages(agent, "/v1/reservations", state="reserved")] == ["reserved"]
    [receipt] = await pages(agent, "/v1/receipts", run="thread-1")
    assert receipt == settled["receipt"]


async def test_pages_are_complete_and_in_order(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Page by page, newest first: every reservation once."""
    for number in range(7):
        await agent.post("/v1/tool-calls", json=refund(f"pi_{number}"), headers={"Prefer": "respond-async"})
    listed = await pages(agent, "/v1/reservations", limit=3)
    assert [item["operation_key"] for item in listed] == [f"refund:pi_{number}" for number in reversed(range(7))]


async def test_a_cursor_never_skips_a_late_commit(admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A T1 held open across a page: a follower of the ledger sees its entries once it has committed, and none twice."""
    async with scene.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "insert into ledger_entries (organization_id, environment_id, kind, actor_chain, detail) values ($1, $2, 'held-open', '[]', '{}')",
            scene.organization_id,
            scene.environment_id,
        )
        for number in range(3):
            await agent.post("/v1/tool-calls", json=refund(f"pi_{number}"), headers={"Prefer": "respond-async"})
        first = (await admin.get("/v1/ledger-entries", params={"limit": 2})).json()
        assert first["items"] == []
        await transaction.commit()
    seen: list[dict[str, Any]] = []
    cursor = first["next_cursor"]
    deadline = asyncio.get_running_loop().time() + 10
    while len(seen) < 4 and asyncio.get_running_loop().time() < deadline:
        parameters = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = (await admin.get("/v1/ledger-entries", params=parameters)).json()
        seen += page["items"]
        cursor = page["next_cursor"]
    assert sorted(entry["kind"] for entry in seen) == ["held-open", "reserved", "reserved", "reserved"]
    assert len({entry["id"] for entry in seen}) == 4
    beyond = (await admin.get("/v1/ledger-entries", params={"cursor": cursor})).json()
    assert (beyond["items"], beyond["next_cursor"]) == ([], cursor)


async def test_a_ledger_entry_shows_no_body(admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """An entry has digests and declared measures; filters by reservation and kind work; what it says is what is stored."""
    async with executing_all(scene):
        settled = (await agent.post("/v1/tool-calls", json=refund(reference="case-1"))).json()
        await agent.post("/v1/tool-calls", json=refund("pi_other"))
    of = {"reservation_id": settled["reservation_id"]}
    entries = await pages(admin, "/v1/ledger-entries", **of, limit=1)
    assert [entry["kind"] for entry in entries] == ["reserved", "claimed", "settled"]
    reserved, _, closed = entries
    assert (reserved["from"], reserved["to"]) == (None, "reserved")
    assert (closed["from"], closed["to"], closed["outcome"]) == ("executing", "succeeded", "succeeded")
    assert reserved["declared"]["amount"] == 1200
    assert reserved["declared"]["payment_intent"].startswith("hmac-sha256:")
    assert reserved["input_digest"] == settled["input_digest"]
    assert len(await pages(admin, "/v1/ledger-entries", kind="settled")) == 2


async def test_an_agent_reads_what_it_caused(
    api: RunningApi, agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, scene: Scene
) -> None:
    """An agent lists its own reservations and receipts; a member who may read everything lists all; the ledger is not an agent's."""
    async with scene.connection() as connection:
        other_id = await actors.ensure(connection, scene.organization_id, uuid4(), "agent", "other")
    async with executing_all(scene), api.client(await scene.key(actor_id=other_id)) as other:
        mine = (await agent.post("/v1/tool-calls", json=refund("pi_mine"))).json()
        theirs = (await other.post("/v1/tool-calls", json=refund("pi_theirs"))).json()
        assert [item["reservation_id"] for item in await pages(agent, "/v1/reservations")] == [mine["reservation_id"]]
        assert [item["id"] for item in await pages(other, "/v1/receipts")] == [theirs["receipt"]["id"]]
        problem_of(await agent.get("/v1/reservations", params={"agent": "agent:other"}), 403, "out-of-scope")
        joined = await agent.get(f"/v1/reservations/{theirs['reservation_id']}")
        assert joined.status_code == 200
    assert len(await pages(admin, "/v1/reservations")) == 2
    assert len(await pages(admin, "/v1/receipts", agent="agent:other")) == 1
    problem_of(await agent.get("/v1/ledger-entries"), 403, "out-of-scope")


async def test_a_narrow_key_reads_narrowly(
    api: RunningApi, agent: httpx2.AsyncClient, scene: Scene, wrapping_key: WrappingKey
) -> None:
    """A key bound to a run or to tools reads nothing outside of them, by list or by id; nothing crosses organizations."""
    async with executing_all(scene):
        refunded = (await agent.post("/v1/tool-calls", json=refund(run="thread-1"))).json()
        echoed = (await agent.post("/v1/tool-calls", json={"tool": "sandbox.echo", "input": {}, "run": "thread-2"})).json()
    async with api.client(await scene.key(run="thread-2")) as bound:
        assert [item["reservation_id"] for item in await pages(bound, "/v1/reservations")] == [echoed["reservation_id"]]
        problem_of(await bound.get("/v1/reservations", params={"run": "thread-1"}), 403, "out-of-scope")
        problem_of(await bound.get(f"/v1/reservations/{refunded['reservation_id']}"), 404, "not-found")
    async with api.client(await scene.key(tools=["stripe.*"])) as bound:
        assert [item["id"] for item in await pages(bound, "/v1/receipts")] == [refunded["receipt"]["id"]]
        problem_of(await bound.get(f"/v1/receipts/{echoed['receipt']['id']}"), 404, "not-found")
    async with api.client(await scene.key(tools=["stripe.*"], actor_id=scene.admin_id)) as bound:
        problem_of(await bound.get("/v1/ledger-entries"), 403, "out-of-scope")
    stranger = await make_scene(scene.database, wrapping_key)
    async with api.client(stranger.admin_key) as client:
        assert await pages(client, "/v1/reservations") == []
        problem_of(await client.get(f"/v1/reservations/{refunded['reservation_id']}"), 404, "not-found")
        problem_of(await client.get(f"/v1/receipts/{refunded['receipt']['id']}"), 404, "not-found")
