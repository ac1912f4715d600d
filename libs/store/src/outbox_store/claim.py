"""T2: open an attempt, or withdraw what must not be sent any more. One set-based statement.

Every decision is taken from the reservation's own columns under its own lock: a statement that waited for the lock
sees other tables as they were before it waited. So the time from which it is due is asked again by the update of the
row that holds it, and a claim that was sent again is told of its attempt by the reservation alone. The time an attempt
may be sent is the worker's to watch; the lease granted here bounds it (design 4).

Nothing is claimed on a Postgres that nobody has compared with what is remembered outside, and nothing is sent first whose request
may have been sent before a loss: that is a doubt (`outbox_store.epochs`, ADR 0015).

Names and sealed values are read by subqueries of their own: as joins they would multiply the orders that Postgres tries,
and planning would cost more than executing (measured: 3.6 ms against 1.8 ms in all).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg

from outbox_domain.wire_names import Named
from outbox_store.batches import Failed, columns, in_halves
from outbox_store.connection import Connection
from outbox_store.epochs import Instance
from outbox_store.reserve import Executor

TRIES_MAX = 20
"""Unsent and deferred tries together, after which a reservation is voided (`interfaces.md` 9)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A worker's wish to open an attempt.

    Attributes:
        organization_id: None where a wake-up named the reservation alone.
        attempt_id: made by the worker, so that a claim sent again recognises its own attempt.
        lease_seconds: how long the attempt stays open unless it is renewed.
        resend_window_seconds: how long the provider keeps the provider key; None: out of doubt nothing is sent again.
        resend_needs_seconds: the contract's deadline and the margin that must fit into what is left of that window.
        resends_max: resends out of doubt, after which the next way of recovery is due; one that was not sent or was put off is given
            back and counts as a try instead.
        executor: whose reservations it may open an attempt on; no one else's is claimed by it.
        actor_id: whose the attempt is; that of the reservation unless given.
        time_limit_seconds: how long a client's handler may run; None: no limit, or a worker's attempt.
    """

    organization_id: UUID | None
    reservation_id: UUID
    attempt_id: UUID
    worker: str
    lease_seconds: float
    resend_window_seconds: float | None = None
    resend_needs_seconds: float = 0.0
    resends_max: int = 0
    executor: Executor = "gateway"
    actor_id: UUID | None = None
    time_limit_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed(Named):
    """An open attempt and all that its request is made of.

    Attributes:
        run_name: the caller's name of the run.
        sealed_credential: sealed to the worker's public key; None where the connection has none.
        trial: it is the one attempt that an open breaker lets through; what it comes to closes or keeps it.
        possibly_sent: an attempt that a loss has erased may have been sent before, and is not proven absent.
    """

    reservation_id: UUID
    organization_id: UUID
    attempt_id: UUID
    number: int
    epoch: int
    resend: bool
    generation: int
    tries: int
    resends: int
    unknown_attempts: int
    connection_id: UUID
    contract_version: int
    reference: str | None
    amount: int | None
    currency: str | None
    run_name: str | None
    actor_chain: list[str]
    owner: str
    traceparent: str | None
    base_url: str
    fixed_headers: dict[str, str]
    allow_private: bool
    connection_currency: str | None
    sealed_credential: bytes | None
    sealed_input: bytes | None
    queued_seconds: float
    trial: bool
    possibly_sent: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimedByClient(Named):
    """An open attempt of a caller who carries the effect out itself, and the names that its provider key is derived from.

    Attributes:
        resend: an earlier attempt may have had its effect; the provider key is the same.
        actor_id: whose attempt it is.
        lease_until: Postgres's time; `lease_seconds` is how long until then, below zero once it is over.
    """

    reservation_id: UUID
    organization_id: UUID
    attempt_id: UUID
    number: int
    epoch: int
    resend: bool
    generation: int
    actor_id: UUID
    lease_until: datetime
    lease_seconds: float
    time_limit_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NotClaimed:
    """Why no attempt was opened.

    Attributes:
        reason: `gone` (another holds it, or it is closed), `not-due` (or an older request for its object may still arrive), `voided`
            (withdrawn just now), `parked` (a contradiction is examined), `no-resend` (out of doubt nothing may be sent again), `held`
            (the connection's breaker is open),
            `unverified` (this Postgres was not compared with the marks yet), `possibly-sent` (before a loss: it has to become a doubt).
    """

    reservation_id: UUID
    reason: Literal["gone", "not-due", "voided", "parked", "no-resend", "held", "unverified", "possibly-sent"]


_OPEN = """
with input as (
  select coalesce(i.organization_id, o.organization_id) as organization_id, i.id, i.attempt_id, i.worker, i.lease_seconds,
    i.resend_window_seconds, i.resend_needs_seconds, i.resends_max, i.claimed_by, i.attempt_actor_id, i.time_limit_seconds, i.place
  from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::float8[], $6::float8[], $7::float8[], $9::int[], $10::text[], $11::uuid[],
      $12::float8[])
    with ordinality as i (organization_id, id, attempt_id, worker, lease_seconds, resend_window_seconds, resend_needs_seconds, resends_max,
      claimed_by, attempt_actor_id, time_limit_seconds, place)
  left join open_reservations o on i.organization_id is null and o.reservation_id = i.id
), server as materialized (
  select e.number as epoch_now, coalesce(e.possibly_lost_until > now(), false) as possibly_lost,
    case
      when $13::timestamptz is null then (pg_postmaster_start_time(), h.timeline) in (select s.started_at, s.timeline from instances s)
      else (pg_postmaster_start_time(), h.timeline, e.number) = ($13, $14::int, $15::bigint)
    end as verified
  from (select number, possibly_lost_until from epochs order by number desc limit 1) e
  cross join (select ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int as timeline) h
), locked as materialized (
  select r.*, i.attempt_id, i.worker, i.lease_seconds, i.resend_window_seconds, i.resend_needs_seconds, i.resends_max,
    coalesce(i.attempt_actor_id, r.actor_id) as attempt_actor_id, i.time_limit_seconds, i.place
  from input i join reservations r on (r.organization_id, r.id) = (i.organization_id, i.id)
  where r.executor = i.claimed_by and (r.state in ('reserved', 'in_doubt') or r.open_attempt_id = i.attempt_id)
  order by r.organization_id, r.id
  for update of r
), wanting as materialized (
  select l.*, o.due_at,
    case
      when l.open_attempt_id = l.attempt_id then 'own'
      when not s.verified then 'unverified'
      when l.epoch < s.epoch_now or l.state = 'reserved' and s.possibly_lost and l.suspected_epoch is distinct from s.epoch_now
        and not exists (select from epoch_clearances c where (c.organization_id, c.environment_id, c.epoch) = (l.organization_id, l.environment_id, s.epoch_now))
        and not exists (
          -- The key was seen in this epoch before, and everything that may have been sent for it was refused or proven absent.
          select from reservations f
          where f.suspected_epoch = s.epoch_now and f.state in ('failed', 'voided') and not f.refusal_stored
            and (f.organization_id, f.project_id, f.environment_id, f.connection_id, f.tool, f.scope, f.operation_key, f.occurrence)
              = (l.organization_id, l.project_id, l.environment_id, l.connection_id, l.tool, l.scope, l.operation_key, l.occurrence)
        ) then 'possibly-sent'
      when l.state = 'reserved' and l.not_after <= now() then 'void'
      when l.state = 'reserved' and l.tries >= $8 then 'void'
      when exists (
        select from contradictions c
        where c.closed_at is null
          and (c.organization_id, c.project_id, c.environment_id, c.connection_id, c.tool, c.scope, c.operation_key)
            = (l.organization_id, l.project_id, l.environment_id, l.connection_id, l.tool, l.scope, l.operation_key)
      ) then 'parked'
      when o.due_at > now() and l.executor = 'gateway' then 'not-due'
      when l.state = 'reserved' then 'claim'
      when l.late_write or l.stored_failure or l.conflicted or l.resends >= l.resends_max or l.tries >= $8 or l.not_after <= now() then 'no-resend'
      when now() + make_interval(secs => l.resend_needs_seconds)
           < l.possible_send_at + make_interval(secs => l.resend_window_seconds) then 'claim'
      else 'no-resend'
    end as wanted,
    case
      when l.not_after <= now() then 'not-sent-in-time'
      when l.last_attempt_outcome = 'deferred' then 'tries-exhausted'
      else 'provider-unreachable'
    end as reason,
    (select b.late_until from open_objects b
      where (b.organization_id, b.connection_id, b.object_key) = (l.organization_id, l.connection_id, l.object_key)) as late_until
  from locked l join open_reservations o on (o.organization_id, o.reservation_id) = (l.organization_id, l.id) cross join server s
), judged as materialized (
  -- The breaker protects the provider, not the promise: read from another table, it may be a moment old.
  select w.*, b.verdict, b.trial
  from wanting w cross join lateral (
    select case
        when w.wanted = 'claim' and w.late_until > now() then 'busy'
        when w.wanted = 'claim' and w.executor = 'gateway' and exists (
          select from breakers b where (b.organization_id, b.connection_id) = (w.organization_id, w.connection_id)
            and b.closed_at is null and b.trial_reservation_id is distinct from w.id
        ) then 'held'
        else w.wanted
      end as verdict,
      w.wanted in ('claim', 'own') and exists (
        select from breakers b where (b.organization_id, b.connection_id) = (w.organization_id, w.connection_id)
          and b.closed_at is null and b.trial_reservation_id = w.id
      ) as trial
  ) b
), watched as (
  update open_reservations o set due_at = now() + make_interval(secs => j.lease_seconds)
  from judged j
  where (o.organization_id, o.reservation_id) = (j.organization_id, j.id) and j.verdict = 'claim'
    and (o.due_at <= now() or j.executor = 'client')
  returning o.organization_id, o.reservation_id as id
), put_off as (
  -- An older request for its object may still arrive, and would undo what is sent now.
  update open_reservations o set due_at = j.late_until from judged j
  where (o.organization_id, o.reservation_id) = (j.organization_id, j.id) and j.verdict = 'busy'
), changed as (
  update reservations r set
    state = case j.verdict when 'claim' then 'executing' else 'voided' end,
    live = j.verdict = 'claim',
    void_reason = case j.verdict when 'void' then j.reason end,
    settled_at = case j.verdict when 'void' then now() end,
    changed_at = now(),
    epoch = case j.verdict when 'claim' then (select max(number) from epochs) else r.epoch end,
    attempts = r.attempts + (j.verdict = 'claim')::int,
    -- Those of an earlier doubt do not bound this one; its tries do.
    resends = case when j.verdict <> 'claim' then r.resends when r.state = 'in_doubt' then r.resends + 1 else 0 end,
    recovery_step = 0,
    lookups = 0,
    absences = 0,
    open_attempt_id = case j.verdict when 'claim' then j.attempt_id end,
    last_attempt_id = case j.verdict when 'claim' then j.attempt_id else r.last_attempt_id end,
    last_attempt_outcome = case j.verdict when 'claim' then null else r.last_attempt_outcome end,
    possible_send_at = case j.verdict when 'claim' then coalesce(r.possible_send_at, now()) else r.possible_send_at end,
    generation = case
      when j.verdict = 'claim' and r.attempts = 0 then (
        select coalesce(max(f.generation + f.refusal_stored::int), 0) from reservations f
        where (f.refusal_stored or f.generation > 0)
          and (f.organization_id, f.project_id, f.environment_id, f.connection_id, f.tool, f.scope, f.operation_key, f.occurrence)
            = (j.organization_id, j.project_id, j.environment_id, j.connection_id, j.tool, j.scope, j.operation_key, j.occurrence))
      else r.generation
    end
  from judged j left join watched w using (organization_id, id)
  where (r.organization_id, r.id) = (j.organization_id, j.id) and (j.verdict = 'void' or w.id is not null)
  returning r.organization_id, r.id, r.attempts, r.epoch, r.generation, r.resends, r.state
), opened as (
  insert into attempts (organization_id, id, reservation_id, number, epoch, actor_id, worker, resend, lease_until, time_limit_seconds,
    lease_seconds)
  select j.organization_id, j.attempt_id, j.id, c.attempts, c.epoch, j.attempt_actor_id, j.worker, j.state = 'in_doubt',
    now() + make_interval(secs => j.lease_seconds), j.time_limit_seconds, case j.executor when 'client' then j.lease_seconds end
  from judged j join changed c using (organization_id, id)
  where j.verdict = 'claim'
), closed as (
  delete from open_reservations o using judged j
  where (o.organization_id, o.reservation_id) = (j.organization_id, j.id) and j.verdict = 'void'
), erased as (
  delete from sealed_inputs s using judged j
  where (s.organization_id, s.reservation_id) = (j.organization_id, j.id) and j.verdict = 'void'
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, from_state, to_state, actor_chain, run, tool,
    operation_key, input_digest, trace_id, detail)
  select j.organization_id, j.environment_id, case j.verdict when 'void' then 'voided' else 'claimed' end, j.id,
    case j.verdict when 'claim' then j.attempt_id end, j.state, c.state, j.actor_chain,
    (select name from runs where (runs.organization_id, runs.id) = (j.organization_id, j.run_id)), j.tool, j.operation_key, j.input_digest, j.trace_id,
    case j.verdict
      when 'void' then jsonb_build_object('reason', j.reason)
      else jsonb_build_object('number', c.attempts, 'epoch', c.epoch, 'generation', c.generation, 'resend', j.state = 'in_doubt', 'worker', j.worker)
    end
  from judged j join changed c using (organization_id, id)
)
"""

_NAMES = """
select i.place, case when j.verdict = 'claim' and c.id is null then 'not-due' else coalesce(j.verdict, 'gone') end as verdict,
  i.id as reservation_id, i.organization_id, i.attempt_id,
  coalesce(c.attempts, j.attempts) as number, coalesce(c.epoch, j.epoch) as epoch, coalesce(c.generation, j.generation) as generation,
  coalesce(a.resend, j.state = 'in_doubt' or j.unknown_attempts > 0) as resend,
  (select name from organizations g where g.id = j.organization_id) as organization,
  (select name from projects p where (p.organization_id, p.id) = (j.organization_id, j.project_id)) as project,
  (select name from environments e where (e.organization_id, e.id) = (j.organization_id, j.environment_id)) as environment,
  n.name as connection, j.tool, j.scope, j.operation_key, j.occurrence,
  (select name from runs where (runs.organization_id, runs.id) = (j.organization_id, j.lineage)) as lineage_name,
"""

_WORKER = """
  coalesce(c.resends, j.resends) as resends, j.tries, j.unknown_attempts,
  n.id as connection_id, j.contract_version, j.reference, j.amount, j.currency,
  (select name from runs where (runs.organization_id, runs.id) = (j.organization_id, j.run_id)) as run_name,
  j.actor_chain, j.owner, j.traceparent,
  n.base_url, n.fixed_headers, n.allow_private, n.currency as connection_currency,
  (select sealed from provider_credentials k where (k.organization_id, k.connection_id) = (j.organization_id, j.connection_id)) as sealed_credential,
  (select sealed from sealed_inputs s where (s.organization_id, s.reservation_id) = (j.organization_id, j.id)) as sealed_input,
  extract(epoch from now() - j.changed_at)::float8 as queued_seconds, j.trial,
  coalesce(j.suspected_epoch = j.epoch and j.unknown_attempts > 0, false) as possibly_sent
"""

# The API may read no credential and no input, and a client needs neither.
_CLIENT = """
  coalesce(a.actor_id, j.attempt_actor_id) as actor_id,
  coalesce(a.lease_until, now() + make_interval(secs => j.lease_seconds)) as lease_until,
  coalesce(extract(epoch from a.lease_until - now()), j.lease_seconds)::float8 as lease_seconds,
  coalesce(a.time_limit_seconds, case when a.id is null then j.time_limit_seconds end) as time_limit_seconds
"""

_FROM = """
from input i
left join judged j on j.place = i.place
left join changed c on (c.organization_id, c.id) = (j.organization_id, j.id)
left join attempts a on (a.organization_id, a.id) = (i.organization_id, i.attempt_id)
left join connections n on (n.organization_id, n.id) = (j.organization_id, j.connection_id)
order by i.place
"""

CLAIM = _OPEN + _NAMES + _WORKER + _FROM
CLAIM_BY_CLIENT = _OPEN + _NAMES + _CLIENT + _FROM

_REASONS: dict[str, Literal["gone", "not-due", "voided", "parked", "no-resend", "held", "unverified", "possibly-sent"]] = {
    "gone": "gone",
    "not-due": "not-due",
    "busy": "not-due",
    "void": "voided",
    "parked": "parked",
    "no-resend": "no-resend",
    "held": "held",
    "unverified": "unverified",
    "possibly-sent": "possibly-sent",
}


def _arguments(rows: Sequence[Claim], instance: Instance | None) -> list[object]:
    names = "organization_id reservation_id attempt_id worker lease_seconds resend_window_seconds resend_needs_seconds".split()
    more = columns(rows, ["resends_max", "executor", "actor_id", "time_limit_seconds"])
    compared = (None, None, None) if instance is None else (instance.started_at, instance.timeline, instance.epoch)
    return [*columns(rows, names), TRIES_MAX, *more, *compared]


def _not_claimed(record: asyncpg.Record) -> NotClaimed:
    return NotClaimed(reservation_id=record["reservation_id"], reason=_REASONS[record["verdict"]])


async def _claim(connection: Connection, rows: Sequence[Claim], instance: Instance | None) -> list[Claimed | NotClaimed]:
    results: list[Claimed | NotClaimed] = []
    for record in await connection.fetch(CLAIM, *_arguments(rows, instance)):
        if record["verdict"] in ("claim", "own"):
            results.append(Claimed(**{name: record[name] for name in Claimed.__dataclass_fields__}))
        else:
            results.append(_not_claimed(record))
    return results


async def claim(
    connection: Connection, rows: Sequence[Claim], *, instance: Instance | None = None
) -> list[Claimed | NotClaimed | Failed]:
    """Open an attempt on each reservation that may be sent now.

    Each statement is a transaction of its own: call it outside of one.

    Args:
        connection: a connection in autocommit.
        rows: any number, each reservation once, no more than there are free send slots.
        instance: the Postgres, and the epoch in it, that the caller itself has compared with its marks; who keeps none says None, and
            a comparison that any worker has made will do.

    Returns:
        One result per row, in their order.
    """
    return await in_halves(rows, lambda batch: _claim(connection, batch, instance))


async def claim_by_client(connection: Connection, wish: Claim) -> ClaimedByClient | NotClaimed | Failed:
    """Open an attempt for a caller who carries the effect out itself.

    Args:
        connection: in autocommit, or inside the transaction that reserves; that one is over where this is `Failed`.
        wish: whose executor is the client. It is granted on a Postgres that some worker has compared with its marks.
    """

    async def one(batch: Sequence[Claim]) -> list[ClaimedByClient | NotClaimed]:
        [record] = await connection.fetch(CLAIM_BY_CLIENT, *_arguments(batch, None))
        if record["verdict"] in ("claim", "own"):
            return [ClaimedByClient(**{name: record[name] for name in ClaimedByClient.__dataclass_fields__})]
        return [_not_claimed(record)]

    [result] = await in_halves([wish], one)
    return result


RENEW = """
update attempts a
set lease_until = greatest(a.lease_until, least(now() + make_interval(secs => $3), a.claimed_at + make_interval(secs => $4)))
from unnest($1::uuid[], $2::uuid[]) as i (organization_id, id)
where (a.organization_id, a.id) = (i.organization_id, i.id) and a.outcome is null and a.lease_until > now()
returning a.organization_id, a.reservation_id, a.id, a.lease_until
"""


async def renew(
    connection: Connection, organization_id: UUID, attempt_id: UUID, *, lease_seconds: float, until_seconds: float
) -> bool:
    """Extend the lease of an open attempt whose answer is still awaited.

    The sweep may look a little early at a renewed attempt; it then sees the lease and leaves it alone. So the narrow
    table need not be written here.

    Args:
        lease_seconds: from now.
        until_seconds: from the claim; the lease never ends later.

    Returns:
        Whether the attempt is still open and its lease had not lapsed.
    """
    return bool(await connection.fetch(RENEW, [organization_id], [attempt_id], lease_seconds, until_seconds))


PLANT = """
update attempts set marker = $3, provider_key = coalesce($4, provider_key) where organization_id = $1 and id = $2
"""


async def plant(
    connection: Connection, organization_id: UUID, attempt_id: UUID, marker: str, *, provider_key: str | None = None
) -> None:
    """Remember what an attempt shows the provider before it is sent: a webhook with its marker may come before its answer.

    Args:
        marker: what look-ups and webhooks find the effect by.
        provider_key: of a client's attempt, which alone knows whether it was used.
    """
    await connection.execute(PLANT, organization_id, attempt_id, marker, provider_key)
