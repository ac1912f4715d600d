"""What is searched, and what must come of it: `python -m tests.model.checks [part of a name ...] [-v] [--cost N] [--transitions]`.

`holds` are runs of the protocol as the product has it: no invariant may break. `holes` remove a guard that an earlier design lacked;
`controls` remove one of the others, or an assumption about the world: the search must find a counter-example, of the stated length,
or the model would not notice if the product lost the guard. Exit status 1 when a verdict is another one.

`-v` prints the counter-examples, `--cost 2` adds the wide bounds, `--transitions` prints the changes of state that the model takes.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.model import authority, dispatch, fork, strategies
from tests.model.authority import Authority
from tests.model.dispatch import NEVER, Dispatch
from tests.model.explore import Found, Specification, explore
from tests.model.fork import Fork
from tests.model.strategies import CancelFirst, Natural

Changes = Mapping[str, Any]

MODULES: Mapping[type, Any] = {
    Dispatch: dispatch,
    Authority: authority,
    Fork: fork,
    Natural: strategies,
    CancelFirst: strategies,
}
"""Where each specification has its `Rules` and its `World`."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One search and its expected verdict.

    Attributes:
        rules: guards that differ from the product's.
        world: what may happen, where it differs from the default.
        breaks: how the name of the broken invariant begins; None: everything holds.
        steps: the length of the shortest counter-example; for liveness, of the way to where it begins.
        ignore: invariants that are not asked, so that the search goes on to the next one.
        cost: 0 for what every run of the tests can afford, 1 for `make model`, 2 for `make model-long`.
    """

    name: str
    rules: Changes = field(default_factory=dict)
    world: Changes = field(default_factory=dict)
    breaks: str | None = None
    steps: int | None = None
    liveness: bool = False
    ignore: frozenset[str] = frozenset()
    of: type = Dispatch
    cost: int = 0

    def specification(self) -> Specification[Any]:
        """The transition system to search."""
        module = MODULES[self.of]
        made: Specification[Any] = self.of(module.Rules(**self.rules), module.World(**self.world), self.ignore)
        return made

    def run(self) -> Found:
        """Search it."""
        return explore(self.specification(), liveness=self.liveness)

    def faults(self, found: Found) -> list[str]:
        """What of a result is not as expected."""
        if self.breaks is None:
            faults = [] if found.broken is None else [f"broken: {found.broken}"]
            return faults + [f"never met: {action}" for action in sorted(self.wanted() - found.taken)]
        if found.broken is None or not found.broken.startswith(self.breaks):
            return [f"expected {self.breaks!r}, found {found.broken!r}"]
        return [] if found.depth == self.steps else [f"expected {self.steps} steps, found {found.depth}"]

    def wanted(self) -> set[str]:
        """What a search that holds must have met: a victory over nothing is none."""
        if self.of is not Dispatch:
            return set()
        world = self.world
        by = "client-" if world.get("clients") else ""
        wanted = {f"{by}settle", "answer"}
        if world.get("guarantee") == "A":
            wanted.add(f"{by}resend")
        elif world.get("guarantee", "B") == "B":
            wanted |= {"look", "note"}
        happen = {"person": "person", "webhooks": "webhook", "voids": "void", "restores_max": "restore", "jumps_max": "jump"}
        wanted |= {action for name, action in happen.items() if world.get(name)}
        return wanted | ({f"{by}renew"} if world.get("renewals") else set())


A = {"guarantee": "A", "lag_max": 0}
B = {"guarantee": "B"}
C = {"guarantee": "C", "person": True}
ONE = {"reservations_max": 1}
SURE = {"rejects": False}
CALM = {"crashes_max": 0}
LEAN = {**ONE, **SURE, **CALM}
RENEWED = {"renewals": True}
RESTORE = {"restores_max": 1, **CALM, **SURE}
LATE_WRITES = {**CALM, "stops": 1, "late_writes_are_reported": True}
CLIENT = {"clients": True, "client_pause_max": 1}

EFFECT = "at most one effect"
BOOKS = frozenset(
    {
        "succeeded has exactly one receipt",
        "executing has an open attempt",
        "at most one open attempt",
        "at most one live reservation",
    }
)
PROOF = frozenset({"no proof of an effect meets a reservation that denies it"})
LATE = PROOF | {"failed has no effect", "voided has no effect", "no hold is released while the effect exists"}

HOLDS: Sequence[Check] = [
    Check(
        name="C holds: person, crash, webhook, void, unsent, refusal, T3 sent twice, renewals",
        world={**C, **RENEWED, "webhooks": True, "voids": True, "unsent_max": 1, "refusals_max": 1, "resettles_max": 1},
        cost=1,
    ),
    Check(name="B holds: lookups, crash, refusal for good", world=B),
    Check(name="B holds: renewals", world={**B, **SURE, **RENEWED}),
    Check(
        name="B holds: webhook, unsent, refusal, void",
        world={**B, **CALM, **SURE, "webhooks": True, "unsent_max": 1, "refusals_max": 1, "voids": True},
        cost=1,
    ),
    Check(name="B holds: a person beside lookups", world={**B, **CALM, **SURE, "person": True}),
    Check(name="B holds: one lookup misses a visible effect", world={**B, **SURE, **ONE, "misses_max": 1}),
    Check(
        name="B holds: three attempts, two lookups at once, renewals",
        world={**B, **LEAN, **RENEWED, "attempts_max": 3, "lookups_max": 2},
    ),
    Check(name="A replay holds: crash, stored refusal, renewals", world={**A, **RENEWED, "window": 6}, cost=1),
    Check(
        name="A replay holds: 401 or 429, unsent, void, refusal that is not stored",
        world={**A, **CALM, "window": 6, "refusals_max": 1, "unsent_max": 1, "voids": True, "plain_rejections": True},
        cost=1,
    ),
    Check(
        name="A replay holds: webhook, three attempts, renewals",
        world={**A, **CALM, **ONE, **RENEWED, "window": 7, "attempts_max": 3, "webhooks": True},
    ),
    Check(name="A replay holds: a person", world={**A, **CALM, **SURE, "window": 6, "person": True}),
    Check(
        name="A replay holds: stored failures, a person as last resort",
        world={**A, **CALM, **SURE, "window": 6, "person": True, "stored_failures": True},
        cost=1,
    ),
    Check(
        name="A replay holds: stored failures, read back",
        world={**A, **LEAN, "window": 6, "stored_failures": True, "reads_back": True},
    ),
    Check(
        name="A replay holds: stored failures, read back, three attempts",
        world={**A, **LEAN, "window": 7, "attempts_max": 3, "stored_failures": True, "reads_back": True, "lag_max": 1},
        cost=2,
    ),
    Check(
        name="A replay holds: stored failures, read back, two reservations",
        world={**A, **CALM, **SURE, "window": 6, "stored_failures": True, "reads_back": True},
        cost=2,
    ),
    Check(
        name="A without any clock: pauses and delays unbounded, keys never forgotten",
        world={**A, "window": NEVER, "pause_max": NEVER, "commit_delay_max": NEVER},
    ),
    Check(
        name="A, keys never forgotten, a hasty person: still one effect",
        rules={"person_waits": False},
        world={**A, **CALM, "window": NEVER, "pause_max": NEVER, "commit_delay_max": NEVER, "person": True},
        ignore=LATE | {"no attempt is opened against open proof"},
        cost=1,
    ),
    Check(
        name="B holds: Postgres's clock jumps a tick, settle time one longer",
        rules={"settle_time": 3},
        world={**B, **CALM, **SURE, "jumps_max": 1},
        cost=1,
    ),
    Check(
        name="C holds: Postgres's clock jumps a tick, settle time one longer",
        rules={"settle_time": 3},
        world={**C, "jumps_max": 1},
    ),
    Check(name="A conflict holds: read back", world={**A, "strategy": "conflict", "window": NEVER, "lag_max": 1}, cost=1),
    Check(name="client-executed holds: class C, the handler is bounded", world={**C, **CLIENT}),
    Check(name="client-executed holds: class C, heartbeats", world={**C, **CLIENT, **RENEWED}),
    Check(
        name="client-executed holds: class A, keys never forgotten, any handler, heartbeats",
        world={**A, **RENEWED, "clients": True, "client_pause_max": NEVER, "window": NEVER},
    ),
    Check(
        name="client-executed holds: class A, a handler with a time limit", world={**A, **CLIENT, **RENEWED, **SURE, "window": 7}
    ),
    Check(name="a late write that is reported holds: class B", world={**B, **SURE, **LATE_WRITES}),
    Check(name="a late write that is reported holds: class C", world={**C, **SURE, **LATE_WRITES, "unsent_max": 1}),
    Check(name="restore holds: class C, a person", world={**C, **RESTORE, "lag_max": 0}),
    Check(name="restore holds: class A", world={**A, **RESTORE, "lease": 1, "pause_max": 0, "window": 6}, cost=2),
    Check(name="restore holds: class C, renewals", world={**C, **RESTORE, **RENEWED, "lag_max": 0}, cost=2),
    Check(
        name="C holds: three reservations, three workers, three attempts, renewals, webhook",
        world={
            **C,
            **RENEWED,
            **SURE,
            "reservations_max": 3,
            "workers_max": 3,
            "attempts_max": 3,
            "webhooks": True,
            "unsent_max": 1,
        },
        cost=2,
    ),
    Check(
        name="B holds: crash, webhook, renewals, unsent, refusal for good",
        world={**B, **RENEWED, "webhooks": True, "unsent_max": 1},
        cost=2,
    ),
    Check(
        name="A replay holds: crash, webhook, renewals, 401 or 429, stored failures",
        world={
            **A,
            **ONE,
            **RENEWED,
            "window": 8,
            "attempts_max": 3,
            "webhooks": True,
            "refusals_max": 1,
            "stored_failures": True,
        },
        cost=2,
    ),
    Check(
        name="restore holds: class B, no request is lost",
        world={**B, **RESTORE, "lag_max": 0, "lease": 1, "pause_max": 0, "drops": False, "commit_delay_max": 0},
        rules={"settle_time": 1},
        cost=2,
    ),
    Check(name="restore holds: class B", world={**B, **RESTORE, "lag_max": 0, "lease": 1, "pause_max": 0}, cost=2),
    Check(name="restore holds: class A, wider", world={**A, **RESTORE, "window": 8}, cost=2),
    Check(
        name="restore holds: class A, stored refusals",
        world={**A, "restores_max": 1, **CALM, "lease": 1, "pause_max": 0, "window": 6, "drops": False},
        cost=2,
    ),
    Check(name="restore holds: class B, wider", world={**B, **RESTORE, "lag_max": 0}, cost=2),
    Check(
        name="liveness: class C leaves every state with a person",
        world={**C, **RENEWED, "unsent_max": 1, "refusals_max": 1},
        liveness=True,
    ),
    Check(name="liveness: class B leaves every state without people", world={**B, "unsent_max": 1}, liveness=True, cost=1),
    Check(name="liveness: class B, renewals", world={**B, **ONE, **RENEWED, "unsent_max": 1}, liveness=True),
    Check(
        name="liveness: class A leaves every state with a person as last resort",
        world={**A, **ONE, **RENEWED, "person": True, "unsent_max": 1, "stored_failures": True},
        liveness=True,
        cost=1,
    ),
    Check(name="liveness: wake-ups lost, the sweep finds the row", world={**C, **ONE}, liveness=True),
    Check(
        name="liveness: an answer that never comes, the lease ends all the same",
        world={**C, **ONE, **RENEWED, "hangs": True},
        liveness=True,
    ),
    Check(name="authority holds: reviews, three keys, quota of two", of=Authority, world={"keys": 3, "limit": 2}, liveness=True),
    Check(
        name="authority holds: two windows, kill switch, no reviews",
        of=Authority,
        world={"keys": 3, "windows": 2, "reviews": False, "switches_max": 1},
        liveness=True,
    ),
    Check(
        name="authority holds: two windows, reviews, two inputs", of=Authority, world={"windows": 2, "digests": 2}, liveness=True
    ),
    Check(name="authority holds: resends", of=Authority, world={"resends": True, "switches_max": 1, "tries": 3}, liveness=True),
    Check(name="fork holds: replay and branch", of=Fork),
    Check(name="natural holds: one open operation per object, closed after the quiet", of=Natural),
    Check(name="cancel first holds: liveness too", of=CancelFirst, liveness=True),
]
"""The protocol as the product has it, or will have it."""

HOLES: Sequence[Check] = [
    Check(
        name="hole: a resend refused with 401 or 429 closes the doubt",
        rules={"own_attempt_only": False, "key_from_operation": False},
        world={**A, **SURE, "refusals_max": 1, "attempts_max": 3},
        breaks="failed has no effect",
        steps=12,
    ),
    Check(
        name="hole: ... and the key is used again",
        rules={"own_attempt_only": False, "key_from_operation": False},
        world={**A, **SURE, **CALM, "refusals_max": 1, "attempts_max": 3},
        breaks=EFFECT,
        steps=17,
        ignore=LATE,
    ),
    Check(
        name="hole: an unsent resend is free and is withdrawn",
        rules={"own_attempt_only": False},
        world={**A, **SURE, "unsent_max": 1, "voids": True, "attempts_max": 3},
        breaks="voided has no effect",
        steps=12,
    ),
    Check(
        name="hole: a person answers before the settle time",
        rules={"person_waits": False},
        world={**C, **SURE},
        breaks=EFFECT,
        steps=13,
        ignore=LATE,
    ),
    Check(
        name="hole: ... class A, with provider keys from reservation ids",
        rules={"person_waits": False, "key_from_operation": False},
        world={**A, **SURE, **CALM, "person": True, "window": NEVER},
        breaks=EFFECT,
        steps=13,
        ignore=LATE,
    ),
    Check(
        name="hole: restore, only open rows are fenced, class C",
        rules={"epoch_doubts_new_keys": False},
        world={**C, **RESTORE},
        breaks=EFFECT,
        steps=12,
        ignore=LATE,
    ),
    Check(
        name="hole: restore, ... class A, with provider keys from reservation ids",
        rules={"epoch_doubts_new_keys": False, "key_from_operation": False},
        world={**A, **RESTORE, "window": NEVER},
        breaks=EFFECT,
        steps=12,
        ignore=LATE,
    ),
    Check(
        name="hole: restore, markers from reservation ids, class B",
        rules={"key_from_operation": False},
        world={**B, **RESTORE},
        breaks=EFFECT,
        steps=21,
        ignore=LATE,
    ),
    Check(
        name="hole: restore, attempts are small numbers that are given out again",
        rules={"attempt_ids_are_unique": False},
        world={**B, **RESTORE},
        breaks="voided has no effect",
        steps=24,
    ),
    Check(
        name="hole: restore, a generation of the provider key for every failure",
        rules={"generation_counts_stored": False},
        world={**A, **RESTORE, "person": True, "window": NEVER},
        breaks=EFFECT,
        steps=20,
        ignore=LATE,
    ),
    Check(
        name="hole: live does not include succeeded",
        rules={"succeeded_is_live": False},
        world={**A, **SURE},
        breaks=EFFECT,
        steps=19,
        ignore=BOOKS | LATE,
    ),
    Check(
        name="hole: a late success changes nothing",
        rules={"late_success_settles": False},
        world={"guarantee": "C", **SURE, **ONE},
        breaks="liveness: evidence in hand",
        steps=9,
        liveness=True,
    ),
    Check(
        name="hole: a late nothing changes nothing",
        rules={"late_unsent_settles": False},
        world={"guarantee": "C", **SURE, **ONE},
        breaks="liveness: evidence in hand",
        steps=7,
        liveness=True,
    ),
    Check(
        name="hole: the first absence is counted before the settle time, the second read is stale",
        rules={"absences_sent_after_settle_time": False},
        world={**B, **SURE, **ONE, "misses_max": 1},
        breaks=EFFECT,
        steps=18,
        ignore=LATE,
    ),
    Check(
        name="hole: a lookup of the last doubt counts in this one",
        rules={"lookup_names_its_attempt": False},
        world={**B, **LEAN, "lookups_max": 2},
        breaks="failed has no effect",
        steps=19,
        ignore=PROOF,
    ),
    Check(
        name="hole: a resend at the end of the provider's window",
        rules={"resend_margin": False},
        world={**A, **SURE, **ONE, "window": 4},
        breaks=EFFECT,
        steps=14,
        ignore=LATE,
    ),
    Check(
        name="hole: a worker sends what a client executes",
        rules={"clients_send_their_own": False},
        world={**C, **ONE, "clients": True, "unsent_max": 1},
        breaks="a worker never sends",
        steps=5,
    ),
    Check(
        name="hole: T3 asks for the attempt alone, after a webhook",
        rules={"settle_needs_open_attempt": False},
        world={**C, **SURE, **ONE, "webhooks": True},
        breaks="succeeded has exactly one receipt",
        steps=7,
    ),
    Check(
        name="hole: a conflict is read as a rejection",
        rules={"conflict_is_unknown": False},
        world={**A, **SURE, "strategy": "conflict", "window": NEVER},
        breaks="failed has no effect",
        steps=12,
    ),
    Check(
        name="hole: a late write is reported and absence is not put off",
        rules={"late_write_postpones_absence": False},
        world={**C, **SURE, **ONE, **LATE_WRITES},
        breaks="failed has no effect",
        steps=13,
    ),
    Check(
        name="hole: a consumed review, an unsent attempt",
        of=Authority,
        rules={"unsent_gives_review_back": False},
        world={"keys": 1},
        breaks="a reserved row can still",
        steps=4,
    ),
    Check(
        name="hole: nobody ends an expired review",
        of=Authority,
        rules={"expired_review_voids": False},
        world={"keys": 1},
        breaks="liveness: leaves awaiting_review",
        steps=3,
        liveness=True,
    ),
    Check(
        name="hole: no last moment to be sent, kill switch",
        of=Authority,
        rules={"not_after": False},
        world={"keys": 1, "reviews": False, "switches_max": 1},
        breaks="liveness: leaves reserved",
        steps=4,
        liveness=True,
    ),
    Check(
        name="hole: a resend after the review expired is a first sending",
        of=Authority,
        rules={"resend_passes_gate": False},
        world={"keys": 1, "resends": True},
        breaks="nothing is sent under an expired",
        steps=7,
    ),
    Check(
        name="hole: the hold counts in the window of T1",
        of=Authority,
        rules={"hold_moves_with_window": False},
        world={"windows": 2},
        breaks="no quota is overshot",
        steps=9,
    ),
    Check(
        name="hole: the effect costs more than its hold",
        of=Authority,
        rules={"cost_capped_by_hold": False},
        world={"surprise": 1},
        breaks="no quota is overshot",
        steps=4,
    ),
    Check(
        name="hole: a late natural request undoes a newer one",
        of=Natural,
        rules={"one_open_per_object": False},
        breaks="the newer setting",
        steps=5,
    ),
    Check(
        name="hole: ... also after the older one has succeeded by a resend",
        of=Natural,
        rules={"object_stays_open_until_quiet": False},
        breaks="the newer setting",
        steps=9,
    ),
    Check(
        name="hole: cancel first under one identity swallows the second sending",
        of=CancelFirst,
        rules={"identity_per_attempt": False},
        breaks="a second sending",
        steps=6,
    ),
    Check(name="hole: cancelled after it was due", of=CancelFirst, rules={"cancelled_in_time": False}, breaks=EFFECT, steps=14),
    Check(
        name="hole: a branch inherits only what was settled",
        of=Fork,
        rules={"branch_inherits_open": False},
        breaks="a branch never repeats",
        steps=6,
    ),
]
"""Guards that the first design lacked, each with what happens without it."""

CONTROLS: Sequence[Check] = [
    Check(
        name="control: no unique index",
        rules={"unique_index": False},
        world={**B, **SURE},
        breaks=EFFECT,
        steps=10,
        ignore=BOOKS | LATE,
    ),
    Check(
        name="control: T3 compares no attempt, books",
        rules={"settle_compares_attempt": False},
        world=A,
        breaks="succeeded has exactly one receipt",
        steps=12,
    ),
    Check(
        name="control: T3 compares no attempt, effects",
        rules={"settle_compares_attempt": False},
        world={**B, **SURE, **ONE},
        breaks=EFFECT,
        steps=22,
        ignore=BOOKS | LATE,
    ),
    Check(
        name="control: digests are not compared",
        rules={"digest_compared": False},
        world={"guarantee": "C", "digests": 2},
        breaks="a caller gets the receipt",
        steps=7,
    ),
    Check(
        name="control: no settle time, class B",
        rules={"settle_time": 0},
        world={**B, **SURE, **ONE},
        breaks=EFFECT,
        steps=16,
        ignore=LATE,
    ),
    Check(
        name="control: settle time a tick short, class B",
        rules={"settle_time": 1},
        world={**B, **SURE, **ONE},
        breaks=EFFECT,
        steps=17,
        ignore=LATE,
    ),
    Check(
        name="control: settle time a tick short, class C",
        rules={"settle_time": 1},
        world={**C, **SURE},
        breaks=EFFECT,
        steps=15,
        ignore=LATE,
    ),
    Check(
        name="control: settle time counted from the claim",
        rules={"settle_time_after_lease": False},
        world={**B, **SURE, **ONE},
        breaks=EFFECT,
        steps=16,
        ignore=LATE,
    ),
    Check(
        name="control: one absence is enough, a stale read",
        rules={"two_absences": False},
        world={**B, **SURE, **ONE, "misses_max": 1},
        breaks=EFFECT,
        steps=16,
        ignore=LATE,
    ),
    Check(
        name="control: send_by is not checked",
        rules={"send_by_checked": False},
        world={**B, **SURE, **ONE},
        breaks=EFFECT,
        steps=18,
        ignore=LATE,
    ),
    Check(
        name="control: renewals move send_by",
        rules={"send_by_is_fixed": False},
        world={**A, **SURE, **ONE, **RENEWED, "window": 5},
        breaks=EFFECT,
        steps=17,
        ignore=LATE,
    ),
    Check(
        name="control: renewals without an end",
        rules={"renewal_is_capped": False},
        world={**C, **ONE, **RENEWED, "hangs": True},
        breaks="liveness: leaves executing",
        steps=10,
        liveness=True,
    ),
    Check(
        name="control: sent before T2",
        rules={"claim_before_send": False},
        world={**B, **SURE, **ONE},
        breaks=EFFECT,
        steps=9,
        ignore=LATE,
    ),
    Check(
        name="control: the provider's window starts anew with a resend",
        rules={"window_from_first_send": False},
        world={**A, **SURE, **ONE, "window": 5, "attempts_max": 3},
        breaks=EFFECT,
        steps=22,
        ignore=LATE,
    ),
    Check(
        name="control: a hold is given back in doubt",
        rules={"hold_kept_in_doubt": False},
        world={**C, **SURE, **ONE},
        breaks="no hold is released",
        steps=7,
    ),
    Check(
        name="control: a contradiction blocks nothing",
        rules={"contradiction_blocks": False},
        world={**C, "lying_refusals": True, "webhooks": True},
        breaks="no attempt is opened against open proof",
        steps=9,
        ignore=LATE,
    ),
    Check(
        name="control: a late write freezes nothing",
        rules={"late_write_freezes": False},
        world={**B, **SURE, **ONE, **LATE_WRITES},
        breaks=EFFECT,
        steps=20,
        ignore=LATE,
    ),
    Check(
        name="control: rows of the old epoch stay open",
        rules={"epoch_closes_open_rows": False},
        world={**C, **RESTORE, **ONE},
        breaks=EFFECT,
        steps=11,
        ignore=LATE,
    ),
    Check(
        name="control: restore, absences count as if every lease had run",
        rules={"epoch_waits_for_leases": False},
        world={**B, **RESTORE, "lag_max": 0},
        breaks=EFFECT,
        steps=17,
        ignore=LATE,
    ),
    Check(
        name="control: a late unsent of before a restore closes the doubt",
        rules={"late_unsent_asks_epoch": False},
        world={**B, **RESTORE},
        breaks=EFFECT,
        steps=23,
        ignore=LATE,
    ),
    Check(
        name="control: quota read before the insert",
        of=Authority,
        rules={"quota_in_t1": False},
        breaks="held and used never exceed",
        steps=4,
    ),
    Check(
        name="control: authority, a hold is given back in doubt",
        of=Authority,
        rules={"hold_kept_in_doubt": False},
        breaks="no hold is released",
        steps=4,
    ),
    Check(
        name="control: a review binds no input",
        of=Authority,
        rules={"review_binds_digest": False},
        world={"digests": 2},
        breaks="a review is never consumed",
        steps=4,
    ),
    Check(
        name="control: a review is used twice",
        of=Authority,
        rules={"review_used_once": False},
        breaks="one review, at most one",
        steps=6,
        ignore=frozenset({"voided and denied sent nothing"}),
    ),
    Check(
        name="control: a review's expiry is not asked at T2",
        of=Authority,
        rules={"expiry_asked_at_t2": False, "expired_review_voids": False},
        breaks="nothing is sent under an expired",
        steps=5,
    ),
    Check(
        name="control: authority, a person answers at once",
        of=Authority,
        rules={"person_waits": False},
        breaks="no hold is released",
        steps=5,
    ),
    Check(
        name="control: keys scoped by run instead of lineage",
        of=Fork,
        rules={"scope_is_lineage": False},
        world={"branch": False},
        breaks="parent and replaying fork",
        steps=6,
    ),
]
"""Every other guard, each with what happens without it."""

ASSUMPTIONS: Sequence[Check] = [
    Check(
        name="assumption: a process is stopped between the check of send_by and the write, class C",
        world={**C, **SURE, "stops": NEVER},
        breaks=EFFECT,
        steps=16,
        ignore=LATE,
    ),
    Check(
        name="assumption: ... class B",
        world={**B, **SURE, **ONE, "stops": NEVER},
        breaks=EFFECT,
        steps=18,
        ignore=LATE,
    ),
    Check(
        name="assumption: send_by ends after the lease and the settle time",
        world={**B, **SURE, **ONE, "send_by": 6},
        breaks=EFFECT,
        steps=18,
        ignore=LATE,
    ),
    Check(
        name="assumption: a client's handler outlives the settle time",
        world={**C, **SURE, "clients": True},
        breaks=EFFECT,
        steps=14,
        ignore=LATE,
    ),
    Check(
        name="assumption: Postgres's clock jumps a tick, shortest settle time",
        world={**C, **SURE, "jumps_max": 1},
        breaks=EFFECT,
        steps=16,
        ignore=LATE,
    ),
    Check(
        name="assumption: no sweep, wake-ups lost",
        world={**C, **ONE, "wake_ups": "lost"},
        breaks="liveness: leaves reserved",
        steps=1,
        liveness=True,
    ),
    Check(
        name="assumption: a refusal takes effect all the same",
        world={**A, "lying_refusals": True},
        breaks="failed has no effect",
        steps=6,
    ),
    Check(
        name="assumption: a class A provider forgets before the recovery ends",
        world={**A, **SURE, **ONE, "forgets_early": 6},
        breaks=EFFECT,
        steps=12,
        ignore=LATE,
    ),
    Check(
        name="assumption: somebody deletes the identity of a conflict",
        world={**A, **SURE, "strategy": "conflict", "window": NEVER, "deletes": True},
        breaks=EFFECT,
        steps=12,
        ignore=LATE,
    ),
    Check(
        name="assumption: a cancellation that a later arrival ignores",
        of=CancelFirst,
        world={"cancel_is_durable": False},
        breaks=EFFECT,
        steps=11,
    ),
]
"""What the product believes about the world, each with what happens where it is not so."""

GROUPS: Mapping[str, Sequence[Check]] = {"holds": HOLDS, "holes": HOLES, "controls": CONTROLS, "assumptions": ASSUMPTIONS}


def of_guard(name: str, of: type) -> Iterator[Check]:
    """The checks that remove one guard of a specification and nothing else."""
    for check in (*HOLES, *CONTROLS):
        if check.of is of and set(check.rules) == {name}:
            yield check


Pairs = set[tuple[str, str]]


def transitions() -> Pairs:
    """Every change of a reservation's state that the model takes."""
    pairs: Pairs = set()

    def watch(label: str, before: Any, after: Any) -> None:
        if not label.startswith(("restore", "repeat")):  # A restore is no transition; a repetition is a new reservation.
            pairs.update(
                (old.state, new.state) for old, new in zip(before.rows, after.rows, strict=False) if old.state != new.state
            )

    worlds = (
        {**C, **ONE, "webhooks": True, "voids": True, "unsent_max": 1},
        {**B, **ONE},
        {**A, **LEAN, "window": 6},
        {**C, **RESTORE, **ONE},
        # Against what is assumed of look-ups: an effect is overlooked twice, and told while nothing newer was sent.
        {**B, **LEAN, "misses_max": 2},
    )
    for world in worlds:
        explore(Dispatch(dispatch.Rules(), dispatch.World(**world), frozenset(dispatch.INVARIANTS)), watch=watch)
    explore(Authority(authority.Rules(), authority.World(resends=True)), watch=watch)
    return pairs


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments name, everything but the wide bounds by default."""
    if "--transitions" in arguments:
        for before, after in sorted(transitions()):
            print(f"{before} -> {after}")
        return 0
    cost = int(arguments[arguments.index("--cost") + 1]) if "--cost" in arguments else 1
    parts = [argument for argument in arguments if not argument.startswith("-") and not argument.isdigit()]
    wrong, seconds, states = 0, 0.0, 0
    for check in (check for group in GROUPS.values() for check in group):
        if check.cost > cost or (parts and not any(part in check.name for part in parts)):
            continue
        found = check.run()
        faults = check.faults(found)
        wrong += bool(faults)
        seconds, states = seconds + found.seconds, states + found.states
        verdict = found.broken or ("holds" if found.complete else "holds as far as searched")
        figures = f"{found.states} states, {found.depth} steps, {found.seconds:.1f} s"
        print(f"{'BAD' if faults else 'ok '} {check.name}: {verdict} | {figures}", flush=True)
        for fault in faults:
            print(f"      {fault}")
        if "-v" in arguments or (faults and found.broken):
            for step, label in enumerate(found.trace, 1):
                print(f"      {step:2} {label}")
    print(f"{wrong} unexpected, {states} states, {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
