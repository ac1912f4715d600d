"""The rows of `tool_calls`, written in batches behind the hot path. A crash may lose the last of them; never of the ledger."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

import structlog

from outbox_runtime.postgres import AWAY, Pool, acquire
from outbox_store import tool_calls
from outbox_store.tool_calls import NewToolCall

log = structlog.stdlib.get_logger("outbox.api.tool_calls")

GATHER_SECONDS = 0.1
BATCH_MAX = 500
WAITING_MAX = 20_000
"""Rows kept while Postgres is away; beyond it the oldest are forgotten."""

RETRY_SECONDS = 1.0
CLOSE_SECONDS_MAX = 3.0


class ToolCallLog:
    """Gathers rows and writes them in the background."""

    def __init__(self, pool: Pool) -> None:
        """Writes by `pool`."""
        self._pool = pool
        self._waiting: deque[NewToolCall] = deque()
        self._some = asyncio.Event()
        self._closing = False
        self._closed = asyncio.Event()
        self.forgotten = 0
        """Rows lost because Postgres was away for too long."""

    def add(self, row: NewToolCall) -> None:
        """Keep a row for the next batch."""
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            self.forgotten += 1
        self._waiting.append(row)
        self._some.set()

    async def run(self) -> None:
        """Write what gathers until `close` is called, then what is left, for a few seconds at most."""
        while not self._closing:
            await self._some.wait()
            await self._pause(GATHER_SECONDS)
            if self._waiting and not await self._write():
                await self._pause(RETRY_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                while self._waiting and await self._write():
                    pass

    def close(self) -> None:
        """Let `run` write what is left and end."""
        self._closing = True
        self._some.set()
        self._closed.set()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    async def _write(self) -> bool:
        """Write one batch; False where Postgres is away and the rows are kept."""
        self._some.clear()
        batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
        if self._waiting:
            self._some.set()
        try:
            await self._insert(batch)
        except AWAY as error:
            log.info("tool-calls-kept", rows=len(batch), error=type(error).__name__)
            # In front again, in their order: adding a row twice adds it once.
            self._waiting.extendleft(reversed(batch))
            self._some.set()
            return False
        except Exception as error:
            # One row that Postgres refuses must not take the others along, nor end the log.
            if len(batch) == 1:
                log.error("tool-call-refused", error=type(error).__name__)
                self.forgotten += 1
                return True
            for row in reversed(batch):
                await self._insert_alone(row)
        return True

    async def _insert(self, rows: Sequence[NewToolCall]) -> None:
        async with acquire(self._pool) as connection:
            await tool_calls.insert(connection, rows)

    async def _insert_alone(self, row: NewToolCall) -> None:
        try:
            await self._insert([row])
        except AWAY:
            self._waiting.appendleft(row)
            self._some.set()
        except Exception as error:
            # A row that is refused even alone is our mistake; the call itself was answered and recorded in the ledger.
            log.error("tool-call-refused", error=type(error).__name__)
            self.forgotten += 1
