"""The words of agent-ledger 0.2.1 in ours: keys, names, options, and what its users could get wrong."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from agent_outbox.compat.agent_ledger import (
    OURS,
    THEIRS,
    ConcurrencyOptions,
    EffectLedger,
    EffectLedgerOptions,
    EffectLedgerValidationError,
    EffectStatus,
    EffectStoreError,
    MemoryStore,
    OutboxStore,
    Profile,
    ResourceDescriptor,
    RunOptions,
    StaleOptions,
    ToolCall,
    UpsertEffectInput,
    compute_idem_key,
    use_profile,
    validate_args,
)
from agent_outbox.compat.agent_ledger import translation as words
from agent_outbox.compat.agent_ledger.options import DEFAULT_CONCURRENCY, merge_options

CHARGE: dict[str, Any] = {"workflow_id": "order-123", "tool": "stripe.charge"}

KEYS: list[tuple[dict[str, Any], str]] = [
    (
        {**CHARGE, "args": {"amount": 1000, "currency": "usd"}},
        "62e4e85778aaf14f501a4737980621d707a0316b814e4b2094bed1aaaf2107cb",
    ),
    (
        {**CHARGE, "args": {"currency": "usd", "amount": 1000.0}},
        "62e4e85778aaf14f501a4737980621d707a0316b814e4b2094bed1aaaf2107cb",
    ),
    (
        {"workflow_id": "工作流-123", "tool": "工具.发送消息", "args": {"message": "Hello 世界", "n": 1.5e-7}},
        "9dac857067eca2af9df5bae612e9fc01b23aa6133cfa73a3c7c9f6d7a17dbfec",
    ),
    (
        {
            "workflow_id": "t",
            "tool": "github.create_issue",
            "args": {"owner": "acme", "title": "Bug", "body": "x"},
            "idempotency_keys": ["title", "owner"],
        },
        "04b0c0729da0e6aedf48b1da9b491483178e67e7cadbec35f4af486af88c59dd",
    ),
    (
        {
            "workflow_id": "w",
            "tool": "slack.post",
            "args": {"text": "hi"},
            "resource": ResourceDescriptor(namespace="slack", type="channel", id={"name": "#general", "team": 1}),
        },
        "e8d9295f0103e29ded3ee1873fe6f3e1a67857c2b724e1e515eaf0b192adb8a1",
    ),
    ({"workflow_id": "w|t", "tool": "x", "args": {}}, "546e987cf6593ce0001008a8452135f44781c0e3099a37a079324d58205ae786"),
]
"""Calls, and the keys that agent-ledger 0.2.1 itself computed of them."""


def wanted(**changes: Any) -> UpsertEffectInput:
    """An effect that somebody asks for."""
    values: dict[str, Any] = {
        "idem_key": "k" * 64,
        "workflow_id": "order-123",
        "call_id": "call-1",
        "tool": "stripe.charge",
        "status": EffectStatus.PROCESSING,
        "args_canonical": '{"amount":1000}',
        "resource_id_canonical": "stripe.charge",
    }
    return UpsertEffectInput(**values | changes)


@pytest.mark.parametrize(("call", "key"), KEYS)
def test_a_key_is_the_one_that_agent_ledger_computes(call: dict[str, Any], key: str) -> None:
    """What agent-ledger recorded is recognised: our key of a call is, digit by digit, its key."""
    assert compute_idem_key(ToolCall(**call)) == key


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60, {1, 2}, b"x", lambda: None, "\ud800"])
def test_arguments_that_json_does_not_carry_are_refused(value: object) -> None:
    """A value whose canonical form would not say what it is never becomes part of a key."""
    with pytest.raises(EffectLedgerValidationError, match="JSON-serializable") as refused:
        validate_args({"value": value})
    assert refused.value.field == "args"


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ("stripe.charge", "agent_ledger.stripe.charge"),
        ("github.createIssue", "agent_ledger.github.createissue"),
        ("send email", "agent_ledger.send_email"),
        ("3d.print", "agent_ledger.t3d.print"),
        ("工具.发送消息", "agent_ledger.tool"),
        ("..", "agent_ledger.tool"),
        ("x" * 300, "agent_ledger." + "x" * 87),
    ],
)
def test_every_tool_has_a_name_that_the_gateway_takes(tool: str, name: str) -> None:
    """Tools keep their names where they can, behind one prefix that no tool of the gateway has."""
    assert words.tool_name(tool) == name


def test_a_workflow_that_is_no_name_becomes_its_digest() -> None:
    """Ids of workflows may be any text; a run's name may not."""
    assert words.run_name("tenant-1:order-7") == "tenant-1:order-7"
    assert words.run_name("a\nb").startswith("workflow-")
    assert words.run_name("x" * 201) != words.run_name("x" * 202)


def test_namespaces_tell_the_same_key_apart() -> None:
    """Two ledgers that had tables of their own do not answer for one another."""
    assert words.operation_key("billing", "k") == "agent-ledger:billing:k"
    assert words.operation_key("support", "k") != words.operation_key("billing", "k")
    assert words.operation_key("billing", "a:b%") == "agent-ledger:billing:a%3Ab%25"
    with pytest.raises(EffectLedgerValidationError, match="namespace"):
        words.operation_key("a:b", "k")


def test_a_call_asks_for_the_effect_with_all_that_identifies_it() -> None:
    """The key is the reference, the workflow the run, the arguments the input; nothing of the client's settings comes in between."""
    profile = replace(OURS, owner="payments", namespace="billing")
    assert words.call_of(wanted(), profile).stated() == {
        "tool": "agent_ledger.stripe.charge",
        "input": {"amount": 1000},
        "reference": "k" * 64,
        "run": "order-123",
        "step": "agent-ledger:billing",
        "call_id": "call-1",
        **dict.fromkeys(("occurrence", "connection", "checkpoint", "model", "context")),
    }
    assert words.contract(profile, "C") == {
        "key": "agent-ledger:billing:{reference}",
        "scope": "environment",
        "class": "C",
        "owner": "payments",
    }


def test_a_key_that_is_no_name_is_refused_before_anything_is_sent() -> None:
    """A store's caller may make up keys; what the gateway could not tell apart is refused here."""
    with pytest.raises(EffectLedgerValidationError) as refused:
        words.call_of(wanted(idem_key=" x"), OURS)
    assert refused.value.field == "idem_key"


@pytest.mark.parametrize("value", [None, 0, "done", [1], {"value": 1}, {"value": 1, "effect": 2}])
def test_any_result_comes_back_as_it_was_stored(value: Any) -> None:
    """None, text and lists are results too, and a result that looks like our own form is not mistaken for it."""
    assert words.value_of(words.stored_result(value, wanted())) == value


def test_options_are_merged_field_by_field() -> None:
    """What a run does not state is the ledger's, what that does not state is the default; None that is stated is a value."""
    ledger = RunOptions(concurrency=ConcurrencyOptions(effect_timeout_s=7, approval_timeout_s=60), stale=StaleOptions(after_ms=5))
    merged = merge_options(ledger, RunOptions(concurrency=ConcurrencyOptions(approval_timeout_s=None)))
    assert (merged.concurrency.effect_timeout_s, merged.concurrency.approval_timeout_s) == (7, None)
    assert merged.concurrency.max_interval_s == DEFAULT_CONCURRENCY.max_interval_s
    assert merged.stale.after_ms == 5


def test_a_store_of_somebody_else_is_refused() -> None:
    """Effects that another store holds would be done again, so it is not ignored in silence."""

    class Redis:
        async def upsert(self) -> None: ...

    with pytest.raises(EffectLedgerValidationError, match="done again"):
        EffectLedger(EffectLedgerOptions(store=Redis()))  # type: ignore[arg-type]


def test_stores_are_made_without_a_gateway_and_forget_nothing() -> None:
    """A program that makes its store at import needs no address yet; clearing one does not undo what happened."""
    store = MemoryStore(max_size=10, ttl_seconds=5)
    assert store.size == 0
    with pytest.raises(EffectStoreError, match="forgets nothing"):
        store.clear()


def test_the_gateways_rules_hold_unless_others_are_chosen() -> None:
    """Nothing is relaxed by default; `use_profile` is for stores that are made afterwards and say nothing themselves."""
    assert OutboxStore().profile == OURS == Profile()
    assert (OURS.key_conflict, OURS.exceptions, OURS.failures, OURS.is_retry_safe("any")) == (
        "refuse",
        "classified",
        "free",
        False,
    )
    use_profile(THEIRS)
    try:
        assert MemoryStore().profile == THEIRS
        assert MemoryStore(profile=OURS).profile == OURS
        assert THEIRS.is_retry_safe("any")
    finally:
        use_profile(OURS)
    assert Profile(retry_safe={"a"}).is_retry_safe("a")
    assert not Profile(retry_safe={"a"}).is_retry_safe("b")


def test_an_effect_of_this_process_tells_its_handler_the_providers_key() -> None:
    """`provider_key` and `recovering` are what a handler needs to repeat a dead run's request and not another."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    effect = words.fresh_effect(wanted(), "id-1", now, "pk", True)
    assert (effect.provider_key, effect.recovering, effect.status) == ("pk", True, EffectStatus.PROCESSING)
    assert effect.args_canonical == '{"amount":1000}'
