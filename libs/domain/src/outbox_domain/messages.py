"""Every text that a model reads, in one place (`interfaces.md` section 2). The first words carry the fact.

A model obeys what it reads, so no text of a provider, of an input or of any other stranger stands in here. Names and codes that
come from outside are shown only when they are a single plain word; otherwise the sentence does without them. What a provider
said is told in the member `failure` of an answer, quoted, never here.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from outbox_domain import money

if TYPE_CHECKING:
    from outbox_domain.contract import ToolContract

NEAREST_MAX = 5
"""How many tools are offered in place of an unknown one."""

_SUCCEEDED = "Done. {summary}. Receipt {receipt}."
_SUCCEEDED_WITHOUT_SUMMARY = "Done. Receipt {receipt}."
_REPLAYED_SAME_RUN = "Already done at {time} in this run; this call sent nothing. Receipt {receipt}."
_REPLAYED_OTHER_RUN = "Already done at {time} by another run; this call sent nothing. Receipt {receipt}."
_REPLAYED_NO_RUN = "Already done at {time}; this call sent nothing. Receipt {receipt}."
_RUNNING = "Not finished. Ask again in {seconds} s with the same arguments; that joins this one and starts nothing new."
_ATTEMPT_OPEN = "NOT DONE YET. This caller holds the one attempt: carry it out now and settle it before its lease ends."
_PROBE_FIRST = (
    "UNKNOWN. An earlier attempt may have done it. Do not carry it out: look first whether it is there, and say what was found."
)
_AWAITING_REVIEW = (
    "NOT DONE. A person must approve it by {time}. Tell the user so. Do not repeat it, split it or reach it by another tool."
)
_REVIEW_REQUIRED = (
    "NOT DONE. A person must approve it, and nobody can be asked from here. Tell the user so. "
    "Do not repeat it, split it or reach it by another tool."
)
_POLICY_DENIED = "NOT DONE. Not allowed: {rule}. Do not try another way to the same effect."
_REVIEW_DENIED = "NOT DONE. Refused by a reviewer."
_REVIEW_EXPIRED = "NOT DONE. Nobody answered by {time}."
_CONFLICT = "NOT DONE. {key_fields} were already used with other values for {fields}. Receipt {receipt}."
_CONFLICT_OPEN = "NOT DONE. {key_fields} were already used with other values for {fields}."
_QUOTA = "NOT DONE. Limit {name} is used up until {time}; this call used nothing of it."
_PROVIDER_REFUSED = "NOT DONE. {provider} refused it ({code})."
_PROVIDER_REFUSED_WITHOUT_CODE = "NOT DONE. {provider} refused it."
_VOIDED = "NOT DONE. It was withdrawn before it was sent ({reason})."
_FAILED = "NOT DONE. It is proven that nothing took effect."
_IN_DOUBT = (
    "UNKNOWN. It was sent and no answer came. Do not repeat it and do not say that it failed or succeeded. "
    "It is being checked; next check {time}."
)
_IN_DOUBT_FOR_A_PERSON = (
    "UNKNOWN. It was sent and no answer came. Do not repeat it and do not say that it failed or succeeded. "
    "It is being checked by a person."
)
_POSSIBLY_SENT = (
    "UNKNOWN. Our record lost its newest entries, so it may have been done before. Do not repeat it and do not say that it "
    "failed or succeeded. It is being checked; next check {time}."
)
_POSSIBLY_SENT_FOR_A_PERSON = (
    "UNKNOWN. Our record lost its newest entries, so it may have been done before. Do not repeat it and do not say that it "
    "failed or succeeded. It is being checked by a person."
)
_CONTRADICTED = (
    "UNKNOWN. There is proof of an effect that was recorded as not done. Do not repeat it and do not say that it failed or "
    "succeeded. It is being checked by a person."
)
_OBJECT_BUSY = (
    "NOT SENT. Another operation on the same object is not finished. "
    "Ask again in {seconds} s with the same arguments; that is safe."
)
_OCCURRENCE_OPEN = (
    "NOT SENT. An earlier occurrence of the same operation is not finished. Do not reach it another way. "
    "Ask again in {seconds} s with the same arguments; that is safe."
)
_RUN_BLOCKED = (
    "NOT SENT. An earlier effect of this run is in doubt, and nothing new is begun until it is known what became of it. "
    "Do not reach it another way. Ask again in {seconds} s with the same arguments; that is safe."
)
_INVALID_INPUT = "NOT SENT. {path}: expected {expected}."
_UNKNOWN_TOOL = "NOT SENT. There is no tool {tool}. Nearest you may call: {nearest}."
_UNAVAILABLE = "NOT SENT. Try the same call in {seconds} s; that is safe."

# One word as ids, codes and references are written. It has no space, so it cannot say a sentence.
_WORD = re.compile(r"[A-Za-z0-9_.:+/@=#-]{1,64}")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def succeeded(summary: str, receipt_id: str) -> str:
    """The effect happened and this call made it.

    Args:
        summary: the contract's sentence as `summarise` renders it; may be empty.
        receipt_id: the receipt.
    """
    sentence = summary.strip().rstrip(".")
    if not sentence:
        return _SUCCEEDED_WITHOUT_SUMMARY.format(receipt=receipt_id)
    return _SUCCEEDED.format(summary=sentence, receipt=receipt_id)


def replayed_same_run(settled_at: datetime, receipt_id: str) -> str:
    """The effect had happened before, in the caller's own run."""
    return _REPLAYED_SAME_RUN.format(time=moment(settled_at), receipt=receipt_id)


def replayed_other_run(settled_at: datetime, receipt_id: str) -> str:
    """The effect had happened before, by another run."""
    return _REPLAYED_OTHER_RUN.format(time=moment(settled_at), receipt=receipt_id)


def replayed_without_run(settled_at: datetime, receipt_id: str) -> str:
    """The effect had happened before, and one of the two calls named no run: nobody can say whose it was."""
    return _REPLAYED_NO_RUN.format(time=moment(settled_at), receipt=receipt_id)


def running(after_seconds: float) -> str:
    """Not final yet: running, or held by a pause or a breaker.

    Args:
        after_seconds: when to ask again; told in whole seconds, at least one.
    """
    return _RUNNING.format(seconds=_whole_seconds(after_seconds))


def attempt_open() -> str:
    """The caller carries the effect out itself and may do so now."""
    return _ATTEMPT_OPEN


def probe_first() -> str:
    """The caller carries the effect out itself, and must look first whether an earlier attempt did."""
    return _PROBE_FIRST


def awaiting_review(expires_at: datetime) -> str:
    """A person has to say yes first."""
    return _AWAITING_REVIEW.format(time=moment(expires_at))


def review_required() -> str:
    """A person would have to say yes, and there is no way to ask one."""
    return _REVIEW_REQUIRED


def policy_denied(rule_message: str) -> str:
    """A policy refused it.

    Args:
        rule_message: the organization's own words, from the policy; never a text of a caller or a provider.
    """
    return _POLICY_DENIED.format(rule=rule_message.strip().rstrip(".") or "a policy forbids it")


def out_of_scope(reason: str) -> str:
    """The key does not reach it; `reason` is one of our own phrases (`this key does not reach the tool`)."""
    return policy_denied(reason)


def stopped() -> str:
    """A switch stopped it."""
    return policy_denied("it is stopped by a switch")


def review_denied() -> str:
    """A reviewer said no."""
    return _REVIEW_DENIED


def review_expired(expired_at: datetime) -> str:
    """No reviewer said anything in time."""
    return _REVIEW_EXPIRED.format(time=moment(expired_at))


def conflict(key_fields: Sequence[str], fields: Sequence[str], receipt_id: str | None) -> str:
    """The same operation key was used with other values.

    Args:
        key_fields: names of the fields that make the key (`payment_intent`, `reference`).
        fields: names of the declared fields that differ; empty when only undeclared ones do.
        receipt_id: the receipt of the earlier effect; None while it has none.
    """
    names = {"key_fields": ", ".join(key_fields) or "These values", "fields": ", ".join(fields) or "other fields"}
    if receipt_id is None:
        return _CONFLICT_OPEN.format(**names)
    return _CONFLICT.format(receipt=receipt_id, **names)


def quota_exceeded(name: str, until: datetime) -> str:
    """A limit is used up; `name` is the quota's name in the policy."""
    return _QUOTA.format(name=name, time=moment(until))


def provider_refused(provider: str, code: str | None, status: int | None = None) -> str:
    """The provider said no for good.

    Args:
        provider: the provider's name in our catalog.
        code: the provider's error code; shown only when it is one plain word.
        status: the provider's HTTP status, shown when there is no such code.
    """
    if code is not None and _WORD.fullmatch(code):
        return _PROVIDER_REFUSED.format(provider=provider, code=code)
    if status is not None:
        return _PROVIDER_REFUSED.format(provider=provider, code=status)
    return _PROVIDER_REFUSED_WITHOUT_CODE.format(provider=provider)


def voided(reason: str) -> str:
    """Withdrawn before it was sent; `reason` is one of our own words (`tries-exhausted`, `not-after`)."""
    return _VOIDED.format(reason=reason if _WORD.fullmatch(reason) else "no reason given")


def failed() -> str:
    """Closed without an effect though no provider refused it: absence was proven and the tries are used up."""
    return _FAILED


def in_doubt(next_check: datetime | None, *, after_loss: bool = False) -> str:
    """It was sent and nobody knows.

    Args:
        next_check: when recovery looks again; None when only a person can decide.
        after_loss: nobody knows whether it was sent either, because the ledger has lost its tail.
    """
    if after_loss:
        return _POSSIBLY_SENT_FOR_A_PERSON if next_check is None else _POSSIBLY_SENT.format(time=moment(next_check))
    if next_check is None:
        return _IN_DOUBT_FOR_A_PERSON
    return _IN_DOUBT.format(time=moment(next_check))


def contradicted() -> str:
    """Proof of an effect contradicts a closed reservation; a person examines it."""
    return _CONTRADICTED


def object_busy(after_seconds: float) -> str:
    """Another operation on the same object is open; `after_seconds` as in `running`."""
    return _OBJECT_BUSY.format(seconds=_whole_seconds(after_seconds))


def occurrence_open(after_seconds: float) -> str:
    """Another occurrence of the same operation is open; `after_seconds` as in `running`."""
    return _OCCURRENCE_OPEN.format(seconds=_whole_seconds(after_seconds))


def run_blocked(after_seconds: float) -> str:
    """A doubt of the run blocks it; `after_seconds` as in `running`."""
    return _RUN_BLOCKED.format(seconds=_whole_seconds(after_seconds))


def invalid_input(path: str, expected: str) -> str:
    """Refused by us before anything was sent.

    Args:
        path: the JSON path of the offending value (`$.input.amount`).
        expected: what should have stood there, never what did.
    """
    return _INVALID_INPUT.format(path=path, expected=expected)


def run_required() -> str:
    """The tool's effect is counted per run and the call names none."""
    return invalid_input("$.run", "the name of the run, because this tool tells one effect from another by it")


def unknown_tool(tool: str, nearest: Sequence[str]) -> str:
    """There is no such tool.

    Args:
        tool: the name that was asked for; shown only when it is one plain word.
        nearest: tools the caller may call, nearest first; at most five are told.
    """
    return _UNKNOWN_TOOL.format(
        tool=tool if _WORD.fullmatch(tool) else "of that name", nearest=", ".join(nearest[:NEAREST_MAX]) or "none"
    )


def unavailable(after_seconds: float) -> str:
    """The ledger is out of reach and nothing was sent; `after_seconds` as in `running`."""
    return _UNAVAILABLE.format(seconds=_whole_seconds(after_seconds))


def nearest_tools(tool: str, callable_tools: Iterable[str]) -> tuple[str, ...]:
    """The tools whose names are most like the one asked for.

    Args:
        tool: the name that was asked for.
        callable_tools: what the caller's key reaches; nothing else may be told.

    Returns:
        At most five names, nearest first.
    """
    return tuple(difflib.get_close_matches(tool[:200], sorted(set(callable_tools)), n=NEAREST_MAX, cutoff=0.0))


def summarise(
    contract: "ToolContract",
    result: Mapping[str, object] | None,
    amount: int | None,
    currency: str | None,
    reference: str | None,
) -> str:
    """Renders the contract's sentence of a success (`Refund {result.id} of {amount}`).

    Args:
        contract: the contract the reservation pinned.
        result: the projection of the provider's answer. It is foreign: a value is shown only when it is a number, a boolean or
        one
            plain word of at most 64 characters.
        amount: integer minor units.
        currency: three letters.
        reference: the caller's own name of the case; quoted unless it is one plain word.

    Returns:
        The sentence without its full stop; `(not shown)` stands for what may not be shown, `(none)` for what there is not.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name == "amount":
            return "(none)" if amount is None or currency is None else money.format(amount, currency)
        if name == "reference":
            return _own(reference)
        if name.startswith("result."):
            return _foreign(_member(result, name.split(".")[1:]))
        return "(not shown)"

    return _PLACEHOLDER.sub(value, contract.summary)


def moment(at: datetime) -> str:
    """A time as models read it: UTC, whole seconds (`2026-01-31T08:15:00Z`).

    Raises:
        ValueError: if the time does not know its zone.
    """
    if at.tzinfo is None:
        raise ValueError("a time without a zone is not a moment")
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _member(value: object, names: Sequence[str]) -> object:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _foreign(value: object) -> str:
    match value:
        case None:
            return "(none)"
        case bool() | int() | float():
            return json.dumps(value)
        case str() if _WORD.fullmatch(value):
            return value
    return "(not shown)"


def _own(text: str | None) -> str:
    if text is None:
        return "(none)"
    return text if _WORD.fullmatch(text) else json.dumps(text[:200], ensure_ascii=False)
