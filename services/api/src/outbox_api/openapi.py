"""The OpenAPI 3.1 document, written from one table of routes. A test compares it with the routes that are served."""

from collections.abc import Mapping
from typing import Any

import msgspec

from outbox_api import answer_doubt, bodies, clear_epoch, close_contradiction, work_doubts
from outbox_api.errors import STATUS
from outbox_api.routes import doubts, lists
from outbox_api.routes.scoped_keys import MEMBERS as KEY_MEMBERS
from outbox_domain import client_call, inline_contract
from outbox_domain.errors import PROBLEMS
from outbox_domain.reservation import Outcome, State
from outbox_store.epochs import EpochView

VERSION = "0.1.0"

VERDICTS = ("settled", "known", "contradiction", "duplicate", "unmarked", "unmatched", "unusable")
"""What may come of a webhook."""

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
        "tags": [{"name": name} for name in ("tool-calls", "reservations", "receipts", "doubts", "ledger", "keys", "process")],
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
            ),
            "post": _operation(
                "createReservation",
                "reservations",
                "Ask for one effect that the caller carries out itself. Who is given the attempt (201) does it now, under the "
                "provider key, and settles it; who is not waits for whoever has it.",
                parameters=["IdempotencyKey", "Prefer", "Traceparent", "OutboxRun", "OutboxCheckpoint"],
                body="ClientCall",
                answers={
                    "200": _answer("Settled before.", "Answer", ["Server-Timing", "Outbox-Replayed", "Idempotent-Replayed"]),
                    "201": _answer("The caller holds the attempt, or probes first.", "Held", ["Server-Timing", "Location"]),
                    "202": _answer("Another attempt is under way.", "Answer", ["Server-Timing", "Location", "Retry-After"]),
                },
                problems=(400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503),
            ),
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
        "/v1/reservations/{reservation_id}/heartbeat": {
            "post": _operation(
                "extendLease",
                "reservations",
                "Extend the lease of an open attempt by what it was granted for, never past its handler's time limit.",
                parameters=["ReservationId", "IdempotencyKey"],
                body="Heartbeat",
                answers={"200": _answer("The lease as it is now.", "Lease")},
                problems=(400, 401, 403, 404, 409, 413, 415, 422, 500, 503),
            )
        },
        "/v1/reservations/{reservation_id}/settle": {
            "post": _operation(
                "settleReservation",
                "reservations",
                "Say what an attempt came to. A success settles from whichever attempt and however late; what comes too late or "
                "differs from what was said is kept as evidence and changes nothing.",
                parameters=["ReservationId", "IdempotencyKey"],
                body="Settlement",
                answers={"200": _answer("The reservation as it stands now.", "Answer")},
                problems=(400, 401, 403, 404, 409, 413, 415, 422, 500, 503),
            )
        },
        "/v1/reservations/{reservation_id}/void": {
            "post": _operation(
                "voidReservation",
                "reservations",
                "Withdraw what was not sent: with the open attempt, or while nobody holds it.",
                parameters=["ReservationId", "IdempotencyKey"],
                body="Void",
                answers={"200": _answer("The reservation as it stands now.", "Answer")},
                problems=(400, 401, 403, 404, 409, 413, 415, 422, 500, 503),
            )
        },
        "/v1/reservations/{reservation_id}/probes": {
            "post": _operation(
                "beginProbe",
                "reservations",
                "Begin a look for the effect of an attempt in doubt, before the provider is asked.",
                parameters=["ReservationId", "IdempotencyKey"],
                body="Heartbeat",
                answers={"201": _answer("The probe; ask the provider now.", "ProbeBegun")},
                problems=(400, 401, 403, 404, 409, 413, 415, 422, 500, 503),
            )
        },
        "/v1/reservations/{reservation_id}/probes/{probe_id}": {
            "post": _operation(
                "answerProbe",
                "reservations",
                "Say what the provider showed. That the effect is there settles at any time; that it is not counts only of a "
                "probe that was begun after `absence_counts_at`.",
                parameters=["ReservationId", "ProbeId", "IdempotencyKey"],
                body="ProbeAnswer",
                answers={"200": _answer("The reservation as it stands now, and when to look again.", "Probed")},
                problems=(400, 401, 403, 404, 409, 413, 415, 422, 500, 503),
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
        "/v1/doubts/summary": {
            "get": _operation(
                "summarizeDoubts",
                "doubts",
                "How many effects are in doubt by connection, tool, class and cause, the money at stake, and what happens next.",
                parameters=[f"Where{_camel(name)}" for name in doubts.WHERE],
                answers={"200": _answer("The summary.", "DoubtSummary")},
                problems=(401, 403, 422, 500, 503),
            )
        },
        "/v1/doubts/resolve": {
            "post": _operation(
                "resolveDoubts",
                "doubts",
                "Give one answer to many doubts. Refused as a whole where their number differs from `expect`, where automatic "
                "recovery is due without `override`, and where that it did not happen does not count yet of all of them.",
                parameters=["IdempotencyKey"],
                body="DoubtBatch",
                answers={"200": _answer("What became of each.", "DoubtBatchDone")},
                problems=(400, 401, 403, 409, 413, 415, 422, 500, 503),
            )
        },
        "/v1/doubts/recheck": {
            "post": _operation(
                "recheckDoubts",
                "doubts",
                "Let automatic recovery begin again for many doubts. Refused where their number differs from `expect`.",
                parameters=["IdempotencyKey"],
                body="DoubtRecheck",
                answers={"200": _answer("What became of each.", "DoubtBatchDone")},
                problems=(400, 401, 403, 409, 413, 415, 422, 500, 503),
            )
        },
        "/v1/reviews/doubts/{reservation_id}": {
            "post": _operation(
                "answerDoubt",
                "doubts",
                "Say that the effect in doubt happened, or that it did not. For members who may resolve doubts. That it "
                "happened is taken at any time; that it did not counts only from `absence_counts_at` on, and while automatic "
                "recovery is due only with `override`.",
                parameters=["ReservationId", "IdempotencyKey"],
                body="DoubtAnswer",
                answers={"200": _answer("The reservation, settled so.", "Reservation")},
                problems=(400, 401, 403, 404, 409, 413, 415, 422, 500, 503),
            )
        },
        "/v1/reviews/contradictions/{reservation_id}": {
            "post": _operation(
                "closeContradiction",
                "doubts",
                "Say what is true where proof of an effect contradicts a closed reservation. For members who may resolve doubts. "
                "That it happened gives callers of the operation a receipt; that it did not, because the proof was wrong or the "
                "effect was undone, frees the operation key, and counts only when nothing can be on its way any more.",
                parameters=["ReservationId", "IdempotencyKey"],
                body="ContradictionAnswer",
                answers={"200": _answer("The reservation that has the receipt, or the contradicted one.", "Reservation")},
                problems=(400, 401, 403, 404, 409, 413, 415, 422, 500, 503),
            )
        },
        "/v1/epoch": {
            "get": _operation(
                "showEpoch",
                "doubts",
                "The newest epoch of the ledger: since when something may be lost, until when keys first seen are treated as "
                "possibly sent, and whether it has been cleared for the key's environment.",
                parameters=[],
                answers={"200": _answer("The epoch.", "Epoch")},
                problems=(401, 403, 500, 503),
            )
        },
        "/v1/epoch/clear": {
            "post": _operation(
                "clearEpoch",
                "doubts",
                "Say for the key's environment that nothing of it was lost: keys first seen are new again. For members who may "
                "clear epochs. What is in doubt already stays in doubt.",
                parameters=["IdempotencyKey"],
                body="EpochClearance",
                answers={"200": _answer("The epoch, cleared.", "Epoch")},
                problems=(400, 401, 403, 409, 413, 415, 422, 500, 503),
            )
        },
        "/v1/webhooks/{connection_id}": {
            "post": _operation(
                "takeWebhook",
                "doubts",
                "What a provider sends on its own, signed in `Stripe-Signature` within five minutes. "
                "An event is acted on once; it settles what is executing or in doubt.",
                parameters=["ConnectionId", "StripeSignature"],
                body="Event",
                answers={"200": _answer("It was taken; `verdict` says what came of it.", "EventTaken")},
                problems=(400, 404, 413, 415, 422, 500, 503),
            )
            | {"security": []}
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
        "/v1/projects": {
            "post": _operation(
                "createProject",
                "keys",
                "Add a project; the same name again is the same project. For members who may manage keys.",
                parameters=["IdempotencyKey"],
                body="Project",
                answers={"201": _answer("The project.", "Project")},
                problems=(400, 401, 403, 409, 413, 415, 422, 500, 503),
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
    where = {f"Where{_camel(name)}": _query(name, schema, f"Only doubts with this {name}.") for name, schema in _where().items()}
    return (filters | where) | {
        "Cursor": _query("cursor", _TEXT, "`next_cursor` of the page before."),
        "Limit": _query("limit", _whole(1, lists.LIMIT_MAX, lists.LIMIT_DEFAULT), "Rows a page."),
        "Wait": _query("wait", _whole(0, 60, 0), "Seconds to wait until it is final."),
        "ReservationId": {"name": "reservation_id", "in": "path", "required": True, "schema": _UUID},
        "ProbeId": {"name": "probe_id", "in": "path", "required": True, "schema": _UUID},
        "ConnectionId": {"name": "connection_id", "in": "path", "required": True, "schema": _UUID},
        "StripeSignature": _header(
            "Stripe-Signature", _TEXT, "`t=` seconds since the epoch, `v1=` HMAC-SHA-256 of time, dot, body."
        ),
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
        "result": {"description": "The contract's projection of the answer; of a client's result any JSON value."},
        "receipt": _nullable(_ref("Receipt")),
        "failure": _nullable(_ref("Failure")),
        "decision": _OBJECT,
        "review": {"type": "null"},
        "run": _nullable(_ref("Run")),
    }
    contradiction: Document = {"external_references": _list(_TEXT), "since": _TIME}
    required = tuple(name for name in skeleton if name != "decision")
    tool_call: Document = {
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
    }
    return {
        "ToolCall": _closed(tool_call, required=("tool", "input")),
        **_client_schemas(tool_call, skeleton, required),
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
            "properties": skeleton
            | {name: _list(_OBJECT) for name in ("attempts", "requesters", "evidence")}
            | {"contradiction": _nullable(_closed(contradiction, required=tuple(contradiction)))},
            "required": list(required),
        },
        **_doubt_schemas(),
        "Epoch": _closed(
            {
                "number": {"type": "integer", "minimum": 1},
                "started_at": _TIME,
                "cause": _TEXT,
                "lost_since": _nullable(_TIME),
                "possibly_lost_until": _nullable(_TIME),
                "cleared_at": _nullable(_TIME),
                "cleared_by": _nullable(_list(_TEXT)),
                "reason": _nullable(_TEXT),
                "possibly_lost": {"type": "boolean", "description": "Keys first seen are treated as possibly sent."},
                "in_doubt": {"type": "integer", "minimum": 0, "description": "How many are in doubt because of a loss."},
            },
            required=tuple(EpochView.__dataclass_fields__),
        ),
        "EpochClearance": _closed(
            {"epoch": {"type": "integer", "minimum": 1}, "reason": _text_of(bodies.REASON_CHARACTERS_MAX)},
            required=clear_epoch.MEMBERS,
        ),
        "Event": {"type": "object", "properties": {"id": _TEXT, "type": _TEXT, "data": _OBJECT}, "required": ["id"]},
        "EventTaken": _closed(
            {"received": {"const": True}, "verdict": {"enum": list(VERDICTS)}}, required=("received", "verdict")
        ),
        "LedgerEntry": {
            "type": "object",
            "properties": {"id": {"type": "integer"}, "at": _TIME, "kind": _TEXT, "detail": _OBJECT},
            "required": ["id", "at", "kind"],
        },
        "ReservationPage": _page("Reservation"),
        "ReceiptPage": _page("Receipt"),
        "LedgerEntryPage": _page("LedgerEntry"),
        "Project": _closed({"name": _NAME}, required=("name",)),
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


def _client_schemas(tool_call: Document, skeleton: Document, required: tuple[str, ...]) -> Document:
    inline: Document = {
        "key": {"type": "string", "description": "A template over input fields and `{reference}`, or `input` for the digest."},
        "scope": {"enum": ["environment", "run"], "default": "environment"},
        "class": {"enum": ["A", "B", "C"], "default": "C"},
        "owner": {"type": "string", "minLength": 1, "maxLength": 200},
        "receipt": {"type": "string", "description": "JMESPath of the external reference in the settled result."},
        "recovery": {"type": "array", "maxItems": 3, "description": "resend (hand over), lookup (probe), person."},
    }
    assert tuple(inline) == inline_contract.MEMBERS, "the document names the members that are read"
    attempt_id = _UUID | {"description": "Made by the caller, new for each attempt; the same request again finds it."}
    asked: Document = {
        "attempt_id": attempt_id,
        "time_limit_seconds": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": client_call.TIME_LIMIT_SECONDS_MAX,
            "description": "How long the handler may run; without it only class A is accepted.",
        },
        "contract": _closed(inline, required=())
        | {"description": "Of a tool that has no contract; in sandbox and development environments only."},
        "probe": {"type": "boolean", "default": False, "description": "The caller can look whether the effect exists."},
    }
    assert tuple(asked) == client_call.CALL_MEMBERS, "the document names the members that are read"
    attempt = _closed(
        {
            "id": _UUID,
            "number": {"type": "integer", "minimum": 1},
            "epoch": {"type": "integer"},
            "provider_key": _TEXT,
            "marker": _TEXT,
            "lease_until": _TIME,
            "lease_seconds": {"type": "number"},
            "time_limit_seconds": _nullable({"type": "number"}),
            "recovering": {"type": "boolean", "description": "An earlier attempt may have had its effect."},
        },
        required=("id", "number", "epoch", "provider_key", "marker", "lease_until", "lease_seconds", "recovering"),
    )
    probe = _closed(
        {
            "attempt_id": _UUID,
            "provider_key": _nullable(_TEXT),
            "marker": _nullable(_TEXT),
            "times": {"type": "integer", "minimum": 1},
            "absence_counts_at": _nullable(_TIME),
            "again_seconds": {"type": "number"},
        },
        required=("attempt_id", "provider_key", "marker", "times", "absence_counts_at", "again_seconds"),
    )
    money = _closed({"value": {"type": "integer"}, "currency": _TEXT}, required=("value", "currency"))
    settlement: Document = {
        "attempt_id": _UUID,
        "outcome": {"enum": [str(outcome) for outcome in Outcome]},
        "external_reference": _text_of(client_call.REFERENCE_BYTES_MAX),
        "result": {"description": "Any JSON value of at most 256 KiB; kept with the receipt."},
        "provider_status": {"type": "integer", "minimum": 100, "maximum": 999},
        "provider_code": _TEXT,
        "provider_message": {"type": "string", "description": "Sealed, kept for a day, 500 characters of it."},
        "provider_request_id": _TEXT,
        "stored": {"type": "boolean", "default": False, "description": "The provider keeps this refusal under the key."},
        "reason": {"type": "string", "maxLength": client_call.REASON_CHARACTERS_MAX},
        "amount": money,
    }
    assert tuple(settlement) == client_call.SETTLEMENT_MEMBERS, "the document names the members that are read"
    begun: Document = {
        "probe_id": _UUID,
        "attempt_id": _UUID,
        "asked_at": _TIME,
        "counts": {"type": "boolean", "description": "Whether an absence counts."},
        "counts_in_seconds": {"type": "number", "minimum": 0},
    }
    verdicts = ["settled", "noted", "too-early", "stale", "known", "contradiction"]
    said = _closed(
        {"id": _UUID, "verdict": {"enum": verdicts}, "again_seconds": {"type": "number", "minimum": 0}},
        required=("id", "verdict"),
    )
    lease: Document = {"lease_until": _TIME, "lease_seconds": {"type": "number"}}
    return {
        "ClientCall": _closed(tool_call | asked, required=("tool", "input", "attempt_id")),
        "Held": _closed(
            skeleton | {"attempt": _nullable(attempt), "probe": _nullable(probe)}, required=(*required, "attempt", "probe")
        ),
        "Heartbeat": _closed({"attempt_id": _UUID}, required=("attempt_id",)),
        "Lease": _closed(lease, required=tuple(lease)),
        "Settlement": _closed(settlement, required=("attempt_id", "outcome")),
        "ProbeBegun": _closed(begun, required=tuple(begun)),
        "ProbeAnswer": _closed(
            {
                "found": {"type": "boolean"},
                "external_reference": settlement["external_reference"],
                "result": settlement["result"],
            },
            required=("found",),
        ),
        "Probed": _closed(skeleton | {"probe": said}, required=(*required, "probe")),
        "Void": _closed({"attempt_id": _UUID, "reason": settlement["reason"]}, required=()),
    }


def _where() -> Document:
    members: Document = {name: {"type": "string", "minLength": 1} for name in doubts.WHERE}
    return members | {"class": {"enum": ["A", "B", "C"]}, "needs": {"enum": list(doubts.NEEDS)}, "reservation": _UUID}


def _doubt_schemas() -> Document:
    money = _list(_closed({"value": {"type": "integer"}, "currency": _TEXT}, required=("value", "currency")))
    count: Document = {"type": "integer", "minimum": 0}
    sums: Document = {"count": count, "needs_person": count, "oldest": _nullable(_TIME), "amounts": money}
    following = _closed(
        {"action": {"enum": ["resend", "lookup", "person", "unknown"]}, "count": count, "at": _nullable(_TIME)},
        required=("action", "count", "at"),
    )
    group: Document = {
        **{name: _TEXT for name in ("connection", "tool", "class", "cause")},
        **sums,
        "next": _list(following),
        "absence_counts": count,
        "absence_counts_at": _TIME,
    }
    episode: Document = {
        "id": _UUID,
        **{name: _TEXT for name in ("connection", "cause")},
        "attention": {"enum": ["page", "queue", "none"]},
        "owners": _list(_TEXT),
        "tools": _list(_TEXT),
        "opened_at": _TIME,
        "waiting": count,
        "doubts": count,
        "oldest": _TIME,
        "amounts": money,
    }
    contradicted: Document = {
        "reservation_id": _UUID,
        **{name: _TEXT for name in ("connection", "tool", "operation_key")},
        "state": {"enum": [str(state) for state in State]},
        "external_references": _list(_TEXT),
        "since": _TIME,
    }
    batch: Document = {
        "where": _closed(_where(), required=()),
        "reason": _text_of(bodies.REASON_CHARACTERS_MAX),
        "expect": {"type": "integer", "minimum": 0, "maximum": work_doubts.AT_ONCE_MAX},
        "dry_run": {"type": "boolean", "default": False},
    }
    single = _doubt_answer_members()
    answered: Document = {name: single[name] for name in ("as", "override", "batch_id")} | {
        "evidence": _nullable(single["evidence"]),
        "external_references": _nullable({"type": "object", "additionalProperties": _text_of(answer_doubt.REFERENCE_BYTES_MAX)}),
    }
    rate: Document = {"type": "number", "minimum": 0.01, "maximum": doubts.RATE_MAX, "default": doubts.RATE_DEFAULT}
    done = _closed(
        {
            "reservation_id": _UUID,
            **{name: _TEXT for name in ("operation_key", "tool", "connection", "code", "detail")},
            "verdict": {"enum": ["settled", "known", "rechecked", "refused", "would"]},
        },
        required=("reservation_id", "operation_key", "tool", "connection", "verdict"),
    )
    totals: Document = {
        "batch_id": _nullable(_UUID),
        "dry_run": {"type": "boolean"},
        "count": count,
        "done": count,
        "refused": count,
    }
    assert {*batch, *answered} == {*doubts.RESOLVE_MEMBERS}, "the document names the members that are read"
    assert {*batch, "rate_per_second"} == {*doubts.RECHECK_MEMBERS}, "the document names the members that are read"
    return {
        "DoubtAnswer": _closed(single, required=("as", "reason", "evidence")),
        "ContradictionAnswer": _closed(
            {name: single[name] for name in close_contradiction.MEMBERS}, required=("as", "reason", "evidence")
        ),
        "DoubtSummary": _closed(
            sums
            | {
                "groups": _list(_closed(group, required=tuple(group))),
                "episodes": _list(_closed(episode, required=tuple(episode))),
                "contradictions": _list(_closed(contradicted, required=tuple(contradicted))),
            },
            required=(*sums, "groups", "episodes", "contradictions"),
        ),
        "DoubtBatch": _closed(batch | answered, required=("as", "reason", "expect")),
        "DoubtRecheck": _closed(batch | {"rate_per_second": rate}, required=("reason", "expect")),
        "DoubtBatchDone": _closed(totals | {"items": _list(done)}, required=(*totals, "items")),
    }


def _doubt_answer_members() -> Document:
    members: Document = {
        "as": {"enum": [answer_doubt.HAPPENED, answer_doubt.DID_NOT_HAPPEN]},
        "external_reference": _nullable(
            _text_of(answer_doubt.REFERENCE_BYTES_MAX) | {"description": "The provider's name of it; exactly where it happened."}
        ),
        "reason": _text_of(bodies.REASON_CHARACTERS_MAX),
        "evidence": _text_of(answer_doubt.EVIDENCE_CHARACTERS_MAX) | {"description": "What was seen. Kept for ever: no secrets."},
        "override": {"type": "boolean", "default": False, "description": "Answer although automatic recovery is still due."},
        "batch_id": _nullable(_UUID),
    }
    assert tuple(members) == answer_doubt.MEMBERS, "the document names the members that are read"
    return members


def _text_of(length_max: int) -> Document:
    return {"type": "string", "minLength": 1, "maxLength": length_max}


def _page(item: str) -> Document:
    return _closed({"items": _list(_ref(item)), "next_cursor": _nullable(_TEXT)}, required=("items", "next_cursor"))


def _closed(properties: Document, *, required: "list[str] | tuple[str, ...]") -> Document:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}
