"""Reservations as callers and auditors see them; T1, T2 and T3 are in `reserve.py`, `claim.py` and `settle.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from outbox_domain.reservation import State
from outbox_store import receipts
from outbox_store.connection import Connection
from outbox_store.cursors import Cursor
from outbox_store.filters import Filter
from outbox_store.receipts import ReceiptView


@dataclass(frozen=True, kw_only=True, slots=True)
class ReservationView:
    """All that an answer about a reservation is made of.

    Attributes:
        recovery_due: it is in doubt and automatic recovery has something left to try.
        absence_counts_seconds: how long until an absence counts; zero where it does.
        next_check: when that is.
        queued_seconds: from the reservation to its last claim.
        provider_seconds: that the last closed attempt spent at the provider.
        sealed_result, sealed_failure: of the provider's answer, where they are still kept.
    """

    organization_id: UUID
    id: UUID
    project_id: UUID
    project: str
    environment_id: UUID
    connection: str
    provider: str
    tool: str
    scope: str
    operation_key: str
    occurrence: int
    contract_version: int
    input_digest: bytes
    review_digest: bytes
    declared: dict[str, Any]
    amount: int | None
    currency: str | None
    reference: str | None
    guarantee_class: str
    owner: str
    actor_id: UUID
    actor_chain: list[str]
    run_id: UUID | None
    run: str | None
    lineage: UUID | None
    checkpoint: str | None
    step: str | None
    call_id: str | None
    model: str | None
    trace_id: str | None
    decision: dict[str, Any] | None
    executor: str
    state: State
    attempts: int
    unknown_attempts: int
    last_attempt_id: UUID | None
    last_attempt_outcome: str | None
    epoch: int
    generation: int
    not_after: datetime
    doubt_since: datetime | None
    doubt_cause: str | None
    absence_counts_at: datetime | None
    void_reason: str | None
    provider_status: int | None
    provider_code: str | None
    created_at: datetime
    changed_at: datetime
    settled_at: datetime | None
    recovery_due: bool
    absence_counts_seconds: float | None
    next_check: datetime | None
    due_seconds: float | None
    queued_seconds: float | None
    provider_seconds: float | None
    settle_seconds: float | None
    sealed_result: bytes | None
    sealed_failure: bytes | None
    receipt: ReceiptView | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptView:
    """One sending of a reservation's request."""

    id: UUID
    number: int
    epoch: int
    worker: str
    resend: bool
    claimed_at: datetime
    lease_until: datetime
    outcome: str | None
    closed_at: datetime | None
    closed_by: str | None
    reason: str | None
    proven_absent: bool
    late_write: bool
    provider_status: int | None
    provider_code: str | None
    provider_request_id: str | None
    provider_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RequesterView:
    """A tool call that met a reservation."""

    id: UUID
    at: datetime
    run: str | None
    checkpoint: str | None
    step: str | None
    call_id: str | None
    model: str | None
    actor_chain: list[str]
    answer_code: str
    answer_state: str | None
    replayed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceView:
    """What became known of a reservation's effect beside its receipt."""

    at: datetime
    kind: str
    attempt_id: UUID | None
    detail: dict[str, Any]


_OWN = (
    "organization_id id project_id environment_id tool scope operation_key occurrence contract_version input_digest review_digest declared "
    "amount currency reference guarantee_class owner actor_id actor_chain run_id lineage checkpoint step call_id model trace_id decision "
    "executor state attempts unknown_attempts last_attempt_id last_attempt_outcome epoch generation not_after doubt_since doubt_cause absence_counts_at void_reason provider_status "
    "provider_code created_at changed_at settled_at"
).split()
_RECEIPT = tuple(ReceiptView.__dataclass_fields__)

VIEW = f"""
select {", ".join(f"r.{name}" for name in _OWN)},
  p.name as project, n.name as connection, n.provider, run.name as run,
  r.state = 'in_doubt' and o.due_at < 'infinity' as recovery_due,
  greatest(0, extract(epoch from r.absence_counts_at - now()))::float8 as absence_counts_seconds,
  case when r.state = 'in_doubt' and o.due_at < 'infinity' then o.due_at end as next_check,
  case when o.due_at < 'infinity' then extract(epoch from o.due_at - now())::float8 end as due_seconds,
  extract(epoch from a.claimed_at - r.created_at)::float8 as queued_seconds,
  a.provider_seconds,
  extract(epoch from a.closed_at - a.claimed_at)::float8 - a.provider_seconds as settle_seconds,
  result.sealed as sealed_result, failure.sealed as sealed_failure,
  {", ".join(f"t.{name} as receipt_{name}" for name in _RECEIPT)},
  r.xid::text as xid
from reservations r
join projects p on (p.organization_id, p.id) = (r.organization_id, r.project_id)
join connections n on (n.organization_id, n.id) = (r.organization_id, r.connection_id)
left join runs run on (run.organization_id, run.id) = (r.organization_id, r.run_id)
left join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id)
left join attempts a on (a.organization_id, a.id) = (r.organization_id, coalesce(r.settled_attempt_id, r.last_attempt_id))
left join receipts t on (t.organization_id, t.reservation_id) = (r.organization_id, r.id)
left join sealed_results result on (result.organization_id, result.reservation_id, result.kind) = (r.organization_id, r.id, 'result')
left join sealed_results failure on (failure.organization_id, failure.reservation_id, failure.kind) = (r.organization_id, r.id, 'failure')
  and failure.expires_at > now()
"""  # noqa: S608 - names of columns only
ONE = VIEW + "where r.organization_id = $1 and r.id = $2"
LIST = (
    VIEW
    + """
where r.organization_id = $1 and r.environment_id = $2 and r.xid < pg_snapshot_xmin(pg_current_snapshot())
  and ($3::text is null or (r.xid, r.id) < ($3::xid8, $4::uuid))
  and ($6::text is null or r.state = $6)
  and ($7::text is null or r.tool = $7)
  and ($8::text is null or n.name = $8)
  and ($9::text is null or run.name = $9)
  and ($10::text is null or r.actor_chain ? $10)
  and ($11::text is null or r.operation_key = $11)
  and ($12::text is null or r.reference = $12)
  and ($13::text is null or t.external_reference = $13)
  and ($14::text is null or a.provider_request_id = $14)
  and ($15::text is null or r.trace_id = $15)
  and ($16::text is null or r.call_id = $16)
  and ($17::text is null or r.step = $17)
  and ($18::text is null or r.model = $18)
  and ($19::timestamptz is null or r.created_at >= $19)
  and ($20::timestamptz is null or r.created_at < $20)
  and ($21::uuid is null or r.project_id = $21)
order by r.xid desc, r.id desc
limit $5
"""
)
STATES = """
select r.id, r.state, r.executor, r.state = 'in_doubt' and o.due_at < 'infinity' as recovery_due
from unnest($1::uuid[], $2::uuid[]) as i (organization_id, id)
join reservations r on (r.organization_id, r.id) = (i.organization_id, i.id)
left join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id)
"""
ATTEMPTS = f"""
select {", ".join(AttemptView.__dataclass_fields__)} from attempts where organization_id = $1 and reservation_id = $2 order by number
"""  # noqa: S608 - names of columns only
REQUESTERS = f"""
select {", ".join(RequesterView.__dataclass_fields__)} from tool_calls where organization_id = $1 and reservation_id = $2 order by at, id limit 1000
"""  # noqa: S608 - names of columns only
EVIDENCE = """
select at, kind, attempt_id, detail from ledger_entries
where organization_id = $1 and reservation_id = $2 and kind in ('evidence', 'contradiction', 'examined', 'variance') order by xid, id limit 1000
"""


def _view(record: asyncpg.Record) -> ReservationView:
    receipt = receipts.from_record(record, "receipt_") if record["receipt_id"] is not None else None
    values = {
        name: record[name] for name in ReservationView.__dataclass_fields__ if name not in ("receipt", "state", "recovery_due")
    }
    return ReservationView(**values, state=State(record["state"]), recovery_due=bool(record["recovery_due"]), receipt=receipt)


async def view(connection: Connection, organization_id: UUID, id: UUID) -> ReservationView | None:
    """One reservation with its receipt, where it has one."""
    record = await connection.fetchrow(ONE, organization_id, id)
    return _view(record) if record else None


async def states(connection: Connection, ids: Sequence[tuple[UUID, UUID]]) -> dict[UUID, tuple[State, bool, str]]:
    """Where reservations stand, whether automatic recovery is due for them, and who carries them out.

    Args:
        ids: pairs of organization and reservation.
    """
    records = await connection.fetch(STATES, [of for of, _ in ids], [id for _, id in ids])
    return {record["id"]: (State(record["state"]), bool(record["recovery_due"]), record["executor"]) for record in records}


async def list_(
    connection: Connection, organization_id: UUID, environment_id: UUID, filter: Filter, *, after: Cursor | None, limit: int
) -> tuple[list[ReservationView], Cursor | None]:
    """Reservations newest first, and where to go on (None: nowhere).

    Raises:
        OutboxError: `invalid-request`, the cursor is of another list.
    """
    records = await connection.fetch(LIST, organization_id, environment_id, *filter.page(after, limit), *filter.values())
    views = [_view(record) for record in records[:limit]]
    more = len(records) > limit
    return views, Cursor(xid=int(records[limit - 1]["xid"]), id=str(views[-1].id)) if more else None


async def detail(
    connection: Connection, organization_id: UUID, id: UUID
) -> tuple[list[AttemptView], list[RequesterView], list[EvidenceView]]:
    """The attempts of a reservation, the tool calls that met it, and what else became known of its effect."""
    return (
        [AttemptView(**dict(record)) for record in await connection.fetch(ATTEMPTS, organization_id, id)],
        [RequesterView(**dict(record)) for record in await connection.fetch(REQUESTERS, organization_id, id)],
        [EvidenceView(**dict(record)) for record in await connection.fetch(EVIDENCE, organization_id, id)],
    )
