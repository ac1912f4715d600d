"""The smallest HTTP/1.1 caller that keeps its connection: the same on both sides, so that it favours none. Standard library only."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
HEAD_BYTES_MAX = 1 << 16


class HttpCaller:
    """One connection, one request at a time."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Made by `connected`."""
        self._host = host
        self._reader = reader
        self._writer = writer

    async def post(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str, bytes]:
        """Send a request.

        Returns:
            Status, the head of the answer as it came, and the body.
        """
        lines = [f"POST {path} HTTP/1.1", f"Host: {self._host}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is None:
            raise ValueError("the answer has no Content-Length")
        answer = await self._reader.readexactly(int(length[1]))
        return int(head.split(b" ", 2)[1]), head.decode("latin-1"), answer


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[HttpCaller]:
    """A caller of the server at `url`, closed at the end."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=HEAD_BYTES_MAX)
    try:
        yield HttpCaller(parts.netloc, reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()
