"""Reading a tool call: exactly the members of the interface page, and the path of whatever else there is."""

from typing import Any

import pytest

from outbox_domain.errors import OutboxError
from outbox_domain.tool_call import ToolCall

WHOLE = {
    "tool": "stripe.refund.create",
    "input": {"payment_intent": "pi_3Nx", "amount": 1200},
    "reference": "case-8841",
    "occurrence": 2,
    "connection": "stripe-eu",
    "run": "thread-77",
    "checkpoint": "c3",
    "step": "7",
    "call_id": "call_9f",
    "model": "vendor/model",
    "context": {"customer": "A. Berg"},
}
SMALLEST = {"tool": "t.x", "input": {}}


def refused(document: object, headers: dict[str, str] | None = None) -> OutboxError:
    """The refusal of a document."""
    with pytest.raises(OutboxError) as caught:
        ToolCall.read(document, headers or {})
    return caught.value


def test_the_example_of_the_interface_page_is_read() -> None:
    """Every member arrives."""
    call = ToolCall.read(WHOLE, {})
    assert {name: getattr(call, name) for name in WHOLE} == WHOLE


def test_only_tool_and_input_are_required() -> None:
    """The rest is absent, and the occurrence is the first; null counts as absent."""
    call = ToolCall.read(SMALLEST, {})
    assert call.occurrence == 1
    assert [call.reference, call.connection, call.run, call.checkpoint, call.step, call.call_id, call.model] == [None] * 7
    assert call.context is None
    assert ToolCall.read({**dict.fromkeys(WHOLE), **SMALLEST}, {}) == call


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (None, "$"),
        ([], "$"),
        ("text", "$"),
        ({}, "$.tool"),
        ({"tool": "t.x"}, "$.input"),
        ({**SMALLEST, "tool": None}, "$.tool"),
        ({**SMALLEST, "tool": ""}, "$.tool"),
        ({**SMALLEST, "tool": 7}, "$.tool"),
        ({**SMALLEST, "tool": "t" * 201}, "$.tool"),
        ({**SMALLEST, "input": None}, "$.input"),
        ({**SMALLEST, "input": []}, "$.input"),
        ({**SMALLEST, "input": "{}"}, "$.input"),
        ({**SMALLEST, "reference": ""}, "$.reference"),
        ({**SMALLEST, "reference": 8841}, "$.reference"),
        ({**SMALLEST, "reference": "r" * 201}, "$.reference"),
        ({**SMALLEST, "reference": "a\nb"}, "$.reference"),
        ({**SMALLEST, "reference": "case-1 "}, "$.reference"),
        ({**SMALLEST, "reference": "\u00a0case-1"}, "$.reference"),
        ({**SMALLEST, "connection": " stripe"}, "$.connection"),
        ({**SMALLEST, "run": "a\x00"}, "$.run"),
        ({**SMALLEST, "step": 7}, "$.step"),
        ({**SMALLEST, "call_id": ["x"]}, "$.call_id"),
        ({**SMALLEST, "model": "\x7f"}, "$.model"),
        ({**SMALLEST, "checkpoint": "\u2028"}, "$.checkpoint"),
        ({**SMALLEST, "connection": {}}, "$.connection"),
        ({**SMALLEST, "occurrence": 0}, "$.occurrence"),
        ({**SMALLEST, "occurrence": -1}, "$.occurrence"),
        ({**SMALLEST, "occurrence": True}, "$.occurrence"),
        ({**SMALLEST, "occurrence": 1.5}, "$.occurrence"),
        ({**SMALLEST, "occurrence": "1"}, "$.occurrence"),
        ({**SMALLEST, "occurrence": 2**31}, "$.occurrence"),
        ({**SMALLEST, "context": "x"}, "$.context"),
        ({**SMALLEST, "idempotency_key": "x"}, "$.idempotency_key"),
        ({**SMALLEST, "odd name": 1}, '$["odd name"]'),
    ],
)
def test_anything_else_is_refused_with_its_path(document: object, path: str) -> None:
    """Unknown members, wrong types, empty and overlong names, control characters."""
    error = refused(document)
    assert (error.code, error.path) == ("invalid-input", path)
    assert error.message.startswith(f"NOT SENT. {path}: expected ")


@pytest.mark.parametrize(("member", "header"), [("run", "Outbox-Run"), ("checkpoint", "Outbox-Checkpoint")])
def test_run_and_checkpoint_may_come_as_headers(member: str, header: str) -> None:
    """Either way or both alike; both and different is refused, because nobody knows which was meant."""
    for spelled in (header, header.lower()):
        assert getattr(ToolCall.read(SMALLEST, {spelled: "x-1"}), member) == "x-1"
    both: dict[str, Any] = {**SMALLEST, member: "x-1"}
    assert getattr(ToolCall.read(both, {header: "x-1"}), member) == "x-1"
    assert refused(both, {header: "x-2"}).path == f"$.{member}"
    for bad in ("", "x" * 201, "caf\xe9", "a\tb"):
        assert refused(SMALLEST, {header: bad}).path == f"$.{member}"


@pytest.mark.parametrize("member", ["reference", "connection", "run", "checkpoint", "step", "call_id", "model"])
def test_names_that_look_alike_are_one_name(member: str) -> None:
    """A composed letter, and a letter with an accent, are the same name: they must not name two refunds."""
    composed, decomposed = (getattr(ToolCall.read({**SMALLEST, member: name}, {}), member) for name in ("caf\xe9", "cafe\u0301"))
    assert composed == decomposed == "caf\xe9"


def test_a_tool_call_never_changes() -> None:
    """What was asked stays what was asked."""
    with pytest.raises(AttributeError):
        ToolCall.read(SMALLEST, {}).tool = "other"  # type: ignore[misc]
