"""agent-ledger's words in the gateway's, and back.

| there | here |
|---|---|
| idempotency key | `reference`, and with the namespace the operation key |
| workflow | run |
| tool `stripe.charge` | tool `agent_ledger.stripe.charge`: one pattern reaches all, none is a tool of the gateway |
| result | member `value` of the stored result, beside what agent-ledger would have kept of the call |
| processing | executing, reserved and in doubt |
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from agent_outbox import stored_form
from agent_outbox.compat.agent_ledger.errors import EffectLedgerValidationError
from agent_outbox.compat.agent_ledger.profile import Profile
from agent_outbox.compat.agent_ledger.types import Effect, EffectError, EffectStatus, JsonValue, UpsertEffectInput
from agent_outbox.effect import Effect as Attempt
from agent_outbox.effect import Lease
from agent_outbox.results import Reservation
from agent_outbox.tool_call import ToolCall as GatewayCall

PROVIDER = "agent_ledger"
NAME_CHARACTERS_MAX = 200
TOOL_CHARACTERS_MAX = 100

RESULT_BYTES_MAX = stored_form.RESULT_BYTES_MAX - (4 << 10)
"""How large the stored form of a handler's result may be, beside what is kept of the call."""

_STATUSES: Mapping[str, EffectStatus] = {
    "awaiting_review": EffectStatus.REQUIRES_APPROVAL,
    "reserved": EffectStatus.PROCESSING,
    "executing": EffectStatus.PROCESSING,
    "in_doubt": EffectStatus.PROCESSING,
    "succeeded": EffectStatus.SUCCEEDED,
    "failed": EffectStatus.FAILED,
    "denied": EffectStatus.DENIED,
    "voided": EffectStatus.CANCELED,
}

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NOT_IN_TOOLS = re.compile(r"[^a-z0-9_-]+")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Asked:
    """An effect as somebody of this process asked for it.

    Attributes:
        wanted: what was asked for.
        seconds: how long its handler may take.
    """

    wanted: UpsertEffectInput
    seconds: float


def tool_name(tool: str) -> str:
    """The gateway's name of a tool. Two tools may share one: the idempotency key tells their effects apart."""
    words = [_NOT_IN_TOOLS.sub("_", part.lower()).strip("_") for part in tool.split(".")]
    names = [word if word[0].isalpha() else f"t{word}" for word in words if word]
    return ".".join([PROVIDER, *(names or ["tool"])])[:TOOL_CHARACTERS_MAX].rstrip(".")


def run_name(workflow_id: str) -> str:
    """The run of a workflow: its id where that can be a name, else its digest."""
    return _name(workflow_id) or f"workflow-{hashlib.sha256(workflow_id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def step_name(namespace: str) -> str:
    """What the effects of a namespace are listed by."""
    return f"agent-ledger:{_checked_namespace(namespace)}"


def operation_key(namespace: str, idem_key: str) -> str:
    """The operation key of an effect, as the gateway makes it of the contract below."""
    value = idem_key.replace("%", "%25").replace(":", "%3A")
    return f"agent-ledger:{_checked_namespace(namespace)}:{value}"


def contract(profile: Profile, guarantee_class: Literal["A", "C"]) -> dict[str, Any]:
    """The inline contract of a tool: class A may be carried out again after a run that died, class C is left to a person."""
    return {
        "key": f"agent-ledger:{_checked_namespace(profile.namespace)}:{{reference}}",
        "scope": "environment",
        "class": guarantee_class,
        "owner": profile.owner,
    }


def call_of(wanted: UpsertEffectInput, profile: Profile) -> GatewayCall:
    """The tool call that asks for an effect.

    Args:
        wanted: the effect.
        profile: the ledger's rules.

    Raises:
        EffectLedgerValidationError: the key cannot be a name at the gateway.
    """
    if _name(wanted.idem_key) is None:
        raise EffectLedgerValidationError(f"idem_key: expected 1 to {NAME_CHARACTERS_MAX} plain characters", field="idem_key")
    args = json.loads(wanted.args_canonical)
    return GatewayCall(
        tool=tool_name(wanted.tool),
        input=args if isinstance(args, dict) else {"args": args},
        reference=wanted.idem_key,
        occurrence=None,
        connection=None,
        run=run_name(wanted.workflow_id),
        checkpoint=None,
        step=step_name(profile.namespace),
        call_id=_name(wanted.call_id),
        model=None,
        context=None,
    )


def attempt_of(reservation_id: str, tool: str, attempt_id: str) -> Attempt:
    """An attempt that is known by its id alone, to be settled; its lease is nothing that this process has."""
    return Attempt(
        tool=tool,
        input={},
        reservation_id=reservation_id,
        operation_key=None,
        attempt_id=attempt_id,
        number=0,
        provider_key="",
        marker="",
        recovering=False,
        time_limit=None,
        deadline=None,
        lease=Lease(asked_at=0.0, seconds=0.0),
    )


def stored_result(value: JsonValue, wanted: UpsertEffectInput | None, **more: str) -> dict[str, Any]:
    """The result that is settled: what the handler returned, and what agent-ledger would have kept of the call.

    Args:
        value: what the handler returned, in its stored form.
        wanted: the call; None where this process does not know it.
        more: further things worth keeping, by name.
    """
    kept = {} if wanted is None else {"tool": wanted.tool, "workflow_id": wanted.workflow_id, "call_id": wanted.call_id}
    if wanted is not None:
        kept["resource"] = wanted.resource_id_canonical
    return {"value": value, "effect": {**kept, **more}}


def value_of(result: JsonValue) -> JsonValue:
    """What the handler returned, of a settled result. A result of another form is what a registered contract made of it."""
    if isinstance(result, dict) and "value" in result and "effect" in result:
        result = result["value"]
    return result


def status_of(state: str | None) -> EffectStatus:
    """The status that a state of a reservation is; what is unknown here may still come to an end."""
    return _STATUSES.get(state or "", EffectStatus.PROCESSING)


def fresh_effect(wanted: UpsertEffectInput, effect_id: str, now: datetime, provider_key: str | None, recovering: bool) -> Effect:
    """An effect that this process has to carry out."""
    return Effect(
        id=effect_id,
        idem_key=wanted.idem_key,
        workflow_id=wanted.workflow_id,
        call_id=wanted.call_id,
        tool=wanted.tool,
        status=EffectStatus.PROCESSING,
        args_canonical=wanted.args_canonical,
        resource_id_canonical=wanted.resource_id_canonical,
        dedup_count=0,
        created_at=now,
        updated_at=now,
        provider_key=provider_key,
        recovering=recovering,
        reservation_state="executing",
    )


def effect_of(reservation: Reservation, wanted: UpsertEffectInput | None, times_met: int) -> Effect:
    """An effect as the gateway knows it.

    Args:
        reservation: with its requesters, where they were asked for.
        wanted: the call, where this process made one for it; else its arguments are gone.
        times_met: how often this process asked for it again.
    """
    kept = _kept(reservation)
    status = status_of(reservation.state)
    ended = status in (EffectStatus.SUCCEEDED, EffectStatus.FAILED, EffectStatus.CANCELED, EffectStatus.DENIED)
    run = reservation.run.name if reservation.run is not None else None
    tool = wanted.tool if wanted is not None else kept.get("tool") or reservation.tool.removeprefix(f"{PROVIDER}.")
    return Effect(
        id=reservation.reservation_id,
        idem_key=reservation.reference or "",
        workflow_id=wanted.workflow_id if wanted is not None else kept.get("workflow_id") or run or "",
        call_id=kept.get("call_id") or reservation.call_id or (wanted.call_id if wanted is not None else ""),
        tool=tool,
        status=status,
        args_canonical=wanted.args_canonical if wanted is not None else "",
        resource_id_canonical=wanted.resource_id_canonical if wanted is not None else kept.get("resource") or tool,
        dedup_count=max(times_met, len(reservation.requesters) - 1, 0),
        created_at=_moment(kept.get("created_at")) or reservation.created_at,
        updated_at=reservation.changed_at,
        result=value_of(_result(reservation)) if status is EffectStatus.SUCCEEDED else None,
        error=_error(reservation, status),
        completed_at=(_moment(kept.get("completed_at")) or reservation.settled_at or reservation.changed_at) if ended else None,
        reservation_state=reservation.state,
    )


def _result(reservation: Reservation) -> JsonValue:
    return reservation.document.get("result")


def _kept(reservation: Reservation) -> Mapping[str, str]:
    result = _result(reservation)
    kept = result.get("effect") if isinstance(result, Mapping) else None
    return {name: text for name, text in kept.items() if isinstance(text, str)} if isinstance(kept, Mapping) else {}


def _error(reservation: Reservation, status: EffectStatus) -> EffectError | None:
    if status not in (EffectStatus.FAILED, EffectStatus.CANCELED, EffectStatus.DENIED):
        return None
    failure = reservation.failure
    said = failure.provider_message if failure is not None else None
    code = failure.provider_code if failure is not None else None
    return EffectError(message=said or reservation.message, code=code)


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None


def _name(text: str) -> str | None:
    """A text where it can be a name at the gateway; else None."""
    name = text if text.isascii() else unicodedata.normalize("NFC", text)
    try:
        name.encode()
    except UnicodeEncodeError:
        return None
    usable = 1 <= len(name) <= NAME_CHARACTERS_MAX and _CONTROL.search(name) is None and name == name.strip()
    return name if usable else None


def _checked_namespace(namespace: str) -> str:
    if _NAMESPACE.fullmatch(namespace) is None:
        raise EffectLedgerValidationError("namespace: expected 1 to 64 letters, digits and _.-", field="namespace")
    return namespace
