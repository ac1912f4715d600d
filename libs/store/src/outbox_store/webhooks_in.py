"""Events that providers send on their own: who listens, which event was acted on already, and whose marker it carries."""

from dataclasses import dataclass
from uuid import UUID

from outbox_domain.reservation import State
from outbox_store.connection import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Listener:
    """A connection whose webhooks are taken.

    Attributes:
        sealed_secret: what they are signed with, sealed under the organization's data key.
    """

    organization_id: UUID
    connection_id: UUID
    provider: str
    sealed_secret: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked:
    """A reservation of which an attempt planted a marker; `amount` is integer minor units of `currency`."""

    id: UUID
    state: State
    tool: str
    contract_version: int
    external_reference: str | None
    amount: int | None
    currency: str | None


LISTENER = """
select s.organization_id, s.connection_id, n.provider, s.sealed as sealed_secret
from webhook_secrets s join connections n on (n.organization_id, n.id) = (s.organization_id, s.connection_id)
where s.connection_id = $1
"""
REPLACE = """
insert into webhook_secrets (organization_id, connection_id, sealed) values ($1, $2, $3)
on conflict (organization_id, connection_id) do update set sealed = excluded.sealed
"""
HOLD = "select from reservations where (organization_id, id) = ($1, $2) for update"
TAKE = """
insert into webhooks_in (organization_id, connection_id, event_id, marker, verdict, reservation_id) values ($1, $2, $3, $4, 'taken', $5)
on conflict do nothing
returning event_id
"""
SAY = "update webhooks_in set verdict = $4 where organization_id = $1 and connection_id = $2 and event_id = $3"
# What the provider says of an effect beside proof: no state follows from it, so it is written without holding the row.
NOTE = """
insert into ledger_entries (organization_id, environment_id, kind, reservation_id, attempt_id, from_state, to_state, actor_chain,
  run, tool, operation_key, input_digest, declared, trace_id, detail)
select r.organization_id, r.environment_id, 'evidence', r.id, r.last_attempt_id, r.state, r.state, r.actor_chain,
  (select name from runs where (runs.organization_id, runs.id) = (r.organization_id, r.run_id)), r.tool, r.operation_key, r.input_digest,
  r.declared, r.trace_id, $3::jsonb
from reservations r where (r.organization_id, r.id) = ($1, $2)
"""
MARKED = """
select r.id, r.state, r.tool, r.contract_version, r.external_reference, r.amount, r.currency
from reservations r
where r.organization_id = $1 and r.connection_id = $2
  and r.id in (select reservation_id from attempts where organization_id = $1 and marker = $3)
order by r.created_at desc, r.id desc
"""


async def listener(connection: Connection, connection_id: UUID) -> Listener | None:
    """The connection of this id, if it takes webhooks."""
    record = await connection.fetchrow(LISTENER, connection_id)
    return Listener(**record) if record else None


async def keep_secret(connection: Connection, organization_id: UUID, connection_id: UUID, sealed: bytes) -> None:
    """Take a connection's webhooks from now on, signed with this secret in place of the one it had."""
    await connection.execute(REPLACE, organization_id, connection_id, sealed)


async def marked(connection: Connection, organization_id: UUID, connection_id: UUID, marker: str) -> list[Marked]:
    """The reservations of a connection that planted a marker, newest first. An operation key that was free again shares it."""
    records = await connection.fetch(MARKED, organization_id, connection_id, marker)
    return [Marked(**{**record, "state": State(record["state"])}) for record in records]


async def hold(connection: Connection, organization_id: UUID, reservation_id: UUID) -> None:
    """Wait for a reservation before anything is written about it, in the transaction that will.

    A transaction takes its number when it first writes. One that wrote and then waited would carry a smaller number than what
    happened to the reservation meanwhile, and the ledger, which is read by these numbers, would tell the end before the middle.
    """
    await connection.execute(HOLD, organization_id, reservation_id)


async def take(connection: Connection, by: Listener, event_id: str, marker: str, reservation_id: UUID) -> bool:
    """Whether an event was not acted on before; who takes it says in the same transaction what came of it.

    Args:
        connection: inside a transaction; the same event waits until it ends.
    """
    taken = await connection.fetchval(TAKE, by.organization_id, by.connection_id, event_id, marker, reservation_id)
    return taken is not None


async def note(connection: Connection, by: Listener, reservation_id: UUID, detail: dict[str, object]) -> None:
    """Write down what an event says of a reservation that it proves nothing of.

    Args:
        connection: inside the transaction in which the event was taken.
        detail: codes, names and references only.
    """
    await connection.execute(NOTE, by.organization_id, reservation_id, detail)


async def say(connection: Connection, by: Listener, event_id: str, verdict: str) -> None:
    """Write down what came of an event that was taken."""
    await connection.execute(SAY, by.organization_id, by.connection_id, event_id, verdict)
