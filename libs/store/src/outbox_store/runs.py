"""Agent executions; a run that nobody registered appears on first use."""

from dataclasses import dataclass
from uuid import UUID

from outbox_store.connection import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One agent execution; `lineage` is the run at the root of its forks."""

    id: UUID
    name: str
    lineage: UUID
    lineage_name: str


ENSURE = """
insert into runs (organization_id, id, environment_id, project_id, name, lineage) values ($1, $2, $3, $4, $5, $2)
on conflict (organization_id, environment_id, project_id, name) do nothing
"""
FIND = """
select r.id, r.name, r.lineage, root.name as lineage_name
from runs r join runs root on (root.organization_id, root.id) = (r.organization_id, r.lineage)
where r.organization_id = $1 and r.environment_id = $2 and r.project_id = $3 and r.name = $4
"""


async def find(connection: Connection, organization_id: UUID, environment_id: UUID, project_id: UUID, name: str) -> Run | None:
    """The run of this name, if anybody has used it."""
    record = await connection.fetchrow(FIND, organization_id, environment_id, project_id, name)
    return Run(**dict(record)) if record else None


async def ensure(
    connection: Connection, organization_id: UUID, environment_id: UUID, project_id: UUID, name: str, new_id: UUID
) -> Run:
    """The run of this name, registered with `new_id` when nobody has used it before."""
    if (run := await find(connection, organization_id, environment_id, project_id, name)) is not None:
        return run
    await connection.execute(ENSURE, organization_id, new_id, environment_id, project_id, name)
    run = await find(connection, organization_id, environment_id, project_id, name)
    if run is None:
        raise LookupError(f"the run {name!r} vanished while it was registered")
    return run
