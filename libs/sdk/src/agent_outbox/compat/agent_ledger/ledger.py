"""`EffectLedger`: runs a handler once for each effect, as agent-ledger's does, with the gateway as its ledger.

`run` asks the gateway for the attempt. Whoever gets it runs the handler while the lease is kept, and settles; everybody else
waits for that end, or takes over what a dead run left where its tool is declared retry-safe.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from agent_outbox.classify import Classified, classify
from agent_outbox.compat.agent_ledger.errors import (
    EffectDeniedError,
    EffectFailedError,
    EffectInDoubtError,
    EffectLedgerInvariantError,
    EffectLedgerValidationError,
    EffectTimeoutError,
)
from agent_outbox.compat.agent_ledger.identity import compute_idem_key, generate_id, resource_id_canonical, validate_args
from agent_outbox.compat.agent_ledger.observability import get_tracer, log_event
from agent_outbox.compat.agent_ledger.options import MergedOptions, merge_options
from agent_outbox.compat.agent_ledger.stores.base import EffectStore
from agent_outbox.compat.agent_ledger.stores.outbox import OutboxStore, Recorded
from agent_outbox.compat.agent_ledger.translation import RESULT_BYTES_MAX
from agent_outbox.compat.agent_ledger.types import (
    BeginResult,
    CommitOutcome,
    CommitSucceeded,
    ConcurrencyOptions,
    Effect,
    EffectStatus,
    LedgerDefaults,
    LedgerHooks,
    RunOptions,
    ToolCall,
    UpsertEffectInput,
    is_terminal_status,
)
from agent_outbox.stored_form import stored_form

TxT = TypeVar("TxT")

Handler = Callable[[Effect], Any]
"""Carries an effect out and returns what replays are given; a coroutine function or a plain one."""

PAUSE_SECONDS_MIN = 0.001

_UNTIL_REVIEWS = "It needs an approval, and approvals come with reviews, which this gateway does not have yet. Nothing ran."


class EffectLedgerOptions(BaseModel, Generic[TxT]):
    """What a ledger is made with.

    Attributes:
        store: one of this module's; agent-ledger's own `MemoryStore` and `PostgresStore` are taken too and hold nothing.
        defaults: what holds for every run that does not say otherwise.
        max_args_size_bytes: how many bytes the canonical arguments may have; 1 MiB when left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    store: Annotated[EffectStore[TxT], SkipValidation()]
    defaults: Union[LedgerDefaults, None] = None
    max_args_size_bytes: Union[Annotated[int, Field(gt=0)], None] = None


class EffectLedger(Generic[TxT]):
    """Effects that happen once. Wherever a `tx` is taken it is not used: the gateway commits by itself."""

    def __init__(self, options: EffectLedgerOptions[TxT]) -> None:
        """Nothing is asked yet.

        Args:
            options: with the store.

        Raises:
            EffectLedgerValidationError: the store keeps effects of its own, which would be done again.
        """
        self._store = _gateway_store(options.store)
        self._run_defaults = options.defaults.run if options.defaults else None
        self._args_bytes_max = options.max_args_size_bytes

    async def begin(self, call: ToolCall, tx: TxT | None = None) -> BeginResult:
        """Ask for the effect of a call.

        Args:
            call: what is wanted.
            tx: not used.

        Returns:
            `fresh` where the caller now has to carry it out and to `commit`; its lease is kept for as long as a handler may take.
            `replayed` where somebody else did or does; `cached` says whether that has ended.

        Raises:
            EffectConflictError: its key was used with other arguments.
            EffectDeniedError: a policy refuses it.
            EffectLedgerValidationError: the arguments cannot be used.
            EffectStoreError: the gateway could not be asked.
        """
        recorded = await self._begin(call, merge_options(self._run_defaults, None))
        effect = recorded.effect
        if recorded.created:
            return BeginResult(effect=effect, cached=False, idempotency_status="fresh")
        return BeginResult(
            effect=effect, cached=is_terminal_status(effect.status), idempotency_status="replayed", cached_result=effect.result
        )

    async def commit(self, effect_id: str, outcome: CommitOutcome, tx: TxT | None = None) -> bool:
        """Say what became of an effect that was begun.

        Args:
            effect_id: of the effect.
            outcome: `CommitSucceeded`, or `CommitFailed` where the caller knows that nothing happened.
            tx: not used.

        Returns:
            Whether it was taken; False where the effect has ended already.

        Raises:
            EffectStoreError: the gateway could not be asked.
        """
        with get_tracer().start_as_current_span("agent_ledger.commit", attributes={"effect_id": effect_id}):
            if isinstance(outcome, CommitSucceeded):
                return await self._store.transition(
                    effect_id, EffectStatus.PROCESSING, EffectStatus.SUCCEEDED, result=outcome.result, tx=tx
                )
            told = {"code": outcome.error.code, "message": outcome.error.message}
            return await self._store.transition(effect_id, EffectStatus.PROCESSING, EffectStatus.FAILED, error=told, tx=tx)

    async def run(
        self,
        call: ToolCall,
        handler: Handler,
        tx: TxT | None = None,
        run_options: RunOptions | None = None,
        hooks: LedgerHooks | None = None,
    ) -> Any:
        """Carry out the effect of a call, unless that was done or is being done.

        Args:
            call: what is wanted.
            handler: carries it out; `effect.provider_key` is for its provider.
            tx: not used.
            run_options: go before the ledger's defaults, field by field.
            hooks: `requires_approval` is asked of a fresh effect.

        Returns:
            What the handler returned, in the form in which it is stored, now or when it was done.

        Raises:
            EffectFailedError: the run that was waited for failed, or an earlier one did and the profile calls that final.
            EffectDeniedError: it may not happen, or needs an approval. Nothing ran.
            EffectTimeoutError: somebody else's run has no end yet. `EffectInDoubtError`, a kind of it: only a person can say.
            EffectConflictError, EffectLedgerValidationError, EffectStoreError: as `begin`.
            Exception: what the handler raised.
        """
        merged = merge_options(self._run_defaults, run_options)
        attributes = {"tool": call.tool, "workflow_id": call.workflow_id}
        with get_tracer().start_as_current_span("agent_ledger.run", attributes=attributes) as span:
            recorded = await self._begin(call, merged)
            span.set_attribute("effect_id", recorded.effect.id)
            if not recorded.created:
                return await self._join(recorded, call, handler, merged)
            await self._ask_policy(call, recorded.effect, hooks)
            return await self._carry_out(recorded.effect, handler)

    async def get_effect(self, effect_id: str, tx: TxT | None = None) -> Effect | None:
        """An effect by its id; None where there is none."""
        return await self._store.find_by_id(effect_id, tx)

    async def find_by_idem_key(self, idem_key: str, tx: TxT | None = None) -> Effect | None:
        """The newest effect of a key; None where there is none."""
        return await self._store.find_by_idem_key(idem_key, tx)

    def idem_key(self, call: ToolCall) -> str:
        """The key under which a call's effect happens once."""
        return compute_idem_key(call)

    async def request_approval(self, idem_key: str, tx: TxT | None = None) -> bool:
        """Nobody can be asked for an approval yet.

        Returns:
            False: there is no such effect, or it has ended.

        Raises:
            EffectStoreError: there is, and it cannot be held for a person.
        """
        effect = await self._store.find_by_idem_key(idem_key, tx)
        if effect is None:
            return False
        return await self._store.transition(effect.id, EffectStatus.PROCESSING, EffectStatus.REQUIRES_APPROVAL, tx=tx)

    async def approve(self, idem_key: str, tx: TxT | None = None) -> bool:
        """Approve an effect that waits for it.

        Returns:
            False: none waits.
        """
        effect = await self._store.find_by_idem_key(idem_key, tx)
        return effect is not None and await self._store.transition(
            effect.id, EffectStatus.REQUIRES_APPROVAL, EffectStatus.READY, tx=tx
        )

    async def deny(self, idem_key: str, reason: str | None = None, tx: TxT | None = None) -> bool:
        """Refuse an effect that waits for an approval.

        Returns:
            False: none waits.
        """
        effect = await self._store.find_by_idem_key(idem_key, tx)
        told: dict[str, str | None] | None = {"message": reason} if reason else None
        return effect is not None and await self._store.transition(
            effect.id, EffectStatus.REQUIRES_APPROVAL, EffectStatus.DENIED, error=told, tx=tx
        )

    async def _begin(self, call: ToolCall, merged: MergedOptions) -> Recorded:
        wanted = UpsertEffectInput(
            idem_key=compute_idem_key(call),
            workflow_id=call.workflow_id,
            call_id=call.call_id or generate_id(),
            tool=call.tool,
            status=EffectStatus.PROCESSING,
            args_canonical=validate_args(call.args, self._args_bytes_max),
            resource_id_canonical=resource_id_canonical(call.resource) if call.resource else call.tool,
        )
        recorded = await self._store.record(wanted, seconds=_handler_seconds(merged))
        event = "effect.created" if recorded.created else "effect.replayed"
        log_event(logging.INFO, event, effect_id=recorded.effect.id, status=recorded.effect.status.value)
        return recorded

    async def _ask_policy(self, call: ToolCall, effect: Effect, hooks: LedgerHooks | None) -> None:
        if hooks is None or hooks.requires_approval is None:
            return
        try:
            required = bool(hooks.requires_approval(call))
        except BaseException:
            await self._store.withdraw(effect.id, "policy hook failed")
            raise
        if required:
            await self._store.withdraw(effect.id, "approval required")
            raise EffectDeniedError(effect.idem_key, _UNTIL_REVIEWS)

    async def _carry_out(self, effect: Effect, handler: Handler) -> Any:
        """Run the handler and settle.

        Returns:
            What the ledger holds then: this run's result, or that of whoever settled before.
        """
        try:
            result = handler(effect)
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:
            log_event(logging.ERROR, "effect.handler_error", effect_id=effect.id, error=type(error).__name__)
            if not await self._report(effect, error):
                ended = await self._store.find_by_idem_key(effect.idem_key)
                if ended is not None and ended.status is EffectStatus.SUCCEEDED:
                    return ended.result
            raise
        except BaseException:
            await asyncio.shield(self._store.abandon(effect.id))
            raise
        form = stored_form(result, bytes_max=RESULT_BYTES_MAX).value
        if await self._store.transition(effect.id, EffectStatus.PROCESSING, EffectStatus.SUCCEEDED, result=form):
            return form
        ended = await self._store.find_by_idem_key(effect.idem_key)
        if ended is None:
            raise EffectLedgerInvariantError(f"Effect {effect.idem_key} disappeared while it was carried out")
        return _end_of(ended)

    async def _report(self, effect: Effect, error: Exception) -> bool:
        """Say what an exception of the handler means; False where the effect has moved on."""
        if self._store.profile.exceptions == "failed":
            code = getattr(error, "code", None)
            told = {"code": code if isinstance(code, str) else None, "message": str(error) or type(error).__name__}
            return await self._store.transition(effect.id, EffectStatus.PROCESSING, EffectStatus.FAILED, error=told)
        said: Classified = classify(error)
        return await self._store.report(effect.id, said)

    async def _join(self, recorded: Recorded, call: ToolCall, handler: Handler, merged: MergedOptions) -> Any:
        """Wait for the end of somebody else's run, or take it over."""
        if is_terminal_status(recorded.effect.status):
            return _end_of(recorded.effect)
        if recorded.doubt is not None:
            raise EffectInDoubtError(recorded.effect.idem_key, recorded.effect.id, recorded.doubt)
        loop, concurrency = asyncio.get_running_loop(), merged.concurrency
        idem_key, timeout_s = recorded.effect.idem_key, concurrency.effect_timeout_s
        deadline, pause = loop.time() + timeout_s, concurrency.initial_interval_s
        while True:
            effect = await self._store.find_by_idem_key(idem_key)
            if effect is None:
                raise EffectLedgerInvariantError(f"Effect {idem_key} disappeared while its end was waited for")
            if is_terminal_status(effect.status):
                return _end_of(effect)
            if effect.reservation_state in ("in_doubt", "reserved"):
                # Its run is dead, or never began: whoever asks now may be given the attempt.
                recorded = await self._begin(call, merged)
                if recorded.created:
                    return await self._carry_out(recorded.effect, handler)
                if is_terminal_status(recorded.effect.status):
                    return _end_of(recorded.effect)
                if recorded.doubt is not None:
                    raise EffectInDoubtError(idem_key, recorded.effect.id, recorded.doubt)
            if loop.time() >= deadline:
                log_event(logging.WARNING, "effect.wait_timeout", idem_key=idem_key, timeout_s=timeout_s)
                raise EffectTimeoutError(idem_key, timeout_s)
            await asyncio.sleep(pause)
            pause = _next_pause(pause, concurrency)


def _end_of(effect: Effect) -> Any:
    """The result of an effect that has ended.

    Raises:
        EffectFailedError, EffectDeniedError: it ended so.
    """
    if effect.status is EffectStatus.SUCCEEDED:
        return effect.result
    said = effect.error
    if effect.status is EffectStatus.FAILED:
        raise EffectFailedError(effect.idem_key, {"code": said.code if said else None, "message": said.message if said else None})
    if effect.status in (EffectStatus.DENIED, EffectStatus.CANCELED):
        raise EffectDeniedError(effect.idem_key, said.message if said else None)
    raise EffectLedgerInvariantError(f"Effect {effect.idem_key} has not ended: {effect.status.value}")


def _handler_seconds(merged: MergedOptions) -> float | None:
    """How long the handler may take, where the options of the run say it."""
    return merged.stale.after_ms / 1000 if merged.stale.after_ms else None


def _next_pause(pause: float, concurrency: ConcurrencyOptions) -> float:
    longer = min(pause * concurrency.backoff_multiplier, concurrency.max_interval_s)
    chance = random.SystemRandom().uniform(-1, 1)
    return max(PAUSE_SECONDS_MIN, longer * (1 + concurrency.jitter_factor * chance))


def _gateway_store(store: object) -> OutboxStore:
    """The store by which the gateway is asked.

    Raises:
        EffectLedgerValidationError: somebody's own store: what it holds would be done again here.
    """
    if isinstance(store, OutboxStore):
        return store
    kind = type(store)
    if kind.__module__.partition(".")[0] == "agent_ledger" and kind.__name__ in ("MemoryStore", "PostgresStore"):
        log_event(logging.WARNING, "store.not_used", store=kind.__name__, instead="the gateway")
        return OutboxStore()
    raise EffectLedgerValidationError(
        f"store: expected a store of agent_outbox.compat.agent_ledger, got {kind.__module__}.{kind.__qualname__}; "
        "effects are the gateway's, and what another store holds would be done again",
        field="store",
    )
