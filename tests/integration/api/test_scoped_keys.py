"""`POST /v1/scoped-keys`: made by admins, never wider than the key that makes it, never with a dimension nobody keeps."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
from tests.support.api import RunningApi, Scene, executing_all, problem_of, refund

from outbox_store import organizations

AGENT = {"kind": "agent", "name": "narrow"}


def wish(scene: Scene, **members: Any) -> dict[str, Any]:
    """A key for an agent, with further members."""
    return {"environment": scene.environment, "actor": AGENT, **members}


async def test_a_new_key_works_within_its_bounds(api: RunningApi, admin: httpx2.AsyncClient, scene: Scene) -> None:
    """The key is shown once, only its digest is stored, it reaches what it is bound to, and the ledger knows who made it."""
    expires_at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = await admin.post(
        "/v1/scoped-keys",
        json=wish(scene, tools=["stripe.refund.*"], providers=["stripe"], run="thread-1", expires_at=expires_at),
    )
    assert made.status_code == 201, made.text
    document = made.json()
    assert document["key"].startswith(f"obx_{scene.environment}_{document['id']}_")
    [row] = await scene.fetch("select * from scoped_keys where {own} and id = $1", document["id"])
    assert document["key"].encode() not in bytes(row["secret_digest"])
    assert (row["run"], row["tools"], row["providers"], row["created_by"]) == (
        "thread-1",
        ["stripe.refund.*"],
        ["stripe"],
        scene.admin_id,
    )
    [entry] = await scene.fetch("select * from ledger_entries where {own} and kind = 'scoped-key-created'")
    assert document["key"] not in str(entry["detail"])
    async with api.client(document["key"]) as agent, executing_all(scene):
        answer = (await agent.post("/v1/tool-calls", json=refund())).json()
        assert answer["receipt"]["actor_chain"] == ["agent:narrow"]
        assert answer["run"]["name"] == "thread-1"
        problem_of(await agent.post("/v1/tool-calls", json=refund(run="thread-2")), 403, "out-of-scope")
        echo = {"tool": "sandbox.echo", "input": {}}
        problem_of(await agent.post("/v1/tool-calls", json=echo), 403, "out-of-scope")
        problem_of(await agent.post("/v1/scoped-keys", json=wish(scene)), 403, "out-of-scope")


async def test_what_nobody_keeps_is_refused_and_not_stored(admin: httpx2.AsyncClient, scene: Scene) -> None:
    """A dimension without enforcement is 422 `not-enforced`; other members, kinds and forms are 422 with their path."""
    before = await scene.count("scoped_keys")
    for name in ("checkpoint", "employee", "subagent", "limits", "connections"):
        problem = problem_of(await admin.post("/v1/scoped-keys", json=wish(scene, **{name: "x"})), 422, "not-enforced")
        assert problem["path"] == f"$.{name}"
    for kind in ("member", "subagent"):
        response = await admin.post("/v1/scoped-keys", json=wish(scene, actor={"kind": kind, "name": "x"}))
        assert problem_of(response, 422, "not-enforced")["path"] == "$.actor.kind"
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    for members, path in (
        ({"colour": "red"}, "$.colour"),
        ({"tools": []}, "$.tools"),
        ({"tools": ["a b"]}, "$.tools[0]"),
        ({"tools": ["stripe.[a-z]*"]}, "$.tools[0]"),
        ({"providers": ["Stripe"]}, "$.providers[0]"),
        ({"actor": {"kind": "agent"}}, "$.actor"),
        ({"actor": {"kind": "robot", "name": "x"}}, "$.actor.kind"),
        ({"run": ""}, "$.run"),
        ({"run": "a\nb"}, "$.run"),
        ({"expires_at": past}, "$.expires_at"),
        ({"expires_at": "tomorrow"}, "$.expires_at"),
        ({"expires_at": "2999-01-01T00:00:00"}, "$.expires_at"),
        ({"project": "nowhere"}, "$.project"),
    ):
        problem = problem_of(await admin.post("/v1/scoped-keys", json=wish(scene, **members)), 422, "invalid-request")
        assert problem["path"] == path
    problem_of(await admin.post("/v1/scoped-keys", json={"actor": AGENT}), 422, "invalid-request")
    problem_of(await admin.post("/v1/scoped-keys", json=[]), 422, "invalid-request")
    assert await scene.count("scoped_keys") == before


async def test_no_key_is_wider_than_its_maker(api: RunningApi, scene: Scene) -> None:
    """In each dimension a wider wish is 403 and the dimension is named; an equal or narrower one is made."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    async with scene.connection() as connection:
        project_id = await organizations.create_project(connection, scene.organization_id, scene.agent_id, "side")
    maker = await scene.key(
        actor_id=scene.admin_id,
        project_id=project_id,
        run="thread-1",
        providers=["stripe", "sandbox"],
        tools=["stripe.*", "sandbox.echo"],
        expires_at=soon,
    )
    same = {
        "project": "side",
        "run": "thread-1",
        "providers": ["stripe"],
        "tools": ["stripe.refund.*", "sandbox.echo"],
        "expires_at": soon.isoformat(),
    }
    wider = [
        ("environment", "production"),
        ("project", None),
        ("project", "default"),
        ("run", None),
        ("run", "thread-2"),
        ("providers", None),
        ("providers", ["stripe", "sendgrid"]),
        ("tools", None),
        ("tools", ["*"]),
        ("tools", ["stripe*"]),
        ("tools", ["sandbox.*"]),
        ("expires_at", None),
        ("expires_at", (soon + timedelta(seconds=1)).isoformat()),
    ]
    async with api.client(maker) as client:
        for dimension, value in wider:
            response = await client.post("/v1/scoped-keys", json=wish(scene, **{**same, dimension: value}))
            assert problem_of(response, 403, "out-of-scope")["dimension"] == dimension, value
        made = await client.post("/v1/scoped-keys", json=wish(scene, **same))
        assert made.status_code == 201, made.text
    async with api.client(made.json()["key"]) as agent, executing_all(scene):
        answer = (await agent.post("/v1/tool-calls", json=refund())).json()
        detail = (await agent.get(f"/v1/reservations/{answer['reservation_id']}")).json()
    assert detail["project"] == "side"


async def test_projects_are_separate(api: RunningApi, scene: Scene) -> None:
    """The same call in another project is another effect; a key without project acts in `default`."""
    async with scene.connection() as connection:
        project_id = await organizations.create_project(connection, scene.organization_id, scene.agent_id, "side")
    async with executing_all(scene):
        answers = []
        for key in (scene.agent_key, await scene.key(project_id=project_id)):
            async with api.client(key) as agent:
                answers.append((await agent.post("/v1/tool-calls", json=refund())).json())
        assert answers[0]["receipt"]["id"] != answers[1]["receipt"]["id"]
        async with api.client(await scene.key(project_id=project_id)) as agent:
            problem_of(await agent.get(f"/v1/reservations/{answers[0]['reservation_id']}"), 404, "not-found")
