"""`POST /v1/reservations` and what a client says of the attempt that it holds (design section 10, `docs/client-executed.md`)."""

from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler
from opentelemetry.trace import SpanKind

from outbox_api.answers import Answer, Asked, answer_to, encode, not_final, problem, reservation_url, shown, skeleton
from outbox_api.api import Api
from outbox_api.exchange import Exchange, too_large
from outbox_api.heartbeat import heartbeat
from outbox_api.probe import Found, answer_probe, begin_probe
from outbox_api.reserve import Refused, Trace, new_tool_call
from outbox_api.reserve_client import Answered, Given, Joined, ProbeFirst, reserve_client
from outbox_api.routes.door import read_id, respond_with, through
from outbox_api.routes.tool_calls import NAMES_IN_HEADERS, PROBLEMS_OF_OURS, known_tool, named_tool, preference
from outbox_api.settle_client import RESULT_BYTES_MAX, settle_client
from outbox_api.void import void
from outbox_domain import json_text, messages
from outbox_domain.client_call import (
    ClientCall,
    ClientSettlement,
    members_of,
    read_attempt_id,
    read_reason,
    read_reference,
)
from outbox_domain.errors import OutboxError, Retry, invalid
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.telemetry import context_of, trace_id_of, traceparent_of
from outbox_store.reservations import ReservationView

HEARTBEAT_MEMBERS = ("attempt_id",)
VOID_MEMBERS = ("attempt_id", "reason")
PROBE_MEMBERS = ("found", "external_reference", "result")

Settle = Callable[[ScopedKey, object], Awaitable[Answer]]


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @post("/v1/reservations", include_in_schema=False)
    async def create_reservation(request: Request[Any, Any, Any]) -> Response[bytes]:
        exchange = Exchange(request.scope, request.receive)

        async def handle(key: ScopedKey, body: bytes) -> Answer:
            return await _reserve(api, exchange, key, _parsed(api, body))

        answer = await through(api, exchange, handle, keeps_answers=True)
        prefer = preference(api, exchange)
        headers = [("Server-Timing", exchange.timing.header())]
        if prefer.applied is not None:
            headers.append(("Preference-Applied", prefer.applied))
        return respond_with(answer.with_headers(*headers))

    @post("/v1/reservations/{reservation_id:str}/heartbeat", include_in_schema=False)
    async def heartbeat_of(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await _through(api, request, lambda key, document: _heartbeat(api, key, _id(request), document))

    @post("/v1/reservations/{reservation_id:str}/settle", include_in_schema=False)
    async def settle_of(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await _through(api, request, lambda key, document: _settle(api, key, _id(request), document))

    @post("/v1/reservations/{reservation_id:str}/void", include_in_schema=False)
    async def void_of(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await _through(api, request, lambda key, document: _void(api, key, _id(request), document))

    @post("/v1/reservations/{reservation_id:str}/probes", include_in_schema=False)
    async def begin_probe_of(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await _through(api, request, lambda key, document: _begin_probe(api, key, _id(request), document))

    @post("/v1/reservations/{reservation_id:str}/probes/{probe_id:str}", include_in_schema=False)
    async def answer_probe_of(request: Request[Any, Any, Any]) -> Response[bytes]:
        probe_id = str(request.path_params["probe_id"])
        return await _through(api, request, lambda key, document: _answer_probe(api, key, _id(request), probe_id, document))

    return [create_reservation, heartbeat_of, settle_of, void_of, begin_probe_of, answer_probe_of]


def _id(request: Request[Any, Any, Any]) -> str:
    return str(request.path_params["reservation_id"])


def _parsed(api: Api, body: bytes) -> object:
    return json_text.parse(body, bytes_max=api.settings.body_bytes_max, depth_max=api.settings.body_depth_max)


async def _through(api: Api, request: Request[Any, Any, Any], handle: Settle) -> Response[bytes]:
    async def parsed(key: ScopedKey, body: bytes) -> Answer:
        return await handle(key, _parsed(api, body))

    return respond_with(await through(api, Exchange(request.scope, request.receive), parsed, keeps_answers=True))


async def _reserve(api: Api, exchange: Exchange, key: ScopedKey, document: object) -> Answer:
    """Read, reserve or wait, answer, record."""
    asked: ClientCall | None = None
    recorded = False
    parent = context_of(exchange.headers.get("traceparent"))
    with api.tracer.start_as_current_span("outbox.reserve", context=parent, kind=SpanKind.SERVER) as span:
        trace = Trace(traceparent=traceparent_of(span), trace_id=trace_id_of(span))
        try:
            exchange.said_once(*NAMES_IN_HEADERS)
            asked = ClientCall.read(document, exchange.headers)
            answered = await reserve_client(api, key, asked, trace, wait_seconds=preference(api, exchange).seconds)
            answer = await _answer_to(api, key, answered)
        except Refused as refused:
            answer, recorded = problem(refused.error, facts=refused.facts), refused.recorded
        except OutboxError as error:
            answer = problem(error)
        exchange.timing.seconds["reserve"] = exchange.timing.since_began()
    api.metrics.calls.labels(tool=known_tool(api, key, document), code=answer.code).inc()
    if not recorded and answer.code not in PROBLEMS_OF_OURS:
        api.tool_calls.add(
            new_tool_call(
                api.reserver,
                key,
                tool=named_tool(document),
                call=None if asked is None else asked.call,
                trace=trace,
                reservation_id=answer.reservation_id,
                answer_code=answer.code,
                answer_state=answer.state,
                replayed=answer.replayed,
            )
        )
    return answer


async def _answer_to(api: Api, key: ScopedKey, answered: Answered) -> Answer:
    match answered:
        case Given():
            return _given(answered)
        case ProbeFirst():
            return _probe_first(answered)
        case Joined(view=None):
            return not_final(answered.reserved.facts, asked=Asked(first=False, run_id=answered.reserved.run_id))
        case Joined(view=ReservationView() as view):
            contract = await api.directory.contract(key.organization_id, view.tool, view.contract_version)
            vault = await api.directory.vault(key.organization_id)
            return answer_to(view, asked=Asked(first=False, run_id=answered.reserved.run_id), contract=contract, vault=vault)
    raise AssertionError(answered)


def _given(given: Given) -> Answer:
    attempt, reserved = given.opened.attempt, given.reserved
    document = skeleton(message=messages.attempt_open(), is_error=False, retry=Retry(action="none"), facts=reserved.facts) | {
        "attempt": {
            "id": attempt.attempt_id,
            "number": attempt.number,
            "epoch": attempt.epoch,
            "provider_key": given.opened.provider_key,
            "marker": given.opened.marker,
            "lease_until": attempt.lease_until,
            "lease_seconds": attempt.lease_seconds,
            "time_limit_seconds": attempt.time_limit_seconds,
            "recovering": attempt.resend,
        },
        "probe": None,
    }
    return Answer(
        status=201,
        body=encode(document),
        code="attempt-open",
        headers=(("Location", reservation_url(reserved.id)),),
        state=reserved.facts.state,
        reservation_id=reserved.id,
    )


def _probe_first(first: ProbeFirst) -> Answer:
    document = skeleton(
        message=messages.probe_first(), is_error=False, retry=Retry(action="none"), facts=first.reserved.facts
    ) | {
        "attempt": None,
        "probe": {
            "attempt_id": first.attempt_id,
            "provider_key": first.provider_key,
            "marker": first.marker,
            "times": first.times,
            "absence_counts_at": first.absence_counts_at,
            "again_seconds": first.again_seconds,
        },
    }
    return Answer(
        status=201,
        body=encode(document),
        code="probe-first",
        headers=(("Location", reservation_url(first.reserved.id)),),
        state=first.reserved.facts.state,
        reservation_id=first.reserved.id,
    )


async def _heartbeat(api: Api, key: ScopedKey, id_text: str, document: object) -> Answer:
    attempt_id = read_attempt_id(members_of(document, HEARTBEAT_MEMBERS))
    reservation_id = read_id(id_text)
    lease = await heartbeat(api, key, reservation_id, attempt_id)
    body = encode({"lease_until": lease.lease_until, "lease_seconds": lease.lease_seconds})
    return Answer(status=200, body=body, code="renewed", reservation_id=reservation_id)


async def _settle(api: Api, key: ScopedKey, id_text: str, document: object) -> Answer:
    return await _shown(api, key, await settle_client(api, key, read_id(id_text), ClientSettlement.read(document)))


async def _void(api: Api, key: ScopedKey, id_text: str, document: object) -> Answer:
    members = members_of(document, VOID_MEMBERS)
    attempt_id = None if members.get("attempt_id") is None else read_attempt_id(members)
    return await _shown(api, key, await void(api, key, read_id(id_text), attempt_id, read_reason(members)))


async def _begin_probe(api: Api, key: ScopedKey, id_text: str, document: object) -> Answer:
    attempt_id = read_attempt_id(members_of(document, HEARTBEAT_MEMBERS))
    begun = await begin_probe(api, key, read_id(id_text), attempt_id)
    body = encode(
        {
            "probe_id": begun.id,
            "attempt_id": begun.attempt_id,
            "asked_at": begun.asked_at,
            "counts": begun.counts_in_seconds <= 0,
            "counts_in_seconds": max(begun.counts_in_seconds, 0.0),
        }
    )
    return Answer(status=201, body=body, code="probe-begun", reservation_id=read_id(id_text))


async def _answer_probe(api: Api, key: ScopedKey, id_text: str, probe_text: str, document: object) -> Answer:
    members = members_of(document, PROBE_MEMBERS)
    found = members.get("found")
    if not isinstance(found, bool):
        raise invalid("$.found", "true or false")
    reference = read_reference(members)
    if not found and (reference is not None or members.get("result") is not None):
        raise invalid("$.external_reference", "nothing: what is absent has neither reference nor result")
    if "result" in members and len(encode(members["result"])) > RESULT_BYTES_MAX:
        raise too_large(RESULT_BYTES_MAX, path="$.result")
    seen = Found(exists=found, external_reference=reference, result=members.get("result"), has_result="result" in members)
    looked = await answer_probe(api, key, read_id(id_text), read_id(probe_text), seen)
    probe: dict[str, object] = {"id": probe_text.lower(), "verdict": looked.verdict}
    if looked.again_seconds is not None:
        probe["again_seconds"] = looked.again_seconds
    answer = await _shown(api, key, looked.view, probe=probe)
    return answer


async def _shown(api: Api, key: ScopedKey, view: ReservationView, **more: object) -> Answer:
    contract = await api.directory.contract(key.organization_id, view.tool, view.contract_version)
    vault = await api.directory.vault(key.organization_id)
    document = shown(view, contract=contract, vault=vault) | more
    return Answer(status=200, body=encode(document), code="settled", state=view.state, reservation_id=view.id)
