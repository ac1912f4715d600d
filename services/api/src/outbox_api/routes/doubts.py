"""`POST /v1/reviews/doubts/{reservation_id}`: a person ends a doubt (`interfaces.md` section 3, design section 10)."""

from typing import Any

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler

from outbox_api.answer_doubt import answer_doubt, read_answer
from outbox_api.answers import Answer, encode
from outbox_api.api import Api, new_id
from outbox_api.exchange import Exchange
from outbox_api.routes.door import not_found, read_id, respond_with, through
from outbox_api.routes.reservations import item
from outbox_domain import json_text
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import acquire
from outbox_store import reservations


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @post("/v1/reviews/doubts/{reservation_id:str}", include_in_schema=False)
    async def answer_one(request: Request[Any, Any, Any]) -> Response[bytes]:
        async def handle(key: ScopedKey, body: bytes) -> Answer:
            return await _answer_one(api, key, str(request.path_params["reservation_id"]), body)

        return respond_with(await through(api, Exchange(request.scope, request.receive), handle, keeps_answers=True))

    return [answer_one]


def _document(api: Api, body: bytes) -> object:
    return json_text.parse(body, bytes_max=api.settings.body_bytes_max, depth_max=api.settings.body_depth_max)


async def _answer_one(api: Api, key: ScopedKey, id_text: str, body: bytes) -> Answer:
    reservation_id = read_id(id_text)
    verdict = await answer_doubt(api.pool, key, reservation_id, read_answer(_document(api, body)), new_id)
    if verdict == "settled":
        await api.wakeups.announce([reservation_id])
    async with acquire(api.pool) as connection:
        view = await reservations.view(connection, key.organization_id, reservation_id)
    if view is None:
        raise not_found()
    document = await item(api, key, view)
    return Answer(status=200, body=encode(document), code="answered", state=view.state, reservation_id=view.id)
