"""Tool contracts by version, read once: a version never changes."""

from uuid import UUID

from outbox_domain.contract import ToolContract
from outbox_runtime.postgres import Pool, acquire
from outbox_store import tool_contracts

KEPT_MAX = 10_000
"""Versions kept in memory; beyond it the cache starts anew."""


class Contracts:
    """Tool contracts as they are pinned on reservations."""

    def __init__(self, pool: Pool) -> None:
        """Reads from `pool`."""
        self._pool = pool
        self._kept: dict[tuple[UUID, str, int], ToolContract] = {}

    async def of(self, organization_id: UUID, tool: str, version: int) -> ToolContract:
        """One version of a tool's contract.

        Raises:
            LookupError: it is not installed, which the reservation's foreign key rules out.
        """
        key = (organization_id, tool, version)
        contract = self._kept.get(key)
        if contract is None:
            async with acquire(self._pool) as connection:
                document = await tool_contracts.one(connection, organization_id, tool, version)
            if document is None:
                raise LookupError(f"{tool} version {version} is not installed")
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            contract = self._kept[key] = ToolContract.from_document(document)
        return contract
