"""Organizations, their projects and their environments."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from outbox_store.connection import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Organization:
    """The tenant that owns every row, with its keys wrapped by a key the customer manages."""

    id: UUID
    name: str
    data_key_wrapped: bytes
    digest_key_wrapped: bytes
    provider_key_secret_wrapped: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """A partition that keys and records never cross; `default_decision` holds where no policy matches."""

    id: UUID
    name: str
    default_decision: Literal["allow", "deny"] | None


SELECT = "select id, name, data_key_wrapped, digest_key_wrapped, provider_key_secret_wrapped from organizations where "
BY_ID = SELECT + "id = $1"
BY_NAME = SELECT + "name = $1"
CREATE = """
insert into organizations (id, name, data_key_wrapped, digest_key_wrapped, provider_key_secret_wrapped) values ($1, $2, $3, $4, $5)
"""
PROJECT = "select id from projects where organization_id = $1 and name = $2"
CREATE_PROJECT = "insert into projects (organization_id, id, name) values ($1, $2, $3) on conflict do nothing"
ENVIRONMENT = "select id, name, default_decision from environments where organization_id = $1 and name = $2"
CREATE_ENVIRONMENT = """
insert into environments (organization_id, id, name, default_decision) values ($1, $2, $3, $4) on conflict do nothing
"""


async def by_id(connection: Connection, organization_id: UUID) -> Organization | None:
    """The organization of this id."""
    record = await connection.fetchrow(BY_ID, organization_id)
    return Organization(**dict(record)) if record else None


async def by_name(connection: Connection, name: str) -> Organization | None:
    """The organization of this name."""
    record = await connection.fetchrow(BY_NAME, name)
    return Organization(**dict(record)) if record else None


async def create(connection: Connection, organization: Organization) -> None:
    """Add an organization.

    Raises:
        asyncpg.UniqueViolationError: its name is taken.
    """
    await connection.execute(
        CREATE,
        organization.id,
        organization.name,
        organization.data_key_wrapped,
        organization.digest_key_wrapped,
        organization.provider_key_secret_wrapped,
    )


async def project(connection: Connection, organization_id: UUID, name: str) -> UUID | None:
    """The id of a project by its name."""
    found: UUID | None = await connection.fetchval(PROJECT, organization_id, name)
    return found


async def create_project(connection: Connection, organization_id: UUID, id: UUID, name: str) -> UUID:
    """Add a project; returns the id of the one that has this name already, where there is one."""
    await connection.execute(CREATE_PROJECT, organization_id, id, name)
    return await project(connection, organization_id, name) or id


async def environment(connection: Connection, organization_id: UUID, name: str) -> Environment | None:
    """The environment of this name."""
    record = await connection.fetchrow(ENVIRONMENT, organization_id, name)
    return Environment(**dict(record)) if record else None


async def create_environment(
    connection: Connection, organization_id: UUID, id: UUID, name: str, default_decision: Literal["allow", "deny"] | None
) -> UUID:
    """Add an environment; returns the id of the one that has this name already, where there is one."""
    await connection.execute(CREATE_ENVIRONMENT, organization_id, id, name, default_decision)
    existing = await environment(connection, organization_id, name)
    return existing.id if existing else id
