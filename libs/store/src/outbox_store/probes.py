"""Probes: looks of a client for the effect of an attempt in doubt, and what was answered to each.

Only whose attempt it is, or who asked for the effect and was told to look for it, begins one. A probe begins at Postgres's time before the client asks its provider, so that an absence can be held against `absence_counts_at`.
What an answer changes is decided by `outbox_store.resolve`, as of a worker's look-up.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from outbox_store.connection import Connection

PROBES_MAX = 20
"""How many probes of one actor about one attempt are kept that have no answer, or one that changed nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A probe that may be carried out now.

    Attributes:
        asked_at: Postgres's time; an absence counts if it is not before `absence_counts_at`.
        counts_in_seconds: until an absence counts, from `asked_at`; zero or less once it does.
    """

    id: UUID
    attempt_id: UUID
    asked_at: datetime
    counts_in_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A probe as it stands while its reservation is held.

    Attributes:
        found, verdict: what was answered and what came of it; None while nothing was.
    """

    id: UUID
    attempt_id: UUID
    actor_id: UUID
    asked_at: datetime
    found: bool | None
    verdict: str | None


OFFER = """
insert into probe_offers (organization_id, attempt_id, actor_id) values ($1, $2, $3) on conflict do nothing
"""

BEGIN = """
insert into probes (organization_id, id, reservation_id, attempt_id, actor_id)
select r.organization_id, $3, r.id, r.last_attempt_id, $5 from reservations r
where (r.organization_id, r.id) = ($1, $2) and r.executor = 'client' and r.state = 'in_doubt' and r.last_attempt_id = $4
  and (
    exists (select from probe_offers f where (f.organization_id, f.attempt_id, f.actor_id) = ($1, $4, $5))
    or exists (select from attempts a where (a.organization_id, a.id, a.actor_id) = ($1, $4, $5) and a.marker is not null)
  )
returning id, attempt_id, asked_at,
  (select extract(epoch from r.absence_counts_at - now())::float8 from reservations r where (r.organization_id, r.id) = ($1, $2)) as counts_in_seconds
"""

FIND = """
select id, attempt_id, actor_id, asked_at, found, verdict from probes where organization_id = $1 and reservation_id = $2 and id = $3
"""

# What has been answered and counts is kept, and so are the newest: a client that begins over and over leaves no more than that. What
# is forgotten may be looked for anew, by a probe that begins then.
FORGET = """
delete from probes where organization_id = $1 and id in (
  select id from probes
  where (organization_id, reservation_id, attempt_id, actor_id) = ($1, $2, $3, $4) and (verdict is null or verdict in ('too-early', 'stale', 'known'))
  order by asked_at desc, id offset $5)
"""

SAY = "update probes set answered_at = now(), found = $3, verdict = $4 where organization_id = $1 and id = $2"


async def offer(connection: Connection, organization_id: UUID, attempt_id: UUID, actor_id: UUID) -> None:
    """Remember that an actor is told to look for the effect of an attempt in doubt."""
    await connection.execute(OFFER, organization_id, attempt_id, actor_id)


async def begin(
    connection: Connection, organization_id: UUID, reservation_id: UUID, new_id: UUID, attempt_id: UUID, actor_id: UUID
) -> Begun | None:
    """Begin a probe about the newest attempt of a doubt; the actor's oldest ones beyond `PROBES_MAX` are forgotten.

    Returns:
        None where there is no such doubt, it is about another attempt by now, or the actor was not told to look for it.
    """
    record = await connection.fetchrow(BEGIN, organization_id, reservation_id, new_id, attempt_id, actor_id)
    if record is not None:
        await connection.execute(FORGET, organization_id, reservation_id, attempt_id, actor_id, PROBES_MAX)
    return None if record is None else Begun(**dict(record))


async def find(connection: Connection, organization_id: UUID, reservation_id: UUID, id: UUID) -> Probe | None:
    """The probe of this id.

    Args:
        connection: in a transaction that holds the reservation.
    """
    record = await connection.fetchrow(FIND, organization_id, reservation_id, id)
    return None if record is None else Probe(**dict(record))


async def say(connection: Connection, organization_id: UUID, id: UUID, *, found: bool, verdict: str) -> None:
    """Write down what was answered to a probe and what came of it."""
    await connection.execute(SAY, organization_id, id, found, verdict)
