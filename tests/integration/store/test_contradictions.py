"""What is kept of an effect that a closed reservation denies, and for whom."""

from dataclasses import replace
from uuid import uuid4

import pytest
from tests.integration.store.races import Store
from tests.integration.store.test_resolve import said as resolved
from tests.integration.store.test_resolve import told
from tests.integration.store.test_strategies import run_of
from tests.support.ledger import TRIES_MAX, claim_of, claimed, settled, settlement_of

from outbox_domain.reservation import Outcome, State
from outbox_store import contradictions, tool_contracts
from outbox_store.claim import ClaimedByClient, claim_by_client
from outbox_store.connection import Connection
from outbox_store.contradictions import Examined, Holder
from outbox_store.doubts import Where
from outbox_store.reserve import Contradicted, Held, NewReservation, Won, reserve
from outbox_store.settle import CONTRADICTIONS_MAX, Settled, settle


async def contradicted(store: Store, row: NewReservation) -> None:
    """It is refused, and its attempt tells of a success after all."""
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.REJECTED)
    assert (await settled(store.worker, attempt, Outcome.SUCCEEDED)).verdict == "contradiction"


def said(row: NewReservation, *, happened: bool = True) -> Examined:
    """A person's word."""
    return Examined(
        organization_id=row.organization_id,
        reservation_id=row.id,
        happened=happened,
        external_reference="re_1" if happened else None,
        actor_chain=["person:ada"],
        reason="looked",
        evidence=[{"kind": "person", "detail": {"by": "person:ada"}}],
    )


async def closed(connection: Connection, row: NewReservation) -> Holder | None:
    """Keep the effect, and close what contradicts the reservation."""
    holder = await contradictions.keep(connection, said(row), id=uuid4(), receipt_id=uuid4())
    await contradictions.close(connection, said(row), told_by=None if holder is None else holder.id)
    return holder


async def test_what_is_kept_is_what_was_asked_for(store: Store) -> None:
    """Of the same operation, run and input, settled by the attempt that the closed one has, and told to whoever asks again."""
    row = store.world.row(f"refund:{uuid4()}", occurrence=2, object_key=f"label:{uuid4()}", **await run_of(store))
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    await contradicted(store, row)
    holder = await closed(store.api, row)
    assert holder is not None
    same = (
        "project_id environment_id connection_id tool scope operation_key occurrence contract_version input_digest review_digest declared "
        "amount currency guarantee_class owner executor actor_id actor_chain run_id lineage generation"
    ).split()
    before, kept = await store.reservation(row.id), await store.reservation(holder.id)
    assert {name: kept[name] for name in same} == {name: before[name] for name in same}
    assert (kept["state"], kept["external_reference"], kept["settled_attempt_id"], kept["object_key"]) == (
        "succeeded",
        "re_1",
        before["last_attempt_id"],
        None,
    )
    assert await store.entries(holder.id) == [("settled", None, "succeeded")]
    assert (await store.entries(row.id))[-1] == ("examined", "failed", "failed")
    [held] = await reserve(store.api, [store.world.row(row.operation_key, occurrence=2, run_id=row.run_id, lineage=row.lineage)])
    assert isinstance(held, Held)
    assert (held.id, held.state) == (holder.id, State.SUCCEEDED)


async def test_a_clients_effect_is_kept(store: Store) -> None:
    """What a client carried out, and said first that it had not."""
    row = store.world.row(executor="client")
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    attempt = await claim_by_client(store.api, claim_of(row, executor="client", actor_id=row.actor_id))
    assert isinstance(attempt, ClaimedByClient)
    await settled(store.api, attempt, Outcome.UNSENT)
    assert (await settled(store.api, attempt, Outcome.SUCCEEDED)).verdict == "contradiction"
    holder = await closed(store.api, row)
    assert holder is not None
    assert (await store.reservation(holder.id))["executor"] == "client"


async def test_two_that_deny_one_effect(store: Store) -> None:
    """The key is refused until both are closed; the second finds the receipt that was kept for the first."""
    key = f"refund:{uuid4()}"
    first, second = store.world.row(key), store.world.row(key)
    assert await reserve(store.api, [first]) == [Won(id=first.id)]
    early = await claimed(store.worker, first)
    await settled(store.worker, early, Outcome.REJECTED)
    assert await reserve(store.api, [second]) == [Won(id=second.id)]
    late = await claimed(store.worker, second)
    await settled(store.worker, late, Outcome.REJECTED)
    for attempt in (early, late):
        assert (await settled(store.worker, attempt, Outcome.SUCCEEDED)).verdict == "contradiction"
    await contradictions.close(store.api, said(first, happened=False), told_by=None)
    [verdict] = await reserve(store.api, [store.world.row(key)])
    assert isinstance(verdict, Contradicted)
    holder = await closed(store.api, second)
    assert await closed(store.api, first) == holder
    assert await store.count("receipts") == 1


async def test_what_a_key_does_not_reach_takes_no_place(store: Store) -> None:
    """Whoever may see one tool is told of its contradictions, however many older ones there are of others."""
    tool = "stripe.customer.create"
    await tool_contracts.install(store.owner, store.world.organization_id, [(tool, 1, {"tool": tool})])
    older, newer = store.world.row(), store.world.row(tool=tool)
    for row in (older, newer):
        assert await reserve(store.api, [row]) == [Won(id=row.id)]
        await contradicted(store, row)
    for reaches, row in ((lambda *_: True, older), (lambda named, _: named == tool, newer)):
        [listed] = await contradictions.list_(
            store.api, store.world.organization_id, store.world.environment_id, Where(), reaches=reaches, limit=1
        )
        assert listed.reservation_id == row.id


async def test_references_that_are_made_up_are_bounded(store: Store) -> None:
    """A client that names another effect each time, and a provider that does, write a small number of contradictions and entries."""
    row = store.world.row()
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    attempt = await claimed(store.worker, row)
    await settled(store.worker, attempt, Outcome.SUCCEEDED)
    for number in range(CONTRADICTIONS_MAX + 3):
        proof = settlement_of(attempt, Outcome.SUCCEEDED)
        assert proof.receipt is not None
        named = replace(proof, receipt=replace(proof.receipt, id=uuid4(), external_reference=f"re_made_up_{number}"))
        [result] = await settle(store.worker, [named], tries_max=TRIES_MAX)
        assert isinstance(result, Settled)
        assert result.verdict == "contradiction"
    assert (await told(store.api, resolved(row, reference="re_more", by="webhook"))).verdict == "contradiction"
    assert await store.count("contradictions") == CONTRADICTIONS_MAX
    assert [kind for kind, *_ in await store.entries(row.id)].count("contradiction") == CONTRADICTIONS_MAX
    await contradictions.close(store.api, said(row, happened=False), told_by=None)
    assert (await told(store.api, resolved(row, reference="re_more", by="webhook"))).verdict == "contradiction"
    assert await store.count("contradictions", "closed_at is null") == 1


async def test_what_was_never_sent_keeps_nothing(store: Store) -> None:
    """Nobody can have a receipt that names no attempt; whoever holds the key is told instead."""
    row = store.world.row(not_after_seconds=0.0)
    assert await reserve(store.api, [row]) == [Won(id=row.id)]
    assert await closed(store.api, row) == Holder(id=row.id, state=State.RESERVED)
    await store.owner.execute(
        "update reservations set state = 'voided', live = false, void_reason = 'x', settled_at = now() where id = $1", row.id
    )
    await store.owner.execute("delete from open_reservations where reservation_id = $1", row.id)
    await store.owner.execute("delete from sealed_inputs where reservation_id = $1", row.id)
    await store.owner.execute(
        "insert into ledger_entries (organization_id, environment_id, kind, reservation_id, from_state, to_state, actor_chain) "
        "values ($1, $2, 'voided', $3, 'reserved', 'voided', '[]')",
        *(store.world.organization_id, store.world.environment_id, row.id),
    )
    assert await closed(store.api, row) is None
    assert await store.count("receipts") == 0


@pytest.mark.parametrize("commit", [True, False])
async def test_the_key_is_taken_meanwhile(store: Store, commit: bool) -> None:
    """A reservation that was asked for before the proof was known holds the key, or it does not; nobody has two."""
    key = f"refund:{uuid4()}"
    first, second = store.world.row(key), store.world.row(key)
    assert await reserve(store.api, [first]) == [Won(id=first.id)]
    attempt = await claimed(store.worker, first)
    await settled(store.worker, attempt, Outcome.REJECTED)

    async def takes(holder: Connection) -> None:
        assert await reserve(holder, [second]) == [Won(id=second.id)]
        assert (await settled(store.worker, attempt, Outcome.SUCCEEDED)).verdict == "contradiction"

    id = uuid4()
    holder = await store.beside(
        takes, lambda other: contradictions.keep(other, said(first), id=id, receipt_id=uuid4()), commit=commit
    )
    assert holder == (Holder(id=second.id, state=State.RESERVED) if commit else Holder(id=id, state=State.SUCCEEDED))
