"""The Litestar application: routes put together, and whatever the framework itself refuses answered in the skeleton."""

import asyncio
from typing import Any

from litestar import Litestar, Request, Response, get
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from outbox_api.answers import Answer, problem
from outbox_api.api import Api
from outbox_api.exchange import Disconnected
from outbox_api.openapi import document_bytes
from outbox_api.routes import (
    client_executed,
    doubts,
    epoch,
    health,
    ledger_entries,
    projects,
    receipts,
    reservations,
    scoped_keys,
    tool_calls,
    webhooks,
)
from outbox_api.routes.door import answer_to_error, not_found, respond_with
from outbox_domain.errors import OutboxError


class InFlight:
    """An application that knows which of its requests are not answered yet."""

    def __init__(self, application: ASGIApp) -> None:
        """Wraps `application`."""
        self._application = application
        self._requests: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests.add(answered)
        try:
            await self._application(scope, receive, send)
        finally:
            self._requests.discard(answered)
            answered.set_result(None)

    async def finished(self, *, seconds: float) -> None:
        """Wait until the requests that are under way at this moment are answered, for some seconds at most."""
        if self._requests:
            await asyncio.wait(set(self._requests), timeout=seconds)


def build(api: Api) -> Litestar:
    """The application of one process.

    Args:
        api: what its routes are handed.
    """
    return Litestar(
        route_handlers=[
            *tool_calls.routes(api),
            *reservations.routes(api),
            *client_executed.routes(api),
            *receipts.routes(api),
            *doubts.routes(api),
            *epoch.routes(api),
            *webhooks.routes(api),
            *ledger_entries.routes(api),
            *projects.routes(api),
            *scoped_keys.routes(api),
            *health.routes(api),
            _openapi(),
        ],
        exception_handlers={HTTPException: _refused_by_framework, Disconnected: _nobody_there, Exception: _unexpected},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=api.settings.body_bytes_max,
        debug=False,
    )


def _openapi() -> HTTPRouteHandler:
    body = document_bytes()

    @get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response[bytes]:
        return Response(body, status_code=200, media_type="application/json")

    return openapi


def _refused_by_framework(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """What Litestar refuses before a route sees it: an unknown address, a method that is not answered to."""
    headers = dict(error.headers or {})
    answer: Answer
    if error.status_code == 404:
        answer = problem(not_found("There is nothing at this address."))
    elif error.status_code == 405:
        answer = problem(OutboxError("method-not-allowed", "This address does not answer to this method."))
    else:
        answer = problem(OutboxError("invalid-request", "The request is not as this endpoint expects it."))
    response = respond_with(answer)
    for name, value in headers.items():
        response.headers[name] = value
    return response


def _nobody_there(request: Request[Any, Any, Any], error: Disconnected) -> Response[bytes]:
    """The caller went away before its request was read; what is answered reaches nobody, and it is no error of ours."""
    return respond_with(problem(OutboxError("invalid-request", "The request was not sent to its end.")))


def _unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    return respond_with(answer_to_error(error))
