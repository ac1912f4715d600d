"""`POST /v1/webhooks/{connection_id}`: what a provider sends on its own. It presents no scoped key; its signature is its key."""

import time
from typing import Any

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler

from outbox_api.answers import Answer, encode
from outbox_api.api import Api, new_id
from outbox_api.exchange import Disconnected, Exchange
from outbox_api.routes.door import answer_to_error, read_id, respond_with
from outbox_api.take_webhook import listening, take_webhook

BODY_BYTES_MAX = 1 << 20
"""More than any provider sends; the API's own limit holds where it is lower."""


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @post("/v1/webhooks/{connection_id:str}", include_in_schema=False)
    async def receive(request: Request[Any, Any, Any]) -> Response[bytes]:
        exchange = Exchange(request.scope, request.receive)
        return respond_with(await _answered(api, exchange, str(request.path_params["connection_id"])))

    return [receive]


async def _answered(api: Api, exchange: Exchange, id_text: str) -> Answer:
    # Whoever sends here has shown nothing yet: what no connection waits for is not read, not even to be thrown away.
    try:
        by = await listening(api.pool, read_id(id_text))
    except Exception as error:
        return _problem(api, error)
    try:
        body = await exchange.body(min(BODY_BYTES_MAX, api.settings.body_bytes_max), seconds_max=api.settings.body_seconds_max)
        taken = await take_webhook(api.pool, api.directory, by, exchange.headers, body, now_seconds=time.time(), new_id=new_id)
    except Disconnected:
        raise
    except Exception as error:
        answer = _problem(api, error)
        await exchange.discard()
        return answer
    if taken.verdict == "settled" and taken.reservation_id is not None:
        await api.wakeups.announce([taken.reservation_id])
    return Answer(status=200, body=encode({"received": True, "verdict": taken.verdict}), code="received")


def _problem(api: Api, error: Exception) -> Answer:
    """Nothing may escape from here: the provider gets a problem, and sends the event again."""
    answer = answer_to_error(error)
    api.metrics.refusals.labels(code=answer.code).inc()
    return answer
