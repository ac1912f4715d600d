"""`MemoryStore`, for programs that pass one. It remembers nothing: effects are the gateway's and outlive the process."""

from __future__ import annotations

from agent_outbox.async_client import AsyncOutbox
from agent_outbox.compat.agent_ledger.errors import EffectStoreError
from agent_outbox.compat.agent_ledger.profile import Profile
from agent_outbox.compat.agent_ledger.stores.outbox import OutboxStore


class MemoryStore(OutboxStore):
    """A store that is made without arguments."""

    def __init__(
        self,
        max_size: int = 10_000,
        ttl_seconds: float = 3600.0,
        *,
        client: AsyncOutbox | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Nothing is asked yet.

        Args:
            max_size, ttl_seconds: of agent-ledger's own store; nothing is evicted here.
            client, profile: as for `OutboxStore`.
        """
        super().__init__(client, profile=profile)

    def clear(self) -> None:
        """Refuse: an effect that happened is not undone by forgetting it, and would happen again.

        Raises:
            EffectStoreError: always. Tests use a namespace of their own (`Profile.namespace`) instead.
        """
        raise EffectStoreError("A ledger forgets nothing; give each test a namespace of its own.", operation="clear")

    @property
    def size(self) -> int:
        """How many effects this process has asked for or met; `count` asks the gateway."""
        return len(self._ids)
