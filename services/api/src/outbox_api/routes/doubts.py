"""`/v1/doubts/*` and `POST /v1/reviews/{doubts,contradictions}/{reservation_id}`: people end doubts and contradictions.

Source: `interfaces.md` section 3, design section 10.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler

from outbox_api import close_contradiction
from outbox_api.answer_doubt import (
    EVIDENCE_CHARACTERS_MAX,
    REFERENCE_BYTES_MAX,
    DoubtAnswer,
    answer_doubt,
    read_answer,
    read_batch_id,
    read_verdict,
)
from outbox_api.answers import Answer, encode
from outbox_api.api import Api, new_id
from outbox_api.bodies import read_flag, read_members, read_reason, read_text, refuse
from outbox_api.exchange import Exchange
from outbox_api.routes.door import Handle, looked_at, not_found, read_id, respond_with, through
from outbox_api.routes.lists import read_query
from outbox_api.routes.reservations import item
from outbox_api.work_doubts import AT_ONCE_MAX, Batch, Done, recheck_many, resolve_many, summarise
from outbox_domain import json_text
from outbox_domain.scoped_key import ScopedKey
from outbox_runtime.postgres import acquire
from outbox_store import reservations
from outbox_store.doubts import Where

WHERE = ("connection", "tool", "class", "cause", "run", "needs", "reservation")
NEEDS = ("person", "recovery")
RESOLVE_MEMBERS = ("where", "as", "external_references", "reason", "evidence", "override", "expect", "dry_run", "batch_id")
RECHECK_MEMBERS = ("where", "reason", "expect", "rate_per_second", "dry_run")
RATE_DEFAULT = 5.0
RATE_MAX = 1_000.0
"""How many doubts a second recovery begins again with."""


def routes(api: Api) -> list[HTTPRouteHandler]:
    """The handlers of this module."""

    @get("/v1/doubts/summary", include_in_schema=False)
    async def summary(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await looked_at(api, request, lambda key: _summary(api, key, request))

    @post("/v1/doubts/resolve", include_in_schema=False)
    async def resolve(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await _through(api, request, lambda key, body: _resolve(api, key, body))

    @post("/v1/doubts/recheck", include_in_schema=False)
    async def recheck(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await _through(api, request, lambda key, body: _recheck(api, key, body))

    @post("/v1/reviews/doubts/{reservation_id:str}", include_in_schema=False)
    async def answer_one(request: Request[Any, Any, Any]) -> Response[bytes]:
        id_text = str(request.path_params["reservation_id"])
        return await _through(api, request, lambda key, body: _answer_one(api, key, id_text, body))

    @post("/v1/reviews/contradictions/{reservation_id:str}", include_in_schema=False)
    async def close_one(request: Request[Any, Any, Any]) -> Response[bytes]:
        id_text = str(request.path_params["reservation_id"])
        return await _through(api, request, lambda key, body: _close_one(api, key, id_text, body))

    return [summary, resolve, recheck, answer_one, close_one]


async def _through(api: Api, request: Request[Any, Any, Any], handle: Handle) -> Response[bytes]:
    return respond_with(await through(api, Exchange(request.scope, request.receive), handle, keeps_answers=True))


async def _summary(api: Api, key: ScopedKey, request: Request[Any, Any, Any]) -> Answer:
    where = _where(read_query(request.query_params, WHERE), "")
    document = await summarise(api.pool, api.directory, key, where)
    return Answer(status=200, body=encode(document), code="shown")


async def _answer_one(api: Api, key: ScopedKey, id_text: str, body: bytes) -> Answer:
    reservation_id = read_id(id_text)
    verdict = await answer_doubt(api.pool, key, reservation_id, read_answer(_parsed(api, body)), new_id)
    if verdict == "settled":
        await api.wakeups.announce([reservation_id])
    return await _standing(api, key, reservation_id)


async def _close_one(api: Api, key: ScopedKey, id_text: str, body: bytes) -> Answer:
    answer = read_answer(_parsed(api, body), close_contradiction.MEMBERS)
    told_by = await close_contradiction.close_contradiction(api.pool, api.directory, key, read_id(id_text), answer, new_id)
    return await _standing(api, key, told_by)


async def _standing(api: Api, key: ScopedKey, reservation_id: UUID) -> Answer:
    async with acquire(api.pool) as connection:
        view = await reservations.view(connection, key.organization_id, reservation_id)
    if view is None:
        raise not_found()
    document = await item(api, key, view)
    return Answer(status=200, body=encode(document), code="answered", state=view.state, reservation_id=view.id)


async def _resolve(api: Api, key: ScopedKey, body: bytes) -> Answer:
    document = read_members(_parsed(api, body), RESOLVE_MEMBERS)
    batch = _batch(document)
    happened, override = read_verdict(document), read_flag(document, "override")
    evidence = read_text(document, "evidence", characters_max=EVIDENCE_CHARACTERS_MAX)
    if override and evidence is None:
        refuse("$.evidence", f"what was seen, at most {EVIDENCE_CHARACTERS_MAX} characters, because of the override")
    references = _references(document.get("external_references"))
    if references and not happened:
        refuse("$.external_references", "nothing: what did not happen has no reference")
    answer = DoubtAnswer(happened=happened, external_reference=None, reason=batch.reason, evidence=evidence, override=override)
    batch_id = read_batch_id(document) or new_id()
    done = await resolve_many(api.pool, key, batch, answer, references, batch_id, new_id)
    settled = [each.doubt.id for each in done if each.verdict == "settled"]
    if settled:
        await api.wakeups.announce(settled)
    return _answer(batch, batch_id, done)


async def _recheck(api: Api, key: ScopedKey, body: bytes) -> Answer:
    document = read_members(_parsed(api, body), RECHECK_MEMBERS)
    rate = document.get("rate_per_second", RATE_DEFAULT)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.01 <= rate <= RATE_MAX:
        refuse("$.rate_per_second", f"a number from 0.01 to {RATE_MAX:g}")
    batch, batch_id = _batch(document), new_id()
    return _answer(batch, batch_id, await recheck_many(api.pool, key, batch, float(rate), batch_id))


def _answer(batch: Batch, batch_id: UUID, done: list[Done]) -> Answer:
    verdicts = [each.verdict for each in done]
    document = {
        "batch_id": None if batch.dry_run else batch_id,
        "dry_run": batch.dry_run,
        "count": len(done),
        "done": sum(verdict in ("settled", "known", "rechecked") for verdict in verdicts),
        "refused": verdicts.count("refused"),
        "items": [each.document() for each in done],
    }
    return Answer(status=200, body=encode(document), code="answered")


def _parsed(api: Api, body: bytes) -> object:
    return json_text.parse(body, bytes_max=api.settings.body_bytes_max, depth_max=api.settings.body_depth_max)


def _batch(document: dict[str, object]) -> Batch:
    where = document.get("where", {})
    if not isinstance(where, dict):
        refuse("$.where", f"an object with some of the members {', '.join(WHERE)}")
    expect = document.get("expect")
    if isinstance(expect, bool) or not isinstance(expect, int) or not 0 <= expect <= AT_ONCE_MAX:
        refuse("$.expect", f"how many doubts are meant, at most {AT_ONCE_MAX}")
    reason, dry_run = read_reason(document), read_flag(document, "dry_run")
    return Batch(where=_where(where, "$.where."), expect=expect, reason=reason, dry_run=dry_run)


def _where(members: Mapping[str, object], path: str) -> Where:
    for name, value in members.items():
        if name not in WHERE:
            refuse(f"{path}{name[:100]}", f"one of {', '.join(WHERE)}")
        if not isinstance(value, str) or not value or "\x00" in value:
            refuse(f"{path}{name}", "a text")
    texts = {name: str(value) for name, value in members.items()}
    if texts.get("needs", NEEDS[0]) not in NEEDS:
        refuse(f"{path}needs", f"one of {', '.join(NEEDS)}")
    return Where(
        connection=texts.get("connection"),
        tool=texts.get("tool"),
        guarantee_class=texts.get("class"),
        cause=texts.get("cause"),
        run=texts.get("run"),
        needs=texts.get("needs"),
        reservation_id=None if "reservation" not in texts else read_id(texts["reservation"]),
    )


def _references(value: object) -> dict[UUID, str]:
    """The provider's name of each effect, by reservation."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > AT_ONCE_MAX:
        refuse(
            "$.external_references", f"an object of at most {AT_ONCE_MAX} reservations and the provider's names of their effects"
        )
    found: dict[UUID, str] = {}
    for id_text in value:
        reference = read_text(value, id_text, bytes_max=REFERENCE_BYTES_MAX)
        try:
            id = UUID(id_text)
        except ValueError:
            refuse("$.external_references", "ids of reservations as names")
        if reference is None:
            refuse("$.external_references", "the provider's name of each effect")
        found[id] = reference
    return found
