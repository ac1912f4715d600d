"""Workers that are killed, frozen and asked to end, at each edge of an attempt.

Several attempts are brought to their edges at the same time and then struck together, because each waits for a lease. Faults
come from outside: the sandbox provider holds answers back, a superuser's row lock holds claim and settle back, signals do
the rest. Embedded Postgres; the embedded Redis, and again without any.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import pytest
from tests.support.effects import Wish, a_mail, a_refund, a_ticket
from tests.support.outbox_up import Lock, OutboxUp
from tests.support.processes import gone

TAKEN_UP_SECONDS = 15.0
"""A killed worker's call is taken up again within this time (`interfaces.md` section 9)."""

RECOVERED_SECONDS = 40.0
HANG_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Struck:
    """An attempt that was at its edge when the worker was struck."""

    wish: Wish
    id: UUID


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What was struck, by the name of its edge, and when (by the clock of Postgres)."""

    struck: dict[str, Struck]
    at: datetime

    def __getitem__(self, edge: str) -> Struck:
        return self.struck[edge]


class Arrangement:
    """Brings attempts to their edges at one worker, while the other is frozen."""

    def __init__(self, up: OutboxUp) -> None:
        """Freezes one of the two workers."""
        self.up = up
        self.worker, self.other = up.pids("worker")
        self.struck: dict[str, Struck] = {}
        up.freeze(self.other)

    def during_send(self, edge: str, wish: Wish, fault: str, delay_seconds: float) -> UUID:
        """The request has reached the provider, which does not answer for so long."""
        id = wish.start_faulty(self.up, fault, delay_seconds=delay_seconds)
        self.struck[edge] = Struck(wish=wish, id=id)
        return id

    def at_claim(self, **wishes: Wish) -> dict[str, Lock]:
        """The claims have been sent and wait for locks; released after the worker was frozen, they commit and nothing is sent."""
        self.up.freeze(self.worker)
        locks = {}
        for edge, wish in wishes.items():
            id = wish.start(self.up)
            self.struck[edge] = Struck(wish=wish, id=id)
            locks[edge] = self.up.lock(id)
        self.up.thaw(self.worker)
        for edge, lock in locks.items():
            self.up.wait(lock.waiting, f"the claim of {edge} to wait for the lock")
        return locks

    def at_settle(self, **wishes: Wish) -> dict[str, Lock]:
        """The answers are there, and the settlements have been sent and wait for locks."""
        locks = {}
        for edge, wish in wishes.items():
            locks[edge] = self.up.lock(self.during_send(edge, wish, "delay", 2.0))
        for edge, lock in locks.items():
            self.up.wait(lock.waiting, f"the settlement of {edge} to wait for the lock")
        return locks

    def answered(self, **wishes: Wish) -> None:
        """The worker is frozen from now on, and the answers lie in its sockets."""
        for edge, wish in wishes.items():
            self.during_send(edge, wish, "delay", 2.0)
        self.up.freeze(self.worker)
        for edge in wishes:
            assert self.up.outcomes(self.struck[edge].id) == [None], f"{edge} was settled before the worker was frozen"
        self.up.wait(lambda: all(self._is_answered(self.struck[edge].wish) for edge in wishes), "the provider's answers")

    def _is_answered(self, wish: Wish) -> bool:
        answered = {one["request_id"] for one in self.up.sandbox.requests(path=wish.path) if one["status"] is not None}
        return any(one["request_id"] in answered for one in wish.effects(self.up))

    def scene(self) -> Scene:
        """Everything is struck now."""
        return Scene(struck=self.struck, at=self.up.ledger.value("select now()"))


@pytest.fixture(scope="module")
def killed(stack: OutboxUp) -> Iterator[Scene]:
    """Attempts at each edge of an attempt, and SIGKILL for both workers."""
    with stack.checked() as up:
        arranged = Arrangement(up)
        claims = arranged.at_claim(claimed=a_refund(), claimed_mail=a_mail(), claimed_ticket=a_ticket())
        arranged.during_send("committed", a_refund(), "hang", HANG_SECONDS)
        arranged.during_send("commits_later", a_refund(), "slow-commit", 16.0)
        arranged.during_send("committed_mail", a_mail(), "hang", HANG_SECONDS)
        arranged.during_send("committed_ticket", a_ticket(), "hang", HANG_SECONDS)
        settlements = arranged.at_settle(settling=a_refund(), settling_mail=a_mail(), settled=a_refund())
        arranged.answered(answered=a_refund(), answered_mail=a_mail())
        for edge, lock in claims.items():
            lock.release()
            up.wait_state(arranged.struck[edge].id, "executing")
        before_claim = a_refund()
        arranged.struck["reserved"] = Struck(wish=before_claim, id=before_claim.start(up))
        settlements["settled"].release()
        up.wait_state(arranged.struck["settled"].id, "succeeded")
        up.kill(arranged.worker, arranged.other)
        # The settlements that wait at their locks must not commit after their worker's death: their sessions end with it.
        for edge in ("settling", "settling_mail"):
            settlements[edge].end_waiting()
        for lock in settlements.values():
            lock.release()
        scene = arranged.scene()
        assert up.state(scene["reserved"].id) == "reserved"
        up.wait_replaced("worker", [arranged.worker, arranged.other])
        yield scene


def seconds_until_taken_up(up: OutboxUp, scene: Scene, edge: str, number: int) -> float:
    """From the strike to the claim of a reservation's attempt of that number."""
    claimed_at: datetime = up.attempts(scene[edge].id)[number - 1]["claimed_at"]
    return (claimed_at - scene.at).total_seconds()


def test_killed_before_the_claim(up: OutboxUp, killed: Scene) -> None:
    """Killed between T1 and T2: what is reserved is taken up by the next worker at once, and sent once."""
    up.wait_state(killed["reserved"].id, "succeeded")
    assert up.outcomes(killed["reserved"].id) == ["succeeded"]
    assert seconds_until_taken_up(up, killed, "reserved", 1) < TAKEN_UP_SECONDS
    assert len(killed["reserved"].wish.effects(up)) == 1


@pytest.mark.parametrize("edge", ["claimed", "committed", "answered", "settling"])
def test_killed_in_an_attempt_of_class_a(up: OutboxUp, killed: Scene, edge: str) -> None:
    """Killed after T2, during the send, after the answer, or before T3 commits: taken up within 15 s, exactly one effect."""
    up.wait_state(killed[edge].id, "succeeded", deadline_seconds=RECOVERED_SECONDS)
    assert up.outcomes(killed[edge].id) == ["unknown", "succeeded"]
    assert seconds_until_taken_up(up, killed, edge, 2) < TAKEN_UP_SECONDS
    [effect] = killed[edge].wish.effects(up)
    requests = up.sandbox.requests(idempotency_key=effect["idempotency_key"])
    assert [one["replayed"] for one in requests] == ([False] if edge == "claimed" else [False, True])
    answer = killed[edge].wish.call(up)
    assert answer.document["receipt"]["external_reference"] == effect["id"]


def test_killed_while_the_provider_still_works(up: OutboxUp, killed: Scene) -> None:
    """Killed during a send that the provider commits much later: the resends meet its key in use, and one effect exists."""
    up.wait_state(killed["commits_later"].id, "succeeded", deadline_seconds=RECOVERED_SECONDS)
    first, *others, last = up.outcomes(killed["commits_later"].id)
    assert (first, set(others) <= {"deferred"}, last) == ("unknown", True, "succeeded")
    assert seconds_until_taken_up(up, killed, "commits_later", 2) < TAKEN_UP_SECONDS
    assert len(killed["commits_later"].wish.effects(up)) == 1


def test_killed_after_the_settlement_committed(up: OutboxUp, killed: Scene) -> None:
    """Killed after T3 committed and before its answer came: settled, nothing is sent again, and the caller gets the receipt."""
    assert up.outcomes(killed["settled"].id) == ["succeeded"]
    [effect] = killed["settled"].wish.effects(up)
    assert len(up.sandbox.requests(idempotency_key=effect["idempotency_key"])) == 1
    assert killed["settled"].wish.call(up).document["receipt"]["external_reference"] == effect["id"]


@pytest.mark.parametrize(
    ("edge", "effects"),
    [("claimed_mail", 0), ("committed_mail", 1), ("answered_mail", 1), ("settling_mail", 1)],
)
def test_killed_without_native_identity(up: OutboxUp, killed: Scene, edge: str, effects: int) -> None:
    """A mail (class C) whose worker was killed: in doubt for a person, never sent again."""
    struck = killed[edge]
    up.wait_state(struck.id, "in_doubt", deadline_seconds=RECOVERED_SECONDS)
    assert up.needs_a_person(struck.id)
    answer = struck.wish.call(up)
    assert (answer.status, answer.document["code"], answer.document["retry"]["action"]) == (409, "in-doubt", "ask-human")
    # By now refunds that lapsed with it have been sent again: whatever sends again has been at work.
    up.wait_state(killed["committed"].id, "succeeded", deadline_seconds=RECOVERED_SECONDS)
    assert up.outcomes(struck.id) == ["unknown"]
    assert len(struck.wish.effects(up)) == effects


@pytest.mark.parametrize(("edge", "outcomes"), [("claimed_ticket", ["unknown", "succeeded"]), ("committed_ticket", ["unknown"])])
def test_killed_where_a_marker_can_be_looked_up(up: OutboxUp, killed: Scene, edge: str, outcomes: list[str]) -> None:
    """A ticket (class B) whose worker was killed: found by its marker, or absent twice and sent again; exactly one effect."""
    up.wait_state(killed[edge].id, "succeeded", deadline_seconds=RECOVERED_SECONDS)
    assert up.outcomes(killed[edge].id) == outcomes
    [effect] = killed[edge].wish.effects(up)
    receipt = killed[edge].wish.call(up).document["receipt"]
    assert receipt["external_reference"] == effect["id"]
    assert receipt["confidence"] == ("confirmed" if edge == "claimed_ticket" else "confirmed-by-lookup")


@pytest.fixture(scope="module")
def frozen(stack: OutboxUp) -> Iterator[Scene]:
    """A worker frozen past the lease of its attempts, which the other worker lapses; then it goes on."""
    with stack.checked() as up:
        arranged = Arrangement(up)
        claims = arranged.at_claim(claimed=a_refund(), claimed_mail=a_mail())
        arranged.answered(answered=a_refund(), answered_mail=a_mail())
        for edge, lock in claims.items():
            lock.release()
            up.wait_state(arranged.struck[edge].id, "executing")
        scene = arranged.scene()
        up.thaw(arranged.other)
        for edge in ("claimed", "answered"):
            up.wait_state(scene[edge].id, "succeeded", deadline_seconds=RECOVERED_SECONDS)
        for edge in ("claimed_mail", "answered_mail"):
            up.wait_state(scene[edge].id, "in_doubt", deadline_seconds=RECOVERED_SECONDS)
            assert up.needs_a_person(scene[edge].id)
        assert scene["claimed_mail"].wish.effects(up) == []
        up.thaw(arranged.worker)
        yield scene


@pytest.mark.parametrize(("edge", "reported"), [("claimed", "unsent"), ("answered", "succeeded")])
def test_frozen_past_the_lease_changes_nothing(up: OutboxUp, frozen: Scene, edge: str, reported: str) -> None:
    """A worker that wakes past its lease, after another has settled: it sends nothing, its report is evidence, one effect exists."""

    def late_outcome() -> str | None:
        found: str | None = up.attempts(frozen[edge].id)[0]["late_outcome"]
        return found

    assert up.wait(late_outcome, "the late report") == reported
    assert up.outcomes(frozen[edge].id) == ["unknown", "succeeded"]
    assert up.attempts(frozen[edge].id)[0]["worker"] != up.attempts(frozen[edge].id)[1]["worker"]
    assert seconds_until_taken_up(up, frozen, edge, 2) < TAKEN_UP_SECONDS
    [effect] = frozen[edge].wish.effects(up)
    assert len(up.sandbox.requests(idempotency_key=effect["idempotency_key"])) == (1 if edge == "claimed" else 2)


def test_frozen_past_the_lease_with_a_success(up: OutboxUp, frozen: Scene) -> None:
    """A late success with a receipt ends a doubt: the mail that was answered while its worker was frozen is settled, sent once."""
    up.wait_state(frozen["answered_mail"].id, "succeeded")
    assert len(up.attempts(frozen["answered_mail"].id)) == 1
    [effect] = frozen["answered_mail"].wish.effects(up)
    answer = frozen["answered_mail"].wish.call(up)
    assert (answer.status, answer.document["receipt"]["external_reference"]) == (200, effect["id"])


def test_frozen_before_the_send_says_so(up: OutboxUp, frozen: Scene) -> None:
    """A worker that wakes past `send_by` sends nothing and says so; its own attempt was the newest, so the mail is sent, once."""
    up.wait_state(frozen["claimed_mail"].id, "succeeded")
    assert up.outcomes(frozen["claimed_mail"].id) == ["unsent", "succeeded"]
    assert len(frozen["claimed_mail"].wish.effects(up)) == 1


def test_sessions_lost_in_claim_and_settle(up: OutboxUp) -> None:
    """Postgres ends the sessions in which a claim and a settlement wait: both are sent again, and nothing is lapsed or sent twice."""
    claiming, settling = a_mail(), a_mail()
    up.freeze(*up.pids("worker"))
    claimed = claiming.start(up)
    claim = up.lock(claimed)
    up.thaw(*up.pids("worker"))
    up.wait(claim.waiting, "the claim to wait for the lock")
    claim.end_waiting()
    claim.release()
    up.wait_state(claimed, "succeeded")
    settled = settling.start_faulty(up, "delay", delay_seconds=1.0)
    settlement = up.lock(settled)
    up.wait(settlement.waiting, "the settlement to wait for the lock")
    settlement.end_waiting()
    settlement.release()
    up.wait_state(settled, "succeeded")
    for wish, id in ((claiming, claimed), (settling, settled)):
        assert up.outcomes(id) == ["succeeded"]
        assert len(wish.effects(up)) == 1


def test_sigterm_drains(up: OutboxUp) -> None:
    """SIGTERM lets sends in flight end and settles them; nothing is lapsed, and what comes meanwhile waits for the next worker."""
    workers = up.pids("worker")
    under_way = [wish for wish in (a_refund(), a_mail(), a_ticket())]
    ids = [wish.start_faulty(up, "delay", delay_seconds=2.0) for wish in under_way]
    up.kill(*workers, number=signal.SIGTERM)
    meanwhile = a_refund()
    later = meanwhile.start(up)
    for wish, id in zip(under_way, ids, strict=True):
        up.wait_state(id, "succeeded", deadline_seconds=10)
        assert up.outcomes(id) == ["succeeded"]
        assert len(wish.effects(up)) == 1
    up.wait(lambda: gone(workers), f"the end of {workers}")
    assert (
        "draining"
        in (up.folder / "data" / "logs" / "worker-1.log").read_text() + (up.folder / "data" / "logs" / "worker-2.log").read_text()
    )
    up.wait_replaced("worker", workers)
    up.wait_state(later, "succeeded")
    assert up.outcomes(later) == ["succeeded"]
    assert len(meanwhile.effects(up)) == 1
