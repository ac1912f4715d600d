"""Stores that a ledger can be given. None of them holds an effect: all effects are the gateway's."""

from agent_outbox.compat.agent_ledger.stores.base import EffectStore
from agent_outbox.compat.agent_ledger.stores.memory import MemoryStore
from agent_outbox.compat.agent_ledger.stores.outbox import OutboxStore
from agent_outbox.compat.agent_ledger.stores.postgres import PostgresStore

__all__ = ["EffectStore", "MemoryStore", "OutboxStore", "PostgresStore"]
