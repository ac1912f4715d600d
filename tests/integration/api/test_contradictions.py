"""People close contradictions: what they may say when, and what the next caller of the operation is told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from tests.integration.api.test_doubts import DID_NOT, HAPPENED, answer, entry_of, reserved, standing
from tests.integration.api.test_doubts_commands import outbox
from tests.support.api import RunningApi, Scene, StandIn, make_scene, problem_of, refund, stand_in
from tests.support.invariants import assert_invariants

from outbox_domain.reservation import Outcome


@pytest.fixture
async def worker(scene: Scene) -> AsyncIterator[StandIn]:
    """Plays the worker of this test's organization; the invariants hold when the test is over."""
    async with stand_in(scene) as made:
        yield made
    await assert_invariants(scene.database.superuser_url)


async def examined(client: httpx2.AsyncClient, id: UUID, document: Any, **headers: str) -> httpx2.Response:
    """What a person says is true."""
    return await client.post(f"/v1/reviews/contradictions/{id}", json=document, headers=headers)


async def contradicted(
    agent: httpx2.AsyncClient, worker: StandIn, payment_intent: str = "pi_1", *, long_ago: bool = True
) -> UUID:
    """A refused reservation whose attempt told of a success after all; its key is refused."""
    id = await reserved(agent, payment_intent)
    attempt = await worker.claim(id)
    await worker.settle(attempt, Outcome.REJECTED, provider_code=None)
    assert (await worker.settle(attempt)).verdict == "contradiction"
    if long_ago:
        await worker.scene.fetch("update contradictions set created_at = now() - interval '1 hour' where reservation_id = $1", id)
    problem = problem_of(await agent.post("/v1/tool-calls", json=refund(payment_intent)), 409, "contradiction")
    assert problem["contradicted_reservation_id"] == str(id)
    return id


async def test_it_happened_is_told_by_a_receipt(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """The refused reservation stays as it is; the next caller is told of the effect, by this person's word, and sends nothing."""
    id = await contradicted(agent, worker, long_ago=False)
    before = await standing(scene, id)
    told = await examined(admin, id, HAPPENED)
    assert (told.status_code, told.json()["state"]) == (200, "succeeded"), told.text
    receipt = told.json()["receipt"]
    assert (receipt["external_reference"], receipt["confidence"]) == ("re_1", "asserted")
    assert receipt["evidence"][0]["detail"]["by"] == "member:admin@example.com"
    assert told.json()["reservation_id"] not in (None, str(id))
    again = await agent.post("/v1/tool-calls", json=refund())
    assert (again.status_code, again.json()["replayed"], again.json()["receipt"]) == (200, True, receipt)
    assert await scene.count("attempts") == 1
    after = await standing(scene, id)
    # Beside the proof stands what the person has named, examined as well.
    beside = ("entries", "contradictions")
    assert {name: after[name] for name in after if name not in beside} == {
        name: before[name] for name in before if name not in beside
    }
    entry = await entry_of(admin, id)
    assert (entry["kind"], entry["actor_chain"]) == ("examined", ["member:admin@example.com"])
    assert entry["detail"]["told_by_reservation_id"] == told.json()["reservation_id"]
    kept = await entry_of(admin, UUID(told.json()["reservation_id"]))
    assert (kept["kind"], kept["from"], kept["to"]) == ("settled", None, "succeeded")
    assert kept["detail"]["contradicted_reservation_id"] == str(id)
    problem_of(await agent.post("/v1/tool-calls", json=refund(amount=1)), 422, "conflict")
    problem_of(await examined(admin, id, HAPPENED), 409, "not-contradicted")


async def test_it_did_not_happen_frees_the_key(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """Not before what was sent can have taken effect; then the same call makes a new reservation, and the same proof changes nothing."""
    id = await reserved(agent)
    attempt = await worker.claim(id)
    await worker.settle(attempt, Outcome.REJECTED, provider_code=None)
    await worker.settle(attempt)
    before = await standing(scene, id)
    problem = problem_of(await examined(admin, id, DID_NOT), 409, "absence-too-early")
    assert problem["retry"]["action"] == "wait"
    assert 0 < problem["retry"]["after_seconds"] <= 600
    assert await standing(scene, id) == before
    await scene.fetch("update contradictions set created_at = now() - interval '1 hour' where reservation_id = $1", id)
    told = await examined(admin, id, DID_NOT)
    assert (told.status_code, told.json()["state"], told.json()["reservation_id"]) == (200, "failed", str(id))
    assert (await worker.settle(attempt)).verdict == "contradiction", "told again"
    assert await reserved(agent) != id
    assert (await entry_of(admin, id))["detail"]["happened"] is False


async def test_a_late_write_is_examined(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """What nobody has a reference of is named by the person who has looked."""
    id = await reserved(agent)
    attempt = await worker.claim(id)
    await worker.settle(attempt, Outcome.UNKNOWN, recover_seconds=None, settle_seconds=0.0)
    await scene.fetch("update reservations set absence_counts_at = now() where id = $1", id)
    assert (await answer(admin, id, DID_NOT)).json()["state"] == "failed"
    assert (await worker.settle(attempt, Outcome.UNKNOWN, late_write=True)).verdict == "contradiction"
    told = await examined(admin, id, HAPPENED)
    assert told.json()["receipt"]["external_reference"] == "re_1"
    assert (await agent.post("/v1/tool-calls", json=refund())).json()["receipt"] == told.json()["receipt"]


async def test_a_second_effect_is_acknowledged(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """Beside a success another effect is proven: a person has seen it, the receipt stays, and nothing is kept for it."""
    id = await reserved(agent)
    attempt = await worker.claim(id)
    await worker.settle(attempt)
    before = await standing(scene, id)
    async with scene.connection() as connection:
        await connection.execute(
            "insert into contradictions (organization_id, id, reservation_id, project_id, environment_id, connection_id, tool, scope, "
            "operation_key, external_reference) select organization_id, gen_random_uuid(), id, project_id, environment_id, "
            "connection_id, tool, scope, operation_key, 're_2' from reservations where id = $1",
            id,
        )
    told = await examined(admin, id, {**HAPPENED, "external_reference": "re_2"})
    assert (told.status_code, told.json()["reservation_id"]) == (200, str(id))
    assert told.json()["receipt"]["external_reference"] == before["external_reference"]
    assert await scene.count("reservations") == 1
    detail = (await admin.get(f"/v1/reservations/{id}")).json()
    assert detail["contradiction"] is None
    assert [entry["kind"] for entry in detail["evidence"]] == ["examined"]


async def test_another_reservation_of_the_operation_ends_first(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """Proof came when the operation was reserved again already: that it happened waits for the end of that one, which is parked."""
    first = await reserved(agent)
    attempt = await worker.claim(first)
    await worker.settle(attempt, Outcome.REJECTED, provider_code=None)
    second = await reserved(agent)
    await worker.settle(attempt)
    before = await standing(scene, first)
    problem = problem_of(await examined(admin, first, HAPPENED), 409, "operation-open")
    assert problem["open_reservation_id"] == str(second)
    assert await standing(scene, first) == before
    assert [row["closed_at"] for row in await scene.fetch("select closed_at from contradictions where {own}")] == [None]
    await scene.fetch("update contradictions set created_at = now() - interval '1 hour' where reservation_id = $1", first)
    assert (await examined(admin, first, DID_NOT)).status_code == 200
    assert (await worker.execute(second)).verdict == "settled"


async def test_two_people_close_one_at_once(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """Of ten contrary answers one is taken; the others find nothing to close."""
    id = await contradicted(agent, worker)
    told = await asyncio.gather(*(examined(admin, id, document) for _ in range(5) for document in (HAPPENED, DID_NOT)))
    assert sorted(response.status_code for response in told) == [200] + [409] * 9
    for response in told:
        if response.status_code != 200:
            problem_of(response, 409, "not-contradicted")
    assert [entry["kind"] for entry in (await admin.get(f"/v1/reservations/{id}")).json()["evidence"]].count("examined") == 1


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({**HAPPENED, "external_reference": None}, "$.external_reference"),
        ({**DID_NOT, "external_reference": "re_1"}, "$.external_reference"),
        ({**HAPPENED, "override": True}, "$.override"),
        ({"as": "happened", "external_reference": "re_1", "reason": "Seen."}, "$.evidence"),
    ],
)
async def test_words_that_are_no_answer(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene, document: dict[str, Any], path: str
) -> None:
    """They are refused with the member at fault, and the contradiction stays."""
    id = await contradicted(agent, worker)
    assert problem_of(await examined(admin, id, document), 422, "invalid-request")["path"] == path
    problem_of(await agent.post("/v1/tool-calls", json=refund()), 409, "contradiction")


async def test_who_may_close_one(
    api: RunningApi, admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """No agent, nobody of another organization, no key that does not reach the tool; and only where something contradicts."""
    id = await contradicted(agent, worker)
    problem_of(await examined(agent, id, HAPPENED), 403, "out-of-scope")
    async with api.client(await scene.key(actor_id=scene.admin_id, tools=("sandbox.*",))) as narrow:
        problem_of(await examined(narrow, id, HAPPENED), 404, "not-found")
    other = await make_scene(scene.database, scene.wrapping_key)
    async with api.client(other.admin_key) as stranger:
        problem_of(await examined(stranger, id, HAPPENED), 404, "not-found")
    problem_of(await examined(admin, uuid4(), HAPPENED), 404, "not-found")
    untouched = await reserved(agent, "pi_2")
    problem_of(await examined(admin, untouched, HAPPENED), 409, "not-contradicted")
    problem_of(await agent.post("/v1/tool-calls", json=refund()), 409, "contradiction")


async def test_it_is_shown_and_closed_by_command(
    api: RunningApi, scene: Scene, agent: httpx2.AsyncClient, worker: StandIn
) -> None:
    """`outbox doubts` and `outbox explain` name it and what to do; `outbox doubts examine` does it."""
    id = await contradicted(agent, worker)
    shown = outbox(api, scene.admin_key, "doubts")
    assert "CONTRADICTED refund:pi_1 (stripe.refund.create on stripe) is failed, against re_" in shown
    assert f"outbox doubts examine {id}" in shown
    assert "CONTRADICTED" not in outbox(api, scene.admin_key, "doubts", "--where", "needs=recovery")
    assert f"outbox doubts examine {id}" in outbox(api, scene.admin_key, "explain", str(id))
    words = ["doubts", "examine", str(id), "--reason", "It stands there.", "--evidence", "https://dashboard.example/re_1"]
    assert "external_reference" in outbox(api, scene.admin_key, *words, "--as", "happened", code=1)
    outbox(api, scene.agent_key, *words, "--as", "happened", "--reference", "re_1", code=4)
    done = outbox(api, scene.admin_key, *words, "--as", "happened", "--reference", "re_1")
    assert "refund:pi_1 is contradicted no more. Callers are told of receipt" in done
    assert "No doubts." in outbox(api, scene.admin_key, "doubts")
    explained = outbox(api, scene.admin_key, "explain", str(id))
    assert "examined" in explained
    assert "outbox doubts examine" not in explained
