"""The versions of tool contracts; a version never changes, because reservations are pinned to it."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from outbox_store.connection import Connection


class ContractChanged(Exception):
    """A version of a tool contract exists already and says something else; a change needs a new version."""


Document = dict[str, Any]

INSTALL = "insert into tool_contracts (organization_id, tool, version, document) values ($1, $2, $3, $4) on conflict do nothing"
ONE = "select document from tool_contracts where organization_id = $1 and tool = $2 and version = $3"
ALL = "select tool, version, document from tool_contracts where organization_id = $1 order by tool, version"


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


async def one(connection: Connection, organization_id: UUID, tool: str, version: int) -> Document | None:
    """The document of one version."""
    document: Document | None = await connection.fetchval(ONE, organization_id, tool, version)
    return document


async def all_of(connection: Connection, organization_id: UUID) -> list[tuple[str, int, Document]]:
    """Every version of every tool, by tool and version."""
    return [(record["tool"], record["version"], record["document"]) for record in await connection.fetch(ALL, organization_id)]
