"""Epochs: whether the ledger is the one that its workers remember, and what becomes of what is open when it is not.

A worker *looks* at the server and the ledger, compares what it finds with the marks kept outside (`outbox_domain.epoch`), and then
*beats*: the beat is committed here before it is marked outside. A loss *raises* the epoch, in one transaction that puts in doubt
everything whose request may have been sent in the tail that is gone. What is reserved later, while something may be lost, is
*suspected* one by one when it would be claimed first (`outbox_store.claim`).

What nobody remembers has a row all the same: a *supposed* attempt, closed as unknown, which look-ups and people are asked about
and receipts may name. Sources: design section 4 (Epoch), model README hole 3, ADR 0015.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from outbox_domain.epoch import CAUSE, Mark, Server, Standing, loss
from outbox_store.batches import columns
from outbox_store.connection import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A running Postgres that was compared with the marks, and the epoch it was found in.

    Attributes:
        started_at: when its postmaster started; no two servers share the microsecond.
        timeline: a promotion changes it without a new start.
    """

    epoch: int
    started_at: datetime
    timeline: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a look found.

    Attributes:
        missing: attempts asked for that the ledger does not have.
        possibly_lost: keys first seen are treated as possibly sent, in whichever environment has not cleared it.
    """

    standing: Standing
    instance: Instance
    missing: list[UUID]
    possibly_lost: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """A beat that is committed.

    Attributes:
        at: Postgres's time of it.
    """

    number: int
    at: datetime


LOOK = """
select i.id as installation_id, i.beat, e.number as epoch, e.system_identifier as known_system_identifier, e.timeline as known_timeline,
  coalesce(e.possibly_lost_until > now(), false) as possibly_lost, s.system_identifier,
  ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int as timeline, pg_postmaster_start_time() as started_at,
  array(
    select w.id from unnest($1::uuid[], $2::uuid[]) as w (organization_id, id)
    where not exists (select from attempts a where (a.organization_id, a.id) = (w.organization_id, w.id))
  ) as missing
from installation i
cross join (select * from epochs order by number desc limit 1) e
cross join pg_control_system() s
"""

# On the very server, and in the very epoch, that the look found; elsewhere it does nothing.
BEAT = """
with here as materialized (
  select i.beat_at from installation i
  where (pg_postmaster_start_time(), ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int) = ($1, $2::int)
    and $3 = (select max(number) from epochs)
), verified as (
  insert into instances (started_at, timeline, system_identifier, beat_at)
  select $1, $2, s.system_identifier, h.beat_at from here h cross join pg_control_system() s
  on conflict do nothing
)
update installation i set beat = i.beat + 1, beat_at = now() from here
returning i.beat as number, i.beat_at as at
"""

LOCK = "select id from installation for update"

# The first start after the mark that has been found wanting may have been verified by a worker that had no such mark.
RAISE = """
with last as materialized (
  select * from epochs order by number desc limit 1
), raised as (
  insert into epochs (number, cause, system_identifier, timeline, lost_since, possibly_lost_until)
  select greatest(p.number, $2::bigint) + 1, $1, s.system_identifier,
    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int,
    least(i.beat_at, (select min(n.beat_at) from instances n where n.verified_at > $3), case when p.possibly_lost_until > now() then p.lost_since end),
    now() + make_interval(secs => $4)
  from last p cross join installation i cross join pg_control_system() s
  returning *
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, actor_chain, detail)
  select v.organization_id, v.id, 'epoch', jsonb_build_array($5::text), jsonb_build_object('epoch', r.number, 'cause', r.cause, 'lost_since', r.lost_since,
    'possibly_lost_until', r.possibly_lost_until, 'timeline', r.timeline, 'system_identifier', r.system_identifier::text,
    'former_timeline', p.timeline, 'former_system_identifier', p.system_identifier::text)
  from environments v cross join raised r cross join last p
)
select number, lost_since, possibly_lost_until from raised
"""

OPEN = """
select r.organization_id, r.id, r.tool, r.contract_version, r.executor,
  extract(epoch from r.not_after - now())::float8 as not_after_seconds
from open_reservations o join reservations r on (r.organization_id, r.id) = (o.organization_id, o.reservation_id)
where r.state in ('reserved', 'executing', 'in_doubt')
order by r.organization_id, r.id
"""

OPEN_CONTRACTS = """
select distinct r.organization_id, r.tool, r.contract_version
from open_reservations o join reservations r on (r.organization_id, r.id) = (o.organization_id, o.reservation_id)
"""

# A reserved row gets a supposed attempt; an open attempt is closed as unknown; a doubt begins anew, and nothing known of it counts.
SUSPECT = """
with input as (
  select distinct on (organization_id, id) *
  from unnest($1::uuid[], $2::uuid[], $3::float8[], $4::float8[], $5::float8[])
    as i (organization_id, id, settle_seconds, recover_seconds, late_recover_seconds)
), epoch as materialized (
  select number, started_at, lost_since from epochs where lost_since is not null order by number desc limit 1
), locked as materialized (
  select r.*, i.settle_seconds, e.number as to_epoch, e.started_at, e.lost_since,
    case when r.late_write then i.late_recover_seconds else i.recover_seconds end as next_recover_seconds
  from input i join reservations r on (r.organization_id, r.id) = (i.organization_id, i.id) cross join epoch e
  where r.state in ('reserved', 'executing', 'in_doubt') and r.epoch <= e.number
    and (r.epoch < e.number or r.state = 'reserved' and r.suspected_epoch is distinct from e.number)
  order by r.organization_id, r.id
  for update of r
), judged as materialized (
  select l.*, case when l.state = 'reserved' then gen_random_uuid() else l.open_attempt_id end as doubted_attempt_id from locked l
), supposed as (
  insert into attempts (organization_id, id, reservation_id, number, epoch, actor_id, worker, resend, lease_until, outcome, closed_at, closed_by,
    reason, supposed)
  select organization_id, doubted_attempt_id, id, attempts + 1, to_epoch, actor_id, '', false, now(), 'unknown', now(), 'epoch',
    'may have been sent before the loss', true
  from judged where state = 'reserved'
), attempted as (
  update attempts a set outcome = 'unknown', closed_at = now(), closed_by = 'epoch', reason = 'the ledger lost its tail'
  from judged j where j.state = 'executing' and (a.organization_id, a.id) = (j.organization_id, j.open_attempt_id)
), changed as (
  update reservations r set
    state = 'in_doubt',
    epoch = j.to_epoch,
    suspected_epoch = j.to_epoch,
    attempts = r.attempts + (j.state = 'reserved')::int,
    unknown_attempts = r.unknown_attempts + (j.state <> 'in_doubt')::int,
    open_attempt_id = null,
    last_attempt_id = coalesce(j.doubted_attempt_id, r.last_attempt_id),
    last_attempt_outcome = case when j.state = 'in_doubt' then r.last_attempt_outcome else 'unknown' end,
    recovery_step = case when j.state = 'in_doubt' then r.recovery_step else 0 end,
    lookups = 0,
    absences = 0,
    possible_send_at = least(r.possible_send_at, j.lost_since),
    doubt_since = coalesce(r.doubt_since, now()),
    doubt_cause = case when j.state = 'in_doubt' then r.doubt_cause else $7 end,
    absence_counts_at = greatest(r.absence_counts_at,
      greatest(
        -- A client's handler that is lost is believed to have had no longer a limit than those that are known.
        j.started_at + make_interval(secs => greatest($6, (select max(greatest(a.time_limit_seconds, a.lease_seconds)) from attempts a
          where (a.organization_id, a.reservation_id) = (j.organization_id, j.id)))),
        (select a.lease_until + make_interval(secs => greatest(a.time_limit_seconds, a.lease_seconds, 0)) from attempts a
          where j.state = 'executing' and (a.organization_id, a.id) = (j.organization_id, j.open_attempt_id)))
      + make_interval(secs => j.settle_seconds)),
    generation = case
      when r.attempts > 0 then r.generation
      else (
        select coalesce(max(f.generation + f.refusal_stored::int), 0) from reservations f
        where (f.refusal_stored or f.generation > 0)
          and (f.organization_id, f.project_id, f.environment_id, f.connection_id, f.tool, f.scope, f.operation_key, f.occurrence)
            = (j.organization_id, j.project_id, j.environment_id, j.connection_id, j.tool, j.scope, j.operation_key, j.occurrence))
    end,
    person_asked_at = case
      when j.state <> 'in_doubt' and j.next_recover_seconds is null then coalesce(r.person_asked_at, now())
      else r.person_asked_at
    end,
    changed_at = now()
  from judged j
  where (r.organization_id, r.id) = (j.organization_id, j.id)
), watched as (
  update open_reservations o set due_at = coalesce(now() + make_interval(secs => j.next_recover_seconds), 'infinity')
  from judged j where (o.organization_id, o.reservation_id) = (j.organization_id, j.id) and j.state <> 'in_doubt'
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, from_state, to_state, outcome, actor_chain,
    run, tool, operation_key, input_digest, declared, trace_id, detail)
  select organization_id, environment_id, case when state = 'in_doubt' then 'evidence' else 'in-doubt' end, id,
    coalesce(doubted_attempt_id, last_attempt_id), state, 'in_doubt', case when state <> 'in_doubt' then 'unknown' end, actor_chain,
    (select name from runs where (runs.organization_id, runs.id) = (judged.organization_id, judged.run_id)), tool, operation_key,
    input_digest, declared, trace_id, jsonb_build_object('by', 'epoch', 'reason', $7, 'epoch', to_epoch)
  from judged
)
select id, state as former_state, next_recover_seconds is null and state <> 'in_doubt' as for_a_person from judged
"""


CURRENT = """
select e.number, e.started_at, e.cause, e.lost_since, e.possibly_lost_until, c.cleared_at, c.cleared_by, c.reason,
  coalesce(e.possibly_lost_until > now() and c.epoch is null, false) as possibly_lost,
  (select count(*) from open_reservations o join reservations r on (r.organization_id, r.id) = (o.organization_id, o.reservation_id)
   where o.organization_id = $1 and r.state = 'in_doubt' and r.environment_id = $3 and r.doubt_cause = $2) as in_doubt
from (select * from epochs order by number desc limit 1) e
left join epoch_clearances c on (c.organization_id, c.environment_id, c.epoch) = ($1, $3, e.number)
"""

# Whoever clears an epoch twice finds the first answer; another epoch than the newest is cleared by nobody.
CLEAR = """
with cleared as (
  insert into epoch_clearances (organization_id, environment_id, epoch, cleared_by, reason)
  select $1, $5, e.number, $3::jsonb, $4 from (select number from epochs order by number desc limit 1) e where e.number = $2
  on conflict do nothing
  returning epoch
)
insert into ledger_entries (organization_id, environment_id, kind, actor_chain, detail)
select $1, $5, 'epoch-cleared', $3::jsonb, jsonb_build_object('epoch', epoch, 'reason', $4) from cleared
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochView:
    """The newest epoch as an environment of an organization sees it.

    Attributes:
        cleared_at, cleared_by, reason: of the environment's own clearance; None where there is none.
        possibly_lost: its keys first seen are treated as possibly sent.
        in_doubt: how many of its reservations are in doubt because of a loss.
    """

    number: int
    started_at: datetime
    cause: str
    lost_since: datetime | None
    possibly_lost_until: datetime | None
    cleared_at: datetime | None
    cleared_by: list[str] | None
    reason: str | None
    possibly_lost: bool
    in_doubt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspicion:
    """A reservation whose request may have been sent before the loss.

    Attributes:
        settle_seconds: the contract's settle time; an absence counts so long after what was lost can have left last.
        recover_seconds: when the first recovery is due; None: a person must look.
        late_recover_seconds: the same, should there be a late write.
    """

    organization_id: UUID
    id: UUID
    settle_seconds: float
    recover_seconds: float | None
    late_recover_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """What a contract says of its doubts, as in `Suspicion`."""

    settle_seconds: float
    recover_seconds: float | None
    late_recover_seconds: float | None


ContractKey = tuple[UUID, str, int]
"""Organization, tool and version: the contract that a reservation pins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Raised:
    """A new epoch.

    Attributes:
        lost_since: what was committed before is still there.
        suspected: how many reservations are in doubt because of it.
    """

    number: int
    cause: str
    lost_since: datetime
    possibly_lost_until: datetime
    suspected: int


async def look(connection: Connection, marks: Sequence[Mark]) -> Look:
    """What the server and the ledger say, and which of the marks' witnesses are missing.

    Args:
        connection: to the primary; a standby refuses it.
        marks: read before this is called.
    """
    witnesses = [mark.witness for mark in marks if mark.witness is not None]
    record = await connection.fetchrow(LOOK, *columns(witnesses, ["organization_id", "attempt_id"]))
    if record is None:
        raise LookupError("the ledger has no row in `installation`: its migrations are not complete")
    return Look(
        standing=Standing(
            installation_id=record["installation_id"],
            epoch=record["epoch"],
            beat=record["beat"],
            known=Server(system_identifier=record["known_system_identifier"], timeline=record["known_timeline"]),
            found=Server(system_identifier=record["system_identifier"], timeline=record["timeline"]),
        ),
        instance=Instance(epoch=record["epoch"], started_at=record["started_at"], timeline=record["timeline"]),
        missing=record["missing"],
        possibly_lost=record["possibly_lost"],
    )


async def beat(connection: Connection, instance: Instance) -> Beat | None:
    """Say that an instance was compared with the marks and found in order; what is returned may then be marked outside.

    Returns:
        None where the statement ran on another server or in another epoch than that was said of.
    """
    record = await connection.fetchrow(BEAT, instance.started_at, instance.timeline, instance.epoch)
    return None if record is None else Beat(**record)


PINNED = """
select r.organization_id, r.tool, r.contract_version
from open_reservations o join reservations r on (r.organization_id, r.id) = (o.organization_id, o.reservation_id)
where o.reservation_id = $2 and ($1::uuid is null or o.organization_id = $1)
"""


async def pinned(connection: Connection, organization_id: UUID | None, reservation_id: UUID) -> ContractKey | None:
    """The contract of an open reservation; None where it is not open any more."""
    record = await connection.fetchrow(PINNED, organization_id, reservation_id)
    return None if record is None else tuple(record)


async def open_contracts(connection: Connection) -> list[ContractKey]:
    """The contracts of everything open."""
    return [tuple(record) for record in await connection.fetch(OPEN_CONTRACTS)]


async def raise_epoch(
    connection: Connection,
    marks: Sequence[Mark],
    *,
    times: Mapping[ContractKey, Times],
    unreadable: Times,
    lease_seconds: float,
    possibly_lost_seconds: float,
    by: str,
) -> Raised | None:
    """Declare the loss of the ledger's tail: a new epoch, and everything open is in doubt.

    It is done once, however many workers find the loss: they queue for one row, and who comes second finds nothing lost any more.

    Args:
        connection: inside a transaction.
        marks: read before the transaction began.
        times: what the contracts of open reservations say of doubts.
        unreadable: the same where a contract cannot be read.
        lease_seconds: how long after the loss a worker of before can still have been sending.
        possibly_lost_seconds: for how long a key first seen is treated as possibly sent.
        by: who declares it, for the ledger.

    Returns:
        None where nothing is lost.
    """
    await connection.fetch(LOCK)
    # A statement of its own: what waited for the lock must see the epoch that was raised meanwhile.
    found = await look(connection, marks)
    cause = loss(found.standing, marks, found.missing)
    if cause is None:
        return None
    own = [mark for mark in marks if mark.installation_id == found.standing.installation_id]
    newest = max((mark.epoch for mark in own), default=0)
    marked_at = max((mark.at_ms for mark in own if mark.epoch >= found.standing.epoch), default=None)
    raised = await connection.fetchrow(
        RAISE,
        cause,
        newest,
        None if marked_at is None else datetime.fromtimestamp(marked_at / 1000, UTC),
        possibly_lost_seconds,
        by,
    )
    if raised is None:
        raise LookupError("the ledger has no epoch to begin the next one after")
    rows = []
    for record in await connection.fetch(OPEN):
        said = times.get((record["organization_id"], record["tool"], record["contract_version"]), unreadable)
        again, late = said.recover_seconds, said.late_recover_seconds
        if record["executor"] == "client":
            # The next caller ends it, until its time is over; nobody looks into it by himself before.
            again = late = record["not_after_seconds"] if record["not_after_seconds"] > 0 else None
        rows.append(
            Suspicion(
                organization_id=record["organization_id"],
                id=record["id"],
                settle_seconds=said.settle_seconds,
                recover_seconds=again,
                late_recover_seconds=late,
            )
        )
    suspected = await suspect(connection, rows, lease_seconds=lease_seconds)
    return Raised(
        number=raised["number"],
        cause=cause,
        lost_since=raised["lost_since"],
        possibly_lost_until=raised["possibly_lost_until"],
        suspected=len(suspected),
    )


async def suspect(connection: Connection, rows: Sequence[Suspicion], *, lease_seconds: float) -> list[UUID]:
    """Put in doubt what may have been sent before the loss, unless it was considered in this epoch already.

    Args:
        rows: any number, in any order.
        lease_seconds: how long after the epoch's start a worker of before can still have been sending.

    Returns:
        Those that this call moved.
    """
    if not rows:
        return []
    names = ["organization_id", "id", "settle_seconds", "recover_seconds", "late_recover_seconds"]
    records = await connection.fetch(SUSPECT, *columns(rows, names), lease_seconds, CAUSE)
    return [record["id"] for record in records]


async def current(connection: Connection, organization_id: UUID, environment_id: UUID) -> EpochView:
    """The newest epoch, as one environment of an organization sees it."""
    record = await connection.fetchrow(CURRENT, organization_id, CAUSE, environment_id)
    if record is None:
        raise LookupError("the ledger has no epoch: its migrations are not complete")
    return EpochView(**record)


async def clear(
    connection: Connection, organization_id: UUID, environment_id: UUID, number: int, *, actor_chain: list[str], reason: str
) -> None:
    """Say for an environment that nothing of it was lost when an epoch began: keys first seen are new again.

    Args:
        number: of the newest epoch; nothing is cleared where it is another one by now, or cleared already.
        actor_chain: who says so.
        reason: why, in the person's words.
    """
    await connection.execute(CLEAR, organization_id, number, actor_chain, reason, environment_id)
