"""`agent_ledger` as its own tests import it, backed by ours. On the path of that run alone (`tests.compat.run`)."""

from agent_outbox.compat.agent_ledger import *  # noqa: F403

# isort: split
from .stores import MemoryStore as MemoryStore
