"""The way in and out that all routes share: who asks, the body, the request key, and every error answered in the skeleton."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from litestar import Request, Response

from outbox_api.answers import Answer, problem
from outbox_api.api import Api
from outbox_api.auth import authenticate
from outbox_api.errors import from_exception
from outbox_api.exchange import Disconnected, Exchange
from outbox_api.request_keys import read_header
from outbox_api.reserve import Refused
from outbox_domain.errors import OutboxError
from outbox_domain.scoped_key import ScopedKey

Handle = Callable[[ScopedKey, bytes], Awaitable[Answer]]


def answer_to_error(error: Exception) -> Answer:
    """The answer to an exception, whatever it is."""
    if isinstance(error, Refused):
        return problem(error.error, facts=error.facts)
    return problem(from_exception(error))


async def through(api: Api, exchange: Exchange, handle: Handle, *, keeps_answers: bool) -> Answer:
    """Answer a request that changes something.

    Args:
        api: what this process has.
        exchange: the request.
        handle: makes the answer for a key and a body.
        keeps_answers: whether an `Idempotency-Key` is honoured.

    Raises:
        Disconnected: the caller went away before its request was read; there is nobody to answer.
    """
    try:
        key = await authenticate(api.directory, exchange.headers.get("authorization"))
        body = await exchange.body(api.settings.body_bytes_max, seconds_max=api.settings.body_seconds_max)
        name = read_header(exchange) if keeps_answers else None
        if name is None:
            return await handle(key, body)

        async def answered() -> Answer:
            try:
                return await handle(key, body)
            except Exception as error:
                # A refusal is an answer too, and some are kept for the request key.
                return answer_to_error(error)

        vault = await api.directory.vault(key.organization_id)
        return await api.request_keys.answer_once(key, vault, exchange, body, name, answered)
    except Disconnected:
        raise
    except Exception as error:
        # The one place where nothing may escape: the caller always gets the skeleton.
        answer = answer_to_error(error)
        api.metrics.refusals.labels(code=answer.code).inc()
        await exchange.discard()
        return answer


async def looked_at(
    api: Api, request: Request[Any, Any, Any], handle: Callable[[ScopedKey], Awaitable[Answer]]
) -> Response[bytes]:
    """Answer a request that only reads.

    Args:
        api: what this process has.
        request: the request.
        handle: makes the answer for a key.
    """
    try:
        # All of them, as for a request that changes something: two proxies must not each believe another one.
        authorization = ", ".join(request.headers.getall("authorization", []))
        answer = await handle(await authenticate(api.directory, authorization))
    except Exception as error:
        # The one place where nothing may escape: the caller always gets the skeleton.
        answer = answer_to_error(error)
        api.metrics.refusals.labels(code=answer.code).inc()
    return respond_with(answer)


def read_id(text: str) -> UUID:
    """An id in an address.

    Raises:
        OutboxError: `not-found`; what is not an id names nothing.
    """
    try:
        id = UUID(text)
    except ValueError:
        raise not_found() from None
    if str(id) != text.lower():
        raise not_found()
    return id


def respond_with(answer: Answer) -> Response[bytes]:
    """An answer as Litestar sends it."""
    return Response(answer.body, status_code=answer.status, media_type=answer.content_type, headers=dict(answer.headers))


def not_found(detail: str = "There is nothing under this address that this key reaches.") -> OutboxError:
    """Nothing there, or nothing that may be told."""
    return OutboxError("not-found", detail)
