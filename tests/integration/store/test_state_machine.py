"""The store, driven by rules in any order and compared after every step with the reference of `tests/model/reservation.py`.

Two machines. `Books` reports any outcome for any attempt, in any order and late, lets look-ups, webhooks and people say anything of any
doubt, and asks that verdicts, columns and the invariants of the database are those of the reference. `Promise` adds a provider and honest
workers, look-ups, webhooks and people, and asks what the product promises: at most one effect per operation key, a receipt for it, and none
where the answer was no.

Time is moved by taking it from the rows. Everything lasts quarters of a tick, and ticks are hours, so that no comparison ever depends on
how long a test took. `OUTBOX_TEST_HYPOTHESIS=long` searches longer.
"""

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from types import ModuleType
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.integration.store.races import Store
from tests.model.reservation import NEVER, TRIES_MAX, Answer, Attempt, Ledger, Report, Reservation, Wish
from tests.support.invariants import violations
from tests.support.ledger import settlement_of
from tests.support.postgres import Database

from outbox_domain.reservation import OPEN, Confidence, Outcome, State
from outbox_store import claim as claim_module
from outbox_store import lookups
from outbox_store import resolve as resolve_module
from outbox_store import settle as settle_module
from outbox_store.batches import Failed
from outbox_store.claim import Claim, Claimed, NotClaimed, claim, renew
from outbox_store.reserve import Contradicted, Held, NewReservation, Verdict, Won, reserve
from outbox_store.resolve import Resolution, Resolved, resolve
from outbox_store.settle import ReceiptDraft, Settled, Settlement, settle
from outbox_store.sweep import Lapse, due, lapse

T = TypeVar("T")

LONG = os.environ.get("OUTBOX_TEST_HYPOTHESIS") == "long"
ROUNDS = 60 if LONG else 3
"""Searches that begin anew: one long search keeps to the neighbourhood of what it has tried."""

SEARCH = settings(
    max_examples=100 if LONG else 15,
    stateful_step_count=60 if LONG else 25,
    # What a short search must have met is asserted, so it tries the same examples in every run; the long one tries others.
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
pytestmark = pytest.mark.timeout(7200 if LONG else 900)

TICK = 3600.0
LEASE = 1.5 * TICK
RENEWED_UNTIL = 2.75 * TICK
SETTLE = 2.25 * TICK
WINDOW = 8.5 * TICK
NEEDS = 2.25 * TICK
NOT_AFTER = 12.75 * TICK
RESENDS_MAX = 3
AWAY = 0.75 * TICK
"""How long a look-up may take before another is made."""

ABSENCES = 2
TOLERANCE = 600.0
"""How far the rows' times may be from the reference's: the time that an example took."""

CLASSES = st.sampled_from(("A", "A", "A", "B", "C"))
PICKS = st.sampled_from((0, 0, 0, 0, 1, 1, 2, 3, 4, 5))
"""Which of several, counted from the newest: mostly a young one, because what is interesting takes several steps."""

SELDOM = st.sampled_from((False, False, False, True))
DIGESTS = (sha256(b"one").digest(), sha256(b"other").digest())

MOVE = [
    "update open_reservations set due_at = due_at - $1 where due_at < 'infinity'",
    "update attempts set claimed_at = claimed_at - $1, lease_until = lease_until - $1",
    "update reservations set not_after = not_after - $1, possible_send_at = possible_send_at - $1, "
    "absence_counts_at = absence_counts_at - $1, absent_at = absent_at - $1 where state in ('reserved', 'executing', 'in_doubt')",
]
LOOK = """
select r.id, r.state, r.generation, r.attempts, r.unknown_attempts, r.tries, r.resends, r.late_write, r.stored_failure, r.refusal_stored,
  r.external_reference, r.open_attempt_id, r.recovery_step, r.lookups, r.absences, extract(epoch from r.possible_send_at - now())::float8 as possible_send,
  extract(epoch from r.absence_counts_at - now())::float8 as absence,
  case when o.due_at = 'infinity' then 'infinity' else extract(epoch from o.due_at - now())::float8 end as due
from reservations r left join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id)
"""
LOOK_AT_ATTEMPTS = """
select id, reservation_id, number, outcome, late_outcomes, late_write, proven_absent, extract(epoch from lease_until - now())::float8 as lease from attempts
"""
FORGET = (
    "doubt_episodes",
    "contradictions",
    "ledger_entries",
    "sealed_results",
    "sealed_inputs",
    "receipts",
    "attempts",
    "open_reservations",
    "reservations",
)


def kind(outcome: Outcome, **more: Any) -> Report:
    """A report, due again at once unless it says otherwise."""
    return Report(outcome=outcome, settle_seconds=SETTLE, **more)


@dataclass(kw_only=True)
class Drive:
    """The store that a machine drives, on an event loop of its own.

    Attributes:
        met: how often each situation came about; a victory over nothing is none.
    """

    runner: asyncio.Runner
    store: Store
    met: Counter[str] = field(default_factory=Counter)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine."""
        return self.runner.run(work)

    def fetch(self, query: str, *values: object) -> list[asyncpg.Record]:
        """What the superuser sees."""
        return self.run(self.store.owner.fetch(query, *values))

    def forget(self) -> None:
        """Start an example with no reservation, so that asking the invariants stays quick."""
        for table in FORGET:
            self.run(self.store.owner.execute(f"delete from {table}"))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A look-up under way.

    Attributes:
        at: when it was sent, by the reference's clock; later ones are later, if by next to nothing.
        sent: the same by Postgres's clock, when the reference's showed `now`.
    """

    reservation_id: UUID
    attempt_id: UUID
    at: float
    sent: datetime
    now: float


class Machine(RuleBasedStateMachine):
    """What both machines do: reserve, claim, renew, wait, sweep, and compare."""

    drive: Drive

    def __init__(self) -> None:
        """An empty store and an empty reference."""
        super().__init__()
        self.drive.forget()
        self.ledger = Ledger()
        self.rows: list[NewReservation] = []
        self.claims: list[Claimed] = []
        self.asked: list[Asked] = []
        self.steps = 0
        self.left = Counter({"repeat": 3, "renew": 3, "wait": 5, "sweep": 4, "use up": 1, "look up": 6, "absence": 3, "say": 5})

    # Choosing ------------------------------------------------------------------------------------------------------------------

    def row(self, pick: int) -> NewReservation:
        """One of the rows that won, the newest first, so that examples shrink to the latest."""
        return self.rows[-1 - pick % len(self.rows)]

    def attempt(self, pick: int) -> tuple[Claimed, Reservation, Attempt]:
        """One of the attempts, the newest first: as the store gave it, and as the reference has it."""
        claimed = self.claims[-1 - pick % len(self.claims)]
        one = self.ledger.reservations[claimed.reservation_id]
        return claimed, one, self.ledger.attempt(one.id, claimed.attempt_id)

    def spend(self, what: str) -> None:
        """What changes little may be done a few times in an example, so that most steps are for the rest."""
        self.left[what] -= 1

    def count(self, state: State) -> int:
        """How many reservations stand there."""
        return sum(one.state is state for one in self.ledger.reservations.values())

    def is_open(self, claimed: Claimed) -> bool:
        """Whether it is the open attempt of its reservation."""
        open = self.ledger.reservations[claimed.reservation_id].open
        return open is not None and open.id == claimed.attempt_id

    # T1 ------------------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.count(State.RESERVED) < 2)
    @rule(guarantee_class=CLASSES, repeats=st.booleans(), again=SELDOM)
    def reserve(self, guarantee_class: str, repeats: bool, again: bool) -> None:
        """Somebody asks for a key that nobody holds: a new one, or one whose reservations have failed."""
        free = [one for one in self.ledger.reservations.values() if self.ledger.holder(one.key) is None]
        if repeats and free:
            self.ask(free[-1].key, free[-1].guarantee_class, free[-1].digest, again=again)
        else:
            self.ask(f"refund:pi_{len(self.rows) + 1}", guarantee_class, DIGESTS[0], again=again)

    @precondition(lambda self: self.rows and self.left["repeat"])
    @rule(pick=PICKS, digest=st.sampled_from(DIGESTS))
    def repeat(self, pick: int, digest: bytes) -> None:
        """Somebody asks for what was asked already, with the same input or another."""
        self.spend("repeat")
        row = self.row(pick)
        self.ask(row.operation_key, row.guarantee_class, digest, again=False)

    def ask(self, key: str, guarantee_class: str, digest: bytes, *, again: bool) -> NewReservation:
        """Reserve, and compare the verdict; sometimes the same batch is sent twice, as after a lost answer."""
        row = self.drive.store.world.row(key, guarantee_class=guarantee_class, input_digest=digest, not_after_seconds=NOT_AFTER)
        expected = self.ledger.reserve(row.id, key, digest=digest, guarantee_class=guarantee_class, not_after_seconds=NOT_AFTER)
        for _ in range(2 if again else 1):
            [verdict] = self.drive.run(reserve(self.drive.store.api, [row]))
            self.check_reserved(row, expected, verdict)
        self.drive.met[f"reserve: {expected}"] += 1
        if expected == "won":
            self.rows.append(row)
        return row

    def check_reserved(self, row: NewReservation, expected: str, verdict: Verdict | Failed) -> None:
        """The verdict of T1, and whose input it tells of."""
        if expected == "won":
            assert verdict == Won(id=row.id)
        elif expected == "contradicted":
            assert isinstance(verdict, Contradicted), verdict
        else:
            holder = self.ledger.holder(row.operation_key)
            assert isinstance(verdict, Held), verdict
            assert holder is not None
            assert (verdict.id, verdict.state, verdict.input_digest) == (holder.id, holder.state, holder.digest)

    # T2 ------------------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.rows)
    @rule(pick=PICKS, woken=SELDOM, again=SELDOM)
    def claim(self, pick: int, woken: bool, again: bool) -> None:
        """A worker, woken by name or sweeping, wants to open an attempt; sometimes its answer is lost and it asks again."""
        self.want(self.row(pick), woken=woken, again=again)

    @precondition(lambda self: self.due())
    @rule(pick=PICKS)
    def claim_what_is_due(self, pick: int) -> None:
        """A worker takes up what the sweep has found."""
        found = self.due()
        self.want(found[-1 - pick % len(found)], woken=False, again=False)

    def due(self) -> list[NewReservation]:
        """The rows that are due and not under way."""
        found = self.ledger.due()
        return [row for row in self.rows if found.get(row.id) is False]

    def want(self, row: NewReservation, *, woken: bool, again: bool) -> None:
        """Claim, and compare the verdict."""
        resends = row.guarantee_class == "A" and not woken
        wish = Claim(
            organization_id=None if woken else row.organization_id,
            reservation_id=row.id,
            attempt_id=uuid4(),
            worker="tests",
            lease_seconds=LEASE,
            resend_window_seconds=WINDOW if resends else None,
            resend_needs_seconds=NEEDS,
            resends_max=RESENDS_MAX if resends else 0,
        )
        for _ in range(2 if again else 1):
            self.check_claimed(wish)

    def check_claimed(self, wish: Claim) -> None:
        """The verdict of T2."""
        one = self.ledger.reservations[wish.reservation_id]
        resend = one.state is State.IN_DOUBT or (one.state is State.EXECUTING and one.unknown > 0)
        expected = self.ledger.claim(
            one.id,
            Wish(
                attempt_id=wish.attempt_id,
                lease_seconds=wish.lease_seconds,
                window_seconds=wish.resend_window_seconds,
                needs_seconds=wish.resend_needs_seconds,
                resends_max=wish.resends_max,
            ),
        )
        self.drive.met[f"{'resend' if resend and expected == 'claim' else 'claim'}: {expected}"] += 1
        [verdict] = self.drive.run(claim(self.drive.store.worker, [wish]))
        if expected not in ("claim", "own"):
            assert verdict == NotClaimed(reservation_id=one.id, reason=expected), (expected, verdict)  # type: ignore[arg-type]
            return
        assert isinstance(verdict, Claimed), (expected, verdict)
        assert (verdict.attempt_id, verdict.number, verdict.generation, verdict.resend) == (
            wish.attempt_id,
            len(one.attempts),
            one.generation,
            resend,
        )
        if expected == "claim":
            self.claims.append(verdict)

    @precondition(lambda self: self.claims and self.left["renew"])
    @rule(pick=PICKS, closed=SELDOM)
    def renew(self, pick: int, closed: bool) -> None:
        """A worker that awaits its answer extends its lease, if it still has one."""
        self.spend("renew")
        found = [claimed for claimed in self.claims if self.is_open(claimed)]
        claimed = self.attempt(pick)[0] if closed or not found else found[-1 - pick % len(found)]
        one = self.ledger.reservations[claimed.reservation_id]
        attempt = self.ledger.attempt(one.id, claimed.attempt_id)
        expected = self.ledger.renew(one.id, attempt.id, lease_seconds=LEASE, until_seconds=RENEWED_UNTIL)
        held = self.drive.run(
            renew(
                self.drive.store.worker,
                claimed.organization_id,
                claimed.attempt_id,
                lease_seconds=LEASE,
                until_seconds=RENEWED_UNTIL,
            )
        )
        assert held == expected
        self.drive.met[f"renew: {held}"] += 1

    # The clock -----------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.rows and self.left["wait"])
    @rule(ticks=st.sampled_from((1, 1, 2, 3)))
    def wait(self, ticks: int) -> None:
        """Time passes."""
        self.spend("wait")
        self.move(ticks * TICK)

    def move(self, seconds: float) -> None:
        """Take the time from every row that is still open."""
        self.ledger.now += seconds
        for statement in MOVE:
            self.drive.run(self.drive.store.owner.execute(statement.replace("$1", f"interval '{seconds} seconds'")))

    @precondition(lambda self: self.count(State.RESERVED) and self.left["use up"])
    @rule()
    def use_up_the_tries(self) -> None:
        """A reservation has been tried as often as it may, but for once."""
        self.spend("use up")
        one = next(one for one in self.ledger.reservations.values() if one.state is State.RESERVED)
        one.tries = TRIES_MAX - 1
        self.drive.fetch("update reservations set tries = $2 where id = $1", one.id, one.tries)

    @precondition(lambda self: self.rows and self.left["sweep"])
    @rule(person=SELDOM)
    def sweep(self, person: bool) -> None:
        """Everything that is due is found and nothing else; attempts whose lease is over are closed."""
        self.spend("sweep")
        expected = self.ledger.due()
        found = self.drive.run(due(self.drive.store.worker, overdue_seconds=0.0, limit=100))
        assert {row.reservation_id: row.lapsed for row in found} == expected
        recover_seconds = None if person else 0.0
        wishes = [
            Lapse(
                organization_id=row.organization_id,
                reservation_id=row.reservation_id,
                attempt_id=row.attempt_id,
                settle_seconds=SETTLE,
                recover_seconds=recover_seconds,
            )
            for row in found
            if row.attempt_id is not None
        ]
        moved = self.drive.run(lapse(self.drive.store.worker, wishes))
        assert set(moved) == {id for id, lapsed in expected.items() if lapsed}
        self.drive.met["lapse"] += len(moved)
        for id in moved:
            assert self.ledger.lapse(id, settle_seconds=SETTLE, recover_seconds=recover_seconds)

    # T3 ------------------------------------------------------------------------------------------------------------------------

    def report(self, claimed: Claimed, report: Report) -> str:
        """Settle an attempt, and compare the verdict and the state."""
        settlement = settlement_as(claimed, report)
        one = self.ledger.reservations[claimed.reservation_id]
        before = f"{one.state}{' in a resend' if one.open and one.unknown else ''}"
        expected = self.ledger.settle(claimed.reservation_id, claimed.attempt_id, report)
        self.drive.met[f"settle: {expected}"] += 1
        self.drive.met[f"{before} -> {one.state}"] += one.state != before
        [result] = self.drive.run(settle(self.drive.store.worker, [settlement], tries_max=TRIES_MAX))
        assert result == Settled(verdict=expected, state=self.ledger.reservations[claimed.reservation_id].state)  # type: ignore[arg-type]
        return expected

    # What ends a doubt from outside ----------------------------------------------------------------------------------------------

    def look_up(self, claimed: Claimed) -> Asked | None:
        """Take a doubt up for one look-up about an attempt, and compare."""
        one = self.ledger.reservations[claimed.reservation_id]
        expected = self.ledger.look_up(one.id, claimed.attempt_id, step=1, away_seconds=AWAY)
        begun = lookups.begin(
            self.drive.store.worker, claimed.organization_id, one.id, claimed.attempt_id, step=1, away_seconds=AWAY
        )
        found = self.drive.run(begun)
        assert (found is not None) == expected, found
        self.drive.met[f"look up: {expected}"] += 1
        if found is None:
            return None
        assert (found.lookups, found.absences, found.late_write) == (one.lookups, one.absences, one.late_write)
        at = self.ledger.now + len(self.asked) * 1e-6
        asked = Asked(reservation_id=one.id, attempt_id=claimed.attempt_id, at=at, sent=found.asked_at, now=self.ledger.now)
        self.asked.append(asked)
        return asked

    def not_there(self, asked: Asked, *, resends: bool = True) -> str:
        """The look-up found nothing."""
        answer = Answer(by="lookup", attempt_id=asked.attempt_id, asked_at=asked.at, needed=ABSENCES, resends=resends)
        return self.answer(asked.reservation_id, answer, sent=asked.sent - timedelta(seconds=self.ledger.now - asked.now))

    def answer(self, id: UUID, answer: Answer, *, sent: datetime | None = None) -> str:
        """Say something of an effect, and compare the verdict and the state."""
        one = self.ledger.reservations[id]
        before = one.state
        expected = self.ledger.resolve(id, answer)
        resolution = resolution_as(self.drive.store.world.organization_id, id, answer, sent)
        [result] = self.drive.run(resolve(self.drive.store.worker, [resolution], tries_max=TRIES_MAX))
        assert isinstance(result, Resolved), result
        assert (result.verdict, result.state) == (expected, one.state)
        self.drive.met[f"resolve: {expected}"] += 1
        self.drive.met[f"{before} -> {one.state} by {answer.by}"] += one.state != before
        return expected

    def doubted(self) -> list[Claimed]:
        """The newest attempt of each reservation in doubt."""
        doubts = [one for one in self.ledger.reservations.values() if one.state is State.IN_DOUBT]
        newest = {one.attempts[-1].id for one in doubts}
        return [claimed for claimed in self.claims if claimed.attempt_id in newest]

    # After every step ----------------------------------------------------------------------------------------------------------

    @invariant()
    def rows_are_as_the_reference_says(self) -> None:
        """Every column that decides is the reference's, and every time is."""
        records = self.drive.fetch(LOOK)
        assert {record["id"] for record in records} == set(self.ledger.reservations)
        for record in records:
            self.compare(record, self.ledger.reservations[record["id"]])
        attempts = {attempt.id: attempt for one in self.ledger.reservations.values() for attempt in one.attempts}
        found = self.drive.fetch(LOOK_AT_ATTEMPTS)
        assert {record["id"] for record in found} == set(attempts)
        for record in found:
            attempt = attempts[record["id"]]
            names = ("number", "outcome", "late_outcomes", "late_write", "proven_absent")
            assert {name: record[name] for name in names} == {name: getattr(attempt, name) for name in names}
            assert record["lease"] == self.seconds_until(attempt.lease_until)

    def compare(self, record: asyncpg.Record, one: Reservation) -> None:
        """One reservation."""
        names = ("state", "generation", "tries", "resends", "late_write", "stored_failure", "refusal_stored")
        assert {name: record[name] for name in names} == {name: getattr(one, name) for name in names}
        assert (record["attempts"], record["external_reference"]) == (len(one.attempts), one.reference)
        assert record["open_attempt_id"] == (one.open.id if one.open else None)
        if one.state is not State.SUCCEEDED:
            assert record["unknown_attempts"] == one.unknown
        if one.state in OPEN:
            asked = ("recovery_step", "lookups", "absences")
            assert {name: record[name] for name in asked} == {name: getattr(one, name) for name in asked}
            assert record["due"] == self.seconds_until(one.due_at)
            assert record["possible_send"] == self.seconds_until(one.possible_send_at)
            assert record["absence"] == self.seconds_until(one.absence_counts_at)
        else:
            assert record["due"] is None

    def seconds_until(self, at: float | None) -> object:
        """How far away a time is, as it is read from the database."""
        if at is None or at == NEVER:
            return at
        return pytest.approx(at - self.ledger.now, abs=TOLERANCE)

    @invariant()
    def the_invariants_hold(self) -> None:
        """Every invariant of design section 4 holds, asked after every third step and at the end."""
        self.steps += 1
        if self.steps % 3 == 0:
            self.look()

    def look(self) -> None:
        """Ask the database."""
        assert self.drive.run(violations(self.drive.store.owner)) == {}

    def teardown(self) -> None:
        """The invariants hold at the end of an example."""
        self.look()


REPORTS = (
    kind(Outcome.UNKNOWN),
    kind(Outcome.UNKNOWN, recover_seconds=None),
    kind(Outcome.UNKNOWN, recover_seconds=1.25 * TICK),
    kind(Outcome.UNKNOWN, stored_failure=True),
    kind(Outcome.UNKNOWN, late_write=True),
    kind(Outcome.UNKNOWN, late_write=True, recover_seconds=None),
    kind(Outcome.REJECTED),
    kind(Outcome.REJECTED, stored=True),
    kind(Outcome.REJECTED, late_write=True, recover_seconds=None),
    kind(Outcome.DEFERRED),
    kind(Outcome.DEFERRED, again_seconds=1.25 * TICK, recover_seconds=1.25 * TICK),
    kind(Outcome.DEFERRED, again_seconds=20.25 * TICK, recover_seconds=None),
    kind(Outcome.UNSENT),
    kind(Outcome.UNSENT, again_seconds=1.25 * TICK, recover_seconds=None),
    kind(Outcome.SUCCEEDED, reference="re_1"),
    kind(Outcome.SUCCEEDED, reference="re_1", late_write=True),
    kind(Outcome.SUCCEEDED, reference="re_2"),
)
"""What may be reported. One choice of many is met more evenly than several choices of few."""


M = TypeVar("M", bound=Machine)


class Books(Machine):
    """Any outcome of any attempt, in any order and late."""

    @precondition(lambda self: self.count(State.IN_DOUBT) < 2)
    @rule(guarantee_class=CLASSES)
    def fall_into_doubt(self, guarantee_class: str) -> None:
        """A shorter way to where it is interesting: asked, claimed, and no answer."""
        row = self.ask(f"refund:pi_{len(self.rows) + 1}", guarantee_class, DIGESTS[0], again=False)
        self.want(row, woken=True, again=False)
        self.report(self.claims[-1], kind(Outcome.UNKNOWN))

    @precondition(lambda self: any(one.open for one in self.ledger.reservations.values()))
    @rule(pick=PICKS, report=st.sampled_from(REPORTS), again=SELDOM)
    def settle(self, pick: int, report: Report, again: bool) -> None:
        """An open attempt comes to whatever it does."""
        found = [claimed for claimed in self.claims if self.is_open(claimed)]
        self.say(found[-1 - pick % len(found)], report, again=again)

    @precondition(lambda self: self.claims)
    @rule(pick=PICKS, report=st.sampled_from(REPORTS), again=SELDOM)
    def settle_anything(self, pick: int, report: Report, again: bool) -> None:
        """Whatever an attempt is said to have come to, whenever it is said."""
        self.say(self.attempt(pick)[0], report, again=again)

    @precondition(lambda self: self.overtaken())
    @rule(pick=PICKS)
    def confess(self, pick: int) -> None:
        """A process that was stopped wakes after its attempt was closed, has written, and says so."""
        found = self.overtaken()
        self.say(found[-1 - pick % len(found)], kind(Outcome.UNKNOWN, late_write=True), again=False)

    def overtaken(self) -> list[Claimed]:
        """Closed attempts that have said nothing of a late write, those first that were thought absent."""
        pairs = [(claimed, self.ledger.attempt(claimed.reservation_id, claimed.attempt_id)) for claimed in self.claims]
        closed = [(claimed, attempt) for claimed, attempt in pairs if attempt.outcome is not None and not attempt.late_write]
        return [claimed for claimed, attempt in sorted(closed, key=lambda pair: pair[1].proven_absent)]

    @precondition(lambda self: self.claims and self.left["look up"])
    @rule(pick=PICKS, anything=SELDOM)
    def begin_a_look_up(self, pick: int, anything: bool) -> None:
        """A worker wants to ask the provider: about a doubt, or about whatever it thinks is one."""
        self.spend("look up")
        found = self.claims if anything else self.doubted() or self.claims
        self.look_up(found[-1 - pick % len(found)])

    @precondition(lambda self: self.asked)
    @rule(pick=PICKS, absent=st.sampled_from((True, True, True, False)), resends=st.booleans(), again=SELDOM)
    def hear_a_look_up(self, pick: int, absent: bool, resends: bool, again: bool) -> None:
        """A look-up is answered, however late, or told twice."""
        asked = self.asked[-1 - pick % len(self.asked)]
        for _ in range(2 if again else 1):
            if absent:
                self.not_there(asked, resends=resends)
            else:
                reference = f"re_1 of {asked.reservation_id}"
                self.answer(asked.reservation_id, Answer(by="lookup", attempt_id=asked.attempt_id, reference=reference))

    @precondition(lambda self: self.doubted() and self.left["absence"])
    @rule(pick=PICKS, resends=st.sampled_from((True, True, False)), person=SELDOM, once=SELDOM)
    def find_absent(self, pick: int, resends: bool, person: bool, once: bool) -> None:
        """A shorter way to where it is interesting: the time has come, and nothing is there, twice, or once and told twice."""
        self.spend("absence")
        found = self.doubted()
        claimed = found[-1 - pick % len(found)]
        counts_at = self.ledger.reservations[claimed.reservation_id].absence_counts_at
        assert counts_at is not None
        while self.ledger.now < counts_at:
            self.move(TICK)
        if person:
            self.answer(claimed.reservation_id, Answer(by="person", attempt_id=claimed.attempt_id))
            return
        asked = None
        for _ in range(ABSENCES):
            if asked is None or not once:
                asked = self.look_up(claimed)
            if asked is not None:
                self.not_there(asked, resends=resends)

    @precondition(lambda self: self.claims and self.left["say"])
    @rule(
        pick=PICKS,
        by=st.sampled_from(("person", "webhook")),
        says=st.sampled_from((None, None, "re_1", "re_1", "re_2")),
        anything=SELDOM,
        again=SELDOM,
    )
    def hear(self, pick: int, by: str, says: str | None, anything: bool, again: bool) -> None:
        """A webhook tells of an effect, or a person says what happened, of whatever it is and whenever."""
        self.spend("say")
        found = self.claims if anything else self.doubted() or self.claims
        claimed = found[-1 - pick % len(found)]
        if says is None:
            answer = Answer(by="person", attempt_id=claimed.attempt_id)
        else:
            answer = Answer(by=by, reference=f"{says} of {claimed.reservation_id}")
        for _ in range(2 if again else 1):
            self.answer(claimed.reservation_id, answer)

    @precondition(lambda self: self.denied())
    @rule(pick=PICKS, report=st.sampled_from([report for report in REPORTS if report.reference]))
    def contradict(self, pick: int, report: Report) -> None:
        """An attempt reports an effect that its reservation denies, or is about to send again."""
        found = self.denied()
        self.say(found[-1 - pick % len(found)], report, again=False)

    def denied(self) -> list[Claimed]:
        """Attempts of reservations that say there was no effect."""
        states = (State.FAILED, State.VOIDED, State.RESERVED)
        return [claimed for claimed in self.claims if self.ledger.reservations[claimed.reservation_id].state in states]

    def say(self, claimed: Claimed, report: Report, *, again: bool) -> None:
        """Report, sometimes twice. No two reservations have one reference."""
        if report.reference is not None:
            report = replace(report, reference=f"{report.reference} of {claimed.reservation_id}")
        for _ in range(2 if again else 1):
            self.report(claimed, report)

    @precondition(lambda self: any(self.ledger.contradictions.values()))
    @rule()
    def close_the_contradictions(self) -> None:
        """A person has looked at every contradiction."""
        self.ledger.close_contradictions()
        self.drive.fetch("update contradictions set closed_at = now() where closed_at is null")


def settlement_as(claimed: Claimed, report: Report) -> Settlement:
    """A report as the store takes it."""
    receipt = None
    if report.reference is not None:
        receipt = ReceiptDraft(
            id=uuid4(),
            provider="stripe",
            external_reference=report.reference,
            confidence=Confidence.CONFIRMED,
            evidence=[{"kind": "answer"}],
            provider_request_id=None,
            sealed_result=None,
        )
    return settlement_of(
        claimed,
        report.outcome,
        stored=report.stored,
        stored_failure=report.stored_failure,
        late_write=report.late_write,
        settle_seconds=report.settle_seconds,
        again_seconds=report.again_seconds,
        recover_seconds=report.recover_seconds,
        receipt=receipt,
    )


def resolution_as(organization_id: UUID, id: UUID, answer: Answer, sent: datetime | None) -> Resolution:
    """An answer as the store takes it."""
    return Resolution(
        organization_id=organization_id,
        reservation_id=id,
        attempt_id=answer.attempt_id,
        happened=answer.reference is not None,
        by=answer.by,  # type: ignore[arg-type]
        asked_at=sent,
        absences_needed=answer.needed,
        then="resend" if answer.resends else "fail",
        again_seconds=answer.again_seconds,
        receipt_id=uuid4(),
        provider="stripe",
        external_reference=answer.reference,
        provider_request_id=None,
        evidence=[{"kind": answer.by}],
        sealed_result=None,
        said_by=["person:ada"] if answer.by == "person" else None,
        reason="said so",
    )


@dataclass(kw_only=True)
class Sending:
    """What a worker has done with its attempt.

    Attributes:
        claimed: the attempt.
        sent_at: when its request left; None while it has not.
        travelling: the request has neither been executed nor been lost.
        answer: what the provider said to it, where the worker heard it.
        reported: the worker has said what came of it and is gone.
    """

    claimed: Claimed
    sent_at: float | None = None
    travelling: bool = False
    answer: Report | None = None
    reported: bool = False


@dataclass(kw_only=True)
class Provider:
    """A provider that keeps to its contract: class A treats requests with one key as one for its whole window.

    Attributes:
        effects: operation key and reference of each effect.
        kept: what it answers to a provider key it knows, and until when.
    """

    effects: list[tuple[str, str]] = field(default_factory=list)
    kept: dict[tuple[str, int], tuple[Report, float]] = field(default_factory=dict)

    def execute(self, one: Reservation, claimed: Claimed, now: float, *, refuses: bool) -> Report:
        """The answer to a request that arrives."""
        key = (one.key, claimed.generation)
        if one.guarantee_class == "A" and key in self.kept and now < self.kept[key][1]:
            return self.kept[key][0]
        stored = one.guarantee_class == "A"
        if refuses:
            answer = kind(Outcome.REJECTED, stored=stored)
        else:
            reference = f"re_{len(self.effects) + 1}"
            self.effects.append((one.key, reference))
            answer = kind(Outcome.SUCCEEDED, reference=reference)
        if stored:
            self.kept[key] = (answer, now + WINDOW)
        return answer


FATES = st.sampled_from(("done", "done", "done unheard", "refused", "put off", "lost"))
"""What becomes of a request."""


class Promise(Machine):
    """Honest workers, a provider that keeps to its contract, a world that loses requests, answers and processes."""

    def __init__(self) -> None:
        """Nothing was sent yet."""
        super().__init__()
        self.provider = Provider()
        self.sendings: dict[UUID, Sending] = {}

    def found(self, asked: Callable[[Sending], bool]) -> list[Sending]:
        """The workers of which something is true, the oldest first."""
        for claimed in self.claims:
            self.sendings.setdefault(claimed.attempt_id, Sending(claimed=claimed))
        return [sending for sending in self.sendings.values() if asked(sending)]

    def may_send(self, sending: Sending) -> bool:
        """Only in the tick of the claim: `send_by` ends inside the lease as granted. Nobody sends after it has reported."""
        claimed_at = self.ledger.attempt(sending.claimed.reservation_id, sending.claimed.attempt_id).claimed_at
        return sending.sent_at is None and not sending.reported and claimed_at == self.ledger.now

    @precondition(lambda self: self.found(self.may_send))
    @rule(pick=PICKS)
    def send(self, pick: int) -> None:
        """A worker sends its request."""
        found = self.found(self.may_send)
        self.leave(found[-1 - pick % len(found)])

    def leave(self, sending: Sending) -> None:
        """A request is under way."""
        sending.sent_at, sending.travelling = self.ledger.now, True

    @precondition(lambda self: self.found(lambda sending: sending.travelling))
    @rule(pick=PICKS, how=FATES)
    def arrive(self, pick: int, how: str) -> None:
        """A request arrives, or is lost."""
        found = self.found(lambda sending: sending.travelling)
        self.come(found[-1 - pick % len(found)], how)

    def come(self, sending: Sending, how: str) -> None:
        """A request arrives, or is lost; its answer is heard, or is lost."""
        sending.travelling = False
        one = self.ledger.reservations[sending.claimed.reservation_id]
        if how == "put off":
            sending.answer = kind(Outcome.DEFERRED)
        elif how != "lost":
            answer = self.provider.execute(one, sending.claimed, self.ledger.now, refuses=how == "refused")
            sending.answer = answer if how != "done unheard" else None

    @precondition(lambda self: self.due())
    @rule(pick=PICKS, how=FATES, reports=st.sampled_from((True, True, False)), again=SELDOM)
    def live(self, pick: int, how: str, reports: bool, again: bool) -> None:
        """The whole life of a worker with what is due: it claims, sends, and reports, unless it dies before."""
        found, before = self.due(), len(self.claims)
        self.want(found[-1 - pick % len(found)], woken=False, again=again)
        if len(self.claims) > before:
            [sending] = self.found(lambda sending: sending.claimed is self.claims[-1])
            self.leave(sending)
            self.come(sending, how)
            if reports:
                self.tell(sending, again=again)

    def move(self, seconds: float) -> None:
        """Time passes in ticks; no request travels for longer than one."""
        for _ in range(int(seconds / TICK)):
            for sending in self.sendings.values():
                if sending.travelling and sending.sent_at is not None and sending.sent_at < self.ledger.now:
                    sending.travelling = False
                    one = self.ledger.reservations[sending.claimed.reservation_id]
                    self.provider.execute(one, sending.claimed, self.ledger.now, refuses=False)
            super().move(TICK)

    @precondition(lambda self: self.found(lambda sending: not sending.reported))
    @rule(pick=PICKS, gives_up=SELDOM, again=SELDOM)
    def settle(self, pick: int, gives_up: bool, again: bool) -> None:
        """A worker reports, however late."""
        found = self.found(lambda sending: not sending.reported)
        sending = found[-1 - pick % len(found)]
        if gives_up:
            sending.answer = None
        self.tell(sending, again=again)

    def tell(self, sending: Sending, *, again: bool) -> None:
        """A worker says what it knows: the answer it heard, unknown once it has sent, else that nothing was sent."""
        report = sending.answer or kind(Outcome.UNSENT if sending.sent_at is None else Outcome.UNKNOWN)
        sending.reported = True
        assert self.report(sending.claimed, report) != "contradiction"
        if again:
            assert self.report(sending.claimed, report) == "already"

    def effect_of(self, key: str) -> str | None:
        """What the provider shows under the marker of an operation key."""
        return next((reference for of, reference in self.provider.effects if of == key), None)

    @precondition(lambda self: self.doubted() and self.left["look up"])
    @rule(pick=PICKS, unheard=SELDOM)
    def ask_the_provider(self, pick: int, unheard: bool) -> None:
        """A worker looks a doubt up, where its tool can be looked up, and writes down what it saw, unless it dies."""
        self.spend("look up")
        found = [claimed for claimed in self.doubted() if self.ledger.reservations[claimed.reservation_id].guarantee_class != "C"]
        if not found:
            return
        claimed = found[-1 - pick % len(found)]
        asked = self.look_up(claimed)
        if asked is None or unheard:
            return
        one = self.ledger.reservations[claimed.reservation_id]
        if (reference := self.effect_of(one.key)) is not None:
            assert self.answer(one.id, Answer(by="lookup", attempt_id=claimed.attempt_id, reference=reference)) == "settled"
        else:
            self.not_there(asked)

    @precondition(lambda self: self.doubted() and self.left["say"])
    @rule(pick=PICKS)
    def ask_a_person(self, pick: int) -> None:
        """A person looks at the provider and says what is there."""
        self.spend("say")
        found = self.doubted()
        claimed = found[-1 - pick % len(found)]
        one = self.ledger.reservations[claimed.reservation_id]
        reference = self.effect_of(one.key)
        self.answer(one.id, Answer(by="person", attempt_id=None if reference else claimed.attempt_id, reference=reference))

    @precondition(lambda self: self.provider.effects)
    @rule(pick=PICKS)
    def tell_by_webhook(self, pick: int) -> None:
        """The provider tells of an effect by itself: early, late, or once more. Nobody denies it."""
        key, reference = self.provider.effects[-1 - pick % len(self.provider.effects)]
        rows = list(self.ledger.of_key(key))
        open_ones = [one for one in rows if one.reference == reference or one.state in (State.EXECUTING, State.IN_DOUBT)]
        verdict = self.answer((open_ones or rows)[-1].id, Answer(by="webhook", reference=reference))
        assert verdict in ("settled", "known"), verdict

    @precondition(lambda self: self.doubted() and self.left["absence"])
    @rule(pick=PICKS)
    def wait_for_the_end(self, pick: int) -> None:
        """A shorter way to where it is interesting: the time of an absence has come, and the provider is asked twice."""
        self.spend("absence")
        found = self.doubted()
        claimed = found[-1 - pick % len(found)]
        one = self.ledger.reservations[claimed.reservation_id]
        assert one.absence_counts_at is not None
        while self.ledger.now < one.absence_counts_at:
            self.move(TICK)
        for _ in range(ABSENCES):
            if one.guarantee_class != "C" and (asked := self.look_up(claimed)) is not None:
                if (reference := self.effect_of(one.key)) is not None:
                    self.answer(one.id, Answer(by="lookup", attempt_id=claimed.attempt_id, reference=reference))
                else:
                    self.not_there(asked)

    @invariant()
    def the_promise_holds(self) -> None:
        """One effect per operation key; a success has it, with its reference; a failure and a withdrawal have none, now or later."""
        for key in {one.key for one in self.ledger.reservations.values()}:
            references = [reference for of, reference in self.provider.effects if of == key]
            assert len(references) <= 1, f"{len(references)} effects of {key}"
            rows = list(self.ledger.of_key(key))
            told = [one.reference for one in rows if one.state is State.SUCCEEDED]
            assert told in ([], references)
            if references:
                assert any(one.state not in (State.FAILED, State.VOIDED) for one in rows), "an effect that everybody denies"
        for sending in self.sendings.values():
            one = self.ledger.reservations[sending.claimed.reservation_id]
            refused = (one.key, sending.claimed.generation) in self.provider.kept
            if sending.travelling and not refused:
                assert one.state not in (State.FAILED, State.VOIDED), "a request under way that everybody denies"


# Running them --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def drive(database: Database) -> Iterator[Drive]:
    """A store in a database that a machine may fill."""
    with asyncio.Runner() as runner:
        store = runner.run(Store.open(database))
        yield Drive(runner=runner, store=store)
        runner.run(store.close())


def search(machine: type[Machine], drive: Drive) -> None:
    """Drive the store by a machine's rules, in rounds; the long search has other seeds every time, and a failure names its own."""
    first = secrets.randbelow(2**32) if LONG else 0
    for number in range(first, first + ROUNDS):
        bound: type[RuleBasedStateMachine] = type(machine.__name__, (machine,), {"drive": drive})
        try:
            run_state_machine_as_test(seed(number)(bound), settings=SEARCH)
        except BaseException as error:
            error.add_note(f"seed {number}")
            raise


def were_met(drive: Drive, everything: set[str], rarely: set[str]) -> None:
    """A search that met nothing of interest shows nothing; what is met rarely is asked of the long one."""
    wanted = everything | rarely if LONG else everything
    assert {situation for situation in wanted if not drive.met[situation]} == set(), drive.met


def test_the_books_are_those_of_the_reference(drive: Drive) -> None:
    """Whatever is claimed, renewed, reported, repeated and let lapse in whatever order, verdicts and rows are the reference's."""
    search(Books, drive)
    everything = {
        *("reserve: won", "reserve: held", "claim: claim", "claim: own", "claim: gone", "resend: claim"),
        *("renew: True", "renew: False", "lapse", "look up: True", "look up: False"),
        *("settle: settled", "settle: already", "settle: evidence", "settle: contradiction"),
        *("executing -> succeeded", "executing -> failed", "executing -> in_doubt", "executing -> reserved"),
        *("in_doubt -> succeeded", "resolve: settled", "resolve: too-early"),
    }
    rarely = {
        *("claim: no-resend", "executing in a resend -> in_doubt", "executing -> succeeded by webhook"),
        *("in_doubt -> reserved", "reserved -> in_doubt", "reserved -> succeeded"),
        *(f"resolve: {verdict}" for verdict in ("noted", "stale", "known", "contradiction")),
        # A look-up that finds is met by `Promise`, where providers keep effects to be found.
        *(f"in_doubt -> succeeded by {by}" for by in ("webhook", "person")),
        *("in_doubt -> reserved by lookup", "in_doubt -> failed by lookup", "in_doubt -> failed by person"),
    }
    were_met(drive, everything, rarely)


def test_the_promise_is_kept(drive: Drive) -> None:
    """With honest workers and a provider that keeps to its contract there is at most one effect per key, told truly."""
    search(Promise, drive)
    everything = {
        *("claim: claim", "resend: claim", "lapse", "settle: settled", "settle: already"),
        *("executing -> succeeded", "executing -> in_doubt", "executing -> reserved"),
    }
    rarely = {
        *("in_doubt -> succeeded by lookup", "in_doubt -> reserved by lookup", "in_doubt -> succeeded by webhook"),
        "in_doubt -> succeeded by person",
    }
    were_met(drive, everything, rarely)


# Orders of events in which one guard decides. With all of them store and reference agree; without it they do not. --------------


def an_old_attempt_reports(books: Books) -> None:
    """What an overtaken attempt says does not close the one that is open."""
    books.fall_into_doubt("A")
    books.want(books.rows[0], woken=False, again=False)
    books.report(books.claims[0], kind(Outcome.REJECTED))


def a_resend_is_refused(books: Books) -> None:
    """What the second sending came to says nothing of the first."""
    books.fall_into_doubt("A")
    books.want(books.rows[0], woken=False, again=False)
    books.report(books.claims[1], kind(Outcome.REJECTED))


def time_passes_before_a_resend(books: Books) -> None:
    """The window began with the first sending."""
    books.fall_into_doubt("A")
    books.move(2 * TICK)
    books.want(books.rows[0], woken=False, again=False)


def a_lease_is_renewed(books: Books) -> None:
    """By what it was granted for, and not to its end."""
    books.want(books.ask("refund:pi_1", "A", DIGESTS[0], again=False), woken=True, again=False)
    books.move(TICK)
    books.renew(0, False)


def absent_at_once(books: Books) -> None:
    """The request may still be on its way."""
    books.fall_into_doubt("B")
    asked = books.look_up(books.claims[0])
    assert asked is not None
    books.not_there(asked)


def absent_before_a_resend(books: Books) -> None:
    """A look-up was made in its time, and what it found is told after another attempt."""
    books.fall_into_doubt("A")
    books.move(4 * TICK)
    asked = books.look_up(books.claims[0])
    assert asked is not None
    books.want(books.rows[0], woken=True, again=False)
    books.move(TICK)
    books.want(books.rows[0], woken=False, again=False)
    books.report(books.claims[-1], kind(Outcome.UNKNOWN))
    books.not_there(asked)


def absent(books: Books, *, times: int) -> None:
    """A doubt that may be looked up is looked up once, and the answer is told so often."""
    books.fall_into_doubt("B")
    books.move(4 * TICK)
    asked = books.look_up(books.claims[0])
    assert asked is not None
    for _ in range(times):
        books.not_there(asked)


def written_after_all(books: Books) -> None:
    """What was thought absent was written late."""
    books.fall_into_doubt("B")
    books.find_absent(0, resends=True, person=False, once=False)
    books.report(books.claims[0], kind(Outcome.UNKNOWN, late_write=True))


def there_after_all(books: Books) -> None:
    """What was thought absent, and is to be sent again, had happened."""
    books.fall_into_doubt("B")
    books.find_absent(0, resends=True, person=False, once=False)
    books.report(books.claims[0], kind(Outcome.SUCCEEDED, reference="re_1"))


def written_late(books: Books) -> None:
    """What was written late takes its time from then on."""
    books.fall_into_doubt("B")
    books.move(2 * TICK)
    books.report(books.claims[0], kind(Outcome.UNKNOWN, late_write=True))


def asked_twice(machine: Machine) -> None:
    """Two callers want the same."""
    for _ in range(2):
        machine.ask("refund:pi_1", "A", DIGESTS[0], again=False)


WITHOUT: list[tuple[str, Callable[[Books], None], ModuleType, str, str, str]] = [
    ("T3 asks for the open attempt", an_old_attempt_reports, settle_module, "SETTLE", "and r.open_attempt_id = i.attempt_id and", "and"),
    ("an outcome speaks of its own attempt", a_resend_is_refused, settle_module, "SETTLE", "      when l.unknown_attempts > 0 then 'in_doubt'\n", ""),
    ("a resend counts from the first sending", time_passes_before_a_resend, claim_module, "CLAIM", "coalesce(r.possible_send_at, now())", "now()"),
    ("a lease is not renewed for ever", a_lease_is_renewed, claim_module, "RENEW", "least(now() + make_interval(secs => $3), a.claimed_at", "greatest(now() + make_interval(secs => $3), a.claimed_at"),
    ("an absence is asked after its time", absent_at_once, resolve_module, "RESOLVE", "when coalesce(l.asked_at, now()) < l.absence_counts_at then", "when false then"),
    ("an absence speaks of the newest attempt", absent_before_a_resend, resolve_module, "RESOLVE", "when l.state <> 'in_doubt' or l.last_attempt_id is distinct from l.attempt_id then", "when l.state <> 'in_doubt' then"),
    ("it takes several absences", partial(absent, times=1), resolve_module, "RESOLVE", "when l.absences + 1 < l.absences_needed then", "when false then"),
    ("one answer is one absence", partial(absent, times=2), resolve_module, "RESOLVE", "when l.said_how = 'lookup' and l.absences > 0 and l.asked_at <= l.absent_at then 'stale'", ""),
    ("a late write of what was thought absent is a doubt", written_after_all, settle_module, "SETTLE", "when l.disproves and l.state = 'reserved' then 'settled'", ""),
    ("a success settles what is reserved again", there_after_all, settle_module, "SETTLE", "when l.outcome = 'succeeded' and l.state = 'reserved' then 'settled'", ""),
    ("a late write puts off when an absence counts", written_late, settle_module, "SETTLE", "absence_counts_at = greatest(r.absence_counts_at, now() + make_interval(secs => j.settle_seconds))", "absence_counts_at = r.absence_counts_at"),
]  # fmt: skip
INDEX = "(organization_id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence)"
NO_INDEX = (
    f"drop index reservations_live; create index reservations_live on reservations {INDEX} where live; "
    "drop index one_open_occurrence_per_key"
)


def play(machine: type[M], drive: Drive, script: Callable[[M], None]) -> None:
    """One order of events, and what is asked after every step of a search."""
    played = type(machine.__name__, (machine,), {"drive": drive})()
    script(played)
    played.rows_are_as_the_reference_says()
    played.look()


@pytest.mark.parametrize(("guard", "script", "module", "name", "text", "instead"), WITHOUT, ids=[one[0] for one in WITHOUT])
def test_without_a_guard_the_books_differ(
    drive: Drive,
    monkeypatch: pytest.MonkeyPatch,
    guard: str,
    script: Callable[[Books], None],
    module: ModuleType,
    name: str,
    text: str,
    instead: str,
) -> None:
    """Negative control: a guard taken out of a statement's text is missed; with it the same events leave the books equal."""
    play(Books, drive, script)
    statement = getattr(module, name)
    assert statement.count(text) == 1, "the statement no longer reads so"
    monkeypatch.setattr(module, name, statement.replace(text, instead))
    with pytest.raises(AssertionError):
        play(Books, drive, script)


@pytest.mark.parametrize("machine", [Books, Promise])
def test_without_the_unique_index_the_machines_fail(drive: Drive, machine: type[Machine]) -> None:
    """Negative control: with two live reservations of one key both machines fail."""
    play(machine, drive, asked_twice)
    drive.run(drive.store.owner.execute(NO_INDEX))
    with pytest.raises(AssertionError):
        play(machine, drive, asked_twice)
