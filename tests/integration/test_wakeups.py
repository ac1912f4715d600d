"""Wake-ups are hints: they are fast while everything is up, and whatever is lost with Redis or LISTEN costs time only.

The servers are real. Each sharp edge of arq that this product meets has its test here.
"""

import asyncio
import contextlib
import inspect
import json
import os
import pickle
import secrets
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
import structlog
import uvloop
from arq.constants import in_progress_key_prefix, job_key_prefix
from redis.asyncio import Redis
from tests.support.postgres import Database, PostgresServer, StoppablePostgres
from tests.support.redis import StoppableRedis

from outbox_runtime import postgres, redis, wakeups
from outbox_runtime.postgres import Listener, Pool
from outbox_runtime.settings import PostgresSettings, RedisSettings, read
from outbox_runtime.wakeups import Doorbell, PostgresWakeups, RedisWakeups

DEADLINE_SECONDS = 20.0
NOWHERE = {"OUTBOX_POSTGRES_URL": "postgresql://nobody@127.0.0.1:1/nothing"}


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """The event loop that the services run on; it treats broken connections differently from asyncio's own."""
    return uvloop.EventLoopPolicy()


async def eventually(condition: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until the condition, which may be a coroutine function, holds."""
    give_up = time.monotonic() + seconds
    while not (await held if inspect.isawaitable(held := condition()) else held):
        assert time.monotonic() < give_up, f"still not after {seconds} s: {what}"
        await asyncio.sleep(0.002)


class Rings:
    """What a doorbell rang, and when."""

    def __init__(self) -> None:
        self.ids: list[UUID] = []
        self.at: list[float] = []
        self.empty = 0

    async def ring(self, ids: list[UUID]) -> None:
        self.ids.extend(ids)
        self.at.extend([time.monotonic()] * len(ids))
        self.empty += not ids

    def more_than(self, count: int) -> bool:
        return len(self.ids) > count

    def exactly(self, ids: list[UUID]) -> bool:
        return self.ids == ids


@contextlib.asynccontextmanager
async def ringing(bell: Doorbell) -> AsyncIterator[asyncio.Task[None]]:
    """A doorbell at work until the block ends."""
    stop = asyncio.Event()
    task = asyncio.create_task(bell.run(stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(task, DEADLINE_SECONDS)


@contextlib.asynccontextmanager
async def speaking(said: RedisWakeups | PostgresWakeups) -> AsyncIterator[None]:
    """Wake-ups that are closed when the block ends."""
    try:
        yield
    finally:
        await said.aclose()


def at_once(hint: Coroutine[Any, Any, None]) -> None:
    """Fails unless a hint is given without waiting for anything: it must end before it gives the event loop a turn."""
    try:
        hint.send(None)
    except StopIteration:
        return
    hint.close()
    raise AssertionError("the hint waited")


def redis_settings(url: str, **more: str) -> RedisSettings:
    """Settings with names of their own, for the session's Redis is shared. Poll so rarely that only a kick explains speed."""
    prefix = f"test-{secrets.token_hex(4)}"
    return read(RedisSettings, {"OUTBOX_REDIS_URL": url, "OUTBOX_REDIS_PREFIX": prefix, "OUTBOX_REDIS_POLL_SECONDS": "5", **more})


def doorbell(settings: RedisSettings, rings: Rings, accepting: Callable[[], bool] = lambda: True) -> Doorbell:
    """A doorbell over Redis; Postgres is nowhere, and nothing asks for it."""
    unused = asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/nothing", min_size=0)
    return Doorbell(settings, read(PostgresSettings, NOWHERE), unused, rings.ring, accepting=accepting)


@contextlib.asynccontextmanager
async def redis_client(settings: RedisSettings) -> AsyncIterator[Redis]:
    """A client for looking into Redis."""
    client = redis.open_client(settings)
    try:
        yield client
    finally:
        await redis.close_client(client)


async def holds(client: Redis, queue: str, count: int) -> bool:
    """Whether the queue holds this many messages."""
    return bool(await client.zcard(queue) == count)


async def both(client: Redis, keys: tuple[str, str]) -> bool:
    """Whether both keys exist."""
    return bool(await client.exists(*keys) == 2)


# --- over Redis ---------------------------------------------------------------------------------------------------------------


async def test_a_ring_is_picked_up_in_milliseconds(redis_url: str) -> None:
    """The kick and not the poll delay (5 s here) brings the message: the median of fifty is far below any poll."""
    settings, rings = redis_settings(redis_url), Rings()
    said = RedisWakeups(settings)
    async with speaking(said), ringing(doorbell(settings, rings)):
        await eventually(lambda: rings.empty, "connected")
        took: list[float] = []
        for _ in range(50):
            began = time.monotonic()
            await said.wake([uuid4()])
            count = len(took)
            await eventually(partial(rings.more_than, count), "rung", 4)
            took.append(rings.at[-1] - began)
    assert statistics.median(took) < 0.05, took


async def test_a_ring_whose_kick_was_lost_is_found_by_the_poll(redis_url: str) -> None:
    """Pub/sub forgets; the message in the queue waits for the next look."""
    settings, rings = redis_settings(redis_url, OUTBOX_REDIS_POLL_SECONDS="0.2"), Rings()
    async with ringing(doorbell(settings, rings)), redis_client(settings) as client:
        await eventually(lambda: rings.empty, "connected")
        wanted = uuid4()
        arq = wakeups._open_arq(settings, wakeups._Names(settings.redis_prefix))
        await arq.enqueue_job(wakeups.RING, wanted.hex, _expires=60)
        await redis.close_client(arq)
        await eventually(lambda: rings.ids == [wanted], "rung")
        assert await client.zcard(f"{settings.redis_prefix}:doorbell") == 0


async def test_the_same_id_rings_as_often_as_it_is_said(redis_url: str) -> None:
    """No `_job_id`: arq would answer a second ring of an id with None, for an hour, and the doorbell would be lost."""
    settings, rings = redis_settings(redis_url), Rings()
    said, wanted = RedisWakeups(settings), uuid4()
    async with speaking(said), ringing(doorbell(settings, rings)):
        for times in range(1, 4):
            await said.wake([wanted])
            await eventually(partial(rings.exactly, [wanted] * times), "rung again")


async def test_a_ring_said_while_the_same_one_is_handled_is_not_lost(redis_url: str) -> None:
    """With a `_job_id` and no kept result arq drops exactly this one."""
    settings, heard, go_on = redis_settings(redis_url), list[UUID](), asyncio.Event()

    async def slow(ids: list[UUID]) -> None:
        heard.extend(ids)
        if ids:
            await go_on.wait()

    rings = Rings()
    rings.ring = slow  # type: ignore[method-assign]
    said, wanted = RedisWakeups(settings), uuid4()
    async with speaking(said), ringing(doorbell(settings, rings)):
        await said.wake([wanted])
        await eventually(lambda: len(heard) == 1, "first")
        await said.wake([wanted])
        await eventually(lambda: len(heard) == 2, "second")
        go_on.set()


async def test_a_burst_reaches_the_doorbell_whole(redis_url: str) -> None:
    """A thousand ids, more messages than slots: each is heard once, without waiting for the next poll."""
    settings, rings = redis_settings(redis_url), Rings()
    said, wanted = RedisWakeups(settings), [uuid4() for _ in range(1000)]
    async with speaking(said), ringing(doorbell(settings, rings)):
        await eventually(lambda: rings.empty, "connected")
        began = time.monotonic()
        for one in wanted:
            await said.wake([one])
        await eventually(lambda: len(rings.ids) >= 1000, "all rung")
        assert time.monotonic() - began < 4.5, "it waited for a poll"
    assert sorted(rings.ids) == sorted(wanted)


async def test_nothing_stays_in_redis_after_a_ring(redis_url: str) -> None:
    """No result, no message, no try counter: Redis keeps nothing of what was rung, and a message lives for minutes."""
    settings, rings = redis_settings(redis_url), Rings()
    said = RedisWakeups(settings)
    async with redis_client(settings) as client, speaking(said):
        await said.wake([uuid4()])
        queue = f"{settings.redis_prefix}:doorbell"
        await eventually(lambda: client.zcard(queue), "in the queue")
        job = (await client.zrange(queue, 0, -1))[0].decode()
        assert 0 < await client.ttl(job_key_prefix + job) <= 300
        message = json.loads(await client.get(job_key_prefix + job))
        assert message["f"] == "ring"
        async with ringing(doorbell(settings, rings)):
            await eventually(lambda: rings.ids, "rung")
            await eventually(lambda: holds(client, queue, 0), "the queue is empty")
        assert [key async for key in client.scan_iter(match=f"arq:*{job}*")] == []


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {os.environ['OUTBOX_TEST_BOMB']}",)


async def test_a_pickle_in_the_queue_is_never_opened(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """arq's default serializer would run code of whoever can write to Redis. Ours reads JSON, drops the rest and goes on."""
    monkeypatch.setenv("OUTBOX_TEST_BOMB", str(tmp_path / "exploded"))
    settings, rings = redis_settings(redis_url), Rings()
    said, wanted = RedisWakeups(settings), uuid4()
    async with redis_client(settings) as client, speaking(said):
        bomb = pickle.dumps({"t": None, "f": "ring", "a": (_Bomb(),), "k": {}, "et": 1})
        await client.set(f"{job_key_prefix}bomb-{wanted}", bomb, ex=60)
        await client.zadd(f"{settings.redis_prefix}:doorbell", {f"bomb-{wanted}": 1})
        async with ringing(doorbell(settings, rings)):
            await said.wake([wanted])
            await eventually(lambda: rings.ids == [wanted], "rung")
            await eventually(lambda: holds(client, f"{settings.redis_prefix}:doorbell", 0), "the queue is empty")
    assert not (tmp_path / "exploded").exists()


async def test_garbage_in_a_message_rings_nothing_and_harms_nothing(redis_url: str) -> None:
    """What is not an id is left out; the ids beside it ring."""
    settings, rings = redis_settings(redis_url), Rings()
    wanted = uuid4()
    async with ringing(doorbell(settings, rings)):
        arq = wakeups._open_arq(settings, wakeups._Names(settings.redis_prefix))
        await arq.enqueue_job(wakeups.RING, f"rubbish,{wanted.hex},", _expires=60)
        await arq.enqueue_job(wakeups.RING, _expires=60)
        await arq.enqueue_job("unknown", "x", _expires=60)
        await arq.publish(f"{settings.redis_prefix}:kick", b"anything")
        await redis.close_client(arq)
        await eventually(lambda: rings.ids == [wanted], "rung")


async def test_a_ring_that_raises_is_not_rung_again_and_ends_nothing(redis_url: str) -> None:
    """arq's retries are off: the sweep is what tries again. The next ring is heard."""
    settings, heard = redis_settings(redis_url), list[UUID]()
    rings = Rings()

    async def failing(ids: list[UUID]) -> None:
        heard.extend(ids)
        if len(heard) == 1:
            raise RuntimeError("a fault of the handler")

    rings.ring = failing  # type: ignore[method-assign]
    said, first, second = RedisWakeups(settings), uuid4(), uuid4()
    async with speaking(said), ringing(doorbell(settings, rings)):
        await said.wake([first])
        await eventually(lambda: heard == [first], "first")
        await said.wake([second])
        await eventually(lambda: heard == [first, second], "second")


async def test_messages_that_others_hold_do_not_hide_a_new_one(redis_url: str) -> None:
    """arq reads the first 100 ids by default, those in progress elsewhere included: 14 workers ran 100 of 140."""
    settings, rings = redis_settings(redis_url), Rings()
    said, wanted = RedisWakeups(settings), uuid4()
    async with redis_client(settings) as client, speaking(said):
        held = [f"held-{wanted}-{number}" for number in range(300)]
        await client.zadd(f"{settings.redis_prefix}:doorbell", dict.fromkeys(held, 1))
        for name in held:
            await client.set(in_progress_key_prefix + name, b"1", ex=60)
        async with ringing(doorbell(settings, rings)):
            await said.wake([wanted])
            await eventually(lambda: rings.ids == [wanted], "rung past those held")


async def test_an_expired_message_is_dropped(redis_url: str) -> None:
    """Its text is gone after minutes while its id still waits in the queue: it rings nothing, and the queue is cleared."""
    settings, rings = redis_settings(redis_url), Rings()
    async with redis_client(settings) as client:
        await client.zadd(f"{settings.redis_prefix}:doorbell", {f"expired-{uuid4()}": 1})
        async with ringing(doorbell(settings, rings)):
            await eventually(lambda: holds(client, f"{settings.redis_prefix}:doorbell", 0), "the queue is empty")
        assert rings.ids == []


async def test_a_queue_that_no_worker_reads_does_not_grow_for_ever(redis_url: str) -> None:
    """arq leaves the ids of expired messages in its queue; who rings cuts them off."""
    settings = redis_settings(redis_url)
    said, queue = RedisWakeups(settings), f"{settings.redis_prefix}:doorbell"
    async with redis_client(settings) as client, speaking(said):
        old = (time.time() - wakeups.RING_LIFE_SECONDS - 1) * 1000
        await client.zadd(queue, {f"old-{number}": old for number in range(100)})
        await said.wake([uuid4()])
        await eventually(lambda: holds(client, queue, 1), "the old ones are gone")


async def test_each_process_has_a_health_key_of_its_own(redis_url: str) -> None:
    """arq's default is one key for the queue, which any worker that stops deletes for all."""
    settings, rings = redis_settings(redis_url), Rings()
    one, other = doorbell(settings, rings), doorbell(settings, rings)
    async with redis_client(settings) as client, ringing(one):
        async with ringing(other):
            await eventually(lambda: rings.empty == 2 and one.health_key and other.health_key, "both connected")
            assert one.health_key
            assert other.health_key
            keys = (one.health_key, other.health_key)
            await eventually(lambda: both(client, keys), "both keys")
            assert 0 < await client.ttl(one.health_key) <= wakeups.HEALTH_SECONDS + 1
        assert await client.exists(one.health_key) == 1
        assert await client.exists(other.health_key) == 0
    assert one.health_key != other.health_key


async def test_signals_stay_ours(redis_url: str) -> None:
    """arq would cancel everything at SIGTERM, in the middle of a provider call; it never gets the signal."""
    before = signal.getsignal(signal.SIGTERM)
    settings, rings = redis_settings(redis_url), Rings()
    async with ringing(doorbell(settings, rings)):
        await eventually(lambda: rings.empty, "connected")
        assert signal.getsignal(signal.SIGTERM) == before
        assert not asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def test_a_worker_without_a_free_slot_leaves_rings_to_others(redis_url: str) -> None:
    """A full worker takes no message from the queue; an idle one hears it at once."""
    settings, full, idle = redis_settings(redis_url), Rings(), Rings()
    said, wanted = RedisWakeups(settings), [uuid4() for _ in range(20)]
    async with speaking(said), ringing(doorbell(settings, full, accepting=lambda: False)):
        async with ringing(doorbell(settings, idle)):
            await eventually(lambda: idle.empty, "connected")
            for one in wanted:
                await said.wake([one])
            await eventually(lambda: len(idle.ids) == 20, "heard by the idle one")
    assert full.ids == []


async def test_redis_killed_and_started_again(stoppable_redis: StoppableRedis) -> None:
    """The doorbell and the subscription outlive Redis; afterwards both say "look for yourself" and hear again."""
    settings, rings = redis_settings(stoppable_redis.url), Rings()
    said, settled = RedisWakeups(settings), list[UUID]()
    gaps = 0

    def on_settled(ids: Sequence[UUID]) -> None:
        nonlocal gaps
        settled.extend(ids)
        gaps += not ids

    said.subscribe_settled(on_settled)
    async with speaking(said), ringing(doorbell(settings, rings)) as task:
        await eventually(lambda: rings.empty == 1 and gaps == 1, "connected")
        first = uuid4()
        await said.wake([first])
        await said.announce([first])
        await eventually(lambda: rings.ids == [first] and settled == [first], "first")

        stoppable_redis.kill()
        lost = uuid4()
        began = time.monotonic()
        for _ in range(100):
            await said.wake([lost])
            await said.announce([lost])
        assert time.monotonic() - began < 0.2, "the callers waited for a Redis that is gone"
        await asyncio.sleep(1.5)
        assert not task.done()

        stoppable_redis.start()
        await eventually(lambda: rings.empty >= 2 and gaps >= 2, "connected again")
        second = uuid4()
        await said.wake([second])
        await said.announce([second])
        await eventually(lambda: second in rings.ids and second in settled, "second")


async def test_redis_killed_for_good(stoppable_redis: StoppableRedis) -> None:
    """Nothing ends, nothing blocks, and closing takes no longer than a second or so."""
    settings, rings = redis_settings(stoppable_redis.url), Rings()
    said = RedisWakeups(settings)
    said.subscribe_settled(lambda ids: None)
    stop = asyncio.Event()
    task = asyncio.create_task(doorbell(settings, rings).run(stop))
    await eventually(lambda: rings.empty, "connected")
    stoppable_redis.kill()
    until = time.monotonic() + 3
    while time.monotonic() < until:
        at_once(said.wake([uuid4() for _ in range(100)]))
        await asyncio.sleep(0.01)
    assert not task.done()
    began = time.monotonic()
    stop.set()
    await asyncio.wait_for(task, DEADLINE_SECONDS)
    await said.aclose()
    assert time.monotonic() - began < 3


async def test_a_ring_at_work_is_not_cancelled_when_redis_dies(stoppable_redis: StoppableRedis) -> None:
    """What a ring set going belongs to Postgres and the provider, not to the connection it came over."""
    settings, finished, go_on = redis_settings(stoppable_redis.url), list[UUID](), asyncio.Event()
    rings = Rings()

    async def slow(ids: list[UUID]) -> None:
        if ids:
            started.set()
            await go_on.wait()
            finished.extend(ids)

    started = asyncio.Event()
    rings.ring = slow  # type: ignore[method-assign]
    said, wanted = RedisWakeups(settings), uuid4()
    async with speaking(said), ringing(doorbell(settings, rings)):
        await said.wake([wanted])
        await asyncio.wait_for(started.wait(), DEADLINE_SECONDS)
        stoppable_redis.kill()
        await asyncio.sleep(1)
        go_on.set()
        await eventually(lambda: finished == [wanted], "finished")


async def test_redis_flushed(stoppable_redis: StoppableRedis) -> None:
    """FLUSHALL loses what waited and nothing else: the next ring and the next notice are heard."""
    settings, rings = redis_settings(stoppable_redis.url), Rings()
    said, settled = RedisWakeups(settings), list[UUID]()
    said.subscribe_settled(settled.extend)
    async with speaking(said), ringing(doorbell(settings, rings)), redis_client(settings) as client:
        await eventually(lambda: rings.empty, "connected")
        await client.flushall()
        wanted = uuid4()
        await said.wake([wanted])
        await eventually(lambda: wanted in rings.ids, "rung")
        await said.announce([wanted])
        await eventually(lambda: wanted in settled, "announced")


async def test_a_redis_that_hangs_keeps_nobody_waiting(stoppable_redis: StoppableRedis) -> None:
    """Stopped, not dead: connections stay open and nothing answers. Callers go on, the doorbell gives up and comes back."""
    settings, rings = redis_settings(stoppable_redis.url), Rings()
    said = RedisWakeups(settings)
    async with speaking(said), ringing(doorbell(settings, rings)) as task:
        await eventually(lambda: rings.empty, "connected")
        os.kill(stoppable_redis.process_id, signal.SIGSTOP)
        try:
            wanted = uuid4()
            at_once(said.wake([wanted]))
            await asyncio.sleep(2.5)
            assert not task.done()
        finally:
            os.kill(stoppable_redis.process_id, signal.SIGCONT)
        await eventually(lambda: wanted in rings.ids, "rung after it went on")


async def test_a_password_in_the_url_is_decoded(stoppable_redis: StoppableRedis) -> None:
    """arq's own reading of a URL leaves `%40` in the password, and authentication fails."""
    password = "p@ss:w/rd%25 ü"
    async with redis_client(redis_settings(stoppable_redis.url)) as client:
        await client.config_set("requirepass", password)
    parts = urlsplit(stoppable_redis.url)
    settings = redis_settings(f"redis://:{quote(password, safe='')}@{parts.hostname}:{parts.port}/0")
    said, rings, wanted = RedisWakeups(settings), Rings(), uuid4()
    async with speaking(said), ringing(doorbell(settings, rings)):
        await said.wake([wanted])
        await eventually(lambda: rings.ids == [wanted], "rung")


async def test_a_wrong_password_ends_nothing(stoppable_redis: StoppableRedis) -> None:
    """Somebody rotates the password: it is a Redis that is away."""
    parts = urlsplit(stoppable_redis.url)
    settings = redis_settings(f"redis://:wrong@{parts.hostname}:{parts.port}/0")
    said, rings = RedisWakeups(settings), Rings()
    said.subscribe_settled(lambda ids: None)
    async with speaking(said), ringing(doorbell(settings, rings)) as task:
        await said.wake([uuid4()])
        await asyncio.sleep(0.5)
        assert not task.done()


@pytest.mark.parametrize(("query", "checked"), [("", True), ("?ssl_check_hostname=false", False)])
def test_tls_checks_the_host_name_unless_told_otherwise(query: str, checked: bool) -> None:
    """arq and redis-py 5 do not check it by default."""
    settings = redis_settings(f"rediss://:x@redis.example:6380/3{query}")
    options = redis.connection_pool(settings).connection_kwargs
    assert options["ssl_check_hostname"] is checked
    assert (options["host"], options["port"], options["db"], options["password"]) == ("redis.example", 6380, 3, "x")


async def test_a_subscriber_that_raises_does_not_make_the_others_deaf(redis_url: str) -> None:
    """Its error is logged; the next one hears."""
    settings, settled = redis_settings(redis_url), list[UUID]()
    said, wanted = RedisWakeups(settings), uuid4()
    connected = asyncio.Event()

    def failing(ids: Sequence[UUID]) -> None:
        connected.set()
        raise RuntimeError("a fault of the subscriber")

    said.subscribe_settled(failing)
    said.subscribe_settled(settled.extend)
    async with speaking(said):
        await asyncio.wait_for(connected.wait(), DEADLINE_SECONDS)
        await said.announce([wanted])
        await eventually(lambda: settled == [wanted], "announced")


# --- over Postgres ------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def opened(url: str, **more: str) -> AsyncIterator[tuple[PostgresSettings, Pool]]:
    """Settings and a pool."""
    settings = read(PostgresSettings, {"OUTBOX_POSTGRES_URL": url, "OUTBOX_POSTGRES_POOL_MIN": "0", **more})
    pool = await postgres.open_pool(settings, application_name="test")
    try:
        yield settings, pool
    finally:
        pool.terminate()


NO_REDIS = read(RedisSettings, {})


async def test_the_settings_choose_the_way(empty_database: Database) -> None:
    """A Redis in the settings carries the hints, up or not; without one NOTIFY does."""
    nowhere = redis_settings("redis://127.0.0.1:1/0")
    async with opened(empty_database.superuser_url) as (settings, pool):
        for chosen, kind in ((nowhere, RedisWakeups), (NO_REDIS, PostgresWakeups)):
            said = wakeups.open_wakeups(chosen, settings, pool, application_name="test")
            await said.wake([uuid4()])
            await said.aclose()
            assert type(said) is kind


async def test_without_redis_wake_ups_go_by_notify(empty_database: Database) -> None:
    """The doorbell and the waiters hear over LISTEN what is said over the pool."""
    async with opened(empty_database.superuser_url) as (settings, pool):
        said, rings, settled = PostgresWakeups(settings, pool, application_name="test"), Rings(), list[UUID]()
        said.subscribe_settled(settled.extend)
        async with speaking(said), ringing(Doorbell(NO_REDIS, settings, pool, rings.ring)):
            await eventually(lambda: rings.empty and said.hearing, "connected")
            wanted = uuid4()
            began = time.monotonic()
            await said.wake([wanted])
            await eventually(lambda: rings.ids == [wanted], "rung")
            assert time.monotonic() - began < 0.4, "a poll brought it"
            await said.announce([wanted])
            await eventually(lambda: settled == [wanted], "announced")


async def test_a_batch_of_any_size_fits_its_notifies(empty_database: Database) -> None:
    """A payload ends below 8,000 bytes; a thousand ids go out in five NOTIFYs, and a thousand calls are not a thousand of them."""
    async with opened(empty_database.superuser_url) as (settings, pool):
        payloads: list[str] = []
        listener = await asyncpg.connect(settings.listen_url)
        await listener.add_listener(wakeups.WAKE_CHANNEL, lambda *heard: payloads.append(str(heard[3])))
        said, wanted = PostgresWakeups(settings, pool, application_name="test"), [uuid4() for _ in range(2000)]
        async with speaking(said):
            await said.wake(wanted[:1000])
            for one in wanted[1000:]:
                await said.wake([one])
            await eventually(lambda: sum(len(wakeups.read_ids(payload)) for payload in payloads) >= 2000, "all heard")
        assert sorted(one for payload in payloads for one in wakeups.read_ids(payload)) == sorted(wanted)
        assert max(map(len, payloads)) < 8000
        assert len(payloads) < 20
        await listener.close()


async def test_listen_outlives_postgres(stoppable_postgres: StoppablePostgres) -> None:
    """Immediate stop and start: both sides connect again, say "look for yourself", and hear."""
    database = stoppable_postgres.server.empty_database()
    async with opened(database.superuser_url) as (settings, pool):
        said, rings = PostgresWakeups(settings, pool, application_name="test"), Rings()
        settled: list[Sequence[UUID]] = []
        said.subscribe_settled(settled.append)
        async with speaking(said), ringing(Doorbell(NO_REDIS, settings, pool, rings.ring)) as task:
            await eventually(lambda: rings.empty and said.hearing, "connected")
            stoppable_postgres.stop_immediately()
            at_once(said.wake([uuid4()]))
            await eventually(lambda: not said.hearing, "noticed")
            told = rings.empty
            await eventually(lambda: rings.empty > told, "told to look while nothing is heard")
            assert not task.done()
            stoppable_postgres.start()
            await eventually(lambda: said.hearing, "hearing again")
            wanted = uuid4()
            async with asyncio.timeout(DEADLINE_SECONDS):
                while wanted not in rings.ids:
                    await said.wake([wanted])
                    await asyncio.sleep(0.1)


async def test_a_deaf_listen_falls_back_to_polling_and_says_so(empty_database: Database, postgres_server: PostgresServer) -> None:
    """LISTEN that succeeds and hears nothing (as behind PgBouncer; here: of another database) is found out by a NOTIFY to itself."""
    other = postgres_server.empty_database()
    gaps = 0

    def on_gap() -> None:
        nonlocal gaps
        gaps += 1

    try:
        async with opened(empty_database.superuser_url, OUTBOX_POSTGRES_DIRECT_URL=other.superuser_url) as (settings, pool):
            listener = Listener(settings, pool, {"test": lambda _: None}, on_gap=on_gap, application_name="t", poll_seconds=0.1)
            stop = asyncio.Event()
            with structlog.testing.capture_logs() as said:
                task = asyncio.create_task(listener.run(stop))
                await eventually(lambda: gaps > 30, "polling")
            assert not listener.hearing
            assert [line["log_level"] for line in said if line["event"] == "listen-dead"] == ["error"]
            stop.set()
            await asyncio.wait_for(task, DEADLINE_SECONDS)
    finally:
        postgres_server.drop(other)


async def test_a_connection_that_is_terminated_is_replaced(empty_database: Database) -> None:
    """An administrator ends the LISTEN connection: it comes back by itself."""
    async with opened(empty_database.superuser_url) as (settings, pool):
        said = PostgresWakeups(settings, pool, application_name="test")
        settled: list[Sequence[UUID]] = []
        said.subscribe_settled(settled.append)
        async with speaking(said):
            await eventually(lambda: said.hearing, "connected")
            async with postgres.acquire(pool) as connection:
                await connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name like '% listen'"
                )
            await eventually(lambda: not said.hearing, "noticed")
            await eventually(lambda: said.hearing, "connected again")
            assert settled.count(()) >= 2
