"""Transactions are visible, nothing outside is awaited in one, and jsonb is plain Python."""

import asyncio
import contextlib
import gc
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import uvloop
from tests.fault.battery import network
from tests.support.postgres import Database, StoppablePostgres

from outbox_runtime import postgres
from outbox_runtime.postgres import AWAY, TransactionOpen, acquire, open_pool, outside_transaction_only, transaction
from outbox_runtime.settings import PostgresSettings, read

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """The event loop that the services run on; it treats broken connections differently from asyncio's own."""
    return uvloop.EventLoopPolicy()


def settings(url: str, **more: str) -> PostgresSettings:
    """Settings for a small pool."""
    return read(PostgresSettings, {"OUTBOX_POSTGRES_URL": url, "OUTBOX_POSTGRES_POOL_MIN": "0", **more})


async def fail_after_inserting(pool: postgres.Pool) -> None:
    """A use case that goes wrong after its first statement."""
    async with transaction(pool) as connection:
        await connection.execute("insert into kept values (2)")
        raise KeyError


async def until(pool: postgres.Pool, question: str) -> None:
    """Wait until Postgres answers the question with something true."""
    give_up = time.monotonic() + 10
    async with acquire(pool) as connection:
        while not await connection.fetchval(question) and time.monotonic() < give_up:  # noqa: ASYNC110 (the event is in Postgres)
            await asyncio.sleep(0.01)


async def test_a_transaction_commits_whole_or_not_at_all(empty_database: Database) -> None:
    """The block's end commits; an error in it leaves nothing and is the caller's to see."""
    pool = await open_pool(settings(empty_database.superuser_url), application_name="test")
    async with pool:
        async with acquire(pool) as connection:
            await connection.execute("create table kept (number int)")
        async with transaction(pool) as connection:
            await connection.execute("insert into kept values (1)")
        with pytest.raises(KeyError):
            await fail_after_inserting(pool)
        async with acquire(pool) as connection:
            assert [row[0] for row in await connection.fetch("select number from kept")] == [1]


async def test_nothing_outside_is_awaited_inside_a_transaction(empty_database: Database) -> None:
    """Inside, `outside_transaction_only` raises, also in a function deep below; a second transaction counts as outside."""
    pool = await open_pool(settings(empty_database.superuser_url), application_name="test")
    async with pool:
        outside_transaction_only("a send")
        async with transaction(pool):
            with pytest.raises(TransactionOpen, match="a send must not be awaited"):
                outside_transaction_only("a send")
            with pytest.raises(TransactionOpen):
                async with transaction(pool):
                    pass
        outside_transaction_only("a send")
        with pytest.raises(KeyError):
            async with transaction(pool):
                raise KeyError
        outside_transaction_only("a send")


async def test_another_task_is_not_in_my_transaction(empty_database: Database) -> None:
    """The mark belongs to the task: one that ran before is free to send meanwhile."""
    pool = await open_pool(settings(empty_database.superuser_url), application_name="test")
    inside, checked = asyncio.Event(), asyncio.Event()

    async def sender() -> None:
        await inside.wait()
        outside_transaction_only("a send")
        checked.set()

    async with pool:
        task = asyncio.create_task(sender())
        async with transaction(pool):
            inside.set()
            await asyncio.wait_for(checked.wait(), 10)
        await task


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True, "ü"]}, [], "text", 9007199254740991, None])
async def test_jsonb_is_plain_python(empty_database: Database, value: object) -> None:
    """Values go in and come out as they are; None goes in as the JSON null only inside of another value."""
    pool = await open_pool(settings(empty_database.superuser_url), application_name="test")
    async with pool, acquire(pool) as connection:
        assert await connection.fetchval("select $1::jsonb", {"value": value}) == {"value": value}
        assert await connection.fetchval("select $1::json", {"value": value}) == {"value": value}


async def test_a_used_up_pool_does_not_keep_a_caller_for_ever(empty_database: Database) -> None:
    """Waiting for a connection ends with one of `AWAY`, which callers answer with 503."""
    pool = await open_pool(settings(empty_database.superuser_url, OUTBOX_POSTGRES_POOL_MAX="1"), application_name="test")
    async with pool, acquire(pool):
        with pytest.raises(AWAY):
            async with transaction(pool, acquire_seconds=0.05):
                pass


async def test_what_is_raised_while_postgres_is_away_is_one_of_away(stoppable_postgres: StoppablePostgres) -> None:
    """In the middle of a statement and afterwards: `AWAY`. When it is back, the same pool serves again."""
    database = stoppable_postgres.server.empty_database()
    pool = await open_pool(settings(database.superuser_url), application_name="test")
    async with pool:
        sleeping = asyncio.create_task(pool.execute("select pg_sleep(30)"))
        await until(pool, "select count(*) from pg_stat_activity where query = 'select pg_sleep(30)'")
        stoppable_postgres.stop_immediately()
        with pytest.raises(AWAY):
            await sleeping
        for _ in range(3):
            with pytest.raises(AWAY):
                async with transaction(pool):
                    pass
        stoppable_postgres.start()
        async with transaction(pool) as connection:
            assert await connection.fetchval("select 1") == 1


async def test_a_way_that_broke_silently_is_noticed_once(empty_database: Database, tmp_path: Path) -> None:
    """Every connection of the pool is half-open: one use waits for nothing, the next has a connection that answers."""
    parts = urlsplit(empty_database.superuser_url)
    async with network.running(tmp_path) as between:
        port = await between.link("pool-postgres", "postgres", parts.hostname or "", parts.port or 0)
        url = empty_database.superuser_url.replace(f":{parts.port}/", f":{port}/")
        pool = await open_pool(settings(url, OUTBOX_POSTGRES_COMMAND_SECONDS="0.3"), application_name="test")
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(acquire(pool))
        await between.strike(["pool-postgres"], "half-open")
        await between.heal(["pool-postgres"])
        with pytest.raises(AWAY):
            await question(pool)
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        before = asyncio.all_tasks()
        assert await question(pool) == 1
        closing = asyncio.all_tasks() - before
        assert closing, "asyncpg closes in a task what is half-open"
        await asyncio.wait(closing, timeout=10)
        del closing
        gc.collect()
        assert complaints == [], "a connection that is dead need not be closed in order"
        pool.terminate()


async def test_an_error_while_a_connection_is_closed_is_not_hidden(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that the connection was dead before is no news when a pool closes it."""

    async def broken(self: object, *, timeout: float | None = None) -> None:
        raise KeyError("ours")

    pool = await open_pool(settings(empty_database.superuser_url), application_name="test")
    async with acquire(pool) as connection:
        monkeypatch.setattr(asyncpg.Connection, "close", broken)
        with pytest.raises(KeyError):
            await connection.close()
    pool.terminate()


async def test_a_long_statement_is_prepared_once(empty_database: Database) -> None:
    """A statement longer than any of the store's is kept prepared: planning T3 anew each time would take longer than running it."""
    pool = await open_pool(settings(empty_database.superuser_url, OUTBOX_POSTGRES_POOL_MAX="1"), application_name="test")
    long = f"select 1 /* {'x' * 100_000} */"
    async with acquire(pool) as connection:
        for _ in range(2):
            await connection.fetch(long)
        assert await connection.fetchval("select count(*) from pg_prepared_statements where statement = $1", long) == 1
    pool.terminate()


async def question(pool: postgres.Pool) -> object:
    """A use of the pool."""
    async with acquire(pool) as connection:
        return await connection.fetchval("select 1")


async def test_a_connection_closed_under_its_user_is_postgres_away(empty_database: Database) -> None:
    """An administrator ends the connection between two statements: `AWAY`, and not a mistake of the caller's."""
    pool = await open_pool(settings(empty_database.superuser_url), application_name="test")
    async with pool:
        with pytest.raises(AWAY):
            await use_after_termination(pool)


async def use_after_termination(pool: postgres.Pool) -> None:
    """Two statements on a connection that ends between them."""
    async with acquire(pool) as connection, acquire(pool) as administrator:
        await administrator.execute("select pg_terminate_backend($1)", connection.get_server_pid())
        give_up = time.monotonic() + 10
        while time.monotonic() < give_up:
            await connection.fetchval("select 1")


async def test_a_mistake_of_the_caller_is_not_postgres_away(empty_database: Database) -> None:
    """A value of the wrong type is a fault of ours: retried, it would never end."""
    pool = await open_pool(settings(empty_database.superuser_url), application_name="test")
    async with pool, acquire(pool) as connection:
        with pytest.raises(asyncpg.DataError) as mistake:
            await connection.fetchval("select $1::int", "no number")
        assert not postgres.is_away(mistake.value)


async def test_a_process_that_starts_before_postgres_waits_for_it(stoppable_postgres: StoppablePostgres) -> None:
    """Within the starting time the pool opens as soon as Postgres answers; after it, one of `AWAY`."""
    database = stoppable_postgres.server.empty_database()
    stoppable_postgres.stop()
    with pytest.raises(AWAY):
        await open_pool(
            settings(database.superuser_url, OUTBOX_POSTGRES_POOL_MIN="1", OUTBOX_POSTGRES_START_SECONDS="0.3"),
            application_name="test",
        )
    opening = asyncio.create_task(
        open_pool(settings(database.superuser_url, OUTBOX_POSTGRES_POOL_MIN="1"), application_name="test")
    )
    await asyncio.to_thread(stoppable_postgres.start)
    async with asyncio.timeout(20):
        pool = await opening
    await pool.close()


async def test_a_refusal_of_postgres_is_not_waited_out(empty_database: Database) -> None:
    """A wrong password does not get better: it is raised at once, and it is not `AWAY`."""
    url = empty_database.superuser_url + "_absent"
    with pytest.raises(asyncpg.PostgresError) as refused:
        await open_pool(settings(url, OUTBOX_POSTGRES_POOL_MIN="1"), application_name="test")
    assert not isinstance(refused.value, AWAY)


async def test_nothing_of_one_use_is_seen_by_the_next(empty_database: Database) -> None:
    """A transaction that its user left open is rolled back before the connection is given to another."""
    pool = await open_pool(settings(empty_database.superuser_url, OUTBOX_POSTGRES_POOL_MAX="1"), application_name="test")
    async with pool:
        async with acquire(pool) as connection:
            await connection.execute("create table kept (number int)")
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        async with acquire(pool) as connection:
            await connection.execute("begin; insert into kept values (1)")
        async with acquire(pool) as connection:
            assert await connection.fetchval("select count(*) from kept") == 0
        loop.set_exception_handler(None)


async def test_the_process_is_known_by_name(empty_database: Database) -> None:
    """`pg_stat_activity` tells who holds a connection."""
    pool = await postgres.open_pool(settings(empty_database.superuser_url), application_name="outbox-test")
    async with pool, acquire(pool) as connection:
        assert await connection.fetchval("show application_name") == "outbox-test"
