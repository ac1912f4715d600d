"""`Idempotency-Key`: the same request with the same key is answered with the same bytes; it never stands for the effect."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from tests.integration.api.test_client_executed import charge, opened, settled
from tests.integration.api.test_epoch import CLASS_B
from tests.support.api import RunningApi, Scene, executing_all, problem_of, refund, stand_in, until

from outbox_api.openapi import document as openapi_document

KEY = {"Idempotency-Key": "req-1"}


OPEN = {"createReservation", "extendLease"}
"""Operations whose answer is a lease: it is never given out of a request key."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Requests that an operation accepts.

    Attributes:
        path: with its parameters.
        body: accepted.
        other: another body for the same path.
    """

    path: str
    body: dict[str, Any]
    other: dict[str, Any]


async def sample_of(operation: str, path: str, admin: httpx2.AsyncClient, scene: Scene) -> Sample:
    """What an operation accepts, with all that must be there before made by `admin`."""

    wanted = charge(uuid4().hex, contract=CLASS_B, time_limit_seconds=5, probe=True)

    async def held(outcome: str | None = None) -> dict[str, Any]:
        document = await opened(admin, wanted)
        if outcome is not None:
            assert (await settled(admin, document, outcome)).is_success
        return document

    async def asked_to_look() -> dict[str, Any]:
        document = await held("unknown")
        asked = await admin.post("/v1/reservations", json=wanted)
        assert asked.json()["probe"] is not None, asked.text
        return document

    if operation == "createToolCall":
        return Sample(path=path, body=refund(f"pi_{uuid4().hex}"), other=refund())
    if operation == "createReservation":
        return Sample(path=path, body=charge(uuid4().hex), other=charge())
    if operation in ("extendLease", "settleReservation", "voidReservation", "beginProbe"):
        document = await (asked_to_look() if operation == "beginProbe" else held())
        attempt = {"attempt_id": document["attempt"]["id"]}
        other = {"attempt_id": str(uuid4())}
        more: dict[str, Any] = {}
        if operation == "settleReservation":
            more = {"outcome": "succeeded", "result": {"id": "ch_1"}}
        elif operation == "voidReservation":
            more = {"reason": "not wanted"}
        return Sample(path=path.format(reservation_id=document["reservation_id"]), body=attempt | more, other=other | more)
    if operation == "answerProbe":
        document = await asked_to_look()
        begun = await admin.post(
            f"/v1/reservations/{document['reservation_id']}/probes", json={"attempt_id": document["attempt"]["id"]}
        )
        assert begun.is_success, begun.text
        names = {"reservation_id": document["reservation_id"], "probe_id": begun.json()["probe_id"]}
        return Sample(path=path.format(**names), body={"found": True, "external_reference": "ch_1"}, other={"found": False})
    if operation in ("resolveDoubts", "recheckDoubts", "answerDoubt", "closeContradiction"):
        document = await held("rejected" if operation == "closeContradiction" else "unknown")
        happened: dict[str, Any] = {"as": "happened", "external_reference": "ch_1", "reason": "Seen.", "evidence": "their log"}
        if operation in ("answerDoubt", "closeContradiction"):
            if operation == "answerDoubt":
                happened["override"] = True
            else:
                problem_of(await settled(admin, document, result={"id": "ch_1"}), 409, "outcome-differs")
            url = path.format(reservation_id=document["reservation_id"])
            return Sample(path=url, body=happened, other=happened | {"reason": "Other."})
        batch: dict[str, Any] = {
            "where": {"reservation": document["reservation_id"]},
            "expect": 1,
            "reason": "A night of doubts.",
        }
        if operation == "resolveDoubts":
            batch |= {"as": "happened", "evidence": "their log", "override": True}
            batch |= {"external_references": {document["reservation_id"]: "ch_1"}}
        return Sample(path=path, body=batch, other=batch | {"expect": 2})
    if operation == "clearEpoch":
        number = (await admin.get("/v1/epoch")).json()["number"]
        return Sample(path=path, body={"epoch": number, "reason": "Compared."}, other={"epoch": number, "reason": "Other."})
    if operation == "createProject":
        return Sample(path=path, body={"name": f"p-{uuid4().hex}"}, other={"name": "other"})
    assert operation == "createScopedKey", f"{operation} is new: say what a body of it is"
    body = {"environment": scene.environment, "actor": {"kind": "agent", "name": "agent-1"}}
    return Sample(path=path, body=body, other={**body, "actor": {"kind": "agent", "name": "agent-2"}})


def changing_operations() -> list[tuple[str, str, str, bool]]:
    """Path, method and name of each POST, PUT, PATCH and DELETE of the OpenAPI document, and whether it takes a request key."""
    parameter = {"$ref": "#/components/parameters/IdempotencyKey"}
    return [
        (path, method, operation["operationId"], parameter in operation.get("parameters", []))
        for path, operations in openapi_document()["paths"].items()
        for method, operation in operations.items()
        if method in ("post", "put", "patch", "delete")
    ]


def test_all_changing_routes_but_two_take_it() -> None:
    """`resolve` reserves nothing, and a provider that sends events has a name of its own for each."""
    assert {name for _, _, name, takes in changing_operations() if not takes} == {"resolveToolCall", "takeWebhook"}


@pytest.mark.parametrize(("path", "method", "name"), [one[:3] for one in changing_operations() if one[3]], ids=lambda one: one)
async def test_every_changing_route_honours_it(
    path: str, method: str, name: str, admin: httpx2.AsyncClient, scene: Scene
) -> None:
    """The same request with the same key is answered with the same bytes, another one is refused; a lease is never repeated."""
    keys = await scene.count("scoped_keys")
    async with executing_all(scene):
        sample = await sample_of(name, path, admin, scene)
        first = await admin.request(method, sample.path, json=sample.body, headers=KEY)
        assert first.is_success, first.text
        again = await admin.request(method, sample.path, json=sample.body, headers=KEY)
        assert again.is_success, again.text
        if name in OPEN:
            assert "idempotent-replayed" not in again.headers
        else:
            assert again.status_code == first.status_code
            assert again.headers["idempotent-replayed"] == "true"
            if name == "createScopedKey":
                assert {**first.json(), "key": None} == {**again.json(), "key": None}
                assert "key" not in again.json()
            else:
                assert again.content == first.content
            other = await admin.request(method, sample.path, json=sample.other, headers=KEY)
            problem_of(other, 422, "request-key-reused")
        too_long = {"Idempotency-Key": "x" * 256}
        problem_of(await admin.request(method, sample.path, json=sample.body, headers=too_long), 422, "invalid-request")
    assert await scene.count("scoped_keys") - keys == (1 if name == "createScopedKey" else 0)


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
