"""The embedded Postgres starts wherever it is put, and after whatever ended it."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from outbox_standalone import child
from outbox_standalone.embedded_postgres import (
    EmbeddedPostgres,
    PostgresBinaries,
    PostgresUnusableError,
    binaries_in,
    shipped_binaries,
)

Make = Callable[..., EmbeddedPostgres]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become another user to run Postgres")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes servers on one folder and stops them after the test."""
    made: list[EmbeddedPostgres] = []

    def make_one(folder: Path = tmp_path / "postgres", binaries: PostgresBinaries | None = None) -> EmbeddedPostgres:
        server = EmbeddedPostgres(
            folder, binaries=binaries or shipped_binaries(), password="secret", log=tmp_path / "postgres.log"
        )
        made.append(server)
        return server

    yield make_one
    for server in made:
        server.stop()


async def ask(server: EmbeddedPostgres, question: str) -> object:
    """One value from the server."""
    connection = await asyncpg.connect(server.url())
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


async def test_wants_a_password_on_tcp_and_socket(make: Make) -> None:
    """Without the password nobody gets in, neither over 127.0.0.1 nor over the unix socket; with it both work."""
    server = make()
    server.prepare()
    server.start_and_wait()
    hosts = ["127.0.0.1"] + ([str(server.socket_folder)] if server.socket_folder is not None else [])
    for host in hosts:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(host=host, port=server.port, user="postgres", password="wrong", database="postgres")
        connection = await asyncpg.connect(host=host, port=server.port, user="postgres", password="secret", database="postgres")
        assert await connection.fetchval("select setting from pg_settings where name = 'password_encryption'") == "scram-sha-256"
        await connection.close()


@as_root
async def test_needs_no_permission_on_the_folders_above(make: Make, tmp_path: Path) -> None:
    """Under root the data may lie below a folder that only root can enter; no folder's mode is changed for it."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    server = make(private / "data" / "postgres")
    server.prepare()
    server.start_and_wait()
    assert await ask(server, "select 1") == 1
    assert private.stat().st_mode & 0o777 == 0o700
    assert os.stat(f"/proc/{server.process_id}").st_uid != 0


@as_root
async def test_stages_programs_out_of_a_private_folder(make: Make, tmp_path: Path) -> None:
    """Programs that the unprivileged user cannot reach are copied once to a readable place that only root can write."""
    private = tmp_path / "home"
    private.mkdir(mode=0o700)
    origin = shipped_binaries().folder.parent
    shutil.copytree(origin, private / origin.name, ignore=shutil.ignore_patterns("pginstall", "include"))
    bundled = origin.with_name(origin.name + ".libs")
    if bundled.exists():
        shutil.copytree(bundled, private / bundled.name)
    unreachable = binaries_in(private / origin.name / "pginstall18")
    server = make(binaries=unreachable)
    server.prepare()
    server.start_and_wait()
    assert await ask(server, "select 1") == 1
    staged = server.binaries.folder
    assert not staged.is_relative_to(private)
    assert staged.stat().st_uid == 0
    assert not staged.stat().st_mode & 0o022
    assert private.stat().st_mode & 0o777 == 0o700


async def test_takes_over_from_a_server_that_was_left_running(make: Make) -> None:
    """A server left behind on the folder is stopped before the next one starts; nothing committed is lost."""
    left = make()
    left.prepare()
    left.start_and_wait()
    await ask(left, "create table fact as select 7 as n")
    server = make()
    server.prepare()
    server.start_and_wait()
    assert not child.is_alive(left.process_id)
    assert await ask(server, "select n from fact") == 7


async def test_believes_no_stale_lock_file(make: Make) -> None:
    """After SIGKILL the lock file's process id may belong to any other program by now; the server starts all the same."""
    server = make()
    server.prepare()
    server.start_and_wait()
    os.kill(server.process_id, signal.SIGKILL)
    assert server.process is not None
    server.process.wait()
    lock_file = server.data / "postmaster.pid"
    lines = lock_file.read_text().splitlines()
    # Whoever started the tests: it is alive, and no Postgres.
    lock_file.write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    server.start_and_wait()
    assert await ask(server, "select 1") == 1


def test_a_start_killed_while_the_data_were_made_leaves_nothing(make: Make, tmp_path: Path) -> None:
    """Half-made data are made again from the beginning, and the file that held the password is gone."""
    unfinished = tmp_path / "postgres" / "data.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    server = make()
    server.prepare()
    server.start_and_wait()
    assert sorted(path.name for path in (tmp_path / "postgres").iterdir()) == ["data", "socket"]


def test_refuses_data_of_another_version(make: Make) -> None:
    """Data of another major version are refused with a sentence that names both."""
    server = make()
    server.prepare()
    (server.data / "PG_VERSION").write_text("15\n")
    with pytest.raises(PostgresUnusableError, match="made by Postgres 15, and this is Postgres 18"):
        make().prepare()


async def test_a_taken_port_is_exchanged(make: Make) -> None:
    """A port that somebody took between the choice and the start is exchanged for another."""
    first = make()
    first.prepare()
    first.start_and_wait()
    second = make(first.data.parent.with_name("second"))
    second.port = first.port
    second.prepare()
    second.start_and_wait()
    assert second.port != first.port
    assert await ask(second, "select 1") == 1
