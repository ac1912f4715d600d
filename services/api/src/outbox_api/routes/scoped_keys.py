"""`POST /v1/scoped-keys`: an admin makes a key for an agent (`interfaces.md` section 3, design section 11).

A dimension that is not enforced yet is refused and never stored: a limit that nobody keeps is worse than none. No key is wider
than the one that made it.
"""

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn
from uuid import UUID

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
from outbox_domain.scoped_key import KEY_ID_BYTES, SECRET_BYTES, ScopedKey, key_id_text, matches, mint
from outbox_runtime.postgres import acquire, transaction
from outbox_store import actors, organizations, scoped_keys
from outbox_store.ledger_entries import NewEntry, append
from outbox_store.scoped_keys import NewKey

MEMBERS = ("environment", "project", "actor", "run", "providers", "tools", "expires_at")
NOT_ENFORCED = (
    "checkpoint",
    "employee",
    "agent",
    "subagent",
    "limits",
    "limit",
    "quotas",
    "connections",
    "models",
    "registered_runs",
)
"""Dimensions that a scoped key will have and that nothing keeps yet."""

PATTERNS_MAX = 100
_PROVIDER = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TOOL_PATTERN = re.compile(r"[a-z0-9_.*-]{1,200}")


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """A key as it is asked for."""

    environment: str
    actor_name: str
    project: str | None
    run: str | None
    providers: tuple[str, ...] | None
    tools: tuple[str, ...] | None
    expires_at: datetime | None


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @post("/v1/scoped-keys", include_in_schema=False)
    async def create_scoped_key(request: Request[Any, Any, Any]) -> Response[bytes]:
        exchange = Exchange(request.scope, request.receive)

        async def handle(key: ScopedKey, body: bytes) -> Answer:
            document = json_text.parse(body, bytes_max=api.settings.body_bytes_max, depth_max=api.settings.body_depth_max)
            return await _create(api, key, document)

        return respond_with(await through(api, exchange, handle, keeps_answers=True))

    return [create_scoped_key]


async def _create(api: Api, key: ScopedKey, document: object) -> Answer:
    key.require(Capability.MANAGE_KEYS)
    wish = _read(document)
    _not_wider(key, wish)
    project_id = await _project_id(api, key, wish)
    key_id, secret = os.urandom(KEY_ID_BYTES), os.urandom(SECRET_BYTES)
    text, digest = mint(wish.environment, key_id, secret)
    shown: dict[str, object] = {
        "id": key_id_text(key_id),
        "environment": wish.environment,
        "project": wish.project,
        "actor": {"kind": "agent", "name": wish.actor_name},
        "run": wish.run,
        "providers": wish.providers,
        "tools": wish.tools,
        "expires_at": wish.expires_at,
    }
    async with transaction(api.pool) as tx:
        actor_id = await actors.ensure(tx, key.organization_id, new_id(), "agent", wish.actor_name)
        await scoped_keys.insert(
            tx,
            NewKey(
                organization_id=key.organization_id,
                id=key_id_text(key_id),
                environment_id=key.environment_id,
                project_id=project_id,
                run=wish.run,
                actor_id=actor_id,
                providers=wish.providers,
                tools=wish.tools,
                expires_at=wish.expires_at,
                secret_digest=digest,
                created_by=key.actor_id,
            ),
        )
        await append(
            tx,
            NewEntry(
                organization_id=key.organization_id,
                environment_id=key.environment_id,
                kind="scoped-key-created",
                actor_chain=list(key.actor_chain),
                run=wish.run,
                detail={"before": None, "after": shown},
            ),
        )
    return Answer(
        status=201,
        body=encode({"id": shown["id"], "key": text} | shown),
        kept_body=encode(shown),  # A repeat of a key creation returns the id without the secret (design 5.7).
        code="created",
    )


def _read(body: object) -> _Wish:
    document = read_members(body, (*MEMBERS, *NOT_ENFORCED), named=("environment", "actor"))
    for name in document:
        if name in NOT_ENFORCED:
            raise OutboxError(
                "not-enforced",
                f"$.{name}: nothing keeps a key to this dimension yet, so no key is made with it.",
                message=messages.invalid_input(f"$.{name}", "no such field yet, because nothing would keep the key to it"),
                path=f"$.{name}",
            )
    environment = read_name(document.get("environment"), "$.environment")
    if environment is None:
        refuse("$.environment", "the name of an environment")
    return _Wish(
        environment=environment,
        actor_name=_actor(document.get("actor")),
        project=read_name(document.get("project"), "$.project"),
        run=read_name(document.get("run"), "$.run"),
        providers=_patterns(document.get("providers"), "$.providers", _PROVIDER, "names of providers"),
        tools=_patterns(document.get("tools"), "$.tools", _TOOL_PATTERN, "names of tools, `*` standing for any characters"),
        expires_at=_expiry(document.get("expires_at")),
    )


def _actor(value: object) -> str:
    if not isinstance(value, dict) or set(value) != {"kind", "name"}:
        refuse("$.actor", "an object with the members kind and name")
    if value["kind"] != "agent":
        if value["kind"] in ("member", "subagent"):
            # A key of a member would carry the member's roles, a subagent's would need its parent's: both come with delegation.
            raise OutboxError(
                "not-enforced",
                "$.actor.kind: keys are made for agents; members and subagents need delegation, which there is not yet.",
                message=messages.invalid_input("$.actor.kind", "agent"),
                path="$.actor.kind",
            )
        refuse("$.actor.kind", "agent")
    name = read_name(value["name"], "$.actor.name")
    if name is None:
        refuse("$.actor.name", "the agent's name")
    return name


def _patterns(value: object, path: str, form: re.Pattern[str], what: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= PATTERNS_MAX:
        # An empty list could be read as "none" or as "any"; it is neither.
        refuse(path, f"a list of 1 to {PATTERNS_MAX} {what}")
    for index, item in enumerate(value):
        if not isinstance(item, str) or form.fullmatch(item) is None:
            refuse(f"{path}[{index}]", what)
    return tuple(dict.fromkeys(value))


def _expiry(value: object) -> datetime | None:
    if value is None:
        return None
    expected = "a time in the future, such as 2026-01-31T08:15:00Z"
    if not isinstance(value, str):
        refuse("$.expires_at", expected)
    try:
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            refuse("$.expires_at", expected)
        at = at.astimezone(UTC)
    except (OverflowError, ValueError):
        # In the last hours of the calendar a time may have no counterpart in UTC.
        refuse("$.expires_at", expected)
    if at <= datetime.now(UTC):
        refuse("$.expires_at", expected)
    return at


def _not_wider(key: ScopedKey, wish: _Wish) -> None:
    """Refuse a key that would reach anything its maker's does not."""
    if wish.environment != key.environment:
        _too_wide("environment")
    if key.project is not None and wish.project != key.project:
        _too_wide("project")
    if key.run is not None and wish.run != key.run:
        _too_wide("run")
    if key.providers is not None and (wish.providers is None or not set(wish.providers) <= key.providers):
        _too_wide("providers")
    if key.tools is not None and (wish.tools is None or not all(_covered(tool, key.tools) for tool in wish.tools)):
        _too_wide("tools")
    if key.expires_at is not None and (wish.expires_at is None or wish.expires_at > key.expires_at):
        _too_wide("expires_at")


def _covered(pattern: str, by: frozenset[str]) -> bool:
    """Whether one of the patterns fits everything that `pattern` fits: its star is then met by a star of theirs."""
    return any(matches(wider, pattern) for wider in by)


def _too_wide(dimension: str) -> NoReturn:
    raise OutboxError(
        "out-of-scope",
        f"The new key would be wider than the one that makes it, in the dimension {dimension}.",
        message=messages.out_of_scope("the new key would be wider than the one that makes it"),
        dimension=dimension,
    )


async def _project_id(api: Api, key: ScopedKey, wish: _Wish) -> UUID | None:
    if wish.project is None:
        return None
    async with acquire(api.pool) as connection:
        project_id = await organizations.project(connection, key.organization_id, wish.project)
    if project_id is None:
        refuse("$.project", "the name of a project of this organization")
    return project_id
