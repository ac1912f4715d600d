"""What an agent asks for, and how a model's tool call becomes it.

`ToolCall.from_openai`, `from_anthropic` and `from_langchain` take what the model wrote: the tool's name and the arguments. What
identifies the business case (`reference`, `occurrence`, `run`, ...) is the caller's to say and is never read from arguments, so
no model can widen or repeat an effect by naming another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from agent_outbox import strict_json
from agent_outbox.errors import NotAToolCallError, malformed
from agent_outbox.settings import UNSET, Unset

_ARGUMENTS = "$.input"

_CUT_OFF = frozenset({"max_tokens", "model_context_window_exceeded", "refusal"})
"""Why an answer of Anthropic's may end in the middle of its last block."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One tool call. What holds `UNSET` is taken from the client's settings; None states "none".

    Attributes:
        tool: the name of the tool (`stripe.refund.create`).
        input: its arguments, as JSON values.
        reference: the caller's own name of the business case (order, case, return).
        occurrence: which intended repetition of the same operation this is; 1 unless code means to repeat it.
        connection: the name of the provider account.
        run: the caller's name of the agent's execution.
        checkpoint: the save point of the run.
        step: where in the run; recorded and searchable, never part of an identity.
        call_id: the model's own id of the call; recorded and searchable.
        model: which model asked; recorded and searchable.
        context: shown to reviewers, never sent to the provider.
    """

    tool: str
    input: Mapping[str, Any]
    reference: str | Unset | None = UNSET
    occurrence: int | Unset | None = UNSET
    connection: str | Unset | None = UNSET
    run: str | Unset | None = UNSET
    checkpoint: str | Unset | None = UNSET
    step: str | Unset | None = UNSET
    call_id: str | Unset | None = UNSET
    model: str | Unset | None = UNSET
    context: Mapping[str, Any] | Unset | None = UNSET

    @classmethod
    def from_openai(
        cls,
        obj: object,
        *,
        run: str | Unset | None = UNSET,
        reference: str | Unset | None = UNSET,
        occurrence: int | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        context: Mapping[str, Any] | Unset | None = UNSET,
        names: Mapping[str, str] | None = None,
        response: object = None,
    ) -> ToolCall:
        """A tool call of OpenAI's chat completions or responses API.

        Args:
            obj: an item of `message.tool_calls` (`{id, type: "function", function: {name, arguments}}`) or an output item
                (`{type: "function_call", call_id, name, arguments}`), as an object of their SDK or as a dict.
            run, reference, occurrence, connection, checkpoint, context: as the attributes of that name.
            names: what the model calls each tool, to its name here; names that are not in it follow `tool_name`.
            response: the completion or response that `obj` stands in; its `model` and `id` become `model` and `step`.

        Returns:
            The call; `call_id` is the model's.

        Raises:
            MalformedArgumentsError: the arguments are not a JSON object that can be carried exactly. Nothing was sent;
                `as_tool_message` tells the model where.
            NotAToolCallError: `obj` is something else, such as a whole response or a custom tool's call.
        """
        kind, call_id = _member(obj, "type"), _member(obj, "id")
        function = obj
        if kind == "function_call":
            call_id = _member(obj, "call_id")
            if _member(obj, "status") in ("in_progress", "incomplete"):
                raise malformed(_ARGUMENTS, "the whole arguments; the call is not complete")
        elif kind in (None, "function") and _member(obj, "function") is not None:
            function = _member(obj, "function")
        else:
            _refuse(obj, "an item of message.tool_calls with a function, or an output item of type function_call")
        return cls(
            tool=tool_name(_name(function, obj), names),
            input=_arguments(_member(function, "arguments")),
            reference=reference,
            occurrence=occurrence,
            connection=connection,
            run=run,
            checkpoint=checkpoint,
            step=_stated(_member(response, "id")),
            call_id=_stated(call_id),
            model=_stated(_member(response, "model")),
            context=context,
        )

    @classmethod
    def from_anthropic(
        cls,
        obj: object,
        *,
        run: str | Unset | None = UNSET,
        reference: str | Unset | None = UNSET,
        occurrence: int | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        context: Mapping[str, Any] | Unset | None = UNSET,
        names: Mapping[str, str] | None = None,
        response: object = None,
    ) -> ToolCall:
        """A tool call of Anthropic's messages API.

        Args:
            obj: a content block `{type: "tool_use", id, name, input}`, as an object of their SDK or as a dict.
            run, reference, occurrence, connection, checkpoint, context: as the attributes of that name.
            names: what the model calls each tool, to its name here; names that are not in it follow `tool_name`.
            response: the message that `obj` stands in; its `model` and `id` become `model` and `step`, and a call that was cut
                off (`max_tokens`, `model_context_window_exceeded`, `refusal`) is noticed.

        Returns:
            The call; `call_id` is the block's id.

        Raises:
            MalformedArgumentsError: the input is not a JSON object that can be carried exactly, or was cut off.
            NotAToolCallError: `obj` is something else, such as a tool that Anthropic runs itself.
        """
        if _member(obj, "type") != "tool_use":
            _refuse(obj, "a content block of type tool_use")
        call_id, blocks = _member(obj, "id"), _member(response, "content")
        last = blocks[-1] if isinstance(blocks, (list, tuple)) and blocks else None
        reason = _member(response, "stop_reason")
        if reason in _CUT_OFF and last is not None and _member(last, "id") == call_id:
            raise malformed(_ARGUMENTS, f"the whole arguments; the answer was cut off ({reason})")
        return cls(
            tool=tool_name(_name(obj, obj), names),
            input=_arguments(_member(obj, "input")),
            reference=reference,
            occurrence=occurrence,
            connection=connection,
            run=run,
            checkpoint=checkpoint,
            step=_stated(_member(response, "id")),
            call_id=_stated(call_id),
            model=_stated(_member(response, "model")),
            context=context,
        )

    @classmethod
    def from_langchain(
        cls,
        obj: object,
        *,
        run: str | Unset | None = UNSET,
        reference: str | Unset | None = UNSET,
        occurrence: int | Unset | None = UNSET,
        connection: str | Unset | None = UNSET,
        checkpoint: str | Unset | None = UNSET,
        context: Mapping[str, Any] | Unset | None = UNSET,
        names: Mapping[str, str] | None = None,
        response: object = None,
    ) -> ToolCall:
        """A tool call of LangChain.

        Args:
            obj: an item of `AIMessage.tool_calls` (`{name, args, id, type: "tool_call"}`). An item of `invalid_tool_calls` is
                read too: its arguments, a text, are refused by the rules here, or accepted where LangChain could not.
            run, reference, occurrence, connection, checkpoint, context: as the attributes of that name.
            names: what the model calls each tool, to its name here; names that are not in it follow `tool_name`.
            response: the AIMessage that `obj` stands in; its id becomes `step`, the model in its `response_metadata` `model`.
                Give it for a message that was streamed: LangChain completes arguments that are cut off by guessing, and what
                the model really wrote is only in the message.

        Returns:
            The call; `call_id` is the item's id.

        Raises:
            MalformedArgumentsError: the arguments are not a JSON object that can be carried exactly.
            NotAToolCallError: `obj` is something else, such as a chunk of a stream; or it has no id by which to find what the
                model wrote of it among several.
        """
        if _member(obj, "type") not in (None, "tool_call", "invalid_tool_call") or _member(obj, "function") is not None:
            _refuse(obj, "an item of AIMessage.tool_calls")
        metadata, arguments = _member(response, "response_metadata"), _member(obj, "args")
        chunks = [chunk for chunk in _member(response, "tool_call_chunks") or () if _member(chunk, "id") == _member(obj, "id")]
        if len(chunks) > 1:
            raise NotAToolCallError("Expected tool calls with an id each: several of this message have the same one, or none.")
        if chunks:
            arguments = _member(chunks[0], "args")
        return cls(
            tool=tool_name(_name(obj, obj), names),
            input=_arguments(arguments),
            reference=reference,
            occurrence=occurrence,
            connection=connection,
            run=run,
            checkpoint=checkpoint,
            step=_stated(_member(response, "id")),
            call_id=_stated(_member(obj, "id")),
            model=_stated(_member(metadata, "model_name") or _member(metadata, "model")),
            context=context,
        )

    def stated(self) -> dict[str, Any]:
        """The fields that state something, by name.

        Returns:
            `tool`, `input` and every other field that is not `UNSET`; None among them is a value.
        """
        values = {known.name: getattr(self, known.name) for known in fields(self)}
        return {name: value for name, value in values.items() if value is not UNSET}


def tool_name(name: str, names: Mapping[str, str] | None = None) -> str:
    """The tool that a model's name of it means.

    Models may not use dots, so a tool is offered to them as `model_name` writes it. A name with a dot is taken as it is.

    Args:
        name: as the model wrote it.
        names: what the model calls each tool, to its name here.

    Returns:
        `names[name]`; else the name with `_` read as `.` and `__` as `_`. Whether there is such a tool the gateway decides.
    """
    if names is not None and name in names:
        return names[name]
    if "." in name:
        return name
    return ".".join(part.replace("\x00", "_") for part in name.replace("__", "\x00").split("_"))


def model_name(tool: str) -> str:
    """The name under which a tool can be offered to a model: letters, digits, `_` and `-`.

    Args:
        tool: such as `stripe.refund.create`.

    Returns:
        `stripe_refund_create`; an underscore of the tool's own is doubled. `tool_name` reads it back.
    """
    return tool.replace("_", "__").replace(".", "_")


def _member(obj: object, name: str) -> Any:
    """A member of a dict or an attribute of an object; None where there is none."""
    if isinstance(obj, Mapping):
        return obj.get(name)
    return getattr(obj, name, None)


def _name(function: object, obj: object) -> str:
    name = _member(function, "name")
    if not isinstance(name, str) or not name:
        _refuse(obj, "a tool call with the name of its tool")
    return name


def _arguments(arguments: object) -> dict[str, Any]:
    """The arguments as a dict, whether they were given as JSON text or as values."""
    if arguments is None:
        raise malformed(_ARGUMENTS, "an object")
    read = strict_json.read(arguments, _ARGUMENTS) if isinstance(arguments, str) else strict_json.carried(arguments, _ARGUMENTS)
    if not isinstance(read, dict):
        raise malformed(_ARGUMENTS, "an object")
    return read


def _stated(value: object) -> str | Unset:
    return value if isinstance(value, str) and value else UNSET


def _refuse(obj: object, expected: str) -> NoReturn:
    kind = _member(obj, "type")
    found = f"{type(obj).__name__} of type {kind!r}" if isinstance(kind, str) else type(obj).__name__
    raise NotAToolCallError(f"Expected {expected}; got {found[:200]}.")
