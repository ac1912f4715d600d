"""One measured round: some callers, each repeating an operation until the time is over. Standard library only.

Both sides of the comparison run in this loop, each in a process of its own.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

Operation = Callable[[], Awaitable[dict[str, float]]]
"""Does one thing; what it gives back are durations in milliseconds that it was told on the way."""

Opened = Callable[[], AbstractAsyncContextManager[Operation]]
"""Gives one caller what it needs (a connection of its own) before the clock runs."""


@dataclass(frozen=True)
class Round:
    """What came of a round.

    Attributes:
        seconds: from the first start to the last end.
        milliseconds: how long each operation took by the caller's clock.
        parts: what each operation was told, in the same order.
    """

    seconds: float
    milliseconds: list[float]
    parts: list[dict[str, float]]

    @property
    def per_second(self) -> float:
        """Operations in a second."""
        return len(self.milliseconds) / self.seconds


async def run_round(opened: Opened, *, callers: int, seconds: float) -> Round:
    """Let callers repeat an operation; one that is under way when the time is over is finished and counted.

    Args:
        opened: gives each caller its operation.
        callers: how many at once.
        seconds: for how long new operations begin.
    """
    milliseconds: list[float] = []
    parts: list[dict[str, float]] = []

    async def call(operation: Operation, until: float) -> None:
        while True:
            began = time.perf_counter()
            if began >= until and milliseconds:
                return
            told = await operation()
            milliseconds.append((time.perf_counter() - began) * 1000)
            parts.append(told)

    async with AsyncExitStack() as stack:
        operations = [await stack.enter_async_context(opened()) for _ in range(callers)]
        began = time.perf_counter()
        await asyncio.gather(*(call(operation, began + seconds) for operation in operations))
        elapsed = time.perf_counter() - began
    return Round(seconds=elapsed, milliseconds=milliseconds, parts=parts)
