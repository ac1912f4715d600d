"""`agent_ledger.stores.postgres`."""

from agent_outbox.compat.agent_ledger.stores.postgres import SCHEMA_SQL, PostgresStore

__all__ = ["SCHEMA_SQL", "PostgresStore"]
