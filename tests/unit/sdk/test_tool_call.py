"""A model's tool call in the shapes that OpenAI, Anthropic and LangChain publish."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from anthropic.types import Message
from openai.types.chat import ChatCompletion
from openai.types.responses import ResponseFunctionToolCall

from agent_outbox import UNSET, ToolCall, model_name, tool_name
from agent_outbox.errors import MalformedArgumentsError, NotAToolCallError

INPUT = {"payment_intent": "pi_3Nx", "amount": 1200}
NAME = "stripe_refund_create"
CHAT = {"id": "call_9f", "type": "function", "function": {"name": NAME, "arguments": json.dumps(INPUT)}}
RESPONSES = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_9f",
    "name": NAME,
    "arguments": json.dumps(INPUT),
    "status": "completed",
}
ANTHROPIC = {"type": "tool_use", "id": "call_9f", "name": NAME, "input": INPUT}
LANGCHAIN = {"name": NAME, "args": INPUT, "id": "call_9f", "type": "tool_call"}

SHAPES = [
    pytest.param(ToolCall.from_openai, CHAT, id="openai-chat"),
    pytest.param(ToolCall.from_openai, RESPONSES, id="openai-responses"),
    pytest.param(ToolCall.from_anthropic, ANTHROPIC, id="anthropic"),
    pytest.param(ToolCall.from_langchain, LANGCHAIN, id="langchain"),
]


def as_object(value: Any) -> Any:
    """A dict as an object with attributes, as the providers' SDKs give it; arguments stay a dict."""
    if not isinstance(value, dict):
        return value
    inner = {name: member if name in ("input", "args") else as_object(member) for name, member in value.items()}
    return SimpleNamespace(**inner)


@pytest.mark.parametrize("made_of", [dict, as_object], ids=["dict", "object"])
@pytest.mark.parametrize(("read", "shape"), SHAPES)
def test_one_call_in_every_shape_is_one_call(read: Any, shape: dict[str, Any], made_of: Any) -> None:
    """The same tool, input and call id come of each provider's shape, as a dict and as an SDK's object."""
    call = read(made_of(shape), run="thread-77", reference="case-8841")
    assert call == ToolCall(tool="stripe.refund.create", input=INPUT, call_id="call_9f", run="thread-77", reference="case-8841")


@pytest.mark.parametrize(("read", "shape"), SHAPES)
def test_what_was_not_said_is_left_to_the_settings(read: Any, shape: dict[str, Any]) -> None:
    """Without a run the field is unset; with None it is a value: no run."""
    assert read(shape).run is UNSET
    assert "run" not in read(shape).stated()
    assert read(shape, run=None).stated()["run"] is None


@pytest.mark.parametrize(
    ("read", "shape", "response", "step"),
    [
        (ToolCall.from_openai, CHAT, {"id": "chatcmpl-1", "model": "gpt-x"}, "chatcmpl-1"),
        (ToolCall.from_openai, RESPONSES, {"id": "resp_1", "model": "gpt-x"}, "resp_1"),
        (ToolCall.from_anthropic, ANTHROPIC, {"id": "msg_1", "model": "gpt-x", "stop_reason": "tool_use"}, "msg_1"),
        (ToolCall.from_langchain, LANGCHAIN, {"id": "run-1", "response_metadata": {"model_name": "gpt-x"}}, "run-1"),
        (ToolCall.from_langchain, LANGCHAIN, {"id": "run-1", "response_metadata": {"model": "gpt-x"}}, "run-1"),
    ],
)
def test_step_and_model_come_from_the_response(read: Any, shape: Any, response: Any, step: str) -> None:
    """The response that a call stands in names the model and the step."""
    for made in (response, SimpleNamespace(**response)):
        call = read(shape, response=made)
        assert (call.step, call.model) == (step, "gpt-x")


@pytest.mark.parametrize(("read", "shape"), SHAPES)
@pytest.mark.parametrize("name", ["reference", "occurrence", "run", "connection", "checkpoint", "context"])
def test_a_model_cannot_say_what_is_the_callers_to_say(read: Any, shape: dict[str, Any], name: str) -> None:
    """`reference`, `occurrence`, `run` and their like in the arguments stay arguments, for the schema to refuse."""
    arguments = {**INPUT, name: "model's"}
    changed = json.loads(json.dumps(shape))
    if "function" in changed:
        changed["function"]["arguments"] = json.dumps(arguments)
    else:
        changed[next(key for key in ("arguments", "input", "args") if key in changed)] = (
            json.dumps(arguments) if "arguments" in changed else arguments
        )
    changed[name] = "model's"
    call = read(changed)
    assert getattr(call, name) is UNSET
    assert call.input[name] == "model's"


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ('{"amount": NaN}', "$.input.amount"),
        ('{"amount": 1, "amount": 100}', "$.input.amount"),
        ('{"a": {"b": [Infinity]}}', "$.input.a.b[0]"),
        ('{"amount": 9007199254740993}', "$.input.amount"),
        ('{"amount": 1e400}', "$.input.amount"),
        ('{"a": "\\ud800"}', "$.input.a"),
        ('{"amount": 12', "$.input"),
        ("", "$.input"),
        ("[1]", "$.input"),
        ("null", "$.input"),
        ('"{}"', "$.input"),
    ],
)
def test_malformed_arguments_are_refused_before_anything_is_sent(arguments: str, path: str) -> None:
    """Arguments that are no exact JSON object are a typed error with the path, whichever API wrote them."""
    shapes: list[tuple[Any, dict[str, Any]]] = [
        (ToolCall.from_openai, {**CHAT, "function": {"name": NAME, "arguments": arguments}}),
        (ToolCall.from_openai, {**RESPONSES, "arguments": arguments}),
        (ToolCall.from_langchain, {"type": "invalid_tool_call", "name": NAME, "args": arguments, "id": "1", "error": "x"}),
    ]
    for read, shape in shapes:
        with pytest.raises(MalformedArgumentsError) as caught:
            read(shape)
        assert caught.value.path == path
        assert caught.value.as_tool_message().startswith(f"NOT SENT. {path}: expected ")


@pytest.mark.parametrize(
    ("read", "shape"),
    [
        (ToolCall.from_anthropic, {**ANTHROPIC, "input": {"amount": float("nan")}}),
        (ToolCall.from_langchain, {**LANGCHAIN, "args": {"amount": float("inf")}}),
        (ToolCall.from_anthropic, {**ANTHROPIC, "input": None}),
        (ToolCall.from_openai, {**RESPONSES, "status": "incomplete"}),
        (ToolCall.from_openai, {**RESPONSES, "status": "in_progress"}),
    ],
)
def test_values_that_are_not_whole_or_exact_are_refused(read: Any, shape: Any) -> None:
    """Parsed arguments are held to the same rules, and a call that the provider says is incomplete is no call."""
    with pytest.raises(MalformedArgumentsError):
        read(shape)


@pytest.mark.parametrize("reason", ["max_tokens", "model_context_window_exceeded", "refusal"])
def test_a_call_that_was_cut_off_is_refused(reason: str) -> None:
    """The last block of an Anthropic message that was cut off is not whole, whatever its input looks like."""
    message = {"id": "msg_1", "model": "m", "stop_reason": reason, "content": [{**ANTHROPIC, "id": "first"}, ANTHROPIC]}
    assert ToolCall.from_anthropic({**ANTHROPIC, "id": "first"}, response=message).tool == "stripe.refund.create"
    with pytest.raises(MalformedArgumentsError, match=reason):
        ToolCall.from_anthropic(ANTHROPIC, response=message)


def test_objects_of_the_providers_libraries_are_read() -> None:
    """What the OpenAI and Anthropic SDKs make of an answer, as their objects and as their dicts, is the same call."""
    completion = ChatCompletion.model_validate(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-x",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "tool_calls",
                    "logprobs": None,
                    "message": {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CHAT]},
                }
            ],
        }
    )
    message = Message.model_validate(
        {
            "id": "chatcmpl-1",
            "type": "message",
            "role": "assistant",
            "model": "gpt-x",
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
            "content": [{"type": "text", "text": "I refund it."}, ANTHROPIC],
        }
    )
    item = ResponseFunctionToolCall.model_validate(RESPONSES)
    [called] = completion.choices[0].message.tool_calls or []
    block, response = message.content[1], SimpleNamespace(id="chatcmpl-1", model="gpt-x")
    calls = [
        ToolCall.from_openai(called, response=completion),
        ToolCall.from_openai(called.model_dump(), response=completion.model_dump()),
        ToolCall.from_openai(item, response=response),
        ToolCall.from_openai(item.model_dump(), response=response),
        ToolCall.from_anthropic(block, response=message),
        ToolCall.from_anthropic(block.model_dump(), response=message.model_dump()),
    ]
    expected = ToolCall(tool="stripe.refund.create", input=INPUT, call_id="call_9f", step="chatcmpl-1", model="gpt-x")
    assert calls == [expected] * 6
    with pytest.raises(NotAToolCallError):
        ToolCall.from_anthropic(message.content[0])


def test_streamed_arguments_are_read_as_they_were_written() -> None:
    """LangChain guesses the end of arguments that were cut off (1200 becomes 12); with the message, they are refused."""
    guessed = {"name": NAME, "args": {"payment_intent": "pi_1", "amount": 12}, "id": "1", "type": "tool_call"}
    chunk = {"name": NAME, "args": '{"payment_intent": "pi_1", "amount": 12', "id": "1", "index": 0, "type": "tool_call_chunk"}
    message = SimpleNamespace(id="run-1", response_metadata={}, tool_calls=[guessed], tool_call_chunks=[chunk])
    with pytest.raises(MalformedArgumentsError):
        ToolCall.from_langchain(guessed, response=message)
    chunk["args"] = '{"payment_intent": "pi_1", "amount": 1200}'
    assert ToolCall.from_langchain(guessed, response=message).input["amount"] == 1200


def test_streamed_calls_without_ids_are_not_mixed_up() -> None:
    """Where a provider gives no ids, one streamed call is read as written; of several nobody can say which was meant, so none is."""
    calls = [{"name": NAME, "args": {"amount": amount}, "id": None, "type": "tool_call"} for amount in (1, 2)]
    chunks = [{"name": NAME, "args": json.dumps(call["args"]), "id": None, "index": 0} for call in calls]
    message = SimpleNamespace(id="run-1", response_metadata={}, tool_calls=calls[:1], tool_call_chunks=chunks[:1])
    assert ToolCall.from_langchain(calls[0], response=message).input == {"amount": 1}
    message.tool_calls, message.tool_call_chunks = calls, chunks
    with pytest.raises(NotAToolCallError, match="id"):
        ToolCall.from_langchain(calls[0], response=message)


@pytest.mark.parametrize(
    ("read", "shape"),
    [
        (ToolCall.from_openai, {"id": "chatcmpl-1", "choices": [{"message": {"tool_calls": [CHAT]}}]}),
        (ToolCall.from_openai, {"id": "1", "type": "custom", "custom": {"name": NAME, "input": "free text"}}),
        (ToolCall.from_openai, {"type": "mcp_call", "name": NAME, "arguments": "{}"}),
        (ToolCall.from_openai, {**CHAT, "function": {"arguments": "{}"}}),
        (ToolCall.from_openai, ANTHROPIC),
        (ToolCall.from_openai, None),
        (ToolCall.from_anthropic, {**ANTHROPIC, "type": "server_tool_use"}),
        (ToolCall.from_anthropic, {**ANTHROPIC, "name": None}),
        (ToolCall.from_anthropic, CHAT),
        (ToolCall.from_langchain, {**LANGCHAIN, "type": "tool_call_chunk", "args": "{"}),
        (ToolCall.from_langchain, CHAT),
        (ToolCall.from_langchain, "text"),
    ],
)
def test_what_is_no_tool_call_is_refused(read: Any, shape: Any) -> None:
    """A whole response, a custom tool's call, a stream's chunk or another provider's shape is a typed error, also a TypeError."""
    with pytest.raises(NotAToolCallError) as caught:
        read(shape)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    "tool",
    ["stripe.refund.create", "github.pull_request.create", "a.b", "a_.b", "a__b.c-d.e_f_", "hubspot.crm.v3_objects.create"],
)
def test_names_for_models_are_read_back(tool: str) -> None:
    """`model_name` writes only what models may use, and `tool_name` reads it back, whatever underscores a tool has."""
    name = model_name(tool)
    assert name.replace("_", "").replace("-", "").isalnum()
    assert tool_name(name) == tool


def test_a_mapping_comes_before_the_rule() -> None:
    """Names of the caller's mapping win; other names follow the rule; a name with dots is taken as it is."""
    names = {"refund": "stripe.refund.create"}
    assert tool_name("refund", names) == "stripe.refund.create"
    assert tool_name("sandbox_echo", names) == "sandbox.echo"
    assert tool_name("sandbox.echo", names) == "sandbox.echo"
    assert ToolCall.from_anthropic({**ANTHROPIC, "name": "refund"}, names=names).tool == "stripe.refund.create"
