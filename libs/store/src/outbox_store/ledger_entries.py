"""The append-only ledger: a row for each decision and each change of a reservation."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from outbox_store.connection import Connection
from outbox_store.cursors import Cursor


@dataclass(frozen=True, kw_only=True, slots=True)
class NewEntry:
    """An entry to append; digests, references and declared fields only, never bodies."""

    organization_id: UUID
    environment_id: UUID | None
    kind: str
    actor_chain: list[str]
    reservation_id: UUID | None = None
    attempt_id: UUID | None = None
    from_state: str | None = None
    to_state: str | None = None
    outcome: str | None = None
    decision: dict[str, Any] | None = None
    run: str | None = None
    tool: str | None = None
    operation_key: str | None = None
    input_digest: bytes | None = None
    declared: dict[str, Any] | None = None
    trace_id: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry(NewEntry):
    """An entry as the ledger has it."""

    id: int
    at: datetime


APPEND = """
insert into ledger_entries (organization_id, environment_id, kind, actor_chain, reservation_id, attempt_id, from_state, to_state,
  outcome, decision, run, tool, operation_key, input_digest, declared, trace_id, detail)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
"""
LIST = """
select organization_id, environment_id, kind, actor_chain, reservation_id, attempt_id, from_state, to_state, outcome, decision, run, tool,
  operation_key, input_digest, declared, trace_id, detail, id, at, xid::text as xid
from ledger_entries
where organization_id = $1 and ($2::uuid is null or environment_id = $2)
  and xid < pg_snapshot_xmin(pg_current_snapshot())
  and ($3::text is null or (xid, id) > ($3::xid8, $4::bigint))
  and ($5::uuid is null or reservation_id = $5)
  and ($6::text is null or kind = $6)
order by xid, id
limit $7
"""


async def append(connection: Connection, entry: NewEntry) -> None:
    """Append one entry; the statements of T1, T2 and T3 append their own."""
    await connection.execute(
        APPEND,
        entry.organization_id,
        entry.environment_id,
        entry.kind,
        entry.actor_chain,
        entry.reservation_id,
        entry.attempt_id,
        entry.from_state,
        entry.to_state,
        entry.outcome,
        entry.decision,
        entry.run,
        entry.tool,
        entry.operation_key,
        entry.input_digest,
        entry.declared,
        entry.trace_id,
        entry.detail,
    )


async def list_(
    connection: Connection,
    organization_id: UUID,
    environment_id: UUID | None,
    *,
    after: Cursor | None,
    limit: int,
    reservation_id: UUID | None = None,
    kind: str | None = None,
) -> tuple[list[Entry], Cursor | None]:
    """Entries oldest first, and where to go on.

    Args:
        environment_id: only of this environment; None: of all.
        after: the last entry the caller has.
        limit: at most so many.

    Returns:
        The entries, and the cursor behind the last of them (the given one when there are none): a follower keeps asking
        with it.

    Raises:
        OutboxError: `invalid-request`, the cursor is of another list.
    """
    records = await connection.fetch(
        LIST,
        organization_id,
        environment_id,
        str(after.xid) if after else None,
        after.number() if after else None,
        reservation_id,
        kind,
        limit,
    )
    entries = [Entry(**{name: value for name, value in record.items() if name != "xid"}) for record in records]
    return entries, Cursor(xid=int(records[-1]["xid"]), id=str(records[-1]["id"])) if records else after
