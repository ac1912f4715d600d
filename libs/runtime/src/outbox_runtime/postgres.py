"""Postgres: pools, visible transactions, and LISTEN.

The only door to asyncpg besides `outbox_store`. Source: design sections 3 (one door per technology), 8 and 17.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import asyncpg
import msgspec
import structlog
from asyncpg.pool import PoolConnectionProxy

from outbox_runtime.settings import PostgresSettings
from outbox_runtime.supervision import end, keep_running

log = structlog.stdlib.get_logger("outbox.postgres")

if TYPE_CHECKING:
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
else:
    Pool: TypeAlias = asyncpg.Pool
    Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy

ACQUIRE_SECONDS = 5.0
"""How long a caller waits for a connection of a pool that is used up; then `TimeoutError`, which is one of `AWAY`."""

START_PAUSE_SECONDS = 0.2
PAYLOAD_BYTES_MAX = 7999
"""The longest payload of a NOTIFY (Postgres manual, NOTIFY: "shorter than 8000 bytes")."""

PostgresError = asyncpg.PostgresError
"""What Postgres itself refused or failed at."""


class PostgresAway(ConnectionError):
    """The connection was closed under its user, or its pool is being closed."""


AWAY: tuple[type[BaseException], ...] = (
    # `PostgresAway`, refused and broken connections, and what the operating system says of them.
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""What is raised while Postgres cannot be reached, is starting, stopping, full, or a standby: the caller may ask again later."""

NOT_NOW: tuple[type[BaseException], ...] = (*AWAY, PostgresError)
"""`AWAY`, and what else Postgres refuses (a lock or statement that took too long, a deadlock): for what is tried again anyway."""


def is_away(error: BaseException) -> bool:
    """Whether an error means that Postgres is away, and says nothing about the statement."""
    return isinstance(error, AWAY)


in_transaction: ContextVar[bool] = ContextVar("in_transaction", default=False)
"""True inside `transaction`; `outside_transaction_only` reads it."""


class TransactionOpen(RuntimeError):
    """Something outside was about to be awaited while a transaction is open."""


def outside_transaction_only(what: str = "this") -> None:
    """Refuse to go on while a transaction is open.

    Args:
        what: what was about to be done, for the message.

    Raises:
        TransactionOpen: the caller is inside `transaction`. Nothing outside is awaited there (design section 6).
    """
    if in_transaction.get():
        raise TransactionOpen(f"{what} must not be awaited while a transaction is open")


async def prepare(connection: Connection) -> None:
    """Teach a connection that jsonb is plain Python values. The `init` of every pool."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=_encode_json, decoder=msgspec.json.decode, format="text"
        )


def _encode_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


async def _no_reset(connection: Connection) -> None:
    """Nothing to undo between two uses: no code sets session state, and asyncpg itself rolls back what was left open.

    asyncpg's own reset would cost one more round trip for every use of a connection.
    """


class _Pooled(asyncpg.Connection):
    """A connection of a pool, which closes what it has expired in tasks that nobody awaits."""

    __slots__ = ()

    async def close(self, *, timeout: float | None = None) -> None:
        """Close it; one that turns out to be dead has been aborted, and that it was dead is known to whoever expired it."""
        try:
            await super().close(timeout=timeout)
        except (OSError, TimeoutError) as error:
            log.info("postgres-closed-dead", error=type(error).__name__)


async def open_pool(
    settings: PostgresSettings,
    *,
    application_name: str,
    init: Callable[[Connection], Coroutine[Any, Any, None]] = prepare,
) -> Pool:
    """Open a pool, waiting for a Postgres that is still starting.

    Args:
        settings: where and how many.
        application_name: as it stands in `pg_stat_activity`.
        init: run on every new connection; the jsonb codec unless another is given.

    Raises:
        one of `AWAY`: Postgres did not answer within `postgres_start_seconds`.
        asyncpg.PostgresError: it answered and refused (wrong password, no such database).
    """
    give_up = time.monotonic() + settings.postgres_start_seconds
    while True:
        try:
            pool = await asyncpg.create_pool(
                settings.postgres_url.get_secret_value(),
                min_size=settings.postgres_pool_min,
                max_size=settings.postgres_pool_max,
                timeout=settings.postgres_connect_seconds,
                command_timeout=settings.postgres_command_seconds,
                statement_cache_size=settings.postgres_statement_cache,
                # asyncpg would prepare a text of more than 15 KiB anew every time, and T3 is longer: to plan it takes longer than
                # to run it.
                max_cacheable_statement_size=0,
                max_inactive_connection_lifetime=300.0,
                connection_class=_Pooled,
                server_settings={"application_name": application_name},
                init=init,
                reset=_no_reset,
            )
        except AWAY as error:
            if time.monotonic() >= give_up:
                raise
            log.info("postgres-awaited", error=type(error).__name__)
            await asyncio.sleep(START_PAUSE_SECONDS)
        else:
            return pool


@contextlib.asynccontextmanager
async def transaction(pool: Pool, *, acquire_seconds: float = ACQUIRE_SECONDS) -> AsyncIterator[Connection]:
    """One transaction on one connection of the pool, committed when the block ends, rolled back when it raises.

    While it is open `in_transaction` is set, so that nothing outside can be awaited. It cannot be nested: what is one
    transaction is visible in one file.

    Args:
        pool: where the connection comes from.
        acquire_seconds: how long to wait for a connection.

    Raises:
        TransactionOpen: one is open already.
        one of `AWAY`: Postgres is away. Raised by the commit it says nothing of whether the commit happened.
    """
    outside_transaction_only("a second transaction")
    async with acquire(pool, acquire_seconds=acquire_seconds) as connection:
        mark = in_transaction.set(True)
        try:
            async with connection.transaction():
                yield connection
        finally:
            in_transaction.reset(mark)


def _closed(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        # The pool took the connection back when it broke; not even this question is answered any more.
        return True


@contextlib.asynccontextmanager
async def acquire(pool: Pool, *, acquire_seconds: float = ACQUIRE_SECONDS) -> AsyncIterator[Connection]:
    """One connection without a transaction: every statement on it commits by itself.

    Raises:
        one of `AWAY`: Postgres is away, or no connection became free in time.
    """
    try:
        async with pool.acquire(timeout=acquire_seconds) as connection:
            try:
                yield connection
            except TimeoutError:
                # Nothing came back in time. Where the way to Postgres broke silently, the idle connections are as dead as this
                # one, and to try them in turn would take as many times so long: what is open now is not used again.
                await pool.expire_connections()
                raise
            except asyncpg.InterfaceError as error:
                # asyncpg has one class for "the connection is closed" and for mistakes of its caller.
                if _closed(connection):
                    raise PostgresAway("the connection was closed") from error
                raise
            except asyncpg.InternalClientError as error:
                # What asyncpg says when the connection broke and it has not noticed yet; nothing more is to be had from it.
                if not _closed(connection):
                    connection.terminate()
                raise PostgresAway("the connection is unusable") from error
    except asyncpg.InterfaceError as error:
        if pool.is_closing():
            raise PostgresAway("the pool is closing") from error
        raise


async def notify(pool: Pool, channel: str, payload: str) -> None:
    """Send one NOTIFY, outside of any transaction of the caller's.

    Args:
        pool: any pool; a pooler in front of Postgres does not disturb NOTIFY.
        channel: its name.
        payload: at most 7999 bytes.
    """
    async with acquire(pool) as connection:
        await connection.execute("select pg_notify($1, $2)", channel, payload)


Heard: TypeAlias = Callable[[str], None]
"""Called with the payload of a NOTIFY; must not block and must not raise."""


class Listener:
    """LISTEN for as long as the process lives, over the direct DSN.

    It reconnects with back-off. After every connecting it proves by a NOTIFY to itself that messages arrive: behind PgBouncer in
    transaction mode LISTEN succeeds and nothing ever comes. While they do not arrive `hearing` is False, the log says so, and
    `on_gap` is called every `poll_seconds`, so that who depends on messages can look for itself. `on_gap` is also called once
    after each connecting, because what was sent meanwhile is lost.
    """

    CHECK_CHANNEL = "outbox_listen_check"
    CHECK_SECONDS = 2.0
    KEEP_ALIVE_SECONDS = 15.0
    DEAF_RETRY_SECONDS = 60.0

    def __init__(
        self,
        settings: PostgresSettings,
        pool: Pool,
        channels: Mapping[str, Heard],
        *,
        on_gap: Callable[[], None],
        application_name: str,
        poll_seconds: float = 0.5,
    ) -> None:
        """
        Args:
            settings: the direct DSN comes from here.
            pool: the NOTIFY of the check goes this way, as the real ones do.
            channels: what to listen on, and whom to call.
            on_gap: called when messages may have been missed.
            application_name: as it stands in `pg_stat_activity`.
            poll_seconds: how often `on_gap` is called while nothing is heard.
        """
        self._settings = settings
        self._pool = pool
        self._channels = dict(channels)
        self._on_gap = on_gap
        self._application_name = application_name
        self._poll_seconds = poll_seconds
        self._check_token = uuid4().hex
        self._checked = asyncio.Event()
        self.hearing = False
        """True while a NOTIFY is known to arrive."""

    async def run(self, stop: asyncio.Event) -> None:
        """Listen until `stop` is set. Postgres going away never ends it."""
        poller = asyncio.create_task(self._poll_while_deaf())
        try:
            await keep_running("listen", self._session, stop, recoverable=(*AWAY, asyncpg.PostgresError))
        finally:
            await end(poller)

    async def _poll_while_deaf(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            if not self.hearing:
                self._on_gap()

    async def _session(self) -> None:
        connection = await asyncpg.connect(
            self._settings.listen_url,
            timeout=self._settings.postgres_connect_seconds,
            command_timeout=self._settings.postgres_command_seconds,
            statement_cache_size=0,
            server_settings={"application_name": f"{self._application_name} listen"},
        )
        ended = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: ended.set())
            await connection.add_listener(self.CHECK_CHANNEL, self._hear_check)
            for channel, heard in self._channels.items():
                await connection.add_listener(channel, _payload_only(heard))
            self.hearing = await self._check()
            self._on_gap()
            if not self.hearing:
                log.error(
                    "listen-dead",
                    poll_seconds=self._poll_seconds,
                    explanation="LISTEN hears nothing (a pooler in transaction mode?); polling instead. "
                    "Set OUTBOX_POSTGRES_DIRECT_URL to a DSN without a pooler.",
                )
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.KEEP_ALIVE_SECONDS if self.hearing else self.DEAF_RETRY_SECONDS):
                        await ended.wait()
                if not ended.is_set() and not await self._check():
                    # A half-open connection looks alive; only a message that does not come tells it apart.
                    return
                self.hearing = not ended.is_set()
        finally:
            self.hearing = False
            connection.terminate()

    async def _check(self) -> bool:
        self._checked.clear()
        await notify(self._pool, self.CHECK_CHANNEL, self._check_token)
        try:
            async with asyncio.timeout(self.CHECK_SECONDS):
                await self._checked.wait()
        except TimeoutError:
            return False
        return True

    def _hear_check(self, connection: object, process_id: int, channel: str, payload: object) -> None:
        if payload == self._check_token:
            self._checked.set()


def _payload_only(heard: Heard) -> Callable[[Any, int, str, object], None]:
    return lambda connection, process_id, channel, payload: heard(str(payload))
