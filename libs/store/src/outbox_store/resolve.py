"""What ends a doubt from outside the attempt: a look-up, a verified webhook, or a person. One set-based statement.

*It happened* settles executing and doubtful reservations at any time, whichever attempt it speaks of, and those that are
reserved again because what was sent was thought to have had no effect; against a closed one, or one that was never sent, it is
a contradiction. *It is absent* counts only when it was asked after `absence_counts_at`, about the newest attempt, while the row
still stands where it stood; otherwise it is thrown away. One answer counts once, however often it is written down. Source:
design section 4, rules of doubt.

The absence of a supposed attempt, one that stands for what may have been sent before a loss, lets the reservation be sent whoever
proves it: it never was. And no absence counts on a Postgres that was not compared with the marks yet (`outbox_store.epochs`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from outbox_domain.reservation import Confidence, State
from outbox_store.batches import Failed, columns, in_halves, json_text
from outbox_store.connection import Connection
from outbox_store.settle import CONTRADICTIONS_MAX

ROUNDS_MAX = 20
"""How often a resolution looks again because a newer attempt was not visible to it yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolution:
    """What somebody other than the sender knows of an effect.

    Attributes:
        attempt_id: the newest attempt when the question was asked; None where it does not matter (happened).
        happened: whether the effect exists.
        by: who says so.
        asked_at: Postgres's time when the question was sent (an absence counts from then); None for happened.
        absences_needed: how many absences prove it; a person's one is enough.
        between_seconds: how far apart two look-ups must have been sent for both of their absences to count: closer together both may be the
            same stale read, whoever let the second one be sent so early.
        then: after proven absence: send again while tries and `not_after` allow, or fail.
        again_seconds: when the next try or look-up is due.
        receipt_id: of the receipt, or of the contradiction.
        external_reference: the provider's name of the effect; for happened only.
        evidence: what was seen, `[{kind, detail}]`; the time is added by Postgres.
        sealed_result: the contract's projection, sealed, where the look-up gave it.
        said_by: the actor chain of the person; the reservation's own for look-ups and webhooks.
        reason: our own words or the person's.
        cancel_within_seconds: a confirmed cancellation counts so long after its attempt began, whatever `absence_counts_at` says:
            nothing can have come of it by then, and nothing will.
        asserted: it is somebody's word, however they came to know it: a client's probe is a look-up that nobody here has made.
    """

    organization_id: UUID
    reservation_id: UUID
    attempt_id: UUID | None
    happened: bool
    by: Literal["lookup", "cancellation", "webhook", "person"]
    asked_at: datetime | None
    absences_needed: int
    then: Literal["resend", "fail"]
    again_seconds: float
    receipt_id: UUID
    provider: str
    external_reference: str | None
    provider_request_id: str | None
    evidence: list[dict[str, object]]
    sealed_result: bytes | None
    said_by: list[str] | None
    reason: str
    between_seconds: float = 0.0
    cancel_within_seconds: float = 0.0
    asserted: bool = False

    def __post_init__(self) -> None:
        """Happened comes with a reference, absent without one."""
        if self.happened != (self.external_reference is not None):
            raise ValueError("what happened has an external reference, and nothing else has")

    @property
    def confidence(self) -> Confidence:
        """What a receipt of it is worth."""
        by_lookup = Confidence.ASSERTED if self.asserted else Confidence.BY_LOOKUP
        return {"lookup": by_lookup, "cancellation": by_lookup, "webhook": Confidence.BY_WEBHOOK, "person": Confidence.ASSERTED}[
            self.by
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What it changed.

    Attributes:
        verdict: `settled` (succeeded, or absent proven: state says which way), `noted` (an absence that counts, not yet enough),
            `too-early` (before `absence_counts_at`, or right after another one that counted: nothing changed), `stale` (the row has moved on, or what was seen is an effect
            that a person has examined for another reservation of the operation: nothing changed),
            `known` (the receipt says so already), `contradiction` (proof against what was settled), `missing`.
        state: where the reservation stands now.
        counts_at: from when an absence counts, for `too-early`.
    """

    verdict: Literal["settled", "noted", "too-early", "stale", "known", "contradiction", "missing"]
    state: State | None
    counts_at: datetime | None


RESOLVE = """
with input as (
  select * from unnest(
    $1::uuid[], $2::uuid[], $3::uuid[], $4::bool[], $5::text[], $6::timestamptz[], $7::int[], $8::text[], $9::float8[], $10::uuid[],
    $11::text[], $12::text[], $13::text[], $14::text[], $15::bytea[], $16::text[], $17::text[], $18::text[], $20::float8[],
    $22::float8[]
  ) with ordinality as i (
    organization_id, id, attempt_id, happened, said_how, asked_at, absences_needed, after_absence, again_seconds, receipt_id,
    provider, receipt_reference, provider_request_id, evidence, sealed_result, said_by, reason, confidence, cancel_within_seconds, between_seconds, place
  )
), server as materialized (
  select (pg_postmaster_start_time(), ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int)
    in (select s.started_at, s.timeline from instances s) as verified
), locked as materialized (
  select r.*, i.attempt_id, i.happened, i.said_how, i.asked_at, i.absences_needed, i.after_absence, i.again_seconds, i.receipt_id, i.provider,
    i.receipt_reference, i.provider_request_id, i.evidence, i.sealed_result, i.said_by, i.reason, i.confidence,
    i.cancel_within_seconds, i.between_seconds, i.place
  from input i join reservations r on (r.organization_id, r.id) = (i.organization_id, i.id)
  order by r.organization_id, r.id
  for update of r
), judged as materialized (
  select l.*,
    case
      -- A person has said of this very effect that it does not stand: what was freed to be done anew has another.
      when l.happened and l.said_how in ('lookup', 'webhook') and l.state in ('reserved', 'executing', 'in_doubt') and exists (
        select from contradictions c join reservations d on (d.organization_id, d.id) = (c.organization_id, c.reservation_id)
        where c.closed_at is not null and (c.organization_id, c.external_reference) = (l.organization_id, l.receipt_reference)
          and (d.project_id, d.environment_id, d.connection_id, d.tool, d.scope, d.operation_key, d.occurrence)
            = (l.project_id, l.environment_id, l.connection_id, l.tool, l.scope, l.operation_key, l.occurrence)
      ) then 'stale'
      when l.happened and l.state in ('executing', 'in_doubt') then
        case when l.open_attempt_id is null or exists (
          select from attempts a where (a.organization_id, a.id) = (l.organization_id, l.open_attempt_id)
        ) then 'settled' else 'again' end
      when l.happened and l.state = 'reserved' and l.attempts > 0 and (l.attempt_id is null or exists (
        select from attempts a where (a.organization_id, a.reservation_id, a.id) = (l.organization_id, l.id, l.attempt_id)
      )) then 'settled'
      when l.happened and l.state = 'succeeded' and l.external_reference = l.receipt_reference then 'known'
      when l.happened then 'contradiction'
      when l.state <> 'in_doubt' or l.last_attempt_id is distinct from l.attempt_id then 'stale'
      when l.said_how = 'cancellation' and (l.late_write or not exists (
        select from attempts a where (a.organization_id, a.id) = (l.organization_id, l.attempt_id)
          and now() < a.claimed_at + make_interval(secs => l.cancel_within_seconds)
          and a.closed_by is distinct from 'epoch'
      )) then 'stale'
      when not s.verified then 'too-early'
      when l.said_how = 'cancellation' then 'settled'
      when coalesce(l.asked_at, now()) < l.absence_counts_at then 'too-early'
      when l.said_how = 'lookup' and (l.late_write or l.conflicted) then 'stale'
      when l.said_how = 'lookup' and l.absences > 0 and l.asked_at <= l.absent_at then 'stale'
      when l.said_how = 'lookup' and l.absences > 0 and l.asked_at < l.absent_at + make_interval(secs => l.between_seconds) then 'too-early'
      when l.absences + 1 < l.absences_needed then 'noted'
      else 'settled'
    end as verdict,
    case
      when l.happened then 'succeeded'
      when l.tries + 1 >= $19 or l.not_after <= now() then 'failed'
      when exists (
        select from attempts a where (a.organization_id, a.id) = (l.organization_id, l.last_attempt_id) and a.supposed
      ) then 'reserved'
      when l.said_how = 'person' or l.after_absence = 'fail' then 'failed'
      else 'reserved'
    end as next_state
  from locked l cross join server s
), changed as (
  update reservations r set
    state = case when j.verdict = 'settled' then j.next_state else r.state end,
    live = case when j.verdict = 'settled' then j.next_state <> 'failed' else r.live end,
    open_attempt_id = null,
    unknown_attempts = case when j.verdict = 'settled' and j.next_state <> 'succeeded' then 0 else r.unknown_attempts end,
    last_attempt_outcome = case when j.verdict = 'settled' then coalesce(r.last_attempt_outcome, 'unknown') else r.last_attempt_outcome end,
    absences = case when j.verdict = 'noted' then r.absences + 1 else 0 end,
    absent_at = case when j.verdict = 'noted' then j.asked_at end,
    lookups = case when j.verdict = 'noted' then r.lookups else 0 end,
    recovery_step = case when j.verdict = 'settled' then 0 else r.recovery_step end,
    tries = r.tries + (j.verdict = 'settled' and j.next_state = 'reserved')::int,
    person_asked_at = case when j.verdict = 'settled' and j.next_state = 'reserved' then null else r.person_asked_at end,
    -- The provider would go on replaying a failure that it has stored, so what is sent next needs another provider key.
    generation = r.generation + (j.verdict = 'settled' and j.next_state = 'reserved' and r.stored_failure)::int,
    refusal_stored = r.refusal_stored or (j.verdict = 'settled' and j.next_state = 'failed' and r.stored_failure),
    stored_failure = r.stored_failure and not (j.verdict = 'settled' and j.next_state = 'reserved'),
    possible_send_at = case when j.verdict = 'settled' and j.next_state = 'reserved' then null else r.possible_send_at end,
    doubt_since = case when j.verdict = 'settled' and j.next_state = 'reserved' then null else r.doubt_since end,
    doubt_cause = case when j.verdict = 'settled' and j.next_state = 'reserved' then null else r.doubt_cause end,
    absence_counts_at = case when j.verdict = 'settled' and j.next_state = 'reserved' then null else r.absence_counts_at end,
    external_reference = case when j.verdict = 'settled' then j.receipt_reference else r.external_reference end,
    settled_attempt_id = case when j.verdict = 'settled' and j.next_state = 'succeeded' then coalesce(j.attempt_id, r.last_attempt_id) end,
    settled_at = case when j.verdict = 'settled' and j.next_state in ('succeeded', 'failed') then now() end,
    changed_at = now()
  from judged j
  where (r.organization_id, r.id) = (j.organization_id, j.id) and j.verdict in ('settled', 'noted')
  returning r.organization_id, r.id, r.state
), attempted as (
  update attempts a set
    outcome = coalesce(a.outcome, 'unknown'),
    closed_at = coalesce(a.closed_at, now()),
    closed_by = coalesce(a.closed_by, j.said_how),
    reason = coalesce(a.reason, j.reason),
    -- What happened was not absent; where nobody says of which attempt, none of them is known to have been.
    proven_absent = j.next_state <> 'succeeded' and (a.proven_absent or coalesce(a.outcome, 'unknown') = 'unknown')
  from judged j
  where j.verdict = 'settled' and (a.organization_id, a.reservation_id) = (j.organization_id, j.id)
    and (a.id = j.open_attempt_id or (j.next_state <> 'succeeded' and a.outcome = 'unknown')
      -- Also one that was found absent by whoever this waited for, which only the row itself shows.
      or (j.state = 'reserved' and a.id = coalesce(j.attempt_id, a.id)))
), receipted as (
  insert into receipts (organization_id, id, reservation_id, attempt_id, environment_id, provider, connection, tool, contract_version,
    external_reference, confidence, evidence, provider_request_id, actor_chain, owner, policy, amount, currency)
  select j.organization_id, j.receipt_id, j.id, coalesce(j.attempt_id, j.last_attempt_id), j.environment_id, j.provider, n.name, j.tool, j.contract_version,
    j.receipt_reference, j.confidence,
    (select jsonb_agg(e || jsonb_build_object('at', now())) from jsonb_array_elements(j.evidence::jsonb) e), j.provider_request_id,
    j.actor_chain, j.owner, j.decision, j.amount, j.currency
  from judged j join connections n on (n.organization_id, n.id) = (j.organization_id, j.connection_id)
  where j.verdict = 'settled' and j.next_state = 'succeeded'
), kept as (
  insert into sealed_results (organization_id, reservation_id, kind, sealed, expires_at)
  select j.organization_id, j.id, 'result', j.sealed_result, null from judged j
  where j.verdict = 'settled' and j.next_state = 'succeeded' and j.sealed_result is not null
  on conflict (organization_id, reservation_id, kind) do update set sealed = excluded.sealed, expires_at = excluded.expires_at
), erased as (
  delete from sealed_inputs s using judged j
  where (s.organization_id, s.reservation_id) = (j.organization_id, j.id) and j.verdict = 'settled' and j.next_state in ('succeeded', 'failed')
), closed as (
  delete from open_reservations o using judged j
  where (o.organization_id, o.reservation_id) = (j.organization_id, j.id) and j.verdict = 'settled' and j.next_state in ('succeeded', 'failed')
), watched as (
  -- What was a client's is taken up by the next caller; until it is too late nobody has to look at it.
  update open_reservations o set due_at = case
    when j.executor = 'client' and j.verdict = 'noted' then o.due_at
    when j.executor = 'client' then j.not_after
    else now() + make_interval(secs => j.again_seconds)
  end
  from judged j
  where (o.organization_id, o.reservation_id) = (j.organization_id, j.id)
    and (j.verdict = 'noted' or (j.verdict = 'settled' and j.next_state = 'reserved'))
), contradicted as (
  insert into contradictions (organization_id, id, reservation_id, attempt_id, project_id, environment_id, connection_id, tool, scope,
    operation_key, external_reference)
  select j.organization_id, j.receipt_id, j.id, j.attempt_id, j.project_id, j.environment_id, j.connection_id, j.tool, j.scope,
    j.operation_key, j.receipt_reference
  from judged j where j.verdict = 'contradiction' and $21 > (
    select count(*) from contradictions c where (c.organization_id, c.reservation_id) = (j.organization_id, j.id) and c.closed_at is null)
  on conflict do nothing
  returning organization_id, reservation_id
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, from_state, to_state, actor_chain,
    run, tool, operation_key, input_digest, declared, trace_id, detail)
  select j.organization_id, j.environment_id,
    case j.verdict
      when 'settled' then case j.next_state when 'reserved' then 'absent' else 'settled' end
      when 'contradiction' then 'contradiction'
      else 'evidence'
    end,
    j.id, coalesce(j.attempt_id, j.last_attempt_id), j.state, case j.verdict when 'settled' then j.next_state else j.state end,
    coalesce(j.said_by::jsonb, j.actor_chain),
    (select name from runs where (runs.organization_id, runs.id) = (j.organization_id, j.run_id)), j.tool, j.operation_key, j.input_digest,
    j.declared, j.trace_id,
    jsonb_strip_nulls(jsonb_build_object('by', j.said_how, 'happened', j.happened, 'reason', j.reason,
      'external_reference', j.receipt_reference, 'confidence', case when j.happened then j.confidence end,
      'receipt_id', case when j.verdict = 'settled' and j.next_state = 'succeeded' then j.receipt_id end,
      'evidence', case when j.said_how = 'person' then j.evidence::jsonb end))
  from judged j
  where j.verdict in ('settled', 'noted')
    or exists (select from contradicted c where (c.organization_id, c.reservation_id) = (j.organization_id, j.id))
)
select i.place, coalesce(j.verdict, 'missing') as verdict, coalesce(c.state, j.state) as state, j.absence_counts_at
from input i
left join judged j on j.place = i.place
left join changed c on (c.organization_id, c.id) = (j.organization_id, j.id)
order by i.place
"""

_HEAD = (
    "organization_id reservation_id attempt_id happened by asked_at absences_needed then again_seconds receipt_id provider "
    "external_reference provider_request_id"
).split()


async def _resolve(connection: Connection, rows: Sequence[Resolution], tries_max: int) -> list[Resolved]:
    results: list[Resolved] = [Resolved(verdict="missing", state=None, counts_at=None)] * len(rows)
    waiting = list(range(len(rows)))
    for _ in range(ROUNDS_MAX):
        batch = [rows[place] for place in waiting]
        arguments = [
            *columns(batch, _HEAD),
            [json_text(row.evidence) for row in batch],
            [row.sealed_result for row in batch],
            [json_text(row.said_by) for row in batch],
            [row.reason for row in batch],
            [row.confidence.value for row in batch],
        ]
        cancel_within = [row.cancel_within_seconds for row in batch]
        between = [row.between_seconds for row in batch]
        again = []
        for place, record in zip(
            waiting,
            await connection.fetch(RESOLVE, *arguments, tries_max, cancel_within, CONTRADICTIONS_MAX, between),
            strict=True,
        ):
            if record["verdict"] == "again":
                again.append(place)
            else:
                state = None if record["state"] is None else State(record["state"])
                results[place] = Resolved(verdict=record["verdict"], state=state, counts_at=record["absence_counts_at"])
        waiting = again
        if not waiting:
            return results
    raise RuntimeError("a newer attempt stayed invisible to its own reservation's resolution")


async def resolve(connection: Connection, rows: Sequence[Resolution], *, tries_max: int) -> list[Resolved | Failed]:
    """Write down what is known of effects from outside their attempts.

    Each statement is a transaction of its own: call it outside of one, or alone in one.

    Args:
        connection: a connection in autocommit.
        rows: any number, each reservation once.
        tries_max: after how many tries proven absence fails instead of sending again.

    Returns:
        One result per row, in their order.
    """
    return await in_halves(rows, lambda batch: _resolve(connection, batch, tries_max))
