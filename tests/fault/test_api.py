"""The API killed after T1 and before its wake-up, and while callers wait: a repeated call joins what was recorded.

Embedded Postgres; the embedded Redis, and again without any.
"""

import signal
from uuid import UUID

import pytest
from tests.support.effects import a_mail, a_refund
from tests.support.outbox_up import OutboxUp, Unanswered
from tests.support.processes import gone

TAKEN_UP_SECONDS = 15.0


def test_killed_between_reserving_and_the_wake_up(up: OutboxUp) -> None:
    """Killed after T1 committed, its wake-up lost: the sweep takes the reservation up, and the repeated call gets the receipt.

    With Redis: Redis is frozen, so no wake-up leaves the API before it is killed. Without: the workers are frozen when NOTIFY
    comes, and killed with the API.
    """
    wish = a_refund()
    apis, workers = up.pids("api"), up.pids("worker")
    if up.has_redis:
        up.freeze(*up.pids("redis"))
    up.freeze(*workers)
    waiting = wish.later(up)

    def reserved() -> UUID | None:
        found: UUID | None = up.ledger.value("select id from reservations where operation_key = $1", f"refund:pi_{wish.token}")
        return found

    id = up.wait(reserved, "the reservation")
    assert id is not None
    up.kill(*apis)
    with pytest.raises(Unanswered):
        waiting.result()
    assert up.state(id) == "reserved"
    if up.has_redis:
        up.thaw(*up.pids("redis"), *workers)
    else:
        up.kill(*workers)
    up.wait_state(id, "succeeded", deadline_seconds=TAKEN_UP_SECONDS)
    up.wait_replaced("api", apis)
    answer = wish.until_answered(up, deadline_seconds=TAKEN_UP_SECONDS)
    assert (answer.status, answer.document["reservation_id"], answer.document["replayed"]) == (200, str(id), True)
    assert up.outcomes(id) == ["succeeded"]
    assert len(wish.effects(up)) == 1
    if not up.has_redis:
        up.wait_replaced("worker", workers)


@pytest.mark.parametrize("commits", [True, False])
def test_killed_while_reserving(up: OutboxUp, commits: bool) -> None:
    """Killed while T1 is under way: whether it commits without its API or not at all, the repeated call has one effect."""
    wish = a_refund()
    apis = up.pids("api")
    lock = up.lock_new_reservations()
    waiting = wish.later(up)
    up.wait(lock.waiting, "T1 to wait for the lock")
    up.kill(*apis)
    with pytest.raises(Unanswered):
        waiting.result()
    if not commits:
        lock.end_waiting()
    lock.release()
    known = "select count(*) from reservations where operation_key = $1"
    key = f"refund:pi_{wish.token}"
    if commits:
        up.wait(lambda: up.ledger.value(known, key), "the reservation to be committed")
        up.wait(lambda: wish.effects(up), "the sweep to find it", deadline_seconds=TAKEN_UP_SECONDS)
    else:
        assert up.ledger.value(known, key) == 0
    answer = wish.until_answered(up, deadline_seconds=30)
    assert (answer.status, answer.document["replayed"]) == (200, commits)
    assert up.outcomes(UUID(answer.document["reservation_id"])) == ["succeeded"]
    assert len(wish.effects(up)) == 1
    up.wait_replaced("api", apis)


def test_session_lost_while_reserving(up: OutboxUp) -> None:
    """Postgres ends the session in which T1 waits: the API sends the same row again, and the caller notices nothing."""
    wish = a_mail()
    lock = up.lock_new_reservations()
    waiting = wish.later(up)
    up.wait(lock.waiting, "T1 to wait for the lock")
    lock.end_waiting()
    lock.release()
    answer = waiting.result()
    assert (answer.status, answer.document["replayed"]) == (200, False), answer.body
    assert up.outcomes(UUID(answer.document["reservation_id"])) == ["succeeded"]
    assert len(wish.effects(up)) == 1


def test_killed_while_callers_wait(up: OutboxUp) -> None:
    """Killed while callers wait for a send: the effect goes on, and whoever asks again joins it and gets the one receipt."""
    wishes = [a_refund(), a_mail()]
    ids = [wish.start_faulty(up, "delay", delay_seconds=2.0) for wish in wishes]
    waiting = [wish.later(up) for wish in wishes for _ in range(3)]
    up.wait(lambda: up.metric("outbox_waiters") == len(waiting), "the callers to wait")
    former = up.pids("api")
    up.kill(*former)
    for one in waiting:
        with pytest.raises(Unanswered):
            one.result()
    for wish, id in zip(wishes, ids, strict=True):
        answer = wish.until_answered(up, deadline_seconds=30)
        assert (answer.status, answer.document["reservation_id"]) == (200, str(id))
        assert up.outcomes(id) == ["succeeded"]
        assert len(wish.effects(up)) == 1
    up.wait_replaced("api", former)


def test_sigterm_answers_who_waits(up: OutboxUp) -> None:
    """SIGTERM while callers wait: each is answered, with the receipt or with where to ask again; no connection is broken."""
    wish = a_refund()
    id = wish.start_faulty(up, "delay", delay_seconds=2.0)
    waiting = [wish.later(up) for _ in range(4)]
    up.wait(lambda: up.metric("outbox_waiters") == len(waiting), "the callers to wait")
    former = up.pids("api")
    up.kill(*former, number=signal.SIGTERM)
    found = [one.result() for one in waiting]
    assert {one.status for one in found} <= {200, 202}, [one.body for one in found]
    assert {one.document["reservation_id"] for one in found} == {str(id)}
    up.wait(lambda: gone(former), f"the end of {former}", deadline_seconds=20)
    up.wait_replaced("api", former)
    answer = wish.until_answered(up, deadline_seconds=20)
    assert answer.status == 200
    assert up.outcomes(id) == ["succeeded"]
    assert len(wish.effects(up)) == 1
