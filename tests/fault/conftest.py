"""The stacks that are attacked: `outbox up` with two workers and two API processes, with the embedded Redis and without any."""

from collections.abc import Iterator

import pytest
from tests.support.outbox_up import OutboxUp, running


@pytest.fixture(scope="session", params=["redis", "no-redis"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutboxUp]:
    """One `outbox up` for the tests of this folder that use embedded servers; every test uses effects of its own."""
    options = ["--workers", "2", "--api-workers", "2", *(["--no-redis"] if request.param == "no-redis" else [])]
    with running(tmp_path_factory.mktemp("up"), *options) as started:
        if request.param == "redis" and not started.has_redis:
            pytest.skip("there is no Redis on this machine")
        yield started


@pytest.fixture
def up(stack: OutboxUp) -> Iterator[OutboxUp]:
    """The stack, asked for its invariants when the test is over."""
    with stack.checked():
        yield stack
