"""The pytest plugin: `outbox_server` for the session, `outbox_environment` for a test. Nothing is started before a test asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agent_outbox.testing.environment import Environment
    from agent_outbox.testing.local_server import Server


@pytest.fixture(scope="session")
def outbox_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of this session: the one that OUTBOX_TEST_URL names, else an `outbox up` that ends with the session."""
    from agent_outbox.testing.local_server import named, started

    server = named(os.environ)
    if server is not None:
        yield server
        return
    with started(tmp_path_factory.mktemp("outbox")) as own:
        yield own


@pytest.fixture
def outbox_environment(outbox_server: Server, tmp_path: Path) -> Environment:
    """A fresh environment of this test: a project and a key of its own, in which nothing has happened."""
    from agent_outbox.testing.fresh import fresh_environment

    return fresh_environment(outbox_server, tmp_path)
