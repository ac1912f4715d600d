"""One API process for the session, an organization of its own for each test, and clients with its keys."""

from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from tests.support import processes
from tests.support.api import RunningApi, Scene, make_scene, start_api
from tests.support.postgres import Database, PostgresServer

from outbox_runtime.sealing import WrappingKey


@pytest.fixture(scope="session")
def wrapping_key() -> WrappingKey:
    """Wraps the keys of every organization of the session."""
    return WrappingKey.generate()


@pytest.fixture(scope="session")
def shared_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A migrated database that tests of the API share; each works in an organization of its own."""
    made = postgres_server.migrated_database()
    yield made
    postgres_server.drop(made)


@pytest.fixture(scope="session")
def api(shared_database: Database, wrapping_key: WrappingKey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """An API process, without Redis."""
    running = start_api(processes.start, shared_database, wrapping_key, tmp_path_factory.mktemp("api"))
    yield running
    running.process.end()


@pytest.fixture
async def scene(shared_database: Database, wrapping_key: WrappingKey) -> Scene:
    """An organization of this test's own."""
    return await make_scene(shared_database, wrapping_key)


@pytest.fixture
async def agent(api: RunningApi, scene: Scene) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with the agent's key."""
    async with api.client(scene.agent_key) as client:
        yield client


@pytest.fixture
async def admin(api: RunningApi, scene: Scene) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with the admin's key."""
    async with api.client(scene.admin_key) as client:
        yield client
