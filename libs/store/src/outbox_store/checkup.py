"""What `outbox doctor` asks of Postgres beside the invariants: how durable it is, and how many effects a window of time had."""

from dataclasses import dataclass

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
