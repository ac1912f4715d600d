"""T3: every row of design 4's table of outcomes, what comes too late, and settlements that meet other transactions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.integration.store.races import Store
from tests.support.ledger import TRIES_MAX, claim_of, claimed, settled, settlement_of

from outbox_domain.reservation import Confidence, Outcome, State
from outbox_store.batches import Failed
from outbox_store.claim import Claimed, NotClaimed, claim
from outbox_store.connection import Connection
from outbox_store.reserve import Contradicted, NewReservation, Won, reserve
from outbox_store.settle import ReceiptDraft, Settled, Settlement, settle
from outbox_store.sweep import Lapse, lapse

UNKNOWN, REJECTED, DEFERRED, UNSENT, SUCCEEDED = (
    Outcome.UNKNOWN,
    Outcome.REJECTED,
    Outcome.DEFERRED,
    Outcome.UNSENT,
    Outcome.SUCCEEDED,
)


async def sent(store: Store, **changes: Any) -> Claimed:
    """The first attempt of a new reservation."""
    row = store.world.row(**changes)
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    return await claimed(store.worker, row)


async def sent_again(store: Store, attempt: Claimed, connection: Connection | None = None) -> Claimed:
    """The next attempt of a reservation."""
    [again] = await claim(connection or store.worker, [replace(claim_of(NewRow(attempt)), resends_max=99)])
    assert isinstance(again, Claimed), again
    return again


class NewRow(NewReservation):
    """What `claim_of` asks of a row, taken from an attempt."""

    def __init__(self, attempt: Claimed) -> None:
        """Names the attempt's reservation."""
        object.__setattr__(self, "organization_id", attempt.organization_id)
        object.__setattr__(self, "id", attempt.reservation_id)


async def lapsed(
    store: Store, attempt: Claimed, connection: Connection | None = None, recover_seconds: float | None = 0.0
) -> None:
    """The sweep closes the attempt, whose lease is over."""
    await store.let_the_lease_lapse(attempt.attempt_id)
    assert await lapse(connection or store.worker, [lapse_of(attempt, recover_seconds)]) == [attempt.reservation_id]


def lapse_of(attempt: Claimed, recover_seconds: float | None = 0.0) -> Lapse:
    """The sweep's wish to close an attempt whose lease is over."""
    return Lapse(
        organization_id=attempt.organization_id,
        reservation_id=attempt.reservation_id,
        attempt_id=attempt.attempt_id,
        settle_seconds=120.0,
        recover_seconds=recover_seconds,
    )


async def settle_all(connection: Connection, rows: Sequence[Settlement]) -> list[Settled | Failed]:
    """Settle with the product's bound of tries."""
    return await settle(connection, rows, tries_max=TRIES_MAX)


async def test_a_success_closes_the_reservation_with_its_receipt(store: Store) -> None:
    """One transaction writes receipt, state, closed attempt, erased input, kept result and ledger entry, with Postgres's time."""
    attempt = await sent(store, decision={"decision": "allow"}, reference="order-1")
    settlement = settlement_of(
        attempt,
        SUCCEEDED,
        provider_status=200,
        provider_seconds=0.25,
        provider_key="obx_key",
        variance={"asked": {"amount": 1200}, "reported": {"amount": 1100}},
    )
    assert settlement.receipt is not None
    assert await settle_all(store.worker, [settlement]) == [Settled(verdict="settled", state=State.SUCCEEDED)]
    record, closed = await store.reservation(attempt.reservation_id), await store.attempt(attempt.attempt_id)
    assert (record["state"], record["live"], record["due_at"], record["open_attempt_id"]) == ("succeeded", True, None, None)
    assert (record["external_reference"], record["settled_attempt_id"]) == (
        settlement.receipt.external_reference,
        attempt.attempt_id,
    )
    assert (closed["outcome"], closed["closed_by"], closed["provider_status"], closed["provider_seconds"]) == (
        "succeeded",
        "answer",
        200,
        0.25,
    )
    assert (closed["provider_key"], closed["provider_request_id"], closed["closed_at"]) == (
        "obx_key",
        "req_1",
        record["settled_at"],
    )
    receipt = await store.owner.fetchrow("select * from receipts where reservation_id = $1", attempt.reservation_id)
    assert receipt is not None
    assert (receipt["id"], receipt["attempt_id"], receipt["confidence"]) == (
        settlement.receipt.id,
        attempt.attempt_id,
        "confirmed",
    )
    assert (receipt["amount"], receipt["currency"], receipt["owner"], receipt["connection"]) == (
        1200,
        "EUR",
        "payments",
        "stripe",
    )
    assert (receipt["policy"], receipt["actor_chain"], receipt["provider_request_id"]) == (
        {"decision": "allow"},
        ["agent:tests"],
        "req_1",
    )
    assert [evidence["kind"] for evidence in receipt["evidence"]] == ["answer"]
    assert all("at" in evidence for evidence in receipt["evidence"])
    assert await store.count("sealed_inputs") == 0
    kept = await store.owner.fetch(
        "select kind, sealed, expires_at from sealed_results where reservation_id = $1", attempt.reservation_id
    )
    assert [tuple(row) for row in kept] == [("result", b"sealed result", None)]
    assert (await store.entries(attempt.reservation_id))[2:] == [
        ("settled", "executing", "succeeded"),
        ("variance", "executing", "succeeded"),
    ]


CASES = [
    # outcome, stored, class, state after a first attempt, state after a resend while the first is unknown
    (SUCCEEDED, False, "A", "succeeded", "succeeded"),
    (SUCCEEDED, False, "C", "succeeded", "succeeded"),
    (REJECTED, False, "A", "failed", "in_doubt"),
    (REJECTED, True, "A", "failed", "failed"),
    (REJECTED, False, "B", "failed", "in_doubt"),
    (REJECTED, True, "B", "failed", "in_doubt"),
    (REJECTED, True, "C", "failed", "in_doubt"),
    (DEFERRED, False, "A", "reserved", "in_doubt"),
    (DEFERRED, False, "C", "reserved", "in_doubt"),
    (UNSENT, False, "A", "reserved", "in_doubt"),
    (UNSENT, False, "B", "reserved", "in_doubt"),
    (UNKNOWN, False, "A", "in_doubt", "in_doubt"),
    (UNKNOWN, False, "C", "in_doubt", "in_doubt"),
]


@pytest.mark.parametrize("doubt", [None, "answer", "lapse"], ids=["first attempt", "after an unknown answer", "after a lapse"])
async def test_an_outcome_speaks_of_its_own_attempt_only(store: Store, doubt: str | None) -> None:
    """Each outcome moves a first attempt as the table says; while an earlier attempt is unknown only a success, or a refusal that class A stores, ends the doubt."""
    for outcome, stored, guarantee_class, first, again in CASES:
        await one_outcome(store, outcome, stored, guarantee_class, first, again, doubt)


async def one_outcome(
    store: Store, outcome: Outcome, stored: bool, guarantee_class: str, first: str, again: str, doubt: str | None
) -> None:
    """One row of the table: the attempt, its outcome, and all that must have followed."""
    attempt = await sent(store, guarantee_class=guarantee_class)
    if doubt == "answer":
        await settled(store.worker, attempt, UNKNOWN)
    elif doubt == "lapse":
        await lapsed(store, attempt)
    if doubt is not None:
        attempt = await sent_again(store, attempt)
    after = State(first if doubt is None else again)
    result = await settled(store.worker, attempt, outcome, stored=stored)
    assert result == Settled(verdict="settled", state=after)
    record = await store.reservation(attempt.reservation_id)
    assert record["state"] == after.value
    assert record["live"] == (after is not State.FAILED)
    assert record["open_attempt_id"] is None
    assert record["refusal_stored"] == (after is State.FAILED and stored)
    assert record["unknown_attempts"] == (doubt is not None) + (outcome is UNKNOWN)
    assert record["tries"] == (outcome in (UNSENT, DEFERRED))
    assert (record["doubt_since"] is not None) == (after is State.IN_DOUBT or doubt is not None)
    closed = await store.attempt(attempt.attempt_id)
    assert (closed["outcome"], closed["closed_by"], closed["stored"]) == (outcome.value, "answer", stored)
    of = f"reservation_id = '{attempt.reservation_id}'"
    assert await store.count("sealed_inputs", of) == (after in (State.RESERVED, State.IN_DOUBT))
    assert await store.count("receipts", of) == (after is State.SUCCEEDED)
    kind = {"succeeded": "settled", "failed": "settled", "in_doubt": "in-doubt", "reserved": "reserved"}[after.value]
    assert (await store.entries(attempt.reservation_id))[-1] == (kind, "executing", after.value)


async def test_the_same_settlement_again_is_already_there(store: Store) -> None:
    """After a lost commit answer each settlement finds its own outcome, whatever the outcome was, and adds no row."""
    settlements = [settlement_of(await sent(store), outcome, sealed_failure=b"words") for outcome in Outcome]
    first = await settle_all(store.worker, settlements)
    tables = ("ledger_entries", "receipts", "sealed_results", "attempts", "contradictions", "open_reservations")
    before = [await store.count(table) for table in tables]
    again = await settle_all(store.worker, settlements)
    for one, other in zip(first, again, strict=True):
        assert isinstance(one, Settled)
        assert one.verdict == "settled"
        assert other == Settled(verdict="already", state=one.state)
    assert [await store.count(table) for table in tables] == before


async def test_the_same_settlement_while_its_first_sending_still_runs(store: Store) -> None:
    """A settlement that waits for its own lost first sending adds nothing to it."""
    attempt = await sent(store)
    settlement = settlement_of(attempt, SUCCEEDED)
    [verdict] = await store.beside(lambda holder: settle_all(holder, [settlement]), lambda other: settle_all(other, [settlement]))
    assert isinstance(verdict, Settled)
    assert verdict.state is State.SUCCEEDED
    assert verdict.verdict in ("already", "evidence")
    assert await store.count("receipts") == 1
    assert len(await store.entries(attempt.reservation_id)) == 3


async def test_an_unknown_attempt_settled_again_after_its_resend_is_already_there(store: Store) -> None:
    """A settlement sent again still finds its own outcome when a newer attempt has been opened and closed meanwhile."""
    first = await sent(store)
    settlement = settlement_of(first, UNKNOWN)
    await settle_all(store.worker, [settlement])
    second = await sent_again(store, first)
    assert await settle_all(store.worker, [settlement]) == [Settled(verdict="already", state=State.EXECUTING)]
    await settled(store.worker, second, SUCCEEDED)
    entries = await store.entries(first.reservation_id)
    assert await settle_all(store.worker, [settlement]) == [Settled(verdict="already", state=State.SUCCEEDED)]
    assert await store.entries(first.reservation_id) == entries


@pytest.mark.parametrize("doubt", ["in_doubt", "executing"])
async def test_a_late_success_settles_a_doubt_and_closes_a_newer_attempt(store: Store, doubt: str) -> None:
    """A receipt of the first attempt settles its reservation however late; a newer open attempt is closed with it, as unknown."""
    first = await sent(store)
    await lapsed(store, first)
    second = await sent_again(store, first) if doubt == "executing" else None
    result = await settled(store.worker, first, SUCCEEDED)
    assert result == Settled(verdict="settled", state=State.SUCCEEDED)
    record = await store.reservation(first.reservation_id)
    assert (record["settled_attempt_id"], record["open_attempt_id"]) == (first.attempt_id, None)
    assert (await store.attempt(first.attempt_id))["outcome"] == "succeeded"
    if second is not None:
        closed = await store.attempt(second.attempt_id)
        assert (closed["outcome"], closed["closed_by"]) == ("unknown", "other-attempt")
        for outcome in (UNKNOWN, REJECTED, UNSENT):
            assert (await settled(store.worker, second, outcome)).verdict == "evidence"
        same = await settled(store.worker, second, SUCCEEDED)
        assert same == Settled(verdict="evidence", state=State.SUCCEEDED)
    assert await store.count("receipts") == 1
    assert (await store.reservation(first.reservation_id))["settled_attempt_id"] == first.attempt_id


async def test_a_late_unsent_of_the_newest_attempt_frees_it(store: Store) -> None:
    """After a lapse "nothing was sent" from the newest attempt closes it as unsent: nothing is unknown any more, so it is sent again."""
    attempt = await sent(store)
    await lapsed(store, attempt)
    assert await settled(store.worker, attempt, UNSENT) == Settled(verdict="settled", state=State.RESERVED)
    record = await store.reservation(attempt.reservation_id)
    assert (record["unknown_attempts"], record["tries"], record["possible_send_at"]) == (0, 1, None)
    assert (record["doubt_since"], record["doubt_cause"], record["absence_counts_at"]) == (None, None, None)
    closed = await store.attempt(attempt.attempt_id)
    assert (closed["outcome"], closed["closed_by"]) == ("unsent", "answer")
    assert (await store.entries(attempt.reservation_id))[-1] == ("reserved", "in_doubt", "reserved")
    second = await sent_again(store, attempt)
    assert second.resend is False
    assert second.resends == 0


async def test_a_late_unsent_leaves_the_doubt_about_an_earlier_attempt(store: Store) -> None:
    """A lapsed resend that turns out unsent takes back its own doubt and no other."""
    first = await sent(store)
    await settled(store.worker, first, UNKNOWN)
    second = await sent_again(store, first)
    await lapsed(store, second)
    assert (await store.reservation(first.reservation_id))["unknown_attempts"] == 2
    assert await settled(store.worker, second, UNSENT) == Settled(verdict="settled", state=State.IN_DOUBT)
    record = await store.reservation(first.reservation_id)
    assert (record["unknown_attempts"], record["possible_send_at"] is not None) == (1, True)


@pytest.mark.parametrize("outcome", [UNSENT, REJECTED, DEFERRED, UNKNOWN])
@pytest.mark.parametrize("open_attempt", [True, False])
async def test_what_an_older_attempt_reports_late_is_evidence(store: Store, outcome: Outcome, open_attempt: bool) -> None:
    """Whatever but a success an older, lapsed attempt reports changes neither the state nor the newer attempt; it is noted once."""
    first = await sent(store)
    await lapsed(store, first)
    second = await sent_again(store, first)
    if not open_attempt:
        await lapsed(store, second)
    before = await store.reservation(first.reservation_id)
    settlement = settlement_of(first, outcome, provider_status=402)
    assert await settle_all(store.worker, [settlement]) == [Settled(verdict="evidence", state=State(before["state"]))]
    after = await store.reservation(first.reservation_id)
    assert {**after, "due_seconds": 0, "absence_seconds": 0} == {**before, "due_seconds": 0, "absence_seconds": 0}
    assert (await store.attempt(second.attempt_id))["outcome"] == (None if open_attempt else "unknown")
    noted = await store.attempt(first.attempt_id)
    assert (noted["outcome"], noted["closed_by"], noted["late_outcome"]) == ("unknown", "lapse", outcome.value)
    entries = await store.entries(first.reservation_id)
    assert entries[-1] == ("evidence", before["state"], before["state"])
    assert (await settle_all(store.worker, [settlement])) == [Settled(verdict="already", state=State(before["state"]))]
    assert await store.entries(first.reservation_id) == entries


@pytest.mark.parametrize("outcome", [REJECTED, DEFERRED])
async def test_a_late_refusal_of_the_newest_attempt_is_evidence(store: Store, outcome: Outcome) -> None:
    """Only a success and "nothing was sent" may come late: a refusal leaves the doubt to recovery."""
    attempt = await sent(store)
    await lapsed(store, attempt)
    assert await settled(store.worker, attempt, outcome, stored=outcome is REJECTED) == Settled(
        verdict="evidence", state=State.IN_DOUBT
    )
    assert (await store.reservation(attempt.reservation_id))["unknown_attempts"] == 1


async def test_an_unknown_of_a_lapsed_attempt_is_noted_with_what_was_seen(store: Store) -> None:
    """The answer of an attempt that lapsed meanwhile is evidence, not the sweep's own word repeated."""
    attempt = await sent(store)
    await lapsed(store, attempt)
    assert (await settled(store.worker, attempt, UNKNOWN, provider_status=500)).verdict == "evidence"
    detail = await store.one(
        "select detail from ledger_entries where reservation_id = $1 and kind = 'evidence'", attempt.reservation_id
    )
    assert detail["provider_status"] == 500


@pytest.mark.parametrize("when", ["in time", "after the lapse", "while a resend is open"])
async def test_a_write_that_left_late_freezes_the_doubt(store: Store, when: str) -> None:
    """A late write leaves the doubt to a proof or a person, also when the attempt was closed before the sender could say so.

    A stopped process wakes after its lease, writes, and only then reports: nothing may be sent again on its account.
    """
    attempt = await sent(store)
    newest = attempt
    if when != "in time":
        await lapsed(store, attempt)
    if when == "while a resend is open":
        newest = await sent_again(store, attempt)
    late = settlement_of(attempt, UNKNOWN, late_write=True, recover_seconds=None if when == "in time" else 0.0)
    [verdict] = await settle_all(store.worker, [late])
    assert isinstance(verdict, Settled)
    assert verdict.verdict == ("settled" if when == "in time" else "evidence")
    if newest is not attempt:
        assert verdict.state is State.EXECUTING
        await settled(store.worker, newest, UNSENT, recover_seconds=0.0)
    record = await store.reservation(attempt.reservation_id)
    assert (record["state"], record["late_write"]) == ("in_doubt", True)
    assert record["due_seconds"] == float("inf")
    assert (await store.attempt(attempt.attempt_id))["late_write"] is True
    await store.owner.execute("update open_reservations set due_at = now() where reservation_id = $1", attempt.reservation_id)
    [refused] = await claim(store.worker, [claim_of(NewRow(attempt))])
    assert refused == NotClaimed(reservation_id=attempt.reservation_id, reason="no-resend")
    assert (await settle_all(store.worker, [late]))[0] == Settled(verdict="already", state=State.IN_DOUBT)
    assert await settled(store.worker, attempt, SUCCEEDED) == Settled(verdict="settled", state=State.SUCCEEDED)


@pytest.mark.parametrize("when", ["in time", "after the lapse", "while a resend is open", "as a resend lapses unseen"])
async def test_a_late_write_puts_off_the_time_from_which_an_absence_counts(store: Store, when: str) -> None:
    """After a late write is reported an absence counts a settle time later, however long ago the lease was over.

    Found by the model: a process stops, its lease lapses, the settle time is nearly over, it wakes and writes. A person who looks at
    the provider a moment later sees nothing yet.
    """
    attempt = await sent(store)
    newest = attempt
    if when != "in time":
        await lapsed(store, attempt)
        await store.owner.execute("update reservations set absence_counts_at = now() where id = $1", attempt.reservation_id)
    if "resend" in when:
        newest = await sent_again(store, attempt)
    if when == "as a resend lapses unseen":
        await store.owner.execute("update attempts set lease_until = now() - interval '1 hour' where id = $1", newest.attempt_id)
    await settled(store.worker, attempt, UNKNOWN, late_write=True, settle_seconds=120.0)
    if when == "while a resend is open":
        await settled(store.worker, newest, UNSENT, settle_seconds=0.0)
    elif newest is not attempt:
        assert await lapse(store.worker, [lapse_of(newest)]) == [attempt.reservation_id]
    record = await store.reservation(attempt.reservation_id)
    assert record["state"] == "in_doubt"
    assert record["absence_seconds"] == pytest.approx(130.0 if when == "in time" else 120.0, abs=5.0)


async def test_a_success_of_an_attempt_that_was_thought_absent_is_not_lost(store: Store) -> None:
    """An effect that look-ups overlooked settles its reservation all the same, when its attempt reports it while the next one is open."""
    first = await sent(store)
    await settled(store.worker, first, UNKNOWN)
    await store.owner.execute("update attempts set proven_absent = true where id = $1", first.attempt_id)
    await store.owner.execute(
        "update reservations set state = 'reserved', unknown_attempts = 0, possible_send_at = null where id = $1",
        first.reservation_id,
    )
    await store.owner.execute(
        "insert into ledger_entries (organization_id, environment_id, kind, reservation_id, from_state, to_state, actor_chain) "
        "values ($1, $2, 'absent', $3, 'in_doubt', 'reserved', '[]')",
        *(store.world.organization_id, store.world.environment_id, first.reservation_id),
    )
    second = await sent_again(store, first)
    assert await settled(store.worker, first, SUCCEEDED) == Settled(verdict="settled", state=State.SUCCEEDED)
    closed = [await store.attempt(attempt.attempt_id) for attempt in (first, second)]
    assert [(record["outcome"], record["proven_absent"]) for record in closed] == [("succeeded", False), ("unknown", False)]


async def test_a_late_write_that_was_refused_ends_as_its_refusal(store: Store) -> None:
    """A known answer says more than the time at which its request left."""
    attempt = await sent(store)
    assert (await settled(store.worker, attempt, REJECTED, late_write=True)).state is State.FAILED


async def test_a_late_unsent_does_not_end_a_late_write(store: Store) -> None:
    """ "Nothing was sent" cannot take back a write that was seen to leave late."""
    attempt = await sent(store)
    await lapsed(store, attempt)
    await settled(store.worker, attempt, UNKNOWN, late_write=True)
    assert (await settled(store.worker, attempt, UNSENT)) == Settled(verdict="evidence", state=State.IN_DOUBT)


@pytest.mark.parametrize("changes", [{"epoch": 2}, {"attempt_id": uuid4()}], ids=["epoch", "attempt"])
@pytest.mark.parametrize("outcome", [REJECTED, UNSENT, DEFERRED, UNKNOWN])
async def test_an_attempt_is_compared_by_its_id_and_its_epoch(store: Store, outcome: Outcome, changes: dict[str, Any]) -> None:
    """A settlement of another epoch, or of an attempt that is not the open one, leaves the open attempt alone."""
    attempt = await sent(store)
    assert await settled(store.worker, attempt, outcome, **changes) == Settled(verdict="evidence", state=State.EXECUTING)
    record = await store.reservation(attempt.reservation_id)
    assert (record["state"], record["open_attempt_id"]) == ("executing", attempt.attempt_id)
    assert await settled(store.worker, attempt, outcome) != Settled(verdict="evidence", state=State.EXECUTING)


async def test_a_late_unsent_of_another_epoch_is_evidence(store: Store) -> None:
    """What an earlier epoch says was never sent may have been, in the lost part of it."""
    attempt = await sent(store)
    await lapsed(store, attempt)
    assert (await settled(store.worker, attempt, UNSENT, epoch=2)).verdict == "evidence"


async def test_an_attempt_of_another_reservation_is_never_touched(store: Store) -> None:
    """A settlement that names an attempt of another reservation changes nothing, not even with a receipt."""
    one, other = await sent(store), await sent(store)
    for outcome in (UNKNOWN, SUCCEEDED):
        [verdict] = await settle_all(store.worker, [settlement_of(one, outcome, attempt_id=other.attempt_id)])
        assert isinstance(verdict, Failed) == (outcome is SUCCEEDED)
        foreign = await store.attempt(other.attempt_id)
        assert (foreign["outcome"], foreign["late_outcome"]) == (None, None)
    assert (await store.reservation(one.reservation_id))["state"] == "executing"


async def test_settling_what_does_not_exist_is_missing(store: Store) -> None:
    """A reservation that was lost with its rows is said to be missing, in its own place."""
    attempt = await sent(store)
    gone = settlement_of(attempt, UNKNOWN, reservation_id=uuid4())
    assert await settle_all(store.worker, [gone, settlement_of(attempt, UNKNOWN)]) == [
        Settled(verdict="missing", state=None),
        Settled(verdict="settled", state=State.IN_DOUBT),
    ]
    assert await settle_all(store.worker, []) == []


@pytest.mark.parametrize("closed", ["failed", "voided"])
async def test_proof_against_what_was_settled_is_a_contradiction(store: Store, closed: str) -> None:
    """A success of a refused or withdrawn reservation is noted once, changes no state and blocks the key."""
    attempt = await sent(store, key=f"refund:pi_{uuid4().hex}")
    await settled(store.worker, attempt, REJECTED if closed == "failed" else UNSENT)
    if closed == "voided":
        await store.owner.execute("update reservations set not_after = now() where id = $1", attempt.reservation_id)
        await claim(store.worker, [claim_of(NewRow(attempt))])
    proof = settlement_of(attempt, SUCCEEDED)
    assert proof.receipt is not None
    for _ in range(2):
        assert await settle_all(store.worker, [proof]) == [Settled(verdict="contradiction", state=State(closed))]
    contradictions = await store.owner.fetch("select * from contradictions where reservation_id = $1", attempt.reservation_id)
    assert [(row["attempt_id"], row["external_reference"], row["closed_at"]) for row in contradictions] == [
        (attempt.attempt_id, proof.receipt.external_reference, None)
    ]
    assert [kind for kind, _, _ in await store.entries(attempt.reservation_id)].count("contradiction") == 1
    assert await store.count("receipts") == 0
    again = store.world.row(attempt.operation_key)
    [verdict] = await reserve(store.api, [again])
    assert isinstance(verdict, Contradicted)


@pytest.mark.parametrize("outcome", [UNSENT, DEFERRED])
@pytest.mark.parametrize("newest", [True, False], ids=["of the newest attempt", "of an earlier one"])
async def test_a_success_of_what_is_reserved_again_settles_it(store: Store, outcome: Outcome, newest: bool) -> None:
    """It has its receipt, its input is gone, nobody looks at it any more, and it is never sent again."""
    first = await sent(store)
    await settled(store.worker, first, outcome)
    last = await sent_again(store, first)
    await settled(store.worker, last, outcome)
    proof = settlement_of(last if newest else first, SUCCEEDED, late_write=True)
    assert proof.receipt is not None
    assert await settle_all(store.worker, [proof]) == [Settled(verdict="settled", state=State.SUCCEEDED)]
    assert await settle_all(store.worker, [proof]) == [Settled(verdict="already", state=State.SUCCEEDED)]
    record = await store.reservation(first.reservation_id)
    assert (record["external_reference"], record["settled_attempt_id"], record["tries"]) == (
        proof.receipt.external_reference,
        proof.attempt_id,
        2,
    )
    assert record["due_seconds"] is None
    assert await store.one("select confidence from receipts where attempt_id = $1", proof.attempt_id) == "confirmed"
    assert [(await store.attempt(attempt.attempt_id))["outcome"] for attempt in (first, last)].count("succeeded") == 1
    assert await store.count("sealed_inputs", f"reservation_id = '{first.reservation_id}'") == 0
    assert (await store.entries(first.reservation_id))[-1] == ("settled", "reserved", "succeeded")
    assert await store.count("contradictions") == 0
    assert await claim(store.worker, [claim_of(NewRow(first))]) == [
        NotClaimed(reservation_id=first.reservation_id, reason="gone")
    ]


@pytest.mark.parametrize("whose", ["nobody's", "another reservation's"])
async def test_a_success_that_speaks_of_no_attempt_of_what_is_reserved_settles_nothing(store: Store, whose: str) -> None:
    """Neither what was never sent, nor what was, is settled by an attempt that it has not: nothing is written at all."""
    never, again = store.world.row(), await sent(store)
    assert await reserve(store.api, [never]) == [Won(id=never.id)]
    await settled(store.worker, again, UNSENT)
    foreign = uuid4() if whose == "nobody's" else (await sent(store)).attempt_id
    for id in (never.id, again.reservation_id):
        before = await store.reservation(id)
        proof = settlement_of(again, SUCCEEDED, reservation_id=id, attempt_id=foreign)
        assert await settle_all(store.worker, [proof]) == [Settled(verdict="unknown-attempt", state=State.RESERVED)]
        after = await store.reservation(id)
        assert (after["state"], after["changed_at"]) == ("reserved", before["changed_at"])
    assert await store.count("receipts") == 0
    assert await store.count("contradictions") == 0


@pytest.mark.parametrize("outcome", [REJECTED, DEFERRED, UNKNOWN])
async def test_what_else_is_told_of_what_is_reserved_again_is_evidence(store: Store, outcome: Outcome) -> None:
    """Only a success counts while nothing is under way: a refusal, a deferral or an unknown moves nothing."""
    first = await sent(store)
    await settled(store.worker, first, UNSENT)
    before = await store.reservation(first.reservation_id)
    assert await settled(store.worker, first, outcome) == Settled(verdict="evidence", state=State.RESERVED)
    after = await store.reservation(first.reservation_id)
    assert (after["state"], after["tries"], after["changed_at"]) == ("reserved", 1, before["changed_at"])
    attempt = await store.attempt(first.attempt_id)
    assert (attempt["outcome"], attempt["late_outcome"]) == ("unsent", outcome)


@pytest.mark.parametrize("same_attempt", [True, False])
async def test_two_references_for_one_reservation_are_a_contradiction(store: Store, same_attempt: bool) -> None:
    """A second effect under another reference is never taken for the first one, whichever attempt brings it."""
    first = await sent(store)
    await settled(store.worker, first, UNKNOWN)
    second = await sent_again(store, first)
    await settled(store.worker, second, SUCCEEDED)
    proof = settlement_of(second if same_attempt else first, SUCCEEDED)
    assert proof.receipt is not None
    proof = replace(proof, receipt=replace(proof.receipt, external_reference="re_another"))
    assert await settle_all(store.worker, [proof]) == [Settled(verdict="contradiction", state=State.SUCCEEDED)]
    assert await store.count("receipts") == 1
    assert await store.count("contradictions") == 1


async def test_the_same_reference_of_another_attempt_is_evidence(store: Store) -> None:
    """Two attempts that met one effect (a replay under the provider key) prove the same thing."""
    first = await sent(store)
    await settled(store.worker, first, UNKNOWN)
    second = await sent_again(store, first)
    await settled(store.worker, second, SUCCEEDED)
    assert await settled(store.worker, first, SUCCEEDED) == Settled(verdict="evidence", state=State.SUCCEEDED)
    assert await settled(store.worker, first, SUCCEEDED) == Settled(verdict="already", state=State.SUCCEEDED)
    assert await store.count("contradictions") == 0


async def test_an_absence_counts_from_the_end_of_the_last_lease(store: Store) -> None:
    """The doubt carries the time from which an absence counts: the lease's end or the answer's time, whichever is later, plus the settle time."""
    answered, over = await sent(store), await sent(store)
    await settled(store.worker, answered, UNKNOWN, settle_seconds=100.0)
    assert 109.0 < (await store.reservation(answered.reservation_id))["absence_seconds"] <= 110.0
    await store.let_the_lease_lapse(over.attempt_id)
    await settled(store.worker, over, UNKNOWN, settle_seconds=100.0)
    assert 99.0 < (await store.reservation(over.reservation_id))["absence_seconds"] <= 100.0
    second = await sent_again(store, answered)
    await settled(store.worker, second, UNKNOWN, settle_seconds=1.0)
    assert (await store.reservation(answered.reservation_id))["absence_seconds"] > 100.0


async def test_a_new_doubt_has_its_own_beginning(store: Store) -> None:
    """A doubt that ended as unsent leaves nothing behind; the next one starts when it starts."""
    attempt = await sent(store)
    await lapsed(store, attempt)
    await store.owner.execute(
        "update reservations set doubt_since = now() - interval '1 hour' where id = $1", attempt.reservation_id
    )
    await settled(store.worker, attempt, UNSENT)
    second = await sent_again(store, attempt)
    await settled(store.worker, second, UNKNOWN, reason="read timeout")
    record = await store.reservation(attempt.reservation_id)
    assert record["doubt_since"] == record["changed_at"]
    assert record["doubt_cause"] == "read timeout"


async def test_recovery_is_due_when_it_was_said_to_be(store: Store) -> None:
    """A doubt is looked at after its recovery's pause, or left to a person where there is none; a stored failure is remembered."""
    soon, never = await sent(store), await sent(store)
    await settled(store.worker, soon, UNKNOWN, recover_seconds=60.0)
    await settled(store.worker, never, UNKNOWN, recover_seconds=None, stored_failure=True)
    assert 59.0 < (await store.reservation(soon.reservation_id))["due_seconds"] <= 60.0
    record = await store.reservation(never.reservation_id)
    assert record["due_seconds"] == float("inf")
    assert record["stored_failure"] is True


async def test_the_input_lives_until_settlement_and_the_words_of_a_failure_for_a_day(store: Store) -> None:
    """Inputs are erased at settlement and not before; results stay; the provider's words have an end, renewed by later words."""
    attempt = await sent(store)
    await settled(store.worker, attempt, UNKNOWN, sealed_failure=b"first words")
    assert await store.count("sealed_inputs") == 1
    second = await sent_again(store, attempt)
    await settled(store.worker, second, UNKNOWN, sealed_failure=b"second words")
    words = await store.owner.fetchrow(
        "select *, extract(epoch from expires_at - now())::float8 as seconds from sealed_results where reservation_id = $1",
        attempt.reservation_id,
    )
    assert words is not None
    assert (words["kind"], words["sealed"]) == ("failure", b"second words")
    assert 86390.0 < words["seconds"] <= 86400.0
    await settled(store.worker, await sent_again(store, attempt), SUCCEEDED)
    assert await store.count("sealed_inputs") == 0
    assert await store.count("sealed_results", "kind = 'result' and expires_at is null") == 1


NOT_STORABLE: list[tuple[dict[str, Any], str | None]] = [
    ({"external_reference": ""}, "receipts_external_reference_check"),
    ({"external_reference": "é" * 501}, "receipts_external_reference_check"),
    ({"external_reference": "a\x00b"}, None),
    ({"external_reference": "a\ud800b"}, None),
    ({"evidence": [{"kind": "answer", "detail": "\ud800"}]}, None),
    ({"evidence": [{"kind": "answer", "detail": "\x00"}]}, None),
    ({"confidence": "sure"}, "receipts_confidence_check"),
]


async def test_an_answer_that_cannot_be_stored_takes_no_other_along(store: Store) -> None:
    """What a provider answers may not fit the schema; its own settlement fails and is then written as unknown, the others stand."""
    for changes, constraint in NOT_STORABLE:
        attempts = [await sent(store) for _ in range(3)]
        settlements = [settlement_of(attempt, SUCCEEDED) for attempt in attempts]
        assert settlements[1].receipt is not None
        settlements[1] = replace(settlements[1], receipt=replace(settlements[1].receipt, **changes))
        verdicts = await settle_all(store.worker, settlements)
        assert isinstance(verdicts[1], Failed), changes
        assert verdicts[1].constraint == constraint
        assert verdicts[0] == verdicts[2] == Settled(verdict="settled", state=State.SUCCEEDED)
        assert (await settled(store.worker, attempts[1], UNKNOWN)).state is State.IN_DOUBT


async def test_a_provider_code_that_is_no_code_is_refused(store: Store) -> None:
    """Foreign text does not enter the ledger as a code."""
    attempt = await sent(store)
    [verdict] = await settle_all(store.worker, [settlement_of(attempt, REJECTED, provider_code="Card of Jane Doe declined")])
    assert isinstance(verdict, Failed)
    await settled(store.worker, attempt, REJECTED, provider_code="card_declined")
    assert (await store.reservation(attempt.reservation_id))["provider_code"] == "card_declined"


async def test_one_reservation_in_several_settlements_of_one_array(store: Store) -> None:
    """Settlements of one reservation in one array happen one after the other, in their order."""
    first, other = await sent(store), await sent(store)
    verdicts = await settle_all(
        store.worker,
        [
            settlement_of(first, UNKNOWN),
            settlement_of(other, REJECTED),
            settlement_of(first, SUCCEEDED),
            settlement_of(first, UNSENT),
        ],
    )
    assert verdicts == [
        Settled(verdict="settled", state=State.IN_DOUBT),
        Settled(verdict="settled", state=State.FAILED),
        Settled(verdict="settled", state=State.SUCCEEDED),
        Settled(verdict="evidence", state=State.SUCCEEDED),
    ]


@pytest.mark.parametrize("outcome", [REJECTED, UNKNOWN, DEFERRED, UNSENT])
@pytest.mark.parametrize("late", [False, True], ids=["before the lapse was seen", "after it"])
async def test_a_late_answer_that_waited_for_a_resend_leaves_it_alone(store: Store, outcome: Outcome, late: bool) -> None:
    """An answer of the first attempt that waits for the row while the lapse and a resend are committed says nothing of the resend.

    The waiting statement sees the reservation as it is, but its attempts as they were: one attempt, still open.
    """
    first = await sent(store)
    if late:
        await lapsed(store, first)
    second: list[Claimed] = []

    async def resend(holder: Connection) -> None:
        if not late:
            await holder.execute("update attempts set lease_until = now() - interval '1 second' where id = $1", first.attempt_id)
            assert await lapse(holder, [lapse_of(first)]) == [first.reservation_id]
        second.append(await sent_again(store, first, holder))

    verdicts = await store.beside(resend, lambda other: settle_all(other, [settlement_of(first, outcome)]))
    assert verdicts == [Settled(verdict="evidence", state=State.EXECUTING)]
    record = await store.reservation(first.reservation_id)
    assert (record["state"], record["open_attempt_id"], record["unknown_attempts"]) == ("executing", second[0].attempt_id, 1)
    assert (await store.attempt(second[0].attempt_id))["outcome"] is None
    assert (await store.attempt(first.attempt_id))["outcome"] == "unknown"
    assert (await settled(store.worker, second[0], SUCCEEDED)).state is State.SUCCEEDED


@pytest.mark.parametrize("late", [False, True], ids=["before the lapse was seen", "after it"])
async def test_a_late_success_that_waited_for_a_resend_closes_it(store: Store, late: bool) -> None:
    """A receipt of the first attempt that waits while a resend is claimed looks again until it sees that attempt, and closes it."""
    first = await sent(store)
    if late:
        await lapsed(store, first)
    second: list[Claimed] = []

    async def resend(holder: Connection) -> None:
        if not late:
            await holder.execute("update attempts set lease_until = now() - interval '1 second' where id = $1", first.attempt_id)
            await lapse(holder, [lapse_of(first)])
        second.append(await sent_again(store, first, holder))

    verdicts = await store.beside(resend, lambda other: settle_all(other, [settlement_of(first, SUCCEEDED)]))
    assert verdicts == [Settled(verdict="settled", state=State.SUCCEEDED)]
    assert (await store.attempt(first.attempt_id))["outcome"] == "succeeded"
    closed = await store.attempt(second[0].attempt_id)
    assert (closed["outcome"], closed["closed_by"]) == ("unknown", "other-attempt")
    assert (await store.reservation(first.reservation_id))["settled_attempt_id"] == first.attempt_id


async def test_a_success_of_what_was_thought_unsent_waits_for_the_next_sending(store: Store) -> None:
    """The claim came first: the success closes the attempt that it opened, although it could not see it."""
    first = await sent(store)
    await settled(store.worker, first, UNSENT)
    second: list[Claimed] = []

    async def sends(holder: Connection) -> None:
        second.append(await sent_again(store, first, holder))

    verdicts = await store.beside(sends, lambda other: settle_all(other, [settlement_of(first, SUCCEEDED)]))
    assert verdicts == [Settled(verdict="settled", state=State.SUCCEEDED)]
    closed = await store.attempt(second[0].attempt_id)
    assert (closed["outcome"], closed["closed_by"]) == ("unknown", "other-attempt")
    assert (await store.reservation(first.reservation_id))["settled_attempt_id"] == first.attempt_id


async def test_the_next_sending_waits_for_a_success_of_what_was_thought_unsent(store: Store) -> None:
    """The success came first: nothing is sent any more."""
    first = await sent(store)
    await settled(store.worker, first, UNSENT)

    async def succeeds(holder: Connection) -> None:
        await settled(holder, first, SUCCEEDED)

    verdicts = await store.beside(succeeds, lambda other: claim(other, [claim_of(NewRow(first))]))
    assert verdicts == [NotClaimed(reservation_id=first.reservation_id, reason="gone")]
    assert await store.count("attempts") == 1


async def test_a_late_write_that_waited_for_a_resend_freezes_it(store: Store) -> None:
    """A late write that is reported while a resend is claimed is remembered; the resend's own end leaves the doubt to a person."""
    first = await sent(store)
    await lapsed(store, first)
    second: list[Claimed] = []

    async def resend(holder: Connection) -> None:
        second.append(await sent_again(store, first, holder))

    late = settlement_of(first, UNKNOWN, late_write=True)
    assert await store.beside(resend, lambda other: settle_all(other, [late])) == [
        Settled(verdict="evidence", state=State.EXECUTING)
    ]
    await lapsed(store, second[0], recover_seconds=0.0)
    assert (await store.reservation(first.reservation_id))["due_seconds"] == float("inf")


async def test_an_answer_that_waited_for_the_lapse_of_its_own_attempt(store: Store) -> None:
    """A lapse that commits first wins: a refusal is evidence then, a success settles the doubt."""
    refused, succeeded = await sent(store), await sent(store)

    async def both_lapse(holder: Connection) -> None:
        for attempt in (refused, succeeded):
            await holder.execute(
                "update attempts set lease_until = now() - interval '1 second' where id = $1", attempt.attempt_id
            )
        assert len(await lapse(holder, [lapse_of(refused), lapse_of(succeeded)])) == 2

    verdicts = await store.beside(
        both_lapse, lambda other: settle_all(other, [settlement_of(refused, REJECTED), settlement_of(succeeded, SUCCEEDED)])
    )
    assert verdicts == [Settled(verdict="evidence", state=State.IN_DOUBT), Settled(verdict="settled", state=State.SUCCEEDED)]


async def test_a_lapse_that_waited_for_a_settlement_does_nothing(store: Store) -> None:
    """An attempt that is settled while the sweep waits for it is not in doubt."""
    attempt = await sent(store)
    await store.let_the_lease_lapse(attempt.attempt_id)
    moved = await store.beside(
        lambda holder: settle_all(holder, [settlement_of(attempt, SUCCEEDED)]), lambda other: lapse(other, [lapse_of(attempt)])
    )
    assert moved == []
    assert (await store.reservation(attempt.reservation_id))["state"] == "succeeded"


async def test_two_successes_at_once_leave_one_receipt(store: Store) -> None:
    """The answers of two attempts that settle at the same time leave one receipt; the second is evidence."""
    first = await sent(store)
    await lapsed(store, first)
    second = await sent_again(store, first)
    verdicts = await store.beside(
        lambda holder: settle_all(holder, [settlement_of(first, SUCCEEDED)]),
        lambda other: settle_all(other, [settlement_of(second, SUCCEEDED)]),
    )
    assert verdicts == [Settled(verdict="evidence", state=State.SUCCEEDED)]
    assert await store.count("receipts") == 1


def test_a_success_and_its_receipt_come_together() -> None:
    """A success without a receipt, or a receipt without a success, is refused before anything is sent."""
    draft = ReceiptDraft(
        id=UUID(int=1),
        provider="stripe",
        external_reference="re_1",
        confidence=Confidence.CONFIRMED,
        evidence=[],
        provider_request_id=None,
        sealed_result=None,
    )
    given: dict[str, Any] = {
        "organization_id": UUID(int=1),
        "reservation_id": UUID(int=2),
        "attempt_id": UUID(int=3),
        "epoch": 1,
        "reason": "x",
        "settle_seconds": 1.0,
        "again_seconds": 1.0,
        "recover_seconds": None,
    }
    with pytest.raises(ValueError, match="receipt"):
        Settlement(**given, outcome=SUCCEEDED)
    with pytest.raises(ValueError, match="receipt"):
        Settlement(**given, outcome=REJECTED, receipt=draft)
