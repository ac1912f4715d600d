"""Keeping something that needs an outside part alive for as long as the process lives."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

log = structlog.stdlib.get_logger("outbox.supervision")

BACK_OFF_SECONDS_MIN = 0.1
BACK_OFF_SECONDS_MAX = 5.0
SETTLED_SECONDS = 10.0
"""A session that lasted this long was a good one: the next back-off begins at the least again."""


CANCEL_AGAIN_SECONDS = 0.2


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended; what they raise is dropped.

    Once is not enough: up to Python 3.11 `asyncio.wait_for` swallows a cancellation that meets the end of what it waits for
    (bpo-37658), and redis-py awaits every write in one.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)


async def keep_running(
    name: str,
    session: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
    *,
    recoverable: tuple[type[BaseException], ...],
    back_off_seconds_max: float = BACK_OFF_SECONDS_MAX,
) -> None:
    """Run `session` again and again, with back-off, until `stop` is set; the session running then is cancelled and awaited.

    Args:
        name: as it stands in the log.
        session: runs until it is cancelled or the outside part goes away.
        stop: ends it.
        recoverable: the errors that mean "the outside part is away".
        back_off_seconds_max: the longest pause between two sessions.

    Raises:
        whatever the session raised that is not recoverable: an error of ours, which restarting would only hide.
    """
    stopped = asyncio.create_task(stop.wait())
    back_off = BACK_OFF_SECONDS_MIN
    running: asyncio.Task[None] | None = None
    try:
        while not stop.is_set():
            began = time.monotonic()
            running = asyncio.create_task(_awaited(session))
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                return
            error = None if running.cancelled() else running.exception()
            if error is not None and not isinstance(error, recoverable):
                raise error
            if time.monotonic() - began > SETTLED_SECONDS:
                back_off = BACK_OFF_SECONDS_MIN
            if not stop.is_set():
                log.warning("session-lost", session=name, error=type(error).__name__, retry_seconds=round(back_off, 2))
            await asyncio.wait({stopped}, timeout=back_off)
            back_off = min(back_off * 2, back_off_seconds_max)
    finally:
        await end(stopped, *([running] if running is not None else []))


async def _awaited(session: Callable[[], Awaitable[None]]) -> None:
    await session()
