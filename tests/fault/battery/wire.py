"""Where one message ends and what it is about: as much of Postgres's and HTTP's framing as a proxy needs to strike at an edge.

Pure: bytes in, frames out. Source: Postgres manual, "Message Formats"; RFC 9112 section 6.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

TOKEN = re.compile(rb"op[0-9a-f]{16}")
"""What the battery writes into every input and reference, and nothing else looks like: it names the operation key on any wire."""

_UUID7 = re.compile(rb"\x00\x00\x00\x10(.{6}[\x70-\x7f].{9})", re.DOTALL)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_SSL_REQUEST, _CANCEL_REQUEST, _GSS_REQUEST = 80877103, 80877102, 80877104

Speech = Literal["postgres", "http", "raw"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One message from a client, whole.

    Attributes:
        data: its bytes.
        kind: Postgres: the letter of the message (`B` Bind, `S` Sync, ...), "" for those of the start; HTTP: the method; raw: "".
        statement: Postgres: the SQL that a Bind executes; HTTP: the last segment of the path; None otherwise.
    """

    data: bytes
    kind: str = ""
    statement: str | None = None

    def token(self) -> str | None:
        """The operation key's token that stands in it."""
        found = TOKEN.search(self.data)
        return found.group().decode() if found else None

    def ids(self) -> list[bytes]:
        """The UUIDs of version 7 among a Bind's binary parameters."""
        return _UUID7.findall(self.data)


class Framer(Protocol):
    """Cuts what a client sends into messages."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The messages that are whole now; what is not is kept."""


class Raw:
    """Takes whatever comes as it comes."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """One frame for each piece."""
        yield Frame(data)


class Postgres:
    """The frontend's side of one Postgres connection; remembers which SQL each prepared statement is."""

    def __init__(self) -> None:
        """Nothing has been said yet."""
        self._kept = b""
        self._started = False
        self._statements: dict[bytes, str] = {}

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The messages that are whole now."""
        kept = self._kept + data
        place = 0
        while True:
            head = 5 if self._started else 4
            if len(kept) - place < head:
                break
            (length,) = struct.unpack_from(">i", kept, place + head - 4)
            end = place + head - 4 + length
            if len(kept) < end:
                break
            yield self._frame(kept[place:end])
            place = end
        self._kept = kept[place:]

    def _frame(self, message: bytes) -> Frame:
        if not self._started:
            (code,) = struct.unpack_from(">i", message, 4)
            self._started = code not in (_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST)
            return Frame(message)
        kind = chr(message[0])
        if kind == "P":
            name, query, _ = message[5:].split(b"\0", 2)
            self._statements[name] = query.decode(errors="replace")
        elif kind == "B":
            _, name, _ = message[5:].split(b"\0", 2)
            return Frame(message, kind, self._statements.get(name))
        return Frame(message, kind)


class Http:
    """Requests with a Content-Length, or without a body; pipelining included."""

    def __init__(self) -> None:
        """Nothing has been said yet."""
        self._kept = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The requests that are whole now."""
        self._kept += data
        while (end := self._kept.find(b"\r\n\r\n")) >= 0:
            head = self._kept[: end + 4]
            stated = _LENGTH.search(head)
            size = len(head) + (int(stated[1]) if stated else 0)
            if len(self._kept) < size:
                return
            request, self._kept = self._kept[:size], self._kept[size:]
            method, target, *_ = head.decode("latin-1").split(" ", 2)
            yield Frame(request, method, target.partition("?")[0].rpartition("/")[2])


def framer(protocol: Speech) -> Framer:
    """A framer for one connection."""
    match protocol:
        case "postgres":
            return Postgres()
        case "http":
            return Http()
        case _:
            return Raw()
