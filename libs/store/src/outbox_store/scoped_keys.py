"""Scoped keys: what actors present. Only a digest of the secret is stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from outbox_domain.scoped_key import ScopedKey
from outbox_store.connection import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class NewKey:
    """A scoped key to add; None in a dimension: not bound in it."""

    organization_id: UUID
    id: str
    environment_id: UUID
    project_id: UUID | None
    run: str | None
    actor_id: UUID
    providers: Sequence[str] | None
    tools: Sequence[str] | None
    expires_at: datetime | None
    secret_digest: bytes
    created_by: UUID


INSERT = """
insert into scoped_keys (organization_id, id, environment_id, project_id, run, actor_id, providers, tools, expires_at, secret_digest, created_by)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
BY_ID = """
with recursive chain as (
  select a.organization_id, a.id, a.kind, a.name, a.parent_id, 1 as depth
  from scoped_keys k join actors a on (a.organization_id, a.id) = (k.organization_id, k.actor_id)
  where k.id = $1
  union all
  select p.organization_id, p.id, p.kind, p.name, p.parent_id, c.depth + 1
  from chain c join actors p on (p.organization_id, p.id) = (c.organization_id, c.parent_id)
  where c.depth < 16
)
select k.id, k.organization_id, g.name as organization, k.environment_id, e.name as environment, p.name as project, k.project_id, k.run,
  k.actor_id, a.kind as actor_kind, a.name as actor_name, coalesce(m.roles, '{}') as roles, k.providers, k.tools, k.expires_at,
  k.secret_digest, k.revoked_at is not null as revoked,
  (select array_agg(kind || ':' || name order by depth desc) from chain) as actor_chain
from scoped_keys k
join organizations g on g.id = k.organization_id
join environments e on (e.organization_id, e.id) = (k.organization_id, k.environment_id)
left join projects p on (p.organization_id, p.id) = (k.organization_id, k.project_id)
join actors a on (a.organization_id, a.id) = (k.organization_id, k.actor_id)
left join members m on (m.organization_id, m.actor_id) = (k.organization_id, k.actor_id)
where k.id = $1
"""


async def insert(connection: Connection, key: NewKey) -> None:
    """Add a scoped key."""
    await connection.execute(
        INSERT,
        key.organization_id,
        key.id,
        key.environment_id,
        key.project_id,
        key.run,
        key.actor_id,
        list(key.providers) if key.providers is not None else None,
        list(key.tools) if key.tools is not None else None,
        key.expires_at,
        key.secret_digest,
        key.created_by,
    )


async def by_id(connection: Connection, id: str) -> ScopedKey | None:
    """The key of this id with everything that authentication and scope ask of it, the root of its actors first."""
    record = await connection.fetchrow(BY_ID, id)
    if record is None:
        return None
    values = dict(record)
    values["roles"] = frozenset(values["roles"])
    values["actor_chain"] = tuple(values["actor_chain"])
    for dimension in ("providers", "tools"):
        values[dimension] = None if values[dimension] is None else frozenset(values[dimension])
    return ScopedKey(**values)
