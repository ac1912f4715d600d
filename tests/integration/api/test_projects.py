"""`POST /v1/projects`: a fresh partition of the organization, and what a key of it sees of the others."""

import httpx2
from tests.support.api import RunningApi, Scene, executing_all, problem_of, refund


async def project_key(admin: httpx2.AsyncClient, scene: Scene, name: str) -> str:
    """A key of an agent that is bound to a project of that name, made for it."""
    made = await admin.post("/v1/projects", json={"name": name})
    assert (made.status_code, made.json()) == (201, {"name": name}), made.text
    wish = {"environment": scene.environment, "project": name, "actor": {"kind": "agent", "name": "tester"}}
    key: str = (await admin.post("/v1/scoped-keys", json=wish)).json()["key"]
    return key


async def test_projects_have_nothing_in_common(api: RunningApi, admin: httpx2.AsyncClient, scene: Scene) -> None:
    """One call in two fresh projects is two effects under one operation key, and neither key sees the other's records."""
    keys = [await project_key(admin, scene, name) for name in ("test-1", "test-2")]
    seen = []
    async with executing_all(scene):
        for key in keys:
            async with api.client(key) as agent:
                answer = (await agent.post("/v1/tool-calls", json=refund())).json()
                assert (answer["state"], answer["replayed"]) == ("succeeded", False), answer
                again = (await agent.post("/v1/tool-calls", json=refund())).json()
                assert (again["replayed"], again["receipt"]) == (True, answer["receipt"])
                [listed] = (await agent.get("/v1/reservations")).json()["items"]
                assert listed["reservation_id"] == answer["reservation_id"]
                seen.append(answer)
        async with api.client(keys[0]) as agent:
            problem_of(await agent.get(f"/v1/reservations/{seen[1]['reservation_id']}"), 404, "not-found")
    assert seen[0]["operation_key"] == seen[1]["operation_key"]
    assert seen[0]["reservation_id"] != seen[1]["reservation_id"]


async def test_the_same_name_is_the_same_project(admin: httpx2.AsyncClient, scene: Scene) -> None:
    """Made twice, there is one project and one ledger entry, which says who made it."""
    for _ in range(2):
        assert (await admin.post("/v1/projects", json={"name": "shop"})).status_code == 201
    assert len(await scene.fetch("select from projects where {own} and name = 'shop'")) == 1
    [entry] = await scene.fetch("select * from ledger_entries where {own} and kind = 'project-created'")
    assert entry["detail"] == {"before": None, "after": {"name": "shop"}}
    assert entry["actor_chain"] == ["member:admin@example.com"]


async def test_who_may_not_and_what_is_malformed(
    api: RunningApi, admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, scene: Scene
) -> None:
    """Agents make no project; names that are none, other members and other forms are 422 with their path; nothing is stored."""
    before = await scene.count("projects")
    problem_of(await agent.post("/v1/projects", json={"name": "mine"}), 403, "out-of-scope")
    for document, path in (
        ({"name": ""}, "$.name"),
        ({"name": " shop"}, "$.name"),
        ({"name": 1}, "$.name"),
        ({}, "$.name"),
        ({"name": "shop", "colour": "red"}, "$.colour"),
        ([], "$"),
    ):
        problem = problem_of(await admin.post("/v1/projects", json=document), 422, "invalid-request")
        assert problem["path"] == path
    assert await scene.count("projects") == before
