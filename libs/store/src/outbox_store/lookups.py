"""Asking a provider about a doubt: what the question is made of, and when it may be asked again.

The question is counted and bound to the newest attempt before it is sent; the time of asking is Postgres's, taken in the same
statement, so that an absence can be held against `absence_counts_at`. While one worker asks, the row is due for no other.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from outbox_domain.wire_names import Named
from outbox_store.connection import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookup(Named):
    """A look-up that may be sent now, and all that it is made of.

    Attributes:
        attempt_id: the newest attempt, about which is asked.
        asked_at: Postgres's time before it is sent.
        counts_in_seconds: until an absence counts, from `asked_at`; negative once it does.
        lookups: how many there were of this attempt, this one included.
        absences: how many of them found nothing and count.
        late_write, conflicted: no absence counts.
        attempt_number, generation: what the marker and the provider key of the attempt are made of.
        doubt_seconds: since the doubt began.
        sealed_credential, sealed_input: as in a claim; the input lives as long as the doubt.
    """

    organization_id: UUID
    reservation_id: UUID
    attempt_id: UUID
    asked_at: datetime
    counts_in_seconds: float | None
    lookups: int
    absences: int
    late_write: bool
    conflicted: bool
    attempt_number: int
    generation: int
    doubt_seconds: float
    connection_id: UUID
    amount: int | None
    currency: str | None
    traceparent: str | None
    base_url: str
    fixed_headers: dict[str, str]
    allow_private: bool
    sealed_credential: bytes | None
    sealed_input: bytes | None


BEGIN = """
with doubt as materialized (
  select r.* from reservations r join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id)
  where (r.organization_id, r.id) = ($1, $2) and r.state = 'in_doubt' and r.last_attempt_id = $3 and o.due_at <= now()
    and ($6::float8 is null or not r.late_write and now() < make_interval(secs => $6) + (
      select a.claimed_at from attempts a
      where (a.organization_id, a.id) = (r.organization_id, r.last_attempt_id) and a.closed_by is distinct from 'epoch'))
  for update of r
), watched as (
  -- Asked again of the row itself: who waited for another worker's look-up finds it away.
  update open_reservations o set due_at = now() + make_interval(secs => $5)
  from doubt d where (o.organization_id, o.reservation_id) = (d.organization_id, d.id) and o.due_at <= now()
  returning o.organization_id, o.reservation_id as id
), counted as (
  update reservations r set lookups = r.lookups + 1, recovery_step = $4
  from watched w where (r.organization_id, r.id) = (w.organization_id, w.id)
  returning r.organization_id, r.id, r.lookups
)
select d.organization_id, d.id as reservation_id, d.last_attempt_id as attempt_id, now() as asked_at,
  extract(epoch from d.absence_counts_at - now())::float8 as counts_in_seconds, c.lookups, d.absences, d.late_write,
  d.conflicted, d.attempts as attempt_number, d.generation, extract(epoch from now() - d.doubt_since)::float8 as doubt_seconds,
  (select name from organizations g where g.id = d.organization_id) as organization,
  (select name from projects p where (p.organization_id, p.id) = (d.organization_id, d.project_id)) as project,
  (select name from environments e where (e.organization_id, e.id) = (d.organization_id, d.environment_id)) as environment,
  n.name as connection, n.id as connection_id, d.tool, d.scope, d.operation_key, d.occurrence,
  (select name from runs where (runs.organization_id, runs.id) = (d.organization_id, d.lineage)) as lineage_name,
  d.amount, d.currency, d.traceparent, n.base_url, n.fixed_headers, n.allow_private,
  (select sealed from provider_credentials k where (k.organization_id, k.connection_id) = (d.organization_id, d.connection_id)) as sealed_credential,
  (select sealed from sealed_inputs s where (s.organization_id, s.reservation_id) = (d.organization_id, d.id)) as sealed_input
from doubt d join counted c using (organization_id, id)
join connections n on (n.organization_id, n.id) = (d.organization_id, d.connection_id)
"""

# A row that a person was asked about meanwhile, or that another attempt has taken over, keeps its own time.
AGAIN = """
with doubt as materialized (
  select r.organization_id, r.id from reservations r
  where (r.organization_id, r.id) = ($1, $2) and r.state = 'in_doubt' and r.last_attempt_id = $3
  for update
)
update open_reservations o set due_at = now() + make_interval(secs => $4)
from doubt d where (o.organization_id, o.reservation_id) = (d.organization_id, d.id) and o.due_at < 'infinity'
"""


async def begin(
    connection: Connection,
    organization_id: UUID,
    reservation_id: UUID,
    attempt_id: UUID,
    *,
    step: int,
    away_seconds: float,
    cancel_within_seconds: float | None = None,
) -> Lookup | None:
    """Take a due doubt up for one look-up about its newest attempt.

    Args:
        attempt_id: the newest attempt as the sweep saw it.
        step: the place of the look-up in the contract's recovery list.
        away_seconds: when it is due again, should this worker be heard of no more.
        cancel_within_seconds: it calls the attempt off, which may be begun so long after the attempt; None: it only asks.

    Returns:
        The look-up, or None where the doubt has moved on, another worker asks, or it is too late to call anything off.
    """
    record = await connection.fetchrow(
        BEGIN, organization_id, reservation_id, attempt_id, step, away_seconds, cancel_within_seconds
    )
    return None if record is None else Lookup(**dict(record))


async def again(connection: Connection, lookup: Lookup, *, seconds: float) -> None:
    """The look-up proved nothing: the next one is due after `seconds`, if the doubt still stands where it stood."""
    await connection.execute(AGAIN, lookup.organization_id, lookup.reservation_id, lookup.attempt_id, seconds)
