"""What an API process has: its way to Postgres, its caches, its waiting callers and its limits."""

import asyncio
import os
import time
from dataclasses import dataclass
from uuid import UUID

from opentelemetry.trace import Tracer

from outbox_api.directory import Directory
from outbox_api.request_keys import RequestKeys
from outbox_api.reserve import Reserver
from outbox_api.tool_call_log import ToolCallLog
from outbox_api.waiters import Waiters
from outbox_domain.ids import RANDOM_BYTES, uuid7
from outbox_runtime.health import Health
from outbox_runtime.metrics import Metrics
from outbox_runtime.postgres import Pool
from outbox_runtime.settings import ApiSettings
from outbox_runtime.wakeups import Wakeups


def new_id() -> UUID:
    """A fresh UUIDv7."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(RANDOM_BYTES))


@dataclass(frozen=True, kw_only=True)
class Api:
    """What the routes of one process are handed.

    Attributes:
        lists: how many lists may be read at once; one filter may have to look at every row there is.
    """

    settings: ApiSettings
    pool: Pool
    directory: Directory
    waiters: Waiters
    wakeups: Wakeups
    request_keys: RequestKeys
    tool_calls: ToolCallLog
    metrics: Metrics
    health: Health
    tracer: Tracer
    lists: asyncio.Semaphore

    @property
    def reserver(self) -> Reserver:
        """What reserving needs."""
        return Reserver(pool=self.pool, directory=self.directory, new_id=new_id)
