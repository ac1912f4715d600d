"""`agent_ledger.ledger`, with the private name by which its tests merge options."""

from agent_outbox.compat.agent_ledger.ledger import *  # noqa: F403
from agent_outbox.compat.agent_ledger.options import DEFAULT_CONCURRENCY as DEFAULT_CONCURRENCY
from agent_outbox.compat.agent_ledger.options import DEFAULT_STALE as DEFAULT_STALE
from agent_outbox.compat.agent_ledger.options import merge_options as _merge_options  # noqa: F401
