"""Receipts: the outside facts that prove effects. Rows are appended at settlement and never change."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from outbox_store.connection import Connection
from outbox_store.cursors import Cursor
from outbox_store.filters import Filter


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceiptView:
    """A receipt as it was settled; `amount` is integer minor units of `currency`."""

    id: UUID
    reservation_id: UUID
    attempt_id: UUID
    provider: str
    connection: str
    tool: str
    contract_version: int
    external_reference: str
    confidence: str
    evidence: list[dict[str, Any]]
    provider_request_id: str | None
    actor_chain: list[str]
    owner: str
    policy: dict[str, Any] | None
    amount: int | None
    currency: str | None
    settled_at: datetime


_NAMES = tuple(ReceiptView.__dataclass_fields__)
COLUMNS = ", ".join(f"t.{name}" for name in _NAMES)
BY_ID = f"select {COLUMNS} from receipts t where t.organization_id = $1 and t.id = $2"  # noqa: S608 - names of columns only
LIST = f"""
select {COLUMNS}, t.xid::text as xid
from receipts t join reservations r on (r.organization_id, r.id) = (t.organization_id, t.reservation_id)
left join runs run on (run.organization_id, run.id) = (r.organization_id, r.run_id)
where t.organization_id = $1 and t.environment_id = $2 and t.xid < pg_snapshot_xmin(pg_current_snapshot())
  and ($3::text is null or (t.xid, t.id) < ($3::xid8, $4::uuid))
  and ($6::text is null or r.state = $6)
  and ($7::text is null or r.tool = $7)
  and ($8::text is null or t.connection = $8)
  and ($9::text is null or run.name = $9)
  and ($10::text is null or r.actor_chain ? $10)
  and ($11::text is null or r.operation_key = $11)
  and ($12::text is null or r.reference = $12)
  and ($13::text is null or t.external_reference = $13)
  and ($14::text is null or t.provider_request_id = $14)
  and ($15::text is null or r.trace_id = $15)
  and ($16::text is null or r.call_id = $16)
  and ($17::text is null or r.step = $17)
  and ($18::text is null or r.model = $18)
  and ($19::timestamptz is null or t.settled_at >= $19)
  and ($20::timestamptz is null or t.settled_at < $20)
  and ($21::uuid is null or r.project_id = $21)
order by t.xid desc, t.id desc
limit $5
"""  # noqa: S608 - names of columns only


def from_record(record: asyncpg.Record, prefix: str = "") -> ReceiptView:
    """The receipt in a row of a query, its columns named with `prefix`."""
    return ReceiptView(**{name: record[prefix + name] for name in _NAMES})


async def by_id(connection: Connection, organization_id: UUID, id: UUID) -> ReceiptView | None:
    """The receipt of this id."""
    record = await connection.fetchrow(BY_ID, organization_id, id)
    return from_record(record) if record else None


async def list_(
    connection: Connection, organization_id: UUID, environment_id: UUID, filter: Filter, *, after: Cursor | None, limit: int
) -> tuple[list[ReceiptView], Cursor | None]:
    """Receipts newest first, and where to go on (None: nowhere).

    Raises:
        OutboxError: `invalid-request`, the cursor is of another list.
    """
    records = await connection.fetch(LIST, organization_id, environment_id, *filter.page(after, limit), *filter.values())
    receipts = [from_record(record) for record in records[:limit]]
    more = len(records) > limit
    return receipts, Cursor(xid=int(records[limit - 1]["xid"]), id=str(receipts[-1].id)) if more else None
