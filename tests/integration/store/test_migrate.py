"""The migrations runner on empty, half-way, newer and contended databases."""

import asyncio
import itertools
import shutil
from pathlib import Path

import asyncpg
import pytest
from tests.support.postgres import Database, StoppablePostgres

from outbox_store import migrate
from outbox_store.migrate import MigrationRefused

DEADLINE_SECONDS = 20.0
NEXT = f"{len(migrate.known()) + 1:04d}"
"""The number of the file that would come after this version's."""
AFTER_NEXT = f"{len(migrate.known()) + 2:04d}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """This version's migrations, to be added to and spoilt."""
    return Path(shutil.copytree(migrate.directory(), tmp_path / "migrations"))


async def value(database: Database, query: str, *values: object) -> object:
    """The single value of a query of the owner's."""
    connection = await asyncpg.connect(database.superuser_url)
    try:
        return await connection.fetchval(query, *values)
    finally:
        await connection.close()


async def run(database: Database, folder: Path | None = None, wait_seconds: float = 120.0) -> list[str]:
    """Migrate as the owner."""
    return await migrate.migrate(database.superuser_url, folder=folder, wait_seconds=wait_seconds)


async def test_an_empty_database_gets_everything_and_a_second_run_nothing(empty_database: Database) -> None:
    """The first run applies every file and says which; the second finds nothing to do."""
    names = [migration.name for migration in migrate.known()]
    assert await value(empty_database, "select to_regclass('schema_migrations')") is None
    assert await run(empty_database) == names
    assert await run(empty_database) == []
    connection = await asyncpg.connect(empty_database.superuser_url)
    assert await migrate.schema_version(connection) == len(names)
    recorded = await connection.fetch("select name, sha256 from schema_migrations order by number")
    assert [(row["name"], row["sha256"]) for row in recorded] == [(one.name, one.sha256) for one in migrate.known()]
    await connection.close()


async def test_four_runners_at_once(empty_database: Database) -> None:
    """One of four runners applies the files; the others wait for it and find nothing to do."""
    applied = await asyncio.gather(*(run(empty_database) for _ in range(4)))
    names = [migration.name for migration in migrate.known()]
    assert sorted(applied, key=len) == [[], [], [], names]


async def test_a_runner_does_not_wait_for_ever(empty_database: Database) -> None:
    """A lock that is not given up in time is an error that says so."""
    holder = await asyncpg.connect(empty_database.superuser_url)
    await holder.execute("select pg_advisory_lock($1)", migrate.LOCK)
    with pytest.raises(MigrationRefused, match="another runner"):
        await run(empty_database, wait_seconds=0.2)
    await holder.close()
    assert await run(empty_database)


async def test_an_edited_file_is_refused(empty_database: Database, folder: Path) -> None:
    """A file that was changed after it was applied is named, and nothing is applied."""
    await run(empty_database, folder)
    first = folder / migrate.known()[0].name
    first.write_text(first.read_text() + "-- edited\n")
    (folder / f"{NEXT}_more.sql").write_text("create table more (n int);")
    with pytest.raises(MigrationRefused, match=rf"{first.name} was changed"):
        await run(empty_database, folder)
    assert await value(empty_database, "select to_regclass('more')") is None


@pytest.mark.parametrize(
    "name",
    [f"{AFTER_NEXT}_gap.sql", "0001_again.sql", f"{NEXT}-dash.sql", f"{int(NEXT)}_short.sql", f"{NEXT}_Upper.sql", "grants2.sql"],
)
async def test_files_are_numbered_without_gap_and_named_alike(empty_database: Database, folder: Path, name: str) -> None:
    """A missing number, a number twice and a file that would be passed over because of its name are refused before anything runs."""
    (folder / name).write_text("create table more (n int);")
    with pytest.raises(MigrationRefused):
        await run(empty_database, folder)
    assert await value(empty_database, "select to_regclass('reservations')") is None


async def test_a_gap_in_the_history_is_refused(empty_database: Database, folder: Path) -> None:
    """A file that was passed over is not applied behind a later one."""
    (folder / f"{NEXT}_more.sql").write_text("create table more (n int);")
    await run(empty_database, folder)
    await value(empty_database, "delete from schema_migrations where number = 1")
    with pytest.raises(MigrationRefused, match="gap"):
        await run(empty_database, folder)


async def test_a_newer_database_is_refused(empty_database: Database, folder: Path) -> None:
    """A version that knows fewer files than the database has leaves it alone and names them."""
    (folder / f"{NEXT}_from_the_future.sql").write_text("create table more (n int);")
    assert f"{NEXT}_from_the_future.sql" in await run(empty_database, folder)
    with pytest.raises(MigrationRefused, match=rf"newer than this version: it has {NEXT}_from_the_future\.sql"):
        await run(empty_database)


async def test_a_failed_file_leaves_nothing_behind(empty_database: Database, folder: Path) -> None:
    """A file that fails half-way is undone as a whole and not recorded; once mended it is applied."""
    await run(empty_database, folder)
    second = folder / f"{NEXT}_half.sql"
    second.write_text("create table half (n int); insert into half values (1); select 1 / 0;")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await run(empty_database, folder)
    assert await value(empty_database, "select to_regclass('half')") is None
    assert await value(empty_database, "select max(number) from schema_migrations") == len(migrate.known())
    assert await value(empty_database, "select count(*) from pg_locks where locktype = 'advisory'") == 0
    second.write_text("create table half (n int);")
    assert await run(empty_database, folder) == [f"{NEXT}_half.sql"]


async def test_an_index_made_concurrently_beside_a_second_runner(empty_database: Database, folder: Path) -> None:
    """A file outside a transaction makes its index while a second runner waits: neither waits for the other for ever.

    The index waits for every older snapshot. A runner that blocked on the lock would hold one; this one polls.
    """
    await run(empty_database, folder)
    (folder / f"{NEXT}_index.sql").write_text(
        "-- transaction: none\ncreate index concurrently tool_calls_model on tool_calls (model);"
    )
    writer, watcher = await asyncpg.connect(empty_database.superuser_url), await asyncpg.connect(empty_database.superuser_url)
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("lock table tool_calls in row exclusive mode")

    async def until(query: str) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not await watcher.fetchval(query):  # noqa: ASYNC110 - another process has no asyncio.Event
                await asyncio.sleep(0.01)

    first = asyncio.create_task(run(empty_database, folder))
    await until(
        "select 1 from pg_stat_activity where query like '%index concurrently%' and cardinality(pg_blocking_pids(pid)) > 0 and pid <> pg_backend_pid()"
    )
    second = asyncio.create_task(run(empty_database, folder))
    await until("select 1 from pg_stat_activity where query like 'select pg_try_advisory_lock%' and datname = current_database()")
    await transaction.commit()
    assert await asyncio.wait_for(first, DEADLINE_SECONDS) == [f"{NEXT}_index.sql"]
    assert await asyncio.wait_for(second, DEADLINE_SECONDS) == []
    assert await watcher.fetchval("select indisvalid from pg_index where indexrelid = 'tool_calls_model'::regclass")
    for connection in (writer, watcher):
        await connection.close()


BOUNDS = """
select substring(pg_get_expr(c.relpartbound, c.oid) from 'FROM \\(''([^'']*)''\\)')::timestamptz as from_,
  substring(pg_get_expr(c.relpartbound, c.oid) from 'TO \\(''([^'']*)''\\)')::timestamptz as to_
from pg_class c join pg_inherits i on i.inhrelid = c.oid where i.inhparent = 'ledger_entries'::regclass order by 1
"""


@pytest.mark.parametrize(
    "zones", [("UTC",), ("America/New_York", "Pacific/Kiritimati"), ("Pacific/Kiritimati", "America/New_York")], ids="-".join
)
async def test_partitions_of_the_ledger_exist_ahead(empty_database: Database, zones: tuple[str, ...]) -> None:
    """Every run leaves two years of monthly partitions, months of UTC without gap or overlap, whatever zone the runner lives in."""
    for zone in zones:
        await migrate.migrate(f"{empty_database.superuser_url}?timezone={zone}")
        # A year on, a later run adds months behind those that an earlier one made.
        connection = await asyncpg.connect(f"{empty_database.superuser_url}?timezone={zone}")
        await connection.execute(
            "select ledger_partitions_ensure($1)", migrate.PARTITIONS_AHEAD_MONTHS + 12 * (1 + zones.index(zone))
        )
        await connection.close()
    connection = await asyncpg.connect(empty_database.superuser_url)
    await connection.execute("set timezone = 'UTC'")
    bounds = await connection.fetch(BOUNDS)
    assert len(bounds) == migrate.PARTITIONS_AHEAD_MONTHS + 12 * len(zones) + 1
    assert bounds[0]["from_"] == await connection.fetchval("select date_trunc('month', now())")
    for before, after in itertools.pairwise(bounds):
        assert before["to_"] == after["from_"]
        assert (after["from_"].day, after["from_"].hour) == (1, 0)
    await connection.close()


async def test_an_existing_role_is_asked_for_before_anything_is_applied(stoppable_postgres: StoppablePostgres) -> None:
    """Mode `existing` refuses a cluster without the roles and says what prints them; with them it grants; `single` needs none."""
    server = stoppable_postgres.server
    database, alone = server.empty_database(), server.empty_database()
    with pytest.raises(MigrationRefused, match="--print-roles"):
        await migrate.migrate(database.superuser_url, roles="existing")
    assert await value(database, "select to_regclass('reservations')") is None
    assert await migrate.migrate(alone.superuser_url, roles="single")
    assert await value(alone, "select count(*) from pg_roles where rolname like 'outbox%'") == 0
    connection = await asyncpg.connect(database.superuser_url)
    await connection.execute(migrate.role_statements())
    assert await migrate.migrate(database.superuser_url, roles="existing")
    for role, table, privilege, allowed in (
        ("outbox_api", "reservations", "INSERT", True),
        ("outbox_worker", "reservations", "INSERT", False),
        ("outbox_worker", "provider_credentials", "SELECT", True),
        ("outbox_api", "provider_credentials", "SELECT", False),
    ):
        assert await connection.fetchval("select has_table_privilege($1, $2, $3)", role, table, privilege) is allowed
    await migrate.set_role_password(connection, "outbox_api", 'it\'s "quoted" \\ $$')
    with pytest.raises(ValueError, match="postgres"):
        await migrate.set_role_password(connection, "postgres", "x")
    await connection.close()


async def test_roles_are_made_once_by_runners_of_several_databases(stoppable_postgres: StoppablePostgres) -> None:
    """Mode `create` makes the roles; runners of other databases of the cluster at the same moment do not mind."""
    databases = [stoppable_postgres.server.empty_database() for _ in range(3)]
    await asyncio.gather(*(migrate.migrate(database.superuser_url, roles="create") for database in databases))
    for database in databases:
        for role in migrate.ROLES:
            assert await value(database, "select has_table_privilege($1, 'reservations', 'SELECT')", role) is True


async def test_the_worker_plans_its_statements_once(stoppable_postgres: StoppablePostgres) -> None:
    """Made by the runner or by what it prints for a DBA: the worker's role reuses plans, the API's role plans its lists anew."""
    settings = "select array_agg(rolname || ':' || coalesce(rolconfig[1], '') order by rolname) from pg_roles where rolname like 'outbox%'"
    wanted = ["outbox_api:", "outbox_worker:plan_cache_mode=force_generic_plan"]
    database = stoppable_postgres.server.empty_database()
    connection = await asyncpg.connect(database.superuser_url)
    await connection.execute(migrate.role_statements())
    assert await connection.fetchval(settings) == wanted
    for role in migrate.ROLES:
        await connection.execute(f"drop role {role}")
    await migrate.migrate(database.superuser_url, roles="create")
    assert await connection.fetchval(settings) == wanted
    await connection.close()


async def test_a_grant_that_is_gone_from_the_file_is_revoked(empty_database: Database, folder: Path) -> None:
    """The file of grants is the whole truth: what it no longer says, a run takes back, columns included."""
    await run(empty_database, folder)
    await value(empty_database, "grant delete on reservations to outbox_worker")
    await value(empty_database, "grant update (key_id) on reservations to outbox_api")
    await run(empty_database, folder)
    assert await value(empty_database, "select has_table_privilege('outbox_worker', 'reservations', 'DELETE')") is False
    assert await value(empty_database, "select has_column_privilege('outbox_api', 'reservations', 'key_id', 'UPDATE')") is False
