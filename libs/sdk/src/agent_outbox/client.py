"""The clients: `Outbox` for threads, `AsyncOutbox` for asyncio. Both ask the same questions and understand the same answers.

```python
outbox = Outbox(url="https://outbox.example.com", key="obx_...", run="thread-77")
result = outbox.call(tool="stripe.refund.create", input={"payment_intent": "pi_3Nx", "amount": 1200}, reference="case-8841")
if result:
    print(result.receipt.external_reference)
messages.append({"role": "tool", "tool_call_id": call.id, "content": result.as_tool_message()})
```
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Union
from uuid import uuid4

from agent_outbox import strict_json
from agent_outbox.carry import (
    Want,
    carrying,
    heartbeating,
    reserving_alone,
    voiding,
)
from agent_outbox.conversation import (
    Call,
    Conversation,
    Headers,
    Heard,
    calling,
    looking,
    receipt_path,
    reservation_path,
    resolving,
)
from agent_outbox.decorated import AsyncEffectFunction, EffectFunction
from agent_outbox.delivery import telling
from agent_outbox.effect import (
    AsyncHandler,
    AsyncProbe,
    Classify,
    Effect,
    Handler,
    Probe,
    ReceiptOf,
    Success,
    checked_handler,
    lease_clock,
)
from agent_outbox.errors import SettingsError, unexpected
from agent_outbox.perform import AsyncPerformer, Deliverer, SyncPerformer, late_teller
from agent_outbox.receipt import Money, Receipt, read_receipt
from agent_outbox.results import (
    CallResult,
    InDoubt,
    Refused,
    Reservation,
    Resolution,
    read_answer_to_call,
    read_reservation,
    read_resolution,
)
from agent_outbox.settings import (
    UNSET,
    Settings,
    Unset,
    checked_key,
    checked_request_key,
    checked_url,
    seconds_of,
)
from agent_outbox.settlement import settle_body
from agent_outbox.spool import folder_of, spool_at
from agent_outbox.tool_call import ToolCall
from agent_outbox.traces import trace_headers
from agent_outbox.transport import AsyncTransport, SyncTransport

T = TypeVar("T")
P = ParamSpec("P")

Outcome = Literal["succeeded", "rejected", "deferred", "unsent", "unknown"]
"""What an attempt can come to."""

ITEMS_A_PAGE = 200

ResolveResult = Union[Resolution, Refused, InDoubt]
"""What `Outbox.resolve` returns."""

_FROM_SETTINGS = ("reference", "connection", "run", "checkpoint", "model", "context")
"""Members of a tool call that the settings of a client can state."""


class _Client:
    """What both clients share: their settings, and the conversations they hold."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = checked_url(settings.url)
        key = checked_key(settings.key)
        self._authorization = () if key is None else (("Authorization", f"Bearer {key}"),)
        self._spool = spool_at(folder_of(settings.spool, url=self._url, key=key))
        self._deliverer = Deliverer(self._url, self._authorization, self._spool)
        self._deliverer.kick()

    @property
    def settings(self) -> Settings:
        """What holds for every call unless the call says otherwise."""
        return self._settings

    def __repr__(self) -> str:
        """The client's settings, without its key."""
        return f"{type(self).__name__}({self._settings!r})"

    def _headers(self) -> Headers:
        return (*self._authorization, *trace_headers().items())

    def _body(self, call: ToolCall | None, fields: dict[str, Any]) -> tuple[str, bytes]:
        """The tool and the body of a call: settings, then the call's fields, then the arguments; None leaves a member out."""
        stated = {name: value for name, value in fields.items() if value is not UNSET}
        if call is not None:
            if "tool" in stated or "input" in stated:
                raise TypeError("give either a ToolCall or tool= and input=")
            stated = {**call.stated(), **stated}
        if "tool" not in stated or "input" not in stated:
            raise TypeError("give a ToolCall, or tool= and input=")
        stated = {**{name: getattr(self._settings, name) for name in _FROM_SETTINGS}, **stated}
        document = {name: value for name, value in stated.items() if value is not None}
        return str(document.get("tool")), strict_json.write(document)

    def _calling(
        self,
        call: ToolCall | None,
        fields: dict[str, Any],
        *,
        wait: float | Unset | None,
        deadline: float | Unset | None,
        request_key: str | Unset | None,
    ) -> Conversation[CallResult]:
        settings = self._settings.changed(wait=wait, deadline=deadline)
        tool, body = self._body(call, fields)
        if isinstance(request_key, Unset):
            request_key = str(uuid4()) if settings.request_keys else None
        headers = (*self._headers(), ("Content-Type", "application/json"))
        if request_key is not None:
            headers = (*headers, ("Idempotency-Key", checked_request_key(request_key)))
        ready = Call(tool=tool, body=body, headers=headers, wait=settings.wait, deadline=settings.deadline_seconds)
        return calling(ready, time.monotonic)

    def _wanting(
        self,
        call: ToolCall,
        handler: Handler | AsyncHandler | None,
        *,
        handled: bool = True,
        async_allowed: bool,
        time_limit: float | Unset | None,
        probe: Probe | AsyncProbe | None,
        contract: Mapping[str, Any] | None,
        key: str | None,
        scope: str | None,
        guarantee_class: str | None,
        receipt: str | ReceiptOf | None,
        recovery: Sequence[Mapping[str, Any]] | None,
        owner: str | Unset | None,
        classify: Classify | Unset | None,
        wait: float | Unset | None,
        deadline: float | Unset | None,
        attempt_id: str | None = None,
    ) -> Want:
        """A client-executed effect, checked before anything is reserved."""
        if handled:
            checked_handler(handler, "handler", async_allowed=async_allowed)
        if probe is not None:
            checked_handler(probe, "probe", async_allowed=async_allowed)
        settings = self._settings.changed(wait=wait, deadline=deadline, time_limit=time_limit, owner=owner, classify=classify)
        tool, body = self._body(call, {})
        document = json.loads(body)
        said = {"key": key, "scope": scope, "class": guarantee_class, "recovery": recovery}
        inline = {**(contract or {}), **{name: value for name, value in said.items() if value is not None}}
        if inline:
            if settings.owner is not None:
                inline.setdefault("owner", settings.owner)
            if isinstance(receipt, str):
                inline["receipt"] = receipt
            document["contract"] = inline
        elif isinstance(receipt, str):
            raise SettingsError("receipt: expected a function, or a contract beside it (key=...): a text is a part of one.")
        if settings.time_limit is not None:
            document["time_limit_seconds"] = settings.time_limit
        if probe is not None:
            document["probe"] = True
        strict_json.write(document)
        return Want(
            tool=tool,
            document=document,
            headers=self._headers(),
            handler=handler,
            probe=probe,
            time_limit=settings.time_limit,
            receipt=None if isinstance(receipt, str) else receipt,
            classify=settings.classify,
            wait=settings.wait,
            deadline=settings.deadline_seconds,
            attempt_id=attempt_id,
        )

    def _resolving(
        self, call: ToolCall | None, fields: dict[str, Any], *, deadline: float | Unset | None
    ) -> Conversation[ResolveResult]:
        settings = self._settings.changed(deadline=deadline)
        tool, body = self._body(call, fields)
        headers = (*self._headers(), ("Content-Type", "application/json"))
        return _resolved(tool, resolving(body, headers, settings.deadline_seconds, time.monotonic))

    def _looking(
        self, path: str, query: Mapping[str, str], *, wait: float = 0.0, deadline: float | Unset | None
    ) -> Conversation[dict[str, Any]]:
        settings = self._settings.changed(deadline=deadline)
        if isinstance(settings.deadline, Unset):
            settings = settings.changed(wait=wait)
        return looking(
            path,
            tuple(query.items()),
            self._headers(),
            wait=wait,
            deadline=settings.deadline_seconds,
            clock=time.monotonic,
        )

    def _getting(self, reservation_id: str, wait: float, deadline: float | Unset | None) -> Conversation[dict[str, Any]]:
        wait_seconds = seconds_of("wait", wait, least=0.0) or 0.0
        return self._looking(reservation_path(reservation_id), {}, wait=wait_seconds, deadline=deadline)


class Outbox(_Client):
    """A gateway of Agent Outbox, as a caller in threads sees it. Safe to share between threads, and after a fork."""

    def __init__(
        self,
        *,
        url: str | Unset | None = UNSET,
        key: str | Unset | None = UNSET,
        run: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        reference: str | Unset | None = UNSET,
        model: str | Unset | None = UNSET,
        context: Mapping[str, Any] | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
        request_keys: bool | Unset = UNSET,
        time_limit: float | Unset | None = UNSET,
        owner: str | Unset | None = UNSET,
        classify: Classify | Unset | None = UNSET,
        spool: str | os.PathLike[str] | Unset | None = UNSET,
    ) -> None:
        """Nothing is asked yet; what an earlier process could not deliver of its effects is delivered in the background.

        Args:
            url: of the gateway; `OUTBOX_URL` when left out.
            key: the scoped key; `OUTBOX_KEY` when left out, none when None.
            run: the caller's name of the agent's execution, for every call that does not say otherwise. So are the next five.
            checkpoint: the save point of the run.
            connection: the name of the provider account.
            reference: the caller's own name of the business case, for a client that works on one case.
            model: which model asks.
            context: shown to reviewers, never sent to a provider.
            wait: how many seconds a call waits for its end (25); 0 does not wait, None leaves it to the gateway.
            deadline: within how many seconds a call answers or raises, retries included (35 more than `wait`); None without end.
            request_keys: send each call with an `Idempotency-Key` of its own (no). Its operation key makes a call safe to repeat
                already; a request key adds that a lost answer comes back as the same bytes.
            time_limit: how many seconds a handler of `run` may take; None: as long as its lease is renewed, which class A alone
                allows.
            owner: who answers for tools whose contract comes with the call.
            classify: what an exception of a handler says; None from it, or None here, leaves it to `agent_outbox.classify`.
            spool: the folder where what became of effects is kept until the gateway has it (`OUTBOX_SPOOL`, else in the user's
                folder for state); None keeps it in memory alone.

        Raises:
            SettingsError: a value cannot be used, or no address is known.
        """
        super().__init__(
            Settings.from_environment(os.environ).changed(
                url=url,
                key=key,
                run=run,
                checkpoint=checkpoint,
                connection=connection,
                reference=reference,
                model=model,
                context=context,
                wait=wait,
                deadline=deadline,
                request_keys=request_keys,
                time_limit=time_limit,
                owner=owner,
                classify=classify,
                spool=spool,
            )
        )
        self._transport = SyncTransport(self._url)
        self._perform = SyncPerformer(self._transport, self._authorization)

    def using(
        self,
        *,
        run: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        reference: str | Unset | None = UNSET,
        model: str | Unset | None = UNSET,
        context: Mapping[str, Any] | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
        request_keys: bool | Unset = UNSET,
        time_limit: float | Unset | None = UNSET,
        owner: str | Unset | None = UNSET,
        classify: Classify | Unset | None = UNSET,
    ) -> Outbox:
        """The same gateway and connections with other settings.

        Args:
            run, checkpoint, connection, reference, model, context, wait, deadline, request_keys, time_limit, owner, classify: as
                for the client; what is left out stays as it is, None is a value.

        Returns:
            Another client. Closing either closes the connections of both.

        Raises:
            SettingsError: a value cannot be used.
        """
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._settings = self._settings.changed(
            run=run,
            checkpoint=checkpoint,
            connection=connection,
            reference=reference,
            model=model,
            context=context,
            wait=wait,
            deadline=deadline,
            request_keys=request_keys,
            time_limit=time_limit,
            owner=owner,
            classify=classify,
        )
        return made

    def call(
        self,
        call: ToolCall | None = None,
        *,
        tool: str | Unset = UNSET,
        input: Mapping[str, Any] | Unset = UNSET,
        reference: str | Unset | None = UNSET,
        occurrence: int | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        run: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        step: str | Unset | None = UNSET,
        call_id: str | Unset | None = UNSET,
        model: str | Unset | None = UNSET,
        context: Mapping[str, Any] | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
        request_key: str | Unset | None = UNSET,
    ) -> CallResult:
        """Ask for one effect and wait for its end.

        Asking again with the same values is safe at any time: it joins what is under way and replays what is done.

        Args:
            call: what is asked for; or `tool` and `input` say it.
            tool: the name of the tool.
            input: its arguments, as JSON values.
            reference: the caller's own name of the business case.
            occurrence: which intended repetition of the same operation this is.
            connection: the name of the provider account.
            run: the caller's name of the agent's execution.
            checkpoint: the save point of the run.
            step: where in the run.
            call_id: the model's own id of the call.
            model: which model asked.
            context: shown to reviewers, never sent to the provider.
            wait: how many seconds to wait for its end; 0 does not wait, None leaves it to the gateway.
            deadline: within how many seconds to answer or raise, retries included; None without end.
            request_key: the `Idempotency-Key` of this request; None sends none, whatever the client's settings say.

        Returns:
            `Done` with its receipt, `Waiting` where it has no end yet, `Refused` where it did not happen by this call, `InDoubt`
            where nobody knows. Only `Done` is truthy; each has `as_tool_message()`.

        Raises:
            MalformedArgumentsError: the input cannot be carried as JSON; nothing was sent.
            SettingsError: a wait, deadline or request key that cannot be used; nothing was sent.
            InvalidKeyError, KeyExpiredError, KeyRevokedError: the scoped key is not good.
            UnavailableError, InternalError, RateLimitedError, UnreachableError: no better answer came before the deadline.
                `possibly_recorded` says whether the call may have been recorded; the same call joins it then.
            RequestKeyReusedError, RequestInProgressError: of `request_key`.
            UnexpectedAnswerError: what answered is not Agent Outbox.
            OutboxError: any other problem that keeps the call from being answered.
            TypeError: neither `call` nor `tool` and `input` are given, or both.
        """
        fields = {
            "tool": tool,
            "input": input,
            "reference": reference,
            "occurrence": occurrence,
            "connection": connection,
            "run": run,
            "checkpoint": checkpoint,
            "step": step,
            "call_id": call_id,
            "model": model,
            "context": context,
        }
        return self._transport.hold(self._calling(call, fields, wait=wait, deadline=deadline, request_key=request_key))

    def run(
        self,
        call: ToolCall,
        handler: Handler,
        *,
        time_limit: float | Unset | None = UNSET,
        probe: Probe | None = None,
        contract: Mapping[str, Any] | None = None,
        key: str | None = None,
        scope: str | None = None,
        guarantee_class: str | None = None,
        receipt: str | ReceiptOf | None = None,
        recovery: Sequence[Mapping[str, Any]] | None = None,
        owner: str | Unset | None = UNSET,
        classify: Classify | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
    ) -> CallResult:
        """Have the caller's own code bring an effect about, once, and wait for its end.

        Whoever asks for the same effect meanwhile waits for this one and gets its receipt. If this process dies, the next call of
        the same effect takes it over: for class A with the same provider key, for class B after `probe` has looked.

        Args:
            call: what is asked for.
            handler: is called with the `Effect`, once, in this thread. What it returns is the result.
            time_limit: how many seconds the handler may take. A function cannot be stopped: it goes on, in doubt for everybody
                else, and its success counts even then. None: as long as its lease is renewed; class A alone allows it.
            probe: for class B: is called with the `Effect` of an earlier attempt, looks for its marker at the provider, and
                returns `Found`, the effect's reference, or None. Its absence counts when the gateway says so; it is waited for.
            contract: the tool's contract, in sandbox and development only; the next five are members of it, and win over it.
            key: what makes two calls the same effect: `refund:{payment}:{reference}`, or `input` for all of the input.
            scope: `environment` or `run`.
            guarantee_class: `A` the provider answers the same for the same key, `B` the effect can be looked up, `C` neither.
            receipt: a JMESPath of the provider's name of the effect in the result; or, with any tool, a function that finds it.
            recovery: as in a contract: `resend` hands over, `lookup` is the probe.
            owner: who answers for the tool of that contract.
            classify: what an exception of the handler says; None from it leaves it to `agent_outbox.classify`.
            wait: how many seconds to wait for another's attempt, or for a doubt; 0 does not wait, None leaves it to the gateway.
            deadline: within how many seconds the attempt is reserved; None without end. The handler's time is not part of it.

        Returns:
            As `call`. An exception of the handler's stands in `raised`: it is `InDoubt` unless it proves something.

        Raises:
            BadHandlerError: the handler or probe cannot be called with an effect. Nothing was reserved.
            TimeLimitRequiredError: the tool is not of class A and there is no time limit. Nothing was reserved.
            UnreachableError, UnavailableError, ...: as `call`; then the handler has not run.
            AttemptUnknownError, NotFoundError, NotClientExecutedError: the handler has run, and the gateway, which may have lost
                its tail, refuses for good to hear of it. What is known is kept aside for people.
            KeyboardInterrupt, SystemExit: it came while the handler ran. What is known is kept, and told in the background.
        """
        want = self._wanting(
            call,
            handler,
            async_allowed=False,
            time_limit=time_limit,
            probe=probe,
            contract=contract,
            key=key,
            scope=scope,
            guarantee_class=guarantee_class,
            receipt=receipt,
            recovery=recovery,
            owner=owner,
            classify=classify,
            wait=wait,
            deadline=deadline,
        )
        try:
            return self._transport.hold(carrying(want, self._spool, lease_clock), self._perform)
        finally:
            self._deliverer.kick()

    def effect(
        self,
        tool: str,
        *,
        time_limit: float | Unset | None = UNSET,
        probe: Probe | None = None,
        contract: Mapping[str, Any] | None = None,
        key: str | None = None,
        scope: str | None = None,
        guarantee_class: str | None = None,
        receipt: str | ReceiptOf | None = None,
        recovery: Sequence[Mapping[str, Any]] | None = None,
        owner: str | Unset | None = UNSET,
        classify: Classify | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
    ) -> Callable[[Callable[Concatenate[Effect, P], Any]], EffectFunction[P]]:
        """Make a function an effect: each call of it is one `run`.

        Args:
            tool: the name of the tool.
            time_limit, probe, contract, key, scope, guarantee_class, receipt, recovery, owner, classify, wait, deadline: as for
                `run`.

        Returns:
            A decorator for a function whose first argument is the `Effect`; its other arguments are the tool's input.

        Raises:
            BadHandlerError: when the function is decorated: it does not take an effect first, or has arguments without names.
        """

        def decorate(function: Callable[Concatenate[Effect, P], Any]) -> EffectFunction[P]:
            made: EffectFunction[P] = EffectFunction(run, tool, function, {})
            return made

        def run(call: ToolCall, handler: Handler) -> CallResult:
            return self.run(
                call,
                handler,
                time_limit=time_limit,
                probe=probe,
                contract=contract,
                key=key,
                scope=scope,
                guarantee_class=guarantee_class,
                receipt=receipt,
                recovery=recovery,
                owner=owner,
                classify=classify,
                wait=wait,
                deadline=deadline,
            )

        return decorate

    def reserve(
        self,
        call: ToolCall,
        *,
        time_limit: float | Unset | None = UNSET,
        contract: Mapping[str, Any] | None = None,
        key: str | None = None,
        scope: str | None = None,
        guarantee_class: str | None = None,
        receipt: str | None = None,
        recovery: Sequence[Mapping[str, Any]] | None = None,
        owner: str | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
        attempt_id: str | None = None,
    ) -> Effect | CallResult:
        """Ask for the right to an effect, for code that cannot be a handler.

        Whoever gets it renews it (`heartbeat`) and ends it (`settle` or `void`).

        Args:
            call: what is asked for.
            time_limit, contract, key, scope, guarantee_class, receipt, recovery, owner, wait, deadline: as for `run`.
            attempt_id: a UUID of the caller's own for the attempt, by which the same request recognises it after a crash; a
                new one is made up when left out.

        Returns:
            The `Effect`, which the caller carries out; or what came of somebody else's.

        Raises:
            OutboxError: as `run`. `attempt-closed`: the attempt of this id is over.
        """
        want = self._wanting(
            call,
            None,
            handled=False,
            async_allowed=False,
            time_limit=time_limit,
            probe=None,
            contract=contract,
            key=key,
            scope=scope,
            guarantee_class=guarantee_class,
            receipt=receipt,
            recovery=recovery,
            owner=owner,
            classify=None,
            wait=wait,
            deadline=deadline,
            attempt_id=attempt_id,
        )
        return self._transport.hold(reserving_alone(want, self._spool, lease_clock))

    def heartbeat(self, effect: Effect) -> bool:
        """Renew the lease of an effect that was reserved.

        Args:
            effect: of `reserve`.

        Returns:
            Whether it was renewed; `effect.seconds_left()` says how much is left.
        """
        return self._transport.hold(heartbeating(effect, self._headers(), lease_clock))

    def settle(
        self,
        effect: Effect,
        outcome: Outcome = "succeeded",
        *,
        result: object = None,
        external_reference: str | None = None,
        provider_request_id: str | None = None,
        amount: Money | None = None,
        reason: str | None = None,
        provider_status: int | None = None,
        provider_code: str | None = None,
        provider_message: str | None = None,
        stored: bool = False,
    ) -> CallResult:
        """Tell what became of an effect that was reserved. It is kept on disk until the gateway has it.

        Args:
            effect: of `reserve`.
            outcome: `succeeded`, `rejected` (refused for good), `deferred`, `unsent` (nothing was sent) or `unknown`.
            result: of a success; what cannot be stored is named in its place.
            external_reference: the provider's own name of the effect.
            provider_request_id: the provider's name of the request.
            amount: the money that the provider says it moved.
            reason: a few plain words.
            provider_status, provider_code, provider_message: of a refusal; the message is kept for a day, sealed.
            stored: the provider keeps this refusal under the provider key.

        Returns:
            What stands now.

        Raises:
            OutboxError: the gateway would not take it (`attempt-unknown`, ...). What was said is kept as evidence.
        """
        body = settle_body(
            effect,
            outcome,
            Success(
                result=result,
                external_reference=external_reference,
                provider_request_id=provider_request_id,
                amount=amount,
            ),
            reason=reason,
            provider_status=provider_status,
            provider_code=provider_code,
            provider_message=provider_message,
            stored=stored,
        )
        try:
            return self._transport.hold(telling(effect, body, self._headers(), self._spool, lease_clock))
        finally:
            self._deliverer.kick()

    def void(self, effect: Effect, *, reason: str = "not needed") -> CallResult:
        """Give an effect back that was reserved; nothing was sent.

        Args:
            effect: of `reserve`.
            reason: a few plain words.

        Returns:
            What stands now.

        Raises:
            OutboxError: it is not this caller's any more, or the gateway did not answer.
        """
        return self._transport.hold(voiding(effect, reason, self._headers(), lease_clock))

    def resolve(
        self,
        call: ToolCall | None = None,
        *,
        tool: str | Unset = UNSET,
        input: Mapping[str, Any] | Unset = UNSET,
        reference: str | Unset | None = UNSET,
        occurrence: int | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        run: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
    ) -> ResolveResult:
        """Ask what a call would come to. Nothing is written and nothing is sent.

        Args:
            call: what would be asked for; or `tool` and `input` say it.
            tool, input, reference, occurrence, connection, run, checkpoint: as for `call`.
            deadline: within how many seconds to answer or raise; None without end.

        Returns:
            `Resolution`: it would be reserved, or would join what its `state` tells; `Refused` or `InDoubt` as the call itself
            would be. None of them is truthy.

        Raises:
            OutOfScopeError: the key is not an administrator's, or does not reach the tool.
            OutboxError: as for `call`.
        """
        fields = {
            "tool": tool,
            "input": input,
            "reference": reference,
            "occurrence": occurrence,
            "connection": connection,
            "run": run,
            "checkpoint": checkpoint,
        }
        return self._transport.hold(self._resolving(call, fields, deadline=deadline))

    def get(self, reservation_id: str, *, wait: float = 0.0, deadline: float | Unset | None = UNSET) -> Reservation:
        """Look at a reservation.

        Args:
            reservation_id: of a result.
            wait: how many seconds to wait until it is final (at most 60); 0 looks at once.
            deadline: within how many seconds to answer or raise; None without end.

        Returns:
            The reservation with its attempts, requesters and evidence; `answer` is what a call waiting for it is told.

        Raises:
            NotFoundError: there is none, or this key does not reach it.
            OutboxError: it could not be asked.
        """
        return read_reservation(self._transport.hold(self._getting(reservation_id, wait, deadline)))

    def find(
        self,
        *,
        state: str | None = None,
        tool: str | None = None,
        connection: str | None = None,
        run: str | None = None,
        agent: str | None = None,
        operation_key: str | None = None,
        reference: str | None = None,
        external_reference: str | None = None,
        provider_request_id: str | None = None,
        trace_id: str | None = None,
        call_id: str | None = None,
        step: str | None = None,
        model: str | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
        deadline: float | Unset | None = UNSET,
    ) -> Iterator[Reservation]:
        """List reservations, newest first; the client's own run and reference do not narrow it.

        Args:
            state, tool, connection, run, agent, operation_key, reference, external_reference, provider_request_id, trace_id,
                call_id, step, model: only reservations with exactly this value; None does not narrow.
            from_: only those made at or after this time; without a zone it is UTC.
            to: only those made before this time.
            deadline: within how many seconds each page is answered; None without end.

        Returns:
            An iterator that asks for pages as it goes. An agent's key sees what the agent caused.

        Raises:
            InvalidRequestError, OutOfScopeError: a filter that cannot be used, or reaches beyond the key.
            OutboxError: it could not be asked.
        """
        query = _filters(
            state=state,
            tool=tool,
            connection=connection,
            run=run,
            agent=agent,
            operation_key=operation_key,
            reference=reference,
            external_reference=external_reference,
            provider_request_id=provider_request_id,
            trace_id=trace_id,
            call_id=call_id,
            step=step,
            model=model,
            from_=from_,
            to=to,
        )
        cursor: str | None = None
        while True:
            page = self._transport.hold(self._looking("/v1/reservations", _page_of(query, cursor), deadline=deadline))
            items, following = _read_page(page)
            yield from items
            if following is None or following == cursor:
                return
            cursor = following

    def receipt(self, id: str, *, deadline: float | Unset | None = UNSET) -> Receipt:
        """A receipt.

        Args:
            id: of the receipt.
            deadline: within how many seconds to answer or raise; None without end.

        Returns:
            The receipt; it never changes.

        Raises:
            NotFoundError: there is none, or this key does not reach it.
            OutboxError: it could not be asked.
        """
        return read_receipt(self._transport.hold(self._looking(receipt_path(id), {}, deadline=deadline)))

    def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        self._transport.close()

    def __enter__(self) -> Outbox:
        """Hands out itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the connections."""
        self.close()


class AsyncOutbox(_Client):
    """A gateway of Agent Outbox, as a caller in asyncio sees it. Safe to share between tasks and between event loops."""

    def __init__(
        self,
        *,
        url: str | Unset | None = UNSET,
        key: str | Unset | None = UNSET,
        run: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        reference: str | Unset | None = UNSET,
        model: str | Unset | None = UNSET,
        context: Mapping[str, Any] | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
        request_keys: bool | Unset = UNSET,
        time_limit: float | Unset | None = UNSET,
        owner: str | Unset | None = UNSET,
        classify: Classify | Unset | None = UNSET,
        spool: str | os.PathLike[str] | Unset | None = UNSET,
    ) -> None:
        """Nothing is asked yet; what an earlier process could not deliver of its effects is delivered in the background.

        Args:
            url: of the gateway; `OUTBOX_URL` when left out.
            key: the scoped key; `OUTBOX_KEY` when left out, none when None.
            run: the caller's name of the agent's execution, for every call that does not say otherwise. So are the next five.
            checkpoint: the save point of the run.
            connection: the name of the provider account.
            reference: the caller's own name of the business case, for a client that works on one case.
            model: which model asks.
            context: shown to reviewers, never sent to a provider.
            wait: how many seconds a call waits for its end (25); 0 does not wait, None leaves it to the gateway.
            deadline: within how many seconds a call answers or raises, retries included (35 more than `wait`); None without end.
            request_keys: send each call with an `Idempotency-Key` of its own (no). Its operation key makes a call safe to repeat
                already; a request key adds that a lost answer comes back as the same bytes.
            time_limit: how many seconds a handler of `run` may take; None: as long as its lease is renewed, which class A alone
                allows.
            owner: who answers for tools whose contract comes with the call.
            classify: what an exception of a handler says; None from it, or None here, leaves it to `agent_outbox.classify`.
            spool: the folder where what became of effects is kept until the gateway has it (`OUTBOX_SPOOL`, else in the user's
                folder for state); None keeps it in memory alone.

        Raises:
            SettingsError: a value cannot be used, or no address is known.
        """
        super().__init__(
            Settings.from_environment(os.environ).changed(
                url=url,
                key=key,
                run=run,
                checkpoint=checkpoint,
                connection=connection,
                reference=reference,
                model=model,
                context=context,
                wait=wait,
                deadline=deadline,
                request_keys=request_keys,
                time_limit=time_limit,
                owner=owner,
                classify=classify,
                spool=spool,
            )
        )
        self._transport = AsyncTransport(self._url)
        late = late_teller(self._spool, self._deliverer)
        self._perform = AsyncPerformer(self._transport, self._authorization, late)

    def using(
        self,
        *,
        run: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        reference: str | Unset | None = UNSET,
        model: str | Unset | None = UNSET,
        context: Mapping[str, Any] | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
        request_keys: bool | Unset = UNSET,
        time_limit: float | Unset | None = UNSET,
        owner: str | Unset | None = UNSET,
        classify: Classify | Unset | None = UNSET,
    ) -> AsyncOutbox:
        """The same gateway and connections with other settings.

        Args:
            run, checkpoint, connection, reference, model, context, wait, deadline, request_keys, time_limit, owner, classify: as
                for the client; what is left out stays as it is, None is a value.

        Returns:
            Another client. Closing either closes the connections of both.

        Raises:
            SettingsError: a value cannot be used.
        """
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._settings = self._settings.changed(
            run=run,
            checkpoint=checkpoint,
            connection=connection,
            reference=reference,
            model=model,
            context=context,
            wait=wait,
            deadline=deadline,
            request_keys=request_keys,
            time_limit=time_limit,
            owner=owner,
            classify=classify,
        )
        return made

    async def call(
        self,
        call: ToolCall | None = None,
        *,
        tool: str | Unset = UNSET,
        input: Mapping[str, Any] | Unset = UNSET,
        reference: str | Unset | None = UNSET,
        occurrence: int | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        run: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        step: str | Unset | None = UNSET,
        call_id: str | Unset | None = UNSET,
        model: str | Unset | None = UNSET,
        context: Mapping[str, Any] | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
        request_key: str | Unset | None = UNSET,
    ) -> CallResult:
        """Ask for one effect and wait for its end.

        Asking again with the same values is safe at any time: it joins what is under way and replays what is done.

        Args:
            call: what is asked for; or `tool` and `input` say it.
            tool: the name of the tool.
            input: its arguments, as JSON values.
            reference: the caller's own name of the business case.
            occurrence: which intended repetition of the same operation this is.
            connection: the name of the provider account.
            run: the caller's name of the agent's execution.
            checkpoint: the save point of the run.
            step: where in the run.
            call_id: the model's own id of the call.
            model: which model asked.
            context: shown to reviewers, never sent to the provider.
            wait: how many seconds to wait for its end; 0 does not wait, None leaves it to the gateway.
            deadline: within how many seconds to answer or raise, retries included; None without end.
            request_key: the `Idempotency-Key` of this request; None sends none, whatever the client's settings say.

        Returns:
            `Done` with its receipt, `Waiting` where it has no end yet, `Refused` where it did not happen by this call, `InDoubt`
            where nobody knows. Only `Done` is truthy; each has `as_tool_message()`.

        Raises:
            MalformedArgumentsError: the input cannot be carried as JSON; nothing was sent.
            SettingsError: a wait, deadline or request key that cannot be used; nothing was sent.
            InvalidKeyError, KeyExpiredError, KeyRevokedError: the scoped key is not good.
            UnavailableError, InternalError, RateLimitedError, UnreachableError: no better answer came before the deadline.
                `possibly_recorded` says whether the call may have been recorded; the same call joins it then.
            RequestKeyReusedError, RequestInProgressError: of `request_key`.
            UnexpectedAnswerError: what answered is not Agent Outbox.
            OutboxError: any other problem that keeps the call from being answered.
            asyncio.CancelledError: whoever awaits it was cancelled; what was recorded goes on, and the same call joins it.
            TypeError: neither `call` nor `tool` and `input` are given, or both.
        """
        fields = {
            "tool": tool,
            "input": input,
            "reference": reference,
            "occurrence": occurrence,
            "connection": connection,
            "run": run,
            "checkpoint": checkpoint,
            "step": step,
            "call_id": call_id,
            "model": model,
            "context": context,
        }
        return await self._transport.hold(self._calling(call, fields, wait=wait, deadline=deadline, request_key=request_key))

    async def run(
        self,
        call: ToolCall,
        handler: AsyncHandler | Handler,
        *,
        time_limit: float | Unset | None = UNSET,
        probe: AsyncProbe | Probe | None = None,
        contract: Mapping[str, Any] | None = None,
        key: str | None = None,
        scope: str | None = None,
        guarantee_class: str | None = None,
        receipt: str | ReceiptOf | None = None,
        recovery: Sequence[Mapping[str, Any]] | None = None,
        owner: str | Unset | None = UNSET,
        classify: Classify | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
    ) -> CallResult:
        """Have the caller's own code bring an effect about, once, and wait for its end.

        Whoever asks for the same effect meanwhile waits for this one and gets its receipt. If this process dies, the next call of
        the same effect takes it over: for class A with the same provider key, for class B after `probe` has looked.

        Args:
            call: what is asked for.
            handler: is called with the `Effect`, once, as a task; a plain function in a thread of its own. What it returns is the
                result.
            time_limit: how many seconds the handler may take. Then a coroutine is cancelled; a function goes on, in doubt for
                everybody else, and its success counts even then. None: as long as its lease is renewed; class A alone allows it.
            probe: for class B: is called with the `Effect` of an earlier attempt, looks for its marker at the provider, and
                returns `Found`, the effect's reference, or None. Its absence counts when the gateway says so; it is waited for.
            contract: the tool's contract, in sandbox and development only; the next five are members of it, and win over it.
            key: what makes two calls the same effect: `refund:{payment}:{reference}`, or `input` for all of the input.
            scope: `environment` or `run`.
            guarantee_class: `A` the provider answers the same for the same key, `B` the effect can be looked up, `C` neither.
            receipt: a JMESPath of the provider's name of the effect in the result; or, with any tool, a function that finds it.
            recovery: as in a contract: `resend` hands over, `lookup` is the probe.
            owner: who answers for the tool of that contract.
            classify: what an exception of the handler says; None from it leaves it to `agent_outbox.classify`.
            wait: how many seconds to wait for another's attempt, or for a doubt; 0 does not wait, None leaves it to the gateway.
            deadline: within how many seconds the attempt is reserved; None without end. The handler's time is not part of it.

        Returns:
            As `call`. An exception of the handler's stands in `raised`: it is `InDoubt` unless it proves something.

        Raises:
            BadHandlerError: the handler or probe cannot be called with an effect. Nothing was reserved.
            TimeLimitRequiredError: the tool is not of class A and there is no time limit. Nothing was reserved.
            UnreachableError, UnavailableError, ...: as `call`; then the handler has not run.
            AttemptUnknownError, NotFoundError, NotClientExecutedError: the handler has run, and the gateway, which may have lost
                its tail, refuses for good to hear of it. What is known is kept aside for people.
            asyncio.CancelledError: it came while the handler ran. What is known is kept, and told in the background.
        """
        want = self._wanting(
            call,
            handler,
            async_allowed=True,
            time_limit=time_limit,
            probe=probe,
            contract=contract,
            key=key,
            scope=scope,
            guarantee_class=guarantee_class,
            receipt=receipt,
            recovery=recovery,
            owner=owner,
            classify=classify,
            wait=wait,
            deadline=deadline,
        )
        try:
            return await self._transport.hold(carrying(want, self._spool, lease_clock), self._perform)
        finally:
            self._deliverer.kick()

    def effect(
        self,
        tool: str,
        *,
        time_limit: float | Unset | None = UNSET,
        probe: AsyncProbe | Probe | None = None,
        contract: Mapping[str, Any] | None = None,
        key: str | None = None,
        scope: str | None = None,
        guarantee_class: str | None = None,
        receipt: str | ReceiptOf | None = None,
        recovery: Sequence[Mapping[str, Any]] | None = None,
        owner: str | Unset | None = UNSET,
        classify: Classify | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
    ) -> Callable[[Callable[Concatenate[Effect, P], Any]], AsyncEffectFunction[P]]:
        """Make a function an effect: each call of it is one `run`.

        Args:
            tool: the name of the tool.
            time_limit, probe, contract, key, scope, guarantee_class, receipt, recovery, owner, classify, wait, deadline: as for
                `run`.

        Returns:
            A decorator for a function whose first argument is the `Effect`; its other arguments are the tool's input.

        Raises:
            BadHandlerError: when the function is decorated: it does not take an effect first, or has arguments without names.
        """

        def decorate(function: Callable[Concatenate[Effect, P], Any]) -> AsyncEffectFunction[P]:
            made: AsyncEffectFunction[P] = AsyncEffectFunction(run, tool, function, {})
            return made

        async def run(call: ToolCall, handler: AsyncHandler | Handler) -> CallResult:
            return await self.run(
                call,
                handler,
                time_limit=time_limit,
                probe=probe,
                contract=contract,
                key=key,
                scope=scope,
                guarantee_class=guarantee_class,
                receipt=receipt,
                recovery=recovery,
                owner=owner,
                classify=classify,
                wait=wait,
                deadline=deadline,
            )

        return decorate

    async def reserve(
        self,
        call: ToolCall,
        *,
        time_limit: float | Unset | None = UNSET,
        contract: Mapping[str, Any] | None = None,
        key: str | None = None,
        scope: str | None = None,
        guarantee_class: str | None = None,
        receipt: str | None = None,
        recovery: Sequence[Mapping[str, Any]] | None = None,
        owner: str | Unset | None = UNSET,
        wait: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
        attempt_id: str | None = None,
    ) -> Effect | CallResult:
        """Ask for the right to an effect, for code that cannot be a handler.

        Whoever gets it renews it (`heartbeat`) and ends it (`settle` or `void`).

        Args:
            call: what is asked for.
            time_limit, contract, key, scope, guarantee_class, receipt, recovery, owner, wait, deadline: as for `run`.
            attempt_id: a UUID of the caller's own for the attempt, by which the same request recognises it after a crash; a
                new one is made up when left out.

        Returns:
            The `Effect`, which the caller carries out; or what came of somebody else's.

        Raises:
            OutboxError: as `run`. `attempt-closed`: the attempt of this id is over.
        """
        want = self._wanting(
            call,
            None,
            handled=False,
            async_allowed=True,
            time_limit=time_limit,
            probe=None,
            contract=contract,
            key=key,
            scope=scope,
            guarantee_class=guarantee_class,
            receipt=receipt,
            recovery=recovery,
            owner=owner,
            classify=None,
            wait=wait,
            deadline=deadline,
            attempt_id=attempt_id,
        )
        return await self._transport.hold(reserving_alone(want, self._spool, lease_clock))

    async def heartbeat(self, effect: Effect) -> bool:
        """Renew the lease of an effect that was reserved.

        Args:
            effect: of `reserve`.

        Returns:
            Whether it was renewed; `effect.seconds_left()` says how much is left.
        """
        return await self._transport.hold(heartbeating(effect, self._headers(), lease_clock))

    async def settle(
        self,
        effect: Effect,
        outcome: Outcome = "succeeded",
        *,
        result: object = None,
        external_reference: str | None = None,
        provider_request_id: str | None = None,
        amount: Money | None = None,
        reason: str | None = None,
        provider_status: int | None = None,
        provider_code: str | None = None,
        provider_message: str | None = None,
        stored: bool = False,
    ) -> CallResult:
        """Tell what became of an effect that was reserved. It is kept on disk until the gateway has it.

        Args:
            effect: of `reserve`.
            outcome: `succeeded`, `rejected` (refused for good), `deferred`, `unsent` (nothing was sent) or `unknown`.
            result: of a success; what cannot be stored is named in its place.
            external_reference: the provider's own name of the effect.
            provider_request_id: the provider's name of the request.
            amount: the money that the provider says it moved.
            reason: a few plain words.
            provider_status, provider_code, provider_message: of a refusal; the message is kept for a day, sealed.
            stored: the provider keeps this refusal under the provider key.

        Returns:
            What stands now.

        Raises:
            OutboxError: the gateway would not take it (`attempt-unknown`, ...). What was said is kept as evidence.
        """
        body = settle_body(
            effect,
            outcome,
            Success(
                result=result,
                external_reference=external_reference,
                provider_request_id=provider_request_id,
                amount=amount,
            ),
            reason=reason,
            provider_status=provider_status,
            provider_code=provider_code,
            provider_message=provider_message,
            stored=stored,
        )
        try:
            return await self._transport.hold(telling(effect, body, self._headers(), self._spool, lease_clock))
        finally:
            self._deliverer.kick()

    async def void(self, effect: Effect, *, reason: str = "not needed") -> CallResult:
        """Give an effect back that was reserved; nothing was sent.

        Args:
            effect: of `reserve`.
            reason: a few plain words.

        Returns:
            What stands now.

        Raises:
            OutboxError: it is not this caller's any more, or the gateway did not answer.
        """
        return await self._transport.hold(voiding(effect, reason, self._headers(), lease_clock))

    async def resolve(
        self,
        call: ToolCall | None = None,
        *,
        tool: str | Unset = UNSET,
        input: Mapping[str, Any] | Unset = UNSET,
        reference: str | Unset | None = UNSET,
        occurrence: int | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        run: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
    ) -> ResolveResult:
        """Ask what a call would come to. Nothing is written and nothing is sent.

        Args:
            call: what would be asked for; or `tool` and `input` say it.
            tool, input, reference, occurrence, connection, run, checkpoint: as for `call`.
            deadline: within how many seconds to answer or raise; None without end.

        Returns:
            `Resolution`: it would be reserved, or would join what its `state` tells; `Refused` or `InDoubt` as the call itself
            would be. None of them is truthy.

        Raises:
            OutOfScopeError: the key is not an administrator's, or does not reach the tool.
            OutboxError: as for `call`.
        """
        fields = {
            "tool": tool,
            "input": input,
            "reference": reference,
            "occurrence": occurrence,
            "connection": connection,
            "run": run,
            "checkpoint": checkpoint,
        }
        return await self._transport.hold(self._resolving(call, fields, deadline=deadline))

    async def get(self, reservation_id: str, *, wait: float = 0.0, deadline: float | Unset | None = UNSET) -> Reservation:
        """Look at a reservation.

        Args:
            reservation_id: of a result.
            wait: how many seconds to wait until it is final (at most 60); 0 looks at once.
            deadline: within how many seconds to answer or raise; None without end.

        Returns:
            The reservation with its attempts, requesters and evidence; `answer` is what a call waiting for it is told.

        Raises:
            NotFoundError: there is none, or this key does not reach it.
            OutboxError: it could not be asked.
        """
        return read_reservation(await self._transport.hold(self._getting(reservation_id, wait, deadline)))

    async def find(
        self,
        *,
        state: str | None = None,
        tool: str | None = None,
        connection: str | None = None,
        run: str | None = None,
        agent: str | None = None,
        operation_key: str | None = None,
        reference: str | None = None,
        external_reference: str | None = None,
        provider_request_id: str | None = None,
        trace_id: str | None = None,
        call_id: str | None = None,
        step: str | None = None,
        model: str | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
        deadline: float | Unset | None = UNSET,
    ) -> AsyncIterator[Reservation]:
        """List reservations, newest first; the client's own run and reference do not narrow it.

        Args:
            state, tool, connection, run, agent, operation_key, reference, external_reference, provider_request_id, trace_id,
                call_id, step, model: only reservations with exactly this value; None does not narrow.
            from_: only those made at or after this time; without a zone it is UTC.
            to: only those made before this time.
            deadline: within how many seconds each page is answered; None without end.

        Returns:
            An asynchronous iterator that asks for pages as it goes. An agent's key sees what the agent caused.

        Raises:
            InvalidRequestError, OutOfScopeError: a filter that cannot be used, or reaches beyond the key.
            OutboxError: it could not be asked.
        """
        query = _filters(
            state=state,
            tool=tool,
            connection=connection,
            run=run,
            agent=agent,
            operation_key=operation_key,
            reference=reference,
            external_reference=external_reference,
            provider_request_id=provider_request_id,
            trace_id=trace_id,
            call_id=call_id,
            step=step,
            model=model,
            from_=from_,
            to=to,
        )
        cursor: str | None = None
        while True:
            page = await self._transport.hold(self._looking("/v1/reservations", _page_of(query, cursor), deadline=deadline))
            items, following = _read_page(page)
            for item in items:
                yield item
            if following is None or following == cursor:
                return
            cursor = following

    async def receipt(self, id: str, *, deadline: float | Unset | None = UNSET) -> Receipt:
        """A receipt.

        Args:
            id: of the receipt.
            deadline: within how many seconds to answer or raise; None without end.

        Returns:
            The receipt; it never changes.

        Raises:
            NotFoundError: there is none, or this key does not reach it.
            OutboxError: it could not be asked.
        """
        return read_receipt(await self._transport.hold(self._looking(receipt_path(id), {}, deadline=deadline)))

    async def aclose(self) -> None:
        """Closes the connections of the running event loop; a later call opens new ones."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncOutbox:
        """Hands out itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connections."""
        await self.aclose()


def _resolved(tool: str, conversation: Conversation[Heard]) -> Conversation[ResolveResult]:
    heard = yield from conversation
    if heard.error is None:
        return read_resolution(heard.document)
    refused = read_answer_to_call(heard.status, heard.document, tool=tool)
    assert isinstance(refused, (Refused, InDoubt)), "a problem is one of the two"
    return refused


def _filters(**filters: str | datetime | None) -> dict[str, str]:
    """The query of a list; a trailing `_` of a name, which only keeps it from being a word of Python's, is dropped."""
    query: dict[str, str] = {}
    for name, value in filters.items():
        if isinstance(value, datetime):
            moment = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
            value = moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
        if value is not None:
            query[name.rstrip("_")] = str(value)
    return query


def _page_of(query: Mapping[str, str], cursor: str | None) -> dict[str, str]:
    page = {**query, "limit": str(ITEMS_A_PAGE)}
    return page if cursor is None else {**page, "cursor": cursor}


def _read_page(document: Mapping[str, Any]) -> tuple[list[Reservation], str | None]:
    items, following = document.get("items"), document.get("next_cursor")
    if not isinstance(items, list) or not (following is None or isinstance(following, str)):
        raise unexpected("it is no page of a list")
    return [read_reservation(item) for item in items], following
