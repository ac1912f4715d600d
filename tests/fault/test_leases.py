"""Leases and attempts: a worker stopped at the worst moment, bytes that are held back, renewals, and an orderly end.

Real worker processes with short leases (2 s, `send_by` 1 s, pause allowance 0.5 s), the sandbox provider, Postgres. What happens to
them comes from outside: signals, ptrace, a proxy, a superuser. The ledger's invariants are asked after each test.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.support import holding_proxy
from tests.support.halt import before_writing, can_halt
from tests.support.invariants import assert_invariants
from tests.support.outbox_up import PATHS
from tests.support.postgres import PostgresServer
from tests.support.processes import ChildProcess
from tests.support.recovery_ground import DEADLINE, LEASE_SECONDS, Ground, Servers, is_for_a_person, make_ground, serving

from outbox_store.reserve import NewReservation

REFUND, TICKET, MAIL = "stripe.refund.create", "sandbox.ticket.create", "sendgrid.mail.send"

SEND_BY_SECONDS = 1.0
RENEW_MARGIN_SECONDS = 0.5
LONGER_THAN_ITS_KERNEL_HOLDS = "x" * 400_000
"""Too much for the socket buffers of both sides: the write itself waits."""
WITHIN_ITS_KERNEL = "x" * 20_000
"""More than the proxy takes, less than the sender's kernel holds: the write ends at once, the bytes stay at home."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def servers(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A database, a provider and a worker for this module."""
    database = postgres_server.migrated_database()
    with serving(database, tmp_path_factory.mktemp("leases")) as running:
        yield running
    postgres_server.drop(database)


@pytest.fixture
async def ground(servers: Servers) -> AsyncIterator[Ground]:
    """An organization of this test's own and one worker; the invariants are asked afterwards."""
    if servers.workers[0].process.poll() is not None:
        servers.workers[0] = servers.start_worker()
        servers.workers.pop()
    yield await make_ground(servers)
    await tidy(servers)


@pytest.fixture
async def unhurried(ground: Ground) -> Ground:
    """An organization whose calls may take long: a slow machine must not end an attempt before the test does."""
    return await make_ground(ground.servers, deadline=timedelta(seconds=60))


async def tidy(servers: Servers) -> None:
    """One worker again, no faults, and the invariants."""
    for extra in servers.workers[1:]:
        extra.end()
    del servers.workers[1:]
    servers.workers[0].send(signal.SIGCONT)
    servers.sandbox.drop_faults()
    await assert_invariants(servers.database.superuser_url)


async def second_worker(ground: Ground, **settings: str) -> ChildProcess:
    """A further worker, ready and frozen."""
    worker = ground.servers.start_worker(**settings)
    await asyncio.to_thread(worker.wait_for, lambda: "ready" in worker.log())
    worker.send(signal.SIGSTOP)
    return worker


async def attempts(ground: Ground, row: NewReservation) -> list[dict[str, Any]]:
    """The attempts of a reservation, first to last, with the present time of Postgres."""
    return await ground.scene.fetch(
        "select a.*, now() as seen_at from attempts a where {own} and a.reservation_id = $1 order by number", row.id
    )


async def received(ground: Ground, tool: str, *, before: int) -> list[dict[str, Any]]:
    """The requests of a tool's path that have reached the provider since there were so many."""
    found = await asyncio.to_thread(lambda: ground.sandbox.requests(path=PATHS[tool], method="POST"))
    return found[before:]


async def until_so(condition: Callable[[], Awaitable[object]], what: str, *, seconds: float = 20.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        await asyncio.sleep(0.02)


# Stopped between the check and the write.

halts = pytest.mark.skipif(not can_halt(), reason="one process may not trace another here")

UNHURRIED: Mapping[str, str] = {
    "OUTBOX_LEASE_SECONDS": "5",
    "OUTBOX_SEND_BY_SECONDS": "3.5",
    "OUTBOX_PAUSE_ALLOWANCE_SECONDS": "1",
    "OUTBOX_RENEW_SECONDS": "1.5",
}
"""A process that is traced is slow; its attempt must come to the write all the same."""


@pytest.fixture
async def traced(servers: Servers) -> AsyncIterator[Ground]:
    """As `ground`, with two unhurried workers, the second frozen, and a deadline that the stop leaves room in."""
    ground = await make_ground(servers, deadline=timedelta(seconds=20))
    servers.workers[0].send(signal.SIGSTOP)
    (await second_worker(ground, **UNHURRIED)).send(signal.SIGCONT)
    await second_worker(ground, **UNHURRIED)
    yield ground
    await tidy(servers)


def sent_outcomes(found: Mapping[str, Any]) -> list[str]:
    """The outcomes of the attempts that may have sent anything."""
    return [outcome for outcome in found["outcomes"] if outcome != "unsent"]


async def stopped_before_the_write(ground: Ground, tool: str, fault: str | None) -> tuple[NewReservation, list[dict[str, Any]]]:
    """A worker is stopped past its lease when it has looked at the clock and not written yet; then it writes.

    The other worker finds the lapsed lease. Nothing has reached the provider by then; what comes late meets the fault.

    Returns:
        The reservation, and the requests that have reached the provider until then: of the other worker.
    """
    _, first, other = ground.servers.workers
    before = len(await received(ground, tool, before=0))
    with before_writing(first.pid, f"POST {PATHS[tool]}".encode()) as halt:
        row = await ground.reserve(tool)
        await asyncio.to_thread(halt.wait)
        assert (await ground.read(row))["state"] == "executing"
        assert await received(ground, tool, before=before) == []
        other.send(signal.SIGCONT)
        if tool == REFUND:
            await ground.until_state(row, "succeeded")
        else:
            await ground.until_state(row, "in_doubt")
        resent = await received(ground, tool, before=before)
        if fault is not None:
            await asyncio.to_thread(ground.sandbox.plan, PATHS[tool], fault)
        halt.release()

        async def arrived() -> bool:
            return len(await received(ground, tool, before=before)) > len(resent)

        await until_so(arrived, "the late request")
    return row, resent


@halts
async def test_a_refund_written_after_its_lease(traced: Ground) -> None:
    """Class A: the other worker has sent it meanwhile; the late request is the same request, and one effect exists."""
    row, resent = await stopped_before_the_write(traced, REFUND, None)
    assert [one["replayed"] for one in resent] == [False]

    async def reported() -> bool:
        return any(one["late_outcome"] for one in await attempts(traced, row))

    await until_so(reported, "the late report")
    first, second = [one for one in await attempts(traced, row) if one["outcome"] != "unsent"]
    assert (first["outcome"], first["closed_by"], first["late_outcome"]) == ("unknown", "lapse", "succeeded")
    assert second["outcome"] == "succeeded"
    [effect] = await traced.effects(row)
    assert (await traced.read(row))["external_reference"] == effect["id"]


@halts
async def test_a_mail_written_after_its_lease_and_answered(traced: Ground) -> None:
    """Class C: a lapsed lease is a doubt; the late success of its only attempt settles it."""
    row, resent = await stopped_before_the_write(traced, MAIL, None)
    found = await traced.until_state(row, "succeeded")
    assert (resent, sent_outcomes(found)) == ([], ["succeeded"])
    [effect] = await traced.effects(row)
    assert found["external_reference"] == effect["id"]


@halts
@pytest.mark.parametrize(("fault", "effects"), [("commit-then-drop", 1), ("drop-before-commit", 0)])
async def test_a_mail_written_after_its_lease_and_not_answered(traced: Ground, fault: str, effects: int) -> None:
    """Class C: the worker reports that it wrote late; the doubt stays, for a person, and nothing is sent again."""
    row, resent = await stopped_before_the_write(traced, MAIL, fault)
    found = await traced.until(row, lambda found: found["late_write"])
    assert is_for_a_person(found)
    assert (resent, sent_outcomes(found), len(await traced.effects(row))) == ([], ["unknown"], effects)
    [attempt] = [one for one in await attempts(traced, row) if one["outcome"] != "unsent"]
    assert (attempt["closed_by"], attempt["late_outcome"], attempt["late_write"]) == ("lapse", "unknown", True)


@halts
async def test_a_ticket_written_after_its_lease_and_found(traced: Ground) -> None:
    """Class B: what was written late is found by its marker; one effect."""
    row, resent = await stopped_before_the_write(traced, TICKET, "commit-then-drop")
    found = await traced.until_state(row, "succeeded")
    [effect] = await traced.effects(row)
    assert (resent, sent_outcomes(found), found["external_reference"]) == ([], ["unknown"], effect["id"])


@halts
async def test_a_ticket_written_after_its_lease_and_absent(traced: Ground) -> None:
    """Class B: after a late write no absence counts, however often nothing is found: a person is asked, nothing is sent again."""
    row, _ = await stopped_before_the_write(traced, TICKET, "drop-before-commit")
    found = await traced.until_a_person(row)
    assert found["late_write"]
    assert (sent_outcomes(found), found["absent"], await traced.effects(row)) == (
        ["unknown"],
        [False] * len(found["outcomes"]),
        [],
    )


# A proxy that holds bytes back.


async def held_back(ground: Ground, proxy: holding_proxy.HoldingProxy, text: str) -> NewReservation:
    """A mail on its way: its first byte has been written, and the provider's side takes nothing."""
    await ground.change(
        "update connections set base_url = $1 where organization_id = $2", proxy.url, ground.scene.organization_id
    )
    before = len(proxy.connections)
    row = await ground.reserve(MAIL, text=text)

    async def written() -> bool:
        return len(proxy.connections) > before

    await until_so(written, "a request at the proxy")
    return row


async def released_late(ground: Ground, proxy: holding_proxy.HoldingProxy) -> None:
    """The proxy takes what there is, long after `send_by`; how the sender's side has ended is seen."""
    proxy.passing.set()

    async def ended() -> bool:
        return all(each.ended for each in proxy.connections)

    await until_so(ended, "the end of the held connection")


@pytest.mark.parametrize("text", [LONGER_THAN_ITS_KERNEL_HOLDS, WITHIN_ITS_KERNEL], ids=["write-waits", "kernel-holds"])
@pytest.mark.parametrize("worker", ["alive", "stopped", "killed"])
async def test_bytes_held_back_never_arrive(ground: Ground, text: str, worker: str) -> None:
    """A request that was not taken by `send_by` arrives never: not from the worker, nor from its kernel when it is stopped or dead."""
    [first] = ground.servers.workers
    with holding_proxy.serving(ground.sandbox.url) as proxy:
        row = await held_back(ground, proxy, text)
        if worker != "alive":
            first.send(signal.SIGSTOP if worker == "stopped" else signal.SIGKILL)
            await second_worker(ground)
            ground.servers.workers[-1].send(signal.SIGCONT)
        found = await ground.until_a_person(row)
        claimed_at = (await attempts(ground, row))[0]["claimed_at"]

        async def past() -> bool:
            now: datetime = (await attempts(ground, row))[0]["seen_at"]
            return bool(now > claimed_at + timedelta(seconds=SEND_BY_SECONDS + 2 * LEASE_SECONDS))

        await until_so(past, "a time long after send_by")
        await released_late(ground, proxy)
        assert [each.ended for each in proxy.connections] == ["reset"]
        assert max(each.taken for each in proxy.connections) < len(text)
    assert (found["outcomes"], await ground.effects(row)) == (["unknown"], [])
    if worker == "stopped":
        # Awake again, it reports what it knows: that it cannot say more. A write that ended in its sleep freezes the doubt.
        first.send(signal.SIGCONT)

        async def reported() -> bool:
            return bool((await attempts(ground, row))[0]["late_outcome"])

        await until_so(reported, "the late report")
        assert (await attempts(ground, row))[0]["late_outcome"] == "unknown"
    assert is_for_a_person(await ground.read(row))
    assert await ground.effects(row) == []


async def test_bytes_held_back_within_send_by_arrive(ground: Ground) -> None:
    """Positive control: a slow provider that takes the request in time makes one effect."""
    with holding_proxy.serving(ground.sandbox.url) as proxy:
        row = await held_back(ground, proxy, LONGER_THAN_ITS_KERNEL_HOLDS)
        await asyncio.sleep(SEND_BY_SECONDS / 4)
        proxy.passing.set()
        await ground.until_state(row, "succeeded")
        assert len(await ground.effects(row)) == 1


# Renewals.


async def test_a_lease_is_renewed_while_the_answer_is_awaited(ground: Ground) -> None:
    """An answer that takes longer than the lease: renewed meanwhile, by its own attempt, and settled by it; nobody else takes it."""
    other = await second_worker(ground)
    other.send(signal.SIGCONT)
    row = await ground.faulty(REFUND, "delay", delay_seconds=LEASE_SECONDS + 0.7)
    leases: set[datetime] = set()

    async def settled() -> bool:
        found = await attempts(ground, row)
        leases.update(one["lease_until"] for one in found)
        return bool((await ground.read(row))["state"] == "succeeded")

    await until_so(settled, "the settlement")
    [attempt] = await attempts(ground, row)
    assert attempt["outcome"] == "succeeded"
    assert len(leases) >= 3
    longest = max(leases) - attempt["claimed_at"]
    assert timedelta(seconds=LEASE_SECONDS) < longest <= DEADLINE + timedelta(seconds=RENEW_MARGIN_SECONDS)


async def test_a_lease_is_not_renewed_past_the_deadline(ground: Ground) -> None:
    """A worker that is stopped after it has sent keeps its lease no longer than renewed; never past deadline and margin."""
    row = await ground.faulty(MAIL, "hang", delay_seconds=30.0)
    latest = timedelta()

    async def ended() -> bool:
        nonlocal latest
        for one in await attempts(ground, row):
            latest = max(latest, one["lease_until"] - one["claimed_at"])
        return bool((await ground.read(row))["state"] == "in_doubt")

    await until_so(ended, "the end of the attempt")
    assert latest <= DEADLINE + timedelta(seconds=RENEW_MARGIN_SECONDS)
    [attempt] = await attempts(ground, row)
    assert (attempt["outcome"], attempt["closed_by"]) == ("unknown", "answer")
    assert attempt["closed_at"] - attempt["claimed_at"] < DEADLINE + timedelta(seconds=RENEW_MARGIN_SECONDS + 1)


# An orderly end.


async def in_flight(ground: Ground, tool: str, delay_seconds: float, fault: str) -> NewReservation:
    """A call whose request is at the provider, which does not answer for so long."""
    before = len(await received(ground, tool, before=0))
    row = await ground.faulty(tool, fault, delay_seconds=delay_seconds)

    async def arrived() -> bool:
        return len(await received(ground, tool, before=before)) > 0

    await until_so(arrived, "the request's arrival")
    return row


async def alone(ground: Ground, **settings: str) -> ChildProcess:
    """A worker with other settings, the only one that runs."""
    worker = await second_worker(ground, **settings)
    ground.servers.workers[0].send(signal.SIGSTOP)
    worker.send(signal.SIGCONT)
    return worker


async def test_an_orderly_end_finishes_what_was_sent(ground: Ground) -> None:
    """SIGTERM: nothing more is claimed, what was sent is settled by its own attempt, and the process ends with 0."""
    worker = await alone(ground)
    row = await in_flight(ground, MAIL, 1.5, "delay")
    worker.send(signal.SIGTERM)
    await until_so(lambda: asyncio.to_thread(lambda: "stopping" in worker.log()), "the signal")
    later = await ground.reserve(MAIL)
    assert await asyncio.to_thread(worker.wait) == 0
    found = await ground.read(row)
    assert (found["state"], found["outcomes"]) == ("succeeded", ["succeeded"])
    waiting = await ground.read(later)
    assert (waiting["state"], waiting["outcomes"]) == ("reserved", [])
    ground.servers.workers[0].send(signal.SIGCONT)
    await ground.until_state(later, "succeeded")


async def test_an_orderly_end_cuts_what_takes_too_long(ground: Ground) -> None:
    """Past its grace the worker closes what it must cut as unknown, without waiting for the lease, and ends with 0."""
    worker = await alone(ground, OUTBOX_DRAIN_SECONDS="0.5", OUTBOX_LEASE_SECONDS="30")
    mail = await in_flight(ground, MAIL, 20.0, "hang")
    refund = await in_flight(ground, REFUND, 20.0, "hang")
    worker.send(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == 0
    for row in (mail, refund):
        [attempt] = await attempts(ground, row)
        assert (attempt["outcome"], attempt["closed_by"], attempt["reason"]) == ("unknown", "answer", "cut off")
        assert (await ground.read(row))["state"] == "in_doubt"
    ground.servers.workers[0].send(signal.SIGCONT)
    await ground.until_state(refund, "succeeded")
    assert is_for_a_person(await ground.read(mail))
    assert (len(await ground.effects(refund)), len(await ground.effects(mail))) == (1, 1)


async def test_the_same_signal_again_ends_at_once(unhurried: Ground) -> None:
    """A second SIGTERM ends the process as any other would be; the lease lapses and recovery takes over."""
    worker = await alone(unhurried)
    row = await in_flight(unhurried, REFUND, 60.0, "hang")
    worker.send(signal.SIGTERM)
    await until_so(lambda: asyncio.to_thread(lambda: "stopping" in worker.log()), "the first signal")
    worker.send(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == -signal.SIGTERM
    assert (await unhurried.read(row))["state"] == "executing"
    unhurried.servers.workers[0].send(signal.SIGCONT)
    found = await unhurried.until_state(row, "succeeded")
    assert found["outcomes"] == ["unknown", "succeeded"]
    assert len(await unhurried.effects(row)) == 1
