"""`/healthz` and `/readyz`: alive while the event loop turns; ready from settings and schema seen, until drain (design 17).

The same two stand on the metrics port, where no load balancer is in between.
"""

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from outbox_api.api import Api


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @get("/healthz", include_in_schema=False)
    async def healthz() -> Response[bytes]:
        return _said(200, b'{"alive":true}')

    @get("/readyz", include_in_schema=False)
    async def readyz() -> Response[bytes]:
        # Postgres is not asked: while it is away the API stays ready and answers 503 itself.
        return _said(200, b'{"ready":true}') if api.health.ready else _said(503, b'{"ready":false}')

    return [healthz, readyz]


def _said(status: int, body: bytes) -> Response[bytes]:
    return Response(body, status_code=status, media_type="application/json")
