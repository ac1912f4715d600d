"""One organization and one API process per test that asks for them."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest
from tests.support.api import RunningApi, Scene, make_scene, start_api
from tests.support.postgres import Database
from tests.support.processes import ChildProcess


@pytest.fixture
async def scene(database: Database) -> Scene:
    """An organization in this test's database."""
    return await make_scene(database)


@pytest.fixture
async def api(scene: Scene, start_module: Callable[..., ChildProcess], tmp_path: Path) -> RunningApi:
    """An API process that serves it."""
    return start_api(start_module, scene, tmp_path)


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
