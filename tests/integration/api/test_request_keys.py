"""`Idempotency-Key`: the same request with the same key is answered with the same bytes; it never stands for the effect."""

import asyncio
import json
from typing import Any

import httpx2
from tests.support.api import RunningApi, Scene, executing_all, problem_of, refund, stand_in, until

from outbox_api.openapi import document as openapi_document

KEY = {"Idempotency-Key": "req-1"}


def body_for(operation: str, scene: Scene, variant: int) -> dict[str, Any]:
    """A body that an operation accepts; another `variant` is another body."""
    if operation == "createToolCall":
        return refund(f"pi_{scene.organization_id.hex}_{variant}")
    assert operation == "createScopedKey", f"{operation} is new: say what a body of it is"
    return {"environment": scene.environment, "actor": {"kind": "agent", "name": f"agent-{variant}"}}


async def test_every_changing_route_honours_it(admin: httpx2.AsyncClient, scene: Scene) -> None:
    """Walks the OpenAPI document: each POST, PUT, PATCH and DELETE but `resolve` takes the key, repeats bytes, refuses reuse."""
    walked = []
    async with executing_all(scene):
        for path, operations in openapi_document()["paths"].items():
            for method, operation in operations.items():
                if method not in ("post", "put", "patch", "delete"):
                    continue
                name = operation["operationId"]
                takes = {"$ref": "#/components/parameters/IdempotencyKey"} in operation["parameters"]
                assert takes == (name != "resolveToolCall"), name
                if not takes:
                    continue
                walked.append(name)
                first = await admin.request(method, path, json=body_for(name, scene, 1), headers=KEY)
                again = await admin.request(method, path, json=body_for(name, scene, 1), headers=KEY)
                other = await admin.request(method, path, json=body_for(name, scene, 2), headers=KEY)
                assert first.is_success, first.text
                assert again.status_code == first.status_code
                assert again.headers["idempotent-replayed"] == "true"
                if name == "createScopedKey":
                    assert {**first.json(), "key": None} == {**again.json(), "key": None}
                    assert "key" not in again.json()
                else:
                    assert again.content == first.content
                problem_of(other, 422, "request-key-reused")
                too_long = {"Idempotency-Key": "x" * 256}
                problem_of(
                    await admin.request(method, path, json=body_for(name, scene, 3), headers=too_long), 422, "invalid-request"
                )
    assert sorted(walked) == ["createScopedKey", "createToolCall"]
    assert len(await scene.fetch("select from scoped_keys where {own} and created_by <> actor_id")) == 2


async def test_quoted_and_bare_are_one_key(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """`"k"` and `k` name the same request; 255 characters fit, an empty or broken one is refused, as is a second one."""
    async with executing_all(scene):
        bare = await agent.post("/v1/tool-calls", json=refund(), headers={"Idempotency-Key": "a-key"})
        quoted = await agent.post("/v1/tool-calls", json=refund(), headers={"Idempotency-Key": '"a-key"'})
        longest = await agent.post("/v1/tool-calls", json=refund("pi_2"), headers={"Idempotency-Key": "x" * 255})
    assert quoted.content == bare.content
    assert quoted.json()["replayed"] is False
    assert longest.status_code == 200
    for broken in ('""', '"', "a b", '"a" b', '"a"b"', "caf\u00e9"):
        headers = {b"Idempotency-Key": broken.encode("latin-1")}
        response = await agent.post("/v1/tool-calls", json=refund("pi_3"), headers=headers)
        assert problem_of(response, 422, "invalid-request")["path"] == "Idempotency-Key"
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    problem_of(await agent.post("/v1/tool-calls", json=refund("pi_3"), headers=twice), 422, "invalid-request")
    assert await scene.count("reservations") == 2


async def test_final_refusals_are_kept(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """422 and 403 of a decision come back as the same bytes under their key, and are recorded once."""
    for name, call in (("invalid", refund(amount=0)), ("review", refund(occurrence=2))):
        responses = [await agent.post("/v1/tool-calls", json=call, headers={"Idempotency-Key": name}) for _ in range(3)]
        assert len({response.content for response in responses}) == 1
        assert len({response.headers["content-type"] for response in responses}) == 1

    async def recorded() -> bool:
        return await scene.count("tool_calls") == 2

    await until(recorded)
    assert [row["repeats"] for row in await scene.fetch("select repeats from tool_calls where {own}")] == [0, 0]


async def test_answers_that_are_not_final_are_given_anew(agent: httpx2.AsyncClient, scene: Scene, api: RunningApi) -> None:
    """After 202 the same request joins and gets 200; after 403 of scope, 404 and 409 it is looked at again."""
    first = await agent.post("/v1/tool-calls", json=refund(), headers={**KEY, "Prefer": "respond-async"})
    assert first.status_code == 202
    async with executing_all(scene):
        second = await agent.post("/v1/tool-calls", json=refund(), headers=KEY)
    third = await agent.post("/v1/tool-calls", json=refund(), headers=KEY)
    assert (second.status_code, second.json()["replayed"]) == (200, True)
    assert third.content == second.content
    assert third.headers["outbox-replayed"] == "true"
    async with api.client(await scene.key(tools=["sandbox.*"])) as narrow:
        for _ in range(2):
            problem_of(await narrow.post("/v1/tool-calls", json=refund(), headers={"Idempotency-Key": "n"}), 403, "out-of-scope")
    for _ in range(2):
        unknown = {"tool": "stripe.nothing", "input": {}}
        problem_of(await agent.post("/v1/tool-calls", json=unknown, headers={"Idempotency-Key": "u"}), 404, "unknown-tool")
        malformed = {"Idempotency-Key": "m", "Content-Type": "application/json"}
        problem_of(await agent.post("/v1/tool-calls", content=b"{", headers=malformed), 400, "malformed-body")
    kept = await scene.fetch("select request_key from request_keys where {own}")
    assert [row["request_key"] for row in kept] == ["req-1"]


async def test_two_at_once_are_not_both_answered(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """While a request is answered, the same one is 409 `request-in-progress` with Retry-After; another body is 422."""
    waiting = asyncio.create_task(agent.post("/v1/tool-calls", json=refund(), headers=KEY))

    async def pending() -> bool:
        return bool(await scene.fetch("select from request_keys where {own} and pending_until is not null"))

    await until(pending)
    busy = await agent.post("/v1/tool-calls", json=refund(), headers=KEY)
    problem_of(busy, 409, "request-in-progress")
    assert int(busy.headers["retry-after"]) >= 1
    problem_of(await agent.post("/v1/tool-calls", json=refund("pi_other"), headers=KEY), 422, "request-key-reused")
    async with executing_all(scene):
        assert (await waiting).status_code == 200
    assert await scene.count("reservations") == 1


async def test_it_belongs_to_actor_and_environment(agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, scene: Scene) -> None:
    """Two actors may use one request key for different requests; and one effect under two request keys is one effect."""
    async with executing_all(scene):
        mine = await agent.post("/v1/tool-calls", json=refund("pi_a"), headers=KEY)
        theirs = await admin.post("/v1/tool-calls", json=refund("pi_b"), headers=KEY)
        same_effect = await admin.post("/v1/tool-calls", json=refund("pi_a"), headers={"Idempotency-Key": "another"})
    assert mine.json()["receipt"]["id"] != theirs.json()["receipt"]["id"]
    assert same_effect.json()["receipt"] == mine.json()["receipt"]
    assert same_effect.json()["replayed"] is True


async def test_what_is_kept_is_sealed(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """No answer stands readable in the table of request keys."""
    async with executing_all(scene):
        response = await agent.post("/v1/tool-calls", json=refund(), headers=KEY)
    [row] = await scene.fetch("select sealed_answer from request_keys where {own}")
    assert response.json()["receipt"]["external_reference"].encode() not in row["sealed_answer"]
    assert json.dumps(response.json()["message"]).encode() not in row["sealed_answer"]


async def test_a_dead_holder_is_forgotten(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A request whose process died is answered anew once its lease has ended, and joins what it had reserved."""
    waiting = asyncio.create_task(agent.post("/v1/tool-calls", json=refund(), headers={**KEY, "Prefer": "wait=3"}))

    async def pending() -> bool:
        return bool(await scene.fetch("select from request_keys where {own} and pending_until is not null"))

    await until(pending)
    await scene.fetch("update request_keys set holder = gen_random_uuid(), pending_until = now() where {own}")
    async with stand_in(scene) as worker:
        [row] = await until(lambda: scene.fetch("select id from reservations where {own}"))
        again = asyncio.create_task(agent.post("/v1/tool-calls", json=refund(), headers=KEY))
        await worker.execute(row["id"])
        responses = [await waiting, await again]
    assert [response.status_code for response in responses] == [200, 200]
    assert responses[0].json()["receipt"] == responses[1].json()["receipt"]
