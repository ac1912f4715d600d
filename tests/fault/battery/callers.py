"""Callers: each wants one effect and repeats its call until the answer is final, as patient agents do. Every call is history."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

CALL_SECONDS = 12.0
WAIT_SECONDS_MAX = 7
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.2, 3.0
PATIENCE_SECONDS = 60.0
TRIES_MAX = 60

FINAL_CODES = frozenset({"conflict", "provider-refused", "contradiction"})
"""After these nothing is gained by asking again."""


@dataclass(kw_only=True)
class History:
    """What callers did and were told, in the order of time; written to a file as it happens, if there is one."""

    file: IO[str] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0
    ended: int = 0

    def invoke(self, process: int, token: str, **more: Any) -> dict[str, Any]:
        """A call begins; returns what its end repeats."""
        self.calls += 1
        of = {"call": self.calls, "process": process, "key": token, **more}
        self._add({**of, "type": "invoke", "time": time.time()})
        return of

    def end(self, of: Mapping[str, Any], type: str, **more: Any) -> None:
        """A call ends."""
        self.ended += 1
        self._add({**of, "type": type, "time": time.time(), **more})

    def _add(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if self.file is not None:
            self.file.write(json.dumps(event) + "\n")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A call as it is made again and again.

    Attributes:
        key: the scoped key.
        body: the tool call, encoded.
        conflicting: it uses another caller's operation key with another input.
        wait_seconds: for how long the API is asked to wait for the end.
    """

    token: str
    key: str
    body: bytes
    conflicting: bool = False
    wait_seconds: int = WAIT_SECONDS_MAX


def tool_call(tool: str, token: str, *, connection: str, run: str | None, conflicting: bool, amount: int = 1200) -> bytes:
    """The body of a call for the effect that a token names."""
    value = amount + 100 if conflicting else amount
    inputs: dict[str, dict[str, object]] = {
        "stripe.refund.create": {"payment_intent": f"pi_{token}", "amount": value},
        "sandbox.ticket.create": {"title": f"Door {token}" + (" again" if conflicting else "")},
        "sandbox.record.create": {"title": f"Record {token}" + (" again" if conflicting else "")},
        "sandbox.message.send": {"text": f"Message {token}" + (" again" if conflicting else "")},
        "sandbox.label.set": {"name": token, "value": "moved" if conflicting else "paid"},
        "sandbox.mail.schedule": {"text": f"Mail {token}" + (" again" if conflicting else "")},
        # Of a mail with a reference only the receiver and the sender are its identity.
        "sendgrid.mail.send": {
            "from": "desk@example.com",
            "to": "b.berg@example.com" if conflicting else "a.berg@example.com",
            "subject": f"Case {token}",
            "text": "It is on its way.",
        },
    }
    call: dict[str, object] = {"tool": tool, "input": inputs[tool], "reference": token, "connection": connection}
    if run is not None:
        call["run"] = run
    return json.dumps(call).encode()


class Unanswered(Exception):
    """No answer came."""


async def post(port: int, path: str, body: bytes, headers: Mapping[str, str], *, seconds: float) -> tuple[int, bytes]:
    """One request over a connection of its own: status and body.

    Raises:
        Unanswered: the connection was refused, broken, or silent for so long.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
            lines = [f"POST {path} HTTP/1.1", "Host: battery", f"Content-Length: {len(body)}", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            answer = await reader.read(-1)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise Unanswered(type(error).__name__) from error
    finally:
        if writer is not None:
            writer.transport.abort()
    head, found, content = answer.partition(b"\r\n\r\n")
    length = _length(head)
    if not found or (length is not None and len(content) < length):
        raise Unanswered("half an answer")
    return int(head.split(b" ", 2)[1]), content


def _length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return None


def receipt_of(body: bytes) -> str:
    """The receipt in an answer, byte for byte."""
    text = body.decode()
    start = text.index('"receipt":') + len('"receipt":')
    _, end = json.JSONDecoder().raw_decode(text, start)
    return text[start:end]


async def ask(history: History, port: int, wanted: Wanted, process: int) -> str:
    """Repeats a call until its answer is final; returns its last word: `ok`, `fail` or `info`."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    headers = {"Authorization": f"Bearer {wanted.key}", "Content-Type": "application/json"}
    headers["Prefer"] = f"wait={wanted.wait_seconds}"
    last, pause = "info", PAUSE_SECONDS
    for _ in range(TRIES_MAX):
        more = {"conflicting": True} if wanted.conflicting else {}
        of = history.invoke(process, wanted.token, **more)
        try:
            status, body = await post(port, "/v1/tool-calls", wanted.body, headers, seconds=CALL_SECONDS)
            document = json.loads(body)
        except (Unanswered, ValueError) as error:
            history.end(of, "info", status=None, code=str(error))
            document, status = {}, 0
        code = document.get("code")
        if status == 200:
            history.end(of, "ok", status=status, replayed=document["replayed"], receipt=receipt_of(body))
            return "ok"
        if code in FINAL_CODES or (status in (400, 401, 403, 404, 413, 422) and code != "unavailable"):
            last = "info" if code == "contradiction" else "fail"
            history.end(of, last, status=status, code=code)
            return last
        if status:
            last = "info"
            history.end(of, last, status=status, code=code)
            if code == "in-doubt" and document["retry"]["action"] == "ask-human":
                return last
        if time.monotonic() >= give_up:
            return last
        await asyncio.sleep(pause)
        # An API that is away refuses at once: a crowd that asked without pause would only count refusals.
        pause = min(pause * 1.7, PAUSE_SECONDS_MAX)
    return last
