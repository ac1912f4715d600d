"""Tool contracts by version, read once: a version never changes."""

from uuid import UUID

from outbox_domain.contract import ToolContract
from outbox_runtime.postgres import Pool, acquire
from outbox_store import tool_contracts

UNREADABLE_SECONDS = 60.0
"""When a reservation is looked at again whose contract this version cannot read (a newer one, after a roll-back)."""

UNREADABLE_SETTLE_SECONDS = 86_400.0
"""The settle time of a doubt whose contract cannot be read: longer than any that a contract states."""

KEPT_MAX = 10_000
"""Versions kept in memory; beyond it the cache starts anew."""


class ContractUnreadable(Exception):
    """The contract that a reservation pins is not one to this version; nothing of its content is repeated."""


class Contracts:
    """Tool contracts as they are pinned on reservations."""

    def __init__(self, pool: Pool) -> None:
        """Reads from `pool`."""
        self._pool = pool
        self._kept: dict[tuple[UUID, str, int], ToolContract] = {}

    async def of(self, organization_id: UUID, tool: str, version: int) -> ToolContract:
        """One version of a tool's contract.

        Raises:
            ContractUnreadable: it is not installed, which the reservation's foreign key rules out, or it is of another version
                of this program. Only its own reservations may suffer from that.
        """
        key = (organization_id, tool, version)
        contract = self._kept.get(key)
        if contract is None:
            async with acquire(self._pool) as connection:
                document = await tool_contracts.one(connection, organization_id, tool, version)
            if document is None:
                raise ContractUnreadable(f"{tool} version {version} is not installed")
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            try:
                contract = self._kept[key] = ToolContract.from_document(document)
            except (TypeError, ValueError):
                raise ContractUnreadable(f"{tool} version {version} cannot be read") from None
        return contract
