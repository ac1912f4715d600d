"""The migrations runner: numbered files, applied in order, one transaction each, by one runner at a time.

The advisory lock is polled for: a runner that blocks on it while another creates an index concurrently deadlocks.
"""

import asyncio
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import asyncpg

from outbox_store.connection import Connection

LOCK = 7_021_978_401
"""The advisory lock that runners share; any number will do as long as it stays the same."""

PARTITIONS_AHEAD_MONTHS = 24
"""How many monthly partitions of the ledger exist ahead of time after every run."""

ROLES = ("outbox_api", "outbox_worker")
"""One Postgres role per deployable."""

# The worker's statements find everything by key, so one plan serves all their parameters, and planning the claim anew costs
# three times what executing it does. It is a setting of the role because a pooler in front refuses it from a connection.
# The API's role keeps the default: the plans of its lists depend on which filters are given.
_ROLE_STATEMENTS = {
    "outbox_api": "create role outbox_api login;",
    "outbox_worker": "create role outbox_worker login;\nalter role outbox_worker set plan_cache_mode = force_generic_plan;",
}

RolesMode = Literal["create", "existing", "single"]
"""create: the runner makes the roles; existing: a DBA has; single: one role does everything, which weakens the guarantees."""

HISTORY = """
create table if not exists schema_migrations (
  number integer primary key,
  name text not null,
  sha256 text not null,
  applied_at timestamptz not null default now()
)
"""

_FILE = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")


class MigrationRefused(Exception):
    """The database was not migrated; the message says what to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """One numbered file."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """What is recorded, so that an edited file that was applied before is noticed."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def transactional(self) -> bool:
        """Whether the file runs in a transaction; `-- transaction: none` in its first line says no."""
        return not self.sql.startswith("-- transaction: none")


def directory() -> Path:
    """Where the migrations lie: inside the wheel, or at the root of the workspace."""
    packaged = Path(__file__).parent / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "migrations"


def known(folder: Path | None = None) -> list[Migration]:
    """The migrations of this version, in their order.

    Raises:
        MigrationRefused: two files carry one number, a number is missing, or a file is not named as a migration is.
    """
    paths = sorted((folder or directory()).glob("*.sql"))
    named = [(match, path) for path in paths if (match := _FILE.match(path.name))]
    if strange := {path.name for path in paths} - {path.name for _, path in named} - {"grants.sql"}:
        raise MigrationRefused("a migration is named like 0007_why_it_exists.sql: " + ", ".join(sorted(strange)))
    found = [Migration(number=int(match[1]), name=path.name, sql=path.read_text(encoding="utf-8")) for match, path in named]
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise MigrationRefused("migrations are numbered from 0001 on without a gap: " + ", ".join(m.name for m in found))
    return found


def grants(folder: Path | None = None) -> str:
    """The grants of every role, table by table."""
    return ((folder or directory()) / "grants.sql").read_text(encoding="utf-8")


def role_statements() -> str:
    """What a DBA runs once per cluster where the runner may not create roles; passwords are theirs to set."""
    return "".join(f"{statements}\n" for statements in _ROLE_STATEMENTS.values())


async def migrate(dsn: str, *, roles: RolesMode = "create", folder: Path | None = None, wait_seconds: float = 120.0) -> list[str]:
    """Bring the database to this version's schema.

    Args:
        dsn: of the owner of the tables, past any pooler (a session lock needs a session).
        roles: who makes the roles that the services log in with.
        folder: where the files lie; this version's own when left out.
        wait_seconds: how long to wait for another runner.

    Returns:
        The names of the files that were applied by this call.

    Raises:
        MigrationRefused: a file changed after it was applied, the database is newer than this version, another runner
            holds the lock, or a role is missing.
    """
    connection = await asyncpg.connect(dsn, server_settings={"application_name": "outbox-migrate", "lock_timeout": "10s"})
    try:
        await _take_lock(connection, wait_seconds)
        try:
            return await _apply(connection, known(folder), roles, grants(folder))
        finally:
            await connection.execute("select pg_advisory_unlock($1)", LOCK)
    finally:
        await connection.close()


async def _take_lock(connection: "asyncpg.Connection[asyncpg.Record]", wait_seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + wait_seconds
    while not await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):
        if asyncio.get_running_loop().time() > deadline:
            raise MigrationRefused(f"another runner has held the migrations lock for {wait_seconds:.0f} s")
        await asyncio.sleep(0.1)


async def _apply(
    connection: "asyncpg.Connection[asyncpg.Record]", migrations: list[Migration], roles: RolesMode, grants_sql: str
) -> list[str]:
    await connection.execute(HISTORY)
    recorded = {
        record["number"]: record for record in await connection.fetch("select number, name, sha256 from schema_migrations")
    }
    if newer := [record["name"] for number, record in recorded.items() if number > len(migrations)]:
        raise MigrationRefused(f"the database is newer than this version: it has {', '.join(newer)}")
    if missing := [migration.name for migration in migrations[: len(recorded)] if migration.number not in recorded]:
        raise MigrationRefused(f"the database's history has a gap: {', '.join(missing)} was passed over")
    for migration in migrations:
        if (record := recorded.get(migration.number)) is not None and record["sha256"] != migration.sha256:
            raise MigrationRefused(f"{migration.name} was changed after it was applied; write a new file instead")
    await _roles(connection, roles)
    applied = []
    for migration in migrations:
        if migration.number not in recorded:
            await _run(connection, migration)
            applied.append(migration.name)
    await connection.execute("select ledger_partitions_ensure($1)", PARTITIONS_AHEAD_MONTHS)
    if roles != "single":
        async with connection.transaction():
            await connection.execute(grants_sql)
    return applied


async def _run(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> None:
    record = (
        "insert into schema_migrations (number, name, sha256) values ($1, $2, $3)",
        migration.number,
        migration.name,
        migration.sha256,
    )
    if not migration.transactional:
        await connection.execute(migration.sql)
        await connection.execute(*record)
        return
    async with connection.transaction():
        await connection.execute(migration.sql)
        await connection.execute(*record)


async def _roles(connection: "asyncpg.Connection[asyncpg.Record]", roles: RolesMode) -> None:
    if roles == "single":
        return
    for role in ROLES:
        if await connection.fetchval("select 1 from pg_roles where rolname = $1", role):
            continue
        if roles == "existing":
            raise MigrationRefused(f"the role {role} does not exist; `outbox migrate --print-roles` prints what a DBA runs once")
        try:
            await connection.execute(_ROLE_STATEMENTS[role])
        except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
            continue  # Roles belong to the cluster: a runner of another database was faster.


async def schema_version(connection: Connection) -> int:
    """The number of the newest migration that was applied; 0 for an empty database."""
    if await connection.fetchval("select to_regclass('schema_migrations')") is None:
        return 0
    return int(await connection.fetchval("select coalesce(max(number), 0) from schema_migrations"))


async def set_role_password(connection: "asyncpg.Connection[asyncpg.Record]", role: str, password: str) -> None:
    """Give a service's role its password.

    Raises:
        ValueError: it is not one of `ROLES`.
    """
    if role not in ROLES:
        raise ValueError(f"{role} is not a role of a service")
    # A utility statement takes no binds, so Postgres itself quotes the literal.
    await connection.execute(
        await connection.fetchval("select format('alter role %I with password %L', $1::text, $2::text)", role, password)
    )


SCHEMA_MIN = 1
"""The oldest schema this version runs on. A newer one is fine: a schema expands first and contracts a release later."""


async def require_schema(connection: Connection) -> int:
    """Look at the schema a process is about to work on.

    Returns:
        The number of the newest migration that was applied.

    Raises:
        MigrationRefused: the schema is older than this version can work on.
    """
    version = await schema_version(connection)
    if version < SCHEMA_MIN:
        raise MigrationRefused(f"the database has schema {version}, this version needs {SCHEMA_MIN}; run `outbox migrate` first")
    return version
