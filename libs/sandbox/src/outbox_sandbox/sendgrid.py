"""SendGrid's mail send: no idempotency, no lookup, an empty body on success.

Sources: SendGrid's v3 reference and its published OpenAPI document (`PostMailSend`). Mail goes nowhere; the effect is what
would have been sent.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping

from outbox_sandbox.exchange import Answer, Effect, Fields, Plan, Received, Refused, json_answer
from outbox_sandbox.json_body import MalformedJson, decode
from outbox_sandbox.records import Records

PATH = "/v3/mail/send"

MAIL_MEMBERS = frozenset(
    "personalizations from reply_to reply_to_list subject content attachments template_id headers categories custom_args"
    " send_at batch_id asm ip_pool_name mail_settings tracking_settings".split()
)
PERSONALIZATION_MEMBERS = frozenset(
    "from to cc bcc subject headers substitutions dynamic_template_data custom_args send_at".split()
)
PERSONALIZATIONS_MAX = 1000
CUSTOM_ARGS_BYTES_MAX = 10_000
ADDRESS = re.compile(r"[^@\s]+@[^@\s]+")


def error(status: int, message: str, field: str | None = None) -> Answer:
    """An error in SendGrid's shape: `{"errors": [{"message", "field"}]}`; `help`, which may be left out, is."""
    return json_answer(status, {"errors": [{"message": message, "field": field}]})


class SendGrid:
    """SendGrid's v3 interface."""

    name = "sendgrid"
    keeps_keys = False
    key_life_seconds = None

    def authenticate(self, received: Received) -> None:
        """Any bearer key is good, except one that ends in `_expired`."""
        key = received.bearer
        if key is None or key.endswith("_expired"):
            raise Refused(error(401, "The provided authorization grant is invalid, expired, or revoked"))

    def fields(self, received: Received) -> Fields:
        """The JSON of a mail."""
        try:
            return decode(received.body)
        except MalformedJson as malformed:
            raise Refused(error(400, f"Bad Request: {malformed}")) from malformed

    def plan(self, received: Received, fields: Fields) -> Plan:
        """One mail send. Raises `Refused` naming the field, as the provider does."""
        if received.path != PATH:
            raise Refused(error(404, "not found"))
        _validate(fields)

        def carry_out(_records: Records, _now: float) -> tuple[Effect, Answer]:
            message_id = secrets.token_urlsafe(16)
            effect = Effect(
                id=message_id, resource="mail", subject=None, amount=None, fields=fields, result={"message_id": message_id}
            )
            headers = (("X-Message-Id", message_id), ("Content-Type", "text/plain; charset=utf-8"))
            return effect, Answer(status=202, headers=headers)

        return Plan(carry_out=carry_out)

    def read(self, received: Received, records: Records) -> Answer:
        """Nothing can be read back; that is why a lost answer to a mail is a case for a person."""
        raise Refused(error(405, "method not allowed") if received.path == PATH else error(404, "not found"))

    def failure(self, status: int, code: str, message: str) -> Answer:
        """Errors have no code here."""
        return error(status, message)

    def reply_headers(self, received: Received, request_id: str) -> tuple[tuple[str, str], ...]:
        """None: SendGrid names requests only by `X-Message-Id`."""
        return ()


def _validate(fields: Fields) -> None:
    _only(fields, MAIL_MEMBERS, "")
    envelopes = fields.get("personalizations")
    if not isinstance(envelopes, list) or not 1 <= len(envelopes) <= PERSONALIZATIONS_MAX:
        raise _invalid("The personalizations field is required and must have at least one personalization.", "personalizations")
    for place, envelope in enumerate(envelopes):
        _validate_personalization(envelope, f"personalizations.{place}")
    _validate_address(fields.get("from"), "from")
    _validate_subject(fields, envelopes)
    _validate_content(fields)
    custom = [fields.get("custom_args"), *(envelope.get("custom_args") for envelope in envelopes)]
    if sum(len(json.dumps(each).encode()) for each in custom if each is not None) > CUSTOM_ARGS_BYTES_MAX:
        raise _invalid(f"The custom arguments may have {CUSTOM_ARGS_BYTES_MAX} bytes in total.", "custom_args")


def _invalid(message: str, field: str) -> Refused:
    return Refused(error(400, message, field))


def _only(members: Mapping[str, object], known: frozenset[str], where: str) -> None:
    for name in members:
        if name not in known:
            raise _invalid(f"Additional property {name} is not allowed", f"{where}.{name}".lstrip("."))


def _validate_address(value: object, where: str) -> None:
    if not isinstance(value, dict):
        raise _invalid(f"The {where} object must be provided.", where)
    email = value.get("email")
    if not isinstance(email, str) or ADDRESS.fullmatch(email) is None:
        raise _invalid("Does not contain a valid address.", f"{where}.email")


def _validate_personalization(value: object, where: str) -> None:
    if not isinstance(value, dict):
        raise _invalid("A personalization must be an object.", where)
    _only(value, PERSONALIZATION_MEMBERS, where)
    for name in ("to", "cc", "bcc"):
        people = value.get(name, None if name == "to" else [])
        if not isinstance(people, list) or (name == "to" and not people):
            raise _invalid(f"The {name} array is required and must have at least one address.", f"{where}.{name}")
        for place, person in enumerate(people):
            _validate_address(person, f"{where}.{name}.{place}")
    custom = value.get("custom_args", {})
    if not isinstance(custom, dict) or not all(isinstance(each, str) for each in custom.values()):
        raise _invalid("The custom arguments must be an object of strings.", f"{where}.custom_args")


def _validate_subject(fields: Fields, envelopes: list[dict[str, object]]) -> None:
    if fields.get("template_id"):
        return
    for envelope in envelopes:
        subject = envelope.get("subject", fields.get("subject"))
        if not isinstance(subject, str) or not subject:
            raise _invalid("The subject is required. It may be given for the mail or for each personalization.", "subject")


def _validate_content(fields: Fields) -> None:
    content = fields.get("content", [])
    if not isinstance(content, list) or (not content and not fields.get("template_id")):
        raise _invalid("The content array is required unless a template is used.", "content")
    for place, part in enumerate(content):
        for name in ("type", "value"):
            value = part.get(name) if isinstance(part, dict) else None
            if not isinstance(value, str) or not value:
                raise _invalid(f"The content {name} must be a string of at least one character.", f"content.{place}.{name}")
