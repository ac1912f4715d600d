"""`agent_ledger.errors`."""

from agent_outbox.compat.agent_ledger.errors import *  # noqa: F403
