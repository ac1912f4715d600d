"""What strikes the ground: each nemesis begins, and ends by making whole what it broke."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.fault.battery.ground import LEASE_SECONDS, Ground
from tests.fault.battery.schedule import LINKS

SLOW = {"seconds": 0.02, "bytes": 40}
"""Two kilobytes a second."""

DELAY_SECONDS = 0.25
PAST_THE_LEASE_SECONDS = LEASE_SECONDS + 0.6


@dataclass(kw_only=True)
class Strike:
    """What was done.

    Attributes:
        at, until: seconds since the epoch.
        holder: how the name of the worker or the agent that was struck ends, where one was.
    """

    at: float
    until: float = 0.0
    holder: str | None = None


def agent_name(number: int) -> str:
    """As `Strike.holder` has an agent."""
    return f"caller-process:{number}"


def missing(ground: Ground, nemesis: str) -> str | None:
    """Why a nemesis cannot strike here; None where it can."""
    if ground.redis is None and "redis" in nemesis:
        return "there is no Redis on this machine"
    if nemesis == "postgres-full":
        return ground.disk.reason
    return None


@asynccontextmanager
async def striking(ground: Ground, nemesis: str, *, worker: int, seconds: float) -> AsyncIterator[Strike]:
    """Strikes; at the end of the block the nemesis lasts for what is left of its time, and everything answers again.

    Args:
        ground: what is struck.
        nemesis: one of `schedule.NEMESES`.
        worker: 0 or 1, where a worker or an agent is struck.
        seconds: how long it lasts, where it lasts.
    """
    strike = Strike(at=time.time())
    pair, _, fault = nemesis.partition(" ")
    if fault:
        links = [link for link in LINKS[pair] if link in ground.network.ports]
        how = SLOW if fault == "slow" else {"seconds": DELAY_SECONDS} if fault == "delay" else {}
        strike.at = await ground.network.strike(links, fault, **how)
        try:
            yield strike
            await asyncio.sleep(seconds)
        finally:
            strike.until = await ground.network.heal(links)
        return
    await {
        "kill-api": _kill_api,
        "kill-worker": _kill_worker,
        "freeze-worker": _freeze_worker,
        "kill-agent": _kill_agent,
        "freeze-agent": _freeze_agent,
        "postgres-stop": _stop_postgres,
        "postgres-full": _fill_disk,
        "redis-kill": _kill_redis,
        "redis-flush": _flush_redis,
    }[nemesis](ground, strike, worker)
    try:
        yield strike
        if nemesis in ("freeze-worker", "freeze-agent"):
            await asyncio.sleep(PAST_THE_LEASE_SECONDS)
        elif nemesis in ("postgres-full", "redis-kill"):
            await asyncio.sleep(seconds)
    finally:
        await _mend(ground, nemesis, worker)
        strike.until = time.time()


async def _kill_api(ground: Ground, strike: Strike, worker: int) -> None:
    assert ground.api is not None
    ground.api.send(signal.SIGKILL)


async def _kill_worker(ground: Ground, strike: Strike, worker: int) -> None:
    strike.holder = f":{ground.workers[worker].pid}"
    ground.workers[worker].send(signal.SIGKILL)


async def _freeze_worker(ground: Ground, strike: Strike, worker: int) -> None:
    strike.holder = f":{ground.workers[worker].pid}"
    ground.workers[worker].send(signal.SIGSTOP)


async def _kill_agent(ground: Ground, strike: Strike, worker: int) -> None:
    strike.holder = agent_name(worker + 1)
    ground.agent_processes[worker + 1].send(signal.SIGKILL)


async def _freeze_agent(ground: Ground, strike: Strike, worker: int) -> None:
    strike.holder = agent_name(worker + 1)
    ground.agent_processes[worker + 1].send(signal.SIGSTOP)


async def _stop_postgres(ground: Ground, strike: Strike, worker: int) -> None:
    assert ground.postgres.process is not None
    ground.postgres.process.send_signal(signal.SIGQUIT)
    await asyncio.to_thread(ground.postgres.process.wait, 20)


async def _fill_disk(ground: Ground, strike: Strike, worker: int) -> None:
    ground.disk.fill()


async def _kill_redis(ground: Ground, strike: Strike, worker: int) -> None:
    assert ground.redis is not None
    assert ground.redis.process is not None
    ground.redis.process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(ground.redis.process.wait, 20)


async def _flush_redis(ground: Ground, strike: Strike, worker: int) -> None:
    await asyncio.to_thread(ground.flush_redis)


async def _mend(ground: Ground, nemesis: str, worker: int) -> None:
    if nemesis == "kill-api":
        assert ground.api is not None
        await asyncio.to_thread(ground.api.wait)
        ground.start_api()
        await ground.api_answers()
    elif nemesis == "kill-worker":
        await asyncio.to_thread(ground.workers[worker].wait)
        ground.start_worker(worker + 1)
        await ground.worker_answers(worker + 1)
    elif nemesis == "freeze-worker":
        ground.workers[worker].send(signal.SIGCONT)
    elif nemesis == "kill-agent":
        await asyncio.to_thread(ground.agent_processes[worker + 1].wait)
        ground.start_agent(worker + 1)
        await ground.agent_answers(worker + 1)
    elif nemesis == "freeze-agent":
        ground.agent_processes[worker + 1].send(signal.SIGCONT)
    elif nemesis == "postgres-stop":
        ground.postgres.start()
        await ground.postgres_answers()
    elif nemesis == "postgres-full":
        ground.disk.free()
        await ground.postgres_answers()
    elif nemesis == "redis-kill":
        assert ground.redis is not None
        ground.redis.start()
        await ground.redis_answers()
