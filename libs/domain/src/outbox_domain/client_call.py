"""A tool call whose effect the caller carries out itself: what is asked for, and what its attempt came to.

Source: design section 4 (a reservation names its executor), `docs/client-executed.md`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

from outbox_domain.contract import ToolContract
from outbox_domain.errors import refuse
from outbox_domain.inline_contract import read_inline
from outbox_domain.json_text import member_path
from outbox_domain.reservation import Outcome
from outbox_domain.tool_call import ToolCall

TIME_LIMIT_SECONDS_MAX = 86_400.0
REFERENCE_BYTES_MAX = 1_000
REASON_CHARACTERS_MAX = 100
MESSAGE_CHARACTERS_MAX = 500

CALL_MEMBERS = ("attempt_id", "time_limit_seconds", "contract", "probe")
"""What a client-executed call says beside the members of a tool call."""

SETTLEMENT_MEMBERS = (
    *("attempt_id", "outcome", "external_reference", "result", "provider_status", "provider_code", "provider_message"),
    *("provider_request_id", "stored", "reason", "amount"),
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REQUEST_ID = re.compile(r"[^\s\x00-\x1f\x7f]{1,255}")
_CURRENCY = re.compile(r"[A-Za-z]{3}")
# A reason stands in the ledger for ever, so it has no room for a sentence of a customer.
_REASON = re.compile(rf"[A-Za-z0-9 _.:/-]{{1,{REASON_CHARACTERS_MAX}}}")


@dataclass(frozen=True, kw_only=True)
class ClientCall:
    """A tool call with what its caller says of the attempt that it wants.

    Attributes:
        attempt_id: made by the caller, so that the same request sent again recognises its own attempt.
        time_limit_seconds: how long the handler may run; None: no limit.
        contract: the inline contract; None: the tool's own.
        probe: the caller can look whether the effect exists.
    """

    call: ToolCall
    attempt_id: UUID
    time_limit_seconds: float | None
    contract: ToolContract | None
    probe: bool

    @classmethod
    def read(cls, document: object, headers: Mapping[str, str]) -> Self:
        """Reads a client-executed call.

        Args:
            document: the body as `json_text.parse` read it.
            headers: the request's headers, as `ToolCall.read` takes them.

        Raises:
            OutboxError: `invalid-input` with the path of the first member that is not as expected.
        """
        if not isinstance(document, dict):
            refuse("$", "an object with the members tool, input and attempt_id")
        call = ToolCall.read({name: value for name, value in document.items() if name not in CALL_MEMBERS}, headers)
        probe = document.get("probe")
        if probe is not None and not isinstance(probe, bool):
            refuse("$.probe", "true or false")
        contract = document.get("contract")
        return cls(
            call=call,
            attempt_id=read_attempt_id(document),
            time_limit_seconds=_time_limit(document.get("time_limit_seconds")),
            contract=None if contract is None else read_inline(call.tool, contract),
            probe=bool(probe),
        )


@dataclass(frozen=True, kw_only=True)
class ClientSettlement:
    """What a caller says its attempt came to.

    Attributes:
        external_reference: the provider's name of the effect; for a success alone, and there too only where the caller has one.
        result: any JSON value, for a success alone.
        has_result: whether there was one; null is a value.
        provider_code, provider_request_id: as the provider said, None where it is no plain code.
        provider_message: the provider's words; sealed, for a day.
        stored: the provider keeps this refusal under the provider key.
        reason: a few plain words of the caller's.
        amount, currency: what the provider says it moved, in minor units.
    """

    attempt_id: UUID
    outcome: Outcome
    external_reference: str | None = None
    result: Any = None
    has_result: bool = False
    provider_status: int | None = None
    provider_code: str | None = None
    provider_message: str | None = None
    provider_request_id: str | None = None
    stored: bool = False
    reason: str | None = None
    amount: int | None = None
    currency: str | None = None

    @classmethod
    def read(cls, document: object) -> Self:
        """Reads a settlement.

        Foreign codes that are none are left out rather than refused: what became of an effect must not be lost for a comma.

        Raises:
            OutboxError: `invalid-input` with the path of the first member that is not as expected.
        """
        members = members_of(document, SETTLEMENT_MEMBERS)
        outcome = members.get("outcome")
        if outcome not in set(Outcome):
            refuse("$.outcome", f"one of {', '.join(Outcome)}")
        if outcome != Outcome.SUCCEEDED:
            for name in ("external_reference", "result", "amount"):
                if members.get(name) is not None:
                    refuse(f"$.{name}", "nothing: only what succeeded has one")
        amount, currency = _amount(members.get("amount"))
        stored = members.get("stored")
        if stored is not None and not isinstance(stored, bool):
            refuse("$.stored", "true or false")
        message = _text(members, "provider_message")
        return cls(
            attempt_id=read_attempt_id(members),
            outcome=Outcome(str(outcome)),
            external_reference=read_reference(members),
            result=members.get("result"),
            has_result="result" in members,
            provider_status=_status(members.get("provider_status")),
            provider_code=_matching(_CODE, _text(members, "provider_code")),
            provider_message=None if message is None else _CONTROL.sub(" ", message[:MESSAGE_CHARACTERS_MAX]),
            provider_request_id=_matching(_REQUEST_ID, _text(members, "provider_request_id")),
            stored=bool(stored) and outcome == Outcome.REJECTED,
            reason=read_reason(members),
            amount=amount,
            currency=currency,
        )


def members_of(document: object, known: tuple[str, ...]) -> Mapping[str, Any]:
    """The members of a body, all of them known ones.

    Raises:
        OutboxError: `invalid-input`.
    """
    if not isinstance(document, dict):
        refuse("$", f"an object with some of the members {', '.join(known)}")
    for name in document:
        if name not in known:
            refuse(member_path("$", name), "no such field")
    return document


def read_attempt_id(members: Mapping[str, object]) -> UUID:
    """The attempt that a body names.

    Raises:
        OutboxError: `invalid-input`.
    """
    value = members.get("attempt_id")
    try:
        id = UUID(value) if isinstance(value, str) else None
    except ValueError:
        id = None
    if id is None or str(id) != str(value).lower():
        refuse("$.attempt_id", "a UUID that the caller made for this attempt")
    return id


def read_reference(members: Mapping[str, object]) -> str | None:
    """The provider's name of an effect, where a body gives one.

    Raises:
        OutboxError: `invalid-input`.
    """
    reference = _text(members, "external_reference")
    if reference is not None and (
        not reference.strip() or len(reference.encode()) > REFERENCE_BYTES_MAX or _CONTROL.search(reference)
    ):
        refuse("$.external_reference", f"the provider's name of the effect, 1 to {REFERENCE_BYTES_MAX} bytes")
    return reference


def read_reason(members: Mapping[str, object]) -> str | None:
    """The caller's reason, where a body gives one.

    Raises:
        OutboxError: `invalid-input`.
    """
    reason = _text(members, "reason")
    if reason is not None and _REASON.fullmatch(reason) is None:
        refuse("$.reason", f"a few plain words: letters, digits, spaces and _.:/- up to {REASON_CHARACTERS_MAX}")
    return reason


def _text(members: Mapping[str, object], name: str) -> str | None:
    value = members.get(name)
    if value is not None and not isinstance(value, str):
        refuse(f"$.{name}", "text")
    return value


def _matching(pattern: re.Pattern[str], text: str | None) -> str | None:
    return text if text is not None and pattern.fullmatch(text) else None


def _status(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 100 <= value <= 999:
        refuse("$.provider_status", "an HTTP status")
    return value


def _amount(value: object) -> tuple[int | None, str | None]:
    if value is None:
        return None, None
    expected = "an object with value (whole minor units) and currency (three letters)"
    if not isinstance(value, dict) or set(value) != {"value", "currency"}:
        refuse("$.amount", expected)
    units, currency = value["value"], value["currency"]
    if (
        isinstance(units, bool)
        or not isinstance(units, int)
        or not isinstance(currency, str)
        or not _CURRENCY.fullmatch(currency)
    ):
        refuse("$.amount", expected)
    return units, currency.upper()


def _time_limit(value: object) -> float | None:
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not 0 < value <= TIME_LIMIT_SECONDS_MAX
    ):
        refuse("$.time_limit_seconds", f"seconds above 0, at most {TIME_LIMIT_SECONDS_MAX:g}")
    return float(value)
