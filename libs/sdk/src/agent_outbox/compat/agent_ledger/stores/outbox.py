"""Effects as the gateway has them, behind the methods of agent-ledger's stores.

A store remembers, of the effects that its own process asked for, what only that process can know: the arguments (the gateway
erases them), the open attempts with their leases, and how often the same was asked for. Losing it loses no effect.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from agent_outbox.async_client import AsyncOutbox
from agent_outbox.classify import Classified
from agent_outbox.client_base import Outcome
from agent_outbox.compat.agent_ledger.errors import (
    EffectConflictError,
    EffectDeniedError,
    EffectLedgerValidationError,
    EffectStoreError,
)
from agent_outbox.compat.agent_ledger.observability import log_event
from agent_outbox.compat.agent_ledger.profile import Profile, default_profile
from agent_outbox.compat.agent_ledger.translation import (
    RESULT_BYTES_MAX,
    Asked,
    attempt_of,
    call_of,
    contract,
    effect_of,
    fresh_effect,
    operation_key,
    status_of,
    step_name,
    stored_result,
    value_of,
)
from agent_outbox.compat.agent_ledger.types import (
    Effect,
    EffectStatus,
    JsonValue,
    UpsertEffectInput,
    UpsertEffectResult,
    is_valid_transition,
)
from agent_outbox.effect import Effect as Attempt
from agent_outbox.errors import InvalidRequestError, NotFoundError, OutboxError
from agent_outbox.results import CallResult, Done, InDoubt, Refused, Reservation, Waiting
from agent_outbox.stored_form import stored_form

REMEMBERED_MAX = 10_000
"""Effects of which a process remembers what it asked for; beyond it the longest unused is forgotten."""

PAUSE_SECONDS_MIN = 0.05

NOT_OURS = frozenset({"attempt-unknown", "not-found", "not-client-executed", "contradiction"})
"""Problems of a settlement after which the effect stands as somebody else left it."""

ABANDON_SECONDS_MAX = 3.0
"""How long a cancelled run tries to say that nobody knows what became of it; its lease says so later."""

_BY_A_PERSON = "Approvals come with reviews, which this gateway does not have yet."


@dataclass(frozen=True)
class Recorded:
    """What asking for an effect came to.

    Attributes:
        effect: as it stands.
        created: this call holds the attempt: it has to carry the effect out and to say what came of it.
        doubt: why nobody knows whether an earlier run had its effect, where only a person can find out; else None.
    """

    effect: Effect
    created: bool
    doubt: str | None = None


@dataclass(frozen=True)
class _Held:
    """An open attempt of this process and the task that keeps its lease."""

    attempt: Attempt
    keeper: asyncio.Task[None]


class OutboxStore:
    """The gateway as a store. Safe to share between the tasks of one event loop."""

    def __init__(self, client: AsyncOutbox | None = None, *, profile: Profile | None = None) -> None:
        """Nothing is asked yet.

        Args:
            client: of the gateway; one by `OUTBOX_URL` and `OUTBOX_KEY` when left out.
            profile: the rules; those of `use_profile` when left out.
        """
        self._client = client
        self.profile = default_profile() if profile is None else profile
        self._asked: OrderedDict[str, Asked] = OrderedDict()
        self._ids: OrderedDict[str, str] = OrderedDict()
        self._met: OrderedDict[str, int] = OrderedDict()
        self._held: dict[str, _Held] = {}

    @property
    def client(self) -> AsyncOutbox:
        """The client by which the gateway is asked.

        Raises:
            SettingsError: none was given, and the environment names no gateway.
        """
        if self._client is None:
            self._client = AsyncOutbox()
        return self._client

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """A block without a transaction: the gateway commits by itself."""
        yield None

    # What a ledger asks.

    async def record(self, wanted: UpsertEffectInput, *, seconds: float | None = None) -> Recorded:
        """Ask for an effect, or find who has its key.

        Args:
            wanted: the effect.
            seconds: how long its handler may take; the profile's when left out.

        Returns:
            What came of it; where it is `created`, its lease is kept from now on until it is settled, at most `seconds`.

        Raises:
            EffectConflictError: the key was used with other arguments, and the profile refuses that.
            EffectDeniedError: a policy refuses it.
            EffectLedgerValidationError: the gateway cannot take it.
            EffectStoreError: the gateway could not be asked, or refused for another reason.
        """
        if self.profile.failures == "final":
            failed = await self._newest(wanted.idem_key)
            if failed is not None and failed.status is EffectStatus.FAILED:
                return Recorded(effect=failed, created=False)
        asked = Asked(wanted=wanted, seconds=self.profile.handler_seconds if seconds is None else seconds)
        guarantee_class: Literal["A", "C"] = "A" if self.profile.is_retry_safe(wanted.tool) else "C"
        try:
            told = await self.client.reserve(
                call_of(wanted, self.profile), contract=contract(self.profile, guarantee_class), time_limit=asked.seconds, wait=0
            )
        except OutboxError as error:
            raise _refused(error, wanted) from error
        if isinstance(told, Attempt):
            return Recorded(effect=self._open(asked, told), created=True)
        if isinstance(told, Refused) and not (told.code == "conflict" and self.profile.key_conflict == "replay"):
            raise _refused(told.error, wanted)
        return Recorded(effect=await self._known(told.reservation_id, wanted), created=False, doubt=_doubt(told))

    async def report(self, effect_id: str, said: Classified) -> bool:
        """Say what the open attempt of an effect came to, where it is no success.

        Args:
            effect_id: of an effect that this process carries out.
            said: what is known of it.

        Returns:
            Whether it was taken; False where the effect has moved on.

        Raises:
            EffectStoreError: the gateway could not be asked.
        """
        attempt = await self._attempt(effect_id)
        if attempt is None:
            return False
        told = await self._settle(
            attempt,
            said.outcome,
            reason=said.reason,
            provider_status=said.provider_status,
            provider_code=said.provider_code,
            stored=said.stored,
        )
        return told is not None and not isinstance(told, Done)

    async def abandon(self, effect_id: str) -> None:
        """Say that nobody knows what became of the open attempt, in the little time that a cancelled run has."""
        held = self._release(effect_id)
        if held is not None:
            try:
                await asyncio.wait_for(self._settle(held.attempt, "unknown", reason="cancelled"), ABANDON_SECONDS_MAX)
            except (EffectStoreError, asyncio.TimeoutError):
                log_event(logging.WARNING, "effect.abandoned", effect_id=effect_id)

    async def withdraw(self, effect_id: str, reason: str) -> None:
        """Give back an effect of this process of which nothing was carried out.

        Raises:
            EffectStoreError: the gateway could not be asked.
        """
        held = self._release(effect_id)
        if held is not None:
            try:
                await self.client.void(held.attempt, reason=reason)
            except OutboxError as error:
                raise _unasked(error, "transition", effect_id=effect_id) from error

    # What agent-ledger's stores offer.

    async def find_by_idem_key(self, idem_key: str, tx: Any = None) -> Effect | None:
        """The newest effect of a key; None where there is none, or none that this scoped key may see.

        Raises:
            EffectStoreError: the gateway could not be asked.
        """
        return await self._newest(idem_key)

    async def find_by_id(self, effect_id: str, tx: Any = None) -> Effect | None:
        """An effect; None where there is none, or none that this scoped key may see.

        Raises:
            EffectStoreError: the gateway could not be asked.
        """
        reservation = await self._reservation(effect_id)
        return None if reservation is None else self._effect(reservation)

    async def upsert(self, input_data: UpsertEffectInput, tx: Any = None) -> UpsertEffectResult:
        """Record an effect, or find the one that has its key.

        Args:
            input_data: the effect; its status is `processing`, or one that it has ended in already.
            tx: not used.

        Raises:
            as `record`.
        """
        if input_data.status not in (EffectStatus.PROCESSING, EffectStatus.SUCCEEDED, EffectStatus.FAILED):
            raise EffectStoreError(_BY_A_PERSON, operation="upsert", idem_key=input_data.idem_key)
        recorded = await self.record(input_data)
        if recorded.created and input_data.status is not EffectStatus.PROCESSING:
            error = input_data.error
            told = None if error is None else {"message": error.message, "code": error.code}
            await self.transition(
                recorded.effect.id, EffectStatus.PROCESSING, input_data.status, result=input_data.result, error=told
            )
            ended = await self.find_by_id(recorded.effect.id)
            return UpsertEffectResult(effect=ended or recorded.effect, created=True)
        return UpsertEffectResult(effect=recorded.effect, created=recorded.created)

    async def transition(
        self,
        effect_id: str,
        from_status: EffectStatus,
        to_status: EffectStatus,
        result: JsonValue = None,
        error: dict[str, str | None] | None = None,
        tx: Any = None,
    ) -> bool:
        """Settle an effect whose attempt is open, or whose last attempt nobody knows the end of.

        Args:
            effect_id: of the effect.
            from_status: where it has to stand: `processing`.
            to_status: `succeeded` or `failed`.
            result: what replays are given; what is no JSON is noted in its place.
            error: `message` and `code` of a failure, which says that nothing happened.
            tx: not used.

        Returns:
            Whether this call settled it so; False where it stands elsewhere, or somebody else settled it.

        Raises:
            EffectStoreError: the gateway could not be asked; or an approval is asked for.
        """
        if not is_valid_transition(from_status, to_status):
            return False
        if from_status is not EffectStatus.PROCESSING:
            # Nothing waits for an approval here, so nothing leaves that state.
            return False
        if to_status is EffectStatus.REQUIRES_APPROVAL:
            raise EffectStoreError(_BY_A_PERSON, operation="transition", effect_id=effect_id)
        attempt = await self._attempt(effect_id)
        if attempt is None:
            return False
        if to_status is EffectStatus.FAILED:
            told = await self._settle(attempt, "rejected", **_failure(error or {}))
            return isinstance(told, Refused) and status_of(told.state) is EffectStatus.FAILED
        asked = self._asked.get(effect_id)
        form = stored_result(stored_form(result, bytes_max=RESULT_BYTES_MAX).value, None if asked is None else asked.wanted)
        told = await self._settle(attempt, "succeeded", result=form)
        # The same attempt may have been settled by somebody else with another result: then theirs is what happened.
        return isinstance(told, Done) and value_of(told.document.get("result")) == form["value"]

    async def increment_dedup_count(self, idem_key: str, tx: Any = None) -> None:
        """Count that an effect was asked for again. What reaches the gateway is counted there; this is for what does not."""
        _remember(self._met, idem_key, self._met.get(idem_key, 0) + 1)

    async def claim_for_processing(
        self, effect_id: str, from_status: EffectStatus, stale_threshold_ms: int | None = None, tx: Any = None
    ) -> bool:
        """Take over an effect that this process knows and whose run is dead: its lease has lapsed and its tool is retry-safe.

        Args:
            effect_id: of the effect.
            from_status: `processing`; nothing is ever `ready` here.
            stale_threshold_ms: how long ago it must have changed last.
            tx: not used.

        Returns:
            Whether this process now has to carry it out.

        Raises:
            EffectStoreError: the gateway could not be asked.
        """
        asked = self._asked.get(effect_id)
        effect = await self.find_by_id(effect_id)
        if asked is None or effect is None or from_status is not EffectStatus.PROCESSING or effect.status is not from_status:
            return False
        age_ms = (datetime.now(tz=timezone.utc) - effect.updated_at).total_seconds() * 1000
        if stale_threshold_ms is not None and age_ms <= stale_threshold_ms:
            return False
        return (await self.record(asked.wanted, seconds=asked.seconds)).created

    async def list_effects(self, tx: Any = None) -> list[Effect]:
        """The effects of the namespace that this scoped key may see, newest first. Asks for page after page: for tools, not for
        programs.

        Raises:
            EffectStoreError: the gateway could not be asked.
        """
        try:
            listed = [one async for one in self.client.find(step=step_name(self.profile.namespace))]
        except OutboxError as error:
            raise _unasked(error, "list_effects") from error
        effects = [self._effect(one) for one in listed]
        # A list leaves out what was recorded while somebody else's transaction was open; what this process recorded it knows.
        absent = set(self._ids.values()) - {effect.id for effect in effects}
        effects += [effect for id in absent if (effect := await self.find_by_id(id)) is not None]
        return sorted(effects, key=lambda effect: effect.created_at, reverse=True)

    async def count(self, tx: Any = None) -> int:
        """How many effects `list_effects` finds."""
        return len(await self.list_effects())

    # How it is done.

    def _open(self, asked: Asked, attempt: Attempt) -> Effect:
        effect_id = attempt.reservation_id
        self._remember_call(effect_id, asked)
        self._release(effect_id)
        keeper = asyncio.get_running_loop().create_task(self._keep(attempt))
        self._held[effect_id] = _Held(attempt=attempt, keeper=keeper)
        now = datetime.now(tz=timezone.utc)
        return fresh_effect(asked.wanted, effect_id, now, attempt.provider_key, attempt.recovering)

    def _remember_call(self, effect_id: str, asked: Asked) -> None:
        _remember(self._asked, effect_id, asked)
        _remember(self._ids, asked.wanted.idem_key, effect_id)

    async def _keep(self, attempt: Attempt) -> None:
        """Renew a lease until it is lost, its effect settled, or its handler's time over."""
        while attempt.lease.over() is None:
            await asyncio.sleep(max(min(attempt.lease.seconds / 3, attempt.lease.left()), PAUSE_SECONDS_MIN))
            if not await self.client.heartbeat(attempt):
                log_event(logging.WARNING, "effect.lease_not_renewed", effect_id=attempt.reservation_id, lost=attempt.lease.lost)

    def _release(self, effect_id: str) -> _Held | None:
        held = self._held.pop(effect_id, None)
        if held is not None:
            held.keeper.cancel()
        return held

    async def _attempt(self, effect_id: str) -> Attempt | None:
        """The attempt by which an effect is settled: this process's open one, else the newest of an effect that has no end."""
        held = self._held.get(effect_id)
        if held is not None:
            return held.attempt
        reservation = await self._reservation(effect_id)
        if reservation is None or reservation.state not in ("executing", "in_doubt") or not reservation.attempts:
            return None
        return attempt_of(effect_id, reservation.tool, str(reservation.attempts[-1].get("id")))

    async def _settle(self, attempt: Attempt, outcome: Outcome, **members: Any) -> CallResult | None:
        """Say what an attempt came to, and what stands then; None where it is none that this agent may settle.

        Raises:
            EffectStoreError: the gateway could not be asked; what was said is kept on disk and delivered later.
        """
        effect_id = attempt.reservation_id
        try:
            told = await self.client.settle(attempt, outcome, **members)
        except OutboxError as error:
            if error.code in NOT_OURS:
                return None
            raise _unasked(error, "transition", effect_id=effect_id) from error
        finally:
            self._release(effect_id)
        if isinstance(told, Waiting) and not told.document:
            raise EffectStoreError(
                "The gateway does not answer. What became of the effect is kept on disk and delivered later.",
                operation="transition",
                effect_id=effect_id,
                details={"kept": True},
            )
        return told

    async def _known(self, reservation_id: str | None, wanted: UpsertEffectInput) -> Effect:
        """The effect of another run that has the key."""
        effect_id = reservation_id or ""
        _remember(self._met, wanted.idem_key, self._met.get(wanted.idem_key, 0) + 1)
        if effect_id not in self._asked:
            self._remember_call(effect_id, Asked(wanted=wanted, seconds=self.profile.handler_seconds))
        effect = await self.find_by_id(effect_id)
        if effect is None:
            raise EffectStoreError(
                "This scoped key may not see who has the key of this effect.", operation="upsert", idem_key=wanted.idem_key
            )
        return effect

    async def _newest(self, idem_key: str) -> Effect | None:
        effect_id = self._ids.get(idem_key)
        if effect_id is not None:
            return await self.find_by_id(effect_id)
        try:
            async for reservation in self.client.find(operation_key=operation_key(self.profile.namespace, idem_key)):
                return self._effect(reservation)
        except OutboxError as error:
            raise _unasked(error, "find_by_idem_key", idem_key=idem_key) from error
        return None

    async def _reservation(self, effect_id: str) -> Reservation | None:
        try:
            return await self.client.get(effect_id)
        except (NotFoundError, InvalidRequestError):
            return None
        except OutboxError as error:
            raise _unasked(error, "find_by_id", effect_id=effect_id) from error

    def _effect(self, reservation: Reservation) -> Effect:
        asked = self._asked.get(reservation.reservation_id)
        times_met = self._met.get(reservation.reference or "", 0)
        return effect_of(reservation, None if asked is None else asked.wanted, times_met)


def _remember(memory: OrderedDict[str, Any], name: str, value: Any) -> None:
    memory[name] = value
    memory.move_to_end(name)
    while len(memory) > REMEMBERED_MAX:
        memory.popitem(last=False)


def _doubt(told: CallResult) -> str | None:
    """Why only a person can say what happened; None where that is not so."""
    if not isinstance(told, InDoubt) or told.retry.action == "wait":
        return None
    return (told.doubt.cause if told.doubt is not None else None) or told.code


def _failure(error: Mapping[str, str | None]) -> dict[str, str]:
    """What a settlement says of a failure."""
    told = {"provider_code": error.get("code"), "provider_message": error.get("message") or "It failed."}
    return {name: text for name, text in told.items() if isinstance(text, str)}


def _unasked(error: OutboxError, operation: str, **known: str) -> EffectStoreError:
    details = {"code": error.code, "possibly_recorded": error.possibly_recorded}
    return EffectStoreError(str(error), operation=operation, details=details, **known)


def _refused(problem: OutboxError, wanted: UpsertEffectInput) -> Exception:
    """The exception of a call that was not recorded."""
    if problem.code == "conflict":
        fields = problem.document.get("fields")
        return EffectConflictError(wanted.idem_key, tuple(map(str, fields)) if isinstance(fields, list) else ())
    if problem.code in ("policy-denied", "review-required", "review-denied", "stopped"):
        return EffectDeniedError(wanted.idem_key, problem.detail)
    if problem.code in ("invalid-input", "malformed-arguments", "too-large", "too-deep", "missing-key-field"):
        return EffectLedgerValidationError(problem.detail, field="args")
    return _unasked(problem, "upsert", idem_key=wanted.idem_key)
