"""The path of one request through the provider, and the server around it.

received -> logged -> authenticated -> key looked up -> validated -> fault taken -> effect committed -> answered
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from aiohttp import web

from outbox_sandbox.control import control_routes
from outbox_sandbox.echo import Echo, error
from outbox_sandbox.exchange import Answer, Fields, Plan, Received, Refused, Service, marker_in
from outbox_sandbox.faults import Fault, FaultName, FaultQueue
from outbox_sandbox.form import MalformedForm
from outbox_sandbox.form import decode as decode_query
from outbox_sandbox.records import Records, StoredAnswer
from outbox_sandbox.sendgrid import SendGrid
from outbox_sandbox.strategies import LABELS, MAILS, MESSAGES, RECORDS, ClientRecords, Labels, Mails, Messages
from outbox_sandbox.stripe import Stripe
from outbox_sandbox.tickets import Tickets
from outbox_sandbox.webhooks import Webhooks

BODY_BYTES_MAX = 4 << 20
KEY_LIFE_SECONDS = 24 * 3600.0
"""How long Stripe keeps the answer to an idempotency key at least; we keep it exactly so long."""

SHUTDOWN_SECONDS_MAX = 1.0
CONNECTIONS_WAITING_MAX = 1024

STRIPE, SENDGRID, TICKETS, ECHO = Stripe(), SendGrid(), Tickets(), Echo()
STRATEGIES: tuple[Service, ...] = (Labels(), ClientRecords(), Messages(), Mails())
SERVICES: dict[str, Service] = {
    "/v1/refunds": STRIPE,
    "/v1/customers": STRIPE,
    "/v1/events": STRIPE,
    "/v3/mail": SENDGRID,
    "/v1/tickets": TICKETS,
    "/v1/echo": ECHO,
    **dict(zip((LABELS, RECORDS, MESSAGES, MAILS), STRATEGIES, strict=True)),
}
"""Which service answers for the paths at and below each of these."""


class Abandoned(Exception):
    """The sandbox was reset or stopped while this request was held: it comes to nothing."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """A request that makes nothing."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A request whose key was answered before."""

    stored: StoredAnswer


@dataclass(frozen=True, kw_only=True)
class Execution:
    """A request that is to be carried out."""

    plan: Plan
    fingerprint: str
    idempotency_key: str | None
    """None where the service keeps no keys or the caller sent none."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How a request ends on the wire. `answer` None: the connection is closed without one."""

    answer: Answer | None
    fault: FaultName | None = None
    replay_of: str | None = None
    """Id of the request whose stored answer this is."""


Turn = Read | Replay | Execution


class Sandbox:
    """The provider: its memory, its planned faults, and the way of a request through both."""

    def __init__(
        self, records: Records, *, clock: Callable[[], float] = time.time, key_life_seconds: float = KEY_LIFE_SECONDS
    ) -> None:
        """`clock` gives seconds since the epoch; `key_life_seconds` is how long an answer is kept for its key."""
        self.records = records
        self.faults = FaultQueue()
        self.webhooks = Webhooks(clock)
        self._clock = clock
        self._key_life_seconds = key_life_seconds
        self._keys_in_use: set[tuple[str, str]] = set()
        self._abandon = asyncio.Event()

    def reset(self) -> None:
        """Forget effects, keys, requests and faults, and abandon every request that is being held."""
        self.abandon_held()
        self.faults.planned.clear()
        self.webhooks.forget()
        self.records.forget_everything()

    def abandon_held(self) -> None:
        """Close the connections of held requests; what they had not committed never will be."""
        self._abandon.set()
        self._abandon = asyncio.Event()

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Answer one provider request, or break it as planned."""
        received, request_id, complete = await self._receive(request)
        if not complete:
            return _close(request)
        service = _service_for(received.path)
        try:
            sent = Sent(answer=_unknown(received)) if service is None else await self._settle(service, received, request_id)
        except Refused as refused:
            sent = Sent(answer=refused.answer)
        except Abandoned:
            return _close(request)
        self.records.close_request(
            request_id=request_id,
            status=None if sent.answer is None else sent.answer.status,
            fault=sent.fault,
            replayed=sent.replay_of is not None,
        )
        # An early webhook is answered before the request is: whoever it reaches knows of the effect first.
        await self.webhooks.before_answer(request_id)
        if sent.answer is None:
            return _close(request)
        headers = [*sent.answer.headers, *(service.reply_headers(received, request_id) if service is not None else ())]
        if sent.replay_of is not None:
            headers += [("Idempotent-Replayed", "true"), ("Original-Request", sent.replay_of)]
        if sent.fault is FaultName.TRUNCATE_BODY:
            return _send_half(request, sent.answer, headers)
        return web.Response(status=sent.answer.status, body=sent.answer.body, headers=headers)

    async def _receive(self, request: web.Request) -> tuple[Received, str, bool]:
        """The request with its whole body, logged; False where the caller went away in the middle of it."""
        arrived = self._clock()
        body, complete = b"", True
        try:
            body = await request.read()
        except (ConnectionError, asyncio.IncompleteReadError, web.RequestPayloadError):
            complete = False
        received = Received(
            method=request.method,
            path=request.path,
            query=request.rel_url.raw_query_string,
            headers=request.headers,
            body=body,
            at=arrived,
        )
        request_id = f"req_{secrets.token_hex(10)}"
        self.records.open_request(
            request_id=request_id,
            method=received.method,
            path=received.path,
            query=received.query,
            idempotency_key=received.idempotency_key,
            marker=_marker_of(received),
            traceparent=received.headers.get("traceparent"),
            received=arrived,
            complete=complete,
        )
        return received, request_id, complete

    async def _settle(self, service: Service, received: Received, request_id: str) -> Sent:
        """From a logged request to what goes out. Raises `Refused` and `Abandoned`."""
        turn = self._admit(service, received)
        text = received.body.decode(errors="replace") or received.query
        fault = self.faults.take(received.method, received.path, text, is_replay=isinstance(turn, Replay))
        with self._key_taken(service, turn):
            if fault is None:
                return self._carry_out(service, received, request_id, turn)
            sent = await self._misbehave(service, received, request_id, turn, fault)
        if fault.name is FaultName.HANG:
            # It has committed: the connection is still held, the key no longer is.
            await self._hold(fault.delay_seconds)
        return sent

    def _admit(self, service: Service, received: Received) -> Turn:
        """What kind of request this is. Raises `Refused` for one the provider would not begin to execute.

        The order is Stripe's: credential, then the idempotency key, then validation; nothing refused here is stored.
        """
        service.authenticate(received)
        if received.method == "GET":
            return Read()
        if received.method != "POST":
            raise Refused(service.failure(405, "method_not_allowed", f"{received.method} is not supported here."))
        fields = service.fields(received)
        key = received.idempotency_key if service.keeps_keys else None
        fingerprint = _fingerprint(received.path, fields)
        if key is not None:
            stored = self._stored(service, key, fingerprint)
            if stored is not None:
                return Replay(stored=stored)
        return Execution(plan=service.plan(received, fields), fingerprint=fingerprint, idempotency_key=key)

    def _stored(self, service: Service, key: str, fingerprint: str) -> StoredAnswer | None:
        if (service.name, key) in self._keys_in_use:
            message = "There is currently another in-progress request using this idempotency key; try again later."
            raise Refused(service.failure(409, "idempotency_key_in_use", message))
        life_seconds = self._key_life_seconds if service.key_life_seconds is None else service.key_life_seconds
        stored = self.records.stored_answer(service=service.name, idempotency_key=key, created_from=self._clock() - life_seconds)
        if stored is not None and stored.fingerprint != fingerprint:
            message = "Keys for idempotent requests can only be used with the same parameters and path they were first used with."
            raise Refused(service.failure(400, "idempotency_mismatch", message))
        return stored

    @contextmanager
    def _key_taken(self, service: Service, turn: Turn) -> Iterator[None]:
        """While a request is executed, a second one with its key is refused; after its commit the stored answer speaks."""
        if not isinstance(turn, Execution) or turn.idempotency_key is None:
            yield
            return
        taken = (service.name, turn.idempotency_key)
        self._keys_in_use.add(taken)
        try:
            yield
        finally:
            self._keys_in_use.discard(taken)

    async def _misbehave(self, service: Service, received: Received, request_id: str, turn: Turn, fault: Fault) -> Sent:
        """Carry the request out, or not, as the fault says."""
        name = fault.name
        if name is FaultName.DROP_BEFORE_COMMIT:
            return Sent(answer=None, fault=name)
        if name is FaultName.RATE_LIMIT:
            answer = service.failure(429, "rate_limit", "Too many requests; slow down.")
            after = ("Retry-After", str(math.ceil(fault.delay_seconds)))
            return Sent(answer=Answer(status=429, body=answer.body, headers=(*answer.headers, after)), fault=name)
        if name in (FaultName.FAIL_500, FaultName.REJECT_402):
            answer = _failure(service) if name is FaultName.FAIL_500 else _decline(service)
            with self.records.transaction():
                self._store(service, request_id, turn, answer)
            return Sent(answer=answer, fault=name)
        if name in (FaultName.DELAY, FaultName.SLOW_COMMIT):
            await self._hold(fault.delay_seconds)
        answered_500 = _failure(service) if name is FaultName.COMMIT_THEN_500 else None
        sent = self._carry_out(service, received, request_id, turn, instead=answered_500)
        answer_lost = name in (FaultName.COMMIT_THEN_DROP, FaultName.HANG)
        return Sent(answer=None if answer_lost else sent.answer, fault=name, replay_of=sent.replay_of)

    def _carry_out(
        self, service: Service, received: Received, request_id: str, turn: Turn, *, instead: Answer | None = None
    ) -> Sent:
        """Commit the effect and the answer of its key in one transaction. `instead` replaces the true answer."""
        if isinstance(turn, Replay):
            return Sent(answer=turn.stored.answer, replay_of=turn.stored.request_id)
        if isinstance(turn, Read):
            return Sent(answer=instead or service.read(received, self.records))
        now = self._clock()
        with self.records.transaction():
            effect, answer = turn.plan.carry_out(self.records, now)
            self.records.commit_effect(effect, request_id=request_id, created=now)
            self._store(service, request_id, turn, instead or answer)
        committed = self.records.effect(effect.id)
        if committed is not None:
            self.webhooks.committed(committed)
        return Sent(answer=instead or answer)

    def _store(self, service: Service, request_id: str, turn: Turn, answer: Answer) -> None:
        if isinstance(turn, Execution) and turn.idempotency_key is not None:
            stored = StoredAnswer(fingerprint=turn.fingerprint, request_id=request_id, created=self._clock(), answer=answer)
            self.records.store_answer(service=service.name, idempotency_key=turn.idempotency_key, stored=stored)

    async def _hold(self, seconds: float) -> None:
        """Wait, whatever the caller does meanwhile. Raises `Abandoned` when the sandbox is reset or stopped."""
        try:
            async with asyncio.timeout(seconds):
                await self._abandon.wait()
        except TimeoutError:
            return
        raise Abandoned


def _service_for(path: str) -> Service | None:
    for prefix, service in SERVICES.items():
        if path == prefix or path.startswith(prefix + "/"):
            return service
    return None


def _unknown(received: Received) -> Answer:
    return error(404, "not_found", f"Nothing is served at {received.method} {received.path}.")


def _failure(service: Service) -> Answer:
    return service.failure(500, "internal_error", "An unknown error occurred.")


def _decline(service: Service) -> Answer:
    return service.failure(402, "card_declined", "Your card was declined.")


def _fingerprint(path: str, fields: Fields) -> str:
    """Identity of a request under its key: the path and the parameters, in whatever order they came."""
    return hashlib.sha256(json.dumps([path, fields], sort_keys=True).encode()).hexdigest()


def _marker_of(received: Received) -> str | None:
    """The marker of a request that may still turn out to be malformed; for a lookup, the marker that is asked for."""
    service = _service_for(received.path)
    try:
        if service is None or received.method != "POST":
            return marker_in(decode_query(received.query))
        return marker_in(service.fields(received))
    except (Refused, MalformedForm):
        return None


def _close(request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer. The empty response that aiohttp asks for has nowhere to go."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _send_half(request: web.Request, answer: Answer, headers: list[tuple[str, str]]) -> web.StreamResponse:
    """Promise the whole body, send half of it, close. An answer without a body breaks off in the middle of its head instead."""
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
    lines += [f"{name}: {value}" for name, value in [*headers, ("Content-Length", str(len(answer.body)))]]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    broken = head + answer.body[: len(answer.body) // 2] if answer.body else head[: len(head) // 2]
    if request.transport is not None:
        request.transport.write(broken)
        request.transport.close()
    return web.Response()


@asynccontextmanager
async def serving(sandbox: Sandbox, *, host: str, port: int) -> AsyncIterator[str]:
    """Serve `sandbox` on `host` and `port` (0: a free one) while the context lasts; gives the URL.

    Raises `OSError` where the address cannot be had.
    """
    application = web.Application(client_max_size=BODY_BYTES_MAX)
    application.add_routes(control_routes(sandbox))
    application.router.add_route("*", "/{path:.*}", sandbox.respond)
    # A request goes on when its caller has left: a provider does not take back what it has begun.
    runner = web.AppRunner(application, access_log=None, handler_cancellation=False, shutdown_timeout=SHUTDOWN_SECONDS_MAX)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=CONNECTIONS_WAITING_MAX)
        await site.start()
        address = runner.addresses[0]
        yield f"http://[{host}]:{address[1]}" if ":" in host else f"http://{host}:{address[1]}"
    finally:
        sandbox.abandon_held()
        sandbox.webhooks.abandon()
        await runner.cleanup()
