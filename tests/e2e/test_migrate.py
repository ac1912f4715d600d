"""`outbox migrate` as a user runs it, on an empty database of a real server."""

import sys
from pathlib import Path

import asyncpg
from tests.support.postgres import Database
from tests.support.processes import start_command

from outbox_store import migrate

OUTBOX = str(Path(sys.executable).with_name("outbox"))


def run_migrate(folder: Path, *options: str, url: str | None = None) -> tuple[int, str]:
    """The exit code and the output of one `outbox migrate`."""
    env = {} if url is None else {"OUTBOX_POSTGRES_URL": url}
    process = start_command([OUTBOX, "migrate", *options], env=env, folder=folder, name="migrate")
    code = process.wait(deadline_seconds=60)
    output = process.log()
    process.log_path.unlink()
    return code, output


async def test_applies_once(empty_database: Database, tmp_path: Path) -> None:
    """The first run applies every file, the second finds nothing to do."""
    code, output = run_migrate(tmp_path, url=empty_database.superuser_url)
    assert code == 0, output
    assert "applied 0001_" in output
    code, output = run_migrate(tmp_path, url=empty_database.superuser_url)
    assert code == 0
    assert output.startswith(f"0 applied, {len(migrate.known())} were there already.")
    connection = await asyncpg.connect(empty_database.superuser_url)
    assert await migrate.schema_version(connection) == len(migrate.known())
    await connection.close()


def test_prints_what_a_dba_runs(tmp_path: Path) -> None:
    """`--print-roles` prints SQL that names every role, and needs no database."""
    code, output = run_migrate(tmp_path, "--print-roles")
    assert code == 0
    assert output == migrate.role_statements()
    assert all(f"create role {role}" in output for role in migrate.ROLES)


async def test_single_role_warns(empty_database: Database, tmp_path: Path) -> None:
    """With `--roles single` the schema is made, nothing is granted, and a warning says what that costs."""
    code, output = run_migrate(tmp_path, "--roles", "single", url=empty_database.superuser_url)
    assert code == 0
    assert "Warning: all services share one Postgres role" in output
    connection = await asyncpg.connect(empty_database.superuser_url)
    grants = "select count(*) from information_schema.role_table_grants where grantee = any($1) and table_schema = 'public'"
    assert await connection.fetchval(grants, list(migrate.ROLES)) == 0
    await connection.close()


def test_wrong_settings_end_with_a_sentence(tmp_path: Path) -> None:
    """No address, or one where nothing answers, ends with code 1 and one sentence, never with a traceback."""
    code, output = run_migrate(tmp_path)
    assert (code, output) == (1, "Error: OUTBOX_POSTGRES_URL (or OUTBOX_POSTGRES_URL_FILE) is not set.\n")
    code, output = run_migrate(tmp_path, url="postgresql://nobody:x@127.0.0.1:1/none")
    assert code == 1
    assert output.startswith("Error: Nothing was migrated; Postgres says:")
