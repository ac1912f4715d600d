"""The public names of agent-ledger 0.2.1, over the gateway: change the import, and every effect is recorded and settled there.

```python
from agent_outbox.compat.agent_ledger import EffectLedger, EffectLedgerOptions, MemoryStore, ToolCall
```

`docs/migrate-from-agent-ledger.md` says what differs. Needs `pip install agent-outbox[agent-ledger]`.
"""

from agent_outbox.compat.agent_ledger.errors import (
    EffectConflictError,
    EffectDeniedError,
    EffectFailedError,
    EffectInDoubtError,
    EffectLedgerError,
    EffectLedgerInvariantError,
    EffectLedgerValidationError,
    EffectStoreError,
    EffectTimeoutError,
)
from agent_outbox.compat.agent_ledger.identity import (
    canonicalize,
    compute_idem_key,
    generate_id,
    resource_id_canonical,
    validate_args,
)
from agent_outbox.compat.agent_ledger.ledger import EffectLedger, EffectLedgerOptions
from agent_outbox.compat.agent_ledger.observability import get_logger, get_tracer
from agent_outbox.compat.agent_ledger.profile import OURS, THEIRS, Profile, use_profile
from agent_outbox.compat.agent_ledger.stores import EffectStore, MemoryStore, OutboxStore, PostgresStore
from agent_outbox.compat.agent_ledger.types import (
    ALLOWED_TRANSITIONS,
    AWAITING_STATUSES,
    TERMINAL_STATUSES,
    BeginResult,
    CommitFailed,
    CommitOutcome,
    CommitSucceeded,
    ConcurrencyOptions,
    Effect,
    EffectError,
    EffectStatus,
    IdempotencyStatus,
    JsonValue,
    LedgerDefaults,
    LedgerHooks,
    ResourceDescriptor,
    RunOptions,
    StaleOptions,
    ToolCall,
    UpsertEffectInput,
    UpsertEffectResult,
    is_awaiting_status,
    is_terminal_status,
    is_valid_transition,
)

__all__ = [
    "ALLOWED_TRANSITIONS",
    "AWAITING_STATUSES",
    "OURS",
    "TERMINAL_STATUSES",
    "THEIRS",
    "BeginResult",
    "CommitFailed",
    "CommitOutcome",
    "CommitSucceeded",
    "ConcurrencyOptions",
    "Effect",
    "EffectConflictError",
    "EffectDeniedError",
    "EffectError",
    "EffectFailedError",
    "EffectInDoubtError",
    "EffectLedger",
    "EffectLedgerError",
    "EffectLedgerInvariantError",
    "EffectLedgerOptions",
    "EffectLedgerValidationError",
    "EffectStatus",
    "EffectStore",
    "EffectStoreError",
    "EffectTimeoutError",
    "IdempotencyStatus",
    "JsonValue",
    "LedgerDefaults",
    "LedgerHooks",
    "MemoryStore",
    "OutboxStore",
    "PostgresStore",
    "Profile",
    "ResourceDescriptor",
    "RunOptions",
    "StaleOptions",
    "ToolCall",
    "UpsertEffectInput",
    "UpsertEffectResult",
    "canonicalize",
    "compute_idem_key",
    "generate_id",
    "get_logger",
    "get_tracer",
    "is_awaiting_status",
    "is_terminal_status",
    "is_valid_transition",
    "resource_id_canonical",
    "use_profile",
    "validate_args",
]
