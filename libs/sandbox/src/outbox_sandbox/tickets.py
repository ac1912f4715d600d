"""Tickets: a resource without idempotency keys whose planted marker can be looked up, as most internal services are."""

from __future__ import annotations

import secrets

from outbox_sandbox.echo import error, json_fields
from outbox_sandbox.exchange import Answer, Effect, Fields, Plan, Received, Refused, json_answer
from outbox_sandbox.form import MalformedForm
from outbox_sandbox.form import decode as decode_query
from outbox_sandbox.records import Page, Records

PATH = "/v1/tickets"
MEMBERS = ("title", "body", "marker")
LIST_MAX = 100


class Tickets:
    """`POST /v1/tickets`, `GET /v1/tickets?marker=`, `GET /v1/tickets/{id}`."""

    name = "tickets"
    keeps_keys = False
    key_life_seconds = None

    def authenticate(self, received: Received) -> None:
        """Everybody may file a ticket."""

    def fields(self, received: Received) -> Fields:
        """The JSON of a ticket."""
        return json_fields(received)

    def plan(self, received: Received, fields: Fields) -> Plan:
        """One ticket; `title` is required, `body` and `marker` are not."""
        if received.path != PATH:
            raise Refused(error(404, "not_found", f"There is no {received.path}"))
        for name, value in fields.items():
            if name not in MEMBERS:
                raise Refused(error(400, "unknown_member", f"{name}: not a member of a ticket"))
            if value is not None and not isinstance(value, str):
                raise Refused(error(400, "invalid_member", f"{name}: expected a string"))
        if not fields.get("title"):
            raise Refused(error(400, "invalid_member", "title: expected a string of at least one character"))

        def carry_out(_records: Records, now: float) -> tuple[Effect, Answer]:
            ticket: Fields = {
                "id": "tic_" + secrets.token_hex(12),
                "object": "ticket",
                **{name: fields.get(name) for name in MEMBERS},
                "created": int(now),
            }
            marker = fields.get("marker")
            subject = marker if isinstance(marker, str) else None
            effect = Effect(id=str(ticket["id"]), resource="ticket", subject=subject, amount=None, fields=fields, result=ticket)
            return effect, json_answer(201, ticket)

        return Plan(carry_out=carry_out)

    def read(self, received: Received, records: Records) -> Answer:
        """The newest tickets (with a marker: those that carry it), or one by its id."""
        if received.path == PATH:
            return _list(received, records)
        found = records.effect(received.path.removeprefix(PATH + "/"))
        if found is None or found.effect.resource != "ticket":
            raise Refused(error(404, "not_found", "There is no such ticket"))
        return json_answer(200, found.effect.result)

    def failure(self, status: int, code: str, message: str) -> Answer:
        """`{"error": {"type", "code", "message"}}`."""
        return error(status, code, message)

    def reply_headers(self, received: Received, request_id: str) -> tuple[tuple[str, str], ...]:
        """The request's id."""
        return (("Request-Id", request_id),)


def _list(received: Received, records: Records) -> Answer:
    try:
        filters = decode_query(received.query)
    except MalformedForm as malformed:
        raise Refused(error(400, "malformed_query", str(malformed))) from malformed
    marker = filters.pop("marker", None)
    if filters or not isinstance(marker, str | None):
        raise Refused(error(400, "unknown_filter", "tickets can be filtered by marker only"))
    found, has_more = records.page(Page(resources=("ticket",), subject=marker, limit=LIST_MAX))
    return json_answer(200, {"object": "list", "data": [each.effect.result for each in found], "has_more": has_more})
