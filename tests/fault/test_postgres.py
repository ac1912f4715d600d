"""Postgres stopped in immediate mode: nothing is sent that is not recorded, and what was sent is settled when it is back.

One stack with a Postgres that the tests own and start again when they like, with Redis and without (LISTEN must come back);
and the shared stack, whose supervisor restarts the embedded one.
"""

import functools
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import UUID

import pytest
from tests.support import postgres
from tests.support.effects import a_mail, a_refund, a_ticket
from tests.support.outbox_up import Answer, OutboxUp, running
from tests.support.processes import gone

from outbox_standalone.embedded_postgres import shipped_binaries

BACK_SECONDS = 40.0


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[postgres.StoppablePostgres]:
    """The shipped Postgres, started by this module."""
    with postgres.StoppablePostgres(tmp_path_factory.mktemp("postgres"), shipped_binaries()) as server:
        yield server


@pytest.fixture(scope="module", params=["redis", "no-redis"])
def stack_of_own_postgres(
    request: pytest.FixtureRequest, own_postgres: postgres.StoppablePostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OutboxUp]:
    """`outbox up` with OUTBOX_POSTGRES_URL, in a database of its own."""
    database = own_postgres.server.empty_database()
    options = ["--no-redis"] if request.param == "no-redis" else []
    with running(tmp_path_factory.mktemp("up"), *options, env={"OUTBOX_POSTGRES_URL": database.superuser_url}) as started:
        if request.param == "redis" and not started.has_redis:
            pytest.skip("there is no Redis on this machine")
        yield started


@pytest.fixture
def beside(stack_of_own_postgres: OutboxUp, own_postgres: postgres.StoppablePostgres) -> Iterator[OutboxUp]:
    """The stack beside this module's Postgres, which runs again when the test is over."""
    with stack_of_own_postgres.checked():
        try:
            yield stack_of_own_postgres
        finally:
            if gone([own_postgres.process_id]):
                own_postgres.start()


def is_told_unavailable(answer: Answer) -> bool:
    """503 in the one skeleton, saying that the same call is safe."""
    told = answer.document
    assert answer.headers["content-type"] == "application/problem+json"
    assert "retry-after" in answer.headers
    assert (told["code"], told["is_error"], told["retry"]["action"]) == ("unavailable", True, "same-request")
    return answer.status == 503


def test_down(beside: OutboxUp, own_postgres: postgres.StoppablePostgres) -> None:
    """Postgres is down: 503 problem+json, nothing is sent, the processes stay; the same call succeeds when it is back."""
    before = [*beside.pids("api"), *beside.pids("worker")]
    wishes = [a_refund(), a_mail(), a_ticket()]
    settled = a_refund()
    first = settled.call(beside)
    sent = len(beside.sandbox.requests())
    own_postgres.stop_immediately()
    for wish in [*wishes, settled]:
        answer = wish.call(beside)
        assert is_told_unavailable(answer)
        assert answer.document["message"].startswith("NOT SENT. ")
        assert answer.seconds < 10
    assert is_told_unavailable(beside.send("GET", f"/v1/receipts/{first.document['receipt']['id']}"))
    assert len(beside.sandbox.requests()) == sent
    own_postgres.start()
    for wish in wishes:
        answer = wish.until_answered(beside, deadline_seconds=BACK_SECONDS)
        assert answer.status == 200, answer.body
        assert len(wish.effects(beside)) == 1
        assert beside.outcomes(UUID(answer.document["reservation_id"])) == ["succeeded"]
    assert settled.until_answered(beside, deadline_seconds=BACK_SECONDS).receipt_bytes == first.receipt_bytes
    assert [*beside.pids("api"), *beside.pids("worker")] == before


def test_stopped_during_sends(beside: OutboxUp, own_postgres: postgres.StoppablePostgres) -> None:
    """Stopped while requests are under way: settling is retried, waiting callers get their receipts, each is sent once."""
    wishes = [a_refund(), a_mail(), a_ticket()]
    ids = [wish.start_faulty(beside, "delay", delay_seconds=1.5) for wish in wishes]
    waiting = [wish.later(beside) for wish in wishes for _ in range(3)]
    beside.wait(lambda: beside.metric("outbox_waiters") == len(waiting), "the callers to wait")
    retries = beside.metric("outbox_settle_retries_total")
    own_postgres.stop_immediately()
    assert not any(wish.effects(beside) for wish in wishes), "the provider was faster than the stop"
    beside.wait(lambda: all(wish.effects(beside) for wish in wishes), "the provider to do what it was asked")
    beside.wait(lambda: beside.metric("outbox_settle_retries_total") > retries, "a settlement that is tried again")
    own_postgres.start()
    for id in ids:
        beside.wait_state(id, "succeeded", deadline_seconds=BACK_SECONDS)
        assert beside.outcomes(id) == ["succeeded"]
    found = [one.result() for one in waiting]
    assert {one.status for one in found} == {200}, [one.body for one in found if one.status != 200]
    assert len({one.receipt_bytes for one in found}) == len(wishes)
    assert all(len(wish.effects(beside)) == 1 for wish in wishes)


def test_stopped_again_and_again_under_callers(beside: OutboxUp, own_postgres: postgres.StoppablePostgres) -> None:
    """Two stops while agents keep calling: every agent gets its receipt in the end, and every effect exists once."""
    refunds, mails = [a_refund() for _ in range(24)], [a_mail() for _ in range(8)]
    with ThreadPoolExecutor(16) as agents:
        pending = [agents.submit(wish.until_answered, beside, deadline_seconds=90) for wish in [*refunds, *mails]]
        for _ in range(2):
            enough = min(sum(one.done() for one in pending) + 4, len(pending))
            beside.wait(functools.partial(so_many_are_done, pending, enough), "some progress", deadline_seconds=60)
            own_postgres.stop_immediately()
            own_postgres.start()
        answers = [one.result() for one in pending]
    for wish, answer in zip(refunds, answers, strict=False):
        assert answer.status == 200, answer.body
        assert len(wish.effects(beside)) == 1
    for wish, answer in zip(mails, answers[len(refunds) :], strict=True):
        # A mail whose claim was committed while the answer of the commit was lost may be in doubt; then nobody sends it again.
        assert answer.status in (200, 409), answer.body
        assert len(wish.effects(beside)) <= 1


def so_many_are_done(pending: "list[Future[Answer]]", number: int) -> bool:
    """Whether so many agents have their answers."""
    return sum(one.done() for one in pending) >= number


def test_stopped_under_the_supervisor(up: OutboxUp) -> None:
    """The embedded Postgres is stopped during a send: the supervisor starts it again, and the waiting caller gets the receipt."""
    former = up.pids("postgres")
    wish = a_refund()
    id = wish.start_faulty(up, "delay", delay_seconds=1.5)
    waiting = wish.later(up)
    up.kill(*former, number=signal.SIGQUIT)
    up.wait(lambda: gone(former), "the end of Postgres")
    up.wait_replaced("postgres", former)
    up.wait_state(id, "succeeded", deadline_seconds=BACK_SECONDS)
    assert up.outcomes(id) == ["succeeded"]
    answer = waiting.result()
    again = wish.until_answered(up, deadline_seconds=BACK_SECONDS)
    assert again.status == 200
    assert answer.status in (200, 503), answer.body
    assert len(wish.effects(up)) == 1
