"""The four strategies of recovery beside replay and probe, against a real worker, a provider that behaves so, and Postgres.

What counts as an effect is the provider's own account: settings that stand, records, messages, mails that went out.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.support.api import until
from tests.support.invariants import assert_invariants
from tests.support.ledger import claimed
from tests.support.outbox_up import LABEL, MESSAGE, PATHS, RECORD, SCHEDULED, TICKET, request
from tests.support.postgres import PostgresServer
from tests.support.recovery_ground import SENT_AFTER, Ground, Servers, make_ground, serving

from outbox_domain.contract import PersonRule, ResendRule
from outbox_domain.identity import Scope, marker, provider_key
from outbox_store.reserve import Barred, NewReservation, Won
from outbox_store.sweep import Lapse, lapse

LATE_SECONDS = 6.0
"""When a request that has got lost on its way arrives after all: long after its answer was given up."""

BEARER = {"Authorization": "Bearer sk_test_1", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def servers(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A database, a provider and a worker for this module; every test has an organization and so connections of its own."""
    database = postgres_server.migrated_database()
    with serving(database, tmp_path_factory.mktemp("strategies")) as running:
        yield running
    postgres_server.drop(database)


@pytest.fixture
async def ground(servers: Servers) -> AsyncIterator[Ground]:
    """An organization of this test's own; the invariants are asked afterwards."""
    yield await make_ground(servers)
    servers.sandbox.drop_faults()
    await assert_invariants(servers.database.superuser_url)


async def listed(ground: Ground, path: str) -> list[dict[str, Any]]:
    """What the provider's own list shows at a path."""
    answer = await asyncio.to_thread(request, ground.sandbox.url, "GET", path, headers=BEARER, seconds=10)
    found: list[dict[str, Any]] = json.loads(answer.body)["data"]
    return found


def token_of(row: NewReservation) -> str:
    """The word by which the effects of a reservation are known in its test."""
    return row.operation_key.rpartition(":")[2]


async def names(ground: Ground, row: NewReservation) -> dict[str, Any]:
    """What a provider key and a marker are made of, beside the secret."""
    [found] = await ground.scene.fetch(
        "select o.name as organization, p.name as project, e.name as environment, n.name as connection from organizations o, projects p, "
        "environments e, connections n where o.id = $1 and p.id = $2 and e.id = $3 and n.id = $4",
        row.organization_id,
        row.project_id,
        row.environment_id,
        row.connection_id,
    )
    scope = Scope(**found, tool=row.tool)
    return {"scope": scope, "key_scope": "environment", "operation_key": row.operation_key, "occurrence": row.occurrence}


async def secret(ground: Ground) -> bytes:
    """The organization's provider-key secret."""
    return (await ground.scene.vault()).secrets.provider_key_secret


async def until_there(look: Any, *, deadline_seconds: float = 30.0) -> Any:
    """Wait until something is there."""
    return await until(look, deadline_seconds=deadline_seconds)


# Natural: an absolute setting, repeated.


async def label(ground: Ground, name: str) -> str | None:
    """What a label is at the provider."""
    found = await listed(ground, f"{PATHS[LABEL]}?name={name}")
    return str(found[0]["value"]) if found else None


@pytest.mark.parametrize("fault", ["commit-then-drop", "drop-before-commit", "commit-then-500", "truncate-body"])
async def test_natural_is_set_again(ground: Ground, fault: str) -> None:
    """A setting whose answer was lost, or which never arrived, is sent again: it stands once, and its object is not free at once."""
    row = await ground.faulty(LABEL, fault)
    found = await ground.until_state(row, "succeeded")
    assert (found["outcomes"], found["confidence"], found["resends"]) == (["unknown", "succeeded"], "confirmed", 1)
    assert await label(ground, f"name-{token_of(row)}") == token_of(row)
    assert {one["fields"]["value"] for one in await ground.effects(row)} == {token_of(row)}
    [quiet] = await ground.scene.fetch(
        "select quiet_at > now() as waits from open_objects where {own} and reservation_id = $1", row.id
    )
    assert quiet["waits"], "the first request may still arrive"


async def set_twice(ground: Ground, *, guarded: bool) -> tuple[str | None, NewReservation, NewReservation]:
    """Set a label to one value by a request that arrives very late and a resend, then to another; say what it is in the end."""
    one = await ground.faulty(LABEL, "slow-commit", delay_seconds=LATE_SECONDS)
    await ground.until_state(one, "succeeded")
    name = f"name-{token_of(one)}"
    assert await label(ground, name) == token_of(one)
    _, verdict = await ground.try_to_reserve(LABEL, name=name)
    assert isinstance(verdict, Barred)
    assert verdict.by == "object"
    assert verdict.after_seconds is not None
    if not guarded:
        await ground.change("delete from open_objects where reservation_id = $1", one.id)

    async def free() -> NewReservation | None:
        row, verdict = await ground.try_to_reserve(LABEL, name=name)
        return row if isinstance(verdict, Won) else None

    two = await until_there(free)
    await ground.until_state(two, "succeeded")

    older = token_of(one)

    async def arrived() -> bool:
        settings = await asyncio.to_thread(ground.sandbox.effects, PATHS[LABEL])
        return len([each for each in settings if each["fields"]["value"] == older]) == 2

    await until_there(arrived)
    return await label(ground, name), one, two


async def test_a_late_request_undoes_no_newer_setting(ground: Ground) -> None:
    """The newer setting is not reserved before the late request of the older one has arrived, or cannot any more; it stands."""
    value, _, two = await set_twice(ground, guarded=True)
    assert value == token_of(two)


async def test_without_the_guard_a_late_request_undoes_a_newer_setting(ground: Ground) -> None:
    """Negative control: with the object freed as the older operation succeeds, its late request wins over the newer one."""
    value, one, _ = await set_twice(ground, guarded=False)
    assert value == token_of(one)


# Conflict: an identity of our choice, read back.


@pytest.mark.parametrize("fault", ["commit-then-drop", "commit-then-500", "truncate-body"])
async def test_conflict_is_read_back(ground: Ground, fault: str) -> None:
    """A record whose answer was lost: the resend is refused, what is there is ours, and its receipt is that of the read."""
    row = await ground.faulty(RECORD, fault)
    found = await ground.until_state(row, "succeeded")
    [effect] = await ground.effects(row)
    assert (found["outcomes"], found["confidence"]) == (["unknown", "unknown"], "confirmed-by-lookup")
    assert (found["external_reference"], found["resends"]) == (effect["fields"]["id"], 1)
    assert effect["fields"]["id"] == provider_key(await secret(ground), **await names(ground, row), generation=0)


async def test_conflict_with_a_request_that_arrives_late(ground: Ground) -> None:
    """The resend creates the record; the first request arrives afterwards and is refused: one record, confirmed by the answer."""
    before = len(await posts(ground, RECORD))
    row = await ground.faulty(RECORD, "slow-commit", delay_seconds=LATE_SECONDS)
    found = await ground.until_state(row, "succeeded")
    assert (found["outcomes"], found["confidence"]) == (["unknown", "succeeded"], "confirmed")

    async def refused() -> bool:
        late, *_ = (await posts(ground, RECORD))[before:]
        return bool(late["status"] == 409)

    await until_there(refused)
    assert len(await ground.effects(row)) == 1


async def posts(ground: Ground, tool: str) -> list[dict[str, Any]]:
    """The writes at a tool's path that the provider has received, in order."""
    return await asyncio.to_thread(lambda: ground.sandbox.requests(path=PATHS[tool], method="POST"))


async def test_conflict_that_never_arrived(ground: Ground) -> None:
    """A record whose request was lost is created by the resend."""
    row = await ground.faulty(RECORD, "drop-before-commit")
    found = await ground.until_state(row, "succeeded")
    assert (found["outcomes"], found["confidence"]) == (["unknown", "succeeded"], "confirmed")
    assert len(await ground.effects(row)) == 1


async def taken(ground: Ground, row: NewReservation, **record: str) -> None:
    """Somebody has created a record under the identity that a reservation will use."""
    id = provider_key(await secret(ground), **await names(ground, row), generation=0)
    body = json.dumps({"id": id, **record}).encode()
    answer = await asyncio.to_thread(request, ground.sandbox.url, "POST", PATHS[RECORD], body=body, headers=BEARER, seconds=10)
    assert answer.status == 201


@pytest.mark.parametrize("foreign", [{"title": "Somebody else's"}, {"body": "More than was asked for"}])
async def test_conflict_with_a_foreign_effect(ground: Ground, foreign: dict[str, str]) -> None:
    """What stands under the identity is not what was asked for: no receipt is made of it; a person learns which fields differ."""
    with ground.servers.frozen():
        row = await ground.reserve(RECORD)
        await taken(ground, row, **{"title": f"Record {token_of(row)}", **foreign})
    found = await ground.until_a_person(row)
    assert (found["outcomes"], found["confidence"]) == (["unknown"], None)
    [entry] = found["evidence_entries"]
    assert (entry["reason"], entry["fields"]) == ("another effect under this identity", list(foreign))
    assert (await episodes(ground))[-1]["waiting"] == 1


async def test_conflict_on_a_first_attempt(ground: Ground) -> None:
    """An effect that the ledger has lost: the first attempt is refused, what is there is what was asked for, nothing is sent again."""
    with ground.servers.frozen():
        row = await ground.reserve(RECORD)
        await taken(ground, row, title=f"Record {token_of(row)}")
    found = await ground.until_state(row, "succeeded")
    assert (found["outcomes"], found["confidence"], found["resends"]) == (["unknown"], "confirmed-by-lookup", 0)
    assert len(await ground.effects(row)) == 1


async def test_conflict_of_which_nothing_is_found(ground: Ground) -> None:
    """The provider says that the identity is taken and shows nothing: that is no absence; nothing is sent, a person is asked."""
    contract = ground.contracts[RECORD]
    resend, lookup = contract.recovery
    blind = lookup.model_copy(update={"match": "data[?id=='{provider_key}x']"})
    await ground.install(contract.model_copy(update={"recovery": (resend, blind)}))
    row = await ground.faulty(RECORD, "commit-then-drop")
    found = await ground.until_a_person(row)
    assert (found["outcomes"], found["absent"], found["absences"]) == (["unknown", "unknown"], [False, False], 0)
    assert len(await ground.effects(row)) == 1


# Window: recognised for a short time only.


async def test_window_is_replayed_inside_it(ground: Ground) -> None:
    """A message whose answer was lost is sent again while the provider still recognises it: one message, the first answer."""
    row = await ground.faulty(MESSAGE, "commit-then-drop")
    found = await ground.until_state(row, "succeeded")
    assert (found["outcomes"], found["confidence"]) == (["unknown", "succeeded"], "confirmed")
    assert len(await ground.effects(row)) == 1


async def test_window_that_closes(ground: Ground) -> None:
    """After it nothing is sent again, though the bound of resends is not reached: it is looked up and found; one message."""
    row = await ground.faulty(MESSAGE, "commit-then-drop")
    ground.sandbox.plan(PATHS[MESSAGE], "drop-before-commit", times=50)
    found = await ground.until_state(row, "succeeded")
    assert (set(found["outcomes"]), found["confidence"]) == ({"unknown"}, "confirmed-by-lookup")
    assert found["resends"] < 5, "the window ended them, not their number"
    assert len(await ground.effects(row)) == 1
    [key] = {
        one["idempotency_key"] for one in await posts(ground, MESSAGE) if one["marker"] == (await markers(ground, row))[None]
    }
    sent = [one["received"] for one in await posts(ground, MESSAGE) if one["idempotency_key"] == key]
    assert sent[-1] - sent[0] < 8.0 - 3.0, "each began while it could still arrive inside the window"


async def test_window_that_closes_upon_nothing(ground: Ground) -> None:
    """After it the absence is proven by look-ups, as for class B, and the message is sent anew under a window of its own."""
    row = await ground.faulty(MESSAGE, "drop-before-commit", times=3)
    await ground.change("update reservations set possible_send_at = now() - interval '1 h' where id = $1", row.id)
    await ground.until_state(row, "in_doubt")
    await ground.change(
        "update reservations set possible_send_at = now() - interval '1 h' where id = $1 and state = 'in_doubt'", row.id
    )
    found = await ground.until_state(row, "succeeded")
    assert found["confidence"] == "confirmed"
    assert True in found["absent"]
    assert len(await ground.effects(row)) == 1


async def test_window_without_a_look_up(ground: Ground) -> None:
    """After it a tool that nobody can ask about is a person's, like one of class C."""
    contract = ground.contracts[MESSAGE]
    resend = contract.resend
    assert isinstance(resend, ResendRule)
    request = contract.request.model_copy(update={"marker": None})
    await ground.install(contract.model_copy(update={"recovery": (resend, PersonRule()), "request": request}))
    row = await ground.faulty(MESSAGE, "commit-then-drop")
    ground.sandbox.plan(PATHS[MESSAGE], "drop-before-commit", times=50)
    found = await ground.until_a_person(row)
    assert set(found["outcomes"]) == {"unknown"}
    assert len(await ground.effects(row)) == 1


# Cancel first: called off, then sent again.


async def markers(ground: Ground, row: NewReservation) -> dict[int | None, str]:
    """The marker of a reservation, and those of its first attempts."""
    parts = {**await names(ground, row)}
    held = await secret(ground)
    return {number: marker(held, **parts, attempt=number) for number in (None, 1, 2, 3)}


async def mails(ground: Ground, row: NewReservation) -> list[tuple[str, str]]:
    """Batch and state of the mails of a reservation, oldest first."""
    found = [one for one in await listed(ground, PATHS[SCHEDULED]) if token_of(row) in one["text"]]
    return [(one["batch"], one["state"]) for one in reversed(found)]


async def until_sent(ground: Ground, row: NewReservation) -> list[tuple[str, str]]:
    """Wait until nothing of a reservation is scheduled any more."""

    async def settled() -> list[tuple[str, str]] | None:
        found = await mails(ground, row)
        return None if not found or any(state == "scheduled" for _, state in found) else found

    sent: list[tuple[str, str]] = await until_there(settled)
    return sent


@pytest.mark.parametrize("fault", ["commit-then-drop", "drop-before-commit", "commit-then-500"])
async def test_cancel_first_then_sent_again(ground: Ground, fault: str) -> None:
    """A mail of which nobody knows is called off by its own batch, before any settle time, and sent under another: one goes out."""
    row = await ground.faulty(SCHEDULED, fault)
    found = await ground.until_state(row, "succeeded", deadline_seconds=SENT_AFTER.total_seconds())
    assert (found["outcomes"], found["absent"], found["confidence"]) == (["unknown", "succeeded"], [True, False], "confirmed")
    by = await markers(ground, row)
    expected = [] if fault == "drop-before-commit" else [(by[1], "cancelled")]
    assert await until_sent(ground, row) == [*expected, (by[2], "sent")]


async def test_cancel_first_covers_what_arrives_later(ground: Ground) -> None:
    """A request that arrives after its batch was called off is refused: the second sending is the only one that goes out."""
    row = await ground.faulty(SCHEDULED, "slow-commit", delay_seconds=LATE_SECONDS)
    await ground.until_state(row, "succeeded")
    by = await markers(ground, row)

    async def refused() -> bool:
        return any(one["status"] == 410 and one["marker"] is None for one in await posts(ground, SCHEDULED))

    await until_there(refused)
    assert await until_sent(ground, row) == [(by[2], "sent")]


async def test_cancel_first_that_comes_too_late(ground: Ground) -> None:
    """A provider that does not take the cancellation in time: nothing is sent again, a person is asked, one mail goes out."""
    ground.sandbox.plan(f"{PATHS[SCHEDULED]}/cancel", "drop-before-commit", times=1000)
    row = await ground.faulty(SCHEDULED, "commit-then-drop")
    found = await ground.until_a_person(row)
    assert (found["outcomes"], found["absent"]) == (["unknown"], [False])
    by = await markers(ground, row)
    assert await until_sent(ground, row) == [(by[1], "sent")]
    assert (await ground.read(row))["state"] == "in_doubt"


# Bounds: pace and total time.


async def test_recovery_keeps_the_pace_of_the_contract(ground: Ground) -> None:
    """Doubts of one connection are taken up one after the other, as far apart as the contract says; all of them end."""
    contract = ground.contracts[TICKET]
    assert contract.lookup is not None
    paced = contract.lookup.model_copy(update={"pace": timedelta(seconds=1)})
    await ground.install(contract.model_copy(update={"recovery": (paced,)}))
    with ground.servers.frozen():
        rows = [await ground.reserve(TICKET) for _ in range(3)]
        async with ground.scene.connection() as connection:
            for row in rows:
                await claimed(connection, row, lease_seconds=0.05)
    for row in rows:
        await ground.until_state(row, "succeeded", deadline_seconds=60.0)
    ours = {(await markers(ground, row))[None] for row in rows}
    asked = [one["received"] for one in await ground.lookups(TICKET) if one["marker"] in ours]
    assert len(asked) >= 6, "each was absent twice"
    apart = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert min(apart) > 0.6, apart


async def test_a_doubt_keeps_its_place_in_a_backlog(ground: Ground) -> None:
    """With one slot, a doubt is looked up when its place among older and younger calls comes: no turn is spent before, and lost."""
    contract = ground.contracts[TICKET]
    assert contract.lookup is not None
    paced = contract.lookup.model_copy(update={"pace": timedelta(seconds=5)})
    await ground.install(contract.model_copy(update={"recovery": (paced,)}))
    ground.sandbox.plan(PATHS[TICKET], "delay", times=24, delay_seconds=0.2)
    servers, before = ground.servers, len(ground.sandbox.requests(path=PATHS[TICKET], method="POST"))

    def sent() -> list[dict[str, Any]]:
        return ground.sandbox.requests(path=PATHS[TICKET], method="POST")[before:]

    with servers.frozen():
        backlog = [await ground.reserve(TICKET) for _ in range(24)]
        doubt = await ground.reserve(TICKET)
        async with ground.scene.connection() as connection:
            attempt = await claimed(connection, doubt, lease_seconds=0.0)
            await lapse(
                connection,
                [
                    Lapse(
                        organization_id=doubt.organization_id,
                        reservation_id=doubt.id,
                        attempt_id=attempt.attempt_id,
                        settle_seconds=0.0,
                        recover_seconds=0.0,
                    )
                ],
            )
        due = "select due_at from open_reservations where reservation_id = $2"
        await ground.change(f"update open_reservations set due_at = ({due}) where reservation_id = $1", doubt.id, backlog[6].id)
        narrow = servers.start_worker(OUTBOX_WORKER_SLOTS="1")
        try:
            await until(lambda: asyncio.to_thread(lambda: sent()[23:]), deadline_seconds=60.0)
            marker = (await markers(ground, doubt))[None]
            [first, *_] = [one["received"] for one in await ground.lookups(TICKET) if one["marker"] == marker]
            assert 5 <= sum(one["received"] < first for one in sent()) <= 9
        finally:
            narrow.end()
            servers.workers.remove(narrow)
    for row in (*backlog, doubt):
        await ground.until_state(row, "succeeded", deadline_seconds=90.0)


async def test_the_total_time_of_resends(ground: Ground) -> None:
    """Once it is over the next way is due, though neither the window nor the number of resends is used up."""
    contract = ground.contracts[MESSAGE]
    resend, lookup = contract.recovery
    hurried = resend.model_copy(update={"within": timedelta(hours=1), "total": timedelta(seconds=4), "times": 50})
    await ground.install(contract.model_copy(update={"recovery": (hurried, lookup)}))
    row = await ground.faulty(MESSAGE, "commit-then-drop")
    ground.sandbox.plan(PATHS[MESSAGE], "drop-before-commit", times=50)
    found = await ground.until_state(row, "succeeded")
    assert found["confidence"] == "confirmed-by-lookup"
    assert 1 <= found["resends"] < 6
    assert len(await ground.effects(row)) == 1


async def test_the_total_time_of_look_ups(ground: Ground) -> None:
    """A provider that answers, but not the question, is asked for so long and no longer; then a person is, and is told why."""
    contract = ground.contracts[TICKET]
    assert contract.lookup is not None
    bounded = contract.lookup.model_copy(update={"total": timedelta(seconds=4)})
    await ground.install(contract.model_copy(update={"recovery": (bounded,)}))
    ground.sandbox.plan(PATHS[TICKET], "reject-402", times=100, method="GET")
    row = await ground.faulty(TICKET, "commit-then-drop")
    found = await ground.until_a_person(row)
    assert found["lookups"] < 20
    [entry] = found["evidence_entries"]
    assert entry["reason"] == "looked up for as long as the contract says: HTTP 402"


# Episodes: people are asked once.


async def episodes(ground: Ground) -> list[dict[str, Any]]:
    """The organization's episodes, oldest first."""
    return await ground.scene.fetch("select * from doubt_episodes where {own} order by opened_at")


async def test_one_episode_for_many_doubts(ground: Ground) -> None:
    """Three mails of class C whose answers were lost are one episode, with one entry in the ledger."""
    rows = [await ground.faulty("sendgrid.mail.send", "commit-then-drop") for _ in range(3)]
    for row in rows:
        await ground.until_a_person(row)
    [episode] = await episodes(ground)
    assert (episode["waiting"], episode["doubts"], episode["attention"], episode["closed_at"]) == (3, 3, "queue", None)
    entries = await ground.scene.fetch("select kind, detail from ledger_entries where {own} and kind like 'episode-%'")
    assert [UUID(one["detail"]["episode_id"]) for one in entries] == [episode["id"]]
