"""Echo: takes any JSON object, answers with it, and treats idempotency keys as Stripe does."""

from __future__ import annotations

import secrets

from outbox_sandbox.exchange import Answer, Effect, Fields, Plan, Received, Refused, json_answer
from outbox_sandbox.json_body import MalformedJson, decode
from outbox_sandbox.records import Records

PATH = "/v1/echo"


def error(status: int, code: str, message: str) -> Answer:
    """An error in the shape of our own resources: `{"error": {"type", "code", "message"}}`."""
    kinds = {402: "card_error", 429: "rate_limit_error"}
    kind = "idempotency_error" if code.startswith("idempotency_") else "api_error" if status >= 500 else kinds.get(status)
    return json_answer(status, {"error": {"type": kind or "invalid_request_error", "code": code, "message": message}})


def json_fields(received: Received) -> Fields:
    """The members of a JSON body. Raises `Refused` (400)."""
    try:
        return decode(received.body)
    except MalformedJson as malformed:
        raise Refused(error(400, "malformed_body", str(malformed))) from malformed


class Echo:
    """`POST /v1/echo`, `GET /v1/echo/{id}`."""

    name = "echo"
    keeps_keys = True
    key_life_seconds = None

    def authenticate(self, received: Received) -> None:
        """Everybody may shout."""

    def fields(self, received: Received) -> Fields:
        """Any JSON object."""
        return json_fields(received)

    def plan(self, received: Received, fields: Fields) -> Plan:
        """One echo."""
        if received.path != PATH:
            raise Refused(error(404, "not_found", f"There is no {received.path}"))

        def carry_out(_records: Records, _now: float) -> tuple[Effect, Answer]:
            echo: Fields = {"id": "ech_" + secrets.token_hex(12), "object": "echo", "echo": fields}
            effect = Effect(id=str(echo["id"]), resource="echo", subject=None, amount=None, fields=fields, result=echo)
            return effect, json_answer(200, echo)

        return Plan(carry_out=carry_out)

    def read(self, received: Received, records: Records) -> Answer:
        """One echo by its id."""
        found = records.effect(received.path.removeprefix(PATH + "/"))
        if found is None or found.effect.resource != "echo":
            raise Refused(error(404, "not_found", "There is no such echo"))
        return json_answer(200, found.effect.result)

    def failure(self, status: int, code: str, message: str) -> Answer:
        """`{"error": {"type", "code", "message"}}`."""
        return error(status, code, message)

    def reply_headers(self, received: Received, request_id: str) -> tuple[tuple[str, str], ...]:
        """The request's id, and the key sent back."""
        key = received.idempotency_key
        return (("Request-Id", request_id), *((("Idempotency-Key", key),) if key is not None else ()))
