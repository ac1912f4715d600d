"""`/_control`: what tests read of the provider and plan for it. No credential: the sandbox holds nothing real."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from outbox_sandbox.faults import FaultName, MalformedFault, read_fault
from outbox_sandbox.json_body import MalformedJson, decode
from outbox_sandbox.webhooks import MalformedWebhook, read_webhook

if TYPE_CHECKING:
    from outbox_sandbox.server import Sandbox

REQUEST_FILTERS = ("path", "method", "idempotency_key", "marker")


def control_routes(sandbox: Sandbox) -> list[web.RouteDef]:
    """The control routes of one sandbox."""

    async def list_effects(request: web.Request) -> web.Response:
        """Every effect (or those of requests to exactly `?path=`), oldest first."""
        _only(request, ("path",))
        return web.json_response([each.document() for each in sandbox.records.effects(request.query.get("path"))])

    async def list_requests(request: web.Request) -> web.Response:
        """Every received provider request that matches the filters, oldest first, refused and broken ones included."""
        _only(request, REQUEST_FILTERS)
        path, method, idempotency_key, marker = (request.query.get(name) for name in REQUEST_FILTERS)
        found = sandbox.records.requests(path=path, method=method, idempotency_key=idempotency_key, marker=marker)
        return web.json_response(found)

    async def reset(_request: web.Request) -> web.Response:
        """Forget everything, planned faults included."""
        sandbox.reset()
        return web.json_response({"reset": True})

    async def plan_fault(request: web.Request) -> web.Response:
        """Plan a fault; answers with it. forget-keys acts at once and answers how many keys there were."""
        try:
            fault = read_fault(decode(await request.read()))
        except (MalformedFault, MalformedJson) as malformed:
            return _refuse(str(malformed))
        if fault.name is FaultName.FORGET_KEYS:
            return web.json_response({"fault": fault.name.value, "forgotten": sandbox.records.forget_answers()})
        sandbox.faults.planned.append(fault)
        return web.json_response(fault.document())

    async def list_faults(_request: web.Request) -> web.Response:
        """The faults that have not struck yet, with how often they still will."""
        return web.json_response([fault.document() for fault in sandbox.faults.planned])

    async def drop_faults(_request: web.Request) -> web.Response:
        """Forget the planned faults only."""
        sandbox.faults.planned.clear()
        return web.json_response([])

    async def plan_webhook(request: web.Request) -> web.Response:
        """Send the events of the next effects of a path, or of one effect that there is already, to an address."""
        try:
            plan = read_webhook(decode(await request.read()))
        except (MalformedWebhook, MalformedJson) as malformed:
            return _refuse(str(malformed))
        if plan.effect is not None:
            committed = sandbox.records.effect(plan.effect)
            if committed is None:
                return _refuse(f"effect: there is no {plan.effect!r}", status=404)
            sandbox.webhooks.send(plan, committed)
        else:
            sandbox.webhooks.planned.append(plan)
        return web.json_response(plan.document())

    async def list_webhooks(_request: web.Request) -> web.Response:
        """Every webhook that was sent, oldest first, with the status it was answered with (null: not at all)."""
        return web.json_response([sent.document() for sent in sandbox.webhooks.sent])

    async def unknown(request: web.Request) -> web.Response:
        """Keep a mistyped control call from being answered, and logged, as a provider request."""
        return _refuse(f"There is no {request.method} {request.path}", status=404)

    return [
        web.get("/_control/effects", list_effects),
        web.get("/_control/requests", list_requests),
        web.post("/_control/reset", reset),
        web.post("/_control/faults", plan_fault),
        web.get("/_control/faults", list_faults),
        web.delete("/_control/faults", drop_faults),
        web.post("/_control/webhooks", plan_webhook),
        web.get("/_control/webhooks", list_webhooks),
        web.route("*", "/_control{path:(/.*)?}", unknown),
    ]


def _only(request: web.Request, known: tuple[str, ...]) -> None:
    for name in request.query:
        if name not in known:
            raise web.HTTPBadRequest(text=f'{{"error": "unknown filter {name}"}}', content_type="application/json")


def _refuse(reason: str, *, status: int = 400) -> web.Response:
    return web.json_response({"error": reason}, status=status)
