"""The breaker of a connection: after so many unknowns nothing new is sent but one trial at a time.

It protects the provider and the people who would have to work the doubts; no promise rests on it, so it may be read a moment
old. Claims read it (`outbox_store.claim`); here it opens, picks its trial, and closes. Source: `interfaces.md` section 9, ADR 0012.
"""

from dataclasses import dataclass
from uuid import UUID

from outbox_store.connection import Connection

UNKNOWNS = 5
WITHIN_SECONDS = 60.0

FIRST_TRIAL_SECONDS = 1.0
TRIAL_SECONDS_MAX = 60.0
"""Between trials: a second after opening, doubled by each trial that fails, at most a minute."""

RELEASED_PER_SECOND = 20.0
"""So many held reservations are sent per second once the breaker has closed."""

FORGOTTEN_SECONDS = 60.0
"""A breaker for which nothing waits so long after its trial was due closes by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """The reservation that an open breaker lets through."""

    organization_id: UUID
    connection_id: UUID
    reservation_id: UUID


# Only what a provider did counts: a lease that lapsed and a send that was cut off speak of a worker of ours.
OPEN = """
insert into breakers (organization_id, connection_id, retry_at, cause)
select $1, $2, now() + make_interval(secs => $6), $3
where $4 <= (
  select count(*) from attempts a join reservations r on (r.organization_id, r.id) = (a.organization_id, a.reservation_id)
  where a.organization_id = $1 and a.outcome = 'unknown' and r.connection_id = $2 and r.executor = 'gateway' and a.closed_by = 'answer' and a.reason <> 'cut off'
    and a.closed_at > greatest(now() - make_interval(secs => $5),
      (select b.closed_at from breakers b where (b.organization_id, b.connection_id) = ($1, $2))))
on conflict (organization_id, connection_id) do update set opened_at = now(), closed_at = null, retry_at = excluded.retry_at,
  trial_reservation_id = null, reopenings = 0, cause = excluded.cause
where breakers.closed_at is not null
returning true
"""

# One trial for each open breaker whose time has come. What was never sent goes first: a doubt must be asked about anyway.
TRY = """
with waiting as materialized (
  select b.* from breakers b where b.closed_at is null and b.retry_at <= now() for update skip locked
), chosen as materialized (
  select distinct on (r.organization_id, r.connection_id) r.organization_id, r.connection_id, r.id
  from waiting w
  join open_reservations o on o.organization_id = w.organization_id
  join reservations r on (r.organization_id, r.id) = (o.organization_id, o.reservation_id) and r.connection_id = w.connection_id
  where r.executor = 'gateway' and (
    r.state = 'reserved' and (r.last_attempt_outcome is distinct from 'deferred' or o.due_at <= now())
    or r.state = 'in_doubt' and r.guarantee_class = 'A' and r.recovery_step = 0 and o.due_at < 'infinity'
      and not r.stored_failure and not r.late_write and not r.conflicted)
  order by r.organization_id, r.connection_id, r.state = 'reserved' desc, o.due_at
), tried as (
  update breakers b set trial_reservation_id = c.id, retry_at = now() + make_interval(secs => $1),
    closed_at = case when c.id is null and b.retry_at < now() - make_interval(secs => $2) then now() end
  from waiting w left join chosen c using (organization_id, connection_id)
  where (b.organization_id, b.connection_id) = (w.organization_id, w.connection_id)
    and (c.id is not null or b.retry_at < now() - make_interval(secs => $2))
), due as (
  -- Long enough ago for the sweep to take it up itself: no wake-up announces it.
  update open_reservations o set due_at = now() - interval '1 second'
  from chosen c where (o.organization_id, o.reservation_id) = (c.organization_id, c.id)
)
select organization_id, connection_id, id as reservation_id from chosen
"""

FAIL = """
update breakers set trial_reservation_id = null, reopenings = reopenings + 1, cause = $4,
  retry_at = now() + make_interval(secs => least($6, $5 * 2 ^ least(reopenings + 1, 16)))
where (organization_id, connection_id) = ($1, $2) and closed_at is null and trial_reservation_id = $3
"""

# What was held is released one after the other. What was deferred keeps its time, which the provider may have named.
CLOSE = """
with closed as materialized (
  update breakers set closed_at = now(), trial_reservation_id = null
  where (organization_id, connection_id) = ($1, $2) and closed_at is null and trial_reservation_id = $3
  returning organization_id, connection_id
), waiting as materialized (
  select o.organization_id, o.reservation_id, r.created_at
  from closed c
  join open_reservations o on o.organization_id = c.organization_id
  join reservations r on (r.organization_id, r.id) = (o.organization_id, o.reservation_id) and r.connection_id = c.connection_id
  where r.state = 'reserved' and r.last_attempt_outcome is distinct from 'deferred' and r.executor = 'gateway'
  order by o.organization_id, o.reservation_id
  for update of o
), held as materialized (
  select organization_id, reservation_id, row_number() over (order by created_at, reservation_id) as place from waiting
), released as (
  update open_reservations o set due_at = now() + make_interval(secs => h.place / $4)
  from held h where (o.organization_id, o.reservation_id) = (h.organization_id, h.reservation_id)
  returning o.reservation_id
)
select (select count(*) from released) as released from closed
"""

NEXT_TRIAL = """
update breakers set trial_reservation_id = null, retry_at = now()
where organization_id = $1 and trial_reservation_id = $2 and closed_at is null
"""


async def open_after_unknowns(connection: Connection, organization_id: UUID, connection_id: UUID, *, cause: str) -> bool:
    """Open the breaker if a connection has had too many unknowns lately; one that is open stays as it is.

    Args:
        cause: our own words for the last of them.

    Returns:
        Whether it was opened now.
    """
    return bool(
        await connection.fetchval(OPEN, organization_id, connection_id, cause, UNKNOWNS, WITHIN_SECONDS, FIRST_TRIAL_SECONDS)
    )


async def trials(connection: Connection, *, trial_seconds: float) -> list[Trial]:
    """Choose a trial for each open breaker whose time has come; it is due at once.

    Args:
        trial_seconds: how long it may take; after that another is chosen.
    """
    records = await connection.fetch(TRY, trial_seconds, FORGOTTEN_SECONDS)
    return [Trial(**dict(record)) for record in records]


async def trial_failed(connection: Connection, trial: Trial, *, cause: str) -> None:
    """The trial met no provider: the next one is due later than this one was."""
    await connection.execute(
        FAIL, trial.organization_id, trial.connection_id, trial.reservation_id, cause, FIRST_TRIAL_SECONDS, TRIAL_SECONDS_MAX
    )


async def trial_answered(connection: Connection, trial: Trial) -> int | None:
    """The trial was answered: the breaker closes and what was held is sent, so many a second.

    Returns:
        How many were released; None where it was not the trial any more.
    """
    released: int | None = await connection.fetchval(
        CLOSE, trial.organization_id, trial.connection_id, trial.reservation_id, RELEASED_PER_SECOND
    )
    return released


async def pass_on(connection: Connection, organization_id: UUID, reservation_id: UUID) -> None:
    """A reservation that was the trial was not sent: another one may be."""
    await connection.execute(NEXT_TRIAL, organization_id, reservation_id)


async def count_open(connection: Connection) -> int:
    """How many breakers are open."""
    return int(await connection.fetchval("select count(*) from breakers where closed_at is null"))
