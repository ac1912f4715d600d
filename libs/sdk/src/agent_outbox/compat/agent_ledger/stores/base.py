"""What a ledger needs of its store, under the names of agent-ledger 0.2.1."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar, runtime_checkable

from agent_outbox.compat.agent_ledger.types import (
    Effect,
    EffectStatus,
    JsonValue,
    UpsertEffectInput,
    UpsertEffectResult,
)

TxT = TypeVar("TxT")


@runtime_checkable
class EffectStore(Protocol[TxT]):
    """Records effects. `tx` is the store's own transaction; the gateway commits by itself whatever it is."""

    def transaction(self) -> AbstractAsyncContextManager[TxT]:
        """A block with a transaction of the store."""
        ...

    async def find_by_idem_key(self, idem_key: str, tx: TxT | None = None) -> Effect | None:
        """The newest effect of a key; None without one."""
        ...

    async def find_by_id(self, effect_id: str, tx: TxT | None = None) -> Effect | None:
        """An effect; None where there is none."""
        ...

    async def upsert(self, input_data: UpsertEffectInput, tx: TxT | None = None) -> UpsertEffectResult:
        """Record an effect, or find the one that has its key."""
        ...

    async def transition(
        self,
        effect_id: str,
        from_status: EffectStatus,
        to_status: EffectStatus,
        result: JsonValue = None,
        error: dict[str, str | None] | None = None,
        tx: TxT | None = None,
    ) -> bool:
        """Move an effect from one status to another; False where it is not in the first, or may not."""
        ...

    async def increment_dedup_count(self, idem_key: str, tx: TxT | None = None) -> None:
        """Count that the effect of a key was asked for again."""
        ...

    async def claim_for_processing(
        self, effect_id: str, from_status: EffectStatus, stale_threshold_ms: int | None = None, tx: TxT | None = None
    ) -> bool:
        """Take over an effect whose run is dead; False where it is not, or somebody else took it."""
        ...
