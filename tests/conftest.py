"""What every test may ask for: a Postgres with a database of its own, a Redis, and child processes that end with the test."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tests.support import held, postgres, processes, redis

# How long an example takes says something of the machine, not of the product; in CI every run tries the same examples.
settings.register_profile("suite", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("suite")

POSTGRES = pytest.StashKey[postgres.Choice]()
REDIS = pytest.StashKey[redis.Choice]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of this suite."""
    held.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the servers once; a forced one that is not to be had stops the session here."""
    held.register(config)
    try:
        config.stash[POSTGRES] = postgres.choose()
        config.stash[REDIS] = redis.choose()
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Says on which servers the session runs."""
    return [str(config.stash[POSTGRES]), str(config.stash[REDIS])]


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[postgres.PostgresServer]:
    """The session's Postgres, running."""
    with postgres.running(pytestconfig.stash[POSTGRES], tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def database(postgres_server: postgres.PostgresServer) -> Iterator[postgres.Database]:
    """A migrated database of this test's own, cloned from the session's template."""
    made = postgres_server.migrated_database()
    yield made
    postgres_server.drop(made)


@pytest.fixture
def empty_database(postgres_server: postgres.PostgresServer) -> Iterator[postgres.Database]:
    """A database of this test's own without any table."""
    made = postgres_server.empty_database()
    yield made
    postgres_server.drop(made)


@pytest.fixture
def stoppable_postgres(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[postgres.StoppablePostgres]:
    """A Postgres server of this test's own, to be stopped and killed; skipped where the session's was not started from programs."""
    binaries = pytestconfig.stash[POSTGRES].binaries
    if binaries is None:
        pytest.skip(f"needs a server it may stop; this session uses {pytestconfig.stash[POSTGRES]}")
    with postgres.StoppablePostgres(tmp_path, binaries) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """The address of the session's Redis, or None where there is none."""
    with redis.running(pytestconfig.stash[REDIS], tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str | None) -> str:
    """The address of the session's Redis; the test is skipped where there is none. Names in it are shared by all tests."""
    if redis_server is None:
        pytest.skip("there is no Redis on this machine")
    return redis_server


@pytest.fixture
def stoppable_redis(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[redis.StoppableRedis]:
    """A Redis of this test's own, to be killed and flushed; skipped where the session's was not started from a program."""
    binary = pytestconfig.stash[REDIS].binary
    if binary is None:
        pytest.skip(f"needs a Redis it may kill; this session uses {pytestconfig.stash[REDIS]}")
    with redis.StoppableRedis(tmp_path, binary) as server:
        yield server


@pytest.fixture
def start_module(tmp_path: Path) -> Iterator[Callable[..., processes.ChildProcess]]:
    """`tests.support.processes.start` with this test's folder; what it started is ended after the test."""
    with contextlib.ExitStack() as stack:

        def start(module: str, *arguments: str, **options: Any) -> processes.ChildProcess:
            started = processes.start(module, *arguments, folder=options.pop("folder", tmp_path), **options)
            stack.callback(started.end)
            return started

        yield start
