"""Webhooks: who signed them, which are acted on, and what they prove."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from tests.integration.api.test_doubts import DID_NOT, HAPPENED, answer, reserved, standing
from tests.support.api import RunningApi, Scene, StandIn, problem_of, refund, stand_in, until
from tests.support.invariants import assert_invariants

from outbox_domain.reservation import Outcome, State
from outbox_providers.catalog import shipped
from outbox_sandbox.webhooks import sign
from outbox_store import tool_contracts, webhooks_in
from outbox_store.claim import Claimed, plant

SECRET = "whsec_of_this_test"
MARKER = "m" * 64


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A connection that takes webhooks, and what its provider does."""

    scene: Scene
    worker: StandIn
    client: httpx2.AsyncClient
    connection_id: UUID

    async def send(
        self, event: Any, *, secret: str = SECRET, seconds_ago: float = 0.0, signature: str | None = None, **options: Any
    ) -> httpx2.Response:
        """Send an event, signed."""
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        signed = sign(secret, body, time.time() - seconds_ago) if signature is None else signature
        path = f"/v1/webhooks/{options.pop('connection_id', self.connection_id)}"
        headers: dict[str, Any] = {
            "Content-Type": "application/json",
            **({"Stripe-Signature": signed.encode("latin-1")} if signed else {}),
        }
        return await self.client.post(path, content=body, headers=headers)

    async def verdict(self, event: Any) -> str:
        """What came of an event."""
        response = await self.send(event)
        assert response.status_code == 200, response.text
        assert response.json()["received"] is True
        return str(response.json()["verdict"])

    async def executing(self, agent: httpx2.AsyncClient, payment_intent: str = "pi_1") -> Claimed:
        """An attempt with its marker planted, sent and not answered yet."""
        attempt = await self.worker.claim(await reserved(agent, payment_intent))
        await plant(self.worker.connection, attempt.organization_id, attempt.attempt_id, MARKER)
        return attempt

    async def doubtful(self, agent: httpx2.AsyncClient) -> Claimed:
        """The same, and its answer is lost."""
        attempt = await self.executing(agent)
        await self.worker.settle(attempt, Outcome.UNKNOWN, recover_seconds=60.0, settle_seconds=0.0, provider_status=None)
        return attempt


def event(
    reference: str = "re_1", *, marker: Any = MARKER, id: Any = "evt_1", kind: str = "refund.created", status: str = "succeeded"
) -> dict[str, Any]:
    """A refund's event as Stripe sends it."""
    effect = {"id": reference, "object": "refund", "amount": 1200, "currency": "eur", "status": status}
    metadata = {} if marker is None else {"outbox": marker}
    return {"id": id, "object": "event", "type": kind, "data": {"object": {**effect, "metadata": metadata}}}


@pytest.fixture
async def provider(api: RunningApi, scene: Scene) -> AsyncIterator[Provider]:
    """A connection whose webhooks are taken; the invariants hold when the test is over."""
    [row] = await scene.fetch("select id from connections where {own} and name = 'stripe'")
    vault = await scene.vault()
    async with scene.connection() as connection:
        sealed = vault.seal_webhook_secret(row["id"], SECRET)
        await webhooks_in.keep_secret(connection, scene.organization_id, row["id"], sealed)
    async with stand_in(scene) as worker, api.client(None) as client:
        yield Provider(scene=scene, worker=worker, client=client, connection_id=row["id"])
    await assert_invariants(scene.database.superuser_url)


async def test_an_event_before_the_answer(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """It settles what is still being executed; the answer that comes afterwards finds its own effect and contradicts nothing."""
    attempt = await provider.executing(agent)
    waiting = asyncio.create_task(agent.post("/v1/tool-calls", json=refund(), headers={"Prefer": "wait=20"}))
    assert await provider.verdict(event(f"re_{attempt.reservation_id.hex}")) == "settled"
    told = (await asyncio.wait_for(waiting, 10.0)).json()
    receipt = told["receipt"]
    assert (told["state"], receipt["confidence"]) == ("succeeded", "confirmed-by-webhook")
    assert receipt["evidence"][0]["detail"] == {"event": "evt_1", "type": "refund.created"}
    assert told["result"] == {"id": f"re_{attempt.reservation_id.hex}", "status": "succeeded", "amount": 1200, "currency": "eur"}
    before = await standing(scene, attempt.reservation_id)
    late = await provider.worker.settle(attempt)
    assert late.verdict in ("already", "evidence")
    after = await standing(scene, attempt.reservation_id)
    assert (after["state"], after["contradictions"], after["external_reference"]) == (
        "succeeded",
        0,
        before["external_reference"],
    )


async def test_an_event_that_waits_has_written_nothing(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """What happens to a reservation while its event waits stands before the event's settlement in the ledger, by every order."""
    attempt = await provider.executing(agent)
    async with scene.connection() as other:
        async with other.transaction():
            await other.execute("select from reservations where id = $1 for update", attempt.reservation_id)
            sending = asyncio.create_task(provider.verdict(event()))
            waits = "select backend_xid from pg_stat_activity where $1 = any(pg_blocking_pids(pid))"
            mine = other.get_server_pid()

            async def waiting() -> list[dict[str, Any]]:
                return await scene.fetch(waits, mine)

            [row] = await until(waiting)
            assert row["backend_xid"] is None
        assert await sending == "settled"


async def test_an_event_ends_a_doubt_once(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A doubt is settled by the event; the same event again, even many at once, changes nothing."""
    attempt = await provider.doubtful(agent)
    sent = await asyncio.gather(*(provider.verdict(event()) for _ in range(10)))
    assert sorted(sent) == ["duplicate"] * 9 + ["settled"]
    row = await standing(scene, attempt.reservation_id)
    assert (row["state"], row["external_reference"], row["receipts"]) == ("succeeded", "re_1", 1)
    assert await provider.verdict(event(id="evt_2")) == "known"
    assert await standing(scene, attempt.reservation_id) == row
    rows = await scene.fetch("select event_id, verdict from webhooks_in where {own} order by event_id")
    assert [(row["event_id"], row["verdict"]) for row in rows] == [("evt_1", "settled"), ("evt_2", "known")]


async def test_an_event_of_what_is_reserved_again(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """An effect of what was thought unsent settles its reservation before it is sent again; its caller has the receipt."""
    attempt = await provider.executing(agent)
    assert (await provider.worker.settle(attempt, Outcome.UNSENT, again_seconds=60.0)).state is State.RESERVED
    waiting = asyncio.create_task(agent.post("/v1/tool-calls", json=refund(), headers={"Prefer": "wait=20"}))
    assert await provider.verdict(event()) == "settled"
    told = (await asyncio.wait_for(waiting, 10.0)).json()
    assert (told["state"], told["receipt"]["confidence"]) == ("succeeded", "confirmed-by-webhook")
    assert (await standing(scene, attempt.reservation_id))["contradictions"] == 0


async def test_an_event_against_a_closed_reservation(
    provider: Provider, agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, scene: Scene
) -> None:
    """Proof of an effect that was settled as absent is a contradiction: the row stays, its key is refused."""
    attempt = await provider.doubtful(agent)
    async with scene.connection() as connection:
        await connection.execute("update reservations set absence_counts_at = now() where id = $1", attempt.reservation_id)
    assert (await answer(admin, attempt.reservation_id, {**DID_NOT, "override": True})).json()["state"] == "failed"
    assert await provider.verdict(event()) == "contradiction"
    row = await standing(scene, attempt.reservation_id)
    assert (row["state"], row["contradictions"]) == ("failed", 1)
    assert await provider.verdict(event()) == "duplicate"
    problem_of(await agent.post("/v1/tool-calls", json=refund()), 409, "contradiction")


async def test_an_event_of_a_second_effect(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """After the receipt, an event that names another effect of the same marker is a contradiction and changes no receipt."""
    attempt = await provider.doubtful(agent)
    assert await provider.verdict(event("re_1")) == "settled"
    assert await provider.verdict(event("re_2", id="evt_2")) == "contradiction"
    row = await standing(scene, attempt.reservation_id)
    assert (row["state"], row["external_reference"], row["contradictions"]) == ("succeeded", "re_1", 1)


FAILURES = [
    {"kind": "refund.failed", "status": "failed"},
    {"kind": "refund.updated", "status": "canceled"},
    {"kind": "refund.created", "status": "failed"},
    {"kind": "charge.refunded"},
]


async def test_an_event_of_another_amount(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """What the provider moved is taken for what it did, and that it is not what was asked stands in the receipt's evidence."""
    attempt = await provider.doubtful(agent)
    told = event()
    told["data"]["object"]["amount"] = 5
    assert await provider.verdict(told) == "settled"
    [receipt] = await scene.fetch("select evidence from receipts where reservation_id = $1", attempt.reservation_id)
    assert [each["kind"] for each in receipt["evidence"]] == ["webhook", "variance"]
    assert receipt["evidence"][1]["detail"]["reported"] == {"amount": 5, "currency": "EUR"}


@pytest.mark.parametrize("told", FAILURES, ids=lambda told: "-".join(told.values()))
async def test_an_event_that_proves_nothing(
    provider: Provider, agent: httpx2.AsyncClient, scene: Scene, told: dict[str, str]
) -> None:
    """A failed, cancelled or other event of the marker settles no doubt; it is kept as evidence, once, and a true one still settles."""
    attempt = await provider.doubtful(agent)
    before = await standing(scene, attempt.reservation_id)
    assert await provider.verdict(event(**told)) == "evidence"
    assert await provider.verdict(event(**told)) == "duplicate"
    assert await standing(scene, attempt.reservation_id) == {**before, "entries": before["entries"] + 1}
    [entry] = await evidence(scene, attempt.reservation_id)
    assert (entry["by"], entry["type"], entry["external_reference"]) == ("webhook", told["kind"], "re_1")
    assert "about_the_receipt" not in entry
    assert await provider.verdict(event(id="evt_2")) == "settled"


async def test_an_event_that_speaks_against_a_receipt(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A refund that failed after it was made is evidence beside its receipt, which stays; against a failure it is no contradiction."""
    attempt = await provider.doubtful(agent)
    assert await provider.verdict(event()) == "settled"
    before = await standing(scene, attempt.reservation_id)
    assert await provider.verdict(event(id="evt_2", kind="refund.failed", status="failed")) == "evidence"
    after = await standing(scene, attempt.reservation_id)
    assert after == {**before, "entries": before["entries"] + 1}
    entries = await evidence(scene, attempt.reservation_id)
    assert [entry.get("about_the_receipt") for entry in entries] == [True]


async def evidence(scene: Scene, reservation_id: UUID) -> list[dict[str, Any]]:
    """The evidence of a reservation that came by webhook."""
    query = "select detail from ledger_entries where {own} and reservation_id = $1 and kind = 'evidence' order by id"
    return [row["detail"] for row in await scene.fetch(query, reservation_id)]


async def test_a_key_that_was_free_again(
    provider: Provider, agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, scene: Scene
) -> None:
    """Where a failed and a doubtful reservation planted the same marker, the event ends the doubt."""
    first = await provider.doubtful(agent)
    async with scene.connection() as connection:
        await connection.execute("update reservations set absence_counts_at = now() where id = $1", first.reservation_id)
    await answer(admin, first.reservation_id, {**DID_NOT, "override": True})
    second = await provider.doubtful(agent)
    assert await provider.verdict(event()) == "settled"
    assert (await standing(scene, second.reservation_id))["state"] == "succeeded"
    assert (await standing(scene, first.reservation_id))["contradictions"] == 0


async def contradicted(provider: Provider, agent: httpx2.AsyncClient, admin: httpx2.AsyncClient) -> Claimed:
    """The attempt of what was closed as absent and was written late, long ago."""
    attempt = await provider.doubtful(agent)
    fetch = provider.scene.fetch
    await fetch("update reservations set absence_counts_at = now() where id = $1", attempt.reservation_id)
    await answer(admin, attempt.reservation_id, {**DID_NOT, "override": True})
    assert (await provider.worker.settle(attempt, Outcome.UNKNOWN, late_write=True)).verdict == "contradiction"
    return attempt


async def examined(provider: Provider, admin: httpx2.AsyncClient, attempt: Claimed, document: Any) -> None:
    """A person closes what contradicts it, once whatever was sent is quiet."""
    id = attempt.reservation_id
    await provider.scene.fetch("update contradictions set created_at = now() - interval '1 hour' where reservation_id = $1", id)
    assert (await admin.post(f"/v1/reviews/contradictions/{id}", json=document)).status_code == 200


async def test_an_event_of_an_effect_that_does_not_stand(
    provider: Provider, agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, scene: Scene
) -> None:
    """Undone, and its key freed by a person: a later event of that effect ends no doubt of what was asked for again; one of another does."""
    first = await contradicted(provider, agent, admin)
    assert await provider.verdict(event("re_1")) == "contradiction"
    await examined(provider, admin, first, DID_NOT)
    second = await provider.doubtful(agent)
    assert await provider.verdict(event("re_1", id="evt_2", kind="refund.updated")) == "stale"
    assert (await standing(scene, second.reservation_id))["state"] == "in_doubt"
    assert await provider.verdict(event("re_2", id="evt_3")) == "settled"
    assert (await standing(scene, second.reservation_id))["external_reference"] == "re_2"


async def test_an_event_of_what_a_person_has_found(
    provider: Provider, agent: httpx2.AsyncClient, admin: httpx2.AsyncClient, scene: Scene
) -> None:
    """A person has named the effect of a late write: its event tells nothing new, and the key stays answered; another effect's does."""
    first = await contradicted(provider, agent, admin)
    await examined(provider, admin, first, {**HAPPENED, "external_reference": "re_1"})
    await provider.verdict(event("re_1"))
    still_open = "select external_reference from contradictions where {own} and closed_at is null"
    assert await scene.fetch(still_open) == []
    await provider.verdict(event("re_2", id="evt_2"))
    assert [row["external_reference"] for row in await scene.fetch(still_open)] == ["re_2"]


async def test_what_is_not_signed(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Forged, unsigned, signed for another body, too old or of the future: 400, and nothing is changed or remembered."""
    attempt = await provider.doubtful(agent)
    before = await standing(scene, attempt.reservation_id)
    body = json.dumps(event()).encode()
    good = sign(SECRET, body, time.time())
    stamp = good.split(",")[0]
    refused = [
        await provider.send(event(), secret="whsec_of_somebody_else"),
        await provider.send(event(), signature=""),
        await provider.send(event(), signature="t=1"),
        await provider.send(event(), signature=good.replace("v1=", "v0=")),
        await provider.send(event(), signature=f"{stamp},v1=é"),
        await provider.send(event(), signature=f"{good},t=1"),
        await provider.send(event("re_2"), signature=good),
        await provider.send(event(), seconds_ago=301),
        await provider.send(event(), seconds_ago=-302),
        await provider.send(event(), signature=f"t=99999999999999999999,v1={'0' * 64}"),
    ]
    for response in refused:
        problem = problem_of(response, 400, "invalid-signature")
        assert "whsec" not in response.text
        assert problem["retry"]["action"] == "never"
    assert await standing(scene, attempt.reservation_id) == before
    assert await scene.count("webhooks_in") == 0
    # While a secret is renewed there are two signatures, and one is right; four minutes on the way are allowed.
    two = f"{stamp},v1={'0' * 64},{good.split(',')[1]}"
    assert (await provider.send(body, signature=two)).json()["verdict"] == "settled"
    assert (await provider.send(event(id="evt_2"), seconds_ago=240)).json()["verdict"] == "known"


async def test_nothing_listens(provider: Provider, scene: Scene) -> None:
    """An unknown connection, one without a secret and what is no id are not found, signed or not."""
    [other] = await scene.fetch("select id from connections where {own} and name = 'sendgrid'")
    for id in (uuid4(), other["id"], "stripe", "%00"):
        problem_of(await provider.send(event(), connection_id=id), 404, "not-found")


@pytest.mark.parametrize("id", ["00000000-0000-4000-8000-000000000000", "stripe"])
async def test_nothing_is_read_for_a_connection_that_is_none(api: RunningApi, id: str) -> None:
    """The answer comes before a byte of the body is sent, however long it is said to be."""
    url = httpx2.URL(api.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        head = f"POST /v1/webhooks/{id} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(3.0):
            assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
    finally:
        writer.close()


async def test_events_of_others(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """What carries no marker, none of ours, or one that names no effect, is taken and changes nothing."""
    attempt = await provider.doubtful(agent)
    before = await standing(scene, attempt.reservation_id)
    assert await provider.verdict(event(marker=None)) == "unmarked"
    assert await provider.verdict(event(marker=7)) == "unmarked"
    assert await provider.verdict(event(marker="' or true --")) == "unmarked"
    assert await provider.verdict({"id": "evt_1", "data": None}) == "unmarked"
    assert await provider.verdict(event(marker="n" * 64)) == "unmatched"
    assert await provider.verdict(event("re 1\n")) == "unusable"
    for document in (b"", b"[]", b"{", b'{"id": 7}', b'{"id": "evt\\u0000"}', b"\xff"):
        problem_of(await provider.send(document), 422, "invalid-request")
    problem_of(await provider.send(b'"' + b"x" * (1 << 20) + b'"'), 413, "too-large")
    assert await standing(scene, attempt.reservation_id) == before
    assert await scene.count("webhooks_in") == 0


async def test_a_marker_is_looked_for_in_every_place(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """What stands where another tool of the provider has its marker, and is none of ours, does not hide the one that is."""
    attempt = await provider.doubtful(agent)
    webhook = next(each for each in shipped() if each.tool == "stripe.refund.create").document()["webhook"]
    other = next(each for each in shipped() if each.tool == "stripe.customer.create").document()
    document = other | {"version": 2, "webhook": webhook | {"match": "data.object.description"}}
    async with scene.connection() as connection:
        await tool_contracts.install(connection, scene.organization_id, [("stripe.customer.create", 2, document)])
    unmarked, marked = event(marker=None), event()
    for each in (unmarked, marked):
        each["data"]["object"]["description"] = "refunded"

    async def looked_for() -> bool:
        return await provider.verdict(unmarked) == "unmatched"

    await until(looked_for, what="the new contract")
    assert await provider.verdict(marked) == "settled"
    assert (await standing(scene, attempt.reservation_id))["state"] == "succeeded"


async def test_another_connection_of_the_same_marker(provider: Provider, agent: httpx2.AsyncClient, scene: Scene) -> None:
    """An event sent to one connection says nothing of what another one planted."""
    attempt = await provider.doubtful(agent)
    [other] = await scene.fetch("select id from connections where {own} and name = 'sendgrid'")
    vault = await scene.vault()
    async with scene.connection() as connection:
        await connection.execute("update connections set provider = 'stripe', is_default = false where id = $1", other["id"])
        sealed = vault.seal_webhook_secret(other["id"], SECRET)
        await webhooks_in.keep_secret(connection, scene.organization_id, other["id"], sealed)
    response = await provider.send(event(), connection_id=other["id"])
    assert response.json()["verdict"] == "unmatched"
    assert (await standing(scene, attempt.reservation_id))["state"] == "in_doubt"
