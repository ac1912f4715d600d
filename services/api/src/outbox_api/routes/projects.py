"""`POST /v1/projects`: an administrator adds a partition of the organization (design section 2 and 10).

Operation keys, records and runs never cross a project, so a fresh one is a fresh ledger for whoever holds a key of it. The same
name again is the same project.
"""

from typing import Any

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler

from outbox_api.answers import Answer, encode
from outbox_api.api import Api, new_id
from outbox_api.bodies import read_members, read_name, refuse
from outbox_api.exchange import Exchange
from outbox_api.routes.door import respond_with, through
from outbox_domain import json_text, messages
from outbox_domain.capability import Capability
from outbox_domain.errors import OutboxError
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import transaction
from outbox_store import organizations
from outbox_store.ledger_entries import NewEntry, append


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @post("/v1/projects", include_in_schema=False)
    async def create_project(request: Request[Any, Any, Any]) -> Response[bytes]:
        exchange = Exchange(request.scope, request.receive)

        async def handle(key: ScopedKey, body: bytes) -> Answer:
            document = json_text.parse(body, bytes_max=api.settings.body_bytes_max, depth_max=api.settings.body_depth_max)
            return await _create(api, key, document)

        return respond_with(await through(api, exchange, handle, keeps_answers=True))

    return [create_project]


async def _create(api: Api, key: ScopedKey, document: object) -> Answer:
    key.require(Capability.MANAGE_KEYS)
    if key.project is not None:
        raise OutboxError(
            "out-of-scope",
            "A key that is bound to a project makes no other.",
            message=messages.out_of_scope("the key is bound to a project"),
            dimension="project",
        )
    name = read_name(read_members(document, ("name",)).get("name"), "$.name")
    if name is None:
        refuse("$.name", "the project's name")
    async with transaction(api.pool) as tx:
        if await organizations.project(tx, key.organization_id, name) is None:
            project_id = new_id()
            if await organizations.create_project(tx, key.organization_id, project_id, name) == project_id:
                await append(
                    tx,
                    NewEntry(
                        organization_id=key.organization_id,
                        environment_id=key.environment_id,
                        kind="project-created",
                        actor_chain=list(key.actor_chain),
                        detail={"before": None, "after": {"name": name}},
                    ),
                )
    return Answer(status=201, body=encode({"name": name}), code="created")
