"""Four resources, each of which is recovered by another strategy: labels, records, messages, scheduled mails.

| resource | what a repeated request does |
|---|---|
| label | sets the same value once more; whoever arrives last wins |
| record | is refused with 409: the caller chose the identity, and it is taken for ever |
| message | is answered as the first one was, but only for `MESSAGE_KEY_SECONDS` after it |
| mail | goes out `send_in_seconds` after it was accepted, unless its batch is cancelled before; that takes nothing more then |
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from outbox_sandbox.echo import error, json_fields
from outbox_sandbox.exchange import Answer, Effect, Fields, Plan, Received, Refused, json_answer
from outbox_sandbox.form import MalformedForm
from outbox_sandbox.form import decode as decode_query
from outbox_sandbox.records import CommittedEffect, Page, Records

LABELS, RECORDS, MESSAGES, MAILS = "/v1/labels", "/v1/records", "/v1/messages", "/v1/mails"
CANCEL = MAILS + "/cancel"
LIST_MAX = 100

MESSAGE_KEY_SECONDS = 20.0
"""How long a repeated message is recognised; afterwards it is a message of its own."""

SEND_IN_SECONDS_MAX = 72 * 3600


class _Resource:
    """What the four have in common: JSON bodies with closed members, and everybody may come."""

    keeps_keys = False
    key_life_seconds: float | None = None

    def authenticate(self, received: Received) -> None:
        """Everybody may use them."""

    def fields(self, received: Received) -> Fields:
        """The JSON of the request."""
        return json_fields(received)

    def failure(self, status: int, code: str, message: str) -> Answer:
        """`{"error": {"type", "code", "message"}}`."""
        return error(status, code, message)

    def reply_headers(self, received: Received, request_id: str) -> tuple[tuple[str, str], ...]:
        """The request's id."""
        return (("Request-Id", request_id),)

    def _at(self, received: Received, path: str) -> None:
        if received.path != path:
            raise Refused(error(404, "not_found", f"There is no {received.path}"))


def _texts(fields: Mapping[str, object], required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, str]:
    """The members of a body that are texts. Raises `Refused` (400) for one that is missing, unknown or no text."""
    for name in fields:
        if name not in (*required, *optional):
            raise Refused(error(400, "unknown_member", f"{name}: no such member"))
    found: dict[str, str] = {}
    for name in (*required, *optional):
        value = fields.get(name)
        if value is None and name in optional:
            continue
        if not isinstance(value, str) or not value:
            raise Refused(error(400, "invalid_member", f"{name}: expected a string of at least one character"))
        found[name] = value
    return found


def _filter(received: Received, name: str) -> str | None:
    """The one filter that a list takes. Raises `Refused` (400)."""
    try:
        filters = decode_query(received.query)
    except MalformedForm as malformed:
        raise Refused(error(400, "malformed_query", str(malformed))) from malformed
    value = filters.pop(name, None)
    if filters or not isinstance(value, str | None):
        raise Refused(error(400, "unknown_filter", f"the list can be filtered by {name} only"))
    return value


def _page(records: Records, resource: str, subject: str | None) -> tuple[list[CommittedEffect], bool]:
    return records.page(Page(resources=(resource,), subject=subject, limit=LIST_MAX))


def _listed(found: list[Fields], has_more: bool) -> Answer:
    return json_answer(200, {"object": "list", "data": found, "has_more": has_more})


class Labels(_Resource):
    """`POST /v1/labels {name, value}` sets a label, whatever it was; `GET /v1/labels?name=` tells what it is now."""

    name = "labels"

    def plan(self, received: Received, fields: Fields) -> Plan:
        """One setting."""
        self._at(received, LABELS)
        label = _texts(fields, ("name", "value"))

        def carry_out(_records: Records, _now: float) -> tuple[Effect, Answer]:
            id = "lab_" + hashlib.sha256(label["name"].encode()).hexdigest()[:24]
            stands: Fields = {"id": id, "object": "label", **label}
            effect = Effect(
                id="set_" + secrets.token_hex(12),
                resource="label",
                subject=label["name"],
                amount=None,
                fields=fields,
                result=stands,
            )
            return effect, json_answer(200, stands)

        return Plan(carry_out=carry_out)

    def read(self, received: Received, records: Records) -> Answer:
        """What a label is now: a list of one, or of none."""
        self._at(received, LABELS)
        found, _ = _page(records, "label", _filter(received, "name"))
        return _listed([found[0].effect.result] if found else [], False)


class ClientRecords(_Resource):
    """`POST /v1/records {id, title}` under an identity of the caller's choice; `GET /v1/records?id=`."""

    name = "records"

    def plan(self, received: Received, fields: Fields) -> Plan:
        """One record; an identity that was ever used is refused."""
        self._at(received, RECORDS)
        record = _texts(fields, ("id", "title"), ("body",))

        def carry_out(records: Records, now: float) -> tuple[Effect, Answer]:
            if _page(records, "record", record["id"])[0]:
                raise Refused(error(409, "already_exists", f"A record with id {record['id']} already exists"))
            made: Fields = {"object": "record", "body": None, **record, "created": int(now)}
            effect = Effect(
                id="rec_" + secrets.token_hex(12),
                resource="record",
                subject=record["id"],
                amount=None,
                fields=fields,
                result=made,
            )
            return effect, json_answer(201, made)

        return Plan(carry_out=carry_out)

    def read(self, received: Received, records: Records) -> Answer:
        """The newest records, or the one of an identity."""
        self._at(received, RECORDS)
        found, has_more = _page(records, "record", _filter(received, "id"))
        return _listed([each.effect.result for each in found], has_more)


class Messages(_Resource):
    """`POST /v1/messages {text, marker}` with an `Idempotency-Key` that is kept for a short time; `GET /v1/messages?marker=`."""

    name = "messages"
    keeps_keys = True
    key_life_seconds = MESSAGE_KEY_SECONDS

    def plan(self, received: Received, fields: Fields) -> Plan:
        """One message."""
        self._at(received, MESSAGES)
        message = _texts(fields, ("text",), ("marker",))

        def carry_out(_records: Records, now: float) -> tuple[Effect, Answer]:
            id = "msg_" + secrets.token_hex(12)
            sent: Fields = {"id": id, "object": "message", "marker": None, **message, "created": int(now)}
            subject = message.get("marker")
            effect = Effect(id=id, resource="message", subject=subject, amount=None, fields=fields, result=sent)
            return effect, json_answer(200, sent)

        return Plan(carry_out=carry_out)

    def read(self, received: Received, records: Records) -> Answer:
        """The newest messages, or those that carry a marker."""
        self._at(received, MESSAGES)
        found, has_more = _page(records, "message", _filter(received, "marker"))
        return _listed([each.effect.result for each in found], has_more)


class Mails(_Resource):
    """`POST /v1/mails {text, batch, send_in_seconds}`, `POST /v1/mails/cancel {batch}`, `GET /v1/mails?batch=`.

    What `/_control/effects` lists of them is that they were accepted; whether one went out says its `state` in the list.
    """

    name = "mails"

    def plan(self, received: Received, fields: Fields) -> Plan:
        """One mail, or the cancellation of a batch."""
        if received.path == CANCEL:
            return self._cancellation(fields)
        self._at(received, MAILS)
        seconds = fields.get("send_in_seconds")
        if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 <= seconds <= SEND_IN_SECONDS_MAX:
            raise Refused(error(400, "invalid_member", f"send_in_seconds: expected seconds up to {SEND_IN_SECONDS_MAX}"))
        mail = _texts({name: value for name, value in fields.items() if name != "send_in_seconds"}, ("text", "batch"))

        def carry_out(records: Records, now: float) -> tuple[Effect, Answer]:
            if _page(records, "mail_cancellation", mail["batch"])[0]:
                raise Refused(error(410, "batch_cancelled", "The batch was cancelled"))
            id = "mai_" + secrets.token_hex(12)
            accepted: Fields = {"id": id, "object": "mail", **mail, "due": now + seconds}
            effect = Effect(id=id, resource="mail", subject=mail["batch"], amount=None, fields=fields, result=accepted)
            return effect, json_answer(202, accepted)

        return Plan(carry_out=carry_out)

    def _cancellation(self, fields: Fields) -> Plan:
        """A batch is called off, whether or not anything of it has come; what has gone out cannot be."""
        batch = _texts(fields, ("batch",))["batch"]

        def carry_out(records: Records, now: float) -> tuple[Effect, Answer]:
            if any(_due(each) <= now for each in _page(records, "mail", batch)[0]):
                raise Refused(error(409, "already_sent", "A mail of the batch has gone out"))
            cancelled: Fields = {"object": "mail_cancellation", "batch": batch, "state": "cancelled"}
            id = "can_" + secrets.token_hex(12)
            effect = Effect(id=id, resource="mail_cancellation", subject=batch, amount=None, fields=fields, result=cancelled)
            return effect, json_answer(200, cancelled)

        return Plan(carry_out=carry_out)

    def read(self, received: Received, records: Records) -> Answer:
        """The newest mails (of a batch), each `scheduled`, `cancelled` or `sent`."""
        self._at(received, MAILS)
        found, has_more = _page(records, "mail", _filter(received, "batch"))
        states: list[Fields] = []
        for each in found:
            is_cancelled = bool(_page(records, "mail_cancellation", each.effect.subject)[0])
            state = "cancelled" if is_cancelled else "sent" if _due(each) <= received.at else "scheduled"
            states.append({**each.effect.result, "state": state})
        return _listed(states, has_more)


def _due(mail: CommittedEffect) -> float:
    due = mail.effect.result["due"]
    if not isinstance(due, int | float):
        raise TypeError("a mail's due time is a number of seconds")
    return float(due)
