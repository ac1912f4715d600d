"""What is due: open reservations that somebody must look at, and attempts whose lease has lapsed."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from outbox_domain.reservation import State
from outbox_store.batches import Failed, columns, in_halves
from outbox_store.connection import Connection
from outbox_store.reserve import Executor


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """An open reservation whose time has come.

    Attributes:
        attempt_id: the open attempt.
        lapsed: its attempt is open and the lease is over.
        last_attempt_id: the newest attempt, open or closed.
        last_status: what the provider answered to it; None without an answer.
        sent_seconds_ago: since it may have been sent; for ever, where a loss of the ledger's tail leaves that open.
        conflicted: the provider said that the identity is taken.
        doubt_seconds: since the doubt began.
        executor: who carries it out. Of a client's only the time is kept here: its leases lapse, and what is late is withdrawn or left
            to a person.
        not_after_seconds: until nothing of it is sent any more; negative once that has passed.
        trial: it is the one that an open breaker lets through.
        epoch: in which it was opened last; what an older one than the newest has left may have been carried out in what was lost.
    """

    organization_id: UUID
    reservation_id: UUID
    connection_id: UUID
    state: State
    tool: str
    contract_version: int
    attempt_id: UUID | None
    lapsed: bool
    last_attempt_id: UUID | None
    last_status: int | None
    sent_seconds_ago: float | None
    conflicted: bool
    doubt_seconds: float | None
    resends: int
    recovery_step: int
    stored_failure: bool
    late_write: bool
    executor: Executor
    epoch: int
    not_after_seconds: float
    trial: bool
    possible_send_seconds_ago: float | None
    overdue_seconds: float


DUE = """
select o.organization_id, o.reservation_id, r.connection_id, r.state, r.tool, r.contract_version, r.open_attempt_id as attempt_id,
  coalesce(a.lease_until <= now(), false) as lapsed, r.last_attempt_id,
  (select l.provider_status from attempts l where (l.organization_id, l.id) = (r.organization_id, r.last_attempt_id)) as last_status,
  (select case l.closed_by when 'epoch' then 'infinity' else extract(epoch from now() - l.claimed_at)::float8 end
    from attempts l where (l.organization_id, l.id) = (r.organization_id, r.last_attempt_id)) as sent_seconds_ago, r.conflicted, extract(epoch from now() - r.doubt_since)::float8 as doubt_seconds,
  r.resends, r.recovery_step, r.stored_failure, r.late_write, r.executor, r.epoch, extract(epoch from r.not_after - now())::float8 as not_after_seconds,
  exists (select from breakers b where b.organization_id = r.organization_id and b.closed_at is null and b.trial_reservation_id = r.id) as trial,
  extract(epoch from now() - r.possible_send_at)::float8 as possible_send_seconds_ago,
  extract(epoch from now() - o.due_at)::float8 as overdue_seconds
from open_reservations o
join reservations r on (r.organization_id, r.id) = (o.organization_id, o.reservation_id)
left join attempts a on (a.organization_id, a.id) = (r.organization_id, r.open_attempt_id)
where o.due_at <= now() - make_interval(secs => $1)
  and (r.state <> 'executing' or a.lease_until <= now())
  and (r.state = 'executing' or r.executor = 'client' or r.connection_id <> all($3::uuid[]))
order by o.due_at
limit $2
"""

LAPSE = """
with input as (
  select distinct on (organization_id, id) * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::float8[], $5::float8[], $6::float8[])
    as i (organization_id, id, attempt_id, settle_seconds, recover_seconds, late_recover_seconds)
), locked as materialized (
  select r.*, i.attempt_id, i.settle_seconds, a.lease_until, greatest(a.time_limit_seconds, a.lease_seconds, 0) as pause_seconds,
    case when r.late_write then i.late_recover_seconds else i.recover_seconds end as next_recover_seconds
  from input i
  join reservations r on (r.organization_id, r.id) = (i.organization_id, i.id)
  join attempts a on (a.organization_id, a.id) = (i.organization_id, i.attempt_id)
  where r.state = 'executing' and r.open_attempt_id = i.attempt_id
  order by r.organization_id, r.id
  for update of r, a
), lapsed as materialized (
  select * from locked where lease_until <= now()
), attempted as (
  update attempts a set outcome = 'unknown', closed_at = now(), closed_by = 'lapse', reason = 'lease lapsed'
  from lapsed l where (a.organization_id, a.id) = (l.organization_id, l.attempt_id)
), changed as (
  update reservations r set state = 'in_doubt', open_attempt_id = null, last_attempt_outcome = 'unknown',
    unknown_attempts = r.unknown_attempts + 1, doubt_since = coalesce(r.doubt_since, now()), doubt_cause = 'lease lapsed',
    absence_counts_at = greatest(r.absence_counts_at, l.lease_until + make_interval(secs => l.pause_seconds + l.settle_seconds)), changed_at = now(),
    person_asked_at = case when l.next_recover_seconds is null then coalesce(r.person_asked_at, now()) else r.person_asked_at end
  from lapsed l where (r.organization_id, r.id) = (l.organization_id, l.id)
), watched as (
  update open_reservations o set due_at = coalesce(now() + make_interval(secs => l.next_recover_seconds), 'infinity')
  from lapsed l where (o.organization_id, o.reservation_id) = (l.organization_id, l.id)
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, from_state, to_state, outcome, actor_chain,
    run, tool, operation_key, input_digest, declared, trace_id, detail)
  select organization_id, environment_id, 'in-doubt', id, attempt_id, 'executing', 'in_doubt', 'unknown', actor_chain,
    (select name from runs where (runs.organization_id, runs.id) = (lapsed.organization_id, lapsed.run_id)), tool, operation_key,
    input_digest, declared, trace_id, jsonb_build_object('reason', 'lease lapsed')
  from lapsed
)
select organization_id, id from lapsed
"""

# The reservation is locked first: an attempt that is opened at the same time must keep its own time in the watch row.
GIVE_UP = """
with doubt as materialized (
  select r.* from reservations r
  where (r.organization_id, r.id) = ($1, $2) and r.state = 'in_doubt' and r.last_attempt_id is not distinct from coalesce($3, r.last_attempt_id)
  for update
), asked as (
  update reservations r set person_asked_at = coalesce(r.person_asked_at, now()), recovery_step = greatest(r.recovery_step, $4)
  from doubt d where (r.organization_id, r.id) = (d.organization_id, d.id)
), watched as (
  update open_reservations o set due_at = 'infinity' from doubt d where (o.organization_id, o.reservation_id) = (d.organization_id, d.id)
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, from_state, to_state, actor_chain,
    run, tool, operation_key, input_digest, declared, trace_id, detail)
  select d.organization_id, d.environment_id, 'evidence', d.id, d.last_attempt_id, 'in_doubt', 'in_doubt', d.actor_chain,
    (select name from runs where (runs.organization_id, runs.id) = (d.organization_id, d.run_id)), d.tool, d.operation_key, d.input_digest,
    d.declared, d.trace_id, $5::jsonb
  from doubt d where $5::jsonb is not null
)
select id from doubt
"""

# Only what is still due: a claim that was faster has given the row a time of its own.
POSTPONE = """
with held as materialized (
  -- In the order in which everybody locks many of them, so that nobody waits for one that waits for it.
  select o.organization_id, o.reservation_id, i.seconds
  from unnest($1::uuid[], $2::uuid[], $3::float8[]) as i (organization_id, id, seconds)
  join open_reservations o on (o.organization_id, o.reservation_id) = (i.organization_id, i.id)
  where o.due_at <= now()
  order by o.organization_id, o.reservation_id
  for update of o
)
update open_reservations o set due_at = now() + make_interval(secs => h.seconds)
from held h where (o.organization_id, o.reservation_id) = (h.organization_id, h.reservation_id)
"""

NEW_TURNS = """
insert into recovery_turns (organization_id, connection_id, pace_seconds, taken_at) values ($1, $2, $3, '-infinity') on conflict do nothing
"""

# Of two workers the second waits for the first, and reads what that one has left. A turn that is taken ahead stands for the time at
# which it would have come, so that no more than $4 are ever ahead.
TURNS = """
with held as materialized (
  select t.*, greatest(t.taken_at + make_interval(secs => $3), now()) as first_at
  from recovery_turns t where (t.organization_id, t.connection_id, t.pace_seconds) = ($1, $2, $3)
  for update
), judged as materialized (
  select h.*, least($5, greatest(0, 1 + floor(extract(epoch from now() - h.first_at) / $3::numeric) + $4 - 1))::int as taken from held h
), taking as (
  update recovery_turns t set taken_at = j.first_at + make_interval(secs => $3 * (j.taken - 1))
  from judged j
  where (t.organization_id, t.connection_id, t.pace_seconds) = (j.organization_id, j.connection_id, j.pace_seconds) and j.taken > 0
)
select taken, greatest(0, extract(epoch from first_at - now()) + $3::numeric * (taken + 1 - $4))::float8 as wait_seconds from judged
"""

ERASE = """
delete from sealed_results where (organization_id, reservation_id, kind) in (
  select organization_id, reservation_id, kind from sealed_results where expires_at <= now() limit $1 for update skip locked)
"""


FORGET_QUIET = """
delete from open_objects where (organization_id, connection_id, object_key) in (
  select organization_id, connection_id, object_key from open_objects where quiet_at <= now() limit $1 for update skip locked)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lapse:
    """An open attempt whose lease is over.

    Attributes:
        settle_seconds: the contract's settle time.
        recover_seconds: when the first recovery is due; None: a person must look.
        late_recover_seconds: the same, should there be a late write: only looking up is left then.
    """

    organization_id: UUID
    reservation_id: UUID
    attempt_id: UUID
    settle_seconds: float
    recover_seconds: float | None
    late_recover_seconds: float | None = None


async def due(connection: Connection, *, overdue_seconds: float, limit: int, busy_connections: Sequence[UUID] = ()) -> list[Due]:
    """Open reservations whose time has come, longest waiting first.

    Args:
        overdue_seconds: only what is late by so much; a wake-up is given the time to arrive.
        limit: at most so many.
        busy_connections: whose reservations are left out, lapsed attempts excepted.
    """
    records = await connection.fetch(DUE, overdue_seconds, limit, list(busy_connections))
    return [Due(**{**dict(record), "state": State(record["state"])}) for record in records]


async def lapse(connection: Connection, rows: Sequence[Lapse]) -> list[UUID]:
    """Close attempts whose lease is over as unknown; their reservations are in doubt from now on.

    Each statement is a transaction of its own: call it outside of one.

    Returns:
        The reservations that this call moved; the others were settled, renewed or lapsed by somebody else meanwhile, or the
        database refuses their row. One that is refused takes no other along.
    """
    names = ["organization_id", "reservation_id", "attempt_id", "settle_seconds", "recover_seconds", "late_recover_seconds"]

    async def run(batch: Sequence[Lapse]) -> list[UUID | None]:
        moved = await connection.fetch(LAPSE, *columns(batch, names))
        return [record["id"] for record in moved] + [None] * (len(batch) - len(moved))

    return [result for result in await in_halves(rows, run) if result is not None and not isinstance(result, Failed)]


async def leave_to_a_person(
    connection: Connection,
    organization_id: UUID,
    reservation_id: UUID,
    *,
    attempt_id: UUID | None = None,
    step: int = 0,
    evidence: dict[str, object] | None = None,
) -> bool:
    """Automatic recovery of a doubt has nothing left to try: a person is asked and the sweep does not look at it again.

    Args:
        attempt_id: the newest attempt when that was found; where another has been opened since, nothing is changed.
        step: the place in the contract's list that was reached.
        evidence: what was seen, for the ledger; codes and references only.

    Returns:
        Whether it was in doubt, and is a person's now.
    """
    found = await connection.fetch(GIVE_UP, organization_id, reservation_id, attempt_id, step, evidence)
    return bool(found)


async def postpone(connection: Connection, organization_id: UUID, reservation_id: UUID, *, seconds: float) -> None:
    """Nothing can be done about a due reservation now: the sweep looks at it again after `seconds`."""
    await postpone_all(connection, [(organization_id, reservation_id, seconds)])


async def postpone_all(connection: Connection, rows: Sequence[tuple[UUID, UUID, float]]) -> None:
    """The same for many: organization, reservation and seconds of each."""
    await connection.execute(POSTPONE, *(list(column) for column in zip(*rows, strict=True)))


async def take_turns(
    connection: Connection, organization_id: UUID, connection_id: UUID, *, pace_seconds: float, at_once: int, wanted: int
) -> tuple[int, float]:
    """Take up doubts of a connection, no more than all workers together may at one pace.

    Args:
        connection: in autocommit, so that no worker waits for another longer than for one statement.
        pace_seconds: between two doubts of the connection that keep this pace, above zero; another pace has turns of its own.
        at_once: how many may be taken at once after a pause; the next ones come one after the other.
        wanted: how many turns this worker has a use for.

    Returns:
        How many it has taken, and in how many seconds the next turn is.
    """
    of = (organization_id, connection_id, pace_seconds)
    record = await connection.fetchrow(TURNS, *of, at_once, wanted)
    if record is None:
        await connection.execute(NEW_TURNS, *of)
        record = await connection.fetchrow(TURNS, *of, at_once, wanted)
        if record is None:
            # The connection itself is gone.
            return 0, pace_seconds
    return record["taken"], record["wait_seconds"]


async def erase_expired(connection: Connection, *, limit: int) -> int:
    """Erase sealed texts past their life.

    Returns:
        How many were erased; `limit` means there may be more.
    """
    return int((await connection.execute(ERASE, limit)).split()[-1])


async def forget_quiet_objects(connection: Connection, *, limit: int) -> None:
    """Forget objects of closed operations whose requests cannot arrive any more; the next operation would take them over anyway.

    Args:
        limit: at most so many.
    """
    await connection.execute(FORGET_QUIET, limit)
