"""What a provider sends on its own: is it signed, which event is it, of which effect does it tell, and does it prove that one?

Everything but a verified event is foreign. Source: docs.stripe.com/webhooks ("Verify webhook signatures manually").
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import jmespath.exceptions

from outbox_domain.contract import ToolContract, WebhookRule
from outbox_providers.reading import Projection, expression, parsed, project

TOLERANCE_SECONDS = 300.0
"""How far the signed time may be from ours, either way: the default of the provider's own libraries."""

SIGNATURES_MAX = 10
"""Signatures of one event that are compared; while a secret is renewed there are two."""

STRIPE = "stripe"
SIGNATURE_HEADERS: Mapping[str, str] = {STRIPE: "stripe-signature"}
"""Where each known scheme puts its signature; a contract that names another scheme is not listened to."""

_DIGITS = re.compile(r"[0-9]{1,15}")
_EVENT_ID = re.compile(r"[!-~]{1,255}")
EVENT_TYPE = re.compile(r"[A-Za-z0-9_.]{1,100}")
"""What a type of event looks like; another is foreign text."""

_MARKER = re.compile(r"[A-Za-z0-9_-]{1,255}")


class SignatureRefused(Exception):
    """The body is not signed as the connection signs; the message says how, and repeats nothing of what was sent."""


class EventMalformed(Exception):
    """The body is signed and yet no event."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A verified event.

    Attributes:
        id: the provider's name of it; the same event sent again has the same.
        kind: what happened, where it is a plain word; foreign text otherwise, and left out.
        document: the whole event.
    """

    id: str
    kind: str | None
    document: dict[str, Any] = field(repr=False)


def verify(scheme: str, secret: str, headers: Mapping[str, str], body: bytes, *, now_seconds: float) -> None:
    """Check a signature.

    Args:
        scheme: `stripe`.
        secret: what the provider signs this connection's events with, as it gave it (`whsec_...`).
        headers: of the request, names in lower case.
        body: exactly as it was received.
        now_seconds: the time, since the epoch.

    Raises:
        SignatureRefused: none of the signatures is right, or the signed time is not within five minutes.
    """
    name = SIGNATURE_HEADERS.get(scheme)
    if name is None:
        raise SignatureRefused("the scheme is unknown")
    parts = [part.strip().partition("=") for part in headers.get(name, "").split(",")]
    times = [value for key, _, value in parts if key == "t"]
    signatures = [value for key, _, value in parts if key == "v1"][:SIGNATURES_MAX]
    if len(times) != 1 or _DIGITS.fullmatch(times[0]) is None or not signatures:
        raise SignatureRefused("there is no signature")
    wanted = hmac.new(secret.encode(), times[0].encode() + b"." + body, sha256).hexdigest()
    # Every one is compared, in the same time whatever it holds.
    right = [hmac.compare_digest(wanted.encode(), signature.encode()) for signature in signatures]
    if not any(right):
        raise SignatureRefused("the signature is not right")
    if abs(now_seconds - int(times[0])) > TOLERANCE_SECONDS:
        raise SignatureRefused("it was signed too long ago, or in the future")


def read_event(body: bytes) -> Event:
    """The event in a verified body.

    Raises:
        EventMalformed: it is no JSON object with a plain `id`.
    """
    document = parsed(body)
    id = document.get("id") if isinstance(document, dict) else None
    if not isinstance(id, str) or _EVENT_ID.fullmatch(id) is None:
        raise EventMalformed("expected an event with an id")
    kind = document.get("type")
    return Event(id=id, kind=kind if isinstance(kind, str) and EVENT_TYPE.fullmatch(kind) else None, document=document)


def marker_in(rule: WebhookRule, event: Event) -> str | None:
    """The marker that an event carries where the contract says; None where it carries none of ours."""
    try:
        found = expression(rule.match).search(event.document)
    except (jmespath.exceptions.JMESPathError, RecursionError):
        return None
    return found if isinstance(found, str) and _MARKER.fullmatch(found) else None


def proves(rule: WebhookRule, event: Event) -> bool:
    """Whether the contract says that an event proves the effect; what it does not name, or cannot be asked, proves nothing."""
    if event.kind is None or event.kind not in rule.types:
        return False
    if rule.when is None:
        return True
    try:
        return expression(rule.when).search(event.document) not in (None, False, "", [], {})
    except (jmespath.exceptions.JMESPathError, RecursionError):
        return False


def effect_in(contract: ToolContract, event: Event) -> Projection:
    """The receipt's facts of the effect that an event tells of: its `data.object`, read as the contract reads an answer."""
    data = event.document.get("data")
    return project(contract, data.get("object") if isinstance(data, dict) else None)
