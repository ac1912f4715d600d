"""Each refusal: its status, its text, and what is recorded of it (`interfaces.md` section 10)."""

import time
from typing import Any

import httpx2
import pytest
from tests.support.api import RunningApi, Scene, executing_all, make_scene, problem_of, refund, until
from tests.support.postgres import Database

from outbox_runtime.sealing import WrappingKey


async def recorded(scene: Scene, *, calls: int) -> list[dict[str, Any]]:
    """The rows of `tool_calls`, once there are as many as expected; then nothing may be missing or left over."""

    async def enough() -> bool:
        return await scene.count("tool_calls") >= calls

    await until(enough, what=f"{calls} rows of tool_calls")
    rows = await scene.fetch("select * from tool_calls where {own} order by at, id")
    assert len(rows) == calls
    return rows


async def nothing_reserved(scene: Scene) -> None:
    """No reservation, no sealed input, no entry of one."""
    assert await scene.count("reservations") == await scene.count("sealed_inputs") == 0


async def test_a_request_without_a_valid_key_is_only_counted(api: RunningApi, scene: Scene) -> None:
    """401 for a missing, damaged, unknown, expired or revoked key, with no row anywhere and nothing of the key repeated."""
    damaged = scene.agent_key[:-1] + ("0" if scene.agent_key[-1] != "0" else "1")
    expired, revoked, unknown = await scene.key(), await scene.key(), await scene.key()
    for change, key in (("expires_at = now()", expired), ("revoked_at = now()", revoked)):
        await scene.fetch(f"update scoped_keys set {change} where id = $1", key.split("_")[2])
    await scene.fetch("delete from scoped_keys where id = $1", unknown.split("_")[2])
    cases: list[tuple[str | None, str]] = [
        (None, "invalid-key"),
        ("nonsense", "invalid-key"),
        (damaged, "invalid-key"),
        (unknown, "invalid-key"),
        (expired, "key-expired"),
        (revoked, "key-revoked"),
    ]
    for presented, code in cases:
        async with api.client(presented) as client:
            response = await client.post("/v1/tool-calls", json=refund())
            problem = problem_of(response, 401, code)
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert response.headers["server-timing"]
            assert problem["retry"]["action"] == "never"
            assert presented is None or presented not in response.text
            problem_of(await client.get("/v1/reservations"), 401, code)
    await nothing_reserved(scene)
    assert await scene.count("tool_calls") == await scene.count("ledger_entries") == 0
    async with httpx2.AsyncClient() as client:
        counted = (await client.get(f"{api.metrics_url}/metrics")).text
    assert 'outbox_refusals_total{code="invalid-key"}' in counted


async def test_a_revoked_key_ends_within_a_second(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A key that is in use is refused at most a second after it was revoked."""
    assert (await agent.get("/v1/reservations")).status_code == 200
    await scene.fetch("update scoped_keys set revoked_at = now() where actor_id = $1", scene.agent_id)

    async def refused() -> bool:
        return (await agent.get("/v1/reservations")).status_code == 401

    await until(refused, deadline_seconds=1.5, what="the refusal")


async def test_scope_unknown_tool_and_invalid_input_leave_a_row_and_no_entry(
    api: RunningApi, agent: httpx2.AsyncClient, scene: Scene
) -> None:
    """403, 404 and 422 before an effect is named: one row of `tool_calls` each, no ledger entry, no reservation, no run."""
    narrow = await scene.key(tools=["sandbox.*"], run="thread-1")
    async with api.client(narrow) as client:
        out = problem_of(await client.post("/v1/tool-calls", json=refund()), 403, "out-of-scope")
        other_run = {"tool": "sandbox.echo", "input": {}, "run": "thread-2"}
        run = problem_of(await client.post("/v1/tool-calls", json=other_run), 403, "out-of-scope")
    assert (out["dimension"], run["dimension"]) == ("tool", "run")
    unknown = await agent.post("/v1/tool-calls", json={"tool": "stripe.refund.make", "input": {}})
    problem = problem_of(unknown, 404, "unknown-tool")
    assert problem["message"].startswith(
        "NOT SENT. There is no tool stripe.refund.make. Nearest you may call: stripe.refund.create"
    )
    assert 1 <= len(problem["nearest"]) <= 5
    connection = await agent.post("/v1/tool-calls", json=refund(connection="elsewhere"))
    assert problem_of(connection, 404, "unknown-connection")["path"] == "$.connection"
    for call, path in (
        (refund(amount=0), "$.input.amount"),
        ({"tool": "stripe.refund.create", "input": {"payment_intent": "pi_1"}}, "$.input.amount"),
        (refund(payment_intent="ch_1"), "$.input.payment_intent"),
        ({"tool": "stripe.refund.create", "input": {"payment_intent": "pi_1", "amount": 1, "x": 1}}, "$.input.x"),
        (refund(surplus=1), "$.surplus"),
        (refund(reference=""), "$.reference"),
        (refund(occurrence=0), "$.occurrence"),
        (refund(run="new-run", amount=0), "$.input.amount"),
        ({"tool": "stripe.refund.create"}, "$.input"),
        ({"input": {}}, "$.tool"),
        ([1], "$"),
    ):
        problem = problem_of(await agent.post("/v1/tool-calls", json=call), 422, "invalid-input")
        assert problem["path"] == path
        assert problem["message"].startswith(f"NOT SENT. {path}: expected ")
        assert (problem["state"], problem["reservation_id"]) == (None, None)
    ticket = {"tool": "sandbox.ticket.create", "input": {"title": "broken"}}
    assert problem_of(await agent.post("/v1/tool-calls", json=ticket), 422, "missing-key-field")["path"] == "$.reference"
    rows = await recorded(scene, calls=16)
    assert [row["answer_code"] for row in rows[:4]] == ["out-of-scope", "out-of-scope", "unknown-tool", "unknown-connection"]
    assert rows[3]["tool"] == "stripe.refund.create"
    assert rows[2]["tool"] == "stripe.refund.make"
    assert await scene.count("ledger_entries") == await scene.count("runs") == 0
    await nothing_reserved(scene)


async def test_a_nearest_tool_is_one_the_key_reaches(api: RunningApi, scene: Scene) -> None:
    """What an unknown tool is likened to is never a tool that the key does not reach."""
    async with api.client(await scene.key(tools=["sandbox.*"])) as client:
        response = await client.post("/v1/tool-calls", json={"tool": "stripe.refund.creat", "input": {}})
    nearest = problem_of(response, 404, "unknown-tool")["nearest"]
    assert nearest
    assert all(name.startswith("sandbox.") for name in nearest)


async def test_occurrences_need_a_person(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """`occurrence` above 1 is review-required: a row and an entry; the same again within a minute is counted on the row."""
    for _ in range(3):
        problem = problem_of(await agent.post("/v1/tool-calls", json=refund(occurrence=2)), 403, "review-required")
        assert problem["retry"]["action"] == "ask-human"
        assert problem["decision"] == {"decision": "review", "rule": "occurrence"}
        assert problem["operation_key"] == "refund:pi_1"
        assert (problem["state"], problem["reservation_id"]) == (None, None)
    problem_of(await agent.post("/v1/tool-calls", json=refund("pi_2", occurrence=2)), 403, "review-required")
    rows = await recorded(scene, calls=2)
    assert [(row["answer_code"], row["repeats"]) for row in rows] == [("review-required", 2), ("review-required", 0)]
    entries = await scene.fetch("select kind, decision, operation_key, detail from ledger_entries where {own} order by id")
    assert [(entry["kind"], entry["operation_key"]) for entry in entries] == [
        ("refused", "refund:pi_1"),
        ("refused", "refund:pi_2"),
    ]
    await nothing_reserved(scene)


@pytest.mark.parametrize("declared", [None, "deny"])
async def test_an_environment_that_denies(
    shared_database: Database, wrapping_key: WrappingKey, api: RunningApi, declared: str | None
) -> None:
    """Undeclared outside sandbox and development, or declared so: denied, with the manifest that would allow the call."""
    scene = await make_scene(shared_database, wrapping_key, environment="production", default_decision=declared)
    async with api.client(scene.agent_key) as agent:
        problem = problem_of(await agent.post("/v1/tool-calls", json=refund()), 403, "policy-denied")
        await agent.post("/v1/tool-calls", json=refund())
    assert problem["message"].startswith("NOT DONE. Not allowed: ")
    assert problem["message"].endswith("Do not try another way to the same effect.")
    assert 'tools: ["stripe.refund.create"]' in problem["manifest"]
    assert 'connections: ["stripe"]' in problem["manifest"]
    assert [row["repeats"] for row in await recorded(scene, calls=1)] == [1]
    assert [entry["kind"] for entry in await scene.fetch("select kind from ledger_entries where {own}")] == ["refused"]
    await nothing_reserved(scene)


async def test_a_duplicate_is_answered_before_policy(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """What was done is told to whoever repeats it, whatever is decided of new calls by then; a conflict too."""
    async with executing_all(scene):
        first = await agent.post("/v1/tool-calls", json=refund())
    await scene.fetch("update environments set default_decision = 'deny' where {own}")

    async def denied() -> bool:
        call = refund(f"pi_{time.monotonic_ns()}")
        return (await agent.post("/v1/tool-calls", json=call, headers={"Prefer": "respond-async"})).status_code == 403

    await until(denied, what="the denial of new calls")
    again = await agent.post("/v1/tool-calls", json=refund())
    assert (again.status_code, again.json()["replayed"]) == (200, True)
    assert again.json()["receipt"] == first.json()["receipt"]
    problem_of(await agent.post("/v1/tool-calls", json=refund(amount=7)), 422, "conflict")
    narrow = await scene.key(tools=["sandbox.*"])
    async with httpx2.AsyncClient(base_url=agent.base_url, headers={"Authorization": f"Bearer {narrow}"}) as client:
        problem_of(await client.post("/v1/tool-calls", json=refund()), 403, "out-of-scope")


async def test_joins_replays_and_conflicts_are_recorded(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Join, replay and conflict: a row each on the holder's reservation; of these only the conflict has an entry of its own."""
    await agent.post("/v1/tool-calls", json=refund(), headers={"Prefer": "respond-async"})
    await agent.post("/v1/tool-calls", json=refund(), headers={"Prefer": "respond-async"})
    async with executing_all(scene):
        await agent.post("/v1/tool-calls", json=refund())
    await agent.post("/v1/tool-calls", json=refund())
    await agent.post("/v1/tool-calls", json=refund(amount=7))
    rows = await recorded(scene, calls=5)
    assert sorted((row["answer_code"], row["replayed"]) for row in rows) == [
        ("conflict", False),
        ("not-final", False),
        ("not-final", True),
        ("succeeded", True),
        ("succeeded", True),
    ]
    assert len({row["reservation_id"] for row in rows}) == 1
    kinds = [entry["kind"] for entry in await scene.fetch("select kind from ledger_entries where {own} order by id")]
    assert kinds == ["reserved", "claimed", "settled", "conflict"]


async def test_resolve_writes_nothing(agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, scene: Scene) -> None:
    """`resolve` says what would happen to members who may ask, and leaves no trace: no row, no entry, no run."""
    problem_of(await agent.post("/v1/tool-calls/resolve", json=refund()), 403, "out-of-scope")
    free = await admin.post("/v1/tool-calls/resolve", json=refund(run="never-used"))
    assert (free.status_code, free.json()["state"], free.json()["reservation_id"]) == (200, None, None)
    assert free.json()["operation_key"] == "refund:pi_1"
    problem_of(await admin.post("/v1/tool-calls/resolve", json=refund(occurrence=2)), 403, "review-required")
    problem_of(await admin.post("/v1/tool-calls/resolve", json=refund(amount=0)), 422, "invalid-input")
    for table in ("reservations", "ledger_entries", "runs", "request_keys"):
        assert await scene.count(table) == 0
    held = await agent.post("/v1/tool-calls", json=refund(), headers={"Prefer": "respond-async"})
    resolved = (await admin.post("/v1/tool-calls/resolve", json=refund())).json()
    assert (resolved["state"], resolved["reservation_id"]) == ("reserved", held.json()["reservation_id"])
    assert resolved["result"] is None
    problem_of(await admin.post("/v1/tool-calls/resolve", json=refund(amount=7)), 422, "conflict")
    rows = await recorded(scene, calls=1)
    assert rows[0]["answer_code"] == "not-final"
    assert await scene.count("ledger_entries") == 1


async def test_the_framework_answers_in_the_skeleton_too(agent: httpx2.AsyncClient, api: RunningApi) -> None:
    """Unknown addresses and methods are problems like any other; no page of HTML, no plain text."""
    problem_of(await agent.get("/v1/nothing"), 404, "not-found")
    problem_of(await agent.get("/"), 404, "not-found")
    problem_of(await agent.get("/v1/reservations/not-an-id"), 404, "not-found")
    problem_of(await agent.get("/v1/reservations/01a1fc40-db14-723b-a09a-7f7862590018"), 404, "not-found")
    wrong = await agent.get("/v1/tool-calls")
    problem_of(wrong, 405, "method-not-allowed")
    assert wrong.headers["allow"] == "POST"
    problem_of(await agent.delete("/v1/receipts"), 405, "method-not-allowed")
    problem_of(await agent.put("/v1/tool-calls/resolve", json={}), 405, "method-not-allowed")
