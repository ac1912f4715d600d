"""Doubts as people work on them: what stands under a person's hand, which there are, and asking recovery to look again.

What a person says of one is written down by `outbox_store.resolve`; this module finds the rows and holds them still meanwhile.
Source: design section 4 (rules of doubt), `interfaces.md` section 3.
"""

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """Only doubts that have all of these; None: any.

    Attributes:
        run: the caller's name of the run.
        needs: who looks into it next, `person` or `recovery`.
    """

    connection: str | None = None
    tool: str | None = None
    guarantee_class: str | None = None
    cause: str | None = None
    run: str | None = None
    needs: str | None = None
    reservation_id: UUID | None = None
    project_id: UUID | None = None

    def values(self) -> list[object]:
        """The binds of the conditions, in the order of the fields."""
        return [getattr(self, name) for name in self.__dataclass_fields__]


@dataclass(frozen=True, kw_only=True, slots=True)
class DoubtView:
    """One doubt, for whoever works on many.

    Attributes:
        next_check: when automatic recovery looks next; None where only a person can end it.
        absence_counts_seconds: how long until an absence counts; zero where it does.
    """

    id: UUID
    tool: str
    provider: str
    contract_version: int
    connection: str
    guarantee_class: str
    cause: str
    operation_key: str
    recovery_step: int
    amount: int | None
    currency: str | None
    doubt_since: datetime
    next_check: datetime | None
    absence_counts_at: datetime
    absence_counts_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DoubtCount:
    """Doubts that are alike.

    Attributes:
        recovery_step: which of the contract's ways out of doubt is tried next, where recovery is due.
        needs_person: automatic recovery has nothing left to try.
        oldest: since when the oldest of them is in doubt.
        amount: the money at stake in them together, in minor units of `currency`.
        next_check: when recovery looks at the first of them.
        absence_counts: of how many an absence counts already.
        absence_counts_at: from when it counts of all.
    """

    connection: str
    provider: str
    tool: str
    contract_version: int
    guarantee_class: str
    cause: str
    recovery_step: int
    needs_person: bool
    currency: str | None
    count: int
    oldest: datetime
    amount: int
    next_check: datetime | None
    absence_counts: int
    absence_counts_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeCount:
    """The doubts of one tool in an open episode that wait for a person.

    Attributes:
        attention: who is disturbed by the episode.
        doubts: how many there were in it since it was opened, of all tools.
        waiting: how many of this tool wait now.
        oldest: since when the oldest of those is in doubt.
        amount: the money at stake in them together, in minor units of `currency`.
        owners: who looks after the tool.
    """

    id: UUID
    connection: str
    provider: str
    tool: str
    cause: str
    attention: str
    opened_at: datetime
    doubts: int
    waiting: int
    oldest: datetime
    currency: str | None
    amount: int
    owners: list[str]


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


# The watch list of open reservations is narrow; the reservations themselves have no index that names their state.
_DOUBTS = """
from open_reservations o
join reservations r on (r.organization_id, r.id) = (o.organization_id, o.reservation_id)
join connections n on (n.organization_id, n.id) = (r.organization_id, r.connection_id)
left join runs run on (run.organization_id, run.id) = (r.organization_id, r.run_id)
where o.organization_id = $1 and r.environment_id = $2 and r.state = 'in_doubt'
  and ($3::text is null or n.name = $3)
  and ($4::text is null or r.tool = $4)
  and ($5::text is null or r.guarantee_class = $5)
  and ($6::text is null or r.doubt_cause = $6)
  and ($7::text is null or run.name = $7)
  and ($8::text is null or (case when o.due_at < 'infinity' then 'recovery' else 'person' end) = $8)
  and ($9::uuid is null or r.id = $9)
  and ($10::uuid is null or r.project_id = $10)
"""
TOOLS = f"select distinct r.tool, n.provider {_DOUBTS}"
LIST = f"""
select r.id, r.tool, n.provider, r.contract_version, n.name as connection, r.guarantee_class, coalesce(r.doubt_cause, '') as cause,
  r.operation_key, r.recovery_step, r.amount, r.currency, r.doubt_since,
  case when o.due_at < 'infinity' then o.due_at end as next_check, r.absence_counts_at,
  greatest(0, extract(epoch from r.absence_counts_at - now()))::float8 as absence_counts_seconds
{_DOUBTS}
  and (r.tool, n.provider) in (select * from unnest($12::text[], $13::text[]))
order by r.doubt_since, r.id
limit $11
"""  # noqa: S608 - a constant of this module
SUMMARY = f"""
select n.name as connection, n.provider, r.tool, r.contract_version, r.guarantee_class, coalesce(r.doubt_cause, '') as cause, r.recovery_step,
  o.due_at = 'infinity' as needs_person, r.currency, count(*) as count, min(r.doubt_since) as oldest,
  coalesce(sum(r.amount), 0)::bigint as amount, min(o.due_at) filter (where o.due_at < 'infinity') as next_check,
  count(*) filter (where r.absence_counts_at <= now()) as absence_counts, max(r.absence_counts_at) as absence_counts_at
{_DOUBTS}
group by 1, 2, 3, 4, 5, 6, 7, 8, 9
order by 1, 3, 5, 6, 7, 8, 9
"""

EPISODES = f"""
select e.id, d.connection, d.provider, d.tool, e.cause, e.attention, e.opened_at, e.doubts, count(*) as waiting, min(d.doubt_since) as oldest,
  d.currency, coalesce(sum(d.amount), 0)::bigint as amount, array_agg(distinct d.owner) as owners
from (
  select r.organization_id, r.connection_id, coalesce(r.doubt_cause, '') as cause, r.tool, r.owner, r.doubt_since, r.amount, r.currency,
    n.name as connection, n.provider
  {_DOUBTS} and r.person_asked_at is not null
) d
join doubt_episodes e on (e.organization_id, e.connection_id, e.cause) = (d.organization_id, d.connection_id, d.cause) and e.closed_at is null
group by e.organization_id, e.id, d.connection, d.provider, d.tool, d.currency
order by e.opened_at, e.id, d.tool, d.currency
"""  # noqa: S608 - a constant of this module

MEASURE = """
select attention, count(*) as episodes, sum(waiting)::bigint as waiting from doubt_episodes where closed_at is null group by attention
"""

RECHECK = """
with input as (
  select * from unnest($2::uuid[]) with ordinality as i (id, place)
), locked as materialized (
  select r.*, i.place from input i join reservations r on (r.organization_id, r.id) = ($1, i.id)
  where r.state = 'in_doubt'
  order by r.organization_id, r.id
  for update of r
), changed as (
  update reservations r set recovery_step = 0, lookups = 0, absences = 0, person_asked_at = null, changed_at = now()
  from locked l where (r.organization_id, r.id) = (l.organization_id, l.id)
), held as materialized (
  select o.organization_id, o.reservation_id, l.place
  from locked l join open_reservations o on (o.organization_id, o.reservation_id) = (l.organization_id, l.id)
  order by o.organization_id, o.reservation_id
  for update of o
), watched as (
  update open_reservations o set due_at = now() + make_interval(secs => (h.place - 1) * $3::float8)
  from held h where (o.organization_id, o.reservation_id) = (h.organization_id, h.reservation_id)
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, from_state, to_state, actor_chain,
    run, tool, operation_key, input_digest, declared, trace_id, detail)
  select organization_id, environment_id, 'recheck', id, last_attempt_id, 'in_doubt', 'in_doubt', $4::jsonb,
    (select name from runs where (runs.organization_id, runs.id) = (locked.organization_id, locked.run_id)), tool, operation_key,
    input_digest, declared, trace_id, jsonb_build_object('by', 'person', 'reason', $5::text, 'batch_id', $6::uuid)
  from locked
)
select id from locked
"""


async def list_(
    connection: Connection,
    organization_id: UUID,
    environment_id: UUID,
    where: Where,
    *,
    reaches: Callable[[str, str], bool],
    limit: int,
) -> list[DoubtView]:
    """Doubts, the oldest first.

    Args:
        reaches: whether they are asked for of a tool and its provider; what is not takes no place of what is.
        limit: at most so many.
    """
    of = (organization_id, environment_id, *where.values())
    found = await connection.fetch(TOOLS, *of)
    reached = [(record["tool"], record["provider"]) for record in found if reaches(record["tool"], record["provider"])]
    records = await connection.fetch(LIST, *of, limit, [tool for tool, _ in reached], [provider for _, provider in reached])
    return [DoubtView(**record) for record in records]


async def summary(connection: Connection, organization_id: UUID, environment_id: UUID, where: Where) -> list[DoubtCount]:
    """How many doubts of each kind there are."""
    records = await connection.fetch(SUMMARY, organization_id, environment_id, *where.values())
    return [DoubtCount(**record) for record in records]


async def episodes(connection: Connection, organization_id: UUID, environment_id: UUID, where: Where) -> list[EpisodeCount]:
    """What people are asked about now, the oldest first; a row for each tool and currency of an episode."""
    records = await connection.fetch(EPISODES, organization_id, environment_id, *where.values())
    return [EpisodeCount(**record) for record in records]


async def measure(connection: Connection) -> dict[str, tuple[int, int]]:
    """How many episodes are open and how many doubts wait for a person in them, by attention, of all organizations."""
    return {record["attention"]: (record["episodes"], record["waiting"]) for record in await connection.fetch(MEASURE)}


async def recheck(
    connection: Connection,
    organization_id: UUID,
    ids: Sequence[UUID],
    *,
    pause_seconds: float,
    actor_chain: list[str],
    reason: str,
    batch_id: UUID,
) -> list[UUID]:
    """Let automatic recovery begin again, one doubt after the other.

    Args:
        ids: which; those that are not in doubt any more are left alone.
        pause_seconds: between two of them.
        actor_chain: who asks for it.
        reason: why, in the person's words.
        batch_id: stands in every ledger entry of this.

    Returns:
        Those that recovery takes up again.
    """
    records = await connection.fetch(RECHECK, organization_id, list(ids), pause_seconds, actor_chain, reason, batch_id)
    return [record["id"] for record in records]
