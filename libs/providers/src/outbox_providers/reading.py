"""Reads an answer by its contract's outcome table. What is not provably something else is unknown (design section 4).

Everything in an answer is foreign: it may be huge, cut off, nested without end or made to mislead. A table that cannot be
evaluated on it, a success without its receipt, and a body that is no JSON where the table asks for one all come to unknown.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import jmespath
import jmespath.exceptions
import msgspec

from outbox_domain.contract import AmountRule, OutcomeRule, ToolContract
from outbox_domain.reservation import Outcome
from outbox_providers.wire import Failure, Reading, WireAnswer, header

ANSWER_BYTES_MAX = 4 << 20
"""Larger bodies are not parsed; what they would have said is unknown."""

REFERENCE_CHARACTERS_MAX = 255
"""Longer external references are no references."""

RESULT_TEXT_CHARACTERS_MAX = 1000
"""A longer text in the answer is left out of the kept result."""

RESULT_MEMBER_BYTES_MAX = 4096
"""A list or object in the answer that is longer as JSON is left out of the kept result."""

MESSAGE_CHARACTERS_MAX = 500
"""Foreign text of a failure is cut to this length."""

RETRY_AFTER_SECONDS_MAX = 86_400.0
"""What a provider may make us wait at most; a reservation lives shorter anyway."""

_EPOCH_SECONDS_MIN = 1_000_000_000
_HEADER = re.compile(r"header\.([A-Za-z0-9-]{1,100})")
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CURRENCY = re.compile(r"[A-Za-z]{3}")
_REFERENCE = re.compile(r"[^\s\x00-\x1f\x7f]{1,255}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CODE_PLACES = (("error", "code"), ("error", "type"), ("code",), ("errors", 0, "code"), ("error",))
_MESSAGE_PLACES = (("error", "message"), ("message",), ("errors", 0, "message"), ("detail",), ("error",))


def header_name(expression: str) -> str | None:
    """The header an expression refers to (`header.Retry-After` gives `Retry-After`); None if it is JMESPath."""
    found = _HEADER.fullmatch(expression)
    return found[1] if found is not None else None


@functools.lru_cache(maxsize=1024)
def expression(text: str) -> Any:
    """A compiled JMESPath expression (jmespath.org/specification.html).

    Raises:
        jmespath.exceptions.ParseError: if the text is none.
    """
    return jmespath.compile(text)


def read(contract: ToolContract, answer: WireAnswer) -> Reading:
    """Says what an answer means.

    Args:
        contract: the contract the request was made under.
        answer: the complete answer.

    Returns:
        The reading. A 2xx whose external reference is absent, or is no plain name, is unknown.
    """
    body = parsed(answer.body)
    row = _matching_row(contract.outcomes, answer, body)
    outcome = row.outcome if row is not None else Outcome.UNKNOWN
    reference = _reference(contract, answer, body) if outcome is Outcome.SUCCEEDED else None
    if outcome is Outcome.SUCCEEDED and (reference is None or not 200 <= answer.status < 300):
        outcome, reference = Outcome.UNKNOWN, None
    if outcome is Outcome.UNSENT or (outcome is not Outcome.UNKNOWN and (answer.status == 408 or answer.status >= 500)):
        outcome = Outcome.UNKNOWN
    succeeded = outcome is Outcome.SUCCEEDED
    result = _result(contract.receipt.result, answer, body) if succeeded else None
    amount, currency = _reported_money(contract.amount, result)
    return Reading(
        outcome=outcome,
        stored=row is not None and row.stored and outcome is Outcome.REJECTED,
        retry_after_seconds=_retry_after(row, answer) if outcome is Outcome.DEFERRED else None,
        external_reference=reference,
        provider_request_id=_request_id(contract, answer, body),
        result=result,
        amount_reported=amount,
        currency_reported=currency,
        failure=None if succeeded else _failure(answer, body),
        stored_failure=answer.status >= 500 and _is_replayed(contract, answer),
        replayed=_is_replayed(contract, answer),
        conflict=row is not None and row.conflict and outcome is Outcome.UNKNOWN,
    )


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What a contract's receipt rule takes from an object that stands for the effect.

    Attributes:
        external_reference: the provider's name of the effect; None where there is no plain one.
    """

    external_reference: str | None
    provider_request_id: str | None
    result: dict[str, Any]
    amount_reported: int | None
    currency_reported: str | None


def project(contract: ToolContract, effect: Any) -> Projection:
    """The receipt of an effect that was read back. What the contract takes from headers is absent: they are another request's.

    Args:
        contract: the contract the effect was made under.
        effect: the object that the read gave for it.
    """
    bare = WireAnswer(status=200, headers=(), body=b"")
    result = _result(contract.receipt.result, bare, effect)
    amount, currency = _reported_money(contract.amount, result)
    return Projection(
        external_reference=_reference(contract, bare, effect),
        provider_request_id=_request_id(contract, bare, effect),
        result=result,
        amount_reported=amount,
        currency_reported=currency,
    )


def parsed(body: bytes) -> Any:
    """The body as JSON, or None."""
    if not body or len(body) > ANSWER_BYTES_MAX:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _found(text: str, answer: WireAnswer, body: Any) -> Any:
    """What an expression finds: a header's value, or what JMESPath yields; None where nothing is found.

    Raises:
        jmespath.exceptions.JMESPathError: if the answer has types the expression cannot work on.
    """
    name = header_name(text)
    if name is not None:
        return header(answer.headers, name) or None
    return expression(text).search(body) if body is not None else None


def _found_or_none(text: str | None, answer: WireAnswer, body: Any) -> Any:
    if text is None:
        return None
    try:
        return _found(text, answer, body)
    except (jmespath.exceptions.JMESPathError, RecursionError):
        return None


def _matching_row(rows: tuple[OutcomeRule, ...], answer: WireAnswer, body: Any) -> OutcomeRule | None:
    """The first row that fits. A row that cannot be evaluated ends the search: a later one may not decide in its place."""
    for row in rows:
        if answer.status not in row.status:
            continue
        try:
            if row.has is not None and _found(row.has, answer, body) is None:
                continue
            if row.match is not None and not is_truthy(_found(row.match, answer, body)):
                continue
        except (jmespath.exceptions.JMESPathError, RecursionError):
            return None
        return row
    return None


def is_truthy(value: Any) -> bool:
    """Truth as JMESPath has it: null, false and what is empty are false; zero is true."""
    return not (value is None or value is False or (isinstance(value, str | list | dict) and not value))


def _reference(contract: ToolContract, answer: WireAnswer, body: Any) -> str | None:
    """The provider's name of the effect; prose, containers and endless texts are no names."""
    value = _found_or_none(contract.receipt.external_reference, answer, body)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and len(value) <= REFERENCE_CHARACTERS_MAX and _REFERENCE.fullmatch(value):
        return value
    return None


def _request_id(contract: ToolContract, answer: WireAnswer, body: Any) -> str | None:
    value = _found_or_none(contract.receipt.provider_request_id, answer, body)
    return value if isinstance(value, str) and _REFERENCE.fullmatch(value) else None


def _result(projection: Mapping[str, str], answer: WireAnswer, body: Any) -> dict[str, Any]:
    return {name: _kept(_found_or_none(place, answer, body)) for name, place in projection.items()}


def _kept(value: Any) -> Any:
    """The value if it is small enough to be kept with a receipt for years, else null."""
    if isinstance(value, str):
        return value if len(value) <= RESULT_TEXT_CHARACTERS_MAX and "\x00" not in value else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return None
    return value if len(text) <= RESULT_MEMBER_BYTES_MAX and "\\u0000" not in text else None


def _reported_money(rule: AmountRule | None, result: Mapping[str, Any] | None) -> tuple[int | None, str | None]:
    """The money the provider says it moved: the result's member named as the input's, and the one the contract checks."""
    if rule is None or result is None:
        return None, None
    amount = result.get(rule.value.rpartition(".")[2])
    currency = result.get(rule.check.rpartition(".")[2]) if rule.check is not None else None
    return (
        amount if isinstance(amount, int) and not isinstance(amount, bool) else None,
        currency.upper() if isinstance(currency, str) and _CURRENCY.fullmatch(currency) else None,
    )


def _failure(answer: WireAnswer, body: Any) -> Failure:
    codes = (_at(body, place) for place in _CODE_PLACES)
    messages = (_at(body, place) for place in _MESSAGE_PLACES)
    message = next((text for text in messages if isinstance(text, str) and text), None)
    return Failure(
        provider_status=answer.status,
        provider_code=next((code for code in codes if isinstance(code, str) and _CODE.fullmatch(code)), None),
        provider_message=_CONTROL.sub(" ", message[:MESSAGE_CHARACTERS_MAX]) if message is not None else None,
    )


def _at(value: Any, place: tuple[str | int, ...]) -> Any:
    for step in place:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and len(value) > step else None
    return value


def _is_replayed(contract: ToolContract, answer: WireAnswer) -> bool:
    """The provider says that it replayed the answer from its store: a 5xx then tells of the first attempt, and nothing new."""
    place = contract.resend.stored_failure if contract.resend is not None else None
    name = header_name(place) if place is not None else None
    return name is not None and (header(answer.headers, name) or "").strip().lower() == "true"


def _retry_after(row: OutcomeRule | None, answer: WireAnswer) -> float | None:
    """Seconds until the next try, from seconds or an HTTP date (RFC 9110 section 10.2.3), or from epoch seconds.

    A point in time is counted from the answer's own `Date`, because no clock is read here; without one it says nothing.
    """
    name = header_name(row.after) if row is not None and row.after is not None else None
    text = (header(answer.headers, name) or "").strip() if name is not None else ""
    if not text or len(text) > 100:
        return None
    if re.fullmatch(r"\d{1,15}(\.\d{1,9})?", text):
        seconds = float(text)
        if seconds >= _EPOCH_SECONDS_MIN:
            answered_at = _http_date(header(answer.headers, "Date"))
            if answered_at is None:
                return None
            seconds -= answered_at.timestamp()
    else:
        due, answered_at = _http_date(text), _http_date(header(answer.headers, "Date"))
        if due is None or answered_at is None:
            return None
        seconds = (due - answered_at).total_seconds()
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)


def _http_date(text: str | None) -> datetime | None:
    if text is None or len(text) > 100:
        return None
    try:
        parsed = parsedate_to_datetime(text)
        return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
