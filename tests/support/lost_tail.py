"""Losing the ledger's tail as installations do: a base backup restored, with and without a new timeline, and a standby promoted."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from tests.support.postgres import Database, StoppablePostgres, run_apart
from tests.support.processes import wait_until

from outbox_standalone.embedded_postgres import EmbeddedPostgres, PostgresBinaries


def base_backup(of: EmbeddedPostgres, target: Path, *options: str) -> None:
    """A base backup of a running server, with the WAL that makes it whole, as `pg_basebackup` takes it."""
    password = of.url().partition(":")[2].partition("@")[0].rpartition(":")[2]
    command = [
        str(of.binaries.program("pg_basebackup")),
        f"--pgdata={target}",
        "--wal-method=stream",
        "--checkpoint=fast",
        "--no-sync",
        "--host=127.0.0.1",
        f"--port={of.port}",
        "--username=postgres",
        *options,
    ]
    environment = {"PGPASSWORD": password, "PATH": os.defpath, "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def put_in_place(backup: Path, data: Path, *, like: Path) -> None:
    """Copy a backup to where a server's data are, owned and closed as those of `like` are."""
    shutil.copytree(backup, data, symlinks=True)
    owner = like.stat()
    for place in [data, *data.rglob("*")]:
        os.chown(place, owner.st_uid, owner.st_gid, follow_symlinks=False)
    data.chmod(0o700)


def restore(postgres: StoppablePostgres, backup: Path, *, new_timeline: bool) -> None:
    """Put a backup in the place of a stopped server's data and start it.

    Args:
        postgres: stopped.
        backup: made by `base_backup`.
        new_timeline: recover as to a point in time, which begins a new timeline; else as a copied folder, which keeps it.
    """
    data = postgres.embedded.data
    lost = data.with_name(f"data.lost-{secrets.token_hex(4)}")
    data.rename(lost)
    put_in_place(backup, data, like=lost)
    if new_timeline:
        with (data / "postgresql.auto.conf").open("a") as file:
            file.write("restore_command = 'false'\n")
        (data / "recovery.signal").touch()
        os.chown(data / "recovery.signal", lost.stat().st_uid, lost.stat().st_gid)
    postgres.start()
    # While it recovers it accepts connections that may only read.
    wait_until(lambda: run_apart(_is_primary(postgres.embedded.url())), deadline_seconds=60, what="the end of recovery")


async def _is_primary(url: str) -> bool:
    connection = await asyncpg.connect(url)
    try:
        return not await connection.fetchval("select pg_is_in_recovery()")
    finally:
        await connection.close()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A primary and its asynchronous standby."""

    primary: StoppablePostgres
    standby: EmbeddedPostgres

    def both(self, database: Database) -> Database:
        """The addresses of a database on whichever of the two is the primary, as a client with two hosts finds it."""

        def address(url: str) -> str:
            one, other = f"127.0.0.1:{self.primary.embedded.port}", f"127.0.0.1:{self.standby.port}"
            return url.replace(one, f"{one},{other}") + "?target_session_attrs=read-write"

        return Database(
            name=database.name,
            superuser_url=address(database.superuser_url),
            api_url=address(database.api_url),
            worker_url=address(database.worker_url),
        )

    async def until_equal(self) -> None:
        """Wait until the standby has replayed everything that the primary has committed."""
        primary = await asyncpg.connect(self.primary.embedded.url())
        standby = await asyncpg.connect(self.standby.url())
        try:
            end = await primary.fetchval("select pg_current_wal_lsn()::text")
            for _ in range(3_000):
                if await standby.fetchval("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", end):
                    return
                await standby.execute("select pg_sleep(0.01)")
        finally:
            await primary.close()
            await standby.close()
        raise TimeoutError("the standby does not follow")

    async def cut(self) -> None:
        """Let the standby receive nothing any more; the primary does not notice, because it is asynchronous."""
        connection = await asyncpg.connect(self.standby.url())
        try:
            await connection.execute("alter system set primary_conninfo = ''")
            await connection.execute("select pg_reload_conf()")
            for _ in range(3_000):
                if not await connection.fetchval("select count(*) from pg_stat_wal_receiver"):
                    return
                await connection.execute("select pg_sleep(0.01)")
        finally:
            await connection.close()
        raise TimeoutError("the standby still receives")

    async def promote(self) -> None:
        """Make the standby the primary, with what it has."""
        connection = await asyncpg.connect(self.standby.url())
        try:
            assert await connection.fetchval("select pg_promote(true, 60)")
        finally:
            await connection.close()


@contextmanager
def pair(primary: StoppablePostgres, binaries: PostgresBinaries, folder: Path) -> Iterator[Pair]:
    """A standby of a running primary, which follows it over a connection."""
    backup, home = folder / "standby-backup", folder / "standby"
    base_backup(primary.embedded, backup)
    home.mkdir(mode=0o700)
    put_in_place(backup, home / "data", like=primary.embedded.data)
    url = primary.embedded.url()
    password = url.partition("//")[2].partition("@")[0].partition(":")[2]
    info = f"host=127.0.0.1 port={primary.embedded.port} user=postgres password={password} application_name=standby"
    with (home / "data" / "postgresql.auto.conf").open("a") as file:
        file.write(f"primary_conninfo = '{info}'\n")
    (home / "data" / "standby.signal").touch()
    owner = primary.embedded.data.stat()
    os.chown(home / "data" / "standby.signal", owner.st_uid, owner.st_gid)
    standby = EmbeddedPostgres(
        home, binaries=binaries, password=password, log=folder / "standby.log", settings={"max_connections": "300"}
    )
    standby.prepare()
    try:
        standby.start_and_wait()
        yield Pair(primary=primary, standby=standby)
    finally:
        standby.stop()
