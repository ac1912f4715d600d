"""Wake-ups: hints that a reservation waits, or that one was settled. They carry ids and never a fact.

Losing one costs time, never truth: workers sweep Postgres and waiters poll it, with or without Redis. So nothing here ever fails
towards its caller, and `wake` and `announce` return at once: ids gather while the last message is on its way and go out together.

Two forms. With Redis: arq rings one worker's doorbell, a pub/sub message kicks arq's poll loop, and settled ids go out by
pub/sub. Without: NOTIFY, one per batch and outside of any transaction, heard over the direct DSN.
Source: design sections 6, 8 and 17.

An **empty list** of ids, given to a doorbell or to a subscriber, means "messages may have been missed: look for yourself". It
comes after each (re)connecting, and again and again while LISTEN hears nothing.
"""

import asyncio
import contextlib
import contextvars
import logging
import os
import platform
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias
from uuid import UUID, uuid4

import msgspec
import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.jobs import serialize_job
from arq.worker import Worker, func
from redis.asyncio.client import Pipeline

from outbox_runtime import postgres, redis
from outbox_runtime.postgres import Listener, Pool
from outbox_runtime.settings import PostgresSettings, RedisSettings
from outbox_runtime.supervision import end, keep_running

log = structlog.stdlib.get_logger("outbox.wakeups")

WAKE_CHANNEL = "outbox_wake"
SETTLED_CHANNEL = "outbox_settled"

PENDING_MAX = 10_000
"""Ids kept while the way out is blocked; beyond it the oldest are forgotten, and the sweep finds them."""

IDS_PER_RING = 16
"""Ids in one arq message: few enough that workers share a burst, and more than one because arq hands out few messages."""

IDS_PER_NOTICE = (postgres.PAYLOAD_BYTES_MAX + 1) // 33
"""Ids in one NOTIFY or pub/sub message: 32 hexadecimal digits and a comma each."""

SEND_SECONDS_MAX = 3.0
RETRY_SECONDS_MIN = 0.1
RETRY_SECONDS_MAX = 5.0
CLOSE_SECONDS_MAX = 1.0

RING = "ring"
RING_LIFE_SECONDS = 300.0
RING_SECONDS_MAX = 60.0
RINGS_AT_ONCE = 32
QUEUE_READ_LIMIT = 2_000
"""Messages one look into the queue sees. arq's default (100) includes those that other workers hold, so a fleet starves."""

TRIM_EVERY_SECONDS = 60.0
HEALTH_SECONDS = 15
PUBSUB_PING_SECONDS = 5.0

OnRing: TypeAlias = Callable[[list[UUID]], Awaitable[None]]
"""Called with the ids that wait, or with none ("look for yourself"). Hands over to tasks of its own and returns quickly."""

OnSettled: TypeAlias = Callable[[Sequence[UUID]], None]
"""Called on the event loop with the ids that changed, or with none ("look for yourself"). Must not block."""


class Wakeups(Protocol):
    """What services say to each other about reservations."""

    async def wake(self, reservation_ids: Sequence[UUID]) -> None:
        """Hint to the workers that these reservations wait. Called after the commit; never blocks, never raises."""

    async def announce(self, reservation_ids: Sequence[UUID]) -> None:
        """Hint to the waiters that these reservations changed. Called after the commit; never blocks, never raises."""

    def subscribe_settled(self, callback: OnSettled) -> None:
        """Have `callback` called with announced ids from now on until `aclose`."""

    async def aclose(self) -> None:
        """Send what is gathered, for a second at most, and let go of every connection."""


def open_wakeups(
    redis_settings: RedisSettings, postgres_settings: PostgresSettings, pool: Pool, *, application_name: str
) -> Wakeups:
    """The form that the settings ask for: Redis where there is one, else NOTIFY. Neither has to be up.

    Args:
        redis_settings: where Redis is, if there is one.
        postgres_settings: the direct DSN for LISTEN.
        pool: the way NOTIFY goes out.
        application_name: as it stands in `pg_stat_activity`.
    """
    if redis_settings.redis_url is None:
        return PostgresWakeups(postgres_settings, pool, application_name=application_name)
    return RedisWakeups(redis_settings)


def write_ids(ids: Sequence[UUID], *, limit: int) -> Iterator[str]:
    """The payloads that carry these ids, at most `limit` in each."""
    for first in range(0, len(ids), limit):
        yield ",".join(reservation_id.hex for reservation_id in ids[first : first + limit])


def read_ids(payload: str | bytes) -> list[UUID]:
    """The ids in a payload; what is not an id is left out, for anybody who can reach Redis can write there."""
    text = payload.decode(errors="replace") if isinstance(payload, bytes) else payload
    found = []
    for part in text.split(","):
        with contextlib.suppress(ValueError):
            found.append(UUID(hex=part))
    return found


class _Outgoing:
    """Gathers ids and sends them in the background, all that gathered while the last message was on its way at once."""

    def __init__(self, send: Callable[[list[UUID], list[UUID]], Awaitable[None]]) -> None:
        self._send = send
        self._wake: dict[UUID, None] = {}
        self._settled: dict[UUID, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def add(self, *, wake: Sequence[UUID] = (), settled: Sequence[UUID] = ()) -> None:
        for waiting, ids in ((self._wake, wake), (self._settled, settled)):
            waiting.update(dict.fromkeys(ids))
            while len(waiting) > PENDING_MAX:
                del waiting[next(iter(waiting))]
        if (self._wake or self._settled) and not self._closed and (self._task is None or self._task.done()):
            # A context of its own: the caller's trace, and a transaction of the caller's, are not the sender's.
            self._task = asyncio.get_running_loop().create_task(self._drain(), context=contextvars.Context())

    async def _drain(self) -> None:
        retry = RETRY_SECONDS_MIN
        while self._wake or self._settled:
            wake, self._wake = self._wake, {}
            settled, self._settled = self._settled, {}
            try:
                async with asyncio.timeout(SEND_SECONDS_MAX):
                    await self._send(list(wake), list(settled))
            except Exception as error:
                # Whatever it is, nobody waits for it: a hint that does not go out costs time.
                log.warning(
                    "wake-up-not-sent", error=type(error).__name__, ids=len(wake) + len(settled), retry_seconds=round(retry, 2)
                )
                # Oldest first again, so that the bound forgets the oldest. A part that did go out goes twice, which is harmless.
                self._wake, self._settled = wake | self._wake, settled | self._settled
                await asyncio.sleep(retry)
                retry = min(retry * 2, RETRY_SECONDS_MAX)
            else:
                retry = RETRY_SECONDS_MIN

    async def aclose(self) -> None:
        self._closed = True
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=CLOSE_SECONDS_MAX)
            await end(self._task)


class _Subscribers:
    """Those who want to hear of settled reservations, and the one background task that listens for them."""

    def __init__(self, listen: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        self._listen = listen
        self._callbacks: list[OnSettled] = []
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, callback: OnSettled) -> None:
        self._callbacks.append(callback)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    async def _run(self) -> None:
        await self._listen(self._stop)

    def tell(self, ids: Sequence[UUID]) -> None:
        for callback in self._callbacks:
            try:
                callback(ids)
            except Exception:
                # One subscriber's error must not make the others deaf; waiters poll anyway.
                log.exception("settled-subscriber-failed")

    async def aclose(self) -> None:
        self._stop.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


class PostgresWakeups:
    """Wake-ups by NOTIFY, one per batch and outside of any transaction (in every transaction it costs settle two thirds)."""

    def __init__(self, settings: PostgresSettings, pool: Pool, *, application_name: str) -> None:
        """
        Args:
            settings: the direct DSN comes from here.
            pool: the way NOTIFY goes out.
            application_name: as it stands in `pg_stat_activity`.
        """
        self._pool = pool
        self._outgoing = _Outgoing(self._send)
        self._subscribers = _Subscribers(self._listen)
        self._listener = Listener(
            settings,
            pool,
            {SETTLED_CHANNEL: lambda payload: self._subscribers.tell(read_ids(payload))},
            on_gap=lambda: self._subscribers.tell(()),
            application_name=f"{application_name} settled",
        )

    async def wake(self, reservation_ids: Sequence[UUID]) -> None:
        """See `Wakeups.wake`."""
        self._outgoing.add(wake=reservation_ids)

    async def announce(self, reservation_ids: Sequence[UUID]) -> None:
        """See `Wakeups.announce`."""
        self._outgoing.add(settled=reservation_ids)

    def subscribe_settled(self, callback: OnSettled) -> None:
        """See `Wakeups.subscribe_settled`."""
        self._subscribers.add(callback)

    @property
    def hearing(self) -> bool:
        """True while a NOTIFY is known to arrive; False means that subscribers are told to look for themselves."""
        return self._listener.hearing

    async def aclose(self) -> None:
        """See `Wakeups.aclose`."""
        await self._outgoing.aclose()
        await self._subscribers.aclose()

    async def _listen(self, stop: asyncio.Event) -> None:
        await self._listener.run(stop)

    async def _send(self, wake: list[UUID], settled: list[UUID]) -> None:
        for channel, ids in ((WAKE_CHANNEL, wake), (SETTLED_CHANNEL, settled)):
            for payload in write_ids(ids, limit=IDS_PER_NOTICE):
                await postgres.notify(self._pool, channel, payload)


class _Names:
    """Our names in Redis."""

    def __init__(self, prefix: str) -> None:
        self.queue = f"{prefix}:doorbell"
        self.kick = f"{prefix}:kick"
        self.settled = f"{prefix}:settled"
        # arq's default is one key for the whole queue, deleted when any worker stops.
        self.health = f"{prefix}:doorbell-health:{platform.node()}:{os.getpid()}:{uuid4().hex[:8]}"


def _write_message(message: dict[str, Any]) -> bytes:
    # `enc_hook`: arq puts the exception of a failed job into a result that we never keep.
    return msgspec.json.encode(message, enc_hook=repr)


def _read_message(message: bytes) -> dict[str, Any]:
    # Never arq's default: pickle would let whoever can write to Redis run code in the workers.
    return msgspec.json.decode(message, type=dict[str, Any])


def _ring(pipe: Pipeline, names: _Names, payload: str, now: int) -> None:
    """Put what `ArqRedis.enqueue_job` does into a pipeline.

    arq itself takes three round trips, two of them to see whether somebody chose the same job id. Ours are random: with ids of
    the reservations it would drop a second ring for the same one without a word.

    Args:
        pipe: where the commands go.
        names: ours in Redis.
        payload: the argument of the ring.
        now: milliseconds since the epoch, by which arq orders its queue.
    """
    job_id = uuid4().hex
    message = serialize_job(RING, (payload,), {}, None, now, serializer=_write_message)
    pipe.psetex(job_key_prefix + job_id, int(RING_LIFE_SECONDS * 1000), message)
    pipe.zadd(names.queue, {job_id: now})


def _open_arq(settings: RedisSettings, names: _Names) -> ArqRedis:
    return ArqRedis(
        redis.connection_pool(settings),
        job_serializer=_write_message,
        job_deserializer=_read_message,
        default_queue_name=names.queue,
    )


class RedisWakeups:
    """Wake-ups over Redis: an arq message and a kick for one worker, pub/sub for the waiters."""

    def __init__(self, settings: RedisSettings) -> None:
        """
        Args:
            settings: where Redis is; it does not have to be up.
        """
        self._settings = settings
        self._names = _Names(settings.redis_prefix)
        self._client = _open_arq(settings, self._names)
        self._outgoing = _Outgoing(self._send)
        self._subscribers = _Subscribers(self._listen)
        self._trimmed = 0.0

    async def wake(self, reservation_ids: Sequence[UUID]) -> None:
        """See `Wakeups.wake`."""
        self._outgoing.add(wake=reservation_ids)

    async def announce(self, reservation_ids: Sequence[UUID]) -> None:
        """See `Wakeups.announce`."""
        self._outgoing.add(settled=reservation_ids)

    def subscribe_settled(self, callback: OnSettled) -> None:
        """See `Wakeups.subscribe_settled`."""
        self._subscribers.add(callback)

    async def aclose(self) -> None:
        """See `Wakeups.aclose`."""
        await self._outgoing.aclose()
        await self._subscribers.aclose()
        await redis.close_client(self._client)

    async def _send(self, wake: list[UUID], settled: list[UUID]) -> None:
        # All in one round trip, in this order: whoever is kicked finds its message.
        async with self._client.pipeline(transaction=False) as pipe:
            now = time.time_ns() // 1_000_000
            for payload in write_ids(wake, limit=IDS_PER_RING):
                _ring(pipe, self._names, payload, now)
            if wake:
                pipe.publish(self._names.kick, b"")
            for payload in write_ids(settled, limit=IDS_PER_NOTICE):
                pipe.publish(self._names.settled, payload)
            if wake and time.monotonic() - self._trimmed > TRIM_EVERY_SECONDS:
                self._trimmed = time.monotonic()
                # arq's queue keeps the ids of expired messages until a worker reads them; without workers it would only grow.
                pipe.zremrangebyscore(self._names.queue, "-inf", now - RING_LIFE_SECONDS * 1000)
            await pipe.execute()

    async def _listen(self, stop: asyncio.Event) -> None:
        await keep_running("settled-subscription", self._subscription, stop, recoverable=redis.AWAY)

    async def _subscription(self) -> None:
        await _hear(
            self._client,
            self._names.settled,
            on_subscribed=lambda: self._subscribers.tell(()),
            on_message=lambda payload: self._subscribers.tell(read_ids(payload)),
        )


async def _hear(
    client: ArqRedis, channel: str, *, on_subscribed: Callable[[], None], on_message: Callable[[bytes], None]
) -> None:
    """Listen on one pub/sub channel until Redis goes away, half-open connections included: silence is answered by a PING.

    Raises:
        one of `redis.AWAY`: the connection ended or no longer answers.
    """
    async with client.pubsub() as subscription:
        await subscription.subscribe(channel)
        answered = True
        while True:
            message = await subscription.get_message(timeout=PUBSUB_PING_SECONDS)
            if message is None:
                if not answered:
                    raise TimeoutError("the subscription no longer answers")
                answered = False
                await subscription.ping()
                continue
            answered = True
            if message["type"] == "subscribe":
                on_subscribed()
            elif message["type"] == "message":
                on_message(message["data"])


class _KickedWorker(Worker):
    """arq's worker with its poll loop kicked by a message, so that pick-up takes single-digit milliseconds.

    arq's own loop sleeps for its poll delay whatever comes in (0.5 s: 261 ms to pick up on average).
    """

    def __init__(self, *, accepting: Callable[[], bool], **options: Any) -> None:
        super().__init__(**options)
        self.kicked = asyncio.Event()
        self._accepting = accepting

    async def main(self) -> None:
        """Look into the queue at every kick, and every poll delay without one, until Redis goes away."""
        while True:
            # Cleared before the look: a kick that comes during it leads to another one.
            self.kicked.clear()
            self.allow_pick_jobs = self._accepting()
            await self._poll_iteration()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.poll_delay_s):
                    await self.kicked.wait()

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Take messages as arq does, but in one round trip for as many as there is room for, instead of four for each."""
        waiting = [job_id for raw in job_ids if (job_id := raw.decode()) not in self.tasks]
        while waiting and not self.full:
            room = self.max_jobs - self.job_counter
            asked, waiting = waiting[:room], waiting[room:]
            async with self.pool.pipeline(transaction=False) as pipe:
                for job_id in asked:
                    # What arq's WATCH and MULTI come to: one worker sets the key, the others see that it is set.
                    pipe.set(in_progress_key_prefix + job_id, b"1", nx=True, px=int(self.in_progress_timeout_s * 1000))
                    pipe.zscore(self.queue_name, job_id)
                answers = await pipe.execute()
            over = []
            for job_id, taken, score in zip(asked, answers[::2], answers[1::2], strict=True):
                if taken and score is not None:
                    await self._start(job_id, int(score))
                elif taken:
                    over.append(in_progress_key_prefix + job_id)  # Another worker has finished it since the look.
            if over:
                await self.pool.delete(*over)

    async def _start(self, job_id: str, score: int) -> None:
        await self.sem.acquire()
        self.job_counter += 1
        task = self.loop.create_task(self.run_job(job_id, score))
        task.add_done_callback(self._ended)
        self.tasks[job_id] = task

    def _ended(self, _: asyncio.Task[None]) -> None:
        was_full = self.full
        self._release_sem_dec_counter_on_complete()
        if was_full:
            # Messages may have been left in the queue for want of room.
            self.kicked.set()

    @property
    def full(self) -> bool:
        """True while it holds as many messages as it may."""
        return self.job_counter >= self.max_jobs

    async def let_go(self) -> None:
        """End what is left of the worker's own tasks. (arq's `close` would raise again what Redis going away raised in them.)"""
        await end(*self.tasks.values())
        with contextlib.suppress(*redis.AWAY):
            await self.pool.delete(self.health_check_key)


class Doorbell:
    """The worker's side of `wake`: rings for as long as the process lives, whatever becomes of Redis or Postgres.

    arq is a doorbell only. It delivers ids; who executes is decided by the claim in Postgres, so that two deliveries of one ring
    are harmless and a lost one costs time. Neither arq's retries nor its results, uniqueness, abort, cron and signals are used.
    """

    def __init__(
        self,
        redis_settings: RedisSettings,
        postgres_settings: PostgresSettings,
        pool: Pool,
        on_ring: OnRing,
        *,
        accepting: Callable[[], bool] = lambda: True,
        application_name: str = "outbox-worker",
    ) -> None:
        """
        Args:
            redis_settings: where Redis is, if there is one.
            postgres_settings: the direct DSN for LISTEN, without Redis.
            pool: the way of the NOTIFY that checks whether LISTEN hears.
            on_ring: called with the ids; must hand over and return, for it is not cancelled with the connection.
            accepting: False while this worker has no free slot; rings then go to other workers.
            application_name: as it stands in `pg_stat_activity`.
        """
        self._redis_settings = redis_settings
        self._postgres_settings = postgres_settings
        self._pool = pool
        self._on_ring = on_ring
        self._accepting = accepting
        self._application_name = application_name
        self._rings: set[asyncio.Task[None]] = set()
        self.health_key: str | None = None
        """The key in Redis that says this process listens, for a probe from outside."""

    async def run(self, stop: asyncio.Event) -> None:
        """Ring until `stop` is set, then wait for the `on_ring` calls that still run."""
        try:
            if self._redis_settings.redis_url is None:
                await self._run_listening(stop)
            else:
                await keep_running("doorbell", self._run_arq, stop, recoverable=redis.AWAY)
        finally:
            await asyncio.gather(*self._rings, return_exceptions=True)

    async def _run_listening(self, stop: asyncio.Event) -> None:
        listener = Listener(
            self._postgres_settings,
            self._pool,
            {WAKE_CHANNEL: lambda payload: self._ring_unless_full(read_ids(payload))},
            on_gap=lambda: self._ring_unless_full([]),
            application_name=f"{self._application_name} doorbell",
        )
        await listener.run(stop)

    def _ring_unless_full(self, ids: list[UUID]) -> None:
        # Every worker hears a NOTIFY, so one without a free slot loses nothing for the others by not listening.
        if self._accepting():
            self._ring(ids)

    def _ring(self, ids: list[UUID]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._call(ids), context=contextvars.Context())
        self._rings.add(task)
        task.add_done_callback(self._rings.discard)
        return task

    async def _call(self, ids: list[UUID]) -> None:
        try:
            await self._on_ring(ids)
        except Exception:
            # The sweep finds what this ring was about.
            log.exception("ring-failed", ids=len(ids))

    async def _run_arq(self) -> None:
        names = _Names(self._redis_settings.redis_prefix)
        client = _open_arq(self._redis_settings, names)
        worker: _KickedWorker | None = None
        try:
            # arq's loop and the kick need the same Redis: when one of them loses it, both begin anew.
            worker = self._worker(client, names)
            self.health_key = names.health
            looking = asyncio.create_task(worker.main())
            hearing = asyncio.create_task(self._hear_kicks(client, names, worker))
            try:
                await asyncio.wait({looking, hearing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await end(looking, hearing)
                await worker.let_go()
            for task in (looking, hearing):
                if not task.cancelled():
                    task.result()
        finally:
            await redis.close_client(client)

    async def _hear_kicks(self, client: ArqRedis, names: _Names, worker: _KickedWorker) -> None:
        def on_subscribed() -> None:
            worker.kicked.set()
            self._ring_unless_full([])

        await _hear(client, names.kick, on_subscribed=on_subscribed, on_message=lambda _: worker.kicked.set())

    def _worker(self, client: ArqRedis, names: _Names) -> _KickedWorker:
        # arq says two lines for every ring; what happened to a reservation is said elsewhere.
        logging.getLogger("arq").setLevel(logging.WARNING)

        async def ring(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
            for payload in args:
                # Shielded: when Redis goes away arq cancels this coroutine, not what it set going.
                await asyncio.shield(self._ring(read_ids(str(payload))))

        return _KickedWorker(
            accepting=self._accepting,
            functions=[func(ring, name=RING, keep_result=0, timeout=RING_SECONDS_MAX, max_tries=1)],
            redis_pool=client,
            queue_name=names.queue,
            handle_signals=False,
            max_jobs=RINGS_AT_ONCE,
            job_timeout=RING_SECONDS_MAX,
            keep_result=0,
            poll_delay=self._redis_settings.redis_poll_seconds,
            queue_read_limit=QUEUE_READ_LIMIT,
            max_tries=1,
            retry_jobs=False,
            allow_abort_jobs=False,
            health_check_interval=HEALTH_SECONDS,
            health_check_key=names.health,
            job_serializer=_write_message,
            job_deserializer=_read_message,
            log_results=False,
        )
