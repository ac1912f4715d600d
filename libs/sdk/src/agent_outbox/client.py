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

import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, TypeVar, Union
from uuid import uuid4

from agent_outbox import strict_json
from agent_outbox.conversation import (
    Call,
    Conversation,
    Heard,
    calling,
    looking,
    receipt_path,
    reservation_path,
    resolving,
)
from agent_outbox.errors import unexpected
from agent_outbox.receipt import Receipt, read_receipt
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
from agent_outbox.tool_call import ToolCall
from agent_outbox.traces import trace_headers
from agent_outbox.transport import AsyncTransport, SyncTransport

T = TypeVar("T")

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

    @property
    def settings(self) -> Settings:
        """What holds for every call unless the call says otherwise."""
        return self._settings

    def __repr__(self) -> str:
        """The client's settings, without its key."""
        return f"{type(self).__name__}({self._settings!r})"

    def _headers(self) -> tuple[tuple[str, str], ...]:
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
    ) -> None:
        """Nothing is sent yet.

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
            )
        )
        self._transport = SyncTransport(self._url)

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
    ) -> Outbox:
        """The same gateway and connections with other settings.

        Args:
            run, checkpoint, connection, reference, model, context, wait, deadline, request_keys: as for the client; what is left
                out stays as it is, None is a value.

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
    ) -> None:
        """Nothing is sent yet.

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
            )
        )
        self._transport = AsyncTransport(self._url)

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
    ) -> AsyncOutbox:
        """The same gateway and connections with other settings.

        Args:
            run, checkpoint, connection, reference, model, context, wait, deadline, request_keys: as for the client; what is left
                out stays as it is, None is a value.

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
