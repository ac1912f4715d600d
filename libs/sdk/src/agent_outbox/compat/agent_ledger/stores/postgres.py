"""`PostgresStore`, for programs that pass one with their pool. Effects are the gateway's; the pool is for the program's own work.

What agent-ledger recorded in a table is brought over once by `outbox import agent-ledger`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agent_outbox.async_client import AsyncOutbox
from agent_outbox.compat.agent_ledger.errors import EffectStoreError
from agent_outbox.compat.agent_ledger.profile import Profile
from agent_outbox.compat.agent_ledger.stores.outbox import OutboxStore

SCHEMA_SQL = "select 'effects are recorded by the gateway; no table is needed'"
"""What programs execute to make their table. There is none to make."""


class PostgresStore(OutboxStore):
    """A store that is made with the program's pool of psycopg connections."""

    def __init__(self, pool: Any = None, *, client: AsyncOutbox | None = None, profile: Profile | None = None) -> None:
        """Nothing is asked yet.

        Args:
            pool: an `AsyncConnectionPool` of psycopg_pool; used by `transaction` alone.
            client, profile: as for `OutboxStore`.
        """
        super().__init__(client, profile=profile)
        self._pool = pool

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection of the program's pool with a transaction for the program's own statements.

        Effects are recorded by the gateway whether it commits or not. What should be sent only after a commit is given to
        `agent_outbox.enqueue`.

        Raises:
            EffectStoreError: the store has no pool, or the transaction failed.
        """
        if self._pool is None:
            raise EffectStoreError("This store was made without a pool.", operation="transaction")
        try:
            async with self._pool.connection() as connection, connection.transaction():
                yield connection
        except Exception as error:
            raise EffectStoreError(f"Transaction failed: {error}", operation="transaction") from error
