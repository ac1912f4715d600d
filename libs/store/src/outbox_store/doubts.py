"""Doubts as people work on them: what stands under a person's hand, which there are, and asking recovery to look again.

What a person says of one is written down by `outbox_store.resolve`; this module finds the rows and holds them still meanwhile.
Source: design section 4 (rules of doubt), `interfaces.md` section 3.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from outbox_domain.reservation import State
from outbox_store.connection import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a reservation stands while its row is held.

    Attributes:
        recovery_due: it is in doubt and automatic recovery has something left to try.
        next_check, next_check_seconds: when that is.
        absence_counts_at: from when an absence counts; None where it never was in doubt.
        absence_counts_seconds: how long until then; zero where it has come.
    """

    id: UUID
    environment_id: UUID
    project: str
    run: str | None
    tool: str
    provider: str
    state: State
    last_attempt_id: UUID | None
    external_reference: str | None
    recovery_due: bool
    next_check: datetime | None
    next_check_seconds: float | None
    absence_counts_at: datetime | None
    absence_counts_seconds: float | None


# Two statements, because one that waited for the lock would see the other tables as they were before it waited.
LOCK = "select id from reservations where organization_id = $1 and id = $2 for update"
STANDING = """
select r.id, r.environment_id, p.name as project, run.name as run, r.tool, n.provider, r.state, r.last_attempt_id, r.external_reference,
  r.state = 'in_doubt' and coalesce(o.due_at < 'infinity', false) as recovery_due,
  case when r.state = 'in_doubt' and o.due_at < 'infinity' then o.due_at end as next_check,
  case when r.state = 'in_doubt' and o.due_at < 'infinity'
    then greatest(0, extract(epoch from o.due_at - now()))::float8 end as next_check_seconds,
  r.absence_counts_at, greatest(0, extract(epoch from r.absence_counts_at - now()))::float8 as absence_counts_seconds
from reservations r
join projects p on (p.organization_id, p.id) = (r.organization_id, r.project_id)
join connections n on (n.organization_id, n.id) = (r.organization_id, r.connection_id)
left join runs run on (run.organization_id, run.id) = (r.organization_id, r.run_id)
left join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id)
where r.organization_id = $1 and r.id = $2
"""


async def hold(connection: Connection, organization_id: UUID, id: UUID) -> Standing | None:
    """Keep a reservation from changing until the transaction ends, and say where it stands.

    Args:
        connection: inside a transaction.
        organization_id: whose it is.
        id: of the reservation.

    Returns:
        None where there is no such reservation.
    """
    if await connection.fetchval(LOCK, organization_id, id) is None:
        return None
    record = await connection.fetchrow(STANDING, organization_id, id)
    return None if record is None else Standing(**{**record, "state": State(record["state"])})
