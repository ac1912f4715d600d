"""What is asked for, what is recorded and what can be set, under the names and rules of agent-ledger 0.2.1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

JsonValue = Union[str, int, float, bool, None, list[Any], dict[str, Any]]
"""What a handler may return."""

IdempotencyStatus = Literal["fresh", "replayed"]
"""Whether this very call recorded the effect."""

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]

Model = TypeVar("Model", bound=BaseModel)


class EffectStatus(str, Enum):
    """Where an effect stands. What this gateway calls executing, reserved and in doubt are all `processing` here."""

    REQUIRES_APPROVAL = "requires_approval"
    READY = "ready"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    DENIED = "denied"


TERMINAL_STATUSES: frozenset[EffectStatus] = frozenset(
    {EffectStatus.SUCCEEDED, EffectStatus.FAILED, EffectStatus.CANCELED, EffectStatus.DENIED}
)
AWAITING_STATUSES: frozenset[EffectStatus] = frozenset({EffectStatus.PROCESSING, EffectStatus.REQUIRES_APPROVAL})
ALLOWED_TRANSITIONS: Mapping[EffectStatus, frozenset[EffectStatus]] = {
    EffectStatus.PROCESSING: frozenset({EffectStatus.SUCCEEDED, EffectStatus.FAILED, EffectStatus.REQUIRES_APPROVAL}),
    EffectStatus.REQUIRES_APPROVAL: frozenset({EffectStatus.READY, EffectStatus.DENIED, EffectStatus.CANCELED}),
    EffectStatus.READY: frozenset({EffectStatus.PROCESSING}),
}
"""Which status may follow which; those that are not named end."""


def is_terminal_status(status: EffectStatus) -> bool:
    """Whether nothing follows a status."""
    return status in TERMINAL_STATUSES


def is_awaiting_status(status: EffectStatus) -> bool:
    """Whether somebody else has to act before the effect goes on."""
    return status in AWAITING_STATUSES


def is_valid_transition(from_status: EffectStatus, to_status: EffectStatus) -> bool:
    """Whether one status may follow another."""
    return to_status in ALLOWED_TRANSITIONS.get(from_status, frozenset())


class _Closed(BaseModel):
    """A value that never changes and has no members but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ResourceDescriptor(_Closed):
    """The thing that a call changes; where it is given, it and not the arguments names the effect.

    Attributes:
        namespace: whose thing it is (`slack`).
        type: what kind of thing (`channel`).
        id: the names that tell it from others of its kind.
    """

    namespace: Text
    type: Text
    id: dict[str, Any] = Field(default_factory=dict)

    @field_validator("id")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("id must not be empty")
        return value


class ToolCall(_Closed):
    """One call of a tool.

    Attributes:
        workflow_id: within which equal calls are one effect; the gateway's run.
        tool: the tool's name.
        args: its arguments, as JSON values.
        call_id: the model's id of the call; recorded, no part of the key.
        resource: names the effect in place of the arguments.
        idempotency_keys: which arguments name the effect; all when left out.
    """

    workflow_id: Text
    tool: Text
    args: dict[str, Any] = Field(default_factory=dict)
    call_id: Union[str, None] = None
    resource: Union[ResourceDescriptor, None] = None
    idempotency_keys: Union[list[str], None] = None

    @field_validator("call_id")
    @classmethod
    def _some_call_id(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("call_id must not be empty if provided")
        return value

    @field_validator("idempotency_keys")
    @classmethod
    def _usable_keys(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        if not value:
            raise ValueError("idempotency_keys must not be empty if provided")
        if not all(value):
            raise ValueError("idempotency_keys must contain non-empty strings")
        if len(set(value)) < len(value):
            raise ValueError("idempotency_keys must not contain duplicates")
        return value

    @model_validator(mode="after")
    def _keys_are_arguments(self) -> ToolCall:
        if self.resource is None and self.idempotency_keys is not None:
            absent = [name for name in self.idempotency_keys if name not in self.args]
            if absent:
                raise ValueError(f"idempotency_keys {absent} not found in args; the key would not tell such calls apart")
        return self


@dataclass(frozen=True)
class EffectError:
    """Why an effect failed.

    Attributes:
        message: for people; the gateway keeps it for 24 hours.
        code: for programs; kept.
    """

    message: str
    code: str | None = None


@dataclass
class Effect:
    """An effect as the ledger knows it.

    Attributes:
        id: of the effect; the gateway's reservation id.
        idem_key: names the effect.
        workflow_id: the workflow that recorded it.
        call_id: the model's id of the call.
        tool: the tool's name.
        status: where it stands.
        args_canonical: the arguments in their canonical form; empty where only the gateway knew them, which erases them.
        resource_id_canonical: the thing it changes, else the tool.
        dedup_count: how often the same was asked for again, as far as is known.
        created_at, updated_at, completed_at: when it was recorded, last changed, ended.
        result: what the handler returned.
        error: why it failed.
        provider_key: to be sent to the provider as its idempotency key. Of agent-ledger's handlers' `idem_key` the same can be
            said; this one stays the same over retries too, and tells environments apart.
        recovering: an earlier run may have had its effect already; the handler repeats it with the same `provider_key`.
        reservation_state: where it stands in the gateway's own words.
    """

    id: str
    idem_key: str
    workflow_id: str
    call_id: str
    tool: str
    status: EffectStatus
    args_canonical: str
    resource_id_canonical: str
    dedup_count: int
    created_at: datetime
    updated_at: datetime
    result: JsonValue = None
    error: EffectError | None = None
    completed_at: datetime | None = None
    provider_key: str | None = None
    recovering: bool = False
    reservation_state: str | None = None


@dataclass(frozen=True)
class CommitSucceeded:
    """The effect happened; `result` is what replays are given."""

    status: Literal["succeeded"] = field(default="succeeded", init=False)
    result: JsonValue = None


@dataclass(frozen=True)
class CommitFailed:
    """The caller knows that the effect did not happen, and why."""

    error: EffectError
    status: Literal["failed"] = field(default="failed", init=False)


CommitOutcome = Union[CommitSucceeded, CommitFailed]
"""What `EffectLedger.commit` is told."""


@dataclass(frozen=True)
class BeginResult:
    """What `EffectLedger.begin` found.

    Attributes:
        effect: as it stands.
        cached: it has ended.
        idempotency_status: `fresh` where this call recorded it and has to carry it out.
        cached_result: its result, where it has one.
    """

    effect: Effect
    cached: bool
    idempotency_status: IdempotencyStatus
    cached_result: JsonValue = None


@dataclass(frozen=True)
class UpsertEffectInput:
    """An effect to be recorded; the attributes are those of `Effect`."""

    idem_key: str
    workflow_id: str
    call_id: str
    tool: str
    status: EffectStatus
    args_canonical: str
    resource_id_canonical: str
    result: JsonValue = None
    error: EffectError | None = None


@dataclass(frozen=True)
class UpsertEffectResult:
    """What became of it: the effect as it stands, and whether this call recorded it."""

    effect: Effect
    created: bool


class ConcurrencyOptions(_Closed):
    """How the end of somebody else's run is waited for; times are in seconds.

    Attributes:
        effect_timeout_s: how long.
        approval_timeout_s: how long for a person; None without end.
        initial_interval_s: the first pause between two looks.
        max_interval_s: the longest pause.
        backoff_multiplier: how much longer each pause is.
        jitter_factor: which part of a pause is left to chance.
    """

    effect_timeout_s: Positive = 30.0
    approval_timeout_s: Union[Positive, None] = None
    initial_interval_s: Positive = 0.05
    max_interval_s: Positive = 1.0
    backoff_multiplier: Positive = 1.5
    jitter_factor: Annotated[float, Field(ge=0, le=1)] = 0.3

    @model_validator(mode="after")
    def _pauses_grow(self) -> ConcurrencyOptions:
        if self.initial_interval_s > self.max_interval_s:
            raise ValueError(f"initial_interval_s ({self.initial_interval_s}) must be <= max_interval_s ({self.max_interval_s})")
        return self


class StaleOptions(_Closed):
    """When a run counts as dead.

    Attributes:
        after_ms: milliseconds a handler may take; 0 leaves it to the profile's `handler_seconds`. Whether another run may then
            take over is said by the profile: a tool has to be declared retry-safe.
    """

    after_ms: Annotated[int, Field(ge=0)] = 0


class RunOptions(_Closed):
    """What one run, or every run, is told."""

    concurrency: Union[ConcurrencyOptions, None] = None
    stale: Union[StaleOptions, None] = None


class LedgerDefaults(_Closed):
    """What holds for every run that does not say otherwise."""

    run: Union[RunOptions, None] = None


class LedgerHooks(_Closed):
    """Functions that a run calls.

    Attributes:
        requires_approval: is given a fresh `ToolCall` and says whether a person must approve it. Nobody can yet, so a call of
            which it says yes is refused and nothing runs.
        on_approval_required: taken for the sake of programs that pass it; it has nothing to be told of yet.
    """

    requires_approval: Union[Callable[[ToolCall], bool], Any, None] = None
    on_approval_required: Union[Callable[[Effect], Any], Any, None] = None

    @field_validator("requires_approval", "on_approval_required")
    @classmethod
    def _callable(cls, value: Any, info: Any) -> Any:
        if value is not None and not callable(value):
            raise ValueError(f"{info.field_name} must be callable")
        return value
