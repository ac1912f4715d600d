"""What T1, T2, T3, a renewal, the sweep and whatever ends a doubt do to reservations, in plain Python: written from design section 4,
knowing no SQL.

The exhaustive model asks whether these rules are the right ones; this one says in full what they are, with every column that decides,
so that the store can be compared with it step by step. Times are seconds on a clock that the caller moves.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from outbox_domain.reservation import LIVE, TERMINAL, Outcome, State

TRIES_MAX = 20
NEVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a claim asks with."""

    attempt_id: UUID
    lease_seconds: float
    window_seconds: float | None
    needs_seconds: float
    resends_max: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an attempt is said to have come to."""

    outcome: Outcome
    stored: bool = False
    stored_failure: bool = False
    late_write: bool = False
    settle_seconds: float
    again_seconds: float = 0.0
    recover_seconds: float | None = 0.0
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a look-up, a webhook or a person says of an effect.

    Attributes:
        attempt_id: about which an absence was asked.
        asked_at: when; None for a person, who looks now.
        reference: of what happened; None: it did not.
        needed: how many absences prove it.
        resends: whether what is absent is sent again.
    """

    by: str
    attempt_id: UUID | None = None
    asked_at: float | None = None
    reference: str | None = None
    needed: int = 1
    resends: bool = False
    again_seconds: float = 0.0


@dataclass(kw_only=True)
class Attempt:
    """One attempt."""

    id: UUID
    number: int
    claimed_at: float
    lease_until: float
    outcome: Outcome | None = None
    by_answer: bool = False
    late_outcomes: list[Outcome] = field(default_factory=list)
    late_write: bool = False
    proven_absent: bool = False

    def report_late(self, outcome: Outcome) -> None:
        """Note what was said when it was closed already, each outcome once."""
        if outcome not in self.late_outcomes:
            self.late_outcomes.append(outcome)


@dataclass(kw_only=True)
class Reservation:
    """One reservation, by the columns that decide."""

    id: UUID
    key: str
    digest: bytes
    guarantee_class: str
    not_after: float
    due_at: float
    state: State = State.RESERVED
    attempts: list[Attempt] = field(default_factory=list)
    generation: int = 0
    tries: int = 0
    resends: int = 0
    possible_send_at: float | None = None
    absence_counts_at: float | None = None
    late_write: bool = False
    stored_failure: bool = False
    refusal_stored: bool = False
    reference: str | None = None
    recovery_step: int = 0
    lookups: int = 0
    absences: int = 0
    absent_at: float | None = None

    @property
    def open(self) -> Attempt | None:
        """The open attempt."""
        return self.attempts[-1] if self.state is State.EXECUTING else None

    @property
    def unknown(self) -> int:
        """How many of its attempts may have had an effect."""
        return sum(attempt.outcome is Outcome.UNKNOWN and not attempt.proven_absent for attempt in self.attempts)

    def begin_anew(self) -> None:
        """Nothing that was asked of an earlier sending speaks of the next one."""
        self.recovery_step = self.lookups = self.absences = 0
        self.absent_at = None


class Ledger:
    """The reservations of one organization.

    Attributes:
        contradictions: by reservation and reference, whether a person has still to look at it. One that was closed stays so when the
            same proof is told again.
    """

    def __init__(self) -> None:
        """Nothing was asked yet, and the clock is at nothing."""
        self.now = 0.0
        self.reservations: dict[UUID, Reservation] = {}
        self.contradictions: dict[tuple[UUID, str], bool] = {}

    def of_key(self, key: str) -> Iterator[Reservation]:
        """The reservations of an operation key."""
        return (one for one in self.reservations.values() if one.key == key)

    def holder(self, key: str) -> Reservation | None:
        """The live reservation of an operation key."""
        return next((one for one in self.of_key(key) if one.state in LIVE), None)

    def blocked(self, key: str) -> bool:
        """Whether proof of an effect of the key awaits a person."""
        return any(open and self.reservations[id].key == key for (id, _), open in self.contradictions.items())

    def close_contradictions(self) -> None:
        """A person has looked at all of them."""
        self.contradictions = dict.fromkeys(self.contradictions, False)

    # T1 ------------------------------------------------------------------------------------------------------------------------

    def reserve(self, id: UUID, key: str, *, digest: bytes, guarantee_class: str, not_after_seconds: float) -> str:
        """Claim a key: `won`, `held` or `contradicted`. The same row again is recognised."""
        if id in self.reservations:
            return "won"
        if self.holder(key) is not None:
            return "held"
        if self.blocked(key):
            return "contradicted"
        self.reservations[id] = Reservation(
            id=id,
            key=key,
            digest=digest,
            guarantee_class=guarantee_class,
            not_after=self.now + not_after_seconds,
            due_at=self.now,
        )
        return "won"

    # T2 ------------------------------------------------------------------------------------------------------------------------

    def claim(self, id: UUID, wish: Wish) -> str:
        """Open an attempt (`claim`), recognise it (`own`), or say why not."""
        one = self.reservations[id]
        if one.open is not None:
            return "own" if one.open.id == wish.attempt_id else "gone"
        if one.state in TERMINAL:
            return "gone"
        if one.state is State.RESERVED and (one.not_after <= self.now or one.tries >= TRIES_MAX):
            one.state, one.due_at = State.VOIDED, NEVER
            return "voided"
        if self.blocked(one.key):
            return "parked"
        if one.due_at > self.now:
            return "not-due"
        if one.state is State.IN_DOUBT and not self.may_resend(one, wish):
            return "no-resend"
        self.open_attempt(one, wish)
        return "claim"

    def may_resend(self, one: Reservation, wish: Wish) -> bool:
        """The gate of a resend."""
        if one.late_write or one.stored_failure or one.resends >= wish.resends_max or one.tries >= TRIES_MAX:
            return False
        if one.not_after <= self.now or wish.window_seconds is None or one.possible_send_at is None:
            return False
        return self.now + wish.needs_seconds < one.possible_send_at + wish.window_seconds

    def open_attempt(self, one: Reservation, wish: Wish) -> None:
        """The reservation is executing from now on."""
        if not one.attempts:
            one.generation = max(other.generation + other.refusal_stored for other in self.of_key(one.key))
        if one.possible_send_at is None:
            one.possible_send_at = self.now
        one.resends = one.resends + 1 if one.state is State.IN_DOUBT else 0
        one.begin_anew()
        until = self.now + wish.lease_seconds
        one.attempts.append(Attempt(id=wish.attempt_id, number=len(one.attempts) + 1, claimed_at=self.now, lease_until=until))
        one.state, one.due_at = State.EXECUTING, until

    def renew(self, id: UUID, attempt_id: UUID, *, lease_seconds: float, until_seconds: float) -> bool:
        """Extend the lease of an open attempt, never beyond `until_seconds` after its claim; a lapsed one stays lapsed."""
        attempt = self.attempt(id, attempt_id)
        if attempt.outcome is not None or attempt.lease_until <= self.now:
            return False
        until = min(self.now + lease_seconds, attempt.claimed_at + until_seconds)
        attempt.lease_until = max(attempt.lease_until, until)
        return True

    def attempt(self, id: UUID, attempt_id: UUID) -> Attempt:
        """One attempt of a reservation."""
        return next(attempt for attempt in self.reservations[id].attempts if attempt.id == attempt_id)

    # The sweep -----------------------------------------------------------------------------------------------------------------

    def due(self) -> dict[UUID, bool]:
        """What somebody must look at now, and whether it is because a lease has lapsed."""
        found = {}
        for one in self.reservations.values():
            lapsed = one.open is not None and one.open.lease_until <= self.now
            if one.state not in TERMINAL and one.due_at <= self.now and (one.open is None or lapsed):
                found[one.id] = lapsed
        return found

    def lapse(self, id: UUID, *, settle_seconds: float, recover_seconds: float | None) -> bool:
        """Close an attempt whose lease is over as unknown."""
        one = self.reservations[id]
        attempt = one.open
        if attempt is None or attempt.lease_until > self.now:
            return False
        attempt.outcome = Outcome.UNKNOWN
        one.state = State.IN_DOUBT
        one.absence_counts_at = latest(one.absence_counts_at, attempt.lease_until + settle_seconds)
        one.due_at = NEVER if recover_seconds is None or one.late_write else self.now + recover_seconds
        return True

    # T3 ------------------------------------------------------------------------------------------------------------------------

    def settle(self, id: UUID, attempt_id: UUID, report: Report) -> str:
        """Write down what an attempt came to: `settled`, `already`, `evidence` or `contradiction`."""
        one = self.reservations[id]
        attempt = self.attempt(id, attempt_id)
        current = one.open is attempt
        if report.outcome is Outcome.SUCCEEDED:
            return self.succeed(one, attempt, report)
        if report.late_write and report.outcome is Outcome.UNKNOWN and attempt.proven_absent and not attempt.late_write:
            return self.disprove(one, attempt, report)
        if current:
            self.close(one, attempt, report)
            return "settled"
        newest = one.attempts[-1] is attempt and attempt.outcome is Outcome.UNKNOWN and not one.late_write
        if report.outcome is Outcome.UNSENT and one.state is State.IN_DOUBT and newest:
            attempt.outcome, attempt.by_answer, attempt.late_write = Outcome.UNSENT, True, attempt.late_write or report.late_write
            self.leave(one, attempt, report)
            return "settled"
        return self.note(one, attempt, report)

    def succeed(self, one: Reservation, attempt: Attempt, report: Report) -> str:
        """A success settles what is open from whichever attempt and however late; against anything closed it is a contradiction."""
        if one.state in TERMINAL:
            if one.state is State.SUCCEEDED and one.reference == report.reference:
                return self.note(one, attempt, report)
            assert report.reference is not None
            self.contradictions.setdefault((one.id, report.reference), True)
            return "contradiction"
        if one.open is not None and one.open is not attempt:
            one.open.outcome = Outcome.UNKNOWN
        attempt.outcome, attempt.by_answer, attempt.late_write = report.outcome, True, attempt.late_write or report.late_write
        attempt.proven_absent = False
        one.stored_failure |= report.stored_failure
        one.state, one.reference, one.due_at = State.SUCCEEDED, report.reference, NEVER
        return "settled"

    def close(self, one: Reservation, attempt: Attempt, report: Report) -> None:
        """The open attempt says what it came to; an outcome speaks of its own attempt only."""
        attempt.outcome, attempt.by_answer, attempt.late_write = report.outcome, True, attempt.late_write or report.late_write
        one.stored_failure |= report.stored_failure
        one.late_write |= report.late_write and report.outcome is Outcome.UNKNOWN
        stored = report.stored and one.guarantee_class == "A"
        if report.outcome is Outcome.REJECTED and (stored or not one.unknown):
            one.state, one.refusal_stored, one.due_at = State.FAILED, report.stored, NEVER
        else:
            self.leave(one, attempt, report)

    def leave(self, one: Reservation, attempt: Attempt, report: Report) -> None:
        """It stays in doubt while any attempt is unknown; else it is free to be sent again."""
        nothing_sent = report.outcome in (Outcome.UNSENT, Outcome.DEFERRED)
        if one.unknown:
            if nothing_sent:  # A resend that was not sent or was put off counts as a try, not as a resend.
                one.tries, one.resends = one.tries + 1, one.resends - 1
            one.state, one.absences, one.absent_at = State.IN_DOUBT, 0, None
            one.absence_counts_at = latest(one.absence_counts_at, max(attempt.lease_until, self.now) + report.settle_seconds)
            person = one.late_write or report.recover_seconds is None
            one.due_at = NEVER if person else self.now + (report.recover_seconds or 0.0)
            return
        one.tries += 1
        one.begin_anew()
        one.state, one.possible_send_at, one.absence_counts_at = State.RESERVED, None, None
        one.due_at = self.now if one.tries >= TRIES_MAX else min(self.now + report.again_seconds, one.not_after)

    def note(self, one: Reservation, attempt: Attempt, report: Report) -> str:
        """What came too late to decide; a late write freezes the doubt all the same and puts off when an absence counts."""
        unknown = report.outcome is Outcome.UNKNOWN
        freezes = report.late_write and unknown and one.state in (State.EXECUTING, State.IN_DOUBT)
        said = (attempt.outcome is report.outcome and attempt.by_answer) or report.outcome in attempt.late_outcomes
        new = not said or (freezes and not attempt.late_write)
        if new:
            attempt.report_late(report.outcome)
            attempt.late_write |= report.late_write and unknown
        if freezes:
            one.late_write, one.absences, one.absent_at = True, 0, None
            one.absence_counts_at = latest(one.absence_counts_at, self.now + report.settle_seconds)
            one.due_at = NEVER if one.state is State.IN_DOUBT else one.due_at
        return "evidence" if new else "already"

    def disprove(self, one: Reservation, attempt: Attempt, report: Report) -> str:
        """What was thought absent has left after all: in doubt again, or, where it is closed, its key is refused."""
        if one.state in (State.FAILED, State.VOIDED):
            self.contradictions.setdefault((one.id, f"late-write:{attempt.id}"), True)
            attempt.report_late(report.outcome)
            attempt.late_write = True
            return "contradiction"
        if one.state is State.SUCCEEDED:
            return self.note(one, attempt, report)
        attempt.proven_absent = False
        if one.state is not State.RESERVED:
            return self.note(one, attempt, report)
        if one.possible_send_at is None:
            one.possible_send_at = attempt.claimed_at
        attempt.by_answer, attempt.late_write, one.late_write = True, True, True
        one.stored_failure |= report.stored_failure
        self.leave(one, attempt, report)
        return "settled"

    # What ends a doubt from outside ---------------------------------------------------------------------------------------------

    def look_up(self, id: UUID, attempt_id: UUID, *, step: int, away_seconds: float) -> bool:
        """Whether the provider may be asked now about the newest attempt; while it is, nobody else asks."""
        one = self.reservations[id]
        if one.state is not State.IN_DOUBT or one.attempts[-1].id != attempt_id or one.due_at > self.now:
            return False
        one.due_at = self.now + away_seconds
        one.lookups, one.recovery_step = one.lookups + 1, step
        return True

    def resolve(self, id: UUID, answer: Answer) -> str:
        """Write down what somebody else than the sender knows."""
        one = self.reservations[id]
        if answer.reference is not None:
            return self.happened(one, answer.attempt_id, answer.reference)
        if one.state is not State.IN_DOUBT or one.attempts[-1].id != answer.attempt_id:
            return "stale"
        assert one.absence_counts_at is not None
        asked_at = self.now if answer.asked_at is None else answer.asked_at
        if asked_at < one.absence_counts_at:
            return "too-early"
        looked_up = answer.by == "lookup"
        if looked_up and (one.late_write or (one.absent_at is not None and asked_at <= one.absent_at)):
            return "stale"
        if one.absences + 1 < answer.needed:
            one.absences, one.absent_at, one.due_at = one.absences + 1, asked_at, self.now + answer.again_seconds
            return "noted"
        for attempt in one.attempts:
            attempt.proven_absent |= attempt.outcome is Outcome.UNKNOWN
        self.absent(one, answer)
        return "settled"

    def happened(self, one: Reservation, attempt_id: UUID | None, reference: str) -> str:
        """Proof of an effect settles what is open and was sent, at any time."""
        if one.state is State.SUCCEEDED and one.reference == reference:
            return "known"
        if one.state in TERMINAL or not one.attempts:
            self.contradictions.setdefault((one.id, reference), True)
            return "contradiction"
        if one.open is not None:
            one.open.outcome = Outcome.UNKNOWN
        if one.state is State.RESERVED:
            for attempt in one.attempts:
                attempt.proven_absent &= attempt_id not in (None, attempt.id)
        one.begin_anew()
        one.state, one.reference, one.due_at = State.SUCCEEDED, reference, NEVER
        return "settled"

    def absent(self, one: Reservation, answer: Answer) -> None:
        """No attempt had an effect: sent again while that is allowed, else failed. A stored failure would be told for ever."""
        one.begin_anew()
        over = one.tries + 1 >= TRIES_MAX or one.not_after <= self.now
        if answer.by == "person" or not answer.resends or over:
            one.refusal_stored |= one.stored_failure
            one.state, one.due_at = State.FAILED, NEVER
            return
        one.generation += one.stored_failure
        one.tries, one.stored_failure = one.tries + 1, False
        one.state, one.possible_send_at, one.absence_counts_at = State.RESERVED, None, None
        one.due_at = self.now + answer.again_seconds


def latest(one: float | None, other: float) -> float:
    """The later of two times, of which the first may be none."""
    return other if one is None else max(one, other)
