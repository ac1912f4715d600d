"""Arrays of 200 through reserve, claim, settle and lapse, compared row by row with a small model of one reservation.

The model is written from the tables of design 4 and knows nothing of the SQL. Each round sends arrays with mixed verdicts, keys
that stand in them twice, rows that cannot be stored, reports that come late, and batches sent again after a lost answer.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.integration.store.races import Store
from tests.support.ledger import TRIES_MAX, settlement_of

from outbox_domain.reservation import TERMINAL, Outcome, State
from outbox_store.batches import Failed
from outbox_store.claim import Claim, Claimed, NotClaimed, claim
from outbox_store.connection import Connection
from outbox_store.reserve import Contradicted, Held, NewReservation, Verdict, Won, reserve
from outbox_store.settle import Settled, Settlement, settle
from outbox_store.sweep import Lapse, lapse

SIZE = 200
RESENDS_MAX = 3


@dataclass(kw_only=True)
class Attempt:
    """What the model knows of one attempt."""

    claimed: Claimed
    outcome: Outcome | None = None
    by_answer: bool = False
    late: set[Outcome] = field(default_factory=set)
    late_write: bool = False


@dataclass(kw_only=True)
class Reservation:
    """One reservation as design 4 says it behaves."""

    row: NewReservation
    state: State = State.RESERVED
    attempts: dict[UUID, Attempt] = field(default_factory=dict)
    open: UUID | None = None
    newest: UUID | None = None
    tries: int = 0
    resends: int = 0
    due: bool = True
    late_write: bool = False
    stored_failure: bool = False
    reference: str | None = None
    contradicted_by: set[str] = field(default_factory=set)

    @property
    def unknown(self) -> int:
        """How many of its attempts may have had an effect."""
        return sum(attempt.outcome is Outcome.UNKNOWN for attempt in self.attempts.values())

    def claim(self, wish: Claim, parked: bool) -> str:
        """The verdict of T2."""
        if self.state in TERMINAL:
            return "gone"
        if self.open is not None:
            return "own" if self.open == wish.attempt_id else "gone"
        if self.state is State.RESERVED and self.tries >= TRIES_MAX:
            self.state = State.VOIDED
            return "voided"
        if parked:
            return "parked"
        if not self.due:
            return "not-due"
        used_up = self.resends >= RESENDS_MAX or self.tries >= TRIES_MAX
        if self.state is State.IN_DOUBT and (self.late_write or self.stored_failure or used_up):
            return "no-resend"
        return "claim"

    def opened(self, attempt: Claimed) -> None:
        """An attempt was opened."""
        self.resends = self.resends + 1 if self.state is State.IN_DOUBT else 0
        self.state, self.open, self.newest = State.EXECUTING, attempt.attempt_id, attempt.attempt_id
        self.attempts[attempt.attempt_id] = Attempt(claimed=attempt)

    def lapsed(self) -> None:
        """The lease of the open attempt was over."""
        assert self.open is not None
        self.attempts[self.open].outcome = Outcome.UNKNOWN
        self.open, self.state, self.due = None, State.IN_DOUBT, not self.late_write

    def settle(self, settlement: Settlement) -> str:
        """The verdict of T3."""
        attempt, outcome = self.attempts[settlement.attempt_id], settlement.outcome
        current = self.open == settlement.attempt_id
        if settlement.receipt is not None:
            reference = settlement.receipt.external_reference
            if self.state in (State.RESERVED, State.EXECUTING, State.IN_DOUBT):
                if self.open is not None and not current:
                    self.attempts[self.open].outcome = Outcome.UNKNOWN
                attempt.outcome, attempt.by_answer = outcome, True
                self.open, self.state, self.reference = None, State.SUCCEEDED, reference
                return "settled"
            if self.reference == reference:
                return self._late(attempt, settlement)
            self.contradicted_by.add(reference)
            return "contradiction"
        if current:
            attempt.outcome, attempt.by_answer, attempt.late_write, self.open = outcome, True, settlement.late_write, None
            self.stored_failure |= settlement.stored_failure
            if outcome is Outcome.UNKNOWN:
                self.late_write |= settlement.late_write
            final = outcome is Outcome.REJECTED and settlement.stored and self.row.guarantee_class == "A"
            if final or (outcome is Outcome.REJECTED and not self.unknown):
                self.state = State.FAILED
            elif self.unknown:
                self.state = State.IN_DOUBT
                self._give_back(outcome)
                self.due = settlement.recover_seconds == 0.0 and not self.late_write
            else:
                self._try_again(settlement)
            return "settled"
        takes_back = outcome is Outcome.UNSENT and self.state is State.IN_DOUBT and self.newest == settlement.attempt_id
        if takes_back and attempt.outcome is Outcome.UNKNOWN and not self.late_write:
            attempt.outcome, attempt.by_answer = outcome, True
            if self.unknown:
                self._give_back(outcome)
                self.due = settlement.recover_seconds == 0.0
            else:
                self._try_again(settlement)
            return "settled"
        return self._late(attempt, settlement)

    def _give_back(self, outcome: Outcome) -> None:
        """A resend that was not sent or was put off counts as a try."""
        if outcome in (Outcome.UNSENT, Outcome.DEFERRED):
            self.tries, self.resends = self.tries + 1, self.resends - 1

    def _try_again(self, settlement: Settlement) -> None:
        self.state, self.tries = State.RESERVED, self.tries + 1
        self.due = settlement.again_seconds == 0.0

    def _late(self, attempt: Attempt, settlement: Settlement) -> str:
        freezes = (
            settlement.late_write and settlement.outcome is Outcome.UNKNOWN and self.state in (State.EXECUTING, State.IN_DOUBT)
        )
        known = (attempt.by_answer and attempt.outcome is settlement.outcome) or settlement.outcome in attempt.late
        if freezes:
            self.late_write = True
            self.due = self.due and self.state is not State.IN_DOUBT
            known = known and attempt.late_write
        if not known:
            attempt.late.add(settlement.outcome)
            attempt.late_write |= settlement.late_write and settlement.outcome is Outcome.UNKNOWN
        return "already" if known else "evidence"


class Rounds:
    """The arrays of one seed, their model, and what both say."""

    def __init__(self, store: Store, seed: int) -> None:
        """Start with nothing reserved."""
        self.store = store
        self.random = random.Random(seed)
        self.prefix = f"refund:{uuid4().hex}"
        self.all: dict[UUID, Reservation] = {}

    def of_key(self, key: object) -> list[Reservation]:
        """The reservations of an operation key."""
        return [one for one in self.all.values() if one.row.key == key]

    def holder(self, key: object) -> Reservation | None:
        """The live reservation of an operation key."""
        live = [one for one in self.of_key(key) if one.state not in (State.FAILED, State.VOIDED)]
        assert len(live) <= 1
        return live[0] if live else None

    def contradicted(self, key: object) -> bool:
        """Whether proof against a reservation of the key awaits a person."""
        return any(one.contradicted_by for one in self.of_key(key))

    async def again(self, run: Callable[[], Any]) -> None:
        """Run a batch, sometimes once more, as after a lost answer."""
        await run()
        if self.random.random() < 0.3:
            await run()

    async def reserve(self) -> None:
        """200 rows over 150 keys: new ones, taken ones, doubled ones, and some that cannot be stored."""
        rows, poisoned = [], set()
        for _ in range(SIZE):
            key = f"{self.prefix}:{self.random.randrange(150)}"
            row = self.store.world.row(key, guarantee_class=self.random.choice("AAB"))
            if self.random.random() < 0.02:
                poison: dict[str, Any] = self.random.choice(
                    [
                        {"occurrence": 0},
                        {"currency": "€"},
                        {"actor_id": uuid4()},
                        {"declared": {"a": "\ud800"}},
                        {"amount": 2**65},
                        {"step": "\x00"},
                    ]
                )
                row = replace(row, **{"operation_key": f"{key}:poison", **poison})
                poisoned.add(row.id)
            rows.append(row)
        verdicts = await reserve(self.store.api, rows)
        self._check_reserved(rows, poisoned, verdicts)
        if self.random.random() < 0.5:
            assert [_plain(verdict) for verdict in await reserve(self.store.api, rows)] == [
                _plain(verdict) for verdict in verdicts
            ]

    def _check_reserved(self, rows: list[NewReservation], poisoned: set[UUID], verdicts: Sequence[Verdict | Failed]) -> None:
        winners = {verdict.id for verdict in verdicts if isinstance(verdict, Won)}
        for row in rows:
            if row.id in winners:
                assert self.holder(row.key) is None, "two live reservations of one key"
                assert not self.contradicted(row.key)
                self.all[row.id] = Reservation(row=row)
        for row, verdict in zip(rows, verdicts, strict=True):
            if row.id in poisoned:
                assert isinstance(verdict, Failed)
            elif row.id not in winners:
                if (holder := self.holder(row.key)) is not None:
                    assert isinstance(verdict, Held)
                    assert (verdict.id, verdict.state, verdict.input_digest) == (
                        holder.row.id,
                        holder.state,
                        holder.row.input_digest,
                    )
                else:
                    assert isinstance(verdict, Contradicted)
                    assert self.contradicted(row.key)

    async def claim(self) -> None:
        """Wishes for 200 reservations in every state, some without their organization, one that cannot be stored."""
        chosen = self.random.sample(list(self.all.values()), min(SIZE, len(self.all)))
        wishes = [
            Claim(
                organization_id=self.random.choice([one.row.organization_id, None]),
                reservation_id=one.row.id,
                attempt_id=uuid4(),
                worker="tests",
                lease_seconds=3600.0,
                resend_window_seconds=86400.0,
                resends_max=RESENDS_MAX,
            )
            for one in chosen
        ]
        poisoned = self.random.randrange(len(wishes))
        wishes[poisoned] = replace(wishes[poisoned], worker="\x00")
        await self.again(lambda: self._claim(chosen, wishes, poisoned))

    async def _claim(self, chosen: list[Reservation], wishes: list[Claim], poisoned: int) -> None:
        verdicts = await claim(self.store.worker, wishes)
        for place, (one, wish, verdict) in enumerate(zip(chosen, wishes, verdicts, strict=True)):
            if place == poisoned:
                assert isinstance(verdict, Failed)
                continue
            expected = one.claim(wish, self.contradicted(one.row.key))
            if expected in ("claim", "own"):
                assert isinstance(verdict, Claimed), (expected, verdict)
                assert (verdict.reservation_id, verdict.attempt_id) == (one.row.id, wish.attempt_id)
                if expected == "claim":
                    assert verdict.resend == (one.state is State.IN_DOUBT)
                    one.opened(verdict)
                assert (verdict.number, verdict.resends, verdict.tries, verdict.unknown_attempts) == (
                    len(one.attempts),
                    one.resends,
                    one.tries,
                    one.unknown,
                )
            else:
                assert verdict == NotClaimed(reservation_id=one.row.id, reason=cast(Any, expected))

    async def lapse(self) -> None:
        """Some open attempts reach the end of their lease."""
        over = [one for one in self.all.values() if one.open is not None and self.random.random() < 0.2]
        await self.store.owner.execute(
            "update attempts set lease_until = now() - interval '1 second' where id = any($1::uuid[])", [one.open for one in over]
        )
        wishes = [
            Lapse(
                organization_id=one.row.organization_id,
                reservation_id=one.row.id,
                attempt_id=cast(UUID, one.open),
                settle_seconds=120.0,
                recover_seconds=0.0,
            )
            for one in over
        ]
        self.random.shuffle(wishes)
        assert set(await lapse(self.store.worker, wishes)) == {one.row.id for one in over}
        for one in over:
            one.lapsed()

    async def settle(self) -> None:
        """Outcomes of 200 attempts, open ones and old ones, some reservations more than once, one that cannot be stored."""
        attempts = [(one, attempt) for one in self.all.values() for attempt in one.attempts.values()]
        attempts = [pair for pair in attempts if pair[1].outcome is None or self.random.random() < 0.3]
        chosen = self.random.sample(attempts, min(SIZE, len(attempts)))
        settlements = [self._settlement(one, attempt) for one, attempt in chosen]
        poisoned = self.random.randrange(len(settlements))
        settlements[poisoned] = settlement_of(chosen[poisoned][1].claimed, Outcome.SUCCEEDED, variance={"a": "\ud800"})
        await self.again(lambda: self._settle(chosen, settlements, poisoned))

    def _settlement(self, one: Reservation, attempt: Attempt) -> Settlement:
        outcome = self.random.choices(list(Outcome), weights=[20, 15, 25, 25, 25])[0]
        settlement = settlement_of(
            attempt.claimed,
            outcome,
            stored=outcome is Outcome.REJECTED and self.random.random() < 0.5,
            stored_failure=outcome is Outcome.UNKNOWN and self.random.random() < 0.05,
            late_write=outcome is Outcome.UNKNOWN and self.random.random() < 0.1,
            again_seconds=self.random.choice([0.0, 0.0, 3600.0]),
            recover_seconds=self.random.choice([0.0, 0.0, 3600.0, None]),
        )
        if settlement.receipt is not None and self.random.random() < 0.2:
            settlement = replace(settlement, receipt=replace(settlement.receipt, external_reference=f"re_{uuid4().hex}"))
        return settlement

    async def _settle(self, chosen: list[tuple[Reservation, Attempt]], settlements: list[Settlement], poisoned: int) -> None:
        verdicts = await settle(self.store.worker, settlements, tries_max=TRIES_MAX)
        for place, ((one, _), settlement, verdict) in enumerate(zip(chosen, settlements, verdicts, strict=True)):
            if place == poisoned:
                assert isinstance(verdict, Failed)
            else:
                expected = one.settle(settlement)
                assert isinstance(verdict, Settled)
                assert (verdict.verdict, verdict.state) == (expected, one.state), settlement

    async def compare(self) -> None:
        """What the database has of every reservation is what the model has."""
        records = await self.store.owner.fetch(
            "select * from reservations where organization_id = $1 and operation_key like $2 || ':%'",
            self.store.world.organization_id,
            self.prefix,
        )
        assert {record["id"] for record in records} == set(self.all)
        for record in records:
            one = self.all[record["id"]]
            found = (
                record["state"],
                record["attempts"],
                record["tries"],
                record["resends"],
                record["late_write"],
                record["external_reference"],
            )
            assert found == (one.state.value, len(one.attempts), one.tries, one.resends, one.late_write, one.reference)
            if one.state is not State.SUCCEEDED:
                assert record["unknown_attempts"] == one.unknown
        outcomes = {
            attempt.claimed.attempt_id: attempt.outcome and attempt.outcome.value
            for one in self.all.values()
            for attempt in one.attempts.values()
        }
        found_outcomes = await self.store.owner.fetch(
            "select id, outcome from attempts where reservation_id = any($1::uuid[])", list(self.all)
        )
        assert {record["id"]: record["outcome"] for record in found_outcomes} == outcomes


def _plain(verdict: Verdict | Failed) -> object:
    if isinstance(verdict, Failed):
        return (verdict.constraint, type(verdict.error))
    # A lease that runs is shorter each time that it is asked for.
    return replace(verdict, lease_seconds=None) if isinstance(verdict, Held) else verdict


@pytest.mark.parametrize("seed", range(6))
async def test_arrays_of_200_do_what_each_row_would_do_alone(store: Store, seed: int) -> None:
    """Whatever stands beside it in an array, each row gets the verdict and the state that the rules give it alone."""
    rounds = Rounds(store, seed)
    for _ in range(6):
        await rounds.reserve()
        await rounds.claim()
        await rounds.settle()
        await rounds.lapse()
        await rounds.settle()
        await rounds.compare()
        await store.assert_invariants()
    met = {one.state for one in rounds.all.values()}
    assert met >= {State.SUCCEEDED, State.FAILED, State.IN_DOUBT, State.RESERVED}, "the arrays did not reach every state"


class Losing:
    """A connection whose answers are lost after the server has committed."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", keep: int = 0) -> None:
        """Lose each answer after the first `keep` ones."""
        self._connection = connection
        self._keep = keep

    async def fetch(self, query: str, *values: object) -> list[asyncpg.Record]:
        """As `asyncpg.Connection.fetch`, but the answer does not arrive."""
        answer = await self._connection.fetch(query, *values)
        if self._keep == 0:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        self._keep -= 1
        return answer


@pytest.mark.parametrize("keep", [0, 1])
async def test_a_lost_commit_answer_and_the_same_batch_again(store: Store, keep: int) -> None:
    """A lost answer is raised, never halved over; the same batch gets the verdicts that were lost, and no row is written twice."""
    tables = ("reservations", "sealed_inputs", "open_reservations", "attempts", "receipts", "ledger_entries")
    taken = store.world.row()
    await reserve(store.api, [taken])
    rows = [store.world.row() for _ in range(SIZE - 1)]
    batch = [*rows, store.world.row(taken.operation_key)]
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await reserve(cast(Connection, Losing(store.api, keep)), batch)
    before = [await store.count(table) for table in tables]
    assert before[0] == SIZE
    verdicts = await reserve(store.api, batch)
    assert verdicts[:-1] == [Won(id=row.id) for row in rows]
    assert isinstance(verdicts[-1], Held)
    assert [await store.count(table) for table in tables] == before

    wishes = [_wish(row) for row in rows]
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await claim(cast(Connection, Losing(store.worker)), wishes)
    before = [await store.count(table) for table in tables]
    attempts = [one for one in await claim(store.worker, wishes) if isinstance(one, Claimed)]
    assert [one.attempt_id for one in attempts] == [wish.attempt_id for wish in wishes]
    assert [await store.count(table) for table in tables] == before

    settlements = [settlement_of(one, outcome) for one, outcome in zip(attempts, 40 * list(Outcome), strict=False)]
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await settle(cast(Connection, Losing(store.worker)), settlements, tries_max=TRIES_MAX)
    before = [await store.count(table) for table in tables]
    again = await settle(store.worker, settlements, tries_max=TRIES_MAX)
    assert {one.verdict for one in again if isinstance(one, Settled)} == {"already"}
    assert [await store.count(table) for table in tables] == before


def _wish(row: NewReservation) -> Claim:
    return Claim(
        organization_id=row.organization_id, reservation_id=row.id, attempt_id=uuid4(), worker="tests", lease_seconds=3600.0
    )


async def test_two_unsorted_callers_at_once(store: Store) -> None:
    """Two callers with the same 200 rows in opposite orders never deadlock, in none of the three statements; each row has one winner."""
    other_api, other_worker = await store.another(store.database.api_url), await store.another(store.database.worker_url)
    for _ in range(3):
        keys = [f"refund:{uuid4().hex}" for _ in range(SIZE)]
        one, two = [store.world.row(key) for key in keys], [store.world.row(key) for key in reversed(keys)]
        first, second = await asyncio.gather(reserve(store.api, one), reserve(other_api, two))
        second.reverse()
        won = []
        for mine, theirs in zip(first, second, strict=True):
            assert isinstance(mine, (Won, Held))
            assert isinstance(theirs, (Won, Held))
            assert mine.id == theirs.id
            assert isinstance(mine, Won) != isinstance(theirs, Won)
            won.append(mine.id)
        rows = {row.id: row for row in [*one, *two]}
        wishes = [_wish(rows[id]) for id in won]
        rivals = [_wish(rows[id]) for id in reversed(won)]
        answers = await asyncio.gather(claim(store.worker, wishes), claim(other_worker, rivals))
        attempts = [verdict for answer in answers for verdict in answer if isinstance(verdict, Claimed)]
        assert sorted(attempt.reservation_id for attempt in attempts) == sorted(won)
        settlements = [settlement_of(attempt, Outcome.SUCCEEDED) for attempt in attempts]
        both = await asyncio.gather(
            settle(store.worker, settlements, tries_max=TRIES_MAX),
            settle(other_worker, settlements[::-1], tries_max=TRIES_MAX),
        )
        for left, right in zip(both[0], reversed(both[1]), strict=True):
            assert isinstance(left, Settled)
            assert isinstance(right, Settled)
            assert (left.state, right.state) == (State.SUCCEEDED, State.SUCCEEDED)
            assert sorted([left.verdict, right.verdict])[-1] == "settled"
            assert {left.verdict, right.verdict} <= {"settled", "already"}


@pytest.mark.parametrize("commit", [True, False], ids=["commits", "rolls back"])
async def test_holders_of_some_keys_end_while_a_batch_waits(store: Store, commit: bool) -> None:
    """A batch of 200 that waits for another's reserve of 50 of its keys is held by those after a commit and wins them after a rollback."""
    rows = [store.world.row() for _ in range(SIZE)]
    rivals = [store.world.row(row.operation_key) for row in rows[::4]]
    verdicts = await store.beside(lambda holder: reserve(holder, rivals), lambda other: reserve(other, rows), commit=commit)
    for place, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        if commit and place % 4 == 0:
            assert isinstance(verdict, Held)
            assert verdict.id == rivals[place // 4].id
        else:
            assert verdict == Won(id=row.id)


@pytest.mark.parametrize("commit", [True, False], ids=["commits", "rolls back"])
async def test_holders_of_some_keys_fail_while_a_batch_waits(store: Store, commit: bool) -> None:
    """A batch of 200 that waits for 50 settlements of its keys' holders wins what failed, and is held by what succeeded or did not end."""
    holders_rows = [store.world.row() for _ in range(50)]
    await reserve(store.api, holders_rows)
    attempts = [one for one in await claim(store.worker, [_wish(row) for row in holders_rows]) if isinstance(one, Claimed)]
    outcomes = [Outcome.REJECTED if place % 2 == 0 else Outcome.SUCCEEDED for place in range(50)]
    settlements = [settlement_of(attempt, outcome) for attempt, outcome in zip(attempts, outcomes, strict=True)]
    rows = [store.world.row(row.operation_key) for row in holders_rows] + [store.world.row() for _ in range(150)]
    verdicts = await store.beside(
        lambda holder: settle(holder, settlements, tries_max=TRIES_MAX), lambda other: reserve(other, rows), commit=commit
    )
    for place, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        if place < 50 and not (commit and outcomes[place] is Outcome.REJECTED):
            assert isinstance(verdict, Held)
            assert verdict.id == holders_rows[place].id
            assert verdict.state is (State.SUCCEEDED if commit else State.EXECUTING)
        else:
            assert verdict == Won(id=row.id)


async def test_poisoned_rows_are_alone_in_the_end(store: Store) -> None:
    """Five rows of each kind of poison in one array of 200 fail; the 175 others are won, in one go with their entries."""
    poisons: list[dict[str, Any]] = [
        {"occurrence": 0},
        {"project_id": uuid4()},
        {"declared": {"a": "\ud800"}},
        {"operation_key": "\x00"},
        {"amount": "12"},
    ]
    rows = [store.world.row(**(poisons[place // 8 % 5] if place % 8 == 0 else {})) for place in range(SIZE)]
    verdicts = await reserve(store.api, rows)
    assert [isinstance(verdict, Failed) for verdict in verdicts] == [place % 8 == 0 for place in range(SIZE)]
    assert await store.count("reservations") == await store.count("ledger_entries") == await store.count("sealed_inputs") == 175
