"""`GET /v1/reservations` and `GET /v1/reservations/{id}` (`interfaces.md` section 3)."""

from dataclasses import asdict
from typing import Any

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from outbox_api.answers import Answer, doubt_document, encode, shown
from outbox_api.api import Api
from outbox_api.await_receipt import await_receipt
from outbox_api.reach import may_see
from outbox_api.routes.door import looked_at, not_found, read_id
from outbox_api.routes.lists import FILTERS, PAGE_PARAMETERS, listing, page, read_filter, read_page, read_query, read_whole
from outbox_domain.reservation import State
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import acquire
from outbox_store import contradictions, reservations
from outbox_store.reservations import ReservationView


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @get("/v1/reservations", include_in_schema=False)
    async def list_reservations(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await looked_at(api, request, lambda key: _list(api, key, request))

    @get("/v1/reservations/{reservation_id:str}", include_in_schema=False)
    async def one_reservation(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await looked_at(api, request, lambda key: _one(api, key, request, str(request.path_params["reservation_id"])))

    return [list_reservations, one_reservation]


async def _list(api: Api, key: ScopedKey, request: Request[Any, Any, Any]) -> Answer:
    parameters = read_query(request.query_params, (*FILTERS, *PAGE_PARAMETERS))
    after, limit = read_page(parameters)
    wanted = await read_filter(api, key, parameters)
    async with listing(api) as connection:
        views, following = await reservations.list_(
            connection, key.organization_id, key.environment_id, wanted, after=after, limit=limit
        )
    items = [await item(api, key, view) for view in views if key.reaches(view.tool, view.provider)]
    return page(items, following)


async def _one(api: Api, key: ScopedKey, request: Request[Any, Any, Any], id_text: str) -> Answer:
    parameters = read_query(request.query_params, ("wait",))
    wait = read_whole(parameters, "wait", default=0, least=0, most=int(api.settings.wait_seconds_max))
    reservation_id = read_id(id_text)
    async with acquire(api.pool) as connection:
        view = await reservations.view(connection, key.organization_id, reservation_id)
    if view is None or not may_see(key, view):
        raise not_found()
    if wait:
        awaited = await await_receipt(api.waiters, key.organization_id, reservation_id, seconds=wait, look_first=True)
        view = awaited if awaited is not None else view
    document = await item(api, key, view)
    async with acquire(api.pool) as connection:
        attempts, requesters, evidence = await reservations.detail(connection, key.organization_id, reservation_id)
        contradiction = await contradictions.open_of(connection, key.organization_id, reservation_id)
    document["attempts"] = [asdict(attempt) for attempt in attempts]
    document["requesters"] = [asdict(requester) for requester in requesters]
    document["evidence"] = [asdict(entry) for entry in evidence]
    document["contradiction"] = contradiction and {
        "external_references": contradiction.external_references,
        "since": contradiction.since,
    }
    return Answer(status=200, body=encode(document), code="shown", state=view.state, reservation_id=view.id)


async def item(api: Api, key: ScopedKey, view: ReservationView) -> dict[str, object]:
    """A reservation as it is shown, whatever its state."""
    contract = await api.directory.contract(key.organization_id, view.tool, view.contract_version)
    vault = await api.directory.vault(key.organization_id)
    return shown(view, contract=contract, vault=vault) | {
        "provider": view.provider,
        "tool": view.tool,
        "contract_version": view.contract_version,
        "project": view.project,
        "connection": view.connection,
        "occurrence": view.occurrence,
        "reference": view.reference,
        "amount": None if view.amount is None else {"value": view.amount, "currency": view.currency},
        "declared": view.declared,
        "actor_chain": view.actor_chain,
        "checkpoint": view.checkpoint,
        "step": view.step,
        "call_id": view.call_id,
        "model": view.model,
        "trace_id": view.trace_id,
        "created_at": view.created_at,
        "changed_at": view.changed_at,
        "settled_at": view.settled_at,
        "not_after": view.not_after,
        "doubt": doubt_document(view) if view.state is State.IN_DOUBT else None,
    }
