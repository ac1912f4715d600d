"""`/v1/epoch`: what the ledger may have lost, and a person who says that it has not. Source: `interfaces.md` section 11."""

from typing import Any

from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler

from outbox_api.answers import Answer, encode
from outbox_api.api import Api
from outbox_api.clear_epoch import clear_epoch, read_clearance, show_epoch
from outbox_api.exchange import Exchange
from outbox_api.routes.door import looked_at, respond_with, through
from outbox_domain import json_text
from outbox_domain.scoped_key import ScopedKey
from outbox_store.epochs import EpochView


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @get("/v1/epoch", include_in_schema=False)
    async def show(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await looked_at(api, request, lambda key: _show(api, key))

    @post("/v1/epoch/clear", include_in_schema=False)
    async def clear(request: Request[Any, Any, Any]) -> Response[bytes]:
        exchange = Exchange(request.scope, request.receive)
        return respond_with(await through(api, exchange, lambda key, body: _clear(api, key, body), keeps_answers=True))

    return [show, clear]


async def _show(api: Api, key: ScopedKey) -> Answer:
    return _answer(await show_epoch(api.pool, key), "shown")


async def _clear(api: Api, key: ScopedKey, body: bytes) -> Answer:
    parsed = json_text.parse(body, bytes_max=api.settings.body_bytes_max, depth_max=api.settings.body_depth_max)
    return _answer(await clear_epoch(api.pool, key, read_clearance(parsed)), "cleared")


def _answer(epoch: EpochView, code: str) -> Answer:
    document = {name: getattr(epoch, name) for name in EpochView.__dataclass_fields__}
    return Answer(status=200, body=encode(document), code=code)
