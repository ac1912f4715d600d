"""T1: claim operation keys. One set-based statement; only who lost a key needs a second one (design 8).

The insert comes first and the holder is read afterwards, because one statement that does both returns no row when the
holder commits meanwhile, and two rows when the holder fails meanwhile. Rows are inserted in the order of their keys,
because two batches in different orders deadlock. Ids are the caller's, so a batch that is sent again after its commit
answer was lost recognises its own rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg

from outbox_domain.reservation import State
from outbox_store.batches import Failed, columns, in_halves, json_text
from outbox_store.connection import Connection

Executor = Literal["gateway", "client"]
"""Who carries an effect out."""

ROUNDS_MAX = 20
"""How often a key may change hands under one reserve before the caller is told to come again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewReservation:
    """A reservation that a caller wants.

    Attributes:
        scope: `environment` or `run:` and the lineage's UUID.
        input_digest: 32 bytes; identity of the input without presentational fields.
        review_digest: 32 bytes; identity of all of the input.
        declared: the declared fields, measures in clear and the rest as keyed digests.
        amount: integer minor units of `currency`.
        not_after_seconds: how long from now it may still be sent.
        sealed_input: the bound input and the context, sealed.
        run_name: the caller's name of the run, for the ledger.
        executor: who carries the effect out, a worker or the caller itself; workers never claim what is a client's.
        object_key: what the effect changes; one operation at a time on it, per connection.
        quiet_seconds: the contract's settle time: how long after a lease its request may still arrive.
        attention: who is disturbed by a doubt that needs a person.
        blocks_run: while it is in doubt, nothing new is reserved in its run.
    """

    organization_id: UUID
    id: UUID
    project_id: UUID
    environment_id: UUID
    connection_id: UUID
    tool: str
    scope: str
    operation_key: str
    occurrence: int
    contract_version: int
    input_digest: bytes
    review_digest: bytes
    declared: dict[str, object]
    amount: int | None
    currency: str | None
    reference: str | None
    guarantee_class: str
    owner: str
    actor_id: UUID
    actor_chain: Sequence[str]
    key_id: str
    run_id: UUID | None
    lineage: UUID | None
    run_name: str | None
    checkpoint: str | None
    step: str | None
    call_id: str | None
    model: str | None
    traceparent: str | None
    trace_id: str | None
    decision: dict[str, object] | None
    not_after_seconds: float
    sealed_input: bytes
    object_key: str | None = None
    quiet_seconds: float = 120.0
    attention: str = "queue"
    blocks_run: bool = False
    executor: Executor = "gateway"

    @property
    def key(self) -> tuple[UUID, UUID, UUID, UUID, str, str, str, int]:
        """What the unique index compares."""
        return (
            self.organization_id,
            self.project_id,
            self.environment_id,
            self.connection_id,
            self.tool,
            self.scope,
            self.operation_key,
            self.occurrence,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Won:
    """The caller's own row holds the key."""

    id: UUID


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Another row holds the key.

    Attributes:
        executor: who carries it out.
        open_attempt_id: the attempt under way, where there is one.
        last_attempt_id: the newest attempt, open or closed.
        lease_seconds: how long until its lease is over; zero or less once it is.
    """

    id: UUID
    state: State
    input_digest: bytes
    declared: dict[str, object]
    contract_version: int
    settled_at: datetime | None
    executor: Executor
    open_attempt_id: UUID | None
    last_attempt_id: UUID | None
    lease_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Contradicted:
    """Proof of an effect that a closed reservation of the key denies has to be examined by a person first."""

    id: UUID
    reservation_id: UUID


@dataclass(frozen=True, kw_only=True, slots=True)
class Barred:
    """Nobody holds the key, but something that is still open stands in the way; nothing was written.

    Attributes:
        by: another `occurrence` of the key; a doubt that blocks the `run`; an operation on the same `object`.
        reservation_id: what is in the way.
        after_seconds: when that is over, where it is known.
    """

    by: Literal["occurrence", "run", "object"]
    reservation_id: UUID
    after_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Contended:
    """The key changed hands too often; nothing was written."""


INSERT = """
with input as (
  select * from unnest(
    $1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::int[],
    $10::int[], $11::bytea[], $12::bytea[], $13::text[], $14::bigint[], $15::text[], $16::text[], $17::text[], $18::text[],
    $19::uuid[], $20::text[], $21::text[], $22::uuid[], $23::uuid[], $24::text[], $25::text[], $26::text[], $27::text[],
    $28::text[], $29::text[], $30::text[], $31::text[], $32::float8[], $33::bytea[], $34::text[], $35::float8[], $36::text[], $37::bool[],
    $38::text[]
  ) as i (
    organization_id, id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence,
    contract_version, input_digest, review_digest, declared, amount, currency, reference, guarantee_class, owner,
    actor_id, actor_chain, key_id, run_id, lineage, run_name, checkpoint, step, call_id,
    model, traceparent, trace_id, decision, not_after_seconds, sealed_input, object_key, quiet_seconds, attention, blocks_run, executor
  )
), won as (
  insert into reservations (
    organization_id, id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence,
    contract_version, input_digest, review_digest, declared, amount, currency, reference, guarantee_class, owner,
    actor_id, actor_chain, key_id, run_id, lineage, checkpoint, step, call_id, model, traceparent, trace_id, decision,
    object_key, quiet_seconds, attention, blocks_run, executor, not_after, state, live, epoch
  )
  select
    organization_id, id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence,
    contract_version, input_digest, review_digest, declared::jsonb, amount, currency, reference, guarantee_class, owner,
    actor_id, actor_chain::jsonb, key_id, run_id, lineage, checkpoint, step, call_id, model, traceparent, trace_id, decision::jsonb,
    object_key, quiet_seconds, attention, blocks_run, executor, now() + make_interval(secs => not_after_seconds), 'reserved', true,
    (select max(number) from epochs)
  from input i
  where not exists (
    select from contradictions c
    where c.closed_at is null
      and (c.organization_id, c.project_id, c.environment_id, c.connection_id, c.tool, c.scope, c.operation_key)
        = (i.organization_id, i.project_id, i.environment_id, i.connection_id, i.tool, i.scope, i.operation_key)
  ) and not exists (
    select from reservations r
    where r.live and r.state <> 'succeeded' and r.occurrence <> i.occurrence
      and (r.organization_id, r.project_id, r.environment_id, r.connection_id, r.tool, r.scope, r.operation_key)
        = (i.organization_id, i.project_id, i.environment_id, i.connection_id, i.tool, i.scope, i.operation_key)
  ) and not exists (
    select from input j
    where j.occurrence < i.occurrence
      and (j.organization_id, j.project_id, j.environment_id, j.connection_id, j.tool, j.scope, j.operation_key)
        = (i.organization_id, i.project_id, i.environment_id, i.connection_id, i.tool, i.scope, i.operation_key)
  ) and not exists (
    select from blocked_runs b where (b.organization_id, b.lineage) = (i.organization_id, i.lineage)
  ) and not exists (
    select from open_objects o
    where (o.organization_id, o.connection_id, o.object_key) = (i.organization_id, i.connection_id, i.object_key)
      and (o.quiet_at is null or o.quiet_at > now())
  )
  order by organization_id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence
  on conflict do nothing
  returning organization_id, id
), sealed as (
  insert into sealed_inputs (organization_id, reservation_id, sealed)
  select i.organization_id, i.id, i.sealed_input from input i join won using (organization_id, id)
), opened as (
  insert into open_reservations (organization_id, reservation_id, due_at, key_digest)
  select organization_id, i.id, now(),
    sha256(convert_to(jsonb_build_array(i.project_id, i.environment_id, i.connection_id, i.tool, i.scope, i.operation_key)::text, 'UTF8'))
  from input i join won using (organization_id, id)
  order by organization_id, i.project_id, i.environment_id, i.connection_id, i.tool, i.scope, i.operation_key
), entered as (
  insert into ledger_entries (organization_id, environment_id, kind, reservation_id, to_state, decision, actor_chain, run, tool,
    operation_key, input_digest, declared, trace_id)
  select i.organization_id, i.environment_id, 'reserved', i.id, 'reserved', i.decision::jsonb, i.actor_chain::jsonb, i.run_name, i.tool,
    i.operation_key, i.input_digest, i.declared::jsonb, i.trace_id
  from input i join won using (organization_id, id)
)
select id from won
"""

HOLDERS = """
with input as (
  select * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::int[], $10::uuid[], $11::text[])
    with ordinality as i (organization_id, id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence, lineage, object_key, place)
)
select i.place, 1 as rank, 'own' as found, r.id, r.state, r.input_digest, r.declared, r.contract_version, r.settled_at, r.executor,
  r.open_attempt_id, r.last_attempt_id, null::float8 as lease_seconds, null::uuid as reservation_id, null::float8 as after_seconds
from input i join reservations r on (r.organization_id, r.id) = (i.organization_id, i.id)
union all
select i.place, 2, 'holder', r.id, r.state, r.input_digest, r.declared, r.contract_version, r.settled_at, r.executor,
  r.open_attempt_id, r.last_attempt_id,
  (select extract(epoch from a.lease_until - now())::float8 from attempts a where (a.organization_id, a.id) = (r.organization_id, r.open_attempt_id)),
  null, null
from input i join reservations r
  on (r.organization_id, r.project_id, r.environment_id, r.connection_id, r.tool, r.scope, r.operation_key, r.occurrence)
   = (i.organization_id, i.project_id, i.environment_id, i.connection_id, i.tool, i.scope, i.operation_key, i.occurrence)
where r.live
union all
select i.place, 3, 'contradiction', c.id, null, null, null, null, null, null, null, null, null, c.reservation_id, null
from input i join contradictions c
  on (c.organization_id, c.project_id, c.environment_id, c.connection_id, c.tool, c.scope, c.operation_key)
   = (i.organization_id, i.project_id, i.environment_id, i.connection_id, i.tool, i.scope, i.operation_key)
where c.closed_at is null
union all
select i.place, 4, 'occurrence', null, null, null, null, null, null, null, null, null, null, r.id, null
from input i join reservations r
  on (r.organization_id, r.project_id, r.environment_id, r.connection_id, r.tool, r.scope, r.operation_key)
   = (i.organization_id, i.project_id, i.environment_id, i.connection_id, i.tool, i.scope, i.operation_key)
where r.live and r.state <> 'succeeded' and r.occurrence <> i.occurrence
union all
select i.place, 5, 'run', null, null, null, null, null, null, null, null, null, null, b.reservation_id, null
from input i join blocked_runs b on (b.organization_id, b.lineage) = (i.organization_id, i.lineage)
union all
select i.place, 6, 'object', null, null, null, null, null, null, null, null, null, null, o.reservation_id, extract(epoch from o.quiet_at - now())::float8
from input i join open_objects o on (o.organization_id, o.connection_id, o.object_key) = (i.organization_id, i.connection_id, i.object_key)
where o.quiet_at is null or o.quiet_at > now()
order by place, rank, id, reservation_id
"""

OPEN_CONSTRAINTS = frozenset({"one_open_reservation_per_object", "one_open_occurrence_per_key"})
"""What refuses the second of two operations on an object, or of two occurrences of a key, that are reserved at the same instant."""

Verdict = Won | Held | Contradicted | Barred | Contended
"""What came of one row."""


def _arguments(rows: Sequence[NewReservation]) -> list[list[object]]:
    names = [
        "organization_id",
        "id",
        "project_id",
        "environment_id",
        "connection_id",
        "tool",
        "scope",
        "operation_key",
        "occurrence",
        "contract_version",
        "input_digest",
        "review_digest",
        "declared",
        "amount",
        "currency",
        "reference",
        "guarantee_class",
        "owner",
        "actor_id",
        "actor_chain",
        "key_id",
        "run_id",
        "lineage",
        "run_name",
        "checkpoint",
        "step",
        "call_id",
        "model",
        "traceparent",
        "trace_id",
        "decision",
        "not_after_seconds",
        "sealed_input",
        "object_key",
        "quiet_seconds",
        "attention",
        "blocks_run",
        "executor",
    ]
    encoded = {"declared", "actor_chain", "decision"}
    return [
        [json_text(value) for value in column] if name in encoded else column
        for name, column in zip(names, columns(rows, names), strict=True)
    ]


async def holders(connection: Connection, rows: Sequence[NewReservation]) -> list[Verdict | None]:
    """Who holds each row's key now, without writing anything; None where nobody does.

    Args:
        connection: where to read.
        rows: any number; nothing is sent for none.

    Returns:
        One verdict per row in their order; `Won` where the row's own id is in the table already.
    """
    found: list[Verdict | None] = [None] * len(rows)
    if not rows:
        return found
    names = [
        "organization_id",
        "id",
        "project_id",
        "environment_id",
        "connection_id",
        "tool",
        "scope",
        "operation_key",
        "occurrence",
        "lineage",
        "object_key",
    ]
    for record in await connection.fetch(HOLDERS, *columns(rows, names)):
        place = record["place"] - 1
        if found[place] is None:
            found[place] = _verdict(record)
    return found


def _verdict(record: asyncpg.Record) -> Verdict:
    match record["found"]:
        case "own":
            return Won(id=record["id"])
        case "holder":
            return Held(
                id=record["id"],
                state=State(record["state"]),
                input_digest=record["input_digest"],
                declared=record["declared"],
                contract_version=record["contract_version"],
                settled_at=record["settled_at"],
                executor=record["executor"],
                open_attempt_id=record["open_attempt_id"],
                last_attempt_id=record["last_attempt_id"],
                lease_seconds=record["lease_seconds"],
            )
        case "contradiction":
            return Contradicted(id=record["id"], reservation_id=record["reservation_id"])
        case by:
            return Barred(by=by, reservation_id=record["reservation_id"], after_seconds=record["after_seconds"])


async def _reserve(connection: Connection, rows: Sequence[NewReservation]) -> list[Verdict]:
    verdicts: list[Verdict] = [Contended()] * len(rows)
    waiting = list(range(len(rows)))
    for _ in range(ROUNDS_MAX):
        batch = [rows[place] for place in waiting]
        won = {record["id"] for record in await connection.fetch(INSERT, *_arguments(batch))}
        for place in waiting:
            if rows[place].id in won:
                verdicts[place] = Won(id=rows[place].id)
        lost = [place for place in waiting if rows[place].id not in won]
        waiting = []
        for place, verdict in zip(lost, await holders(connection, [rows[place] for place in lost]), strict=True):
            if verdict is None:
                waiting.append(place)  # The holder closed between the two statements: its key is free again.
            else:
                verdicts[place] = verdict
        if not waiting:
            break
    return verdicts


async def reserve(connection: Connection, rows: Sequence[NewReservation]) -> list[Verdict | Failed]:
    """Claim the operation key of each row, with its sealed input and its ledger entry, or say who holds it.

    Each statement is a transaction of its own: call it outside of one.

    Args:
        connection: a connection in autocommit.
        rows: any number of rows, in any order; the same key may stand in several.

    Returns:
        One verdict per row, in their order. `Failed` carries the definite refusal of one row; it takes no other row along.

    Raises:
        asyncpg.PostgresConnectionError: the answer was lost; the same rows may be sent again unchanged.
    """
    verdicts = await in_halves(rows, lambda batch: _reserve(connection, batch))
    for place, verdict in enumerate(verdicts):
        if isinstance(verdict, Failed):
            verdicts[place] = await met(connection, rows[place], verdict)
    return verdicts


async def reserve_within(connection: Connection, row: NewReservation) -> Verdict | Failed:
    """The same for one row inside a transaction, which reserves it together with the claim of its client.

    Args:
        connection: in a transaction. Postgres has given it up where the row is `Failed`, so that nothing more can be asked in it:
            what the refusal means is found out by `met` once it is over.
    """
    [verdict] = await in_halves([row], lambda batch: _reserve(connection, batch))
    return verdict


async def met(connection: Connection, row: NewReservation, refused: Failed) -> Verdict | Failed:
    """What a row was refused for: which operation on its object, or occurrence of its key, was faster by an instant.

    Args:
        connection: in no transaction, or in one that began after the refusal.
        row: as it was refused.
        refused: the refusal.

    Returns:
        The refusal itself where it was for something else.
    """
    if refused.constraint not in OPEN_CONSTRAINTS:
        return refused
    [found] = await holders(connection, [row])
    return Contended() if found is None else found
