"""What the ledger may have lost, as people see it, and what they may say of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from tests.integration.api.test_client_executed import charge, opened, settled
from tests.integration.api.test_doubts_commands import outbox
from tests.support import processes
from tests.support.api import RunningApi, Scene, problem_of, refund, start_api
from tests.support.invariants import assert_invariants
from tests.support.postgres import Database, PostgresServer

from outbox_domain.reservation import State
from outbox_runtime.sealing import WrappingKey
from outbox_store import actors, organizations
from outbox_store.epochs import Suspicion, suspect

RAISED = """
insert into epochs (number, cause, system_identifier, timeline, lost_since, possibly_lost_until)
select number + 1, 'another timeline', system_identifier, timeline, now() - interval '1 minute', now() + interval '7 days'
from epochs order by number desc limit 1 returning number
"""
REASON = "It was a planned switch-over."


@pytest.fixture(scope="module")
def shared_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A database of this module's own: an epoch is everybody's who shares one."""
    made = postgres_server.migrated_database()
    yield made
    postgres_server.drop(made)


@pytest.fixture(scope="module")
def api(shared_database: Database, wrapping_key: WrappingKey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """An API process on it."""
    running = start_api(processes.start, shared_database, wrapping_key, tmp_path_factory.mktemp("epoch-api"))
    yield running
    running.process.end()


async def raised(scene: Scene) -> int:
    """A new epoch, as a worker begins one."""
    async with scene.connection() as connection:
        return int(await connection.fetchval(RAISED))


async def test_an_epoch_is_shown_and_cleared(scene: Scene, admin: httpx2.AsyncClient) -> None:
    """Who looks sees since when something may be lost; once a person has cleared it, who and why; a second time changes nothing."""
    number = await raised(scene)
    shown = (await admin.get("/v1/epoch")).json()
    assert (shown["number"], shown["cause"], shown["possibly_lost"], shown["cleared_at"]) == (
        number,
        "another timeline",
        True,
        None,
    )
    cleared = await admin.post("/v1/epoch/clear", json={"epoch": number, "reason": REASON}, headers={"Idempotency-Key": "k1"})
    assert cleared.status_code == 200, cleared.text
    document = cleared.json()
    assert (document["possibly_lost"], document["cleared_by"], document["reason"]) == (
        False,
        ["member:admin@example.com"],
        REASON,
    )
    again = await admin.post("/v1/epoch/clear", json={"epoch": number, "reason": "Another reason."})
    assert again.json() == document
    repeated = await admin.post("/v1/epoch/clear", json={"epoch": number, "reason": REASON}, headers={"Idempotency-Key": "k1"})
    assert repeated.content == cleared.content
    [entry] = await scene.fetch("select actor_chain, detail from ledger_entries where {own} and kind = 'epoch-cleared'")
    assert (entry["actor_chain"], entry["detail"]) == (["member:admin@example.com"], {"epoch": number, "reason": REASON})


async def test_another_organization_is_not_spoken_for(scene: Scene, admin: httpx2.AsyncClient) -> None:
    """A clearance is the organization's own: nobody else's row is written."""
    number = await raised(scene)
    await admin.post("/v1/epoch/clear", json={"epoch": number, "reason": REASON})
    found = await scene.fetch("select organization_id from epoch_clearances where epoch = $1 and {own}", number)
    assert [row["organization_id"] for row in found] == [scene.organization_id]
    async with scene.connection() as connection:
        assert await connection.fetchval("select count(*) from epoch_clearances where epoch = $1", number) == 1


async def test_a_key_of_a_sandbox_says_nothing_of_another_environment(
    api: RunningApi, scene: Scene, admin: httpx2.AsyncClient
) -> None:
    """Whoever clears an epoch clears it where their key acts: elsewhere a key first seen may have been sent before all the same."""
    number = await raised(scene)
    async with scene.connection() as connection:
        id = await organizations.create_environment(connection, scene.organization_id, uuid4(), "another", None)
    other = replace(scene, environment_id=id, environment="another")
    async with api.client(await other.key(actor_id=scene.admin_id)) as elsewhere:
        cleared = await elsewhere.post("/v1/epoch/clear", json={"epoch": number, "reason": REASON})
        assert (cleared.status_code, cleared.json()["possibly_lost"]) == (200, False)
    shown = (await admin.get("/v1/epoch")).json()
    assert (shown["possibly_lost"], shown["cleared_at"]) == (True, None)


async def test_who_may_not_clear(api: RunningApi, scene: Scene, admin: httpx2.AsyncClient, agent: httpx2.AsyncClient) -> None:
    """No agent, no auditor and no key that is bound to a part; another epoch than the newest is refused with its number."""
    number = await raised(scene)
    problem_of(await agent.post("/v1/epoch/clear", json={"epoch": number, "reason": REASON}), 403, "out-of-scope")
    problem_of(await agent.get("/v1/epoch"), 403, "out-of-scope")
    async with scene.connection() as connection:
        auditor = await actors.ensure(connection, scene.organization_id, uuid4(), "member", "auditor@example.com")
        await actors.make_member(connection, scene.organization_id, auditor, ["auditor"])
    async with api.client(await scene.key(actor_id=auditor)) as reader:
        assert (await reader.get("/v1/epoch")).status_code == 200
        problem_of(await reader.post("/v1/epoch/clear", json={"epoch": number, "reason": REASON}), 403, "out-of-scope")
    async with api.client(await scene.key(actor_id=scene.admin_id, tools=["stripe.*"])) as narrow:
        problem_of(await narrow.post("/v1/epoch/clear", json={"epoch": number, "reason": REASON}), 403, "out-of-scope")
    problem = problem_of(
        await admin.post("/v1/epoch/clear", json={"epoch": number - 1, "reason": REASON}), 422, "invalid-request"
    )
    assert str(number) in problem["detail"]
    bodies: list[object] = [
        {"epoch": number},
        {"epoch": True, "reason": REASON},
        {"epoch": number, "reason": " "},
        {"reason": REASON},
        [],
    ]
    for body in bodies:
        problem_of(await admin.post("/v1/epoch/clear", json=body), 422, "invalid-request")
    assert await scene.fetch("select epoch from epoch_clearances where {own}") == []


async def test_the_commands(api: RunningApi, scene: Scene) -> None:
    """`outbox epoch show` and `clear` say in sentences what the API says; `--json` is its answer."""
    number = await raised(scene)
    shown = outbox(api, scene.admin_key, "epoch", "show")
    assert f"Epoch {number}," in shown
    assert "a key first seen is treated as possibly sent" in shown
    assert json.loads(outbox(api, scene.admin_key, "epoch", "show", "--json"))["number"] == number
    cleared = outbox(api, scene.admin_key, "epoch", "clear", "--expect", str(number), "--reason", REASON)
    assert f"member:admin@example.com: {REASON}" in cleared
    assert "the newest epoch" in outbox(api, scene.admin_key, "epoch", "clear", "--expect", "99", "--reason", REASON, code=1)


async def test_a_client_repeats_what_was_lost(scene: Scene, admin: httpx2.AsyncClient, agent: httpx2.AsyncClient) -> None:
    """Class A is handed over as recovering, under the provider key of the lost attempt; until Postgres was compared nothing is given."""
    await admin.post("/v1/epoch/clear", json={"epoch": await raised(scene), "reason": REASON})
    first = await opened(agent, charge("o-lost"))
    async with scene.connection() as connection:
        await connection.execute("delete from ledger_entries where reservation_id = $1", UUID(first["reservation_id"]))
        await connection.execute("delete from reservations where id = $1", UUID(first["reservation_id"]))
        await raised(scene)
        await connection.execute("update instances set started_at = started_at - interval '1 hour'")
        problem_of(await agent.post("/v1/reservations", json=charge("o-lost")), 503, "unavailable")
        assert await scene.fetch("select id from reservations where {own}") == []
        await connection.execute("update instances set started_at = pg_postmaster_start_time()")
    again = await opened(agent, charge("o-lost"))
    assert (again["attempt"]["recovering"], again["attempt"]["number"]) == (True, 2)
    assert again["attempt"]["provider_key"] == first["attempt"]["provider_key"]
    told = await settled(agent, again, result={"id": "ch_1"})
    assert told.json()["state"] == "succeeded"
    await assert_invariants(scene.database.superuser_url)


async def test_a_client_of_class_c_is_held(scene: Scene, agent: httpx2.AsyncClient) -> None:
    """Nobody can say whether it was done before, so nothing is handed out: a person decides."""
    await raised(scene)
    contract = {"key": "charge:{order}", "class": "C", "owner": "billing", "receipt": "id"}
    body = charge("o-c", contract=contract, time_limit_seconds=5)
    problem = problem_of(await agent.post("/v1/reservations", json=body), 409, "in-doubt")
    assert problem["doubt"]["cause"] == "epoch"


async def test_a_model_is_told_of_the_loss(scene: Scene, agent: httpx2.AsyncClient) -> None:
    """Who repeats what is in doubt because of a loss is not told that it was sent: nobody knows."""
    accepted = await agent.post("/v1/tool-calls", json=refund("pi_loss"), headers={"Prefer": "respond-async"})
    id = accepted.json()["reservation_id"]
    async with scene.connection() as connection:
        await connection.execute(
            """with lost as (
                 insert into attempts (organization_id, id, reservation_id, number, epoch, actor_id, worker, resend, lease_until, outcome,
                   closed_at, closed_by, supposed)
                 select organization_id, gen_random_uuid(), id, 1, epoch, actor_id, '', false, now(), 'unknown', now(), 'epoch', true
                 from reservations where id = $1 returning id)
               update reservations set state = 'in_doubt', unknown_attempts = 1, attempts = 1, last_attempt_id = (select id from lost),
                 doubt_since = now(), doubt_cause = 'epoch', absence_counts_at = now() where id = $1""",
            id,
        )
        await connection.execute("update open_reservations set due_at = 'infinity' where reservation_id = $1", id)
    problem = problem_of(await agent.post("/v1/tool-calls", json=refund("pi_loss")), 409, "in-doubt")
    assert problem["state"] == State.IN_DOUBT
    assert problem["message"].startswith("UNKNOWN. Our record lost its newest entries, so it may have been done before.")
    assert "was sent and no answer came" not in problem["detail"]


CLASS_B = {"key": "charge:{order}", "class": "B", "owner": "billing", "receipt": "id", "recovery": [{"lookup": {"settle": "1s"}}]}


async def lost(scene: Scene, reservation_id: str) -> None:
    """The rows of a reservation are gone with the ledger's tail, and a worker has begun a new epoch."""
    async with scene.connection() as connection:
        await connection.execute("delete from ledger_entries where reservation_id = $1", UUID(reservation_id))
        await connection.execute("delete from reservations where id = $1", UUID(reservation_id))
    await raised(scene)


async def looked_twice(scene: Scene, agent: httpx2.AsyncClient, told: dict[str, Any]) -> None:
    """The caller who was told to look does so twice, at times that count, and finds nothing."""
    url = f"/v1/reservations/{told['reservation_id']}/probes"
    await scene.fetch("update reservations set absence_counts_at = now() - interval '1 hour' where {own}")
    for _ in range(2):
        begun = await agent.post(url, json={"attempt_id": told["probe"]["attempt_id"]})
        assert (await agent.post(f"{url}/{begun.json()['probe_id']}", json={"found": False})).status_code == 200
        await scene.fetch("update reservations set absent_at = absent_at - interval '5 seconds' where {own}")


async def test_a_client_looks_for_what_was_lost(scene: Scene, agent: httpx2.AsyncClient) -> None:
    """Class B after a loss: what the lost attempt planted follows from its names, so its caller looks for it; not there, it goes on."""
    await scene.fetch("update epochs set possibly_lost_until = now() where number > 1")
    body = charge("o-lost", contract=CLASS_B, time_limit_seconds=5, probe=True)
    first = await opened(agent, body)
    await lost(scene, first["reservation_id"])
    told = (await agent.post("/v1/reservations", json={**body, "attempt_id": str(uuid4())})).json()
    [supposed] = await scene.fetch("select id, supposed from attempts where {own}")
    assert (told["probe"]["attempt_id"], supposed["supposed"]) == (str(supposed["id"]), True)
    for name in ("marker", "provider_key"):
        assert told["probe"][name] == first["attempt"][name]
    await looked_twice(scene, agent, told)
    again = await opened(agent, {**body, "attempt_id": str(uuid4())})
    assert (again["reservation_id"], again["attempt"]["number"]) == (told["reservation_id"], 2)


async def waited_at_the_loss(scene: Scene, agent: httpx2.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    """The first attempt was absent and the next caller's is lost with the tail: a worker has put a supposed one in its place."""
    await scene.fetch("update epochs set possibly_lost_until = now() where number > 1")
    first = await opened(agent, body)
    await settled(agent, first, "unknown")
    await looked_twice(scene, agent, (await agent.post("/v1/reservations", json={**body, "attempt_id": str(uuid4())})).json())
    await raised(scene)
    id = UUID(first["reservation_id"])
    async with scene.connection(scene.database.worker_url) as worker:
        suspicion = Suspicion(
            organization_id=scene.organization_id, id=id, settle_seconds=1.0, recover_seconds=60.0, late_recover_seconds=60.0
        )
        assert await suspect(worker, [suspicion], lease_seconds=10.0) == [id]
    return first


async def test_a_client_looks_for_what_waited_when_the_tail_was_lost(scene: Scene, agent: httpx2.AsyncClient) -> None:
    """What a worker has put in doubt is looked for by the next caller in the same way."""
    body = charge("o-waited", contract=CLASS_B, time_limit_seconds=5, probe=True)
    first = await waited_at_the_loss(scene, agent, body)
    told = (await agent.post("/v1/reservations", json={**body, "attempt_id": str(uuid4())})).json()
    assert told["probe"]["attempt_id"] != first["attempt"]["id"]
    assert told["probe"]["marker"] == first["attempt"]["marker"]


@pytest.mark.parametrize("reserved_again", [False, True])
async def test_the_success_of_an_attempt_that_was_lost(
    scene: Scene, agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, reserved_again: bool
) -> None:
    """It settles in the name of the supposed attempt, asserted because only its client knows of it; nothing else of it is taken."""
    body = charge(f"o-told-{reserved_again}", contract=CLASS_B, time_limit_seconds=5, probe=True)
    first = await waited_at_the_loss(scene, agent, body)
    if reserved_again:
        # Its absence was thought proven, and nothing newer was sent.
        await looked_twice(scene, agent, (await agent.post("/v1/reservations", json={**body, "attempt_id": str(uuid4())})).json())
        assert (await agent.get(f"/v1/reservations/{first['reservation_id']}")).json()["state"] == "reserved"
    url, id = f"/v1/reservations/{first['reservation_id']}/settle", str(uuid4())
    success = {"attempt_id": id, "outcome": "succeeded", "external_reference": "ch_lost", "result": {"id": "ch_lost"}}
    problem_of(await agent.post(url, json={"attempt_id": id, "outcome": "rejected"}), 409, "attempt-unknown")
    problem_of(await admin.post(url, json=success), 409, "attempt-unknown")
    told = await agent.post(url, json=success)
    assert told.status_code == 200, told.text
    document = told.json()
    assert (document["state"], document["receipt"]["external_reference"]) == ("succeeded", "ch_lost")
    assert document["receipt"]["confidence"] == "asserted"
    assert (await agent.post(url, json=success)).content == told.content
    problem_of(await agent.post(url, json={**success, "external_reference": "ch_other"}), 409, "attempt-unknown")
    [attempt] = await scene.fetch(
        "select supposed, proven_absent from attempts where id = (select attempt_id from receipts where {own})"
    )
    assert (attempt["supposed"], attempt["proven_absent"]) == (True, False)
    assert await scene.count("contradictions") == 0


async def test_a_persons_absence_waits_for_the_comparison(
    scene: Scene, agent: httpx2.AsyncClient, admin: httpx2.AsyncClient
) -> None:
    """While the running Postgres has not been compared with the marks no absence counts: 503, the same answer may be given again."""
    await scene.fetch("update epochs set possibly_lost_until = now() where number > 1")
    held = await opened(
        agent, charge("o-person", contract={**CLASS_B, "class": "C", "recovery": ["person"]}, time_limit_seconds=5)
    )
    await settled(agent, held, "unknown")
    id = UUID(held["reservation_id"])
    await scene.fetch("update reservations set absence_counts_at = now() - interval '1 hour' where id = $1", id)
    answer = {"as": "did-not-happen", "reason": "It is not there.", "evidence": "their log", "override": True}
    await scene.fetch("update instances set started_at = started_at - interval '1 hour'")
    try:
        problem_of(await admin.post(f"/v1/reviews/doubts/{id}", json=answer), 503, "unavailable")
    finally:
        await scene.fetch("update instances set started_at = started_at + interval '1 hour'")
    assert (await admin.post(f"/v1/reviews/doubts/{id}", json=answer)).status_code == 200
