"""Who acts: members, agents and subagents."""

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from outbox_store.connection import Connection

Kind = Literal["member", "agent", "subagent"]

ENSURE = """
insert into actors (organization_id, id, kind, name, parent_id) values ($1, $2, $3, $4, $5)
on conflict (organization_id, kind, name) do nothing
"""
BY_NAME = "select id from actors where organization_id = $1 and kind = $2 and name = $3"
MAKE_MEMBER = """
insert into members (organization_id, actor_id, roles) values ($1, $2, $3)
on conflict (organization_id, actor_id) do update set roles = excluded.roles
"""


async def ensure(
    connection: Connection, organization_id: UUID, id: UUID, kind: Kind, name: str, parent_id: UUID | None = None
) -> UUID:
    """The id of the actor of this kind and name, made with `id` when there is none yet."""
    await connection.execute(ENSURE, organization_id, id, kind, name, parent_id)
    return UUID(str(await connection.fetchval(BY_NAME, organization_id, kind, name)))


async def make_member(connection: Connection, organization_id: UUID, actor_id: UUID, roles: Sequence[str]) -> None:
    """Give a member its roles, in place of those it had."""
    await connection.execute(MAKE_MEMBER, organization_id, actor_id, list(roles))
