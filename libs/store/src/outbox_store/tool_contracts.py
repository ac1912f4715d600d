"""The versions of tool contracts; a version never changes, because reservations are pinned to it."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from outbox_store.connection import Connection


class ContractChanged(Exception):
    """A version of a tool contract exists already and says something else; a change needs a new version."""


Document = dict[str, Any]

INSTALL = "insert into tool_contracts (organization_id, tool, version, document) values ($1, $2, $3, $4) on conflict do nothing"
# Inline contracts of one organization are installed one after the other, so that none is counted or numbered twice.
TURN = "select pg_advisory_xact_lock(hashtextextended('tool_contracts inline ' || $1::uuid::text, 0))"
INLINE = "select version from tool_contracts where organization_id = $1 and tool = $2 and inline_digest = $3"
INSTALL_INLINE = """
insert into tool_contracts (organization_id, tool, version, document, inline_digest)
select $1, $2, v.version, $3::jsonb || jsonb_build_object('version', v.version), $4
from (
  select coalesce(max(version) filter (where tool = $2), $5::int - 1) + 1 as version, count(*) as installed
  from tool_contracts where organization_id = $1 and inline_digest is not null
) v
where v.installed < $6
returning version
"""
ONE = "select document from tool_contracts where organization_id = $1 and tool = $2 and version = $3"
ALL = """
select tool, version, document from tool_contracts where organization_id = $1 and inline_digest is null order by tool, version
"""


async def install(connection: Connection, organization_id: UUID, contracts: Sequence[tuple[str, int, Document]]) -> None:
    """Add the versions that are missing.

    Raises:
        ContractChanged: a version exists with another document.
    """
    for tool, version, document in contracts:
        await connection.execute(INSTALL, organization_id, tool, version, document)
        if await one(connection, organization_id, tool, version) != document:
            raise ContractChanged(
                f"{tool} version {version} is installed with another text; give the changed contract version {version + 1}"
            )


async def install_inline(
    connection: Connection,
    organization_id: UUID,
    tool: str,
    document: Document,
    digest: bytes,
    *,
    first_version: int,
    installed_max: int,
) -> int | None:
    """The version of an inline contract, which is installed where no call has brought it yet.

    Args:
        connection: inside a transaction.
        document: the contract; its version is set here.
        digest: 32 bytes that name it.
        first_version: below it are the versions of contracts that are no inline ones.
        installed_max: how many an organization may have.

    Returns:
        The version; None where there are too many already.
    """
    version: int | None = await connection.fetchval(INLINE, organization_id, tool, digest)
    if version is None:
        await connection.execute(TURN, organization_id)
        version = await connection.fetchval(INLINE, organization_id, tool, digest)
    if version is None:
        version = await connection.fetchval(INSTALL_INLINE, organization_id, tool, document, digest, first_version, installed_max)
    return version


async def one(connection: Connection, organization_id: UUID, tool: str, version: int) -> Document | None:
    """The document of one version."""
    document: Document | None = await connection.fetchval(ONE, organization_id, tool, version)
    return document


async def all_of(connection: Connection, organization_id: UUID) -> list[tuple[str, int, Document]]:
    """Every version of every tool, by tool and version; not those that came with a client-executed call."""
    return [(record["tool"], record["version"], record["document"]) for record in await connection.fetch(ALL, organization_id)]
