"""The OpenAPI 3.1 document, written from one table of routes. A test compares it with the routes that are served."""

from collections.abc import Mapping
from typing import Any

import msgspec

from outbox_api.errors import STATUS
from outbox_api.routes import lists
from outbox_api.routes.scoped_keys import MEMBERS as KEY_MEMBERS
from outbox_domain.errors import PROBLEMS
from outbox_domain.reservation import State

VERSION = "0.1.0"

Document = dict[str, Any]

_TEXT: Document = {"type": "string"}
_NAME: Document = {"type": "string", "minLength": 1, "maxLength": 200}
_UUID: Document = {"type": "string", "format": "uuid"}
_TIME: Document = {"type": "string", "format": "date-time"}
_OBJECT: Document = {"type": "object", "additionalProperties": True}


def document_bytes() -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(document())


def document() -> Document:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Agent Outbox",
            "version": VERSION,
            "description": "The gateway and ledger of an agent's mutating tool calls: at most one dispatch per operation key "
            "without evidence that the earlier one did not happen.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"scopedKey": []}],
        "tags": [{"name": name} for name in ("tool-calls", "reservations", "receipts", "ledger", "keys", "process")],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "scopedKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A scoped key, `obx_<environment>_<id>_<secret>`.",
                }
            },
            "parameters": _parameters(),
            "headers": _headers(),
            "schemas": _schemas(),
        },
    }


def _paths() -> Document:
    return {
        "/v1/tool-calls": {
            "post": _operation(
                "createToolCall",
                "tool-calls",
                "Ask for one effect, wait for it and get its receipt.",
                parameters=["IdempotencyKey", "Prefer", "Traceparent", "OutboxRun", "OutboxCheckpoint"],
                body="ToolCall",
                answers={
                    "200": _answer(
                        "Settled, now or before.", "Answer", ["Server-Timing", "Outbox-Replayed", "Idempotent-Replayed"]
                    ),
                    "202": _answer("Not final yet.", "Answer", ["Server-Timing", "Location", "Retry-After"]),
                },
                problems=(400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503),
            )
        },
        "/v1/tool-calls/resolve": {
            "post": _operation(
                "resolveToolCall",
                "tool-calls",
                "What a tool call would come to; writes nothing. For members who may resolve.",
                parameters=["OutboxRun", "OutboxCheckpoint"],
                body="ToolCall",
                answers={"200": _answer("What it would come to.", "Answer")},
                problems=(400, 401, 403, 404, 409, 413, 415, 422, 500, 503),
            )
        },
        "/v1/reservations": {
            "get": _operation(
                "listReservations",
                "reservations",
                "Reservations, newest first.",
                parameters=[*_filter_names(), "Cursor", "Limit"],
                answers={"200": _answer("A page.", "ReservationPage")},
                problems=(401, 403, 422, 429, 500, 503),
            )
        },
        "/v1/reservations/{reservation_id}": {
            "get": _operation(
                "getReservation",
                "reservations",
                "One reservation, whatever its state, with its attempts, requesters and evidence.",
                parameters=["ReservationId", "Wait"],
                answers={"200": _answer("The reservation.", "Reservation")},
                problems=(401, 403, 404, 422, 500, 503),
            )
        },
        "/v1/receipts": {
            "get": _operation(
                "listReceipts",
                "receipts",
                "Receipts, newest first.",
                parameters=[*_filter_names(), "Cursor", "Limit"],
                answers={"200": _answer("A page.", "ReceiptPage")},
                problems=(401, 403, 422, 429, 500, 503),
            )
        },
        "/v1/receipts/{receipt_id}": {
            "get": _operation(
                "getReceipt",
                "receipts",
                "One receipt; it never changes.",
                parameters=["ReceiptId"],
                answers={"200": _answer("The receipt.", "Receipt")},
                problems=(401, 403, 404, 422, 500, 503),
            )
        },
        "/v1/ledger-entries": {
            "get": _operation(
                "listLedgerEntries",
                "ledger",
                "Ledger entries, oldest first; `next_cursor` is always there, so that a follower goes on with it.",
                parameters=["FilterReservationId", "FilterKind", "Cursor", "Limit"],
                answers={"200": _answer("A page.", "LedgerEntryPage")},
                problems=(401, 403, 404, 422, 429, 500, 503),
            )
        },
        "/v1/scoped-keys": {
            "post": _operation(
                "createScopedKey",
                "keys",
                "Make a scoped key for an agent; its secret is shown once. For members who may manage keys.",
                parameters=["IdempotencyKey"],
                body="NewScopedKey",
                answers={
                    "201": _answer("The key; a repeat with the same request key returns it without its secret.", "ScopedKey")
                },
                problems=(400, 401, 403, 409, 413, 415, 422, 500, 503),
            )
        },
        "/healthz": {"get": _probe("healthz", "Whether the event loop turns.", ())},
        "/readyz": {"get": _probe("readyz", "Whether the process takes requests.", ("503",))},
        "/openapi.json": {"get": _probe("openapi", "This document.", ())},
    }


def _operation(
    name: str,
    tag: str,
    summary: str,
    *,
    parameters: list[str],
    answers: Document,
    problems: tuple[int, ...],
    body: str | None = None,
) -> Document:
    operation: Document = {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "parameters": [{"$ref": f"#/components/parameters/{parameter}"} for parameter in parameters],
        "responses": answers | {str(status): _problem(status) for status in (*problems, 405)},
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    return operation


def _probe(name: str, summary: str, others: tuple[str, ...]) -> Document:
    said = {"content": {"application/json": {"schema": _OBJECT}}}
    return {
        "operationId": name,
        "tags": ["process"],
        "summary": summary,
        "security": [],
        "responses": {"200": {"description": "Yes.", **said}}
        | {other: {"description": "No.", **said} for other in others}
        | {"405": _problem(405)},
    }


def _answer(description: str, schema: str, headers: list[str] | None = None) -> Document:
    answer: Document = {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}
    if headers:
        answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    return answer


def _problem(status: int) -> Document:
    codes = [code for code, of in STATUS.items() if of == status]
    return {
        "description": "; ".join(f"`{code}`: {PROBLEMS[code].title}" for code in codes),
        "content": {"application/problem+json": {"schema": _ref("Problem")}},
    }


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _nullable(schema: Document) -> Document:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(schema: Document) -> Document:
    return {"type": "array", "items": schema}


def _filter_names() -> list[str]:
    return [f"Filter{_camel(name)}" for name in lists.FILTERS]


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _parameters() -> Document:
    filters = {
        f"Filter{_camel(name)}": _query(name, _filter_schema(name), _FILTER_MEANINGS.get(name, f"Only with this {name}."))
        for name in (*lists.FILTERS, "kind", "reservation_id")
    }
    return filters | {
        "Cursor": _query("cursor", _TEXT, "`next_cursor` of the page before."),
        "Limit": _query("limit", _whole(1, lists.LIMIT_MAX, lists.LIMIT_DEFAULT), "Rows a page."),
        "Wait": _query("wait", _whole(0, 60, 0), "Seconds to wait until it is final."),
        "ReservationId": {"name": "reservation_id", "in": "path", "required": True, "schema": _UUID},
        "ReceiptId": {"name": "receipt_id", "in": "path", "required": True, "schema": _UUID},
        "IdempotencyKey": _header(
            "Idempotency-Key",
            {"type": "string", "minLength": 1, "maxLength": 1024},
            "The identity of this request, quoted or bare, 1 to 255 characters: a final answer comes back as the same bytes for "
            "24 hours; with another body it is refused.",
        ),
        "Prefer": _header("Prefer", _TEXT, "`wait=N` seconds (25 unless given, at most 60), or `respond-async` (RFC 7240)."),
        "Traceparent": _header("traceparent", _TEXT, "The caller's trace (W3C Trace Context)."),
        "OutboxRun": _header("Outbox-Run", _NAME, "The run, in place of the member `run`."),
        "OutboxCheckpoint": _header("Outbox-Checkpoint", _NAME, "The checkpoint, in place of the member `checkpoint`."),
    }


_FILTER_MEANINGS: Mapping[str, str] = {
    "agent": "Only where this actor acted, `agent:refunds`.",
    "from": "Only from this time on.",
    "to": "Only before this time.",
    "kind": "Only entries of this kind.",
    "reservation_id": "Only entries of this reservation.",
}


def _filter_schema(name: str) -> Document:
    if name == "state":
        return {"enum": [str(state) for state in State]}
    if name in ("from", "to"):
        return _TIME
    if name == "reservation_id":
        return _UUID
    return {"type": "string", "minLength": 1, "maxLength": lists.VALUE_CHARACTERS_MAX}


def _whole(least: int, most: int, default: int) -> Document:
    return {"type": "integer", "minimum": least, "maximum": most, "default": default}


def _query(name: str, schema: Document, description: str) -> Document:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _header(name: str, schema: Document, description: str) -> Document:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def _headers() -> Document:
    return {
        "Server-Timing": {"schema": _TEXT, "description": "Milliseconds of `reserve`, `queue`, `provider`, `settle`."},
        "Outbox-Replayed": {"schema": {"const": "true"}, "description": "An earlier or concurrent call made the effect."},
        "Idempotent-Replayed": {"schema": {"const": "true"}, "description": "The same, by the name other APIs use."},
        "Location": {"schema": {"type": "string", "format": "uri-reference"}, "description": "The reservation."},
        "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds until it is worth asking again."},
    }


def _schemas() -> Document:
    amount = _closed({"value": {"type": "integer"}, "currency": _TEXT}, required=("value", "currency"))
    run = _closed({"id": _UUID, "name": _TEXT, "lineage": _UUID}, required=("id", "lineage"))
    retry = _closed(
        {
            "action": {"enum": ["none", "same-request", "wait", "change-input", "ask-human", "never"]},
            "after_seconds": {"type": "number", "minimum": 0},
            "url": {"type": "string", "format": "uri-reference"},
        },
        required=("action",),
    )
    failure = _closed(
        {
            "provider_status": _nullable({"type": "integer"}),
            "provider_code": _nullable(_TEXT),
            "provider_message": _nullable({"type": "string", "maxLength": 500}),
        },
        required=("provider_status", "provider_code", "provider_message"),
    )
    skeleton: Document = {
        "message": {"type": "string", "description": "What a model reads; the first words carry the fact."},
        "is_error": {"type": "boolean"},
        "state": _nullable({"enum": [str(state) for state in State]}),
        "retry": _ref("Retry"),
        "replayed": {"type": "boolean"},
        "replay": _nullable(
            _closed(
                {"settled_at": _TIME, "run": _nullable(_TEXT), "same_run": {"type": "boolean"}},
                required=("settled_at", "run", "same_run"),
            )
        ),
        "reservation_id": _nullable(_UUID),
        "operation_key": _nullable(_TEXT),
        "input_digest": _nullable({"type": "string", "pattern": "^hmac-sha256:[0-9a-f]{64}$"}),
        "guarantee_class": _nullable({"enum": ["A", "B", "C"]}),
        "owner": _nullable(_TEXT),
        "result": _nullable(_OBJECT),
        "receipt": _nullable(_ref("Receipt")),
        "failure": _nullable(_ref("Failure")),
        "decision": _OBJECT,
        "review": {"type": "null"},
        "run": _nullable(_ref("Run")),
    }
    required = tuple(name for name in skeleton if name != "decision")
    return {
        "ToolCall": _closed(
            {
                "tool": _NAME,
                "input": _OBJECT,
                "reference": _NAME,
                "occurrence": {"type": "integer", "minimum": 1, "default": 1},
                "connection": _NAME,
                "run": _NAME,
                "checkpoint": _NAME,
                "step": _NAME,
                "call_id": _NAME,
                "model": _NAME,
                "context": _OBJECT,
            },
            required=("tool", "input"),
        ),
        "Retry": retry,
        "Run": run,
        "Failure": failure,
        "Answer": _closed(skeleton, required=required),
        "Problem": {
            "type": "object",
            "description": "RFC 9457, with the members of every answer; some codes add members of their own.",
            "properties": skeleton
            | {
                "type": {"type": "string", "format": "uri"},
                "title": _TEXT,
                "status": {"type": "integer"},
                "detail": _TEXT,
                "code": {"enum": list(PROBLEMS)},
                "path": {"type": "string", "description": "Where the offending value stands."},
            },
            "required": ["type", "title", "status", "detail", "code", *required],
        },
        "Receipt": _closed(
            {
                "id": _UUID,
                "reservation_id": _UUID,
                "provider": _TEXT,
                "connection": _TEXT,
                "tool": _TEXT,
                "contract_version": {"type": "integer"},
                "external_reference": _TEXT,
                "confidence": {"enum": ["confirmed", "confirmed-by-lookup", "confirmed-by-webhook", "asserted"]},
                "evidence": _list(_OBJECT),
                "provider_request_id": _TEXT,
                "actor_chain": _list(_TEXT),
                "owner": _TEXT,
                "policy": _OBJECT,
                "amount": amount,
                "settled_at": _TIME,
            },
            required=(
                "id reservation_id provider connection tool contract_version external_reference confidence evidence actor_chain "
                "owner settled_at"
            ).split(),
        ),
        "Reservation": {
            "type": "object",
            "description": "The members of every answer, and what the reservation was made of.",
            "properties": skeleton | {name: _list(_OBJECT) for name in ("attempts", "requesters", "evidence")},
            "required": list(required),
        },
        "LedgerEntry": {
            "type": "object",
            "properties": {"id": {"type": "integer"}, "at": _TIME, "kind": _TEXT, "detail": _OBJECT},
            "required": ["id", "at", "kind"],
        },
        "ReservationPage": _page("Reservation"),
        "ReceiptPage": _page("Receipt"),
        "LedgerEntryPage": _page("LedgerEntry"),
        "NewScopedKey": _closed(_key_members(), required=("environment", "actor")),
        "ScopedKey": {
            "type": "object",
            "properties": _key_members() | {"id": _TEXT, "key": {"type": "string", "description": "Shown once."}},
            "required": ["id", "environment", "actor"],
        },
    }


def _key_members() -> Document:
    members: Document = {
        "environment": _NAME,
        "project": _nullable(_NAME),
        "actor": _closed({"kind": {"const": "agent"}, "name": _NAME}, required=("kind", "name")),
        "run": _nullable(_NAME),
        "providers": _nullable(_list(_TEXT)),
        "tools": _nullable(_list(_TEXT)),
        "expires_at": _nullable(_TIME),
    }
    assert tuple(members) == KEY_MEMBERS, "the document names the members that are read"
    return members


def _page(item: str) -> Document:
    return _closed({"items": _list(_ref(item)), "next_cursor": _nullable(_TEXT)}, required=("items", "next_cursor"))


def _closed(properties: Document, *, required: "list[str] | tuple[str, ...]") -> Document:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}
