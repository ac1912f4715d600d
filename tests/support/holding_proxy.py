"""A TCP proxy in front of a provider that takes connections and nothing more, until it is told to go on.

Its receive buffer is the smallest the kernel gives, so what a caller writes stays in the caller's own kernel: that is a provider,
or a middlebox, that holds bytes back.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

RECEIVE_BYTES = 2048
ACCEPT_SECONDS = 0.02
IDLE_SECONDS = 60.0


@dataclass
class Passed:
    """One connection through the proxy.

    Attributes:
        taken: bytes read from the caller.
        ended: how the caller's side ended: `closed`, `reset` or None while it is open.
    """

    taken: int = 0
    ended: str | None = None


class HoldingProxy:
    """The proxy."""

    def __init__(self, target_url: str) -> None:
        """Listens; nothing is accepted before `serving` runs it."""
        parts = urlsplit(target_url)
        self._target = (parts.hostname or "", parts.port or 80)
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen()
        self._listening.settimeout(ACCEPT_SECONDS)
        self._stop, self.passing = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self.connections: list[Passed] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def accept(self) -> None:
        """Takes connections until the end."""
        with self._listening:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    caller, _ = self._listening.accept()
                    self._start(self._pass, caller, Passed())

    def end(self) -> None:
        """Ends everything."""
        self._stop.set()
        self.passing.set()
        for thread in self._threads:
            thread.join(5)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _pass(self, caller: socket.socket, passed: Passed) -> None:
        with caller:
            # Seen and left where it is: from then on the caller's request is on its way.
            with contextlib.suppress(OSError):
                caller.recv(1, socket.MSG_PEEK)
            self.connections.append(passed)
            self.passing.wait()
            if self._stop.is_set():
                return
            with socket.create_connection(self._target, timeout=5) as provider:
                self._start(self._back, provider, caller)
                caller.settimeout(IDLE_SECONDS)
                try:
                    while part := caller.recv(65536):
                        passed.taken += len(part)
                        provider.sendall(part)
                    passed.ended = "closed"
                except OSError:
                    passed.ended = "reset"

    @staticmethod
    def _back(provider: socket.socket, caller: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := provider.recv(65536):
                caller.sendall(part)


@contextlib.contextmanager
def serving(target_url: str) -> Iterator[HoldingProxy]:
    """A running proxy that holds back whatever comes until `passing` is set."""
    proxy = HoldingProxy(target_url)
    thread = threading.Thread(target=proxy.accept, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.end()
        thread.join(5)
