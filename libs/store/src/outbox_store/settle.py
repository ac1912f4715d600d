"""T3: close an attempt and say where its reservation stands now. One set-based statement.

An outcome speaks of its own attempt only: while an earlier attempt is unknown, a later one that was refused or never
sent leaves the reservation in doubt. A success with a receipt settles from whichever attempt and however late, also while the
reservation is reserved again because that attempt was thought to have had no effect. Both rules, and why, are in design
section 4; the decision is taken from the reservation's own columns under its own lock.
What came too late to decide anything is noted on its attempt, each outcome once, so that the same settlement sent again adds
nothing, and who says now this and now that adds five entries at most. One thing it may still do: a write that left after its time freezes the doubt, whether or not the lease has lapsed meanwhile,
and puts off the time from which an absence counts: what left after the lease commits later than a lapse could know. Where
that attempt was thought absent already, the absence was none: what is reserved again is in doubt again, and what was closed
upon it is contradicted, so that its key is refused until a person has looked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from outbox_domain.reservation import Confidence, Outcome, State
from outbox_store.batches import Failed, columns, in_halves, json_text
from outbox_store.connection import Connection

CONTRADICTIONS_MAX = 20
"""How many open contradictions a reservation has: its key is refused from the first one on, and whoever makes up references can go on."""

ROUNDS_MAX = 20
"""How often a settlement looks again because a newer attempt was not visible to it yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceiptDraft:
    """The outside fact that proves the effect, as an attempt's answer gave it.

    Attributes:
        evidence: what was seen, `[{kind, detail}]`, codes only; the time is added by Postgres.
        sealed_result: the contract's projection of the answer, sealed.
    """

    id: UUID
    provider: str
    external_reference: str
    confidence: Confidence
    evidence: list[dict[str, object]]
    provider_request_id: str | None
    sealed_result: bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """What one attempt came to.

    Attributes:
        attempt_id, epoch: the attempt as it was claimed; both are compared.
        outcome: of this attempt alone.
        stored: the provider keeps this refusal under the provider key.
        stored_failure: the answer was a replayed stored failure, which proves nothing.
        conflict: the answer said that the identity is taken; it would be said again, so nothing is sent again.
        late_write: the last byte left after `send_by` and the pause allowance; with an unknown outcome nothing is sent again and
            nobody is asked again by itself, also when the attempt was closed before this was known.
        settle_seconds: the contract's settle time; absences count from the end of the lease plus this.
        again_seconds: when to send again, should the reservation be free to.
        recover_seconds: when the next recovery is due, should the reservation be in doubt; None: a person must look.
        late_recover_seconds: the same, should it be in doubt with a late write: only looking up is left then.
        receipt: present for a success, and only then.
        sealed_failure: the provider's words, sealed; kept for 24 hours.
        variance: what the provider reported that differs from what was asked, for the ledger.
    """

    organization_id: UUID
    reservation_id: UUID
    attempt_id: UUID
    epoch: int
    outcome: Outcome
    reason: str
    stored: bool = False
    stored_failure: bool = False
    conflict: bool = False
    late_write: bool = False
    settle_seconds: float
    again_seconds: float
    recover_seconds: float | None
    late_recover_seconds: float | None = None
    receipt: ReceiptDraft | None = None
    provider_status: int | None = None
    provider_code: str | None = None
    sealed_failure: bytes | None = None
    provider_seconds: float | None = None
    provider_key: str | None = None
    variance: dict[str, object] | None = None

    def __post_init__(self) -> None:
        """A success without a receipt, or a receipt without a success, is a mistake of the caller's."""
        if (self.outcome is Outcome.SUCCEEDED) != (self.receipt is not None):
            raise ValueError("a success comes with a receipt, and nothing else does")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """What the settlement changed.

    Attributes:
        verdict: `settled` (the row moved, or the attempt's own doubt was closed), `already` (this very settlement was
            committed before), `evidence` (too late to change the state; noted), `contradiction` (proof against what was
            settled; noted, and the key is blocked), `missing` (there is no such reservation any more), `unknown-attempt` (a success of
            an attempt that is none of a reservation that was not sent yet, or has been lost: nothing was written, it has to be sent again).
        state: where the reservation stands now; None when missing.
    """

    verdict: Literal["settled", "already", "evidence", "contradiction", "missing", "unknown-attempt"]
    state: State | None


SETTLE = """
with input as (
  select * from unnest(
    $1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::text[], $6::text[], $7::bool[], $8::bool[], $9::bool[],
    $10::float8[], $11::float8[], $12::float8[], $13::int[], $14::text[], $15::bytea[], $16::float8[], $17::text[], $18::text[],
    $19::uuid[], $20::text[], $21::text[], $22::text[], $23::text[], $24::text[], $25::bytea[], $27::float8[], $28::bool[]
  ) with ordinality as i (
    organization_id, id, attempt_id, attempt_epoch, outcome, reason, stored_now, stored_failure_now, late_write_now,
    settle_seconds, again_seconds, recover_seconds, status_now, code_now, sealed_failure, provider_seconds, provider_key, variance,
    receipt_id, provider, receipt_reference, confidence, evidence, provider_request_id, sealed_result, late_recover_seconds, conflict_now, place
  )
), locked as materialized (
  select r.*, i.attempt_id, i.attempt_epoch, i.outcome, i.reason, i.stored_now, i.stored_failure_now, i.late_write_now,
    i.settle_seconds, i.again_seconds, i.recover_seconds, i.status_now, i.code_now, i.sealed_failure, i.provider_seconds, i.provider_key,
    i.variance, i.receipt_id, i.provider, i.receipt_reference, i.confidence, i.evidence, i.provider_request_id, i.sealed_result, i.place,
    i.late_recover_seconds, i.conflict_now, r.state = 'executing' and r.open_attempt_id = i.attempt_id and r.epoch = i.attempt_epoch as current
  from input i join reservations r on (r.organization_id, r.id) = (i.organization_id, i.id)
  order by r.organization_id, r.id
  for update of r
), late as materialized (
  -- Read under its lock: whoever waited for the absence that it disproves must see it.
  select l.place, a.proven_absent and not a.late_write as disproves
  from locked l join attempts a on (a.organization_id, a.reservation_id, a.id) = (l.organization_id, l.id, l.attempt_id)
  where l.late_write_now and l.outcome = 'unknown'
  for update of a
), reported as materialized (
  select l.*, coalesce(late.disproves, false) as disproves from locked l left join late using (place)
), judged as materialized (
  select l.*,
    case
      when l.current then 'settled'
      when l.outcome = 'succeeded' and l.state in ('executing', 'in_doubt') then
        case when l.open_attempt_id is null or exists (
          select from attempts a where (a.organization_id, a.id) = (l.organization_id, l.open_attempt_id)
        ) then 'settled' else 'again' end
      when l.outcome = 'succeeded' and l.state = 'succeeded' and l.external_reference = l.receipt_reference then 'late'
      when l.outcome = 'succeeded' and l.state in ('awaiting_review', 'reserved') and not exists (
        select from attempts a where (a.organization_id, a.reservation_id, a.id) = (l.organization_id, l.id, l.attempt_id)
      ) and not (
        -- An attempt that the ledger has lost settles in the name of the one that stands for it.
        l.state = 'reserved' and not exists (select from attempts a where (a.organization_id, a.id) = (l.organization_id, l.attempt_id))
        and exists (select from attempts a where (a.organization_id, a.reservation_id) = (l.organization_id, l.id) and a.supposed)
      ) then 'unknown-attempt'
      -- It was thought unsent, deferred or absent, and is not: nothing newer was sent, and nothing will be.
      when l.outcome = 'succeeded' and l.state = 'reserved' then 'settled'
      when l.outcome = 'succeeded' then 'contradiction'
      when l.outcome = 'unsent' and l.state = 'in_doubt' and l.last_attempt_id = l.attempt_id and l.last_attempt_outcome = 'unknown'
        and l.epoch = l.attempt_epoch and not l.late_write then 'settled'
      when l.disproves and l.state = 'reserved' then 'settled'
      when l.disproves and l.state in ('failed', 'voided') then 'contradiction'
      else 'late'
    end as verdict,
    l.late_write_now and l.outcome = 'unknown' and l.state in ('executing', 'in_doubt') as freezes,
    case
      when l.outcome = 'succeeded' then 'succeeded'
      when l.disproves then 'in_doubt'
      when not l.current then case when l.unknown_attempts > 1 then 'in_doubt' when l.executor = 'client' then 'failed' else 'reserved' end
      when l.outcome = 'unknown' then 'in_doubt'
      when l.outcome = 'rejected' and l.stored_now and l.guarantee_class = 'A' then 'failed'
      when l.unknown_attempts > 0 then 'in_doubt'
      when l.outcome = 'rejected' then 'failed'
      -- Nobody else would send what a client did not send; its caller asks again when it wants it.
      when l.executor = 'client' then 'failed'
      else 'reserved'
    end as next_state,
    case
      when l.current then l.unknown_attempts + (l.outcome = 'unknown')::int
      when l.outcome = 'unsent' then l.unknown_attempts - 1
      when l.disproves then l.unknown_attempts + 1
      else l.unknown_attempts
    end as next_unknown,
    case when l.late_write or l.late_write_now and l.outcome = 'unknown' then l.late_recover_seconds else l.recover_seconds end
      as next_recover_seconds,
    -- An attempt that the ledger has lost is not there to be named; the one that stands for it is.
    case
      when exists (select from attempts a where (a.organization_id, a.id) = (l.organization_id, l.attempt_id)) then l.attempt_id
      else coalesce((
        select a.id from attempts a where (a.organization_id, a.reservation_id) = (l.organization_id, l.id) and a.supposed
        order by a.number desc limit 1
      ), l.last_attempt_id)
    end as named_attempt_id
  from reported l
), changed as (
  update reservations r set
    state = j.next_state,
    live = j.next_state <> 'failed',
    open_attempt_id = null,
    unknown_attempts = j.next_unknown,
    last_attempt_outcome = case when r.last_attempt_id = j.attempt_id then j.outcome else coalesce(r.last_attempt_outcome, 'unknown') end,
    tries = r.tries + (j.next_state = 'reserved' or j.next_state = 'in_doubt' and j.outcome in ('unsent', 'deferred'))::int,
    resends = r.resends - (j.next_state = 'in_doubt' and j.outcome in ('unsent', 'deferred'))::int,
    recovery_step = case j.next_state when 'reserved' then 0 else r.recovery_step end,
    lookups = case j.next_state when 'reserved' then 0 else r.lookups end,
    -- What was found absent before is found again: from now on an absence counts later, or of another sending.
    absences = 0,
    possible_send_at = case j.next_state
      when 'reserved' then null
      else coalesce(r.possible_send_at,
        (select a.claimed_at from attempts a where (a.organization_id, a.id) = (j.organization_id, j.attempt_id)))
    end,
    doubt_since = case j.next_state when 'in_doubt' then coalesce(r.doubt_since, now()) when 'reserved' then null else r.doubt_since end,
    doubt_cause = case j.next_state
      when 'in_doubt' then case when j.outcome = 'unknown' then j.reason else coalesce(r.doubt_cause, j.reason) end
      when 'reserved' then null
      else r.doubt_cause
    end,
    absence_counts_at = case j.next_state
      when 'in_doubt' then greatest(
        r.absence_counts_at,
        (select greatest(a.lease_until, now()) + make_interval(secs => greatest(a.time_limit_seconds, a.lease_seconds, 0))
          from attempts a where (a.organization_id, a.id) = (j.organization_id, j.attempt_id))
          + make_interval(secs => j.settle_seconds))
      when 'reserved' then null
      else r.absence_counts_at
    end,
    late_write = r.late_write or (j.late_write_now and j.outcome = 'unknown'),
    stored_failure = r.stored_failure or j.stored_failure_now,
    conflicted = r.conflicted or j.conflict_now,
    refusal_stored = j.next_state = 'failed' and j.stored_now,
    external_reference = j.receipt_reference,
    settled_attempt_id = case j.next_state when 'succeeded' then j.named_attempt_id end,
    settled_at = case when j.next_state in ('succeeded', 'failed') then now() end,
    person_asked_at = case
      when j.next_state = 'in_doubt' and j.next_recover_seconds is null then coalesce(r.person_asked_at, now())
      when j.next_state = 'reserved' then null
      else r.person_asked_at
    end,
    provider_status = j.status_now,
    provider_code = j.code_now,
    changed_at = now()
  from judged j
  where (r.organization_id, r.id) = (j.organization_id, j.id) and j.verdict = 'settled'
  returning r.organization_id, r.id, r.state
), attempted as (
  update attempts a set
    outcome = case when a.id = j.attempt_id then j.outcome else 'unknown' end,
    closed_at = now(),
    closed_by = case when a.id = j.attempt_id then 'answer' else 'other-attempt' end,
    reason = case when a.id = j.attempt_id then j.reason else 'settled by another attempt' end,
    proven_absent = a.proven_absent and a.id <> j.attempt_id,
    stored = a.id = j.attempt_id and j.stored_now,
    late_write = a.late_write or a.id = j.attempt_id and j.late_write_now,
    provider_key = case when a.id = j.attempt_id then coalesce(j.provider_key, a.provider_key) else a.provider_key end,
    provider_status = case when a.id = j.attempt_id then j.status_now end,
    provider_code = case when a.id = j.attempt_id then j.code_now end,
    provider_request_id = case when a.id = j.attempt_id then j.provider_request_id end,
    provider_seconds = case when a.id = j.attempt_id then j.provider_seconds end
  from judged j
  where j.verdict = 'settled' and (a.organization_id, a.reservation_id) = (j.organization_id, j.id) and a.id in (j.attempt_id, j.open_attempt_id)
), stood_in as (
  update attempts a set proven_absent = false
  from judged j
  where j.verdict = 'settled' and j.next_state = 'succeeded' and a.supposed and a.proven_absent and a.id <> j.attempt_id
    and (a.organization_id, a.id) = (j.organization_id, j.named_attempt_id)
), noted as (
  update attempts a set late_outcome = j.outcome,
    late_outcomes = case when j.outcome = any(a.late_outcomes) then a.late_outcomes else a.late_outcomes || j.outcome end,
    late_write = a.late_write or (j.late_write_now and j.outcome = 'unknown'),
    proven_absent = a.proven_absent and not (j.disproves and j.freezes)
  from judged j
  where (a.organization_id, a.reservation_id, a.id) = (j.organization_id, j.id, j.attempt_id)
    and (j.verdict = 'late' and ((a.outcome, a.closed_by) is distinct from (j.outcome, 'answer') and j.outcome <> all(a.late_outcomes)
        or j.freezes and not a.late_write)
      or j.verdict = 'contradiction' and j.disproves)
  returning a.organization_id, a.reservation_id as id
), frozen as (
  update reservations r set late_write = true, absences = 0, unknown_attempts = r.unknown_attempts + j.disproves::int, changed_at = now(),
    absence_counts_at = greatest(r.absence_counts_at, now() + make_interval(secs => j.settle_seconds)),
    person_asked_at = case
      when j.state = 'in_doubt' and j.next_recover_seconds is null then coalesce(r.person_asked_at, now())
      else r.person_asked_at
    end
  from judged j
  where (r.organization_id, r.id) = (j.organization_id, j.id) and j.verdict = 'late' and j.freezes
), received as (
  select j.organization_id, j.id, case when j.verdict <> 'late' then j.verdict when n.id is null and a.id is not null then 'already' else 'evidence' end as verdict
  from judged j
  left join noted n using (organization_id, id)
  left join attempts a on (a.organization_id, a.reservation_id, a.id) = (j.organization_id, j.id, j.attempt_id)
), receipted as (
  insert into receipts (organization_id, id, reservation_id, attempt_id, environment_id, provider, connection, tool, contract_version,
    external_reference, confidence, evidence, provider_request_id, actor_chain, owner, policy, amount, currency)
  select j.organization_id, j.receipt_id, j.id,
    (select a.id from attempts a where (a.organization_id, a.reservation_id, a.id) = (j.organization_id, j.id, j.named_attempt_id)),
    j.environment_id, j.provider, n.name, j.tool, j.contract_version,
    j.receipt_reference, j.confidence,
    (select jsonb_agg(e || jsonb_build_object('at', now())) from jsonb_array_elements(j.evidence::jsonb) e), j.provider_request_id, j.actor_chain, j.owner, j.decision, j.amount, j.currency
  from judged j join connections n on (n.organization_id, n.id) = (j.organization_id, j.connection_id)
  where j.verdict = 'settled' and j.next_state = 'succeeded'
), kept as (
  insert into sealed_results (organization_id, reservation_id, kind, sealed, expires_at)
  select j.organization_id, j.id, 'result', j.sealed_result, null::timestamptz
  from judged j where j.verdict = 'settled' and j.next_state = 'succeeded' and j.sealed_result is not null
  union all
  select j.organization_id, j.id, 'failure', j.sealed_failure, now() + interval '24 hours'
  from judged j where j.verdict = 'settled' and j.next_state in ('failed', 'in_doubt') and j.sealed_failure is not null
  on conflict (organization_id, reservation_id, kind) do update set sealed = excluded.sealed, expires_at = excluded.expires_at
), erased as (
  delete from sealed_inputs s using judged j
  where (s.organization_id, s.reservation_id) = (j.organization_id, j.id) and j.verdict = 'settled' and j.next_state in ('succeeded', 'failed')
), closed as (
  delete from open_reservations o using judged j
  where (o.organization_id, o.reservation_id) = (j.organization_id, j.id) and j.verdict = 'settled' and j.next_state in ('succeeded', 'failed')
), watched as (
  update open_reservations o set due_at = case
    when j.next_state = 'in_doubt' then coalesce(now() + make_interval(secs => j.next_recover_seconds), 'infinity')
    when j.tries + 1 >= $26 then now()
    else least(now() + make_interval(secs => j.again_seconds), j.not_after)
  end
  from judged j
  where (o.organization_id, o.reservation_id) = (j.organization_id, j.id) and j.verdict = 'settled' and j.next_state in ('in_doubt', 'reserved')
), left_to_a_person as (
  update open_reservations o set due_at = coalesce(now() + make_interval(secs => j.next_recover_seconds), 'infinity')
  from judged j
  where (o.organization_id, o.reservation_id) = (j.organization_id, j.id) and j.verdict = 'late' and j.freezes and j.state = 'in_doubt'
), contradicted as (
  insert into contradictions (organization_id, id, reservation_id, attempt_id, project_id, environment_id, connection_id, tool, scope,
    operation_key, external_reference)
  -- A late write has no reference: the attempt's id names what nobody knows.
  select j.organization_id, coalesce(j.receipt_id, j.attempt_id), j.id, j.attempt_id, j.project_id, j.environment_id, j.connection_id, j.tool,
    j.scope, j.operation_key, coalesce(j.receipt_reference, 'late-write:' || j.attempt_id)
  from judged j where j.verdict = 'contradiction' and $29 > (
    select count(*) from contradictions c where (c.organization_id, c.reservation_id) = (j.organization_id, j.id) and c.closed_at is null)
  on conflict do nothing
  returning organization_id, reservation_id as id
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, from_state, to_state, outcome, actor_chain,
    run, tool, operation_key, input_digest, declared, trace_id, detail)
  select j.organization_id, j.environment_id,
    case v.verdict when 'settled' then case when j.next_state in ('succeeded', 'failed') then 'settled' else replace(j.next_state, '_', '-') end else v.verdict end,
    j.id, j.attempt_id, j.state, case j.verdict when 'settled' then j.next_state else j.state end, j.outcome, j.actor_chain,
    (select name from runs where (runs.organization_id, runs.id) = (j.organization_id, j.run_id)), j.tool, j.operation_key, j.input_digest, j.declared, j.trace_id,
    jsonb_strip_nulls(jsonb_build_object('reason', j.reason, 'provider_status', j.status_now, 'provider_code', j.code_now,
      'provider_request_id', j.provider_request_id, 'external_reference', j.receipt_reference,
      'receipt_id', case when j.verdict = 'settled' then j.receipt_id end,
      'confidence', j.confidence, 'stored', nullif(j.stored_now, false), 'late_write', nullif(j.late_write_now, false)))
  from judged j join received v using (organization_id, id)
  where v.verdict in ('settled', 'evidence') or exists (select from contradicted c where (c.organization_id, c.id) = (j.organization_id, j.id))
  union all
  select j.organization_id, j.environment_id, 'variance', j.id, j.attempt_id, j.state, j.next_state, j.outcome, j.actor_chain,
    (select name from runs where (runs.organization_id, runs.id) = (j.organization_id, j.run_id)), j.tool, j.operation_key, j.input_digest, null, j.trace_id, j.variance::jsonb
  from judged j where j.verdict = 'settled' and j.variance is not null
)
select i.place, coalesce(v.verdict, 'missing') as verdict, coalesce(c.state, j.state) as state
from input i
left join judged j on j.place = i.place
left join received v on (v.organization_id, v.id) = (j.organization_id, j.id)
left join changed c on (c.organization_id, c.id) = (j.organization_id, j.id)
order by i.place
"""


def _arguments(rows: Sequence[Settlement]) -> list[list[object]]:
    head = columns(
        rows,
        [
            "organization_id",
            "reservation_id",
            "attempt_id",
            "epoch",
            "outcome",
            "reason",
            "stored",
            "stored_failure",
            "late_write",
            "settle_seconds",
            "again_seconds",
            "recover_seconds",
            "provider_status",
            "provider_code",
            "sealed_failure",
            "provider_seconds",
            "provider_key",
        ],
    )
    variances: list[object] = [json_text(row.variance) for row in rows]
    drafts = [row.receipt for row in rows]
    tail: list[list[object]] = [
        [draft and draft.id for draft in drafts],
        [draft and draft.provider for draft in drafts],
        [draft and draft.external_reference for draft in drafts],
        [draft and draft.confidence for draft in drafts],
        [draft and json_text(draft.evidence) for draft in drafts],
        [draft and draft.provider_request_id for draft in drafts],
        [draft and draft.sealed_result for draft in drafts],
    ]
    return [*head, variances, *tail]


def _rounds(rows: Sequence[Settlement]) -> list[list[int]]:
    """Places in rounds, each reservation once a round: one statement changes a row once."""
    rounds: list[list[int]] = []
    seen: list[set[tuple[UUID, UUID]]] = []
    for place, row in enumerate(rows):
        of = (row.organization_id, row.reservation_id)
        for places, taken in zip(rounds, seen, strict=True):
            if of not in taken:
                places.append(place)
                taken.add(of)
                break
        else:
            rounds.append([place])
            seen.append({of})
    return rounds


async def _settle(connection: Connection, rows: Sequence[Settlement], tries_max: int) -> list[Settled]:
    results: list[Settled] = [Settled(verdict="missing", state=None)] * len(rows)
    waiting = list(range(len(rows)))
    for _ in range(ROUNDS_MAX):
        records = await connection.fetch(
            SETTLE,
            *_arguments([rows[place] for place in waiting]),
            tries_max,
            [rows[place].late_recover_seconds for place in waiting],
            [rows[place].conflict for place in waiting],
            CONTRADICTIONS_MAX,
        )
        again = []
        for place, record in zip(waiting, records, strict=True):
            if record["verdict"] == "again":
                again.append(place)
            else:
                state = record["state"]
                results[place] = Settled(verdict=record["verdict"], state=None if state is None else State(state))
        waiting = again
        if not waiting:
            return results
    raise RuntimeError("a newer attempt stayed invisible to its own reservation's settlement")


async def settle(connection: Connection, rows: Sequence[Settlement], *, tries_max: int) -> list[Settled | Failed]:
    """Close attempts with what they came to: receipt, next state, erased input, kept result, ledger entry.

    Each statement is a transaction of its own: call it outside of one.

    Args:
        connection: a connection in autocommit.
        rows: any number; a reservation may stand in several, they are then settled one after the other.
        tries_max: after how many unsent and deferred tries the next claim withdraws the reservation.

    Returns:
        One result per row, in their order.

    Raises:
        asyncpg.PostgresConnectionError: the answer was lost; the same rows may be sent again unchanged.
    """
    results: list[Settled | Failed] = [Settled(verdict="missing", state=None)] * len(rows)
    for places in _rounds(rows):
        settled = await in_halves([rows[place] for place in places], lambda batch: _settle(connection, batch, tries_max))
        for place, result in zip(places, settled, strict=True):
            results[place] = result
    return results
