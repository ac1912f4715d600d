"""Doubts that end without a person, and those that must not: the contract's ways, against a real worker, provider and Postgres.

Each test asks the invariants of the ledger afterwards.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.support.api import until
from tests.support.invariants import assert_invariants
from tests.support.ledger import claimed
from tests.support.outbox_up import PATHS, request
from tests.support.postgres import PostgresServer
from tests.support.recovery_ground import Ground, Servers, is_for_a_person, make_ground, serving

from outbox_store.sweep import take_turns
from outbox_worker.sweep import RECOVERIES_AT_ONCE, RECOVERY_PACE_SECONDS

REFUND, CUSTOMER, TICKET, MAIL, ECHO = (
    "stripe.refund.create",
    "stripe.customer.create",
    "sandbox.ticket.create",
    "sendgrid.mail.send",
    "sandbox.echo",
)


SOON_SECONDS = 20.0


@pytest.fixture(scope="module")
def servers(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A database, a provider and a worker for this module; every test has an organization and so connections of its own."""
    database = postgres_server.migrated_database()
    with serving(database, tmp_path_factory.mktemp("recovery")) as running:
        yield running
    postgres_server.drop(database)


@pytest.fixture
async def ground(servers: Servers) -> AsyncIterator[Ground]:
    """An organization of this test's own; the invariants are asked afterwards."""
    yield await make_ground(servers)
    servers.sandbox.drop_faults()
    await assert_invariants(servers.database.superuser_url)


# Class B: looked up.


async def test_ticket_that_never_arrived(ground: Ground) -> None:
    """A ticket whose request was lost before the commit: absent twice after the settle time, then sent again; one effect."""
    row = await ground.faulty(TICKET, "drop-before-commit")
    found = await ground.until_state(row, "succeeded")
    assert (found["outcomes"], found["absent"]) == (["unknown", "succeeded"], [True, False])
    assert (found["confidence"], found["tries"]) == ("confirmed", 1)
    assert len(await ground.effects(row)) == 1
    absences = [entry for entry in found["evidence_entries"] if entry["by"] == "lookup"]
    assert len(absences) == 1, "the first absence is noted, the second one settles"


async def test_ticket_whose_reply_was_lost(ground: Ground) -> None:
    """A ticket that was made and whose reply was lost: found by its marker before any settle time, never sent again."""
    row = await ground.faulty(TICKET, "commit-then-drop")
    found = await ground.until_state(row, "succeeded", deadline_seconds=SOON_SECONDS)
    [effect] = await ground.effects(row)
    assert (found["outcomes"], found["confidence"]) == (["unknown"], "confirmed-by-lookup")
    assert found["external_reference"] == effect["id"]
    assert [one["kind"] for one in found["evidence"]] == ["lookup"]
    vault = await ground.scene.vault()
    [kept] = await ground.scene.fetch(
        "select sealed from sealed_results where {own} and reservation_id = $1 and kind = 'result'", row.id
    )
    assert vault.open_result(row.id, kept["sealed"]) == {"id": effect["id"], "title": effect["fields"]["title"]}


async def test_ticket_that_is_made_long_after(servers: Servers) -> None:
    """A ticket that is made after the lease has ended, and one with a late write besides: looked up in vain, never counted, found."""
    ground = await make_ground(servers, settle=timedelta(seconds=9))
    row = await ground.faulty(TICKET, "slow-commit", delay_seconds=7.0)
    late = await ground.faulty(TICKET, "slow-commit", delay_seconds=7.0)
    await ground.until_state(late, "in_doubt")
    await ground.change("update reservations set late_write = true where id = $1", late.id)
    for each in (row, late):
        found = await ground.until_state(each, "succeeded")
        assert (found["outcomes"], found["confidence"], found["lookups"]) == (["unknown"], "confirmed-by-lookup", 0)
        assert len(await ground.effects(each)) == 1
    looked = [line for line in servers.log().splitlines() if str(row.id) in line and '"looked-up"' in line]
    assert [json.loads(line)["finding"] for line in looked][-1] == "found"
    assert {json.loads(line)["finding"] for line in looked[:-1]} == {"absent"}
    assert found["evidence_entries"] == []
    await assert_invariants(servers.database.superuser_url)


async def test_look_ups_that_fail_count_for_nothing(ground: Ground) -> None:
    """Errors, closed connections and silence are no absences: only complete answers are, and there must be two."""
    for fault, times in (("fail-500", 2), ("drop-before-commit", 1), ("truncate-body", 1), ("rate-limit", 1)):
        ground.sandbox.plan(PATHS[TICKET], fault, times=times, method="GET")
    before = len(await ground.lookups(TICKET))
    row = await ground.faulty(TICKET, "drop-before-commit")
    found = await ground.until(row, lambda found: found["lookups"] >= 3)
    assert (found["state"], found["absences"]) == ("in_doubt", 0)
    # The back-off is cut short; whether an absence counts is decided by the time of asking.
    sooner = "update open_reservations set due_at = least(due_at, now() + interval '0.3 s') where reservation_id = $1"

    async def hurried() -> bool:
        await ground.change(sooner, row.id)
        return bool((await ground.read(row))["state"] != "in_doubt")

    await until(hurried, deadline_seconds=60.0)
    found = await ground.until_state(row, "succeeded")
    assert (found["outcomes"], found["absent"]) == (["unknown", "succeeded"], [True, False])
    asked = (await ground.lookups(TICKET))[before:]
    assert len([one for one in asked if one["status"] == 200 and one["fault"] is None]) >= 2
    assert {one["fault"] for one in asked if one["fault"]} == {"fail-500", "drop-before-commit", "truncate-body", "rate-limit"}


async def test_answers_of_no_use_end_with_a_person(ground: Ground) -> None:
    """A provider that answers look-ups, but never the question: after so many a person is asked, and is told why."""
    ground.sandbox.plan(PATHS[TICKET], "reject-402", times=60, method="GET")
    row = await ground.faulty(TICKET, "commit-then-drop")
    await ground.until(row, lambda found: found["lookups"] >= 2)
    await ground.change("update reservations set lookups = 19 where id = $1", row.id)
    await ground.change("update open_reservations set due_at = now() where reservation_id = $1", row.id)
    found = await ground.until_a_person(row)
    assert found["person_asked_at"] is not None
    assert [entry["reason"] for entry in found["evidence_entries"]] == ["no usable answer: HTTP 402"]


async def test_two_effects_of_one_marker(ground: Ground) -> None:
    """Two tickets with one marker: no receipt is made of either; a person gets both references."""
    ground.sandbox.plan(PATHS[TICKET], "fail-500", times=2, method="GET")
    row = await ground.faulty(TICKET, "commit-then-drop")
    await ground.until_state(row, "in_doubt")
    [first] = await ground.effects(row)
    body = json.dumps({"title": first["fields"]["title"], "marker": first["fields"]["marker"]}).encode()
    headers = {"Authorization": "Bearer sk_test_1", "Content-Type": "application/json"}
    answer = await asyncio.to_thread(request, ground.sandbox.url, "POST", "/v1/tickets", body=body, headers=headers, seconds=10)
    assert answer.status == 201
    found = await ground.until_a_person(row)
    [entry] = found["evidence_entries"]
    assert sorted(entry["references"]) == sorted(one["id"] for one in await ground.effects(row))
    assert (entry["reason"], found["confidence"]) == ("several effects", None)


async def test_an_effect_that_was_examined_is_not_found_anew(ground: Ground) -> None:
    """A person has said of the ticket that it does not stand: it is no receipt of what was asked for again, and a person sees why."""
    ground.sandbox.plan(PATHS[TICKET], "fail-500", times=2, method="GET")
    row = await ground.faulty(TICKET, "commit-then-drop")
    await ground.until_state(row, "in_doubt")
    [undone] = await ground.effects(row)
    await ground.change(
        "insert into contradictions (organization_id, id, reservation_id, project_id, environment_id, connection_id, tool, scope, "
        "operation_key, external_reference, closed_at) select organization_id, gen_random_uuid(), id, project_id, environment_id, "
        "connection_id, tool, scope, operation_key, $2, now() from reservations where id = $1",
        *(row.id, undone["id"]),
    )
    found = await ground.until_a_person(row)
    [entry] = found["evidence_entries"]
    assert (entry["reason"], entry["references"], found["confidence"]) == ("an effect that was examined", [undone["id"]], None)


async def test_a_late_write_that_is_absent(ground: Ground) -> None:
    """A request left after its time: its absence never counts, so that nothing is sent again and a person is asked."""
    ground.sandbox.plan(PATHS[TICKET], "fail-500", times=2, method="GET")
    row = await ground.faulty(TICKET, "drop-before-commit")
    await ground.until_state(row, "in_doubt")
    await ground.change("update reservations set late_write = true where id = $1", row.id)
    found = await ground.until_a_person(row)
    assert (found["outcomes"], found["absences"], found["absent"]) == (["unknown"], 0, [False])


async def test_absent_after_its_time(ground: Ground) -> None:
    """Absence proven when nothing may be sent any more (`not_after`): failed, and its key is free."""
    row = await ground.faulty(TICKET, "drop-before-commit")
    await ground.until_state(row, "in_doubt")
    await ground.change("update reservations set not_after = now() where id = $1", row.id)
    found = await ground.until_state(row, "failed")
    assert (found["outcomes"], found["absent"]) == (["unknown"], [True])
    assert await ground.effects(row) == []


# Class A: sent again, then looked up.


async def test_refund_whose_failure_is_stored(ground: Ground) -> None:
    """A stored 500 is replayed and proves nothing: looked up, proven absent, and sent under the next generation's key."""
    row = await ground.faulty(REFUND, "fail-500")
    found = await ground.until_state(row, "succeeded")
    assert (found["outcomes"], found["absent"]) == (["unknown", "unknown", "succeeded"], [True, True, False])
    assert (found["generation"], found["confidence"]) == (1, "confirmed")
    [effect] = await ground.effects(row)
    assert set(found["markers"]) == {effect["marker"]}, "the marker is the same in every generation"


async def test_refund_that_was_made_behind_a_stored_failure(ground: Ground) -> None:
    """A stored 500 behind which the refund was made: replayed, then found; one effect, no further sending."""
    row = await ground.faulty(REFUND, "commit-then-500")
    found = await ground.until_state(row, "succeeded", deadline_seconds=SOON_SECONDS)
    [effect] = await ground.effects(row)
    assert (found["outcomes"], found["confidence"]) == (["unknown", "unknown"], "confirmed-by-lookup")
    assert found["external_reference"] == effect["id"]


async def test_refund_whose_reply_was_lost(ground: Ground) -> None:
    """Class A resends first: the provider replays, and the receipt is of an answer."""
    row = await ground.faulty(REFUND, "commit-then-drop")
    found = await ground.until_state(row, "succeeded", deadline_seconds=SOON_SECONDS)
    assert (found["outcomes"], found["confidence"], found["resends"]) == (["unknown", "succeeded"], "confirmed", 1)
    assert len(await ground.effects(row)) == 1


async def test_customer_is_looked_up_by_a_personal_field(ground: Ground) -> None:
    """The address of a look-up carries an e-mail address: it is found by it, and no log has it."""
    row = await ground.faulty(CUSTOMER, "commit-then-500")
    await ground.until_state(row, "succeeded", deadline_seconds=SOON_SECONDS)
    token = row.operation_key.rpartition(":")[2]
    assert any('"looked-up"' in line and str(row.id) in line for line in ground.servers.log().splitlines())
    assert f"{token}@" not in ground.servers.log()
    assert f"{token}%40" not in ground.servers.log()


async def test_a_person_is_asked_only_when_the_provider_is_reachable(ground: Ground) -> None:
    """Without a look-up: a replayed stored failure ends with a person; resends that met no provider go on beyond their bound."""
    stored = await ground.faulty(ECHO, "fail-500")
    found = await ground.until_a_person(stored)
    assert (found["outcomes"], found["person_asked_at"] is None) == (["unknown", "unknown"], False)
    silent = await ground.faulty(ECHO, "drop-before-commit", times=2)
    await ground.until_state(silent, "in_doubt")
    await ground.change("update reservations set resends = 5 where id = $1", silent.id)
    # Counted when it is claimed; its next time is set when it has ended.
    await ground.until(
        silent, lambda found: found["state"] == "succeeded" or (found["resends"] > 5 and found["state"] == "in_doubt")
    )
    await ground.change("update open_reservations set due_at = now() where reservation_id = $1", silent.id)
    found = await ground.until_state(silent, "succeeded")
    assert found["person_asked_at"] is None
    assert len(await ground.effects(silent)) == 1


# Class C: a person.


async def test_mail_whose_reply_was_lost(ground: Ground) -> None:
    """Class C is left to a person at once, and is never sent again."""
    row = await ground.faulty(MAIL, "commit-then-drop")
    found = await ground.until_a_person(row, deadline_seconds=SOON_SECONDS)
    assert (found["outcomes"], found["lookups"], found["person_asked_at"] is None) == (["unknown"], 0, False)
    assert len(await ground.effects(row)) == 1


# The breaker, and the pace.


async def breaker_of(ground: Ground) -> dict[str, Any] | None:
    """The organization's breaker, open or closed."""
    found = await ground.scene.fetch("select *, now() - opened_at as open_for from breakers where {own}")
    return found[0] if found else None


async def test_breaker_holds_tries_and_closes(ground: Ground) -> None:
    """Five unknowns open it: new calls are held unsent, one trial at a time, look-ups go on; an answer closes it and all are sent."""
    ground.sandbox.plan(PATHS[TICKET], "drop-before-commit", times=1000)
    lost = [await ground.reserve(TICKET) for _ in range(5)]
    for row in lost:
        await ground.until(row, lambda found: found["outcomes"][:1] == ["unknown"])

    async def opened() -> dict[str, Any] | None:
        found = await breaker_of(ground)
        return found if found is not None and found["closed_at"] is None else None

    assert await opened() is not None
    held = [await ground.reserve(TICKET) for _ in range(6)]
    elsewhere = await ground.reserve(REFUND)
    await ground.until_state(elsewhere, "succeeded", deadline_seconds=SOON_SECONDS)
    # Two trials fail; each is of one reservation, and the others wait unsent.

    async def twice_more() -> bool:
        found = await opened()
        assert found is not None
        return int(found["reopenings"]) >= 2

    await until(twice_more, deadline_seconds=60.0)
    tried = [row for row in held if (await ground.read(row))["outcomes"]]
    assert len(tried) <= 3, "one trial at a time"
    of_it = [line for line in ground.servers.log().splitlines() if str(lost[0].connection_id) in line]
    assert any('"breaker-opened"' in line for line in of_it)
    stood = [await ground.read(row) for row in lost]
    assert all(one["lookups"] or one["absences"] or one["tries"] for one in stood), "look-ups went on"
    ground.sandbox.drop_faults()
    for row in (*held, *lost):
        await ground.until_state(row, "succeeded", deadline_seconds=60.0)
        assert len(await ground.effects(row)) == 1
    found = await breaker_of(ground)
    assert found is not None
    assert (found["closed_at"] is None, found["trial_reservation_id"]) == (False, None)


async def test_breaker_stops_resends(ground: Ground) -> None:
    """While it is open, doubts of class A are sent again by trials alone; nobody is asked, and in the end each has one effect."""
    ground.sandbox.plan(PATHS[ECHO], "drop-before-commit", times=1000)
    rows = [await ground.reserve(ECHO) for _ in range(4)]
    await until(lambda: breaker_of(ground), deadline_seconds=30.0)

    async def sent(which: str = "true") -> int:
        [row] = await ground.scene.fetch(f"select count(*) as attempts from attempts where {{own}} and {which}")
        return int(row["attempts"])

    async def quiet() -> bool:
        return await sent("outcome is null") == 0

    await until(quiet, what="the end of what was under way when it opened")
    before, reopened = await sent(), (await breaker_of(ground) or {})["reopenings"]
    await asyncio.sleep(4.0)
    after, now_reopened = await sent(), (await breaker_of(ground) or {})["reopenings"]
    assert after - before <= now_reopened - reopened + 1, "every attempt is a trial"
    assert now_reopened - reopened <= 3, "trials are paced"
    assert [row for row in rows if is_for_a_person(await ground.read(row))] == []
    ground.sandbox.drop_faults()
    for row in rows:
        await ground.until_state(row, "succeeded", deadline_seconds=60.0)
        assert len(await ground.effects(row)) == 1


async def test_recovery_is_paced(ground: Ground) -> None:
    """Thirty doubts of one connection at once are not thirty look-ups at once, also counted over all workers; all of them end."""
    with ground.servers.frozen():
        rows = [await ground.reserve(TICKET) for _ in range(30)]
        async with ground.scene.connection() as connection:
            for row in rows:
                await claimed(connection, row, lease_seconds=0.05)
            # Other workers have taken up what may be taken up within the next three seconds.
            of = (row.organization_id, row.connection_id, RECOVERY_PACE_SECONDS)
            await take_turns(connection, *of[:2], pace_seconds=of[2], at_once=RECOVERIES_AT_ONCE, wanted=1)
            turn_at = await connection.fetchval(
                """update recovery_turns set taken_at = now() + make_interval(secs => 3 + $3 * ($4 - 1))
                   where (organization_id, connection_id, pace_seconds) = ($1, $2, $3) returning now() + interval '3 seconds'""",
                *of,
                RECOVERIES_AT_ONCE,
            )

    async def looked_at() -> datetime | None:
        [found] = await ground.scene.fetch("select now() as now, sum(lookups) as lookups from reservations where {own}")
        return found["now"] if found["lookups"] else None

    assert await until(looked_at, deadline_seconds=60.0) >= turn_at
    for row in rows:
        found = await ground.until_state(row, "succeeded", deadline_seconds=60.0)
        assert (found["outcomes"], found["absent"]) == (["unknown", "succeeded"], [True, False])
    assert "recovery-paced" in ground.servers.log()
    assert await breaker_of(ground) is None, "a lease that lapsed says nothing of the provider"
