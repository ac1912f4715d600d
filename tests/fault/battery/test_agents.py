"""What the battery makes of an agent that is struck while it is told something."""

import asyncio
import json
import os

import uvloop
from tests.fault.battery.agents import Agents, Lost


def test_an_agent_whose_connection_has_just_ended_is_lost() -> None:
    """A call that meets the end of its agent in the very turn in which it is told ends like any other of that agent."""

    async def run() -> None:
        agents = Agents()
        async with agents.listening():
            _, writer = await asyncio.open_connection("127.0.0.1", agents.port)
            writer.write(json.dumps({"agent": 1, "process_id": os.getpid()}).encode() + b"\n")
            async with asyncio.timeout(10):
                async with agents._changed:
                    await agents._changed.wait_for(lambda: agents.is_present(1, os.getpid()))
            agents._writers[1].transport.abort()
            told: list[asyncio.Task[object]] = []
            while agents.is_present(1, os.getpid()):
                told.append(asyncio.create_task(agents._call(1, {"call": len(told), "token": "op1"})))
                await asyncio.sleep(0)
            ended, waiting = await asyncio.wait(told, timeout=1)
            for call in waiting:  # It began when the end was known, and waits for the agent to come back.
                call.cancel()
            assert ended
            assert {type(call.exception()) for call in ended} == {Lost}
            writer.close()

    uvloop.run(run())
