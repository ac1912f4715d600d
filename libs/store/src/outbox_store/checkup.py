"""What `outbox doctor` asks of Postgres beside the invariants: how durable it is, and how many effects a window of time had."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from outbox_store.connection import Connection

DURABLE = {"fsync": ("on",), "full_page_writes": ("on",), "synchronous_commit": ("on", "remote_apply", "remote_write")}
"""What each setting must be for a commit to survive the death of the machine: Postgres's own manual, chapter "Reliability"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A setting on which durability rests.

    Attributes:
        where: `server`, or the role or database that has it otherwise.
        durable: whether a commit survives the death of the machine with it.
    """

    name: str
    value: str
    where: str
    durable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The effects that were asked for in a window of time.

    Attributes:
        planned: reservations made in it; each stands for one effect that somebody wants.
        succeeded, failed, voided, denied, in_doubt, running: where they stand now.
        needs_person: those in doubt that automatic recovery has given up.
        receipts: of those that succeeded.
        attempts: that were made for them.
        contradictions: against them that nobody has closed.
    """

    planned: int
    succeeded: int
    receipts: int
    in_doubt: int
    needs_person: int
    running: int
    failed: int
    voided: int
    denied: int
    attempts: int
    contradictions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What a connection was used for in a window of time.

    Attributes:
        name, environment: of the connection, and of the environment it belongs to.
        receipts: of what was planned in the window; `answered`, `looked_up`, `told` and `asserted` say what they rest on: the
            answer, a look-up, a webhook, a person.
    """

    organization_id: UUID
    connection_id: UUID
    name: str
    environment: str
    provider: str
    base_url: str
    planned: int
    receipts: int
    answered: int
    looked_up: int
    told: int
    asserted: int


SERVER = "select name, setting from pg_settings where name = any($1) order by name"
# A role or a database may have its own setting, which a session of somebody else does not show.
OVERRIDDEN = """
select split_part(each, '=', 1) as name, split_part(each, '=', 2) as setting,
  coalesce('role ' || r.rolname, '') || case when r.rolname is not null and d.datname is not null then ' in ' else '' end
    || coalesce('database ' || d.datname, '') as place
from pg_db_role_setting s cross join unnest(s.setconfig) as each
left join pg_roles r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase
where split_part(each, '=', 1) = any($1) and (d.datname is null or d.datname = current_database())
order by 3, 1
"""
WINDOW = """
with planned as (
  select r.organization_id, r.id, r.state, o.due_at
  from reservations r left join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id)
  where r.created_at >= now() - make_interval(secs => $1)
)
select count(*) as planned,
  count(*) filter (where state = 'succeeded') as succeeded,
  (select count(*) from receipts t join planned p on (p.organization_id, p.id) = (t.organization_id, t.reservation_id)) as receipts,
  count(*) filter (where state = 'in_doubt') as in_doubt,
  count(*) filter (where state = 'in_doubt' and due_at = 'infinity') as needs_person,
  count(*) filter (where state in ('awaiting_review', 'reserved', 'executing')) as running,
  count(*) filter (where state = 'failed') as failed,
  count(*) filter (where state = 'voided') as voided,
  count(*) filter (where state = 'denied') as denied,
  (select count(*) from attempts a join planned p on (p.organization_id, p.id) = (a.organization_id, a.reservation_id)) as attempts,
  (select count(*) from contradictions c join planned p on (p.organization_id, p.id) = (c.organization_id, c.reservation_id)
    where c.closed_at is null) as contradictions
from planned
"""


ACCOUNTS = """
select n.organization_id, n.id as connection_id, n.name, e.name as environment, n.provider, n.base_url,
  count(*) as planned, count(t.id) as receipts,
  count(*) filter (where t.confidence = 'confirmed') as answered,
  count(*) filter (where t.confidence = 'confirmed-by-lookup') as looked_up,
  count(*) filter (where t.confidence = 'confirmed-by-webhook') as told,
  count(*) filter (where t.confidence = 'asserted') as asserted
from reservations r
join connections n on (n.organization_id, n.id) = (r.organization_id, r.connection_id)
join environments e on (e.organization_id, e.id) = (r.organization_id, r.environment_id)
left join receipts t on (t.organization_id, t.reservation_id) = (r.organization_id, r.id)
where r.created_at >= now() - make_interval(secs => $1)
group by 1, 2, 3, 4, 5, 6
order by 4, 3, 1, 2
"""
# Receipts of any time: what was planned before the window may have been done in it.
HELD = """
select distinct t.external_reference from receipts t
join reservations r on (r.organization_id, r.id) = (t.organization_id, t.reservation_id)
where r.connection_id = any($1::uuid[]) and t.external_reference = any($2::text[])
"""
MISSED = """
select t.external_reference from receipts t
join reservations r on (r.organization_id, r.id) = (t.organization_id, t.reservation_id)
where r.connection_id = any($1::uuid[]) and t.settled_at between $3::timestamptz - make_interval(secs => $4) and $3 and t.external_reference <> all($2::text[])
order by 1 limit $5
"""


async def accounts(connection: Connection, *, seconds: float) -> list[Account]:
    """What each connection was used for in the last so many seconds."""
    return [Account(**record) for record in await connection.fetch(ACCOUNTS, seconds)]


async def held(connection: Connection, connection_ids: Sequence[UUID], references: Sequence[str]) -> set[str]:
    """Which effects of a provider's own list have a receipt here."""
    records = await connection.fetch(HELD, list(connection_ids), list(references))
    return {record["external_reference"] for record in records}


async def missed(
    connection: Connection,
    connection_ids: Sequence[UUID],
    references: Sequence[str],
    *,
    until: datetime,
    seconds: float,
    limit: int,
) -> list[str]:
    """Receipts of a window whose effect is not in a provider's own list.

    Args:
        references: the whole list.
        until: the end of the window; the list is younger.
        seconds: how long it is.
        limit: at most so many.
    """
    records = await connection.fetch(MISSED, list(connection_ids), list(references), until, seconds, limit)
    return [record["external_reference"] for record in records]


async def clock(connection: Connection) -> datetime:
    """When this transaction began."""
    now: datetime = await connection.fetchval("select now()")
    return now


async def durability(connection: Connection) -> list[Setting]:
    """The settings on which durability rests: the server's, and those of roles and databases that have their own."""
    names = list(DURABLE)
    found = [(record["name"], record["setting"], "server") for record in await connection.fetch(SERVER, names)]
    found += [(record["name"], record["setting"], record["place"]) for record in await connection.fetch(OVERRIDDEN, names)]
    return [Setting(name=name, value=value, where=where, durable=value in DURABLE[name]) for name, value, where in found]


async def window(connection: Connection, *, seconds: float) -> Window:
    """The effects that were asked for in the last so many seconds."""
    record = await connection.fetchrow(WINDOW, seconds)
    assert record is not None, "a count without groups is one row"
    return Window(**record)
