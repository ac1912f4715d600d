"""A small world in the ledger for tests of the store: one organization, its scope rows, and rows to reserve."""

import itertools
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

from outbox_domain.reservation import Confidence, Outcome
from outbox_store import actors, connections, organizations, runs, tool_contracts
from outbox_store.claim import Claim, Claimed, ClaimedByClient, claim
from outbox_store.connection import Connection
from outbox_store.reserve import NewReservation
from outbox_store.settle import ReceiptDraft, Settled, Settlement, settle

TRIES_MAX = 20
_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class World:
    """Ids of the scope rows that reservations refer to."""

    organization_id: UUID
    project_id: UUID
    environment_id: UUID
    connection_id: UUID
    actor_id: UUID
    run_id: UUID

    def row(self, key: str | None = None, **changes: Any) -> NewReservation:
        """A reservation of `stripe.refund.create` in the environment scope, with a key of its own unless one is given."""
        key = key or f"refund:pi_{next(_numbers)}"
        row = NewReservation(
            organization_id=self.organization_id,
            id=uuid4(),
            project_id=self.project_id,
            environment_id=self.environment_id,
            connection_id=self.connection_id,
            tool="stripe.refund.create",
            scope="environment",
            operation_key=key,
            occurrence=1,
            contract_version=1,
            input_digest=sha256(key.encode()).digest(),
            review_digest=sha256(key.encode()).digest(),
            declared={"amount": 1200},
            amount=1200,
            currency="EUR",
            reference=None,
            guarantee_class="A",
            owner="payments",
            actor_id=self.actor_id,
            actor_chain=["agent:tests"],
            key_id="testkey",
            run_id=None,
            lineage=None,
            run_name=None,
            checkpoint=None,
            step=None,
            call_id=None,
            model=None,
            traceparent=None,
            trace_id=None,
            decision=None,
            not_after_seconds=3600.0,
            sealed_input=b"sealed",
        )
        return replace(row, **changes)


async def make_world(connection: Connection) -> World:
    """Write the scope rows of a new organization."""
    organization_id = uuid4()
    await organizations.create(
        connection,
        organizations.Organization(
            id=organization_id,
            name=f"org-{organization_id.hex[:12]}",
            data_key_wrapped=b"wrapped",
            digest_key_wrapped=b"wrapped",
            provider_key_secret_wrapped=b"wrapped",
        ),
    )
    project_id = await organizations.create_project(connection, organization_id, uuid4(), "default")
    environment_id = await organizations.create_environment(connection, organization_id, uuid4(), "sandbox", None)
    connection_id = await connections.ensure(
        connection,
        connections.ConnectionRow(
            organization_id=organization_id,
            id=uuid4(),
            environment_id=environment_id,
            provider="stripe",
            name="stripe",
            base_url="http://127.0.0.1:1",
            fixed_headers={},
            currency="EUR",
            allow_private=True,
            is_default=True,
        ),
    )
    await tool_contracts.install(
        connection, organization_id, [("stripe.refund.create", 1, {"tool": "stripe.refund.create", "version": 1})]
    )
    actor_id = await actors.ensure(connection, organization_id, uuid4(), "agent", "tests")
    run = await runs.ensure(connection, organization_id, environment_id, project_id, "thread-1", uuid4())
    return World(
        organization_id=organization_id,
        project_id=project_id,
        environment_id=environment_id,
        connection_id=connection_id,
        actor_id=actor_id,
        run_id=run.id,
    )


def claim_of(row: NewReservation, **changes: Any) -> Claim:
    """A worker's claim of a row, with the lease of the product and a resend window of 23 hours."""
    wish = Claim(
        organization_id=row.organization_id,
        reservation_id=row.id,
        attempt_id=uuid4(),
        worker="tests",
        lease_seconds=10.0,
        resend_window_seconds=23 * 3600.0,
        resend_needs_seconds=60.0,
        resends_max=5,
    )
    return replace(wish, **changes)


async def claimed(connection: Connection, row: NewReservation, **changes: Any) -> Claimed:
    """Claim a row; fails the test when that does not open an attempt."""
    [result] = await claim(connection, [claim_of(row, **changes)])
    assert isinstance(result, Claimed), result
    return result


def settlement_of(attempt: Claimed | ClaimedByClient, outcome: Outcome, **changes: Any) -> Settlement:
    """What an attempt came to; a success has a receipt."""
    receipt = None
    if outcome is Outcome.SUCCEEDED:
        receipt = ReceiptDraft(
            id=uuid4(),
            provider="stripe",
            external_reference=f"re_{attempt.reservation_id.hex}",
            confidence=Confidence.CONFIRMED,
            evidence=[{"kind": "answer"}],
            provider_request_id="req_1",
            sealed_result=b"sealed result",
        )
    settlement = Settlement(
        organization_id=attempt.organization_id,
        reservation_id=attempt.reservation_id,
        attempt_id=attempt.attempt_id,
        epoch=attempt.epoch,
        outcome=outcome,
        reason=outcome.value,
        settle_seconds=120.0,
        again_seconds=0.0,
        recover_seconds=0.0,
        receipt=receipt,
    )
    return replace(settlement, **changes)


async def settled(connection: Connection, attempt: Claimed | ClaimedByClient, outcome: Outcome, **changes: Any) -> Settled:
    """Settle an attempt; fails the test when the database refuses it."""
    [result] = await settle(connection, [settlement_of(attempt, outcome, **changes)], tries_max=TRIES_MAX)
    assert isinstance(result, Settled), result
    return result
