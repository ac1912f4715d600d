"""Recovery as a caller sees it, and recovery whose own worker is struck. Embedded Postgres, with Redis and without."""

from uuid import UUID

from tests.support.effects import a_mail, a_ticket
from tests.support.outbox_up import OutboxUp

RECOVERED_SECONDS = 45.0
AT_ONCE_SECONDS = 12.0


def test_a_caller_waits_for_a_look_up(up: OutboxUp) -> None:
    """The reply to a ticket is lost: the call that waits is answered 200, with a receipt that says how it is known."""
    wish = a_ticket()
    up.sandbox.plan(wish.path, "commit-then-drop")
    answer = wish.call(up, Prefer="wait=30")
    assert (answer.status, answer.document["replayed"]) == (200, False)
    [effect] = wish.effects(up)
    receipt = answer.document["receipt"]
    assert (receipt["external_reference"], receipt["confidence"]) == (effect["id"], "confirmed-by-lookup")
    assert answer.document["result"] == {"id": effect["id"], "title": wish.input["title"]}
    again = wish.call(up)
    assert (again.document["replayed"], again.receipt_bytes) == (True, answer.receipt_bytes)


def test_a_caller_is_told_at_once_that_a_person_decides(up: OutboxUp) -> None:
    """Where nothing automatic is left, nobody is kept waiting."""
    wish = a_mail()
    up.sandbox.plan(wish.path, "commit-then-drop")
    answer = wish.call(up, Prefer="wait=30")
    assert (answer.status, answer.document["code"], answer.document["retry"]["action"]) == (409, "in-doubt", "ask-human")
    assert answer.seconds < AT_ONCE_SECONDS


def test_workers_killed_in_the_middle_of_a_look_up(up: OutboxUp) -> None:
    """The look-up that nobody ends is made again by whoever comes next; the ticket is found, once."""
    wish = a_ticket()
    up.sandbox.plan(wish.path, "hang", times=1, delay_seconds=60.0, method="GET")
    id = wish.start_faulty(up, "commit-then-drop", delay_seconds=0.0)
    up.wait(lambda: looked_up(up, id) >= 1, "the first look-up")
    workers = up.pids("worker")
    up.kill(*workers)
    up.wait_replaced("worker", workers)
    up.wait_state(id, "succeeded", deadline_seconds=RECOVERED_SECONDS)
    assert up.outcomes(id) == ["unknown"]
    assert len(wish.effects(up)) == 1


def test_a_worker_killed_between_absence_and_sending_again(up: OutboxUp) -> None:
    """A ticket that never arrived: whoever is killed on the way, absence is proven twice and it is sent again, once."""
    wish = a_ticket()
    id = wish.start_faulty(up, "drop-before-commit", delay_seconds=0.0)
    up.wait(lambda: absences(up, id) >= 1, "the first absence", deadline_seconds=RECOVERED_SECONDS)
    workers = up.pids("worker")
    up.kill(*workers)
    up.wait_replaced("worker", workers)
    up.wait_state(id, "succeeded", deadline_seconds=RECOVERED_SECONDS)
    assert up.outcomes(id)[0] == "unknown"
    assert up.attempts(id)[0]["proven_absent"] is True
    assert len(wish.effects(up)) == 1


def looked_up(up: OutboxUp, id: UUID) -> int:
    """How many look-ups of the newest attempt there were; those that hang at the provider included."""
    counted: int = up.ledger.value("select lookups from reservations where id = $1", id)
    hanging = [one for one in up.sandbox.requests(path="/v1/tickets", method="GET") if one["status"] is None]
    return counted if hanging else 0


def absences(up: OutboxUp, id: UUID) -> int:
    """How many of them found nothing and count."""
    found: int = up.ledger.value("select absences from reservations where id = $1", id)
    return found


def test_calls_are_held_while_nothing_answers(up: OutboxUp) -> None:
    """Five unknowns: further calls are answered 202 and stay reserved, unsent but for trials; an answer lets all of them through once."""
    lost = [a_ticket() for _ in range(5)]
    up.sandbox.plan(lost[0].path, "drop-before-commit", times=1000)
    for wish in lost:
        assert wish.call(up, Prefer="respond-async").status == 202
    open_breakers = "select count(*) from breakers where closed_at is null"
    up.wait(lambda: up.ledger.value(open_breakers) == 1, "the breaker to open", deadline_seconds=RECOVERED_SECONDS)
    held = [a_ticket() for _ in range(4)]
    answers = [wish.call(up, Prefer="wait=1") for wish in held]
    waiting = [answer for answer in answers if answer.status == 202 and answer.document["state"] == "reserved"]
    assert len(waiting) >= 2, "but for the trials nothing is sent"
    assert {answer.document["retry"]["action"] for answer in waiting} <= {"wait", "same-request"}
    assert all(up.outcomes(UUID(answer.document["reservation_id"])) == [] for answer in waiting[-1:])
    up.sandbox.drop_faults()
    up.wait(lambda: up.ledger.value(open_breakers) == 0, "the breaker to close", deadline_seconds=90.0)
    for wish in (*held, *lost):
        up.wait_state(UUID(wish.call(up, Prefer="respond-async").document["reservation_id"]), "succeeded", deadline_seconds=90.0)
        assert len(wish.effects(up)) == 1
