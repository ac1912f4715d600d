"""The four requests of a client-executed effect, asked over the connections of an `AsyncOutbox`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent_outbox import AsyncOutbox, strict_json
from agent_outbox.conversation import Answer, Conversation, NoAnswer, Pause, Request
from agent_outbox.errors import OutboxError, unexpected, unreachable
from agent_outbox.results import read_problem

ANSWER_SECONDS = 15.0
PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Told:
    """What the gateway answered: the HTTP status and the document."""

    status: int
    document: Mapping[str, Any]

    @property
    def code(self) -> str | None:
        """Of the problem that it is; None where it is none."""
        code = self.document.get("code")
        return code if self.status >= 400 and isinstance(code, str) else None

    @property
    def problem(self) -> OutboxError:
        """The same as an exception."""
        return read_problem(self.status, self.document)


async def ask(client: AsyncOutbox, path: str, body: Mapping[str, Any], *, deadline_seconds: float = 30.0) -> Told:
    headers = (*client._headers(), ("Content-Type", "application/json"), ("Prefer", "respond-async"))
    return await client._transport.hold(_asking(path, headers, strict_json.write(body), deadline_seconds))


def _asking(path: str, headers: tuple[tuple[str, str], ...], body: bytes, seconds: float) -> Conversation[Told]:
    until, pause = time.monotonic() + seconds, PAUSE_SECONDS
    while True:
        reply = yield Request(method="POST", path=path, headers=headers, body=body, seconds=ANSWER_SECONDS)
        again = isinstance(reply, NoAnswer) or (isinstance(reply, Answer) and reply.status == 503)
        if again and time.monotonic() + pause < until:
            yield Pause(seconds=pause)
            pause = min(pause * 2, 5.0)
            continue
        if not isinstance(reply, Answer):
            raise unreachable(reply.reason if reply else "nothing was asked", possibly_recorded=True)
        try:
            document = strict_json.read_answer(reply.body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise unexpected(f"HTTP {reply.status} without its document", status=reply.status)
        return Told(status=reply.status, document=document)
