"""An HTTP server on a real socket that answers as a test says: nothing, half of it, too late, or any document at all."""

import contextlib
import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

ACCEPT_SECONDS = 0.02
HOLD_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request.

    Attributes:
        headers: names in lower case.
        at: monotonic seconds when it was read.
        connection: which connection it came on, counted from 0.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float
    connection: int


class Exchange:
    """A request that is read, and the connection to answer it on."""

    def __init__(self, received: Received, connection: socket.socket, stop: threading.Event) -> None:
        """Nothing is answered yet."""
        self.received = received
        self._connection = connection
        self._stop = stop

    def answer(self, status: int, document: object, **headers: str) -> None:
        """A whole answer; `document` is JSON unless it is bytes; `_` in names of headers stands for `-`."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send(self.head(status, len(body), **headers) + body)

    def head(self, status: int, length: int, **headers: str) -> bytes:
        """The head of an answer with a body of so many bytes."""
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {length}", "Content-Type: application/json"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def send(self, content: bytes) -> None:
        """Bytes as they are."""
        self._connection.sendall(content)

    def reset(self) -> None:
        """The connection is reset (RST)."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()

    def close(self) -> None:
        """The connection is closed."""
        self._connection.close()

    def hold(self, seconds: float = HOLD_SECONDS) -> None:
        """Nothing happens for so long, or until the server ends."""
        self._stop.wait(seconds)


Script = Callable[[Exchange], None]


@dataclass
class ScriptedGateway:
    """A running server. Each request takes the next script; the last one is taken again and again.

    Attributes:
        received: every request, in the order in which they were read.
    """

    url: str
    scripts: list[Script]
    received: list[Received] = field(default_factory=list)

    @property
    def bodies(self) -> set[bytes]:
        """The different bodies that came."""
        return {request.body for request in self.received}

    def pauses(self) -> list[float]:
        """Seconds between one request and the next."""
        times = [request.at for request in self.received]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


@contextlib.contextmanager
def serving(*scripts: Script, port: int = 0) -> Iterator[ScriptedGateway]:
    """A server that answers by `scripts` on a free port or a given one, ended afterwards with its threads."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(ACCEPT_SECONDS)
    gateway = ScriptedGateway(url=f"http://127.0.0.1:{listener.getsockname()[1]}", scripts=list(scripts))
    stop, lock, threads = threading.Event(), threading.Lock(), list[threading.Thread]()

    def talk(connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), connection:
            # A copy of the file object's descriptor would keep the connection open when the script closes it.
            waiting = bytearray()
            while not stop.is_set():
                received = _read(connection, waiting, number, stop)
                if received is None:
                    return
                with lock:
                    script = gateway.scripts[min(len(gateway.received), len(gateway.scripts) - 1)]
                    gateway.received.append(received)
                script(Exchange(received, connection, stop))

    def accept() -> None:
        number = 0
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                thread = threading.Thread(target=talk, args=(connection, number), daemon=True)
                threads.append(thread)
                thread.start()
                number += 1

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield gateway
    finally:
        stop.set()
        for thread in (acceptor, *threads):
            thread.join(5)
        listener.close()


def _read(connection: socket.socket, waiting: bytearray, number: int, stop: threading.Event) -> Received | None:
    connection.settimeout(ACCEPT_SECONDS)

    def more() -> bool:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                part = connection.recv(65536)
                waiting.extend(part)
                return bool(part)
        return False

    while b"\r\n\r\n" not in waiting:
        if not more():
            return None
    head, _, _ = bytes(waiting).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    end = len(head) + 4 + int(headers.get("content-length", "0"))
    while len(waiting) < end:
        if not more():
            return None
    body = bytes(waiting[len(head) + 4 : end])
    del waiting[:end]
    connection.settimeout(None)
    method, path, _ = first.split(" ")
    return Received(method=method, path=path, headers=headers, body=body, at=time.monotonic(), connection=number)


# Scripts.


def says(status: int, document: object, **headers: str) -> Script:
    """Answers with a document."""
    return lambda exchange: exchange.answer(status, document, **headers)


def drops(exchange: Exchange) -> None:
    """Closes the connection without an answer."""
    exchange.close()


def resets(exchange: Exchange) -> None:
    """Resets the connection without an answer."""
    exchange.reset()


def hangs(exchange: Exchange) -> None:
    """Never answers."""
    exchange.hold()


def truncates(exchange: Exchange) -> None:
    """Answers with half a body and closes."""
    exchange.send(exchange.head(200, 1000) + b'{"message": "Do')
    exchange.close()


def drips(exchange: Exchange) -> None:
    """Sends its body a byte at a time."""
    exchange.send(exchange.head(200, 1000))
    for _ in range(1000):
        exchange.send(b" ")
        exchange.hold(0.05)


# Documents.

RESERVATION_ID = "01a1fc67-0a96-795e-8043-f1b03b77e058"
RECEIPT: Mapping[str, Any] = {
    "id": "01a1fc67-0ae4-74dd-a49c-f7aedbfc0873",
    "reservation_id": RESERVATION_ID,
    "provider": "stripe",
    "connection": "stripe",
    "tool": "stripe.refund.create",
    "contract_version": 1,
    "external_reference": "re_1",
    "confidence": "confirmed",
    "evidence": [{"kind": "answer", "at": "2026-01-31T08:15:00.123456Z", "detail": {"detail": "HTTP 200"}}],
    "actor_chain": ["agent:refunds"],
    "owner": "payments",
    "settled_at": "2026-01-31T08:15:00Z",
}


def skeleton(**members: object) -> dict[str, Any]:
    """The members of every answer, as of a call of which nothing is known, with changes."""
    return {
        "message": "Not finished.",
        "is_error": False,
        "state": None,
        "retry": {"action": "none"},
        "replayed": False,
        "replay": None,
        "reservation_id": None,
        "operation_key": "refund:pi_1",
        "input_digest": "hmac-sha256:" + "0" * 64,
        "guarantee_class": "A",
        "owner": "payments",
        "result": None,
        "receipt": None,
        "failure": None,
        "review": None,
        "run": None,
        **members,
    }


def done(**members: object) -> dict[str, Any]:
    """The answer of a success."""
    return skeleton(
        **{
            "message": "Done. Receipt 01a1fc67.",
            "state": "succeeded",
            "reservation_id": RESERVATION_ID,
            "result": {"id": "re_1"},
            "receipt": RECEIPT,
            **members,
        }
    )


def waiting(after_seconds: float = 0.1, **members: object) -> dict[str, Any]:
    """The answer to a call that has no end yet."""
    retry = {"action": "wait", "after_seconds": after_seconds, "url": f"/v1/reservations/{RESERVATION_ID}"}
    return skeleton(**{"state": "executing", "reservation_id": RESERVATION_ID, "retry": retry, **members})


def problem(
    code: str, status: int, *, action: str = "never", after_seconds: float | None = None, **members: object
) -> dict[str, Any]:
    """A problem document."""
    retry: dict[str, object] = {"action": action}
    if after_seconds is not None:
        retry["after_seconds"] = after_seconds
    return {
        "type": f"https://agent-outbox.dev/problems/{code}",
        "title": "A title",
        "status": status,
        "detail": f"The detail of {code}.",
        "code": code,
        **skeleton(**{"message": f"NOT SENT. The message of {code}.", "is_error": True, "retry": retry, **members}),
    }
