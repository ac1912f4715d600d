"""People end doubts: what they may say when, who may say it, and what is written down."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from tests.support.api import RunningApi, Scene, StandIn, make_scene, problem_of, refund, stand_in, until, until_waiting
from tests.support.invariants import assert_invariants

from outbox_domain.reservation import Outcome, State
from outbox_runtime.sealing import WrappingKey
from outbox_store import actors

SAW = {"reason": "Seen in the provider's dashboard.", "evidence": "https://dashboard.example/re_1"}
HAPPENED = {"as": "happened", "external_reference": "re_1", **SAW}
DID_NOT = {"as": "did-not-happen", **SAW}
AT_ONCE, NOT_YET = 0.0, 600.0


@pytest.fixture
async def worker(scene: Scene) -> AsyncIterator[StandIn]:
    """Plays the worker of this test's organization; the invariants hold when the test is over."""
    async with stand_in(scene) as made:
        yield made
    await assert_invariants(scene.database.superuser_url)


async def reserved(agent: httpx2.AsyncClient, payment_intent: str = "pi_1", **members: Any) -> UUID:
    """A reservation that nobody has taken up."""
    answer = await agent.post("/v1/tool-calls", json=refund(payment_intent, **members), headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    return UUID(answer.json()["reservation_id"])


async def doubt(
    agent: httpx2.AsyncClient,
    worker: StandIn,
    payment_intent: str = "pi_1",
    *,
    absence_in_seconds: float = AT_ONCE,
    recovery_due: bool = False,
    reason: str = "answer lost",
    **members: Any,
) -> UUID:
    """A reservation in doubt; an absence counts from its lease's end on, which is moved so that it does in some seconds."""
    id = await reserved(agent, payment_intent, **members)
    attempt = await worker.claim(id)
    settled = await worker.settle(
        attempt, Outcome.UNKNOWN, recover_seconds=60.0 if recovery_due else None, provider_status=None, reason=reason
    )
    assert settled.state is State.IN_DOUBT
    async with worker.scene.connection() as connection:
        await connection.execute(
            "update reservations set absence_counts_at = now() + make_interval(secs => $2) where id = $1",
            id,
            absence_in_seconds - 0.001,
        )
    return id


async def standing(scene: Scene, id: UUID) -> dict[str, Any]:
    """The row, with all that hangs on it counted: what nothing may have changed in."""
    [row] = await scene.fetch(
        """select r.*, o.due_at, (select count(*) from ledger_entries e where e.reservation_id = r.id) as entries,
             (select count(*) from receipts t where t.reservation_id = r.id) as receipts,
             (select count(*) from contradictions c where c.reservation_id = r.id) as contradictions
           from reservations r left join open_reservations o on o.reservation_id = r.id where r.id = $1""",
        id,
    )
    return row


async def answer(client: httpx2.AsyncClient, id: UUID, document: Any, **headers: str) -> httpx2.Response:
    """A person's answer."""
    return await client.post(f"/v1/reviews/doubts/{id}", json=document, headers=headers)


async def entry_of(admin: httpx2.AsyncClient, id: UUID) -> dict[str, Any]:
    """The last ledger entry of a reservation."""
    listed = await admin.get("/v1/ledger-entries", params={"reservation_id": str(id)})
    entry: dict[str, Any] = listed.json()["items"][-1]
    return entry


@pytest.mark.parametrize("recovery_due", [False, True])
async def test_it_happened_is_taken_at_any_time(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, recovery_due: bool
) -> None:
    """With a reference, before an absence would count and while recovery is due: succeeded, asserted, by this person."""
    id = await doubt(agent, worker, absence_in_seconds=NOT_YET, recovery_due=recovery_due)
    told = await answer(admin, id, HAPPENED)
    assert told.status_code == 200, told.text
    assert told.json()["state"] == "succeeded"
    receipt = told.json()["receipt"]
    assert (receipt["external_reference"], receipt["confidence"]) == ("re_1", "asserted")
    assert receipt["actor_chain"] == ["agent:refunds"]
    said = receipt["evidence"][0]
    assert said["kind"] == "person"
    assert said["detail"] == {"by": "member:admin@example.com", **SAW}
    entry = await entry_of(admin, id)
    assert entry["actor_chain"] == ["member:admin@example.com"]
    assert (entry["kind"], entry["from"], entry["to"]) == ("settled", "in_doubt", "succeeded")
    assert entry["detail"]["by"] == "person"
    again = await agent.post("/v1/tool-calls", json=refund())
    assert (again.status_code, again.json()["replayed"]) == (200, True)
    assert again.json()["receipt"] == receipt


async def test_it_did_not_happen_frees_the_key(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """Once an absence counts: failed, the attempt proven absent, the input gone, and the same call makes a new reservation."""
    id = await doubt(agent, worker)
    told = await answer(admin, id, DID_NOT)
    assert told.status_code == 200, told.text
    assert told.json()["state"] == "failed"
    [attempt] = await scene.fetch("select * from attempts where reservation_id = $1", id)
    assert (attempt["outcome"], attempt["proven_absent"]) == ("unknown", True)
    assert (await entry_of(admin, id))["actor_chain"] == ["member:admin@example.com"]
    assert await reserved(agent) != id


async def test_an_absence_that_does_not_count_yet(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """Before `absence_counts_at` a person is told the time, override or not, and nothing is changed."""
    id = await doubt(agent, worker, absence_in_seconds=NOT_YET)
    before = await standing(scene, id)
    for document in (DID_NOT, {**DID_NOT, "override": True}):
        problem = problem_of(await answer(admin, id, document), 409, "absence-too-early")
        assert problem["absence_counts_at"][:19] == before["absence_counts_at"].isoformat()[:19]
        assert problem["retry"]["action"] == "wait"
        assert 500 < problem["retry"]["after_seconds"] <= 600
        assert (problem["state"], problem["reservation_id"]) == ("in_doubt", str(id))
    assert await standing(scene, id) == before


async def test_recovery_goes_first(admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene) -> None:
    """While automatic recovery is due, that it did not happen needs an override; with it recovery finds nothing left to do."""
    id = await doubt(agent, worker, recovery_due=True)
    before = await standing(scene, id)
    problem = problem_of(await answer(admin, id, DID_NOT), 409, "recovery-due")
    assert problem["next_check"][:19] == before["due_at"].isoformat()[:19]
    assert await standing(scene, id) == before
    told = await answer(admin, id, {**DID_NOT, "override": True})
    assert told.json()["state"] == "failed", told.text
    assert (await entry_of(admin, id))["detail"]["evidence"][0]["detail"]["override"] is True
    assert await scene.fetch("select 1 from open_reservations where reservation_id = $1", id) == []


@pytest.mark.parametrize("state", ["reserved", "executing", "succeeded", "failed"])
@pytest.mark.parametrize("document", [HAPPENED, DID_NOT])
async def test_where_there_is_no_doubt(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene, state: str, document: dict[str, Any]
) -> None:
    """In any other state an answer is a typed problem and nothing is changed; that it happened is taken while it is executed."""
    id = await reserved(agent)
    if state != "reserved":
        attempt = await worker.claim(id)
    if state in ("succeeded", "failed"):
        await worker.settle(attempt, Outcome.SUCCEEDED if state == "succeeded" else Outcome.REJECTED, provider_code=None)
    before = await standing(scene, id)
    assert before["state"] == state
    response = await answer(admin, id, document)
    if state == "executing" and document is HAPPENED:
        assert response.json()["state"] == "succeeded"
        [closed] = await scene.fetch("select * from attempts where reservation_id = $1", id)
        assert (closed["outcome"], closed["closed_by"]) == ("unknown", "person")
        return
    problem_of(response, 409, "not-in-doubt")
    assert await standing(scene, id) == before
    if state == "executing":
        await worker.settle(attempt)


async def test_it_happened_although_it_is_about_to_be_sent_again(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """Reserved again, because what was sent was thought absent: that it did not happen is said already, that it did settles it."""
    id = await reserved(agent)
    await worker.settle(await worker.claim(id), Outcome.UNSENT, again_seconds=60.0)
    before = await standing(scene, id)
    problem_of(await answer(admin, id, DID_NOT), 409, "not-in-doubt")
    assert await standing(scene, id) == before
    told = await answer(admin, id, HAPPENED)
    assert (told.status_code, told.json()["state"]) == (200, "succeeded")
    assert (await entry_of(admin, id))["from"] == "reserved"
    assert (await agent.post("/v1/tool-calls", json=refund())).json()["receipt"] == told.json()["receipt"]


async def test_what_the_receipt_says_already(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """The same answer once more is answered with the receipt and changes nothing; another reference is refused."""
    id = await doubt(agent, worker)
    first = await answer(admin, id, HAPPENED)
    before = await standing(scene, id)
    again = await answer(admin, id, HAPPENED)
    assert (again.status_code, again.json()["receipt"]) == (200, first.json()["receipt"])
    problem_of(await answer(admin, id, {**HAPPENED, "external_reference": "re_2"}), 409, "not-in-doubt")
    assert await standing(scene, id) == before


async def test_two_people_at_once(admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene) -> None:
    """Of ten contradicting answers given at once one settles; the others are refused or find their words on the receipt."""
    id = await doubt(agent, worker)
    told = await asyncio.gather(*(answer(admin, id, document) for _ in range(5) for document in (HAPPENED, DID_NOT)))
    state = (await standing(scene, id))["state"]
    accepted = [response for response in told if response.status_code == 200]
    assert accepted
    assert {response.json()["state"] for response in accepted} == {state}
    for response in told:
        if response.status_code != 200:
            problem_of(response, 409, "not-in-doubt")
    [settled] = await scene.fetch(
        "select count(*) as n from ledger_entries where reservation_id = $1 and to_state in ('succeeded', 'failed')", id
    )
    assert settled["n"] == 1


async def test_a_late_success_after_a_person(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """A worker that comes back with the receipt after a person said that nothing happened leaves a contradiction."""
    id = await reserved(agent)
    attempt = await worker.claim(id)
    await worker.settle(attempt, Outcome.UNKNOWN, recover_seconds=None, settle_seconds=0.0)
    async with scene.connection() as connection:
        await connection.execute("update reservations set absence_counts_at = now() where id = $1", id)
    assert (await answer(admin, id, DID_NOT)).json()["state"] == "failed"
    late = await worker.settle(attempt)
    assert late.verdict == "contradiction"
    problem_of(await agent.post("/v1/tool-calls", json=refund()), 409, "contradiction")


async def test_a_request_key(admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene) -> None:
    """The same request key gives the same bytes; a refusal for the time is not kept, so the request may be made again later."""
    id = await doubt(agent, worker, absence_in_seconds=NOT_YET)
    headers = {"Idempotency-Key": f"k-{uuid4()}"}
    problem_of(await answer(admin, id, DID_NOT, **headers), 409, "absence-too-early")
    async with scene.connection() as connection:
        await connection.execute("update reservations set absence_counts_at = now() where id = $1", id)
    first = await answer(admin, id, DID_NOT, **headers)
    assert first.json()["state"] == "failed"
    again = await answer(admin, id, DID_NOT, **headers)
    assert (again.content, again.headers["idempotent-replayed"]) == (first.content, "true")
    problem_of(await answer(admin, id, HAPPENED, **headers), 422, "request-key-reused")


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ([], "$"),
        ({}, "$.as"),
        ({**HAPPENED, "as": "perhaps"}, "$.as"),
        ({**HAPPENED, "external_reference": None}, "$.external_reference"),
        ({**HAPPENED, "external_reference": ""}, "$.external_reference"),
        ({**HAPPENED, "external_reference": "é" * 501}, "$.external_reference"),
        ({**HAPPENED, "external_reference": "re\x00"}, "$.external_reference"),
        ({**HAPPENED, "external_reference": 7}, "$.external_reference"),
        ({**DID_NOT, "external_reference": "re_1"}, "$.external_reference"),
        ({**DID_NOT, "reason": " "}, "$.reason"),
        ({**DID_NOT, "reason": "x" * 501}, "$.reason"),
        ({"as": "did-not-happen", "reason": "Because."}, "$.evidence"),
        ({**DID_NOT, "evidence": "x" * 2001}, "$.evidence"),
        ({**DID_NOT, "override": "yes"}, "$.override"),
        ({**DID_NOT, "batch_id": "7"}, "$.batch_id"),
        ({**DID_NOT, "force": True}, "$.force"),
    ],
)
async def test_what_is_no_answer(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene, document: Any, path: str
) -> None:
    """A body that is not an answer is refused with the member at fault, and nothing is changed."""
    id = await doubt(agent, worker)
    before = await standing(scene, id)
    assert problem_of(await answer(admin, id, document), 422, "invalid-request")["path"] == path
    assert await standing(scene, id) == before


@pytest.mark.parametrize(
    ("role", "may"), [("operator", True), ("admin", True), ("approver", False), ("auditor", False), ("developer", False)]
)
async def test_who_may_answer(
    api: RunningApi, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene, role: str, may: bool
) -> None:
    """Owners, admins and operators; no other role, and no agent, not even the one that asked for the effect."""
    id = await doubt(agent, worker)
    async with scene.connection() as connection:
        actor_id = await actors.ensure(connection, scene.organization_id, uuid4(), "member", f"{role}@example.com")
        await actors.make_member(connection, scene.organization_id, actor_id, [role])
    before = await standing(scene, id)
    problem_of(await answer(agent, id, HAPPENED), 403, "out-of-scope")
    async with api.client(await scene.key(actor_id=actor_id)) as member:
        response = await answer(member, id, HAPPENED)
    if may:
        assert response.json()["state"] == "succeeded", response.text
        return
    problem_of(response, 403, "out-of-scope")
    assert await standing(scene, id) == before


@pytest.mark.parametrize("dimensions", [{"tools": ("sandbox.*",)}, {"providers": ("sendgrid",)}, {"run": "another"}])
async def test_how_far_a_key_reaches(
    api: RunningApi, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene, dimensions: dict[str, Any]
) -> None:
    """A person's key that does not reach the tool, the provider or the run does not find the doubt."""
    id = await doubt(agent, worker)
    async with api.client(await scene.key(actor_id=scene.admin_id, **dimensions)) as narrow:
        problem_of(await answer(narrow, id, HAPPENED), 404, "not-found")
    assert (await standing(scene, id))["state"] == "in_doubt"


async def test_what_does_not_exist(admin: httpx2.AsyncClient, worker: StandIn) -> None:
    """An unknown reservation, and what is no id at all, are not found."""
    for id in (uuid4(), "x", "%00"):
        problem_of(await admin.post(f"/v1/reviews/doubts/{id}", json=HAPPENED), 404, "not-found")


async def test_who_waits_is_told(api: RunningApi, admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn) -> None:
    """A caller who waits for a reservation in doubt gets its receipt as soon as a person has answered."""
    id = await doubt(agent, worker, recovery_due=True)
    waiting = asyncio.create_task(agent.post("/v1/tool-calls", json=refund(), headers={"Prefer": "wait=20"}))
    await until_waiting(api, 1)
    await answer(admin, id, HAPPENED)
    told = await asyncio.wait_for(waiting, 5.0)
    assert (told.status_code, told.json()["state"]) == (200, "succeeded")


async def mail(agent: httpx2.AsyncClient, worker: StandIn, reference: str) -> UUID:
    """A mail of class C in doubt: only a person can end it."""
    call = {
        "tool": "sendgrid.mail.send",
        "input": {"from": "a@example.com", "to": "b@example.com", "subject": "s", "text": "t"},
        "reference": reference,
    }
    answered = await agent.post("/v1/tool-calls", json=call, headers={"Prefer": "respond-async"})
    assert answered.status_code == 202, answered.text
    id = UUID(answered.json()["reservation_id"])
    await worker.settle(await worker.claim(id), Outcome.UNKNOWN, recover_seconds=None, reason="lease lapsed")
    return id


async def test_the_summary(admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn) -> None:
    """By connection, tool, class and cause: how many, since when, the money at stake, what happens next, how many need a person."""
    empty = (await admin.get("/v1/doubts/summary")).json()
    nothing: dict[str, Any] = {"groups": [], "episodes": [], "contradictions": []}
    assert empty == {"count": 0, "needs_person": 0, "oldest": None, "amounts": [], **nothing}
    for number in range(3):
        await doubt(agent, worker, f"pi_{number}", recovery_due=number > 0)
    await doubt(agent, worker, "pi_9", absence_in_seconds=NOT_YET, reason="connection reset")
    await mail(agent, worker, "case-1")
    summary = (await admin.get("/v1/doubts/summary")).json()
    assert (summary["count"], summary["needs_person"]) == (5, 3)
    assert summary["amounts"] == [{"value": 4800, "currency": "EUR"}]
    assert [(group["tool"], group["cause"], group["count"], group["needs_person"]) for group in summary["groups"]] == [
        ("sendgrid.mail.send", "lease lapsed", 1, 1),
        ("stripe.refund.create", "answer lost", 3, 1),
        ("stripe.refund.create", "connection reset", 1, 1),
    ]
    mails, lost, reset = summary["groups"]
    assert (mails["class"], mails["connection"], mails["amounts"]) == ("C", "sendgrid", [])
    assert lost["amounts"] == [{"value": 3600, "currency": "EUR"}]
    following = {each["action"]: each for each in lost["next"]}
    assert {action: each["count"] for action, each in following.items()} == {"resend": 2, "person": 1}
    assert following["resend"]["at"] is not None
    assert following["person"]["at"] is None
    assert (lost["absence_counts"], reset["absence_counts"]) == (3, 0)
    asked = [
        (each["connection"], each["cause"], each["attention"], each["waiting"], each["owners"]) for each in summary["episodes"]
    ]
    assert asked == [
        ("stripe", "answer lost", "page", 1, ["payments"]),
        ("stripe", "connection reset", "page", 1, ["payments"]),
        ("sendgrid", "lease lapsed", "queue", 1, ["messaging"]),
    ]
    assert summary["episodes"][0]["amounts"] == [{"value": 1200, "currency": "EUR"}]
    one = (await admin.get("/v1/doubts/summary", params={"cause": "connection reset", "class": "A"})).json()
    assert [group["cause"] for group in one["groups"]] == ["connection reset"]
    assert (await admin.get("/v1/doubts/summary", params={"needs": "recovery"})).json()["count"] == 2
    problem_of(await admin.get("/v1/doubts/summary", params={"needs": "nobody"}), 422, "invalid-request")
    problem_of(await agent.get("/v1/doubts/summary"), 403, "out-of-scope")


async def test_a_key_counts_what_it_reaches(api: RunningApi, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene) -> None:
    """A person's key that is bound to tools, or to a run, sees and ends the doubts of these alone."""
    await doubt(agent, worker, "pi_1", run="thread-1")
    await doubt(agent, worker, "pi_2", run="thread-2")
    await mail(agent, worker, "case-1")
    batch = {"as": "did-not-happen", "reason": "Asked.", "expect": 3, "dry_run": True}
    for dimensions, count in (({"tools": ("stripe.*",)}, 2), ({"run": "thread-1"}, 1), ({"providers": ("sendgrid",)}, 1)):
        async with api.client(await scene.key(actor_id=scene.admin_id, **dimensions)) as narrow:
            assert (await narrow.get("/v1/doubts/summary")).json()["count"] == count
            assert problem_of(await narrow.post("/v1/doubts/resolve", json=batch), 409, "count-differs")["count"] == count


async def test_one_answer_for_many(admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene) -> None:
    """Refused where the count differs, nothing changed; a dry run changes nothing; then one ledger entry each, with the batch's id."""
    ids = [await doubt(agent, worker, f"pi_{number}") for number in range(5)]
    other = await doubt(agent, worker, "pi_9", reason="connection reset")
    before = [await standing(scene, id) for id in (*ids, other)]
    batch = {"where": {"cause": "answer lost"}, "as": "did-not-happen", "reason": "The provider was down.", "expect": 4}
    assert problem_of(await admin.post("/v1/doubts/resolve", json=batch), 409, "count-differs")["count"] == 5
    dry = (await admin.post("/v1/doubts/resolve", json=batch | {"expect": 5, "dry_run": True})).json()
    assert (dry["count"], dry["done"], dry["batch_id"], {item["verdict"] for item in dry["items"]}) == (5, 0, None, {"would"})
    assert [await standing(scene, id) for id in (*ids, other)] == before
    response = await admin.post("/v1/doubts/resolve", json=batch | {"expect": 5}, headers={"Idempotency-Key": "night-1"})
    done = response.json()
    assert (done["count"], done["done"], done["refused"]) == (5, 5, 0), done
    for id in ids:
        assert (await standing(scene, id))["state"] == "failed"
        [entry] = await scene.fetch("select * from ledger_entries where reservation_id = $1 and to_state = 'failed'", id)
        assert entry["detail"]["evidence"][0]["detail"]["batch_id"] == done["batch_id"]
        assert entry["actor_chain"] == ["member:admin@example.com"]
    assert await standing(scene, other) == before[-1]
    again = await admin.post("/v1/doubts/resolve", json=batch | {"expect": 5}, headers={"Idempotency-Key": "night-1"})
    assert again.content == response.content


async def test_many_are_answered_by_half(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """Postgres goes away in the middle: the person learns which are settled, and answers the others by a second request."""
    ids = [await doubt(agent, worker, f"pi_{number}") for number in range(3)]
    batch = {"as": "did-not-happen", "reason": "The provider was down.", "expect": 3}
    async with scene.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("select from reservations where id = $1 for update", ids[1])
        answering = asyncio.create_task(admin.post("/v1/doubts/resolve", json=batch))

        async def waits() -> int | None:
            mine = "$1 = any(pg_blocking_pids(pid))"
            [found] = await scene.fetch(f"select max(pid) as pid from pg_stat_activity where {mine}", connection.get_server_pid())
            backend: int | None = found["pid"]
            return backend

        pid = await until(waits, what="the second answer")
        await scene.fetch("select pg_terminate_backend($1)", pid)
        done = (await asyncio.wait_for(answering, 20.0)).json()
        await transaction.rollback()
    assert (done["done"], done["refused"]) == (1, 2), done
    assert [(UUID(item["reservation_id"]), item["verdict"], item.get("code")) for item in done["items"]] == [
        (ids[0], "settled", None),
        (ids[1], "refused", "unavailable"),
        (ids[2], "refused", "unavailable"),
    ]
    assert [(await standing(scene, id))["state"] for id in ids] == ["failed", "in_doubt", "in_doubt"]
    again = (await admin.post("/v1/doubts/resolve", json=batch | {"expect": 2})).json()
    assert (again["done"], again["refused"]) == (2, 0), again


async def test_what_belongs_to_others(
    api: RunningApi,
    admin: httpx2.AsyncClient,
    agent: httpx2.AsyncClient,
    worker: StandIn,
    scene: Scene,
    wrapping_key: WrappingKey,
) -> None:
    """Owners of another organization, and a key of another environment, find no doubt, count none and change none."""
    id = await doubt(agent, worker)
    before = await standing(scene, id)
    other = await make_scene(scene.database, wrapping_key)
    elsewhere = uuid4()
    async with scene.connection() as connection:
        await connection.execute(
            "insert into environments select (jsonb_populate_record(e, $1)).* from environments e where e.organization_id = $2 limit 1",
            {"id": str(elsewhere), "name": "elsewhere"},
            scene.organization_id,
        )
    keys = [other.admin_key, await replace(scene, environment_id=elsewhere, environment="elsewhere").key(actor_id=scene.admin_id)]
    for key in keys:
        async with api.client(key) as stranger:
            problem_of(await answer(stranger, id, HAPPENED), 404, "not-found")
            assert (await stranger.get("/v1/doubts/summary")).json()["count"] == 0
            batch = {"where": {"reservation": str(id)}, "as": "did-not-happen", "reason": "Asked.", "expect": 1}
            assert problem_of(await stranger.post("/v1/doubts/resolve", json=batch), 409, "count-differs")["count"] == 0
            recheck = {"where": {"reservation": str(id)}, "reason": "Asked.", "expect": 1}
            assert problem_of(await stranger.post("/v1/doubts/recheck", json=recheck), 409, "count-differs")["count"] == 0
    assert await standing(scene, id) == before


async def test_many_happened(admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene) -> None:
    """Each needs the provider's name of its own effect; one that is missing, or of no doubt that is meant, refuses them all."""
    ids = [await doubt(agent, worker, f"pi_{number}") for number in range(3)]
    names = {str(id): f"re_{number}" for number, id in enumerate(ids)}
    batch = {"as": "happened", "reason": "Exported from the provider.", "expect": 3}
    for references in (
        None,
        dict(list(names.items())[:2]),
        names | {str(uuid4()): "re_9"},
        {"x": "re_1"},
        names | {str(ids[0]): ""},
    ):
        refused = await admin.post("/v1/doubts/resolve", json=batch | {"external_references": references})
        problem_of(refused, 422, "invalid-request")
    assert [(await standing(scene, id))["state"] for id in ids] == ["in_doubt"] * 3
    done = (await admin.post("/v1/doubts/resolve", json=batch | {"external_references": names})).json()
    assert done["done"] == 3, done
    assert [(await standing(scene, id))["external_reference"] for id in ids] == ["re_0", "re_1", "re_2"]


async def test_many_before_their_time(
    admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene
) -> None:
    """One that recovery still tries, or of which an absence does not count yet, refuses all; an override needs evidence."""
    batch = {"as": "did-not-happen", "reason": "The provider was down."}
    due = await doubt(agent, worker, "pi_1", recovery_due=True)
    await doubt(agent, worker, "pi_2")
    assert problem_of(await admin.post("/v1/doubts/resolve", json=batch | {"expect": 2}), 409, "recovery-due")["doubts"] == 1
    override = batch | {"expect": 2, "override": True}
    assert problem_of(await admin.post("/v1/doubts/resolve", json=override), 422, "invalid-request")["path"] == "$.evidence"
    early = await doubt(agent, worker, "pi_3", absence_in_seconds=NOT_YET)
    override |= {"evidence": "https://status.example/incident-7"}
    problem = problem_of(await admin.post("/v1/doubts/resolve", json=override | {"expect": 3}), 409, "absence-too-early")
    assert problem["absence_counts_at"][:19] == (await standing(scene, early))["absence_counts_at"].isoformat()[:19]
    assert (await standing(scene, due))["state"] == "in_doubt"
    async with scene.connection() as connection:
        await connection.execute("update reservations set absence_counts_at = now() where id = $1", early)
    assert (await admin.post("/v1/doubts/resolve", json=override | {"expect": 3})).json()["done"] == 3
    nothing = {"reason": "x", "expect": 0}
    problem_of(await agent.post("/v1/doubts/resolve", json=nothing | {"as": "did-not-happen"}), 403, "out-of-scope")
    problem_of(await agent.post("/v1/doubts/recheck", json=nothing), 403, "out-of-scope")


async def test_recovery_begins_again(admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn, scene: Scene) -> None:
    """A recheck hands doubts back to recovery, so many a second, from its first way on; each has a ledger entry with the batch's id."""
    ids = [await doubt(agent, worker, f"pi_{number}") for number in range(4)]
    async with scene.connection() as connection:
        await connection.execute("update reservations set recovery_step = 2, lookups = 7 where id = any($1)", ids)
    batch = {"where": {"needs": "person"}, "reason": "The provider is back.", "expect": 4, "rate_per_second": 2}
    problem_of(await admin.post("/v1/doubts/recheck", json=batch | {"expect": 3}), 409, "count-differs")
    assert (await admin.post("/v1/doubts/recheck", json=batch | {"dry_run": True})).json()["done"] == 0
    assert (await admin.get("/v1/doubts/summary")).json()["needs_person"] == 4
    done = (await admin.post("/v1/doubts/recheck", json=batch)).json()
    assert (done["done"], {item["verdict"] for item in done["items"]}) == (4, {"rechecked"})
    rows = [await standing(scene, id) for id in ids]
    assert [(row["state"], row["recovery_step"], row["lookups"]) for row in rows] == [("in_doubt", 0, 0)] * 4
    pauses = [(later["due_at"] - row["due_at"]).total_seconds() for row, later in itertools.pairwise(rows)]
    assert pauses == [0.5, 0.5, 0.5]
    for id in ids:
        entry = await entry_of(admin, id)
        assert (entry["kind"], entry["from"], entry["to"]) == ("recheck", "in_doubt", "in_doubt")
        assert entry["detail"] == {"by": "person", "reason": "The provider is back.", "batch_id": done["batch_id"]}
        assert entry["actor_chain"] == ["member:admin@example.com"]
    for rate in (0, -1, "5", True, 1e9):
        problem_of(await admin.post("/v1/doubts/recheck", json=batch | {"rate_per_second": rate}), 422, "invalid-request")


async def test_a_reservation_tells_of_its_doubt(admin: httpx2.AsyncClient, agent: httpx2.AsyncClient, worker: StandIn) -> None:
    """Since when, why, who looks next and from when an absence counts; nothing of the kind once it has ended."""
    id = await doubt(agent, worker, absence_in_seconds=NOT_YET, recovery_due=True)
    told = (await agent.get(f"/v1/reservations/{id}")).json()["doubt"]
    assert (told["cause"], told["recovery"]) == ("answer lost", "automatic")
    assert told["since"] < told["next_check"] < told["absence_counts_at"]
    await answer(admin, id, HAPPENED)
    assert (await agent.get(f"/v1/reservations/{id}")).json()["doubt"] is None
