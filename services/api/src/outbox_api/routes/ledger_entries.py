"""`GET /v1/ledger-entries` (`interfaces.md` section 3): the ledger as its followers read it, oldest entry first."""

from typing import Any

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from outbox_api.answers import Answer
from outbox_api.api import Api
from outbox_api.routes.door import looked_at, read_id
from outbox_api.routes.lists import PAGE_PARAMETERS, listing, page, read_page, read_query
from outbox_domain import messages
from outbox_domain.canonical import digest_text
from outbox_domain.capability import Capability
from outbox_domain.errors import OutboxError
from outbox_domain.scoped_key import ScopedKey
from outbox_store import ledger_entries
from outbox_store.ledger_entries import Entry

FILTERS = ("reservation_id", "kind")


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @get("/v1/ledger-entries", include_in_schema=False)
    async def list_ledger_entries(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await looked_at(api, request, lambda key: _list(api, key, request))

    return [list_ledger_entries]


async def _list(api: Api, key: ScopedKey, request: Request[Any, Any, Any]) -> Answer:
    key.require(Capability.READ_LEDGER)
    if key.project is not None or key.run is not None or key.providers is not None or key.tools is not None:
        # An entry says neither project nor provider, so a narrower key cannot be kept to its own part of the ledger.
        raise OutboxError(
            "out-of-scope",
            "The ledger is read by keys that are bound to an environment and to nothing narrower.",
            message=messages.out_of_scope("this key does not reach the ledger"),
            dimension="ledger",
        )
    parameters = read_query(request.query_params, (*FILTERS, *PAGE_PARAMETERS))
    after, limit = read_page(parameters)
    reservation_id = parameters.get("reservation_id")
    async with listing(api) as connection:
        entries, following = await ledger_entries.list_(
            connection,
            key.organization_id,
            key.environment_id,
            after=after,
            limit=limit,
            reservation_id=None if reservation_id is None else read_id(reservation_id),
            kind=parameters.get("kind"),
        )
    return page([_document(entry) for entry in entries], following)


def _document(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.id,
        "at": entry.at,
        "kind": entry.kind,
        "reservation_id": entry.reservation_id,
        "attempt_id": entry.attempt_id,
        "from": entry.from_state,
        "to": entry.to_state,
        "outcome": entry.outcome,
        "decision": entry.decision,
        "actor_chain": entry.actor_chain,
        "run": entry.run,
        "tool": entry.tool,
        "operation_key": entry.operation_key,
        "input_digest": None if entry.input_digest is None else digest_text(entry.input_digest),
        "declared": entry.declared,
        "trace_id": entry.trace_id,
        "detail": entry.detail,
    }
