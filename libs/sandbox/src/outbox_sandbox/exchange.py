"""The values that pass between the server and the providers it plays: what was received, what is answered, what an effect is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from outbox_sandbox.records import Records

MARKER_NAME = "outbox"
"""The name under which the gateway plants its marker in metadata or custom arguments."""

JSON_TYPE = "application/json"

Fields = dict[str, object]
"""The fields of a request: names to JSON values."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request as it arrived, its body read to the end."""

    method: str
    path: str
    query: str
    """The raw query string, without the question mark."""
    headers: Mapping[str, str]
    """Names compare without regard to case."""
    body: bytes
    at: float
    """When it arrived, in seconds since the epoch."""

    @property
    def idempotency_key(self) -> str | None:
        """The `Idempotency-Key` header; an empty one counts as absent."""
        return self.headers.get("Idempotency-Key") or None

    @property
    def bearer(self) -> str | None:
        """The token of `Authorization: Bearer`, None if there is none."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is sent back: status, headers of its own, body."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def reason(self) -> str:
        """The words of the status line."""
        return HTTPStatus(self.status).phrase


def json_answer(status: int, document: object, *headers: tuple[str, str]) -> Answer:
    """An answer whose body is `document` as JSON."""
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(status=status, body=body, headers=(("Content-Type", JSON_TYPE), *headers))


class Refused(Exception):
    """The provider refused the request before it made anything; `answer` says so in the provider's own shape."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Something the provider made because of one request."""

    id: str
    resource: str
    """What kind of thing it is: refund, customer, mail, ticket, echo, label, record, message."""
    subject: str | None
    """What lists of this resource filter by: the payment intent, the email address, the marker."""
    amount: int | None
    """Money that moved, in minor units."""
    fields: Fields
    """The request's fields as they were received."""
    result: Fields
    """The thing that was made, as reads of it answer."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request that was found valid, ready to be carried out inside the transaction that commits its effect."""

    carry_out: Callable[[Records, float], tuple[Effect, Answer]]
    """Takes the records and the time (seconds since the epoch). Raises `Refused` where the state forbids the effect."""


class Service(Protocol):
    """One provider (or one resource of our own) that the sandbox plays."""

    name: str
    """Idempotency keys of different services are apart."""
    keeps_keys: bool
    """Whether an `Idempotency-Key` on a POST means anything here."""

    @property
    def key_life_seconds(self) -> float | None:
        """How long an answer is kept for its key; as long as the server says where it is None."""

    def authenticate(self, received: Received) -> None:
        """Raise `Refused` (401) for a caller without a usable credential."""

    def fields(self, received: Received) -> Fields:
        """The body of a POST as fields. Raises `Refused` where it cannot be read."""

    def plan(self, received: Received, fields: Fields) -> Plan:
        """Validate a POST. Raises `Refused`."""

    def read(self, received: Received, records: Records) -> Answer:
        """Answer a GET. Raises `Refused`."""

    def failure(self, status: int, code: str, message: str) -> Answer:
        """An error answer in the shape of this provider."""

    def reply_headers(self, received: Received, request_id: str) -> tuple[tuple[str, str], ...]:
        """Headers that every answer of this provider to `received` carries."""


def marker_in(fields: Mapping[str, object]) -> str | None:
    """The marker the gateway planted in a request, wherever this provider takes one.

    Looked for in a `marker` field, then under `outbox` in `metadata`, in `custom_args`, and in the `custom_args` of each of
    `personalizations`. None if there is none.
    """
    plain = fields.get("marker")
    if isinstance(plain, str):
        return plain
    holders: list[object] = [fields.get("metadata"), fields.get("custom_args")]
    personalizations = fields.get("personalizations")
    if isinstance(personalizations, Sequence) and not isinstance(personalizations, str):
        holders += [each.get("custom_args") for each in personalizations if isinstance(each, Mapping)]
    for holder in holders:
        if isinstance(holder, Mapping):
            planted = holder.get(MARKER_NAME)
            if isinstance(planted, str):
                return planted
    return None
