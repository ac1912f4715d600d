"""`POST /v1/reservations` and what a client says of its attempt, over HTTP against a real Postgres."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest_asyncio
from tests.support.api import RunningApi, Scene, problem_of, refund, until, until_waiting
from tests.support.invariants import assert_invariants

INLINE_A = {"key": "charge:{order}", "class": "A", "owner": "billing", "receipt": "id"}
TOOL = "billing.charge.create"


@pytest_asyncio.fixture(autouse=True)
async def invariants(scene: Scene) -> AsyncIterator[None]:
    """Whatever a test leaves in the ledger breaks no invariant."""
    yield
    await assert_invariants(scene.database.superuser_url)


def charge(order: str = "o-1", *, attempt_id: UUID | None = None, **members: Any) -> dict[str, Any]:
    """A client-executed call under an inline contract of class A."""
    body: dict[str, Any] = {"tool": TOOL, "input": {"order": order, "amount": 5}, "attempt_id": str(attempt_id or uuid4())}
    return {**body, "contract": INLINE_A, **members}


async def opened(client: httpx2.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    """Reserve, and expect to be given the attempt."""
    response = await client.post("/v1/reservations", json=body)
    assert response.status_code == 201, response.text
    document: dict[str, Any] = response.json()
    assert document["attempt"] is not None, document
    return document


async def settled(
    client: httpx2.AsyncClient, held: dict[str, Any], outcome: str = "succeeded", **members: Any
) -> httpx2.Response:
    """Settle the attempt of an answer of `opened`."""
    body = {"attempt_id": held["attempt"]["id"], "outcome": outcome, **members}
    return await client.post(f"/v1/reservations/{held['reservation_id']}/settle", json=body)


async def test_straight_path(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A caller is given the attempt, settles it, and whoever asks again is told what was done: one attempt, one receipt."""
    held = await opened(agent, charge())
    assert held["state"] == "executing"
    assert held["is_error"] is False
    assert held["operation_key"] == "charge:o-1"
    attempt = held["attempt"]
    assert attempt["number"] == 1
    assert attempt["recovering"] is False
    assert attempt["provider_key"].startswith("obx_")
    assert attempt["marker"].startswith("obm_")
    assert 0 < attempt["lease_seconds"] <= 10
    first = await settled(agent, held, result={"id": "ch_1", "lines": [1, 2]}, provider_request_id="req_9")
    assert first.status_code == 200, first.text
    told = first.json()
    assert told["state"] == "succeeded"
    assert told["receipt"]["external_reference"] == "ch_1"
    assert told["receipt"]["confidence"] == "confirmed"
    assert told["result"] == {"id": "ch_1", "lines": [1, 2]}
    again = await agent.post("/v1/reservations", json=charge())
    assert again.status_code == 200
    assert again.headers["outbox-replayed"] == "true"
    assert again.json()["receipt"] == told["receipt"]
    assert again.json()["result"] == told["result"]
    assert await scene.count("attempts") == 1
    assert await scene.count("receipts") == 1
    assert await scene.count("sealed_inputs") == 0


async def lapse_now(scene: Scene, held: dict[str, Any]) -> None:
    """Move the lease of an answer's attempt into the past, as if its owner had been killed."""
    await scene.fetch("update attempts set lease_until = now() - interval '1 second' where id = $1", UUID(held["attempt"]["id"]))


async def let_absences_count(scene: Scene, reservation_id: str) -> None:
    """Move the time from which an absence counts into the past."""
    await scene.fetch("update reservations set absence_counts_at = now() - interval '1 hour' where id = $1", UUID(reservation_id))


async def test_the_same_request_again_finds_its_attempt(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A request whose answer was lost is sent again: the same attempt, the same provider key, one attempt in all."""
    body = charge()
    first, again = await opened(agent, body), await opened(agent, body)
    assert again["reservation_id"] == first["reservation_id"]
    for name in ("id", "number", "epoch", "provider_key", "marker", "recovering"):
        assert again["attempt"][name] == first["attempt"][name]
    assert await scene.count("attempts") == 1
    with_key = {"Idempotency-Key": "k1"}
    keyed = await agent.post("/v1/reservations", json=charge("o-2"), headers=with_key)
    assert keyed.status_code == 201
    await lapse_now(scene, keyed.json())
    # Nothing was final, so nothing was kept: the same key is answered anew, and never with a lease that is over.
    anew = await agent.post("/v1/reservations", json=charge("o-2"), headers=with_key)
    assert (anew.status_code, anew.json()["attempt"]["number"]) == (201, 2)


async def test_of_many_callers_at_once_one_holds_the_attempt(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Twenty callers at once: one is given the attempt, the others wait and are told its receipt."""
    asking = [
        asyncio.create_task(agent.post("/v1/reservations", json=charge(), headers={"Prefer": "wait=30"})) for _ in range(20)
    ]
    done, waiting = await asyncio.wait(asking, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    [winner] = [task.result() for task in done]
    assert winner.status_code == 201, winner.text
    settlement = await settled(agent, winner.json(), result={"id": "ch_1"})
    assert settlement.status_code == 200
    others = await asyncio.gather(*waiting)
    assert {response.status_code for response in others} == {200}
    assert {response.json()["receipt"]["id"] for response in others} == {settlement.json()["receipt"]["id"]}
    assert await scene.count("attempts") == 1


async def test_who_waits_in_vain_is_told_to_come_again(agent: httpx2.AsyncClient) -> None:
    """While another attempt is under way a caller is answered 202 at its deadline, and has no attempt."""
    await opened(agent, charge())
    joined = await agent.post("/v1/reservations", json=charge(), headers={"Prefer": "respond-async"})
    assert joined.status_code == 202
    assert joined.headers["location"].startswith("/v1/reservations/")
    assert "attempt" not in joined.json()


async def test_class_a_is_handed_over(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """After a lapsed lease the next caller has the attempt, with the same provider key, and is told that it recovers."""
    first = await opened(agent, charge(time_limit_seconds=30))
    await lapse_now(scene, first)
    second = await opened(agent, charge(time_limit_seconds=30))
    assert second["reservation_id"] == first["reservation_id"]
    assert (second["attempt"]["number"], second["attempt"]["recovering"]) == (2, True)
    assert second["attempt"]["provider_key"] == first["attempt"]["provider_key"]
    [doubt] = await scene.fetch("select * from attempts where {own} and number = 1")
    assert (doubt["outcome"], doubt["closed_by"]) == ("unknown", "lapse")
    # The first one is alive after all: its heartbeat is refused, its refusal is evidence, its success would settle.
    lost = {"attempt_id": first["attempt"]["id"]}
    problem_of(await agent.post(f"/v1/reservations/{first['reservation_id']}/heartbeat", json=lost), 409, "lease-lost")
    problem_of(await settled(agent, first, "rejected"), 409, "attempt-closed")
    assert (await settled(agent, second, result={"id": "ch_1"})).status_code == 200
    late = await settled(agent, first, result={"id": "ch_1"})
    assert (late.status_code, late.json()["state"]) == (200, "succeeded")
    problem_of(await settled(agent, first, result={"id": "ch_other"}), 409, "contradiction")


async def test_a_late_success_settles_while_another_recovers(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Hand-over against late success: the receipt is the first one's, and the second is told it when it settles."""
    first = await opened(agent, charge())
    await lapse_now(scene, first)
    second = await opened(agent, charge())
    assert (await settled(agent, first)).json()["state"] == "succeeded"
    told = await settled(agent, second)
    assert (told.status_code, told.json()["state"]) == (200, "succeeded")
    assert told.json()["receipt"]["external_reference"] == f"client:{first['reservation_id']}"
    assert told.json()["receipt"]["confidence"] == "asserted"
    assert await scene.count("receipts") == 1
    assert await scene.count("contradictions") == 0


async def test_who_waits_takes_over_when_the_holder_is_gone(api: RunningApi, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A caller who waits is handed the attempt as soon as its holder's lease is over; no worker is needed."""
    first = await opened(agent, charge())
    waiting = asyncio.create_task(agent.post("/v1/reservations", json=charge(), headers={"Prefer": "wait=30"}))
    await until_waiting(api, 1)
    await lapse_now(scene, first)
    response = await asyncio.wait_for(waiting, 20)
    assert response.status_code == 201, response.text
    assert response.json()["attempt"]["recovering"] is True


async def test_what_comes_between_reserving_and_the_attempt_undoes_both(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A contradiction told in the middle of T1 and T2: the caller is told of it, and no reservation stays that nobody holds."""
    first = await opened(agent, charge())
    assert (await settled(agent, first, "rejected")).json()["state"] == "failed"
    waits = "select 1 from pg_locks where relation = 'breakers'::regclass and not granted"
    async with scene.connection() as connection, connection.transaction():
        # Only the claim reads it, after the row of T1.
        await connection.execute("lock table breakers in access exclusive mode")
        asking = asyncio.create_task(agent.post("/v1/reservations", json=charge()))
        await until(lambda: scene.fetch(waits), what="the claim")
        problem_of(await settled(agent, first, external_reference="ch_1"), 409, "outcome-differs")
        assert await scene.count("contradictions") == 1
    told = problem_of(await asyncio.wait_for(asking, 20), 409, "contradiction")
    assert told["contradicted_reservation_id"] == first["reservation_id"]
    assert await scene.count("reservations") == 1


async def test_outside_its_window_class_a_is_a_persons(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A hand-over needs the time limit and the margin inside the provider's window: later nobody is given the attempt."""
    first = await opened(agent, charge(time_limit_seconds=600))
    await lapse_now(scene, first)
    # 23 hours, less a margin of a minute and the limit of ten.
    back = "update reservations set possible_send_at = now() - interval '23 hours' + interval '10 minutes 58 seconds' where {own}"
    await scene.fetch(back)
    problem = problem_of(await agent.post("/v1/reservations", json=charge(time_limit_seconds=600)), 409, "in-doubt")
    assert problem["state"] == "in_doubt"
    assert await scene.count("attempts") == 1
    await opened(agent, charge(time_limit_seconds=550))


CLASS_B = {"key": "ticket:{order}", "class": "B", "receipt": "id", "recovery": [{"lookup": {"settle": "10s", "times": 2}}]}
CLASS_C = {"key": "mail:{order}", "class": "C", "receipt": "id"}


async def test_without_a_time_limit_only_class_a(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Class B and C need the handler's time limit; what was done already is told without one."""
    for contract in (CLASS_B, CLASS_C):
        problem_of(await agent.post("/v1/reservations", json=charge(contract=contract)), 422, "time-limit-required")
    assert await scene.count("reservations") == 0
    held = await opened(agent, charge(contract=CLASS_C, time_limit_seconds=5))
    assert held["attempt"]["time_limit_seconds"] == 5
    await settled(agent, held, external_reference="m-1")
    replay = await agent.post("/v1/reservations", json=charge(contract=CLASS_C))
    assert (replay.status_code, replay.json()["receipt"]["external_reference"]) == (200, "m-1")
    too_long = await agent.post("/v1/reservations", json=charge("o-9", time_limit_seconds=86_000))
    assert problem_of(too_long, 422, "invalid-input")["path"] == "$.time_limit_seconds"


async def test_class_c_goes_to_a_person(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A lapsed lease of class C is a person's doubt: nobody is handed it, also not with `probe`."""
    first = await opened(agent, charge(contract=CLASS_C, time_limit_seconds=5))
    await lapse_now(scene, first)
    for probe in (False, True):
        again = await agent.post("/v1/reservations", json=charge(contract=CLASS_C, time_limit_seconds=5, probe=probe))
        assert problem_of(again, 409, "in-doubt")["retry"]["action"] == "ask-human"
    assert await scene.count("attempts") == 1


async def probed(
    client: httpx2.AsyncClient, first: dict[str, Any], answer: dict[str, Any]
) -> tuple[dict[str, Any], httpx2.Response]:
    """Begin a probe and answer it."""
    url = f"/v1/reservations/{first['reservation_id']}/probes"
    begun = await client.post(url, json={"attempt_id": first["attempt"]["id"]})
    assert begun.status_code == 201, begun.text
    return begun.json(), await client.post(f"{url}/{begun.json()['probe_id']}", json=answer)


async def in_doubt_b(agent: httpx2.AsyncClient, scene: Scene) -> dict[str, Any]:
    """A doubt of class B whose caller is told to probe."""
    first = await opened(agent, charge(contract=CLASS_B, time_limit_seconds=5))
    await lapse_now(scene, first)
    problem_of(await agent.post("/v1/reservations", json=charge(contract=CLASS_B, time_limit_seconds=5)), 409, "in-doubt")
    told = await agent.post("/v1/reservations", json=charge(contract=CLASS_B, time_limit_seconds=5, probe=True))
    assert told.status_code == 201, told.text
    assert told.json()["attempt"] is None
    assert told.json()["probe"]["attempt_id"] == first["attempt"]["id"]
    assert told.json()["probe"]["times"] == 2
    return first


async def test_class_b_finds_its_effect(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A probe that finds the effect settles at once, also before an absence would count."""
    first = await in_doubt_b(agent, scene)
    begun, found = await probed(agent, first, {"found": True, "external_reference": "t-1", "result": {"id": "t-1"}})
    assert begun["counts"] is False
    # The lease, the handler's time limit (as long as the lease at least) and the settle time.
    assert 15 < begun["counts_in_seconds"] <= 20
    assert (found.status_code, found.json()["state"]) == (200, "succeeded")
    assert found.json()["receipt"]["confidence"] == "asserted", "it is the client's word"
    assert found.json()["probe"] == {"id": begun["probe_id"], "verdict": "settled"}
    replay = await agent.post("/v1/reservations", json=charge(contract=CLASS_B, time_limit_seconds=5))
    assert replay.json()["receipt"]["external_reference"] == "t-1"


async def test_who_was_not_asked_to_look_is_not_heard(agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, scene: Scene) -> None:
    """Another actor of the same reach begins no probe of a doubt before it asks for the effect itself and is told to look."""
    first = await in_doubt_b(agent, scene)
    url = f"/v1/reservations/{first['reservation_id']}/probes"
    lost = {"attempt_id": first["attempt"]["id"]}
    problem_of(await admin.post(url, json=lost), 409, "not-probed")
    assert await scene.count("probes") == 0
    told = await admin.post("/v1/reservations", json=charge(contract=CLASS_B, time_limit_seconds=5, probe=True))
    assert (told.status_code, told.json()["probe"]["attempt_id"]) == (201, first["attempt"]["id"])
    assert (await admin.post(url, json=lost)).status_code == 201


async def test_class_b_is_done_again_after_absences_that_count(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """An absence before its time counts for nothing, two at once count once; then the next caller has a new attempt."""
    first = await in_doubt_b(agent, scene)
    _, early = await probed(agent, first, {"found": False})
    assert early.json()["probe"]["verdict"] == "too-early"
    assert 10 < early.json()["probe"]["again_seconds"] <= 20.1
    url = f"/v1/reservations/{first['reservation_id']}/probes"
    begun_early = (await agent.post(url, json={"attempt_id": first["attempt"]["id"]})).json()
    await let_absences_count(scene, first["reservation_id"])
    await scene.fetch("update probes set asked_at = now() - interval '2 hours' where id = $1", UUID(begun_early["probe_id"]))
    answered_late = await agent.post(f"{url}/{begun_early['probe_id']}", json={"found": False})
    assert answered_late.json()["probe"]["verdict"] == "too-early"
    begun, noted = await probed(agent, first, {"found": False})
    assert begun["counts"] is True
    assert (noted.json()["state"], noted.json()["probe"]["verdict"]) == ("in_doubt", "noted")
    _, too_soon = await probed(agent, first, {"found": False})
    assert too_soon.json()["probe"]["verdict"] == "too-early"
    again = await agent.post(f"{url}/{begun['probe_id']}", json={"found": False})
    assert again.json()["probe"]["verdict"] == "noted"
    problem_of(
        await agent.post(f"{url}/{begun['probe_id']}", json={"found": True, "external_reference": "x"}), 409, "outcome-differs"
    )
    await scene.fetch("update reservations set absent_at = absent_at - interval '5 seconds' where {own}")
    _, proven = await probed(agent, first, {"found": False})
    assert (proven.json()["state"], proven.json()["probe"]["verdict"]) == ("reserved", "settled")
    second = await opened(agent, charge(contract=CLASS_B, time_limit_seconds=5))
    assert second["reservation_id"] == first["reservation_id"]
    assert (second["attempt"]["number"], second["attempt"]["recovering"]) == (2, False)
    stale = await agent.post(url, json={"attempt_id": first["attempt"]["id"]})
    problem_of(stale, 409, "not-probed")
    assert (await settled(agent, second, external_reference="t-2")).status_code == 200


async def test_a_client_succeeded_after_all(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Its probes found nothing and nobody began again: the success it settles late counts, and the next caller has its receipt."""
    first = await in_doubt_b(agent, scene)
    for _ in range(2):
        await let_absences_count(scene, first["reservation_id"])
        _, proven = await probed(agent, first, {"found": False})
        await scene.fetch("update reservations set absent_at = absent_at - interval '5 seconds' where {own}")
    assert proven.json()["state"] == "reserved"
    told = await settled(agent, first, external_reference="t-1")
    assert (told.status_code, told.json()["state"]) == (200, "succeeded"), told.text
    replay = await agent.post("/v1/reservations", json=charge(contract=CLASS_B, time_limit_seconds=5))
    assert replay.json()["receipt"] == told.json()["receipt"]
    assert await scene.count("contradictions") == 0


async def test_what_a_client_did_not_send_frees_its_key(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Unsent, deferred and void end as failed and free the key; none of it is taken up by a worker."""
    for say in ("unsent", "deferred"):
        held = await opened(agent, charge())
        told = await settled(agent, held, say, reason="ConnectError")
        assert (told.status_code, told.json()["state"]) == (200, "failed")
        assert told.json()["retry"]["action"] == "same-request"
        assert (await settled(agent, held, say)).json() == told.json()
    held = await opened(agent, charge())
    url = f"/v1/reservations/{held['reservation_id']}/void"
    told = await agent.post(url, json={"attempt_id": held["attempt"]["id"], "reason": "changed my mind"})
    assert told.json()["state"] == "failed"
    problem_of(await agent.post(url, json={}), 409, "not-withdrawable")
    assert await scene.count("reservations") == 3
    assert await scene.fetch("select 1 from reservations where {own} and live") == []


async def test_what_nobody_holds_is_voided(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """After proven absence the reservation waits for the next caller, and can be withdrawn without an attempt."""
    first = await in_doubt_b(agent, scene)
    await let_absences_count(scene, first["reservation_id"])
    url = f"/v1/reservations/{first['reservation_id']}"
    problem_of(await agent.post(f"{url}/void", json={"reason": "no more"}), 409, "not-withdrawable")
    await probed(agent, first, {"found": False})
    await scene.fetch("update reservations set absent_at = absent_at - interval '5 seconds' where {own}")
    await probed(agent, first, {"found": False})
    for _ in range(2):
        told = await agent.post(f"{url}/void", json={"reason": "no more"})
        assert (told.status_code, told.json()["state"]) == (200, "voided")
    await opened(agent, charge(contract=CLASS_B, time_limit_seconds=5))


async def test_a_refusal_is_told(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A client's `rejected` is a failure with the provider's code; the key is free, and the words live sealed for a day."""
    held = await opened(agent, charge())
    said = {
        "provider_status": 402,
        "provider_code": "card_declined",
        "provider_message": "Your card was declined.",
        "stored": True,
    }
    told = await settled(agent, held, "rejected", **said)
    assert (told.status_code, told.json()["state"]) == (200, "failed")
    assert told.json()["failure"] == {name: said[name] for name in ("provider_status", "provider_code", "provider_message")}
    again = await opened(agent, charge())
    assert again["reservation_id"] != held["reservation_id"]
    # The provider keeps the refusal under the old key, so the next one is of the next generation.
    assert again["attempt"]["provider_key"] != held["attempt"]["provider_key"]
    assert again["attempt"]["marker"] == held["attempt"]["marker"]


async def test_heartbeats_end_with_the_time_limit(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A heartbeat renews the lease for what it was granted, never past the handler's time limit and a margin for its settlement."""
    held = await opened(agent, charge(time_limit_seconds=8))
    url, body = f"/v1/reservations/{held['reservation_id']}/heartbeat", {"attempt_id": held["attempt"]["id"]}
    lease = (await agent.post(url, json=body)).json()
    assert held["attempt"]["lease_seconds"] == 10
    assert 9 < lease["lease_seconds"] <= 10
    # Six seconds later: the limit of eight and the margin of five leave seven.
    await scene.fetch("update attempts set claimed_at = claimed_at - interval '6 seconds' where {own}")
    await scene.fetch("update attempts set lease_until = now() + interval '1 second' where {own}")
    assert 6 < (await agent.post(url, json=body)).json()["lease_seconds"] <= 7
    unlimited = await opened(agent, charge("o-2"))
    url, body = f"/v1/reservations/{unlimited['reservation_id']}/heartbeat", {"attempt_id": unlimited["attempt"]["id"]}
    await scene.fetch("update attempts set claimed_at = now() - interval '20 hours' where id = $1", UUID(body["attempt_id"]))
    assert 9 < (await agent.post(url, json=body)).json()["lease_seconds"] <= 10
    # Not even without a limit past what the provider key is good for.
    await scene.fetch(
        "update reservations set possible_send_at = now() - interval '23 hours' where id = $1", UUID(unlimited["reservation_id"])
    )
    await scene.fetch("update attempts set lease_until = now() + interval '2 seconds' where id = $1", UUID(body["attempt_id"]))
    assert (await agent.post(url, json=body)).json()["lease_seconds"] <= 2


async def test_bad_settlements_change_nothing(agent: httpx2.AsyncClient, scene: Scene, api: RunningApi) -> None:
    """Wrong attempts, other actors, oversized results, second outcomes: a typed problem, evidence, and the same row as before."""
    held = await opened(agent, charge())
    url = f"/v1/reservations/{held['reservation_id']}/settle"
    before = await scene.fetch("select * from reservations where {own}")

    async def evidence() -> int:
        return len(await scene.fetch("select 1 from ledger_entries where {own} and kind = 'evidence'"))

    wrong = {"attempt_id": str(uuid4()), "outcome": "succeeded", "external_reference": "ch_x"}
    for _ in range(2):
        problem_of(await agent.post(url, json=wrong), 409, "attempt-unknown")
    assert await evidence() == 1
    other = await scene.key(actor_id=scene.admin_id)
    async with api.client(other) as stranger:
        problem_of(await settled(stranger, held), 409, "attempt-unknown")
    assert await evidence() == 2
    large = await settled(agent, held, result="x" * (256 << 10))
    assert problem_of(large, 413, "too-large")["path"] == "$.result"
    assert await evidence() == 3
    problem_of(await agent.post(f"/v1/reservations/{uuid4()}/settle", json=wrong), 404, "not-found")
    for body, path in (
        ({**wrong, "attempt_id": "1"}, "$.attempt_id"),
        ({**wrong, "outcome": "done"}, "$.outcome"),
        ({**wrong, "outcome": "unsent"}, "$.external_reference"),
        ({**wrong, "external_reference": "a\nb"}, "$.external_reference"),
        ({**wrong, "external_reference": "x" * 1001}, "$.external_reference"),
        ({**wrong, "reason": 'he said: "no"'}, "$.reason"),
        ({**wrong, "more": 1}, "$.more"),
        ({**wrong, "provider_status": 7}, "$.provider_status"),
        ({**wrong, "amount": 5}, "$.amount"),
    ):
        assert problem_of(await agent.post(url, json=body), 422, "invalid-input")["path"] == path
    assert await scene.fetch("select * from reservations where {own}") == before
    assert (await settled(agent, held, result={"id": "ch_1"})).status_code == 200
    final = await scene.fetch("select * from reservations where {own}")
    for _ in range(2):
        differs = problem_of(await settled(agent, held, "rejected"), 409, "outcome-differs")
        assert (differs["settled_as"], differs["state"]) == ("succeeded", "succeeded")
    problem_of(await settled(agent, held, external_reference="ch_2"), 409, "outcome-differs")
    assert await scene.fetch("select * from reservations where {own}") == final
    assert await scene.count("receipts") == 1


async def test_settled_twice_is_the_same_bytes(agent: httpx2.AsyncClient) -> None:
    """The same settlement again, as after a lost answer: the same bytes, nothing written."""
    held = await opened(agent, charge())
    first, again = [await settled(agent, held, result={"id": "ch_1"}) for _ in range(2)]
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.content == again.content


async def test_an_unknown_outcome_is_a_doubt(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """`unknown` puts the reservation in doubt at once; its own later success settles it, another refusal is evidence."""
    held = await opened(agent, charge())
    told = await settled(agent, held, "unknown", reason="ReadTimeout")
    assert (told.status_code, told.json()["state"]) == (200, "in_doubt")
    assert (await settled(agent, held, "unknown")).status_code == 200
    problem_of(await settled(agent, held, "rejected"), 409, "outcome-differs")
    assert (await settled(agent, held, result={"id": "ch_1"})).json()["state"] == "succeeded"


async def test_a_refused_hand_over_leaves_the_doubt(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """An outcome speaks of its own attempt: the second's refusal does not say that the first had no effect."""
    first = await opened(agent, charge())
    await lapse_now(scene, first)
    second = await opened(agent, charge())
    assert (await settled(agent, second, "rejected")).json()["state"] == "in_doubt"
    third = await opened(agent, charge())
    assert (await settled(agent, third, "unsent")).json()["state"] == "in_doubt"


async def test_inline_contracts_have_bounds(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """An inline contract is refused where it is unclear, where the tool has one, and where it is none of a sandbox's; the same is one version."""
    for contract, path in (
        ({"key": "x"}, "$.contract.key"),
        ({"key": "{a}{b}"}, "$.contract.key"),
        ({"key": "charge:{order}", "scope": "world"}, "$.contract.scope"),
        ({"key": "charge:{order}", "class": "D"}, "$.contract.class"),
        ({"key": "charge:{order}", "receipt": "]["}, "$.contract.receipt"),
        ({"key": "charge:{order}", "class": "C", "recovery": ["resend"]}, "$.contract.recovery"),
        ({"key": "charge:{order}", "class": "A", "recovery": ["person"]}, "$.contract.recovery"),
        (
            {"key": "charge:{order}", "class": "B", "recovery": [{"lookup": {"settle": "0s"}}]},
            "$.contract.recovery.lookup.settle",
        ),
        ({"key": "charge:{order}", "url": "https://x"}, "$.contract.url"),
        ({"key": "charge:{order}", "owner": "o" * 9000}, "$.contract"),
        (5, "$.contract"),
    ):
        assert (
            problem_of(await agent.post("/v1/reservations", json=charge(contract=contract)), 422, "invalid-input")["path"] == path
        )
    shadow = {**refund(), "attempt_id": str(uuid4()), "contract": {"key": "refund:{payment_intent}", "class": "A"}}
    assert problem_of(await agent.post("/v1/reservations", json=shadow), 422, "invalid-input")["path"] == "$.contract"
    assert await scene.count("reservations") == 0
    for order in ("o-1", "o-2", "o-3"):
        await opened(agent, charge(order))
    await opened(agent, charge("o-4", contract={**INLINE_A, "owner": "others"}))
    rows = await scene.fetch("select version, document from tool_contracts where {own} and tool = $1 order by version", TOOL)
    assert [row["version"] for row in rows] == [1 << 30, (1 << 30) + 1]
    assert rows[0]["document"]["version"] == 1 << 30
    problem_of(await agent.post("/v1/tool-calls", json={"tool": TOOL, "input": {"order": "o-1"}}), 404, "unknown-tool")


async def test_digest_keys_and_references(agent: httpx2.AsyncClient) -> None:
    """`input` names the effect by its digest; `{reference}` by the caller's case; another input under one key is a conflict."""
    by_digest = {"key": "input", "class": "A"}
    first = await opened(agent, charge(contract=by_digest))
    assert first["operation_key"] == first["input_digest"]
    other = await opened(agent, charge(contract=by_digest, input={"order": "o-1", "amount": 6}))
    assert other["reservation_id"] != first["reservation_id"]
    named = await opened(agent, charge(contract={"key": "case:{reference}", "class": "A"}, reference="r-1"))
    assert named["operation_key"] == "case:r-1"
    await opened(agent, charge("o-7"))
    problem_of(await agent.post("/v1/reservations", json=charge("o-7", input={"order": "o-7", "amount": 9})), 422, "conflict")


async def test_gateway_and_client_meet(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """One effect, two ways: whoever comes second joins and replays, and is never given an attempt of the other executor."""
    call = refund("pi_7")
    held = await opened(agent, {**call, "attempt_id": str(uuid4())})
    joined = await agent.post("/v1/tool-calls", json=call, headers={"Prefer": "respond-async"})
    assert (joined.status_code, joined.json()["reservation_id"]) == (202, held["reservation_id"])
    answer = {"id": "re_1", "status": "succeeded", "amount": 1300, "currency": "eur", "object": "refund", "secret": "no"}
    told = await settled(agent, held, result=answer)
    assert told.json()["result"] == {name: answer[name] for name in ("id", "status", "amount", "currency")}
    replay = await agent.post("/v1/tool-calls", json=call)
    assert replay.status_code == 200
    assert replay.json()["receipt"] == told.json()["receipt"]
    [variance] = await scene.fetch("select detail from ledger_entries where {own} and kind = 'variance'")
    assert variance["detail"]["reported"] == {"amount": 1300, "currency": "EUR"}
    by_worker = await agent.post("/v1/tool-calls", json=refund("pi_8"), headers={"Prefer": "respond-async"})
    met = await agent.post(
        "/v1/reservations", json={**refund("pi_8"), "attempt_id": str(uuid4())}, headers={"Prefer": "respond-async"}
    )
    assert (met.status_code, met.json()["reservation_id"]) == (202, by_worker.json()["reservation_id"])
    settle = f"/v1/reservations/{met.json()['reservation_id']}/settle"
    problem_of(await agent.post(settle, json={"attempt_id": str(uuid4()), "outcome": "unsent"}), 409, "not-client-executed")
    assert await scene.count("attempts") == 1


async def test_attempt_ids_are_used_once(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """An attempt id that is over, or another effect's, opens nothing."""
    body = charge()
    first = await opened(agent, body)
    other = await agent.post("/v1/reservations", json=charge("o-2", attempt_id=UUID(first["attempt"]["id"])))
    problem_of(other, 409, "attempt-closed")
    await lapse_now(scene, first)
    problem_of(await agent.post("/v1/reservations", json=body), 409, "attempt-closed")
    assert await scene.count("reservations") == 1
    assert await scene.count("attempts") == 1


async def test_a_contract_beyond_what_postgres_can_add_is_refused(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Times that no clock reaches and tries that nobody counts are 422 with their place, and nothing is written.

    A worker lapses leases of all organizations in one statement, and one such settle time would stop it for all of them.
    """
    before = await scene.count("tool_contracts")
    bad = [
        {"class": "B", "recovery": [{"lookup": {"settle": "31d"}}]},
        {"class": "B", "recovery": [{"lookup": {"settle": "200000000d"}}]},
        {"class": "B", "recovery": [{"lookup": {"settle": "1s", "times": 10**12}}]},
        {"class": "A", "recovery": [{"resend": {"within": "999999999d"}}]},
        {"class": "A", "recovery": [{"resend": {"within": "23h", "times": 101}}]},
    ]
    for contract in bad:
        body = charge(
            contract={"key": "charge:{order}", **contract}, time_limit_seconds=1, tool="times.charge.create", probe=True
        )
        answer = await agent.post("/v1/reservations", json=body)
        assert problem_of(answer, 422, "invalid-input")["path"].startswith("$.contract"), contract
    assert await scene.count("tool_contracts") == before
    good = {"key": "charge:{order}", "class": "B", "recovery": [{"lookup": {"settle": "30d", "times": 100}}]}
    await opened(agent, charge(contract=good, time_limit_seconds=1, tool="times.charge.create", probe=True))


async def test_a_receipt_is_a_plain_path(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """An expression whose value grows with each of its steps would hold up everybody's process: inline, only paths are taken."""
    before = await scene.count("tool_contracts")
    bombs = ["|".join(["[@,@]"] * 24) + "|to_string(@)", "[@,@][]" * 8, "sort(@)", "a.*", "a[*]", "a[?b]", "a || b", "", "a.b\n"]
    for receipt in bombs:
        body = charge(contract={"key": "charge:{order}", "class": "A", "receipt": receipt}, tool="bomb.charge.create")
        answer = await agent.post("/v1/reservations", json=body)
        assert answer.status_code == 422, receipt
    assert await scene.count("tool_contracts") == before
    path = {"key": "charge:{order}", "class": "A", "receipt": "data.items[0].id"}
    held = await opened(agent, charge(contract=path, tool="bomb.charge.create"))
    told = await settled(agent, held, result={"data": {"items": [{"id": "ch_7"}]}})
    assert told.json()["receipt"]["external_reference"] == "ch_7"


async def test_a_key_brings_no_contract_for_what_it_does_not_reach(scene: Scene, api: RunningApi) -> None:
    """A call outside its key's reach is refused before its inline contract is kept: strangers cannot use up their number."""
    before = await scene.count("tool_contracts")
    async with api.client(await scene.key(tools=["stripe.refund.create"], providers=["stripe"])) as narrow:
        answer = await narrow.post("/v1/reservations", json=charge(tool="other.charge.create"))
    problem_of(answer, 403, "out-of-scope")
    assert await scene.count("tool_contracts") == before


async def test_who_is_handed_an_attempt_can_settle_it(scene: Scene, api: RunningApi) -> None:
    """An effect of the whole environment that another run began is handed over to a key of this run, which renews and settles it."""
    async with api.client(await scene.key(run="a")) as first, api.client(await scene.key(run="b")) as second:
        await lapse_now(scene, await opened(first, charge("handed")))
        held = await opened(second, charge("handed"))
        assert held["attempt"]["recovering"]
        url = f"/v1/reservations/{held['reservation_id']}"
        renewed = await second.post(f"{url}/heartbeat", json={"attempt_id": held["attempt"]["id"]})
        assert renewed.status_code == 200, renewed.text
        assert (await settled(second, held, result={"id": "ch_1"})).json()["state"] == "succeeded"


async def test_a_renewal_is_answered_anew(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A heartbeat sent again under its request key after the lease is over is told so, not what was true before."""
    held = await opened(agent, charge("renewed"))
    url = f"/v1/reservations/{held['reservation_id']}/heartbeat"
    body, with_key = {"attempt_id": held["attempt"]["id"]}, {"Idempotency-Key": "renewal"}
    assert (await agent.post(url, json=body, headers=with_key)).status_code == 200
    await lapse_now(scene, held)
    problem_of(await agent.post(url, json=body, headers=with_key), 409, "lease-lost")


async def test_two_operations_on_one_object_in_the_same_instant(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Of clients that reserve one object at once one holds the attempt, and every other is told that the object is busy."""

    def setting(number: int) -> dict[str, Any]:
        named = {"input": {"name": "colour", "value": str(number)}, "reference": f"case-{number}"}
        return {"tool": "sandbox.label.set", "attempt_id": str(uuid4()), **named}

    answers = await asyncio.gather(*(agent.post("/v1/reservations", json=setting(number)) for number in range(12)))
    [first] = [answer.json() for answer in answers if answer.status_code == 201]
    for answer in answers:
        if answer.status_code != 201:
            assert problem_of(answer, 409, "object-busy")["open_reservation_id"] == first["reservation_id"]
    assert await scene.count("reservations") == 1
