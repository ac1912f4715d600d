"""What `Outbox` and `AsyncOutbox` share: their settings, and the conversations that both hold."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, TypeVar, Union
from uuid import uuid4

from agent_outbox import strict_json
from agent_outbox.carry import Want
from agent_outbox.conversation import (
    Call,
    Conversation,
    Headers,
    Heard,
    calling,
    looking,
    reservation_path,
    resolving,
)
from agent_outbox.effect import (
    AsyncHandler,
    AsyncProbe,
    Classify,
    Handler,
    Probe,
    ReceiptOf,
    checked_handler,
)
from agent_outbox.errors import SettingsError, unexpected
from agent_outbox.perform import Deliverer
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
from agent_outbox.spool import folder_of, spool_at
from agent_outbox.tool_call import ToolCall
from agent_outbox.traces import trace_headers

C = TypeVar("C", bound="ClientBase")

Outcome = Literal["succeeded", "rejected", "deferred", "unsent", "unknown"]
"""What an attempt can come to."""

ITEMS_A_PAGE = 200

ResolveResult = Union[Resolution, Refused, InDoubt]
"""What `Outbox.resolve` returns."""

_FROM_SETTINGS = ("reference", "connection", "run", "checkpoint", "model", "context")
"""Members of a tool call that the settings of a client can state."""


class ClientBase(ABC):
    """What both clients share: their settings, and the conversations they hold."""

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
        self._settings = settings = Settings.from_environment(os.environ).changed(
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
        self._url = checked_url(settings.url)
        key = checked_key(settings.key)
        self._authorization = () if key is None else (("Authorization", f"Bearer {key}"),)
        self._spool = spool_at(folder_of(settings.spool, url=self._url, key=key))
        self._deliverer = Deliverer(self._url, self._authorization, self._spool)
        self._deliverer.kick()
        self._connect()

    @abstractmethod
    def _connect(self) -> None:
        """Makes what this kind of client asks with."""

    @property
    def settings(self) -> Settings:
        """What holds for every call unless the call says otherwise."""
        return self._settings

    def using(
        self: C,
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
    ) -> C:
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


def _resolved(tool: str, conversation: Conversation[Heard]) -> Conversation[ResolveResult]:
    heard = yield from conversation
    if heard.error is None:
        return read_resolution(heard.document)
    refused = read_answer_to_call(heard.status, heard.document, tool=tool)
    assert isinstance(refused, (Refused, InDoubt)), "a problem is one of the two"
    return refused


def filters(**filters: str | datetime | None) -> dict[str, str]:
    """The query of a list; a trailing `_` of a name, which only keeps it from being a word of Python's, is dropped."""
    query: dict[str, str] = {}
    for name, value in filters.items():
        if isinstance(value, datetime):
            moment = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
            value = moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
        if value is not None:
            query[name.rstrip("_")] = str(value)
    return query


def page_of(query: Mapping[str, str], cursor: str | None) -> dict[str, str]:
    """The query of one page of a list; the first where there is no cursor."""
    page = {**query, "limit": str(ITEMS_A_PAGE)}
    return page if cursor is None else {**page, "cursor": cursor}


def read_page(document: Mapping[str, Any]) -> tuple[list[Reservation], str | None]:
    """The reservations of a page, and the cursor of the next one; None where it is the last.

    Raises:
        UnexpectedAnswerError: it is no page.
    """
    items, following = document.get("items"), document.get("next_cursor")
    if not isinstance(items, list) or not (following is None or isinstance(following, str)):
        raise unexpected("it is no page of a list")
    return [read_reservation(item) for item in items], following
