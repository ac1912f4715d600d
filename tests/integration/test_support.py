"""The servers that tests run on behave as the tests assume."""

import signal
from pathlib import Path

import asyncpg
from tests.support.postgres import Database, PostgresServer, StoppablePostgres
from tests.support.processes import start_command
from tests.support.redis import StoppableRedis


async def test_every_test_has_a_migrated_database_of_its_own(database: Database, postgres_server: PostgresServer) -> None:
    """The fixture's database has the schema, and each service role can connect to it under its own name."""
    for url, role in ((database.api_url, "outbox_api"), (database.worker_url, "outbox_worker")):
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("select current_user") == role
        assert await connection.fetchval("select to_regclass('reservations')") is not None
        await connection.close()
    other = postgres_server.migrated_database()
    assert other.name != database.name
    postgres_server.drop(other)


async def test_committed_rows_survive_kill(stoppable_postgres: StoppablePostgres) -> None:
    """After SIGKILL of the postmaster the server starts again on the same port with every committed row."""
    url = stoppable_postgres.server.url
    connection = await asyncpg.connect(url)
    await connection.execute("create table fact (n int)")
    await connection.execute("insert into fact select generate_series(1, 200)")
    assert stoppable_postgres.embedded.process is not None
    stoppable_postgres.embedded.process.send_signal(signal.SIGKILL)
    stoppable_postgres.embedded.process.wait(10)
    stoppable_postgres.start()
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("select count(*) from fact") == 200
    await connection.close()
    stoppable_postgres.stop_immediately()
    stoppable_postgres.start()


def test_redis_starts_again_on_its_port(stoppable_redis: StoppableRedis) -> None:
    """A killed Redis comes back empty under the same address."""
    before = stoppable_redis.url
    stoppable_redis.kill()
    stoppable_redis.start()
    assert stoppable_redis.url == before
    assert stoppable_redis.embedded.is_ready()


def test_the_log_of_a_process_is_its_own(tmp_path: Path) -> None:
    """A process is not taken to have said what an earlier one of its name has written to the same file."""
    first = start_command(["echo", "stopping"], folder=tmp_path, name="worker-1")
    first.wait()
    assert first.log() == "stopping\n"
    second = start_command(["echo", "ready"], folder=tmp_path, name="worker-1")
    second.wait()
    assert second.log() == "ready\n"
    assert second.log_path.read_text() == "stopping\nready\n"
