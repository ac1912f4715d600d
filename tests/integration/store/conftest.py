"""What the tests of the store may ask for."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from tests.integration.store.races import Store
from tests.support.postgres import Database, PostgresServer


@pytest.fixture(scope="module")
def shared_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A migrated database for the tests of one module; each has an organization of its own in it."""
    made = postgres_server.migrated_database()
    yield made
    postgres_server.drop(made)


@pytest_asyncio.fixture
async def store(shared_database: Database) -> AsyncIterator[Store]:
    """A store of this test's organization; the invariants are asked after the test."""
    opened = await Store.open(shared_database)
    try:
        yield opened
    finally:
        await opened.close()
    await opened.assert_invariants()


@pytest_asyncio.fixture
async def stray_store(shared_database: Database) -> AsyncIterator[Store]:
    """A store of this test's organization whose rows may break invariants; for modules that ask for none after their tests."""
    opened = await Store.open(shared_database)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def own_store(database: Database) -> AsyncIterator[Store]:
    """A store in a database that this test may break."""
    opened = await Store.open(database)
    yield opened
    await opened.close()
