"""The body of a settlement: what the gateway is told of an attempt, made of what a handler did or of what its caller says."""

from __future__ import annotations

import logging
import re
from typing import Any
from uuid import UUID

from agent_outbox import strict_json
from agent_outbox.classify import Classified, classify
from agent_outbox.effect import Classify, Effect, ReceiptOf, Success
from agent_outbox.stored_form import stored_form

LOG = logging.getLogger(__name__)

NAME_BYTES_MAX = 1_000
"""How long a provider's name of something may be, as the gateway takes it."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CURRENCY = re.compile(r"[A-Za-z]{3}")


def success_members(value: object, receipt: ReceiptOf | None) -> dict[str, Any]:
    """What a settlement says of a success. Never fails: the effect happened, so what cannot be said of it is left out.

    Args:
        value: as the handler returned it, a `Success` or any other.
        receipt: finds the provider's name of the effect in it.
    """
    success = value if isinstance(value, Success) else Success(result=value)
    reference: object = success.external_reference
    if reference is None and receipt is not None:
        try:
            reference = receipt(success.result)
        except Exception as error:
            LOG.warning("receipt= found nothing in the result (%s); the effect is recorded without it", type(error).__name__)
    members: dict[str, Any] = {"outcome": "succeeded", "result": stored_form(success.result).value}
    named = {"external_reference": reference, "provider_request_id": success.provider_request_id}
    said = {**{name: _name(value) for name, value in named.items()}, "amount": _money(success.amount)}
    for name, value in {**named, "amount": success.amount}.items():
        if said[name] is not None:
            members[name] = said[name]
        elif value is not None:
            LOG.warning("%s of a success cannot be recorded (%s); it is left out", name, type(value).__name__)
    return members


def _name(value: object) -> str | None:
    """A provider's name of something, as text; None where it is none that the gateway takes."""
    if isinstance(value, bool) or not isinstance(value, (str, int, UUID)):
        return None
    try:
        text = str(value)
        usable = bool(text.strip()) and len(text.encode()) <= NAME_BYTES_MAX and _CONTROL.search(text) is None
    except ValueError:  # Lone surrogates, or a number of some thousands of digits.
        return None
    return text if usable else None


def _money(amount: object) -> dict[str, Any] | None:
    """An amount as the gateway takes one; None where it is no whole number of minor units in a currency."""
    value: Any = getattr(amount, "value", None)
    currency = getattr(amount, "currency", None)
    if isinstance(value, bool) or not isinstance(currency, str) or _CURRENCY.fullmatch(currency) is None:
        return None
    try:
        units = int(value)
        whole = units == value and abs(units) <= strict_json.EXACT_INTEGER_MAX
    except Exception:
        return None
    return {"value": units, "currency": currency} if whole else None


def settle_body(
    effect: Effect,
    outcome: str,
    success: Success,
    *,
    reason: str | None,
    provider_status: int | None,
    provider_code: str | None,
    provider_message: str | None,
    stored: bool,
) -> dict[str, Any]:
    """The body of a settlement that the caller has worded.

    Args:
        effect: the attempt.
        outcome: what it came to.
        success: what is said of one.
        reason: a few plain words.
        provider_status, provider_code, provider_message, stored: of a refusal.

    Raises:
        MalformedArgumentsError: what is said of a refusal cannot be carried as JSON. Nothing was kept or told.
    """
    body: dict[str, Any] = {"attempt_id": effect.attempt_id, "outcome": outcome}
    if outcome == "succeeded":
        body.update(success_members(success, None))
    said = {
        "reason": None if reason is None else plain_reason(reason),
        "provider_status": provider_status,
        "provider_code": provider_code,
        # Words for people: of text that a system gave in another encoding, what cannot be told is marked.
        "provider_message": _told(provider_message),
        "stored": True if stored else None,
    }
    body.update({name: value for name, value in said.items() if value is not None})
    strict_json.write(body)
    return body


def exception_members(error: BaseException, own: Classify | None) -> dict[str, Any]:
    """What a settlement says of an exception.

    Args:
        error: as the handler raised it.
        own: the caller's own verdict, asked before the lists.
    """
    classified: Classified | None = None
    if own is not None and isinstance(error, Exception):
        try:
            verdict = own(error)
            classified = Classified(outcome=verdict, reason=type(error).__name__) if isinstance(verdict, str) else verdict
            if classified is not None and classified.outcome not in ("rejected", "deferred", "unsent", "unknown"):
                raise ValueError("no such outcome")
        except Exception as raised:
            LOG.warning("classify= failed (%s), so the exception says nothing", type(raised).__name__)
            classified = Classified(outcome="unknown", reason=type(error).__name__)
    if classified is None:
        classified = classify(error)
    reason, status, code = classified.reason, classified.provider_status, classified.provider_code
    members: dict[str, Any] = {
        "outcome": classified.outcome,
        "reason": plain_reason(reason if isinstance(reason, str) else type(error).__name__),
    }
    # Exceptions hold what their makers put there: a status may be text, a code may be anything.
    if isinstance(status, int) and not isinstance(status, bool) and 100 <= status <= 999:
        members["provider_status"] = status
    if isinstance(code, str) and code.isascii():
        members["provider_code"] = code
    if classified.stored and classified.outcome == "rejected":
        members["stored"] = True
    return members


def _told(message: object) -> object:
    return message.encode("utf-8", "replace").decode() if isinstance(message, str) else message


def plain_reason(reason: str) -> str:
    """A reason as the gateway takes one: a few plain words."""
    words = "".join(
        character if character.isascii() and (character.isalnum() or character in " _.:/-") else " " for character in reason
    )
    return words.strip()[:100] or "exception"
