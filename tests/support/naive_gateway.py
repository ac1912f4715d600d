"""A small gateway in memory, and the sins that gateways commit: negative controls of the conformance kit.

Without a sin it keeps what the kit asks of gateway-executed effects, as long as it lives. Each sin changes one thing, so that
a check that stays green with it tests nothing.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2

BACKLOG = 256
RESEND_SECONDS = 0.2
KEY_IN_USE_SECONDS = 0.2
SETTLE_SECONDS = 0.5
RACE_SECONDS = 0.05
WAIT_SECONDS = 25.0
PROVIDER_SECONDS = 20.0
IMPATIENT_SECONDS = 0.5

PATHS: Mapping[str, str] = {
    "stripe.refund.create": "/v1/refunds",
    "sendgrid.mail.send": "/v3/mail/send",
    "sandbox.ticket.create": "/v1/tickets",
}
CLASSES: Mapping[str, str] = {"stripe.refund.create": "A", "sendgrid.mail.send": "C", "sandbox.ticket.create": "B"}
MEMBERS = frozenset({"tool", "input", "reference", "run", "step", "call_id"})


class Sin(StrEnum):
    """What a gateway may do wrong."""

    FORGETS = "keeps no keys: every call is sent"
    RACES = "looks first and inserts then, without a lock"
    KEYS_BY_RUN = "the run is part of the operation key"
    KEYS_BY_STEP = "the step is part of the operation key"
    KEYS_BY_INPUT = "the amount is part of the operation key"
    REPLAYS_CONFLICTS = "answers other values with the first receipt"
    TELLS_VALUES = "a conflict tells the first call's values"
    NEW_KEY_EACH_TIME = "sends again under a new provider key"
    IMPATIENT = "gives the provider half a second, then sends again"
    GUESSES_FAILURE = "no answer is a failure"
    GUESSES_SUCCESS = "no answer is a success"
    NEVER_SENDS_AGAIN = "no answer of a class A provider stays a doubt"
    RESENDS_MAILS = "sends a mail again when no answer came"
    NEVER_LOOKS = "sends a ticket again without looking for it"
    TAKES_ERRORS_AS_REFUSALS = "a 500 is a refusal"
    TAKES_LIMITS_AS_REFUSALS = "a 429 is a refusal"
    IGNORES_RETRY_AFTER = "sends again at once after a 429"
    TAKES_DECLINES_AS_DOUBTS = "a 402 is a doubt"
    NEW_RECEIPT_EACH_TIME = "a replay has a receipt of its own"
    SAYS_NEVER_REPLAYED = "a replay does not say that it is one"
    ASKS_AGAIN = "answers a repetition by asking the provider again"
    IGNORES_REQUEST_KEYS = "a request key may be used for anything"
    TAKES_ANYTHING = "sends what is malformed"
    REASSURES = "tells the model that a doubt will be fine"


@dataclass
class Reservation:
    """An effect that somebody asked for."""

    tool: str
    input: dict[str, Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    provider_key: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = "executing"
    external_reference: str | None = None
    receipt: dict[str, Any] | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def end(self, state: str, external_reference: str | None = None) -> None:
        """Say what came of it."""
        if state == "succeeded":
            self.receipt = {"id": str(uuid.uuid4()), "external_reference": external_reference}
        self.state, self.external_reference = state, external_reference
        self.ended.set()


class NaiveGateway:
    """The gateway: its memory, and its way to the provider."""

    def __init__(self, provider_url: str, sin: Sin | None) -> None:
        """Keeps every promise but what `sin` says."""
        self.sin = sin
        self._lock = threading.Lock()
        self._by_key: dict[str, Reservation] = {}
        self._by_id: dict[str, Reservation] = {}
        self._request_keys: dict[str, tuple[bytes, tuple[int, bytes]]] = {}
        seconds = IMPATIENT_SECONDS if sin is Sin.IMPATIENT else PROVIDER_SECONDS
        self._provider = httpx2.Client(
            base_url=provider_url,
            headers={"Authorization": "Bearer sandbox"},
            timeout=seconds,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    def close(self) -> None:
        """Closes the connections to the provider."""
        self._provider.close()

    # Callers.

    def post(self, body: bytes, request_key: str | None, wait_seconds: float) -> tuple[int, bytes]:
        """The answer to a tool call."""
        if request_key is None or self.sin is Sin.IGNORES_REQUEST_KEYS:
            return self._post(body, wait_seconds)
        if request_key in self._request_keys:
            asked, answered = self._request_keys[request_key]
            return answered if asked == body else _encoded(422, _problem("request-key-reused", "NOT SENT."))
        answer = self._post(body, wait_seconds)
        if answer[0] in (200, 422):
            self._request_keys[request_key] = (body, answer)
        return answer

    def get(self, id: str) -> tuple[int, bytes]:
        """A reservation."""
        found = self._by_id.get(id)
        if found is None:
            return _encoded(404, _problem("not-found", "There is none."))
        return _encoded(200, _skeleton(found, message="Shown."))

    def _post(self, body: bytes, wait_seconds: float) -> tuple[int, bytes]:
        call = json.loads(body)
        if call.get("tool") not in PATHS:
            return _encoded(404, _problem("unknown-tool", "NOT SENT."))
        if _malformed(call) and self.sin is not Sin.TAKES_ANYTHING:
            return _encoded(422, _problem("invalid-input", "NOT SENT."))
        reservation, is_new = self._taken(call)
        if reservation.input != call["input"] and self.sin is not Sin.REPLAYS_CONFLICTS:
            told = reservation.input if self.sin is Sin.TELLS_VALUES else ""
            return _encoded(422, _problem("conflict", f"NOT DONE. Other values {told}."))
        if not is_new and self.sin is Sin.ASKS_AGAIN and reservation.ended.wait(WAIT_SECONDS):
            self._send(reservation, reservation.provider_key)
        reservation.ended.wait(wait_seconds)
        return self._answer(reservation, replayed=not is_new)

    def _taken(self, call: dict[str, Any]) -> tuple[Reservation, bool]:
        key = self._key(call)
        if self.sin is Sin.RACES:
            found = self._holder(key)
            time.sleep(RACE_SECONDS)
            return (found, False) if found is not None else (self._begin(key, call), True)
        with self._lock:
            found = self._holder(key)
            return (found, False) if found is not None else (self._begin(key, call), True)

    def _holder(self, key: str) -> Reservation | None:
        found = self._by_key.get(key)
        return None if found is None or found.state == "failed" or self.sin is Sin.FORGETS else found

    def _begin(self, key: str, call: dict[str, Any]) -> Reservation:
        made = Reservation(tool=call["tool"], input=call["input"])
        self._by_key[key] = self._by_id[made.id] = made
        threading.Thread(target=self._carry_out, args=(made,), daemon=True).start()
        return made

    def _key(self, call: dict[str, Any]) -> str:
        parts = [call["tool"], call.get("reference"), call["input"].get("payment_intent")]
        if self.sin is Sin.KEYS_BY_RUN:
            parts.append(call.get("run"))
        if self.sin is Sin.KEYS_BY_STEP:
            parts.append(call.get("step"))
        if self.sin is Sin.KEYS_BY_INPUT:
            parts.append(call["input"].get("amount"))
        return json.dumps(parts)

    def _answer(self, reservation: Reservation, *, replayed: bool) -> tuple[int, bytes]:
        says = replayed and self.sin is not Sin.SAYS_NEVER_REPLAYED
        if reservation.state == "executing":
            document = _skeleton(reservation, message="Not finished.", action="wait", replayed=says)
            return _encoded(202, document)
        if reservation.state == "in_doubt":
            message = "It is on its way." if self.sin is Sin.REASSURES else "UNKNOWN. It was sent and no answer came."
            return _encoded(
                409, {"code": "in-doubt", **_skeleton(reservation, message=message, action="ask-human", replayed=says)}
            )
        if reservation.state == "failed":
            return _encoded(422, {"code": "provider-refused", **_skeleton(reservation, message="NOT DONE.", replayed=says)})
        document = _skeleton(reservation, message="Done.", replayed=says)
        if replayed and self.sin is Sin.NEW_RECEIPT_EACH_TIME:
            document["receipt"] = {**document["receipt"], "id": str(uuid.uuid4())}
        return _encoded(200, document)

    # The provider.

    def _carry_out(self, reservation: Reservation) -> None:
        with contextlib.suppress(RuntimeError):  # The test is over and the client is closed.
            self._until_ended(reservation)

    def _until_ended(self, reservation: Reservation) -> None:
        key = reservation.provider_key
        while True:
            answer = self._send(reservation, key)
            if answer is not None and answer.status_code == 429 and self.sin is not Sin.TAKES_LIMITS_AS_REFUSALS:
                time.sleep(0.0 if self.sin is Sin.IGNORES_RETRY_AFTER else float(answer.headers["Retry-After"]))
                continue
            if answer is not None and answer.status_code == 409:
                time.sleep(KEY_IN_USE_SECONDS)
                continue
            ended = self._read(answer)
            if ended is None:
                ended = self._doubted(reservation, answer)
            if ended is not None:
                reservation.end(*ended)
                return
            if self.sin in (Sin.NEW_KEY_EACH_TIME, Sin.IMPATIENT):
                key = uuid.uuid4().hex
            time.sleep(RESEND_SECONDS)

    def _read(self, answer: httpx2.Response | None) -> tuple[str, str | None] | None:
        """What an answer proves; None where it proves nothing."""
        if answer is None:
            return None
        if answer.status_code in (200, 201):
            return "succeeded", answer.json()["id"]
        if answer.status_code == 202:
            return "succeeded", answer.headers["X-Message-Id"]
        if answer.status_code == 402 and self.sin is Sin.TAKES_DECLINES_AS_DOUBTS:
            return "in_doubt", None
        if answer.status_code >= 500 and self.sin is not Sin.TAKES_ERRORS_AS_REFUSALS:
            return None
        return "failed", None

    def _doubted(self, reservation: Reservation, answer: httpx2.Response | None) -> tuple[str, str | None] | None:
        """What is known without proof; None to send again."""
        if self.sin is Sin.GUESSES_FAILURE:
            return "failed", None
        if self.sin is Sin.GUESSES_SUCCESS:
            return "succeeded", "guessed"
        match CLASSES[reservation.tool]:
            case "A":
                stored = answer is not None and answer.headers.get("Idempotent-Replayed") == "true"
                if self.sin is Sin.NEVER_SENDS_AGAIN:
                    return "in_doubt", None
                return ("in_doubt", None) if stored and not self._found(reservation) else self._found_if(stored, reservation)
            case "B":
                if self.sin is Sin.NEVER_LOOKS:
                    return None
                time.sleep(SETTLE_SECONDS)
                return self._found_if(True, reservation)
            case _:
                return None if self.sin is Sin.RESENDS_MAILS else ("in_doubt", None)

    def _found_if(self, looking: bool, reservation: Reservation) -> tuple[str, str | None] | None:
        found = self._found(reservation) if looking else None
        return None if found is None else ("succeeded", found)

    def _found(self, reservation: Reservation) -> str | None:
        """What the provider calls an effect that carries our marker."""
        if reservation.tool == "stripe.refund.create":
            listed = self._provider.get("/v1/refunds", params={"payment_intent": reservation.input["payment_intent"]}).json()
            named = [one["id"] for one in listed["data"] if one["metadata"].get("outbox") == reservation.id]
        else:
            listed = self._provider.get("/v1/tickets", params={"marker": reservation.id}).json()
            named = [one["id"] for one in listed["data"] if one["marker"] == reservation.id]
        return named[0] if named else None

    def _send(self, reservation: Reservation, key: str) -> httpx2.Response | None:
        """The provider's answer; None without a whole one."""
        path, input = PATHS[reservation.tool], reservation.input
        try:
            match reservation.tool:
                case "stripe.refund.create":
                    fields = {name: str(value) for name, value in input.items()} | {"metadata[outbox]": reservation.id}
                    return self._provider.post(path, data=fields, headers={"Idempotency-Key": key})
                case "sendgrid.mail.send":
                    document = {
                        "personalizations": [{"to": [{"email": input["to"]}]}],
                        "from": {"email": input["from"]},
                        "subject": input["subject"],
                        "content": [{"type": "text/plain", "value": input["text"]}],
                    }
                    return self._provider.post(path, json=document)
                case _:
                    return self._provider.post(path, json={**input, "marker": reservation.id})
        except httpx2.TransportError:
            return None


def _malformed(call: dict[str, Any]) -> bool:
    input = call["input"]
    refund = call["tool"] == "stripe.refund.create"
    return not set(call) <= MEMBERS or (refund and not (isinstance(input.get("amount"), int) and input["amount"] > 0))


def _skeleton(reservation: Reservation, *, message: str, action: str = "none", replayed: bool = False) -> dict[str, Any]:
    return {
        "message": message,
        "state": reservation.state,
        "retry": {"action": action},
        "replayed": replayed,
        "reservation_id": reservation.id,
        "receipt": reservation.receipt,
    }


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "state": None, "retry": {"action": "never"}, "receipt": None}


def _encoded(status: int, document: dict[str, Any]) -> tuple[int, bytes]:
    return status, json.dumps(document).encode()


class _Server(ThreadingHTTPServer):
    request_queue_size = BACKLOG
    daemon_threads = True
    gateway: NaiveGateway


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/tool-calls":
            self._say(*_encoded(404, _problem("not-found", "There is none.")))
            return
        prefer = self.headers.get("Prefer", f"wait={WAIT_SECONDS:g}")
        wait = 0.0 if prefer == "respond-async" else float(prefer.removeprefix("wait="))
        self._say(*self.server.gateway.post(body, self.headers.get("Idempotency-Key"), wait))

    def do_GET(self) -> None:
        if self.path.startswith("/v1/reservations?"):
            self._say(*_encoded(200, {"items": [], "next_cursor": None}))
        else:
            self._say(*self.server.gateway.get(self.path.rpartition("/")[2]))

    def _say(self, status: int, body: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


@contextlib.contextmanager
def serving(provider_url: str, sin: Sin | None = None) -> Iterator[str]:
    """A running gateway that sins in one way or in none; gives its URL."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.gateway = NaiveGateway(provider_url, sin)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        server.gateway.close()
        thread.join(5)
