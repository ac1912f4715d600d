"""What agents asked for, one row per request; written in batches behind the hot path."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec

from outbox_store import ledger_entries
from outbox_store.batches import columns
from outbox_store.connection import Connection
from outbox_store.ledger_entries import NewEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class NewToolCall:
    """One request and the answer that was given; `at` is the process's own time, because the row is written later."""

    organization_id: UUID
    id: UUID
    at: datetime
    reservation_id: UUID | None
    environment_id: UUID
    tool: str
    actor_id: UUID
    actor_chain: Sequence[str]
    key_id: str
    run: str | None
    checkpoint: str | None
    step: str | None
    call_id: str | None
    model: str | None
    trace_id: str | None
    answer_code: str
    answer_state: str | None
    replayed: bool


INSERT = """
insert into tool_calls (organization_id, id, at, reservation_id, environment_id, tool, actor_id, actor_chain, key_id, run, checkpoint, step,
  call_id, model, trace_id, answer_code, answer_state, replayed, refusal_digest)
select organization_id, id, at, reservation_id, environment_id, tool, actor_id, actor_chain::jsonb, key_id, run, checkpoint, step, call_id,
  model, trace_id, answer_code, answer_state, replayed, refusal_digest
from unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::uuid[], $5::uuid[], $6::text[], $7::uuid[], $8::text[], $9::text[], $10::text[],
  $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::bool[], $19::bytea[])
  as i (organization_id, id, at, reservation_id, environment_id, tool, actor_id, actor_chain, key_id, run, checkpoint, step,
    call_id, model, trace_id, answer_code, answer_state, replayed, refusal_digest)
on conflict do nothing
"""
LOCK_REFUSAL = "select pg_advisory_xact_lock(hashtextextended(encode($1, 'hex'), 0))"
COUNT_REFUSAL = """
update tool_calls set repeats = repeats + 1
where (organization_id, id) = (
  select organization_id, id from tool_calls
  where organization_id = $1 and refusal_digest = $2 and at > $3::timestamptz - interval '1 minute' order by at desc limit 1)
returning id
"""
_NAMES = [
    "organization_id",
    "id",
    "at",
    "reservation_id",
    "environment_id",
    "tool",
    "actor_id",
    "actor_chain",
    "key_id",
    "run",
    "checkpoint",
    "step",
    "call_id",
    "model",
    "trace_id",
    "answer_code",
    "answer_state",
    "replayed",
]


async def insert(connection: Connection, rows: Sequence[NewToolCall], refusal_digest: bytes | None = None) -> None:
    """Add requests; sending a batch again adds nothing."""
    arrays = columns(rows, _NAMES)
    chains = _NAMES.index("actor_chain")
    arrays[chains] = [msgspec.json.encode(row.actor_chain).decode() for row in rows]
    await connection.execute(INSERT, *arrays, [refusal_digest] * len(rows))


async def record_refusal(connection: Connection, call: NewToolCall, refusal_digest: bytes, entry: NewEntry) -> bool:
    """Record a refusal with its ledger entry; the same refusal again within a minute is only counted (`interfaces.md` 10).

    Args:
        connection: inside a transaction, because both rows stand or fall together.
        refusal_digest: identity of the refusal: who, what, why.

    Returns:
        Whether a ledger entry was appended.
    """
    await connection.execute(LOCK_REFUSAL, refusal_digest)
    if await connection.fetchval(COUNT_REFUSAL, call.organization_id, refusal_digest, call.at) is not None:
        return False
    await insert(connection, [call], refusal_digest)
    await ledger_entries.append(connection, entry)
    return True
