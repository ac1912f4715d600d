"""The body of a settlement: what the gateway is told of an attempt, made of what a handler did or of what its caller says."""

from __future__ import annotations

import logging
from typing import Any

from agent_outbox.classify import Classified, classify
from agent_outbox.effect import Classify, Effect, ReceiptOf, Success
from agent_outbox.stored_form import stored_form

LOG = logging.getLogger(__name__)


def success_members(value: object, receipt: ReceiptOf | None) -> dict[str, Any]:
    """What a settlement says of a success.

    Args:
        value: as the handler returned it, a `Success` or any other.
        receipt: finds the provider's name of the effect in it.
    """
    success = value if isinstance(value, Success) else Success(result=value)
    reference = success.external_reference
    if reference is None and receipt is not None:
        try:
            found = receipt(success.result)
            reference = None if found is None else str(found)
        except Exception as error:
            LOG.warning("receipt= found nothing in the result (%s); the effect is recorded without it", type(error).__name__)
    members: dict[str, Any] = {"outcome": "succeeded", "result": stored_form(success.result).value}
    if reference is not None:
        members["external_reference"] = reference
    if success.provider_request_id is not None:
        members["provider_request_id"] = success.provider_request_id
    if success.amount is not None:
        members["amount"] = {"value": success.amount.value, "currency": success.amount.currency}
    return members


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
    """
    body: dict[str, Any] = {"attempt_id": effect.attempt_id, "outcome": outcome}
    if outcome == "succeeded":
        body.update(success_members(success, None))
    said = {
        "reason": None if reason is None else plain_reason(reason),
        "provider_status": provider_status,
        "provider_code": provider_code,
        "provider_message": provider_message,
        "stored": True if stored else None,
    }
    return {**body, **{name: value for name, value in said.items() if value is not None}}


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
    members: dict[str, Any] = {"outcome": classified.outcome, "reason": plain_reason(classified.reason)}
    if classified.provider_status is not None and 100 <= classified.provider_status <= 999:
        members["provider_status"] = classified.provider_status
    if classified.provider_code is not None:
        members["provider_code"] = classified.provider_code
    if classified.stored and classified.outcome == "rejected":
        members["stored"] = True
    return members


def plain_reason(reason: str) -> str:
    """A reason as the gateway takes one: a few plain words."""
    words = "".join(
        character if character.isascii() and (character.isalnum() or character in " _.:/-") else " " for character in reason
    )
    return words.strip()[:100] or "exception"
