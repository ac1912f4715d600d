"""Proof of an effect that a closed reservation denies: what a person must look at, and what becomes of it when one has.

While a contradiction is open its operation key is refused (`outbox_store.reserve`) and nothing of it is sent (`outbox_store.claim`).
A closed reservation never changes again, so an effect that stands gets its receipt by a reservation that is kept for it: of the same
operation, succeeded from its first moment, never sent. Source: design section 4, rules of doubt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from outbox_domain.reservation import State
from outbox_store.connection import Connection
from outbox_store.doubts import Where


@dataclass(frozen=True, kw_only=True, slots=True)
class Contradiction:
    """What contradicts one reservation and was closed by nobody.

    Attributes:
        external_references: the provider's names of what is proven; `late-write:` and an attempt where only a late write is known.
        since: when the first of it was written down.
        last_seconds: how long ago the last of it was.
    """

    external_references: list[str]
    since: datetime
    last_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Contradicted:
    """A reservation that something contradicts, for whoever looks at all of them."""

    reservation_id: UUID
    connection: str
    provider: str
    tool: str
    operation_key: str
    state: State
    external_references: list[str]
    since: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What a person found out.

    Attributes:
        happened: whether an effect stands that callers are to be told of.
        external_reference: the provider's name of it, exactly where it happened.
        actor_chain: who says so.
        evidence: what was seen, `[{kind, detail}]`; the time is added by Postgres.
    """

    organization_id: UUID
    reservation_id: UUID
    happened: bool
    external_reference: str | None
    actor_chain: list[str]
    reason: str
    evidence: list[dict[str, object]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The live reservation of an operation key."""

    id: UUID
    state: State


OPEN = """
select array_agg(external_reference order by created_at, id) as external_references, min(created_at) as since,
  extract(epoch from now() - max(created_at))::float8 as last_seconds
from contradictions where organization_id = $1 and reservation_id = $2 and closed_at is null
having count(*) > 0
"""

TOOLS = """
select distinct r.tool, n.provider
from contradictions c
join reservations r on (r.organization_id, r.id) = (c.organization_id, c.reservation_id)
join connections n on (n.organization_id, n.id) = (r.organization_id, r.connection_id)
where c.organization_id = $1 and c.environment_id = $2 and c.closed_at is null
"""

LIST = """
select r.id as reservation_id, n.name as connection, n.provider, r.tool, r.operation_key, r.state,
  array_agg(c.external_reference order by c.created_at, c.id) as external_references, min(c.created_at) as since
from contradictions c
join reservations r on (r.organization_id, r.id) = (c.organization_id, c.reservation_id)
join connections n on (n.organization_id, n.id) = (r.organization_id, r.connection_id)
left join runs run on (run.organization_id, run.id) = (r.organization_id, r.run_id)
where c.organization_id = $1 and c.environment_id = $2 and c.closed_at is null
  and ($3::text is null or n.name = $3)
  and ($4::text is null or r.tool = $4)
  and ($5::text is null or r.guarantee_class = $5)
  and ($6::text is null or run.name = $6)
  and ($7::uuid is null or r.id = $7)
  and ($8::uuid is null or r.project_id = $8)
  and (r.tool, n.provider) in (select * from unnest($10::text[], $11::text[]))
group by r.organization_id, r.id, n.name, n.provider
order by since, r.id
limit $9
"""

# The reservation that is kept has no input, no object and no attempt of its own: nothing is sent for it. What it is settled by is an
# attempt of the one that denies the effect.
KEEP = """
with denied as (
  select r.*, coalesce(
    (select c.attempt_id from contradictions c
      join attempts a on (a.organization_id, a.reservation_id, a.id) = (c.organization_id, c.reservation_id, c.attempt_id)
      where (c.organization_id, c.reservation_id) = (r.organization_id, r.id) and c.closed_at is null
      order by c.external_reference = $5 desc, c.created_at desc limit 1),
    r.last_attempt_id) as proven_attempt_id
  from reservations r where r.organization_id = $1 and r.id = $2 and not r.live and r.attempts > 0
), kept as (
  insert into reservations (organization_id, id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence,
    contract_version, input_digest, review_digest, declared, amount, currency, reference, guarantee_class, owner, executor,
    actor_id, actor_chain, key_id, run_id, lineage, checkpoint, step, call_id, model, traceparent, trace_id, decision,
    quiet_seconds, attention, blocks_run, not_after, state, live, epoch, generation, attempts, last_attempt_id, last_attempt_outcome,
    external_reference, settled_attempt_id, settled_at)
  select organization_id, $3, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence,
    contract_version, input_digest, review_digest, declared, amount, currency, reference, guarantee_class, owner, executor,
    actor_id, actor_chain, key_id, run_id, lineage, checkpoint, step, call_id, model, traceparent, trace_id, decision,
    quiet_seconds, attention, blocks_run, not_after, 'succeeded', true, (select max(number) from epochs), generation, attempts,
    proven_attempt_id, 'unknown', $5, proven_attempt_id, now()
  from denied
  on conflict do nothing
  returning *
), receipted as (
  insert into receipts (organization_id, id, reservation_id, attempt_id, environment_id, provider, connection, tool, contract_version,
    external_reference, confidence, evidence, actor_chain, owner, policy, amount, currency)
  select k.organization_id, $4, k.id, k.settled_attempt_id, k.environment_id, n.provider, n.name, k.tool, k.contract_version,
    k.external_reference, 'asserted', (select jsonb_agg(e || jsonb_build_object('at', now())) from jsonb_array_elements($8::jsonb) e),
    k.actor_chain, k.owner, k.decision, k.amount, k.currency
  from kept k join connections n on (n.organization_id, n.id) = (k.organization_id, k.connection_id)
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, to_state, actor_chain, run, tool,
    operation_key, input_digest, declared, trace_id, detail)
  select k.organization_id, k.environment_id, 'settled', k.id, k.settled_attempt_id, 'succeeded', $6::jsonb,
    (select name from runs where (runs.organization_id, runs.id) = (k.organization_id, k.run_id)), k.tool, k.operation_key,
    k.input_digest, k.declared, k.trace_id,
    jsonb_build_object('by', 'person', 'happened', true, 'reason', $7::text, 'external_reference', k.external_reference,
      'confidence', 'asserted', 'receipt_id', $4::uuid, 'contradicted_reservation_id', $2::uuid, 'evidence', $8::jsonb)
  from kept k
)
select id, state from kept
"""

HOLDER = """
select h.id, h.state
from reservations r join reservations h
  on (h.organization_id, h.project_id, h.environment_id, h.connection_id, h.tool, h.scope, h.operation_key, h.occurrence)
   = (r.organization_id, r.project_id, r.environment_id, r.connection_id, r.tool, r.scope, r.operation_key, r.occurrence)
where r.organization_id = $1 and r.id = $2 and h.live
"""

# What the person names is closed with the rest: where that very proof comes later, from an answer or a webhook, it has been examined.
CLOSE = """
with closed as (
  update contradictions set closed_at = now()
  where organization_id = $1 and reservation_id = $2 and closed_at is null
  returning external_reference
), named as (
  insert into contradictions (organization_id, id, reservation_id, project_id, environment_id, connection_id, tool, scope, operation_key,
    external_reference, closed_at)
  select organization_id, gen_random_uuid(), id, project_id, environment_id, connection_id, tool, scope, operation_key, $6::text, now()
  from reservations where organization_id = $1 and id = $2 and $6::text is not null and exists (select from closed)
  on conflict do nothing
)
insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, from_state, to_state, actor_chain,
  run, tool, operation_key, input_digest, declared, trace_id, detail)
select r.organization_id, r.environment_id, 'examined', r.id, r.last_attempt_id, r.state, r.state, $3::jsonb,
  (select name from runs where (runs.organization_id, runs.id) = (r.organization_id, r.run_id)), r.tool, r.operation_key, r.input_digest,
  r.declared, r.trace_id,
  jsonb_strip_nulls(jsonb_build_object('by', 'person', 'happened', $4::bool, 'reason', $5::text, 'external_reference', $6::text,
    'told_by_reservation_id', $7::uuid, 'evidence', $8::jsonb,
    'contradicted_by', (select jsonb_agg(external_reference order by external_reference) from closed)))
from reservations r
where r.organization_id = $1 and r.id = $2 and exists (select from closed)
"""


async def open_of(connection: Connection, organization_id: UUID, reservation_id: UUID) -> Contradiction | None:
    """What contradicts a reservation; None where nothing does, or a person has closed it."""
    record = await connection.fetchrow(OPEN, organization_id, reservation_id)
    return None if record is None else Contradiction(**record)


async def list_(
    connection: Connection,
    organization_id: UUID,
    environment_id: UUID,
    where: Where,
    *,
    reaches: Callable[[str, str], bool],
    limit: int,
) -> list[Contradicted]:
    """Reservations that something contradicts, the oldest first.

    Args:
        where: only these; its cause and who looks next are those of doubts, and are not asked.
        reaches: whether they are asked for of a tool and its provider; what is not takes no place of what is.
        limit: at most so many.
    """
    found = await connection.fetch(TOOLS, organization_id, environment_id)
    reached = [(record["tool"], record["provider"]) for record in found if reaches(record["tool"], record["provider"])]
    binds = (where.connection, where.tool, where.guarantee_class, where.run, where.reservation_id, where.project_id)
    tools, providers = [tool for tool, _ in reached], [provider for _, provider in reached]
    records = await connection.fetch(LIST, organization_id, environment_id, *binds, limit, tools, providers)
    return [Contradicted(**{**record, "state": State(record["state"])}) for record in records]


async def keep(connection: Connection, said: Examined, *, id: UUID, receipt_id: UUID) -> Holder | None:
    """See that callers of an operation that happened are told so: by a reservation with a receipt, where none holds its key.

    Args:
        connection: inside the transaction in which the contradicted reservation is held.
        said: what happened.
        id, receipt_id: of the reservation that is kept for it.

    Returns:
        Who holds the key now: the reservation that was kept, or another one, in whatever state. None where the reservation that
        denies the effect has no attempt, which a receipt would have to name.
    """
    chain, reason, evidence = said.actor_chain, said.reason, said.evidence
    of = (said.organization_id, said.reservation_id)
    record = await connection.fetchrow(KEEP, *of, id, receipt_id, said.external_reference, chain, reason, evidence)
    record = record or await connection.fetchrow(HOLDER, *of)
    return None if record is None else Holder(id=record["id"], state=State(record["state"]))


async def close(connection: Connection, said: Examined, *, told_by: UUID | None) -> None:
    """Close what contradicts a reservation, with a ledger entry; nothing is written where nothing does.

    Args:
        connection: inside the transaction in which the reservation is held.
        told_by: the reservation whose receipt tells callers of the effect, where it happened.
    """
    await connection.execute(
        CLOSE,
        said.organization_id,
        said.reservation_id,
        said.actor_chain,
        said.happened,
        said.reason,
        said.external_reference,
        told_by,
        said.evidence,
    )
