"""The client for threads; `AsyncOutbox` asks the same questions and understands the same answers.

```python
outbox = Outbox(url="https://outbox.example.com", key="obx_...", run="thread-77")
result = outbox.call(tool="stripe.refund.create", input={"payment_intent": "pi_3Nx", "amount": 1200}, reference="case-8841")
if result:
    print(result.receipt.external_reference)
messages.append({"role": "tool", "tool_call_id": call.id, "content": result.as_tool_message()})
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Concatenate, ParamSpec

from agent_outbox.carry import (
    carrying,
    heartbeating,
    reserving_alone,
    voiding,
)
from agent_outbox.client_base import ClientBase, Outcome, ResolveResult, filters, page_of, read_page
from agent_outbox.conversation import receipt_path
from agent_outbox.decorated import EffectFunction
from agent_outbox.delivery import telling
from agent_outbox.effect import (
    Classify,
    Effect,
    Handler,
    Probe,
    ReceiptOf,
    Success,
    lease_clock,
)
from agent_outbox.perform import SyncPerformer
from agent_outbox.receipt import Money, Receipt, read_receipt
from agent_outbox.results import (
    CallResult,
    Reservation,
    read_reservation,
)
from agent_outbox.settings import (
    UNSET,
    Unset,
)
from agent_outbox.settlement import settle_body
from agent_outbox.tool_call import ToolCall
from agent_outbox.transport import SyncTransport

P = ParamSpec("P")


class Outbox(ClientBase):
    """A gateway of Agent Outbox, as a caller in threads sees it. Safe to share between threads, and after a fork."""

    def _connect(self) -> None:
        self._transport = SyncTransport(self._url)
        self._perform = SyncPerformer(self._transport, self._authorization)

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
        query = filters(
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
            page = self._transport.hold(self._looking("/v1/reservations", page_of(query, cursor), deadline=deadline))
            items, following = read_page(page)
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
