"""`agent_ledger.types`."""

from agent_outbox.compat.agent_ledger.types import *  # noqa: F403
