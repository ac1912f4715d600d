"""The client against the running product: every result, the model's formats, settings, traces, and processes that are killed.

One `outbox up` with two API processes and two workers serves the module; each test uses names of its own and asks the ledger's
invariants when it is over.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.sdk.trace import TracerProvider
from tests.support.outbox_up import ECHO, MAIL, PATHS, REFUND, TICKET, OutboxUp, mail, reference, refund, running
from tests.support.postgres import with_database
from tests.support.sdk_clients import KINDS, Client

from agent_outbox import AsyncOutbox, Done, InDoubt, Outbox, Refused, Resolution, ToolCall, Waiting, errors
from agent_outbox.receipt import Money


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutboxUp]:
    """One `outbox up` for the tests of this module."""
    with running(tmp_path_factory.mktemp("up"), "--api-workers", "2", "--workers", "2") as started:
        yield started


@pytest.fixture
def up(stack: OutboxUp) -> Iterator[OutboxUp]:
    """The stack, asked for its invariants when the test is over."""
    with stack.checked():
        yield stack


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, up: OutboxUp) -> Iterator[Client]:
    """A client of each kind with the agent's key."""
    made = Client(request.param, url=up.url, key=up.ready()["agent_key"])
    yield made
    made.close()


@pytest.fixture
def admin(up: OutboxUp) -> Iterator[Outbox]:
    """A client with the administrator's key."""
    with Outbox(url=up.url, key=up.ready()["admin_key"]) as made:
        yield made


def refunds_of(up: OutboxUp, input: dict[str, object]) -> list[dict[str, Any]]:
    """The refunds that the provider has made of one payment."""
    return [one for one in up.sandbox.effects(PATHS[REFUND]) if one["fields"]["payment_intent"] == input["payment_intent"]]


# Done.


def test_a_refund_is_done_once_and_every_repeat_has_its_receipt(up: OutboxUp, client: Client) -> None:
    """The first call is Done with a typed receipt, the second is told so with the same receipt, the provider made one refund."""
    input, case, run = refund(), reference(), reference()
    first = client.call(tool=REFUND, input=input, reference=case, run=run)
    assert isinstance(first, Done)
    assert bool(first) is True
    [effect] = refunds_of(up, input)
    assert (first.state, first.is_error, first.replayed, first.replay) == ("succeeded", False, False, None)
    assert first.operation_key == f"refund:{input['payment_intent']}:{case}"
    assert (first.guarantee_class, first.owner, first.retry.action) == ("A", "payments", "none")
    assert first.result == {"id": effect["id"], "amount": 1200, "status": "succeeded", "currency": "eur"}
    assert first.run is not None
    assert first.run.name == run
    receipt = first.receipt
    assert (receipt.external_reference, receipt.confidence, receipt.tool) == (effect["id"], "confirmed", REFUND)
    assert receipt.amount == Money(value=1200, currency="EUR")
    assert datetime.now(UTC) - receipt.settled_at < timedelta(minutes=5)
    assert receipt.evidence[0].kind == "answer"
    assert first.as_tool_message() == f"Done. Refund {effect['id']} of 12.00 EUR. Receipt {receipt.id}."
    assert first.expect_done() is first

    again = client.call(ToolCall(tool=REFUND, input=input), reference=case, run=run)
    assert again
    assert (again.replayed, again.receipt, again.receipt.document) == (True, receipt, receipt.document)
    assert again.replay.same_run
    assert again.replay.run == run
    assert again.as_tool_message().startswith("Already done at ")
    assert client.receipt(receipt.id).document == receipt.document
    assert len(refunds_of(up, input)) == 1


def test_a_lost_reply_of_class_a_ends_done(up: OutboxUp, client: Client) -> None:
    """The provider commits and drops its reply: the call is Done, with one effect."""
    input = refund()
    up.sandbox.plan(PATHS[REFUND], "commit-then-drop")
    assert isinstance(client.call(tool=REFUND, input=input, wait=30), Done)
    assert len(refunds_of(up, input)) == 1


def test_fifty_threads_with_one_call_have_one_receipt(up: OutboxUp) -> None:
    """Fifty concurrent calls of one client: one effect, equal receipts, one that was not a replay."""
    input = refund()
    results: list[Any] = []
    with Outbox(url=up.url, key=up.ready()["agent_key"]) as client:
        threads = [
            threading.Thread(target=lambda: results.append(client.call(tool=REFUND, input=input, wait=30))) for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert Counter(type(one) for one in results) == {Done: 50}
    assert len({one.receipt.id for one in results}) == 1
    assert Counter(one.replayed for one in results) == {False: 1, True: 49}
    assert len(refunds_of(up, input)) == 1


# Waiting.


def test_a_slow_effect_is_waiting_and_then_done(up: OutboxUp, client: Client) -> None:
    """`wait=0` comes back at once as Waiting; the reservation is looked at until it is done; the same call joins it."""
    input, case = refund(), reference()
    up.sandbox.plan(PATHS[REFUND], "delay", delay_seconds=1.5)
    result = client.call(tool=REFUND, input=input, reference=case, wait=0)
    assert isinstance(result, Waiting)
    assert not result
    assert result.state in ("reserved", "executing")
    assert result.retry.action == "wait"
    assert result.retry.url == f"/v1/reservations/{result.reservation_id}"
    assert result.as_tool_message().startswith("Not finished. Ask again in ")
    with pytest.raises(errors.NotFinishedError):
        result.expect_done()
    found = client.get(result.reservation_id, wait=20)
    assert found
    assert isinstance(found.answer, Done)
    joined = client.call(tool=REFUND, input=input, reference=case)
    assert (joined.reservation_id, joined.replayed) == (result.reservation_id, True)
    assert len(refunds_of(up, input)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_wait_longer_than_the_gateways_is_kept(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A gateway that lets nobody wait longer than a second is asked as often as it takes, by looking; one call, one effect."""
    with running(tmp_path_factory.mktemp("short"), env={"OUTBOX_WAIT_SECONDS_MAX": "1"}) as short, short.checked():
        client = Client(kind, url=short.url, key=short.ready()["agent_key"])
        input = refund()
        short.sandbox.plan(PATHS[REFUND], "delay", delay_seconds=3)
        result = client.call(tool=REFUND, input=input, wait=30)
        client.close()
        assert isinstance(result, Done)
        assert not result.replayed
        assert result.as_tool_message().startswith("Done. ")
        assert len(refunds_of(short, input)) == 1
        assert short.ledger.value("select count(*) from tool_calls where reservation_id = $1", result.reservation_id) == 1


# Refused.


@pytest.mark.parametrize(
    ("code", "path", "fields"),
    [
        ("invalid-input", "$.input.amount", {"tool": REFUND, "input": refund(amount=0)}),
        ("invalid-input", "$.input.charge", {"tool": REFUND, "input": {**refund(), "charge": "ch_1"}}),
        ("invalid-input", "$.reference", {"tool": REFUND, "input": refund(), "reference": "x" * 201}),
        ("missing-key-field", "$.reference", {"tool": TICKET, "input": {"title": "Door"}}),
        ("run-required", "$.run", {"tool": ECHO, "input": {"a": 1}}),
        ("unknown-tool", "$.tool", {"tool": "stripe.refund.make", "input": {}}),
        ("unknown-connection", "$.connection", {"tool": REFUND, "input": refund(), "connection": "stripe-mars"}),
        ("review-required", None, {"tool": REFUND, "input": refund(), "occurrence": 2}),
        ("too-large", "$", {"tool": ECHO, "input": {"a": "x" * (1 << 20)}, "run": "large"}),
    ],
)
def test_what_the_gateway_refuses_is_refused(up: OutboxUp, client: Client, code: str, path: str | None, fields: Any) -> None:
    """Each refusal before anything is sent is Refused, false, with its code, its path and the text for the model."""
    before = up.ledger.value("select count(*) from reservations")
    result = client.call(**fields)
    assert isinstance(result, Refused), result
    assert (bool(result), result.code, result.path, result.state, result.is_error) == (False, code, path, None, True)
    assert result.as_tool_message().startswith("NOT ")
    assert type(result.error) is errors.ERRORS[code]
    assert up.ledger.value("select count(*) from reservations") == before


def test_other_values_under_one_key_are_a_conflict(client: Client) -> None:
    """The same case with another amount is Refused as a conflict that names the field, not the value."""
    payment, case = f"pi_{uuid4().hex}", reference()
    assert client.call(tool=REFUND, input=refund(payment), reference=case)
    result = client.call(tool=REFUND, input=refund(payment, 1300), reference=case)
    assert isinstance(result, Refused)
    assert (result.code, result.status, result.state) == ("conflict", 422, "succeeded")
    assert result.document["fields"] == ["amount"]
    assert "1300" not in result.as_tool_message()
    with pytest.raises(errors.ConflictError):
        result.expect_done()


def test_a_declined_refund_is_refused_by_the_provider(up: OutboxUp, client: Client) -> None:
    """A decline is Refused with what the provider said beside the text, never in it."""
    up.sandbox.plan(PATHS[REFUND], "reject-402")
    result = client.call(tool=REFUND, input=refund())
    assert isinstance(result, Refused)
    assert (result.code, result.state) == ("provider-refused", "failed")
    assert result.failure is not None
    assert result.failure.provider_status == 402
    assert result.failure.provider_message
    assert result.failure.provider_message not in result.as_tool_message()
    looked_at = client.get(result.reservation_id).answer
    assert isinstance(looked_at, Refused)
    assert (looked_at.code, looked_at.failure) == ("provider-refused", result.failure)


# InDoubt.


def test_a_lost_reply_of_class_c_is_in_doubt(up: OutboxUp, client: Client) -> None:
    """A mail whose reply is lost is InDoubt, stays so, and is never sent again."""
    case, before = reference(), len(up.sandbox.effects(PATHS[MAIL]))
    up.sandbox.plan(PATHS[MAIL], "commit-then-drop")
    result = client.call(tool=MAIL, input=mail(), reference=case)
    assert isinstance(result, InDoubt)
    assert not result
    assert (result.code, result.status, result.state, result.replayed) == ("in-doubt", 409, "in_doubt", False)
    assert result.retry.action == "ask-human"
    assert result.doubt is not None
    assert (result.doubt.recovery, result.doubt.next_check) == ("person", None)
    assert result.as_tool_message().startswith("UNKNOWN. ")
    with pytest.raises(errors.InDoubtError):
        result.expect_done()
    again = client.call(tool=MAIL, input=mail(), reference=case)
    assert isinstance(again, InDoubt)
    assert (again.reservation_id, again.replayed) == (result.reservation_id, True)
    looked_at = client.get(result.reservation_id).answer
    assert isinstance(looked_at, InDoubt)
    assert looked_at.retry.action == "ask-human"
    assert len(up.sandbox.effects(PATHS[MAIL])) == before + 1


# A model's tool calls.


def test_one_business_call_in_every_format_has_one_key(up: OutboxUp, client: Client) -> None:
    """The same refund as OpenAI chat, OpenAI responses, Anthropic and LangChain write it: one operation key, one effect."""
    input, case, run = refund(), reference(), reference()
    text = f'{{"amount": 1200.0, "payment_intent": "{input["payment_intent"]}"}}'
    name = "stripe_refund_create"
    calls = [
        ToolCall.from_openai(
            {"id": "call_chat", "type": "function", "function": {"name": name, "arguments": text}}, run=run, reference=case
        ),
        ToolCall.from_openai(
            {"type": "function_call", "id": "fc_1", "call_id": "call_responses", "name": name, "arguments": text},
            run=run,
            reference=case,
            response={"id": "resp_1", "model": "vendor/model-x"},
        ),
        ToolCall.from_anthropic({"type": "tool_use", "id": "toolu_1", "name": name, "input": input}, run=run, reference=case),
        ToolCall.from_langchain(
            {"name": "refund", "args": input, "id": "lc_1"}, run=run, reference=case, names={"refund": REFUND}
        ),
    ]
    results = [client.call(call) for call in calls]
    assert Counter(type(result) for result in results) == {Done: 4}
    assert {result.operation_key for result in results} == {f"refund:{input['payment_intent']}:{case}"}
    assert {result.receipt.id for result in results} == {results[0].receipt.id}
    assert [result.replayed for result in results] == [False, True, True, True]
    assert len(refunds_of(up, input)) == 1

    def recorded() -> Counter[str]:
        return Counter(met["call_id"] for met in client.get(results[0].reservation_id).requesters)

    up.wait(lambda: recorded() == Counter(["call_chat", "call_responses", "toolu_1", "lc_1"]), "every call to be recorded once")
    [second] = [met for met in client.get(results[0].reservation_id).requesters if met["call_id"] == "call_responses"]
    assert (second["model"], second["step"]) == ("vendor/model-x", "resp_1")


def test_malformed_arguments_send_nothing(up: OutboxUp, client: Client) -> None:
    """Input that is no exact JSON is a typed error, and the gateway has not heard of it."""
    before = up.ledger.value("select count(*) from tool_calls")
    for input in ({"amount": float("nan")}, {"at": datetime(2026, 1, 31)}):
        with pytest.raises(errors.MalformedArgumentsError) as caught:
            client.call(tool=REFUND, input=input)
        assert caught.value.as_tool_message().startswith("NOT SENT. $.input.")
    assert up.ledger.value("select count(*) from tool_calls") == before


# Looking.


def test_what_is_found_is_what_was_called(up: OutboxUp, client: Client) -> None:
    """`find` narrows by what the call named, from and to included, and gives the reservation that `get` gives."""
    run, began = reference(), datetime.now(UTC)
    result = client.call(tool=ECHO, input={"order": 7}, run=run, step="7", call_id=f"call-{run}", model="vendor/model-x")
    for filters in (
        {"run": run},
        {"call_id": f"call-{run}"},
        {"run": run, "tool": ECHO, "state": "succeeded", "step": "7", "model": "vendor/model-x"},
        {"external_reference": result.receipt.external_reference},
        {"run": run, "from_": began - timedelta(minutes=1), "to": began + timedelta(minutes=1)},
    ):
        [found] = client.find(**filters)
        assert found
        assert (found.reservation_id, found.operation_key, found.step) == (result.reservation_id, result.operation_key, "7")
    assert client.find(run=run, state="failed") == []
    assert client.find(run=run, to=began - timedelta(minutes=1)) == []
    one = client.get(result.reservation_id)
    assert (one.tool, one.connection, one.occurrence, one.actor_chain) == (ECHO, "sandbox", 1, result.receipt.actor_chain)
    assert [attempt["outcome"] for attempt in one.attempts] == ["succeeded"]
    assert one.answer.receipt == result.receipt


async def test_lists_of_many_pages_are_whole(up: OutboxUp) -> None:
    """More reservations than a page holds are all found, each once, by both clients."""
    run, number = reference(), 230
    async with AsyncOutbox(url=up.url, key=up.ready()["agent_key"], run=run) as client:
        made = await asyncio.gather(*(client.call(tool=ECHO, input={"number": each}, wait=0) for each in range(number)))
        ids = [found.reservation_id async for found in client.find(run=run)]
        assert Counter(ids) == Counter(result.reservation_id for result in made)
        assert len(ids) == number
        for each in made:
            assert await client.get(str(each.reservation_id), wait=30)
    with Outbox(url=up.url, key=up.ready()["agent_key"]) as again:
        assert [found.reservation_id for found in again.find(run=run)] == ids


def test_what_would_happen_is_resolved_without_writing(up: OutboxUp, client: Client, admin: Outbox) -> None:
    """An administrator is told that a call would be reserved, would join, or would be refused; nothing is written; others may not ask."""
    input, case = refund(), reference()
    before = up.ledger.value("select count(*) from ledger_entries")
    free = admin.resolve(tool=REFUND, input=input, reference=case)
    assert isinstance(free, Resolution)
    assert (bool(free), free.would_join, free.operation_key) == (False, False, f"refund:{input['payment_intent']}:{case}")
    assert up.ledger.value("select count(*) from ledger_entries") == before
    with pytest.raises(errors.OutOfScopeError):
        client.resolve(tool=REFUND, input=input, reference=case)

    done = client.call(tool=REFUND, input=input, reference=case)
    taken = admin.resolve(tool=REFUND, input=input, reference=case)
    assert isinstance(taken, Resolution)
    assert (taken.would_join, taken.state, taken.reservation_id) == (True, "succeeded", done.reservation_id)
    conflict = admin.resolve(tool=REFUND, input={**input, "amount": 1}, reference=case)
    assert isinstance(conflict, Refused)
    assert conflict.code == "conflict"


# Errors.


def test_a_key_that_is_not_good_is_an_error(up: OutboxUp, client: Client, admin: Outbox) -> None:
    """A damaged, revoked, expired or absent key raises; a key that does not reach the tool is Refused."""
    kind = "sync" if isinstance(client.client, Outbox) else "async"

    def with_key(key: str | None) -> Client:
        return Client(kind, url=up.url, key=key)

    def new_key(**members: object) -> dict[str, Any]:
        body = {"environment": "sandbox", "actor": {"kind": "agent", "name": "narrow"}, **members}
        answer = up.send("POST", "/v1/scoped-keys", body=json.dumps(body).encode(), admin=True)
        assert answer.status == 201, answer.body
        made: dict[str, Any] = answer.document
        return made

    for key in (None, "obx_nonsense", up.ready()["agent_key"][:-1] + "x"):
        with pytest.raises(errors.InvalidKeyError) as caught:
            with_key(key).call(tool=REFUND, input=refund())
        assert key is None or key not in str(caught.value) + caught.value.as_tool_message()
    revoked, expired = new_key(), new_key()
    up.ledger.rows("update scoped_keys set revoked_at = now() where id = $1", revoked["id"])
    up.ledger.rows("update scoped_keys set expires_at = now() - interval '1 hour' where id = $1", expired["id"])
    for made, error in ((revoked, errors.KeyRevokedError), (expired, errors.KeyExpiredError)):
        with pytest.raises(error):
            with_key(made["key"]).call(tool=REFUND, input=refund())
    result = with_key(new_key(tools=["sandbox.*"])["key"]).call(tool=REFUND, input=refund())
    assert isinstance(result, Refused)
    assert result.code == "out-of-scope"


def test_what_is_not_there_is_an_error(client: Client) -> None:
    """Ids of nothing are NotFoundError; filters that cannot be used are InvalidRequestError."""
    for ask in (client.get, client.receipt):
        for id in (str(uuid4()), "nonsense", "../receipts"):
            with pytest.raises(errors.NotFoundError):
                ask(id)
    with pytest.raises(errors.InvalidRequestError):
        client.find(state="nonsense")
    with pytest.raises(errors.OutOfScopeError):
        client.find(agent="agent:somebody-else")


def test_a_request_key_names_a_request(client: Client) -> None:
    """The same request under one key is answered with the same bytes, not as a replay; another request under it is an error."""
    input, key = refund(), reference()
    first = client.call(tool=REFUND, input=input, request_key=key)
    again = client.call(tool=REFUND, input=input, request_key=key)
    assert (first.replayed, again.replayed) == (False, False)
    assert first.document == again.document
    with pytest.raises(errors.RequestKeyReusedError):
        client.call(tool=REFUND, input=refund(), request_key=key)


# Settings and traces.


def test_settings_hold_until_a_call_says_otherwise(up: OutboxUp, client: Client) -> None:
    """The client's run and reference go with its calls; the call's own win, and None is none."""
    run, case = reference(), reference()
    settled = client.client.using(run=run, reference=case)
    asked = Client.__new__(Client)
    asked.__dict__.update(client.__dict__)
    asked.client = settled
    by_settings = asked.call(tool=REFUND, input=refund())
    assert by_settings.run.name == run
    assert by_settings.operation_key.endswith(f":{case}")
    other = reference()
    by_call = asked.call(ToolCall(tool=REFUND, input=refund(), run=other, reference=None))
    assert by_call.run.name == other
    assert by_call.operation_key.count(":") == 1
    by_argument = asked.call(ToolCall(tool=REFUND, input=refund(), run=other), run=None)
    assert by_argument.run is None
    assert by_argument.operation_key.endswith(f":{case}")


def test_the_callers_trace_goes_on(client: Client) -> None:
    """A call inside a span is recorded under the span's trace."""
    with TracerProvider().get_tracer("test").start_as_current_span("agent") as span:
        result = client.call(tool=REFUND, input=refund())
    assert client.get(result.reservation_id).trace_id == f"{span.get_span_context().trace_id:032x}"


# Processes that are killed under a call.


@pytest.mark.parametrize("kind", ["api", "postgres"])
def test_a_killed_process_does_not_lose_a_call(up: OutboxUp, client: Client, kind: str) -> None:
    """API processes or Postgres are killed while a slow refund is waited for: the same call ends Done, with one effect."""
    input = refund()
    up.sandbox.plan(PATHS[REFUND], "delay", delay_seconds=1.5)
    results: list[Any] = []
    received, former = up.received(REFUND), up.pids(kind)
    caller = threading.Thread(target=lambda: results.append(client.call(tool=REFUND, input=input, wait=60)))
    caller.start()
    up.wait_received(REFUND, received + 1)
    up.kill(*former)
    caller.join(90)
    up.wait_replaced(kind, former)
    assert [type(result) for result in results] == [Done], results
    assert len(refunds_of(up, input)) == 1


# The page.


def test_the_examples_of_the_page_run(up: OutboxUp) -> None:
    """Every Python block of docs/sdk.md runs as it stands, one after the other, and they make one refund of the page's payment."""
    page = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 5
    up.ledger.rows("create database page")
    database = with_database(up.ready()["postgres_url"], "page")
    environment = {**os.environ, "OUTBOX_URL": up.url, "OUTBOX_KEY": up.ready()["agent_key"], "DATABASE_URL": database}
    told = []
    for block in blocks:
        ran = subprocess.run([sys.executable, "-c", block], env=environment, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, block + ran.stderr
        told.append(ran.stdout)
    [effect] = refunds_of(up, {"payment_intent": "pi_3Nx"})
    assert f"refunded: {effect['id']}" in told[0]
    assert told[1].startswith("Already done at ")
    assert told[2] == "already done with other values for ['amount']\n"
    assert "'tool_use_id': 'toolu_1', 'content': 'Already done at " in told[3]
    assert effect["id"] in told[5]
    assert told[6] == "ch_1 {'id': 'ch_1'}\n"
    assert told[7].startswith("charged\n")
    assert [line.partition(" ")[0] for line in told[8].splitlines()] == ["UNKNOWN.", "Done."]
