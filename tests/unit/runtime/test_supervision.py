"""What needs an outside part comes back for as long as the process lives, and ends when it is told to."""

import asyncio

import pytest

from outbox_runtime.supervision import end, keep_running


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    """`asyncio.wait_for` of Python 3.11 loses a cancellation now and then; a task that lost one is cancelled again."""
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 2:
                    raise

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end(task)
    assert swallowed == 2


async def test_ending_nothing_and_ending_what_has_ended_are_fine() -> None:
    """Neither no task nor a task that failed long ago is a problem."""

    async def failing() -> None:
        raise RuntimeError

    await end()
    task = asyncio.create_task(failing())
    await asyncio.wait({task})
    await end(task)


async def test_a_session_is_begun_again_until_told_to_stop() -> None:
    """The outside part goes away three times, with and without an error; then it is told to stop and the session is cancelled."""
    stop, began, cancelled = asyncio.Event(), 0, False

    async def session() -> None:
        nonlocal began, cancelled
        began += 1
        if began == 1:
            raise ConnectionError
        if began == 2:
            return
        stop.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled = True
            raise

    async with asyncio.timeout(10):
        await keep_running("test", session, stop, recoverable=(ConnectionError,))
    assert (began, cancelled) == (3, True)


async def test_an_error_of_ours_is_not_hidden() -> None:
    """Only what means "the outside part is away" is survived."""

    async def session() -> None:
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        await keep_running("test", session, asyncio.Event(), recoverable=(ConnectionError,))


async def test_a_session_is_never_begun_after_stop() -> None:
    """Told to stop during the pause: the pause ends at once and nothing begins."""
    stop, began = asyncio.Event(), 0

    async def session() -> None:
        nonlocal began
        began += 1
        asyncio.get_running_loop().call_later(0.02, stop.set)
        raise ConnectionError

    async with asyncio.timeout(5):
        await keep_running("test", session, stop, recoverable=(ConnectionError,))
    assert began == 1
