"""Who may, and how much: reviews, holds of a quota, expiry, the kill switch, withdrawal. The outside is one step here.

Several operation keys of one unit each share one quota. A row's effect may come true while its attempt is open or in doubt (a late
commit), never after. Reviews and quotas are not built yet: the model is their specification.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """A reservation, with what it may use up."""

    state: str
    digest: int = 1  # of the stored input
    hold: int = 1  # units held or used; 0 when given back
    window: int = 0  # the quota window that the hold counts in
    review: str = "none"  # none, pending, approved, consumed
    approved: int = 1  # the digest that the reviewer saw
    expiry: int = 0
    tries: int = 0
    sent: int = 0  # attempts that may have had an effect
    effect: int = 0  # units that really took effect
    sent_digest: int = 0
    sent_window: int = 0
    late: bool = False  # an attempt was opened under an expired review


class State(NamedTuple):
    """Everything at one moment."""

    rows: tuple[Row, ...] = ()
    window: int = 0
    stopped: bool = False  # the kill switch
    switched: int = 0
    peeked: int = 0  # callers that have read the counter and not inserted yet


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The guards."""

    quota_in_t1: bool = True
    hold_kept_in_doubt: bool = True
    review_binds_digest: bool = True
    review_used_once: bool = True
    expiry_asked_at_t2: bool = True
    unsent_gives_review_back: bool = True
    expired_review_voids: bool = True
    not_after: bool = True
    hold_moves_with_window: bool = True
    cost_capped_by_hold: bool = True
    person_waits: bool = True
    resend_passes_gate: bool = True


@dataclass(frozen=True, kw_only=True)
class World:
    """What may happen, and the bounds of the search."""

    keys: int = 2
    limit: int = 1
    reviews: bool = True
    tries: int = 2
    expiry: int = 2
    windows: int = 1
    switches_max: int = 0
    surprise: int = 0  # units that an effect may cost beyond its hold
    digests: int = 1
    resends: bool = False


WAITING = ("awaiting_review", "reserved")
OPEN = (*WAITING, "executing", "in_doubt")


class Authority:
    """The transition system of several keys under one quota."""

    fair = frozenset({"claim", "answer", "timeout", "expire", "person", "tick", "rehold"})
    pending: Mapping[str, Callable[[State], bool]] = {
        "leaves awaiting_review": lambda s: any(r.state == "awaiting_review" for r in s.rows),
        "leaves reserved": lambda s: any(r.state == "reserved" for r in s.rows),
        "leaves executing": lambda s: any(r.state == "executing" for r in s.rows),
    }

    def __init__(self, rules: Rules, world: World, ignore: frozenset[str] = frozenset()) -> None:
        """Take the guards, what may happen, and the invariants that are not asked."""
        self.rules, self.world, self.ignore = rules, world, ignore

    def init(self) -> State:
        """Nothing was asked yet."""
        return State()

    def has_room(self, s: State) -> bool:
        return self.used(s, s.window) < self.world.limit

    def used(self, s: State, window: int) -> int:
        """Units held or used in a window."""
        return sum(r.hold for r in s.rows if r.window == window)

    def next(self, s: State) -> Iterator[tuple[str, State]]:
        """Everything that may happen next."""
        yield from self.reserve(s)
        for i, row in enumerate(s.rows):
            for label, after in self.move(s, row):
                yield f"{label} {i}", s._replace(rows=(*s.rows[:i], after, *s.rows[i + 1 :]))
        if s.stopped or s.switched < self.world.switches_max:
            yield "switch", s._replace(stopped=not s.stopped, switched=s.switched + (not s.stopped))
        if s.window + 1 < self.world.windows:
            yield "roll: a new window of the quota begins", s._replace(window=s.window + 1)
        aged = tuple(r._replace(expiry=max(r.expiry - 1, 0)) if r.state in OPEN else r for r in s.rows)
        yield "tick", s._replace(rows=aged)

    def reserve(self, s: State) -> Iterator[tuple[str, State]]:
        """The hold is taken with the row, in one statement."""
        world = self.world
        if len(s.rows) >= world.keys:
            return
        state, review = ("awaiting_review", "pending") if world.reviews else ("reserved", "none")
        fresh = Row(state, window=s.window, review=review, expiry=world.expiry)
        if self.rules.quota_in_t1:
            if self.has_room(s):
                yield f"reserve {len(s.rows)}: its hold is taken", s._replace(rows=(*s.rows, fresh))
            return
        if self.has_room(s) and len(s.rows) + s.peeked < world.keys:
            yield "peek: the quota has room", s._replace(peeked=s.peeked + 1)
        if s.peeked:
            yield f"reserve {len(s.rows)}: after a peek", s._replace(rows=(*s.rows, fresh), peeked=s.peeked - 1)

    def move(self, s: State, r: Row) -> Iterator[tuple[str, Row]]:
        """What may happen to one reservation."""
        if r.state in WAITING:
            for digest in range(2, self.world.digests + 1):
                if r.digest != digest and not self.rules.review_binds_digest:
                    yield "resubmit with another input", r._replace(digest=digest)
            yield "void", self.close(r, "voided")
        if r.state == "awaiting_review":
            if r.expiry:
                yield "approve", r._replace(state="reserved", review="approved", approved=1)
                yield "deny", self.close(r, "denied")
            elif self.rules.expired_review_voids:
                yield "expire", self.close(r, "voided")
        elif r.state == "reserved":
            yield from self.claim(s, r)
        elif r.state == "executing":
            yield from self.answer(r)
        elif r.state == "in_doubt":
            yield from self.recover(s, r)
        elif r.state == "failed" and r.tries < self.world.tries and self.world.reviews and self.has_room(s):
            again = r._replace(
                state="awaiting_review", review="pending", hold=1, window=s.window, expiry=self.world.expiry, sent=0
            )
            reused = again._replace(state="reserved", review="approved", sent=r.sent)
            yield "repeat after failed", again if self.rules.review_used_once else reused

    def claim(self, s: State, r: Row) -> Iterator[tuple[str, Row]]:
        """The gate of T2."""
        world, rules = self.world, self.rules
        expired = r.expiry == 0 and (world.reviews or rules.not_after)
        if expired and rules.expired_review_voids:
            yield "expire", self.close(r, "voided")
        if s.stopped or (expired and rules.expiry_asked_at_t2) or (world.reviews and r.review != "approved"):
            return
        if rules.hold_moves_with_window and r.window != s.window:
            if self.has_room(s):
                yield "rehold in the present window", r._replace(window=s.window)
            return
        yield (
            "claim",
            r._replace(
                state="executing",
                review="consumed" if world.reviews else "none",
                tries=r.tries + 1,
                sent=r.sent + 1,
                sent_digest=r.digest,
                sent_window=s.window,
                late=r.late or (world.reviews and r.expiry == 0),
            ),
        )

    def answer(self, r: Row) -> Iterator[tuple[str, Row]]:
        """What an attempt comes to; a resend meets its own effect, because the provider answers from the first one."""
        cost = 1 + (0 if self.rules.cost_capped_by_hold else self.world.surprise)
        if r.effect:
            yield "answer success", self.close(r, "succeeded")
            return
        yield "answer success", self.close(r._replace(effect=cost), "succeeded")
        yield "answer rejected", self.close(r, "failed")
        if r.sent and r.tries > 1 and self.world.resends:
            yield "timeout", self.doubt(r)
            return
        gives_back = self.rules.unsent_gives_review_back and r.review == "consumed"
        unsent = r._replace(state="reserved", sent=r.sent - 1, review="approved" if gives_back else r.review)
        yield "answer unsent", unsent if r.tries < self.world.tries else self.close(r, "failed")
        yield "timeout", self.doubt(r)
        yield "timeout with effect", self.doubt(r._replace(effect=r.effect + cost))

    def recover(self, s: State, r: Row) -> Iterator[tuple[str, Row]]:
        """A resend through the gate of a first send, or a person."""
        gate = self.rules.resend_passes_gate and (s.stopped or r.expiry == 0)
        if self.world.resends and r.tries < self.world.tries and not gate:
            late = r.late or (not r.effect and r.expiry == 0)
            yield "resend", r._replace(state="executing", tries=r.tries + 1, late=late)
        if r.effect:
            yield "person: happened", self.close(r, "succeeded")
            return
        yield "person: did not happen", self.close(r, "failed")
        if not self.rules.person_waits:
            yield "person: did not happen, and it commits later", self.close(r, "failed")._replace(effect=1)

    def doubt(self, r: Row) -> Row:
        return r._replace(state="in_doubt", hold=r.hold if self.rules.hold_kept_in_doubt else 0)

    def close(self, r: Row, state: str) -> Row:
        """A terminal row keeps its hold only as what was used."""
        return r._replace(state=state, hold=(r.hold or 1) if state == "succeeded" else 0, expiry=0)

    def violated(self, s: State) -> str | None:
        """The first invariant that is broken and asked."""
        return next((name for name, broken in self.broken(s) if broken and name not in self.ignore), None)

    def broken(self, s: State) -> Iterator[tuple[str, bool]]:
        """Each invariant and whether it is broken."""
        for window in range(s.window + 1):
            happened = sum(r.effect for r in s.rows if r.sent_window == window)
            yield "no quota is overshot by what really happened", happened > self.world.limit
            yield "held and used never exceed the limit", self.used(s, window) > self.world.limit
        yield "no hold is released while an effect exists", any(r.effect and not r.hold for r in s.rows)
        consumed = [r for r in s.rows if r.review == "consumed"]
        yield "a review is never consumed for another input", any(r.sent_digest != r.approved for r in consumed)
        yield (
            "one review, at most one sending that may have had an effect",
            self.world.reviews and any(r.sent > 1 for r in s.rows),
        )
        yield "nothing is sent under an expired review", any(r.late for r in s.rows)
        yield "a reserved row can still be sent", any(r.state == "reserved" for r in consumed)
        yield "voided and denied sent nothing", any(r.state in ("voided", "denied") and r.sent for r in s.rows)
