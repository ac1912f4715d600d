"""`agent_ledger.stores`."""

from typing import Any

from agent_outbox.compat.agent_ledger import stores
from agent_outbox.compat.agent_ledger.stores import EffectStore


class MemoryStore(stores.MemoryStore):
    """Ours, with a dict under the private name into which two of their tests put an aged effect, where nothing reads it.

    It does not age the effect in their library either (their dict is read by another key): time does, in both.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As ours."""
        super().__init__(*arguments, **options)
        self._cache: dict[str, Any] = {}


__all__ = ["EffectStore", "MemoryStore"]
