"""A process hears SIGTERM and SIGINT once, and ends by them when told twice."""

import asyncio
import os
import signal
import sys
import textwrap

import pytest

from outbox_runtime.health import Health
from outbox_runtime.shutdown import stop_on_signals

PROGRAM = textwrap.dedent(
    """
    import asyncio
    from outbox_runtime.shutdown import stop_on_signals
    async def main():
        stop = stop_on_signals()
        print("ready", flush=True)
        await stop.wait()
        print("stopping", flush=True)
        await asyncio.sleep(60)
    asyncio.run(main())
    """
)


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_sets_the_event(received: signal.Signals) -> None:
    """Nothing is cut: the event is set and the process goes on to finish what it does."""
    stop = stop_on_signals()
    try:
        os.kill(os.getpid(), received)
        async with asyncio.timeout(10):
            await stop.wait()
    finally:
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(each)


async def test_the_same_signal_again_ends_the_process_and_another_does_not() -> None:
    """Ctrl-C reaches a child as SIGINT and then as SIGTERM from its parent: it still drains. A second SIGTERM is meant."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await child.stdout.readline() == b"ready\n"
            child.send_signal(signal.SIGINT)
            while await child.stdout.readline() != b"stopping\n":
                pass
            child.send_signal(signal.SIGTERM)
            while b"SIGTERM" not in await child.stdout.readline():
                pass
            assert child.returncode is None
            child.send_signal(signal.SIGTERM)
            assert await child.wait() == -signal.SIGTERM
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_the_watch_keeps_a_process_alive() -> None:
    """While the loop turns, the beat is younger than a stall."""
    health = Health(stall_seconds=2.5)
    task = asyncio.create_task(health.watch())
    await asyncio.sleep(3)
    assert health.alive
    task.cancel()
