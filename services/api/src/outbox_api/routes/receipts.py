"""`GET /v1/receipts` and `GET /v1/receipts/{id}` (`interfaces.md` section 3)."""

from typing import Any

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from outbox_api.answers import Answer, encode, receipt_document
from outbox_api.api import Api
from outbox_api.reach import may_see
from outbox_api.routes.door import looked_at, not_found, read_id
from outbox_api.routes.lists import FILTERS, PAGE_PARAMETERS, listing, page, read_filter, read_page, read_query
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import acquire
from outbox_store import receipts, reservations


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @get("/v1/receipts", include_in_schema=False)
    async def list_receipts(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await looked_at(api, request, lambda key: _list(api, key, request))

    @get("/v1/receipts/{receipt_id:str}", include_in_schema=False)
    async def one_receipt(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await looked_at(api, request, lambda key: _one(api, key, request, str(request.path_params["receipt_id"])))

    return [list_receipts, one_receipt]


async def _list(api: Api, key: ScopedKey, request: Request[Any, Any, Any]) -> Answer:
    parameters = read_query(request.query_params, (*FILTERS, *PAGE_PARAMETERS))
    after, limit = read_page(parameters)
    wanted = await read_filter(api, key, parameters)
    async with listing(api) as connection:
        found, following = await receipts.list_(
            connection, key.organization_id, key.environment_id, wanted, after=after, limit=limit
        )
    return page([receipt_document(receipt) for receipt in found if key.reaches(receipt.tool, receipt.provider)], following)


async def _one(api: Api, key: ScopedKey, request: Request[Any, Any, Any], id_text: str) -> Answer:
    read_query(request.query_params, ())
    receipt_id = read_id(id_text)
    async with acquire(api.pool) as connection:
        receipt = await receipts.by_id(connection, key.organization_id, receipt_id)
        view = None if receipt is None else await reservations.view(connection, key.organization_id, receipt.reservation_id)
    if receipt is None or view is None or not may_see(key, view):
        raise not_found()
    return Answer(status=200, body=encode(receipt_document(receipt)), code="shown")
