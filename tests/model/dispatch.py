"""The path of one effect: reserve (T1), claim (T2), send, settle (T3), doubt, recovery, restore.

One operation key; every reservation that was ever made of it is a row. `Rules` are the guards, which the product has; `World` is what
may happen to it. An action is a method that yields (label, next state); the label says in words what happened, and its first word names
the action. Time is a set of count-downs that `tick` moves, so a process that takes no step while time passes is a stopped one
(SIGSTOP, a paused machine) and pauses need no action of their own.

What each guard is called in the product's code, and what breaks without it, is in `docs/model.md`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T")

NEVER = 99
"""A count-down that does not move: no bound is assumed."""

LIVE = frozenset({"reserved", "executing", "in_doubt", "succeeded"})
OPEN = frozenset({"reserved", "executing", "in_doubt"})

# What an attempt came to, one letter each in `Row.attempts`:
#   o open, u unknown, a unknown but proven absent since, r rejected, q deferred, n unsent, s succeeded.
# What a worker heard, in `Worker.answer`: the same letters, and
#   v rejected but not stored by the provider, x conflict, f a stored failure that was replayed.


class Row(NamedTuple):
    """A reservation as Postgres knows it."""

    id: int
    key: int  # generation of the provider key; the planted marker
    state: str = "reserved"
    digest: int = 1
    attempts: str = ""
    newest: int = 0  # identity of the newest attempt: a UUID and an epoch
    lease: int = 0  # until the lease lapses
    cap: int = 0  # until when renewals may carry the lease
    quiet: int = 0  # until an absence counts
    window: int = 0  # until the provider may forget the key, from the first attempt that may have been sent
    absent: int = 0  # how often the marker was found absent in this doubt
    receipts: int = 0
    hint: bool = False  # a wake-up is under way
    stored: bool = False  # failed, and the provider keeps an answer under the key that stands for no effect
    evidence: bool = False  # what ends the doubt was said, and only noted
    first: bool = False  # first use of this key in a restored epoch
    frozen: bool = False  # a write left late: only a success or a person ends the doubt
    spent: bool = False  # the provider replays a stored failure: sending again proves nothing


class Worker(NamedTuple):
    """A process that holds, or believes to hold, an attempt; a client that executes its own effect is one too."""

    row: int
    attempt: int
    phase: str  # claimed, cleared (send_by was checked, about to write), waiting, answered
    client: bool
    send_by: int  # above zero the check before a write passes; below zero this instant is over
    pause: int  # how long it may still be stopped between the check and the write
    answer: str
    late: bool  # the last byte left after send_by and the pause allowance
    key: int
    digest: int


class Request(NamedTuple):
    """Bytes on their way to the provider, or worked on there."""

    row: int
    attempt: int
    key: int
    left: int  # until it was executed or is lost
    digest: int


class Look(NamedTuple):
    """A lookup that has read the provider and has not written down what it saw."""

    row: int
    attempt: int
    found: bool
    counts: bool  # it was sent when an absence counted already


class State(NamedTuple):
    """Everything at one moment."""

    rows: tuple[Row, ...] = ()
    workers: tuple[Worker, ...] = ()
    requests: tuple[Request, ...] = ()
    effects: tuple[tuple[int, int, int], ...] = ()  # (provider key, reservation that sent it, until every lookup shows it)
    keys: tuple[tuple[int, str, int], ...] = ()  # (provider key, its stored answer, until forgotten): what class A remembers
    hooks: tuple[int, ...] = ()  # provider keys whose webhook is still to come
    looks: tuple[Look, ...] = ()
    crashes: int = 0
    unsent: int = 0
    refusals: int = 0
    next_id: int = 1
    epoch: int = 0
    backup: tuple[Row, ...] | None = None
    restores: int = 0
    tail: int = 0  # how long the provider still remembers every key first used after the backup
    misses: int = 0
    jumps: int = 0
    resettles: int = 0
    contradiction: int = 0  # 1: proof met a reservation that denies it; 2: and an attempt was opened all the same
    told: tuple[tuple[int, int], ...] = ()  # (digest asked, digest of the receipt given)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The guards. The defaults are the product's; the name of each is the name that `docs/model.md` explains."""

    unique_index: bool = True
    succeeded_is_live: bool = True
    digest_compared: bool = True
    claim_before_send: bool = True
    settle_compares_attempt: bool = True
    settle_needs_open_attempt: bool = True
    attempt_ids_are_unique: bool = True
    own_attempt_only: bool = True
    send_by_checked: bool = True
    send_by_is_fixed: bool = True
    renewal_is_capped: bool = True
    settle_time: int = 2
    settle_time_after_lease: bool = True
    two_absences: bool = True
    absences_sent_after_settle_time: bool = True
    lookup_names_its_attempt: bool = True
    person_waits: bool = True
    resend_margin: bool = True
    window_from_first_send: bool = True
    late_success_settles: bool = True
    late_unsent_settles: bool = True
    late_unsent_asks_epoch: bool = True
    conflict_is_unknown: bool = True
    key_from_operation: bool = True
    generation_counts_stored: bool = True
    epoch_closes_open_rows: bool = True
    epoch_doubts_new_keys: bool = True
    epoch_waits_for_leases: bool = True
    clients_send_their_own: bool = True
    hold_kept_in_doubt: bool = True
    contradiction_blocks: bool = True
    late_write_freezes: bool = True
    late_write_postpones_absence: bool = True


@dataclass(frozen=True, kw_only=True)
class World:
    """What may happen, and the bounds of the search. Times are in ticks."""

    guarantee: str = "B"  # A, B, C
    strategy: str = "replay"  # class A: replay or conflict
    reservations_max: int = 2
    workers_max: int = 2
    attempts_max: int = 2
    lease: int = 2
    renewals: bool = False  # heartbeats while an answer is awaited
    lease_max: int = 3  # from the claim to the end of the longest lease that renewals reach
    send_by: int = 2  # ticks from the claim in which the check before a write passes
    pause_max: int = 1  # P: between the check and the last byte
    stops: int = 0  # how much longer it may be stopped there, against the assumption
    late_writes_are_reported: bool = False  # ... but says so before more time passes
    hangs: bool = False  # a process may await its answer for ever, against its own deadline
    commit_delay_max: int = 1  # D: from the last byte to the commit at the provider
    lag_max: int = 1  # V: from the commit to being visible to every lookup
    window: int = 8  # class A: how long the contract says that the provider remembers a key
    forgets_early: int = 0  # how much sooner it does
    jumps_max: int = 0  # ticks by which Postgres's clock jumps ahead
    crashes_max: int = 1
    unsent_max: int = 0
    refusals_max: int = 0  # refusals before execution: 401, 429
    rejects: bool = True  # the provider may refuse for good
    plain_rejections: bool = False  # ... also without storing the refusal (a class A provider)
    stored_failures: bool = False  # a class A provider may store a 500 under the key, with or without an effect
    lying_refusals: bool = False  # a refused request takes effect all the same
    drops: bool = True  # a request may be lost on the way
    webhooks: bool = False
    person: bool = False  # an honest person answers what the provider shows
    clients: bool = False
    client_pause_max: int = NEVER  # between the SDK's check and the last byte that the handler sends
    voids: bool = False  # not_after passes, or somebody withdraws
    digests: int = 1
    restores_max: int = 0
    deletes: bool = False  # somebody deletes the effect at the provider
    wake_ups: str = "swept"  # "lost": only a wake-up brings a reservation to a worker, and it may be lost
    reads_back: bool = False  # class A: a lookup is the next way after the resends
    lookups_max: int = 1
    misses_max: int = 0  # lookups that miss a visible effect (a stale replica, a moving page)
    resettles_max: int = 0  # T3 commits but its answer is lost, so it is sent again


INVARIANTS = (
    "at most one effect per operation key",
    "a success receipt has exactly one effect",
    "succeeded has exactly one receipt",
    "failed has no effect",
    "voided has no effect",
    "at most one open attempt",
    "executing has an open attempt",
    "no hold is released while the effect exists",
    "at most one live reservation",
    "no proof of an effect meets a reservation that denies it",
    "no attempt is opened against open proof",
    "a worker never sends what a client executes",
    "a caller gets the receipt of its own input",
)

Steps = Iterator[tuple[str, State]]


class Dispatch:
    """The transition system of one operation key."""

    fair = frozenset(
        {"claim", "check", "write", "answer", "timeout", "settle", "sweep", "look", "note", "resend", "person", "tick", "suspect"}
    )

    def __init__(self, rules: Rules, world: World, ignore: frozenset[str] = frozenset()) -> None:
        """Take the guards, what may happen, and the invariants that are not asked."""
        self.rules, self.world, self.ignore = rules, world, ignore
        # What must fit into the provider's window: from the claim to the commit. A client's time limit moves with its heartbeats.
        heartbeats = world.lease_max - world.lease if world.clients and world.renewals else 0
        self.flight = world.send_by - 1 + heartbeats + world.pause_max + world.commit_delay_max
        if world.hangs:
            self.fair = self.fair - {"timeout"}
        self.pending: Mapping[str, Callable[[State], bool]] = self._pending()
        # Where nobody ever concludes absence the time of it is not kept, so that fewer states differ.
        self.absence = world.person or world.reads_back or world.guarantee == "B" or world.strategy == "conflict"

    def _pending(self) -> Mapping[str, Callable[[State], bool]]:
        pending: dict[str, Callable[[State], bool]] = {
            "leaves reserved": lambda s: any(r.state == "reserved" for r in s.rows),
            "leaves executing": lambda s: any(r.state == "executing" for r in s.rows),
        }
        if self.world.person or self.world.guarantee == "B":
            pending["leaves in_doubt"] = lambda s: any(r.state == "in_doubt" for r in s.rows)
        pending["evidence in hand ends a doubt"] = lambda s: any(r.state == "in_doubt" and r.evidence for r in s.rows)
        return pending

    def init(self) -> State:
        """Nothing was asked yet."""
        return State()

    def next(self, s: State) -> Steps:
        """Everything that may happen next."""
        yield from self.reserve(s)
        for i, row in enumerate(s.rows):
            if row.state == "reserved":
                yield from self.claim(s, i, row)
            elif row.state == "executing":
                yield from self.sweep(s, i, row)
            elif row.state == "in_doubt":
                yield from self.resend(s, i, row)
                yield from self.look(s, i, row)
                yield from self.person(s, i, row)
            yield from self.webhook(s, i, row)
        for i, worker in enumerate(s.workers):
            yield from self.work(s, i, worker)
        for i, request in enumerate(s.requests):
            yield from self.provider(s, i, request)
        for i, look in enumerate(s.looks):
            yield from self.note(s, i, look)
        yield from self.restore(s)
        yield from self.delete(s)
        yield from self.tick(s)

    # T1 ------------------------------------------------------------------------------------------------------------------------

    def reserve(self, s: State) -> Steps:
        """A caller asks: the key is claimed, or its holder answers."""
        rules, world = self.rules, self.world
        live = [r for r in s.rows if r.state in LIVE and (rules.succeeded_is_live or r.state != "succeeded")]
        for digest in range(1, world.digests + 1):
            if live and rules.unique_index:
                yield from self.join(s, live[0], digest)
                continue
            if len(s.rows) >= world.reservations_max or (s.contradiction and rules.contradiction_blocks):
                continue
            used = (r.key for r in s.rows if r.state == "failed" and (r.stored or not rules.generation_counts_stored))
            key = max(used, default=0) + 1 if rules.key_from_operation else s.next_id
            row = Row(s.next_id, key, digest=digest, first=bool(s.epoch and rules.epoch_doubts_new_keys))
            after = s._replace(rows=(*s.rows, row), next_id=s.next_id + 1)
            if world.clients:  # T1 and T2 are one statement here: the answer carries lease, attempt and provider key.
                yield from self.open_attempt(after, len(s.rows), row, client=True, verb="reserve")
                continue
            although = " although one is live" if live else ""
            if world.wake_ups == "lost":
                hinted = (*s.rows, row._replace(hint=True))
                yield f"reserve {row.id}{although}", after._replace(rows=hinted)
                yield f"reserve {row.id}{although}, its wake-up is lost", after
            else:  # With a sweep a wake-up changes nothing but time.
                yield f"reserve {row.id}{although}", after

    def join(self, s: State, holder: Row, digest: int) -> Steps:
        """Somebody asks for what is live already: told of the receipt, if there is one and the input is the same."""
        asked = (digest, holder.digest)
        if holder.digest != digest and self.rules.digest_compared:
            return  # A conflict, 422: nothing changes.
        if holder.state == "succeeded" and self.world.digests > 1 and asked not in s.told:
            yield f"replay call {digest} gets the receipt of {holder.id}", s._replace(told=tuple(sorted((*s.told, asked))))

    # T2 ------------------------------------------------------------------------------------------------------------------------

    def claim(self, s: State, i: int, row: Row) -> Steps:
        """A worker, woken or sweeping, opens the next attempt, or withdraws what may not be sent any more."""
        rules, world = self.rules, self.world
        if world.voids:
            yield f"void {row.id}", self.put(s, i, row._replace(state="voided"))
        if len(s.workers) >= world.workers_max or (world.wake_ups == "lost" and not row.hint):
            return
        if row.first:
            yield f"suspect {row.id}: first use of its key since the restore -> in_doubt", self.put(s, i, self.suspect(s, row))
        elif not rules.claim_before_send:
            if sum(w.row == row.id for w in s.workers) < 2:
                worker = Worker(row.id, 0, "claimed", False, world.send_by, 0, "", False, row.key, row.digest)
                yield f"claim {row.id}: in memory only", self.hire(s, worker)
        elif len(row.attempts) >= world.attempts_max:
            yield f"claim {row.id}: its tries are used up -> voided", self.put(s, i, row._replace(state="voided"))
        elif not (world.clients and rules.clients_send_their_own):
            yield from self.open_attempt(s, i, row, client=False, verb="claim")

    def open_attempt(self, s: State, i: int, row: Row, *, client: bool, verb: str) -> Steps:
        """The row is executing from now on, and a process has the right to one sending."""
        rules, world = self.rules, self.world
        if len(row.attempts) >= world.attempts_max or len(s.workers) >= world.workers_max:
            return
        if s.contradiction and rules.contradiction_blocks:
            return  # Parked until a person has closed the contradiction.
        attempt = len(row.attempts) + 1 + (10 * s.epoch if rules.attempt_ids_are_unique else 0)
        fresh = all(letter in "nqa" for letter in row.attempts) or not rules.window_from_first_send
        row = row._replace(
            state="executing",
            attempts=row.attempts + "o",
            newest=attempt,
            lease=world.lease,
            cap=world.lease_max if world.renewals else 0,
            quiet=self.quiet(row, world.lease),
            absent=0,
            window=(world.window if fresh else row.window) if world.guarantee == "A" else 0,
            hint=False,
        )
        worker = Worker(row.id, attempt, "claimed", client, world.send_by, 0, "", False, row.key, row.digest)
        after = self.hire(self.put(s, i, row), worker)
        who = "a client" if client else "a worker"
        yield f"{verb} {row.id}: {who} opens attempt {attempt}", after._replace(contradiction=2) if s.contradiction else after

    def quiet(self, row: Row, lease: int) -> int:
        """When an absence counts if the attempt ended with the lease that it has now."""
        if not self.absence:
            return 0
        lease = lease if self.rules.settle_time_after_lease else 0
        return max(row.quiet, lease + self.rules.settle_time)

    def renew(self, s: State, i: int, worker: Worker, by: str) -> Steps:
        """A heartbeat: the lease is extended while the process lives, never beyond the deadline and a margin."""
        world, rules = self.world, self.rules
        at = next((j for j, r in enumerate(s.rows) if r.id == worker.row), None)
        if at is None:
            return
        row = s.rows[at]
        lease = min(world.lease, row.cap) if rules.renewal_is_capped else world.lease
        if row.state != "executing" or row.newest != worker.attempt or not 0 < row.lease < lease:
            return
        kept = s
        if worker.client or not rules.send_by_is_fixed:
            # A handler is cancelled when the lease that it knows ends; a worker's send_by never moves.
            kept = self.keep(s, i, worker._replace(send_by=world.send_by - world.lease + lease))
        extended = row._replace(lease=lease, quiet=self.quiet(row, lease))
        yield f"{by}renew attempt {worker.attempt} of {row.id}", self.put(kept, at, extended)

    # The outside ---------------------------------------------------------------------------------------------------------------

    def work(self, s: State, i: int, worker: Worker) -> Steps:
        """The next step of a process that holds an attempt, or its end."""
        world, rules = self.world, self.rules
        name = f"attempt {worker.attempt} of {worker.row}"
        by = "client-" if worker.client else ""
        if s.crashes < world.crashes_max:
            yield f"crash {name}: its process dies", s._replace(workers=without(s.workers, i), crashes=s.crashes + 1)
        if world.renewals and worker.phase in ("claimed", "waiting"):
            yield from self.renew(s, i, worker, by)
        if worker.phase == "claimed":
            if worker.send_by > 0 or not rules.send_by_checked:
                pause = world.client_pause_max if worker.client else world.pause_max
                cleared = worker._replace(phase="cleared", pause=min(pause + world.stops, NEVER))
                yield f"{by}check {name}: in time", self.keep(s, i, cleared)
            else:
                yield f"{by}check {name}: too late, nothing is sent", self.answer(s, i, "n")
        elif worker.phase == "cleared":
            late = worker.send_by <= -world.pause_max
            request = Request(worker.row, worker.attempt, worker.key, world.commit_delay_max, worker.digest)
            sent = s._replace(requests=tuple(sorted((*s.requests, request))))
            waiting = worker._replace(phase="waiting", pause=0, late=late)
            yield f"{by}write {name}: the request leaves{' late' if late else ''}", self.keep(sent, i, waiting)
            if s.unsent < world.unsent_max:
                yield f"{by}write {name}: no connection, nothing is sent", self.answer(s._replace(unsent=s.unsent + 1), i, "n")
        elif worker.phase == "waiting":
            yield f"{by}timeout {name}: no answer", self.answer(s, i, "u")
        else:
            yield from self.settle(s, i, worker, name, by)

    def answer(self, s: State, i: int, letter: str) -> State:
        """The process knows what came of its attempt."""
        return self.keep(s, i, s.workers[i]._replace(phase="answered", answer=letter, pause=0))

    def provider(self, s: State, i: int, request: Request) -> Steps:
        """The provider executes, refuses or never sees a request."""
        world = self.world
        name = f"provider, attempt {request.attempt} of {request.row}"
        gone = s._replace(requests=without(s.requests, i))
        known = next((k for k in s.keys if k[0] == request.key), None) if world.guarantee == "A" else None
        if known is not None and world.strategy == "conflict":
            yield f"answer {name}: conflict, this identity exists", self.reply(gone, request, "x")
        elif known is not None:
            yield f"answer {name}: its first answer again ({known[1]})", self.reply(gone, request, known[1])
        else:
            yield from self.execute(gone, request, name)
        if s.refusals < world.refusals_max:
            refused = gone._replace(refusals=s.refusals + 1)
            yield f"answer {name}: refused before execution (401, 429)", self.reply(refused, request, "q")
        if world.plain_rejections and known is None:
            yield f"answer {name}: refused for good, not stored", self.reply(gone, request, "v")
        if world.drops:
            yield f"drop {name}: lost on the way", gone

    def execute(self, gone: State, request: Request, name: str) -> Steps:
        """A provider that does not know the key does what it is asked to, or refuses it for good."""
        world = self.world
        effect = (request.key, request.row, world.lag_max)
        done = gone._replace(effects=tuple(sorted((*gone.effects, effect))))
        if world.webhooks:
            done = done._replace(hooks=tuple(sorted({*gone.hooks, request.key})))
        yield f"answer {name}: EFFECT", self.reply(self.remember(done, request, "s"), request, "s")
        if world.lying_refusals:
            yield f"answer {name}: EFFECT, but it says refused", self.reply(self.remember(done, request, "s"), request, "r")
        if world.stored_failures:
            yield f"answer {name}: EFFECT, and a stored 500", self.reply(self.remember(done, request, "f"), request, "u")
            yield f"answer {name}: a stored 500", self.reply(self.remember(gone, request, "f"), request, "u")
        if world.rejects:
            stores = world.guarantee == "A" and world.strategy == "replay"
            refused = self.remember(gone, request, "r") if stores else gone
            yield f"answer {name}: refused for good", self.reply(refused, request, "r")

    def remember(self, s: State, request: Request, letter: str) -> State:
        """A class A provider keeps the answer under the key."""
        if self.world.guarantee != "A":
            return s
        left = self.world.window - self.world.forgets_early
        return s._replace(keys=tuple(sorted((*s.keys, (request.key, letter, left)))))

    def reply(self, s: State, request: Request, letter: str) -> State:
        """The answer reaches the process that awaits it, if it still does."""
        for i, worker in enumerate(s.workers):
            if (worker.row, worker.attempt, worker.phase) == (request.row, request.attempt, "waiting"):
                return self.answer(s, i, letter)
        return s

    def webhook(self, s: State, i: int, row: Row) -> Steps:
        """The provider tells of an effect by itself."""
        if row.key not in s.hooks or any(r.key == row.key and r.id > row.id for r in s.rows):
            return
        heard = s._replace(hooks=tuple(h for h in s.hooks if h != row.key))
        if row.state in ("executing", "in_doubt") or self.sent_before(row):
            yield f"webhook settles {row.id}", self.put(heard, i, self.succeed(row))
        elif row.state == "succeeded":
            yield f"webhook for {row.id}: known already", heard
        else:
            yield f"webhook for {row.id}, which is {row.state}: a contradiction", self.contradict(heard)

    # T3 ------------------------------------------------------------------------------------------------------------------------

    def settle(self, s: State, i: int, worker: Worker, name: str, by: str) -> Steps:
        """A process writes down what its attempt came to."""
        free = s._replace(workers=without(s.workers, i))
        at = next((j for j, r in enumerate(s.rows) if r.id == worker.row), None)
        if at is None:
            yield f"{by}settle {name}: no such reservation any more", free
            return
        row, answer = s.rows[at], worker.answer
        if not self.rules.claim_before_send:
            row = row._replace(attempts=row.attempts + "o")
        if self.is_current(row, worker):
            settled = self.outcome(row, worker)
            label = f"{by}settle {name}: {answer} -> {settled.state}"
            yield label, self.put(free, at, settled)
            if s.resettles < self.world.resettles_max:
                yield f"{label}, but the commit's answer is lost", self.put(s._replace(resettles=s.resettles + 1), at, settled)
        else:
            yield from self.settle_late(free, at, worker, f"{by}settle {name}")

    def is_current(self, row: Row, worker: Worker) -> bool:
        """Whether an attempt may decide where its reservation stands."""
        if not self.rules.claim_before_send:
            return row.state == "reserved"
        if not self.rules.settle_compares_attempt:
            return row.state in ("executing", "in_doubt", "succeeded")
        if not self.rules.settle_needs_open_attempt:
            return row.newest == worker.attempt and row.state in ("executing", "in_doubt", "succeeded")
        return row.newest == worker.attempt and row.state == "executing"

    def settle_late(self, free: State, at: int, worker: Worker, label: str) -> Steps:
        """What an attempt reports that is not open any more: a success counts, and so does a provable nothing."""
        row, answer = free.rows[at], worker.answer
        if answer == "s" and (row.state in ("executing", "in_doubt") or self.sent_before(row)):
            if self.rules.late_success_settles:
                yield f"{label}: a late success -> succeeded", self.put(free, at, self.succeed(row))
            else:
                yield f"{label}: a late success, noted", self.put(free, at, row._replace(evidence=True))
        elif answer == "s":
            yield f"{label}: s is late, noted", free if row.state == "succeeded" else self.contradict(free)
        elif answer == "n" and self.may_take_back(free, row, worker):
            if not self.rules.late_unsent_settles:
                yield f"{label}: late, but nothing was sent, noted", self.put(free, at, row._replace(evidence=True))
                return
            cleared = row._replace(attempts=row.attempts[:-1] + "n")
            if "u" not in cleared.attempts:
                cleared = self.free(cleared)
            yield f"{label}: late, but nothing was sent -> {cleared.state}", self.put(free, at, cleared)
        elif worker.late and answer == "u" and row.state in ("executing", "in_doubt"):
            yield f"{label}: u is late, and the write was: frozen", self.put(free, at, self.freeze(row))
        else:
            yield f"{label}: {answer} is late, noted", free

    def sent_before(self, row: Row) -> bool:
        """Whether it is free to be sent again because what was sent of it was thought to have had no effect."""
        return row.state == "reserved" and row.attempts != ""

    def may_take_back(self, s: State, row: Row, worker: Worker) -> bool:
        """A late "nothing was sent" counts for the newest attempt only, and never for one from before a restore."""
        mine = row.state == "in_doubt" and row.newest == worker.attempt and row.attempts.endswith("u") and not row.frozen
        same_epoch = worker.attempt // 10 == s.epoch or not self.rules.late_unsent_asks_epoch
        return mine and same_epoch

    def outcome(self, row: Row, worker: Worker) -> Row:
        """The table of outcomes, with what an earlier unknown attempt changes in it."""
        earlier = "u" in row.attempts[:-1] and self.rules.own_attempt_only
        answer = worker.answer
        if answer == "s":
            return self.succeed(row)
        if answer == "x" and not self.rules.conflict_is_unknown:
            return self.fail(self.close(row, "r"))
        if answer in "xuf":
            doubt = self.doubt(row)._replace(spent=row.spent or answer == "f")
            return self.freeze(doubt) if worker.late else doubt
        stored = answer == "r" and self.world.guarantee == "A" and self.world.strategy == "replay"
        if answer in "rv" and (stored or not earlier):
            return self.fail(self.close(row, "r"))._replace(stored=stored)
        if answer == "q" and not self.rules.own_attempt_only:  # Read literally, a 4xx with its error body is a rejection.
            return self.fail(self.close(row, "r"))
        if earlier:
            letter = "q" if answer == "q" else "r" if answer == "v" else "n"
            return self.close(row._replace(quiet=self.quiet(row, 0)), letter, "in_doubt")
        return self.free(self.close(row, "q" if answer == "q" else "n"))

    def free(self, row: Row) -> Row:
        """Nothing of it can have had an effect: it may be sent again. What a client did not send has failed."""
        if self.world.clients and self.rules.clients_send_their_own:
            return self.fail(row)
        return row._replace(state="reserved", lease=0, cap=0, quiet=0, window=0, absent=0)

    def close(self, row: Row, letter: str, state: str = "") -> Row:
        attempts = row.attempts[:-1] + letter if row.attempts.endswith("o") else row.attempts
        return row._replace(attempts=attempts, lease=0, cap=0, state=state or row.state)

    def fail(self, row: Row) -> Row:
        return row._replace(state="failed")

    def succeed(self, row: Row) -> Row:
        return self.close(row, "s", "succeeded")._replace(receipts=row.receipts + 1)

    def doubt(self, row: Row) -> Row:
        """The attempt's outcome is unknown; an absence counts after the end of its lease and the settle time, and not before now."""
        return self.close(row._replace(quiet=self.quiet(row, 0)), "u", "in_doubt")._replace(absent=0)

    def freeze(self, row: Row) -> Row:
        """A write left after its time: nothing automatic decides any more, and an absence counts from the report at the earliest."""
        if not self.rules.late_write_freezes:
            return row
        return row._replace(frozen=True, quiet=self.quiet(row, 0) if self.rules.late_write_postpones_absence else row.quiet)

    def suspect(self, s: State, row: Row) -> Row:
        """A row that may have been sent in the lost tail has an attempt that nobody remembers: in doubt from now."""
        sent = any(letter not in "nq" for letter in row.attempts)
        lease = self.world.lease if self.rules.epoch_waits_for_leases else 0
        row = self.doubt(row._replace(quiet=self.quiet(row, lease)))
        if "u" not in row.attempts:
            row = row._replace(attempts=row.attempts + "u")
        window = min(row.window, s.tail) if sent else s.tail
        return row._replace(first=False, hint=False, window=window if self.world.guarantee == "A" else 0)

    def contradict(self, s: State) -> State:
        return s._replace(contradiction=max(s.contradiction, 1))

    # Doubt ---------------------------------------------------------------------------------------------------------------------

    def sweep(self, s: State, i: int, row: Row) -> Steps:
        """An attempt whose lease has lapsed is unknown. An absence counts from the end of the lease, however late this is seen."""
        if row.lease == 0:
            lapsed = self.close(row, "u", "in_doubt")._replace(absent=0)
            yield f"sweep {row.id}: its lease has lapsed -> in_doubt", self.put(s, i, lapsed)

    def resend(self, s: State, i: int, row: Row) -> Steps:
        """Class A: the same provider key again, through the gate of T2."""
        world = self.world
        if world.guarantee != "A" or row.frozen or row.spent:
            return
        margin = self.flight if self.rules.resend_margin else 0
        if row.window > margin or row.window == NEVER:
            client = world.clients and self.rules.clients_send_their_own
            yield from self.open_attempt(s, i, row, client=client, verb="client-resend" if client else "resend")

    def look(self, s: State, i: int, row: Row) -> Steps:
        """Class B, and the read-back of a conflict: ask the provider for the planted marker."""
        world = self.world
        if world.guarantee == "C" or (world.guarantee == "A" and world.strategy != "conflict" and not world.reads_back):
            return
        if len(s.looks) >= world.lookups_max or "u" not in row.attempts:
            return
        visible = [lag for key, _, lag in s.effects if key == row.key]
        seen = [True] if 0 in visible else [False, True] if visible else [False]
        for found in seen:
            look = Look(row.id, row.newest, found, row.quiet == 0)
            yield f"look {row.id}: {'present' if found else 'absent'}", s._replace(looks=tuple(sorted((*s.looks, look))))
        if seen == [True] and s.misses < world.misses_max:
            look = Look(row.id, row.newest, False, row.quiet == 0)
            missed = s._replace(looks=tuple(sorted((*s.looks, look))), misses=s.misses + 1)
            yield f"look {row.id}: overlooked (a stale read)", missed

    def note(self, s: State, i: int, look: Look) -> Steps:
        """What a lookup saw is written down, unless the row has moved on."""
        rules = self.rules
        free = s._replace(looks=without(s.looks, i))
        at = next((j for j, r in enumerate(s.rows) if r.id == look.row), None)
        row = s.rows[at] if at is not None else None
        if (
            at is None
            or row is None
            or row.state != "in_doubt"
            or (row.newest != look.attempt and rules.lookup_names_its_attempt)
        ):
            yield f"note {look.row}: the row has moved on, thrown away", free
            return
        if look.found:
            yield f"note {look.row}: present -> succeeded", self.put(free, at, self.succeed(row))
            return
        counts = look.counts if rules.absences_sent_after_settle_time else row.quiet == 0
        needed = 2 if rules.two_absences else 1
        if row.frozen:
            yield f"note {look.row}: absent, but frozen", free
        elif counts and row.absent + 1 >= needed:
            proven = self.proven_absent(row)
            yield f"note {look.row}: absent, proven -> {proven.state}", self.put(free, at, proven)
        elif counts or not rules.absences_sent_after_settle_time:
            noted = row._replace(absent=min(row.absent + 1, needed - 1))
            yield f"note {look.row}: absent, counted", self.put(free, at, noted)
        else:
            yield f"note {look.row}: absent, too early to count", free

    def proven_absent(self, row: Row) -> Row:
        """Absence proven counts as unsent: sent again while tries allow, else failed. A stored failure takes another provider key."""
        proven = row._replace(attempts=row.attempts.replace("u", "a"))
        if len(row.attempts) >= self.world.attempts_max:
            return self.fail(proven)._replace(stored=row.spent)
        return self.free(proven)._replace(spent=False, key=row.key + row.spent)

    def person(self, s: State, i: int, row: Row) -> Steps:
        """An honest person says what the provider shows at this moment."""
        if not self.world.person:
            return
        lags = [lag for key, _, lag in s.effects if key == row.key]
        if lags:
            yield f"person {row.id}: happened -> succeeded", self.put(s, i, self.succeed(row))
        if 0 not in lags and (row.quiet == 0 or not self.rules.person_waits):
            closed = self.fail(row._replace(attempts=row.attempts.replace("u", "a")))._replace(stored=row.spent)
            yield f"person {row.id}: did not happen -> failed", self.put(s, i, closed)

    # The world -----------------------------------------------------------------------------------------------------------------

    def restore(self, s: State) -> Steps:
        """Postgres loses what it committed after a backup; processes of before may live on, and no id is ever made twice."""
        if s.restores >= self.world.restores_max:
            return
        if s.backup is None:
            yield "backup is taken", s._replace(backup=s.rows, tail=self.world.window if self.world.guarantee == "A" else 0)
        elif s.backup != s.rows:
            rows = s.backup
            after = s._replace(rows=rows, backup=None, restores=s.restores + 1, epoch=s.epoch + 1, looks=())
            if self.rules.epoch_closes_open_rows:
                after = after._replace(rows=tuple(self.suspect(s, r) if r.state in OPEN else r for r in rows))
            yield "restore: the tail is lost", after

    def delete(self, s: State) -> Steps:
        """Somebody removes the effect at the provider, and the provider forgets its identity."""
        if self.world.deletes:
            for key in s.keys:
                yield "delete: somebody removes it at the provider", s._replace(keys=tuple(k for k in s.keys if k != key))

    def tick(self, s: State) -> Steps:
        """Time passes, unless something must happen first."""
        if any(r.left == 0 for r in s.requests) or any(self.must_act(w) for w in s.workers):
            return
        yield (
            "tick",
            s._replace(
                rows=tuple(self.age(r) for r in s.rows),
                backup=None if s.backup is None else tuple(self.age(r) for r in s.backup),  # Rows carry times, not count-downs.
                workers=tuple(sorted(self.grow_old(w) for w in s.workers)),
                requests=tuple(sorted(r._replace(left=down(r.left)) for r in s.requests)),
                effects=tuple(sorted((key, row, down(lag)) for key, row, lag in s.effects)),
                keys=tuple((key, letter, down(left)) for key, letter, left in s.keys if left > 1),
                tail=down(s.tail),
            ),
        )
        if s.jumps < self.world.jumps_max:
            jumped = s._replace(rows=tuple(self.age(r) for r in s.rows), jumps=s.jumps + 1)
            yield "jump: Postgres's clock steps ahead", jumped

    def must_act(self, worker: Worker) -> bool:
        """Whether a process may not let time pass now."""
        if worker.phase == "cleared":
            return worker.pause == 0
        return worker.late and self.world.late_writes_are_reported

    def age(self, row: Row) -> Row:
        if row.state not in OPEN:
            return row
        return row._replace(lease=down(row.lease), cap=down(row.cap), quiet=down(row.quiet), window=down(row.window))

    def grow_old(self, worker: Worker) -> Worker:
        last = -self.world.pause_max if self.world.stops and worker.phase in ("claimed", "cleared") else 0
        return worker._replace(send_by=max(worker.send_by - 1, last), pause=down(worker.pause))

    # Small change --------------------------------------------------------------------------------------------------------------

    def put(self, s: State, i: int, row: Row) -> State:
        """The state with another row; what no rule asks of a closed row is forgotten, so that fewer states differ."""
        if row.state not in OPEN:
            newest = 0 if self.rules.settle_needs_open_attempt else row.newest
            row = Row(row.id, row.key, row.state, row.digest, newest=newest, receipts=row.receipts, stored=row.stored)
        return s._replace(rows=(*s.rows[:i], row, *s.rows[i + 1 :]))

    def keep(self, s: State, i: int, worker: Worker) -> State:
        return s._replace(workers=tuple(sorted((*s.workers[:i], worker, *s.workers[i + 1 :]))))

    def hire(self, s: State, worker: Worker) -> State:
        return s._replace(workers=tuple(sorted((*s.workers, worker))))

    # Invariants ----------------------------------------------------------------------------------------------------------------

    def happened(self, s: State, row: Row) -> bool:
        """An effect of this reservation, or an older one of its key (of a lost row) that no other reservation answers for."""
        if not s.effects:
            return False
        others = any(r.key == row.key and r.state in LIVE for r in s.rows)
        return any(of == row.id or (key == row.key and of < row.id and not others) for key, of, _ in s.effects)

    def released(self, row: Row) -> bool:
        """Whether what was held for it is given back."""
        return row.state in ("failed", "voided") or (row.state == "in_doubt" and not self.rules.hold_kept_in_doubt)

    def violated(self, s: State) -> str | None:
        """The first invariant that is broken and asked."""
        for name, broken in zip(INVARIANTS, self.broken(s), strict=True):
            if broken and name not in self.ignore:
                return name
        return None

    def broken(self, s: State) -> Iterator[bool]:
        """For each of `INVARIANTS`, whether it is broken."""
        rows = s.rows
        yield len(s.effects) > 1
        yield any(r.state == "succeeded" and sum(key == r.key for key, _, _ in s.effects) != 1 for r in rows)
        yield any(r.receipts > 1 or (r.state == "succeeded") != (r.receipts == 1) for r in rows)
        yield any(r.state == "failed" and self.happened(s, r) for r in rows)
        yield any(r.state == "voided" and self.happened(s, r) for r in rows)
        yield sum(r.attempts.count("o") for r in rows) > 1
        yield any((r.state == "executing") != r.attempts.endswith("o") for r in rows)
        yield any(self.released(r) and self.happened(s, r) for r in rows)
        yield sum(r.state in LIVE for r in rows) > 1
        yield s.contradiction == 1
        yield s.contradiction == 2
        yield self.world.clients and any(not w.client for w in s.workers)
        yield any(asked != given for asked, given in s.told)


def without(items: tuple[T, ...], i: int) -> tuple[T, ...]:
    """The others."""
    return (*items[:i], *items[i + 1 :])


def down(count: int) -> int:
    """One tick less, unless it has ended or never does."""
    return count if count >= NEVER else max(count - 1, 0)
