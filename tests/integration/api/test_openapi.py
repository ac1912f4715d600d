"""The OpenAPI document: valid, the same as the routes that are served, and true of the answers they give."""

import re
from typing import Any
from uuid import uuid4

import httpx2
import jsonschema
from litestar.routes import ASGIRoute, HTTPRoute
from openapi_spec_validator import OpenAPIV31SpecValidator
from tests.support.api import RunningApi, Scene, executing_all, problem_of, refund

from outbox_api.application import build
from outbox_api.errors import STATUS
from outbox_domain.errors import PROBLEMS
from outbox_runtime.settings import ApiSettings


class _Nothing:
    """Stands where routes want a process; building the application asks nothing of it but its settings."""

    settings = ApiSettings(wrapping_key="x")  # type: ignore[arg-type]


async def served(api: RunningApi) -> dict[str, Any]:
    """The document as it is served, to anybody."""
    async with api.client(None) as client:
        response = await client.get("/openapi.json")
    assert response.status_code == 200
    document: dict[str, Any] = response.json()
    return document


async def test_the_document_is_valid(api: RunningApi) -> None:
    """It is OpenAPI 3.1 without errors, and every route documents its problems as problem+json."""
    document = await served(api)
    assert document["openapi"].startswith("3.1")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    for path, operations in document["paths"].items():
        for operation in operations.values():
            problems = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
            assert problems, path
            if path.startswith("/v1/"):
                for answer in problems.values():
                    assert list(answer["content"]) == ["application/problem+json"]
                # Who presents no scoped key is not told that it is wrong.
                keyless = operation.get("security") == []
                assert ({"500", "503"} if keyless else {"401", "500", "503"}) <= problems.keys(), path


async def test_the_document_names_the_routes_that_are_served(api: RunningApi) -> None:
    """No route is missing from it, and it names none that there is not."""
    application = build(_Nothing())  # type: ignore[arg-type]
    routes = set()
    for route in application.routes:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        if isinstance(route, HTTPRoute):
            routes |= {(path, method.lower()) for method in route.methods if method not in ("OPTIONS", "HEAD")}
        elif isinstance(route, ASGIRoute):
            routes.add((path, "post"))
    documented = {(path, method) for path, operations in (await served(api))["paths"].items() for method in operations}
    assert documented == routes


async def test_answers_are_as_documented(
    agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, scene: Scene, api: RunningApi
) -> None:
    """Answers of every kind fit the schema that the document gives for their route and status."""
    document = await served(api)

    def check(response: httpx2.Response, path: str, method: str) -> None:
        answer = document["paths"][path][method]["responses"][str(response.status_code)]
        schema = answer["content"][response.headers["content-type"]]["schema"]
        jsonschema.validate(response.json(), {**schema, "components": document["components"]})

    async with executing_all(scene):
        settled = await agent.post("/v1/tool-calls", json=refund(run="thread-1"))
    calls = [
        settled,
        await agent.post("/v1/tool-calls", json=refund(run="thread-1")),
        await agent.post("/v1/tool-calls", json=refund("pi_2"), headers={"Prefer": "respond-async"}),
        await agent.post("/v1/tool-calls", json=refund(amount=7)),
        await agent.post("/v1/tool-calls", json=refund(amount=0)),
        await agent.post("/v1/tool-calls", json=refund(occurrence=2)),
        await agent.post("/v1/tool-calls", json={"tool": "nothing.at.all", "input": {}}),
    ]
    assert [response.status_code for response in calls] == [200, 200, 202, 422, 422, 403, 404]
    for response in calls:
        check(response, "/v1/tool-calls", "post")
    check(await admin.post("/v1/tool-calls/resolve", json=refund("pi_3")), "/v1/tool-calls/resolve", "post")
    check(await agent.get("/v1/reservations"), "/v1/reservations", "get")
    one = f"/v1/reservations/{settled.json()['reservation_id']}"
    check(await agent.get(one), "/v1/reservations/{reservation_id}", "get")
    check(await agent.get("/v1/receipts"), "/v1/receipts", "get")
    check(await agent.get(f"/v1/receipts/{settled.json()['receipt']['id']}"), "/v1/receipts/{receipt_id}", "get")
    check(await admin.get("/v1/ledger-entries"), "/v1/ledger-entries", "get")
    check(await agent.get("/v1/ledger-entries"), "/v1/ledger-entries", "get")
    wish = {"environment": "sandbox", "actor": {"kind": "agent", "name": "x"}}
    check(await admin.post("/v1/scoped-keys", json=wish), "/v1/scoped-keys", "post")
    check(await admin.post("/v1/projects", json={"name": "shop"}), "/v1/projects", "post")
    ticket = {"tool": "sandbox.ticket.create", "input": {"title": "t"}, "reference": "case-9"}
    asked = {**ticket, "attempt_id": str(uuid4()), "time_limit_seconds": 5}
    held = await agent.post("/v1/reservations", json=asked)
    attempt = {"attempt_id": held.json()["attempt"]["id"]}
    own = f"/v1/reservations/{held.json()['reservation_id']}"
    check(held, "/v1/reservations", "post")
    check(await agent.post(f"{own}/heartbeat", json=attempt), "/v1/reservations/{reservation_id}/heartbeat", "post")
    check(await agent.post(f"{own}/void", json={}), "/v1/reservations/{reservation_id}/void", "post")
    unknown = await agent.post(f"{own}/settle", json={**attempt, "outcome": "unknown"})
    check(unknown, "/v1/reservations/{reservation_id}/settle", "post")
    refused = await agent.post(f"{own}/probes", json={"attempt_id": str(uuid4())})
    assert refused.status_code == 409, refused.text
    check(refused, "/v1/reservations/{reservation_id}/probes", "post")
    offered = await agent.post("/v1/reservations", json={**asked, "attempt_id": str(uuid4()), "probe": True})
    assert offered.json()["probe"] is not None, offered.text
    check(offered, "/v1/reservations", "post")
    for seen in ({"found": False}, {"found": True, "external_reference": "re_9"}):
        begun = await agent.post(f"{own}/probes", json=attempt)
        check(begun, "/v1/reservations/{reservation_id}/probes", "post")
        answered = await agent.post(f"{own}/probes/{begun.json()['probe_id']}", json=seen)
        assert answered.status_code == 200, answered.text
        check(answered, "/v1/reservations/{reservation_id}/probes/{probe_id}", "post")
    check(await agent.post("/v1/reservations", json={**asked, "attempt_id": str(uuid4())}), "/v1/reservations", "post")
    for path in ("/healthz", "/readyz", "/openapi.json"):
        check(await agent.get(path), path, "get")
    problem_of(await agent.post("/healthz"), 405, "method-not-allowed")


def test_every_problem_has_a_status() -> None:
    """The registry of problems and the table of statuses name the same codes."""
    assert STATUS.keys() == PROBLEMS.keys()
