"""Withdrawing what was reserved for a client and is not under way: by its caller, or because its time has passed.

A worker's reservation is withdrawn by its claim (`outbox_store.claim`), which nobody makes here.
"""

from collections.abc import Sequence
from uuid import UUID

from outbox_store.connection import Connection

WITHDRAW = """
with input as (
  select distinct on (organization_id, id) * from unnest($1::uuid[], $2::uuid[]) as i (organization_id, id)
), locked as materialized (
  select r.* from input i join reservations r on (r.organization_id, r.id) = (i.organization_id, i.id)
  where r.executor = 'client' and r.state = 'reserved' and (not $4::bool or r.not_after <= now())
    -- What an older epoch has left may have been carried out in what was lost: it is no withdrawal's, but a doubt.
    and r.epoch = (select max(number) from epochs)
  order by r.organization_id, r.id
  for update of r
), changed as (
  update reservations r set state = 'voided', live = false, void_reason = $3, settled_at = now(), changed_at = now()
  from locked l where (r.organization_id, r.id) = (l.organization_id, l.id)
), closed as (
  delete from open_reservations o using locked l where (o.organization_id, o.reservation_id) = (l.organization_id, l.id)
), erased as (
  delete from sealed_inputs s using locked l where (s.organization_id, s.reservation_id) = (l.organization_id, l.id)
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, reservation_id, from_state, to_state, actor_chain, run, tool,
    operation_key, input_digest, trace_id, detail)
  select organization_id, environment_id, 'voided', id, 'reserved', 'voided', coalesce($5::jsonb, actor_chain),
    (select name from runs where (runs.organization_id, runs.id) = (locked.organization_id, locked.run_id)), tool, operation_key, input_digest,
    trace_id, jsonb_build_object('reason', $3::text)
  from locked
)
select id from locked
"""


async def withdraw(
    connection: Connection, rows: Sequence[tuple[UUID, UUID]], *, reason: str, late_only: bool, actor_chain: list[str] | None
) -> list[UUID]:
    """Void reservations of clients that no attempt is open of and none is in doubt of.

    Args:
        rows: organization and id of each.
        reason: our own word for it.
        late_only: only those past the time until which they might be carried out.
        actor_chain: who withdraws; None: time does.

    Returns:
        Those that were; the others are under way, in doubt, closed, or a worker's.
    """
    of, ids = [of for of, _ in rows], [id for _, id in rows]
    return [record["id"] for record in await connection.fetch(WITHDRAW, of, ids, reason, late_only, actor_chain)]
