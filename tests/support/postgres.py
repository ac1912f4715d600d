"""The Postgres that the tests run on: chosen once per session, a fresh migrated database for every test that asks.

Order: the URL in `OUTBOX_TEST_POSTGRES_URL`, a container when an engine answers, the embedded server. The variable
`OUTBOX_TEST_POSTGRES` (env, testcontainers, embedded, debian) forces one of them and fails rather than falls through.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import signal
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from outbox_standalone.embedded_postgres import EmbeddedPostgres, PostgresBinaries, binaries_in, shipped_binaries
from outbox_store import migrate

DEBIAN_FOLDER = Path("/usr/lib/postgresql/15")
CONTAINER_IMAGE = "postgres:18"
SOURCES = ("env", "testcontainers", "embedded", "debian")
SERVICE_ROLES = ("outbox_api", "outbox_worker")
# A test kills processes and never the machine, so nothing that was written is lost without being forced to the disk.
_TEST_SETTINGS = {"max_connections": "300", "fsync": "off", "full_page_writes": "off"}

T = TypeVar("T")


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end on an event loop of its own, in a thread of its own.

    Fixtures that are not async use it; it works whether or not the test's own loop is running.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which Postgres this session uses.

    Attributes:
        source: one of `SOURCES`.
        version: the server's version, as far as it is known before it runs.
        binaries: the programs, for a server that the tests start themselves.
        url: the superuser's address, for a server that runs already.
    """

    source: str
    version: str
    binaries: PostgresBinaries | None = None
    url: str | None = None

    def __str__(self) -> str:
        """The text of the pytest header."""
        where = f", {self.binaries.folder}" if self.binaries is not None else ""
        return f"Postgres {self.version} ({self.source}{where})"


def choose() -> Choice:
    """Decides once which Postgres is used.

    Raises:
        RuntimeError: the forced one is not to be had.
    """
    forced = os.environ.get("OUTBOX_TEST_POSTGRES")
    if forced is not None and forced not in SOURCES:
        raise RuntimeError(f"OUTBOX_TEST_POSTGRES is one of {', '.join(SOURCES)}, not {forced!r}.")
    url = os.environ.get("OUTBOX_TEST_POSTGRES_URL")
    if forced == "env" or (forced is None and url):
        if not url:
            raise RuntimeError("OUTBOX_TEST_POSTGRES=env needs OUTBOX_TEST_POSTGRES_URL, the address of a superuser.")
        return Choice(source="env", version=run_apart(_version_at(url)), url=url)
    if forced in (None, "testcontainers"):
        missing = container_image_missing(CONTAINER_IMAGE)
        if missing is None:
            return Choice(source="testcontainers", version=CONTAINER_IMAGE)
        if forced is not None:
            raise RuntimeError(f"OUTBOX_TEST_POSTGRES=testcontainers: {missing}")
    if forced == "debian":
        binaries = binaries_in(DEBIAN_FOLDER)
        return Choice(source="debian", version=binaries.version, binaries=binaries)
    binaries = shipped_binaries()
    return Choice(source="embedded", version=binaries.version, binaries=binaries)


def container_image_missing(image: str) -> str | None:
    """Why no container of that image can be had: no engine answers, or it has no such image and cannot pull it; None: it can."""
    import docker  # type: ignore[import-untyped]
    from docker.errors import APIError, DockerException, ImageNotFound  # type: ignore[import-untyped]

    try:
        client = docker.from_env(timeout=60)
    except DockerException as error:
        return f"no container engine answers ({error})."
    with contextlib.closing(client):
        try:
            try:
                client.images.get(image)
            except ImageNotFound:
                client.images.pull(image)
        except (APIError, DockerException) as error:
            return f"the engine has no image {image} and cannot pull it ({error})."
    return None


async def _version_at(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("show server_version")).split()[0]
    finally:
        await connection.close()


def with_database(url: str, database: str, *, user: str | None = None, password: str | None = None) -> str:
    """The same server's address for another database and, if named, another role."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    who = f"{user}:{password}" if user is not None else parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{who}@{place}", path=f"/{database}"))


@dataclass(frozen=True, kw_only=True)
class Database:
    """One database of its own, with the addresses of the three who connect to it.

    Attributes:
        name: its name on the server.
        superuser_url: for migrations, for setting a scene and for looking.
        api_url: as the API connects (role outbox_api).
        worker_url: as the worker connects (role outbox_worker).
    """

    name: str
    superuser_url: str
    api_url: str
    worker_url: str


class PostgresServer:
    """A running server with a migrated template database, from which databases are cloned.

    Attributes:
        url: the superuser's address of the database `postgres`.
        version: the server's version.
        binaries: client programs (`pg_dump`) of the same version, None for a server that was not started from programs.
    """

    def __init__(self, url: str, *, version: str, binaries: PostgresBinaries | None) -> None:
        """Names a server that runs; `prepare` makes the template."""
        self.url = url
        self.version = version
        self.binaries = binaries
        self._template: str | None = None
        # Roles belong to the whole server: sessions that share one must agree on the passwords.
        self._password = hashlib.sha256(f"tests of {url}".encode()).hexdigest()

    def empty_database(self) -> Database:
        """A new database without any table; the service roles exist only if a migration has made them."""
        return run_apart(self._create(None))

    def migrated_database(self) -> Database:
        """A new database with the whole schema."""
        if self._template is None:
            self._template = run_apart(self._make_template())
        return run_apart(self._create(self._template))

    def drop(self, database: Database) -> None:
        """Removes a database, whoever is still connected to it."""
        run_apart(self._execute(f'drop database if exists "{database.name}" with (force)'))

    def close(self) -> None:
        """Removes the template, so that nothing is left on a server that outlives the session."""
        if self._template is not None:
            run_apart(self._execute(f'drop database if exists "{self._template}" with (force)'))
            self._template = None

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def _make_template(self) -> str:
        name = f"outbox_template_{secrets.token_hex(6)}"
        await self._execute(f'create database "{name}"')
        await migrate.migrate(with_database(self.url, name))
        connection = await asyncpg.connect(self.url)
        try:
            async with connection.transaction():
                # Two sessions that set the same password at once would meet in "tuple concurrently updated".
                await connection.execute("select pg_advisory_xact_lock(7021978501)")
                for role in SERVICE_ROLES:
                    await migrate.set_role_password(connection, role, self._password)
        finally:
            await connection.close()
        return name

    async def _create(self, template: str | None) -> Database:
        name = f"outbox_test_{secrets.token_hex(6)}"
        await self._execute(f'create database "{name}"' + (f' template "{template}" strategy file_copy' if template else ""))
        api, worker = (with_database(self.url, name, user=role, password=self._password) for role in SERVICE_ROLES)
        return Database(name=name, superuser_url=with_database(self.url, name), api_url=api, worker_url=worker)


@contextlib.contextmanager
def running(choice: Choice, folder: Path) -> Iterator[PostgresServer]:
    """The chosen server, started if need be and stopped afterwards.

    Args:
        choice: what `choose` decided.
        folder: where a server that is started keeps data and log.
    """
    with contextlib.ExitStack() as stack:
        if choice.url is not None:
            url = choice.url
        elif choice.binaries is None:
            from testcontainers.community.postgres import PostgresContainer

            container = stack.enter_context(PostgresContainer(CONTAINER_IMAGE, driver=None))
            url = container.get_connection_url()
        else:
            embedded = stack.enter_context(StoppablePostgres(folder, choice.binaries))
            url = embedded.server.url
        server = PostgresServer(url, version=choice.version, binaries=choice.binaries)
        stack.callback(server.close)
        yield server


class StoppablePostgres:
    """A server of one test's own, which the test may stop, kill and start again on the same port.

    Attributes:
        embedded: the server's process and programs.
        server: for making databases on it.
    """

    def __init__(self, folder: Path, binaries: PostgresBinaries) -> None:
        """Names the server; entering the context starts it."""
        self.embedded = EmbeddedPostgres(
            folder / "postgres",
            binaries=binaries,
            password=secrets.token_hex(16),
            log=folder / "postgres.log",
            settings=_TEST_SETTINGS,
        )

    def __enter__(self) -> "StoppablePostgres":
        """Makes the data, starts the server and waits until it accepts connections."""
        self.embedded.prepare()
        self.embedded.start_and_wait()
        self.server = PostgresServer(self.embedded.url(), version=self.embedded.binaries.version, binaries=self.embedded.binaries)
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the server; data stay in the folder, which the test session removes."""
        self.embedded.stop()

    @property
    def process_id(self) -> int:
        """The postmaster's process id."""
        return self.embedded.process_id

    def stop_immediately(self) -> None:
        """Immediate mode: no checkpoint, open transactions are lost, recovery runs at the next start."""
        assert self.embedded.process is not None
        self.embedded.process.send_signal(signal.SIGQUIT)
        self.embedded.process.wait(10)

    def stop(self) -> None:
        """Fast stop: open transactions are rolled back, everything is written."""
        self.embedded.stop()

    def start(self) -> None:
        """Starts it again on the same port and waits until it accepts connections."""
        self.embedded.start_and_wait()
