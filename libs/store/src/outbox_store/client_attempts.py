"""Attempts of callers who carry their effect out themselves: finding one by what its owner knows, and keeping its lease alive.

They are opened by `outbox_store.claim`, closed by `outbox_store.settle`, and lapse by `outbox_store.sweep` like a worker's.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from outbox_domain.reservation import Outcome
from outbox_domain.wire_names import Named
from outbox_store.connection import Connection
from outbox_store.doubts import LOCK


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientAttempt:
    """One attempt of a client, as it stands now.

    Attributes:
        actor_id: whose it is.
        outcome, closed_by: what it came to and who said so; None while it is open.
        late_outcome: what its owner reported when it was closed already.
        newest: no other attempt was opened after it.
        sent_seconds_ago: since the first attempt that may have been sent; None where there is none.
        not_after_seconds: until nothing is carried out any more; negative once it has passed.
        provider_key, marker: what it was given to show the provider.
    """

    id: UUID
    actor_id: UUID
    epoch: int
    number: int
    outcome: Outcome | None
    closed_by: str | None
    late_outcome: Outcome | None
    newest: bool
    sent_seconds_ago: float | None
    not_after_seconds: float
    provider_key: str | None
    marker: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost(Named):
    """The supposed attempt that stands for what a client may have carried out before a loss, and the names of its effect.

    What the lost attempt was given to show the provider was derived from these alone, so it can be derived again (ADR 0004).
    """

    organization_id: UUID
    attempt_id: UUID
    generation: int


UNPLANTED = """
select r.organization_id, a.id as attempt_id, r.generation, g.name as organization, p.name as project, e.name as environment,
  n.name as connection, r.tool, r.scope, r.operation_key, r.occurrence, lineage.name as lineage_name
from reservations r
join attempts a on (a.organization_id, a.id) = (r.organization_id, r.last_attempt_id)
join organizations g on g.id = r.organization_id
join projects p on (p.organization_id, p.id) = (r.organization_id, r.project_id)
join environments e on (e.organization_id, e.id) = (r.organization_id, r.environment_id)
join connections n on (n.organization_id, n.id) = (r.organization_id, r.connection_id)
left join runs lineage on (lineage.organization_id, lineage.id) = (r.organization_id, r.lineage)
where (r.organization_id, r.id) = ($1, $2) and r.executor = 'client' and r.state = 'in_doubt' and a.supposed and a.marker is null
"""

_ATTEMPT = """
select a.id, a.actor_id, a.epoch, a.number, a.outcome, a.closed_by, a.late_outcome, a.id = r.last_attempt_id as newest,
  extract(epoch from now() - r.possible_send_at)::float8 as sent_seconds_ago,
  extract(epoch from r.not_after - now())::float8 as not_after_seconds, a.provider_key, a.marker
from attempts a join reservations r on (r.organization_id, r.id) = (a.organization_id, a.reservation_id)
where (a.organization_id, a.reservation_id) = ($1, $2) and r.executor = 'client'
"""

FIND = _ATTEMPT + "and a.id = $3"

# An attempt of this id that is there, whoever's it is, was not lost.
_OF_WHAT_STANDS_FOR_IT = """and a.id = r.last_attempt_id
  and exists (select from attempts s where (s.organization_id, s.reservation_id) = ($1, $2) and s.supposed)
  and r.state in ('reserved', 'executing', 'in_doubt', 'succeeded') and $4 in (r.actor_id, a.actor_id)
  and not exists (select from attempts k where (k.organization_id, k.id) = ($1, $3))
"""

STANDS_FOR = _ATTEMPT + _OF_WHAT_STANDS_FOR_IT

# The row of the attempt is locked by the update, and asked again after a wait: what has lapsed meanwhile is not renewed.
RENEW = """
update attempts a
set lease_until = greatest(a.lease_until, least(now() + make_interval(secs => a.lease_seconds),
  a.claimed_at + make_interval(secs => a.time_limit_seconds + $5),
  r.possible_send_at + make_interval(secs => $6)))
from reservations r
where (r.organization_id, r.id) = (a.organization_id, a.reservation_id) and r.executor = 'client'
  and a.organization_id = $1 and a.reservation_id = $2 and a.id = $3 and a.actor_id = $4 and a.outcome is null and a.lease_until > now()
returning a.lease_until, extract(epoch from a.lease_until - now())::float8 as lease_seconds
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Until when an attempt is its owner's.

    Attributes:
        lease_until: Postgres's time.
        lease_seconds: how long until then.
    """

    lease_until: datetime
    lease_seconds: float


async def unplanted(connection: Connection, organization_id: UUID, reservation_id: UUID) -> Lost | None:
    """The newest attempt of a client's doubt, where it is supposed and nobody has said yet what it planted; else None."""
    record = await connection.fetchrow(UNPLANTED, organization_id, reservation_id)
    return None if record is None else Lost(**dict(record))


async def find(connection: Connection, organization_id: UUID, reservation_id: UUID, attempt_id: UUID) -> ClientAttempt | None:
    """The attempt of this id of a client-executed reservation, or None."""
    return _attempt(await connection.fetchrow(FIND, organization_id, reservation_id, attempt_id))


async def stands_for_lost(
    connection: Connection, organization_id: UUID, reservation_id: UUID, attempt_id: UUID, actor_id: UUID
) -> ClientAttempt | None:
    """The newest attempt of a reservation that has been through a loss, in whose name a lost attempt of this id may be settled.

    Args:
        attempt_id: none that the ledger has.
        actor_id: who says that it was theirs; it must be who reserved, or who holds the newest attempt.
    """
    return _attempt(await connection.fetchrow(STANDS_FOR, organization_id, reservation_id, attempt_id, actor_id))


def _attempt(record: asyncpg.Record | None) -> ClientAttempt | None:
    if record is None:
        return None
    values = dict(record)
    for name in ("outcome", "late_outcome"):
        values[name] = None if values[name] is None else Outcome(values[name])
    return ClientAttempt(**values)


async def renew(
    connection: Connection,
    organization_id: UUID,
    reservation_id: UUID,
    attempt_id: UUID,
    actor_id: UUID,
    *,
    margin_seconds: float,
    window_seconds: float | None,
) -> Lease | None:
    """Extend the lease of an open attempt by what it was granted for.

    Args:
        actor_id: whose the attempt must be.
        margin_seconds: how long after the handler's time limit the lease may end at most.
        window_seconds: how long after the first possible sending a provider key is good; the lease never ends later. None: it
            is no concern.

    Returns:
        The lease as it is now; None where the attempt is closed, lapsed, another's, or none.
    """
    record = await connection.fetchrow(
        RENEW, organization_id, reservation_id, attempt_id, actor_id, margin_seconds, window_seconds
    )
    return None if record is None else Lease(**dict(record))


EVIDENCE_MAX = 20
"""How many entries a reservation has of what clients said and nothing could be done with: whoever names attempts of nobody's can go on."""

# What says the same about the same attempt is not written twice, however often it is said.
NOTE = """
insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, from_state, to_state, outcome, actor_chain,
  run, tool, operation_key, input_digest, declared, trace_id, detail)
select r.organization_id, r.environment_id, 'evidence', r.id,
  (select a.id from attempts a where (a.organization_id, a.reservation_id, a.id) = (r.organization_id, r.id, $3)), r.state, r.state, $4, $5,
  (select name from runs where (runs.organization_id, runs.id) = (r.organization_id, r.run_id)), r.tool, r.operation_key, r.input_digest,
  r.declared, r.trace_id, $6
from reservations r
where (r.organization_id, r.id) = ($1, $2) and not exists (
  select from ledger_entries e where (e.organization_id, e.reservation_id) = (r.organization_id, r.id) and e.kind = 'evidence'
    and e.outcome is not distinct from $4 and e.actor_chain = $5 and e.detail = $6
) and $7 > (
  select count(*) from ledger_entries e where (e.organization_id, e.reservation_id) = (r.organization_id, r.id) and e.kind = 'evidence'
    and e.detail ->> 'by' = 'client')
"""


async def note(
    connection: Connection,
    organization_id: UUID,
    reservation_id: UUID,
    attempt_id: UUID,
    *,
    outcome: Outcome,
    actor_chain: list[str],
    detail: dict[str, object],
) -> None:
    """Keep what a client said that could not be taken, as evidence in the ledger; it changes nothing.

    The same is kept once, and no more than `EVIDENCE_MAX` of one reservation.

    Args:
        connection: inside a transaction: the reservation is held in it, so that two at once are counted.
        attempt_id: as it was named; it need not exist.
        outcome: as it was said.
        actor_chain: who said it.
        detail: codes, ids and references only.
    """
    await connection.execute(LOCK, organization_id, reservation_id)
    said: dict[str, object] = {"by": "client", **detail}
    await connection.execute(NOTE, organization_id, reservation_id, attempt_id, outcome.value, actor_chain, said, EVIDENCE_MAX)
