"""Named accounts at providers, and their credentials (which only the worker may read)."""

from dataclasses import dataclass
from uuid import UUID

from outbox_store.connection import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionRow:
    """A named account at a provider.

    Attributes:
        fixed_headers: sent with every request.
        currency: ISO 4217, of the money the account moves.
        allow_private: whether its host may have a private address.
        is_default: used where a call names no connection of this provider.
    """

    organization_id: UUID
    id: UUID
    environment_id: UUID
    provider: str
    name: str
    base_url: str
    fixed_headers: dict[str, str]
    currency: str | None
    allow_private: bool
    is_default: bool


SELECT = """
select organization_id, id, environment_id, provider, name, base_url, fixed_headers, currency, allow_private, is_default
from connections where organization_id = $1 and environment_id = $2 and provider = $3
"""
DEFAULT = SELECT + "and is_default"
NAMED = SELECT + "and name = $4"
ENSURE = """
insert into connections (organization_id, id, environment_id, provider, name, base_url, fixed_headers, currency, allow_private, is_default)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict (organization_id, environment_id, name) do update set
  base_url = excluded.base_url, fixed_headers = excluded.fixed_headers, currency = excluded.currency,
  allow_private = excluded.allow_private, is_default = excluded.is_default
returning id
"""
CLIENT_BASE_URL = "https://client.invalid"
"""Where nothing is sent (RFC 2606): the address of an account that only clients use."""

ENSURE_CLIENT = """
insert into connections (organization_id, id, environment_id, provider, name, base_url) values ($1, $2, $3, $4, $5, $6)
on conflict (organization_id, environment_id, name) do nothing
"""
SEAL = """
insert into provider_credentials (organization_id, connection_id, sealed) values ($1, $2, $3)
on conflict (organization_id, connection_id) do update set sealed = excluded.sealed
"""


async def resolve(
    connection: Connection, organization_id: UUID, environment_id: UUID, provider: str, name: str | None
) -> ConnectionRow | None:
    """The provider's connection of this name, or its default where no name is given."""
    if name is None:
        record = await connection.fetchrow(DEFAULT, organization_id, environment_id, provider)
    else:
        record = await connection.fetchrow(NAMED, organization_id, environment_id, provider, name)
    return ConnectionRow(**dict(record)) if record else None


async def ensure(connection: Connection, row: ConnectionRow) -> UUID:
    """Add a connection, or bring the one of this name up to date; returns its id."""
    id: UUID = await connection.fetchval(
        ENSURE,
        row.organization_id,
        row.id,
        row.environment_id,
        row.provider,
        row.name,
        row.base_url,
        row.fixed_headers,
        row.currency,
        row.allow_private,
        row.is_default,
    )
    return id


async def ensure_client(
    connection: Connection, organization_id: UUID, environment_id: UUID, provider: str, name: str, new_id: UUID
) -> ConnectionRow | None:
    """The connection under which clients carry out effects of a provider that has no account here; made where there is none.

    Returns:
        None where another provider's connection has the name.
    """
    await connection.execute(ENSURE_CLIENT, organization_id, new_id, environment_id, provider, name, CLIENT_BASE_URL)
    return await resolve(connection, organization_id, environment_id, provider, name)


async def seal_credential(connection: Connection, organization_id: UUID, connection_id: UUID, sealed: bytes) -> None:
    """Keep a connection's credential, sealed to the worker's public key, in place of the one it had."""
    await connection.execute(SEAL, organization_id, connection_id, sealed)
