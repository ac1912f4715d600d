"""Effects that the caller's own code carries out, against the running product; the sandbox provider counts what was really done.

Processes are killed and stopped in the middle of a handler, the gateway is killed under it, and what comes of the effect is asked
of the provider and of the ledger's invariants.
"""

import asyncio
import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support import carried_out
from tests.support.carried_out import CHARGE, TICKET, A, B
from tests.support.outbox_up import OutboxUp, reference, running
from tests.support.processes import ChildProcess, start_command, wait_until
from tests.support.scripted_gateway import Exchange, serving
from tests.support.sdk_clients import KINDS, Client

from agent_outbox import (
    AsyncOutbox,
    Done,
    Effect,
    Found,
    InDoubt,
    NotSent,
    Outbox,
    Refused,
    Rejected,
    Success,
    ToolCall,
    Waiting,
    errors,
)
from agent_outbox.receipt import Money
from agent_outbox.spool import folder_of

LEASE_SECONDS = 3.0
REFUNDS, TICKETS = "/v1/refunds", "/v1/tickets"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutboxUp]:
    """One `outbox up` for the tests of this module, with two API processes and short leases for clients."""
    env = {"OUTBOX_CLIENT_LEASE_SECONDS": str(LEASE_SECONDS), "OUTBOX_CLIENT_MARGIN_SECONDS": "1"}
    with running(tmp_path_factory.mktemp("up"), "--api-workers", "2", env=env) as started:
        yield started


@pytest.fixture
def up(stack: OutboxUp) -> Iterator[OutboxUp]:
    """The stack, asked for its invariants when the test is over."""
    with stack.checked():
        yield stack


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, up: OutboxUp, tmp_path: Path) -> Iterator[Client]:
    """A client of each kind with the agent's key and a spool of its own."""
    made = Client(request.param, url=up.url, key=up.ready()["agent_key"], spool=tmp_path / "spool")
    yield made
    made.close()


def a_charge(order: str | None = None) -> ToolCall:
    """A call of class A with an order of its own."""
    return ToolCall(tool=CHARGE, input={"order": order or reference()})


class Counting:
    """A handler that counts its calls."""

    def __init__(self, does: Callable[[Effect], Any] = lambda effect: {"id": f"ch_{effect.attempt_id}"}) -> None:
        """Nothing was called yet."""
        self.effects: list[Effect] = []
        self._does = does

    def __call__(self, effect: Effect) -> Any:
        """Counts, and does what it was made for."""
        self.effects.append(effect)
        return self._does(effect)


def after(seconds: float, result: object) -> object:
    """The result of a handler that takes so long."""
    time.sleep(seconds)
    return result


def raising(error: BaseException) -> Counting:
    """A handler that raises."""

    def does(effect: Effect) -> None:
        raise error

    return Counting(does)


# Done.


def test_a_handler_runs_once_and_every_repeat_has_its_receipt(client: Client) -> None:
    """The first caller is Done with what its handler returned; the repeat gets the same result and receipt and runs nothing."""
    call, handler = a_charge(), Counting()
    first = client.run(call, handler, **A)
    assert isinstance(first, Done)
    [effect] = handler.effects
    assert first.result == {"id": f"ch_{effect.attempt_id}"}
    assert first.receipt.external_reference == first.result["id"]
    assert (first.receipt.confidence, first.receipt.owner, first.guarantee_class, first.replayed) == (
        "confirmed",
        "billing",
        "A",
        False,
    )
    assert first.operation_key == f"charge:{call.input['order']}"
    assert (effect.input, effect.recovering, effect.number, effect.reservation_id) == (call.input, False, 1, first.reservation_id)
    assert effect.provider_key
    assert effect.marker
    assert not effect
    again = client.run(call, handler, **A)
    assert again
    assert (again.replayed, again.result, again.receipt.document) == (True, first.result, first.receipt.document)
    assert len(handler.effects) == 1


def test_concurrent_callers_run_one_handler(up: OutboxUp, tmp_path: Path) -> None:
    """Twelve threads that want one effect: one handler runs, the others wait for it and get its receipt."""
    call, handler = a_charge(), Counting(lambda effect: after(1, {"id": "ch_1"}))
    results: list[Any] = []
    with Outbox(url=up.url, key=up.ready()["agent_key"], spool=tmp_path, wait=50) as outbox:
        threads = [threading.Thread(target=lambda: results.append(outbox.run(call, handler, **A))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
    assert Counter(type(one) for one in results) == {Done: 12}
    assert len({one.receipt.id for one in results}) == 1
    assert len(handler.effects) == 1


def test_a_handler_may_know_more_than_its_result(client: Client) -> None:
    """`Success` names reference, request and amount; a function as `receipt` finds the reference; without any it is asserted."""
    amount = Money(value=1200, currency="EUR")
    named = client.run(
        a_charge(), lambda effect: Success(result=7, external_reference="ch_7", provider_request_id="req_7", amount=amount), **A
    )
    assert isinstance(named, Done)
    assert (named.result, named.receipt.external_reference, named.receipt.provider_request_id) == (7, "ch_7", "req_7")
    found = client.run(a_charge(), lambda effect: ["ch_8"], **{**A, "receipt": lambda result: result[0]})
    assert (found.result, found.receipt.external_reference) == (["ch_8"], "ch_8")
    neither = client.run(a_charge(), lambda effect: "text", **{**A, "receipt": lambda result: result["id"]})
    assert (neither.result, neither.receipt.confidence) == ("text", "asserted")


def test_what_cannot_be_stored_is_named_and_fails_nothing(client: Client) -> None:
    """NaN, times, bytes, decimals and too much of anything: Done, and the first caller and the replay have the same encoded value."""
    result = {
        "id": "ch_1",
        "rate": float("nan"),
        "at": datetime(2026, 1, 31, 8, 15, tzinfo=UTC),
        "raw": b"\x00\x01",
        "price": Decimal("12.00"),
        "big": 2**80,
    }
    call = a_charge()
    first = client.run(call, lambda effect: result, **A)
    again = client.run(call, raising(AssertionError("it ran again")), **A)
    assert isinstance(first, Done)
    assert isinstance(again, Done)
    assert first.result == again.result
    assert first.result["id"] == "ch_1"
    assert first.result["rate"] == {"$not_stored": {"type": "float", "text": "nan"}}
    assert {first.result[name]["$not_stored"]["type"] for name in ("at", "raw", "price", "big")} == {
        "datetime",
        "bytes",
        "Decimal",
        "int",
    }
    large = client.run(a_charge(), lambda effect: "x" * (300 << 10), **A)
    assert isinstance(large, Done)
    assert large.result["$not_stored"]["type"] == "str"
    for odd in (None, object(), [float("inf")], {1: 2}):
        assert isinstance(client.run(a_charge(), lambda effect, odd=odd: odd, **A), Done)


def test_decorated_functions_are_effects(up: OutboxUp, tmp_path: Path) -> None:
    """A decorated function, of either kind, has one effect for the same arguments, however they are written; its name stays."""
    key, calls = up.ready()["agent_key"], []
    with Outbox(url=up.url, key=key, spool=tmp_path) as outbox:

        @outbox.effect(CHARGE, **A)
        def charge(effect: Effect, order: str, amount: int = 5) -> dict[str, str]:
            """Charges."""
            calls.append(effect)
            return {"id": f"{order}:{amount}"}

        order = reference()
        first, second = charge(order, amount=5), charge(order=order)
        assert (charge.__name__, charge.__doc__) == ("charge", "Charges.")
        assert (bool(first), first.result, second.receipt, len(calls)) == (True, {"id": f"{order}:5"}, first.receipt, 1)
        other = charge(order, 6)
        assert isinstance(other, Refused)
        assert other.code == "conflict"
        with pytest.raises(errors.MalformedArgumentsError):
            charge("o", amount=float("nan"))  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            charge(order, price=1)  # type: ignore[call-arg]
        assert len(calls) == 1

    async def main() -> None:
        async with AsyncOutbox(url=up.url, key=key, spool=tmp_path) as outbox:

            @outbox.effect(CHARGE, **{**A, "key": "charge:{order}:{reference}"})
            async def charge(effect: Effect, order: str) -> str:
                calls.append(effect)
                return order

            order = reference()
            assert await charge(order)
            assert (await charge.using(reference="case-2")(order)).operation_key == f"charge:{order}:case-2"
            assert (await charge(order)).replayed

    asyncio.run(main())
    assert len(calls) == 3


# Refused, unsent, in doubt.


def test_an_exception_is_a_doubt_unless_it_proves_something(client: Client) -> None:
    """Any exception: InDoubt with the exception in `raised`; what proves a refusal or that nothing was sent: Refused, and it may be wanted again."""
    call = a_charge()
    error = ValueError("the customer's name")
    doubt = client.run(call, raising(error), wait=0, **A)
    assert isinstance(doubt, InDoubt)
    assert doubt.raised is error
    assert "customer" not in json.dumps(doubt.document)
    with pytest.raises(errors.InDoubtError) as caught:
        doubt.expect_done()
    assert caught.value.__cause__ is error

    declined = a_charge()
    refused = client.run(declined, raising(Rejected("no", code="card_declined", status=402)), **A)
    assert isinstance(refused, Refused)
    assert refused.failure is not None
    assert refused.failure is not None
    assert (refused.code, refused.state, refused.failure.provider_code) == ("provider-refused", "failed", "card_declined")
    assert client.run(declined, Counting(), **A)

    unsent = a_charge()
    nothing = client.run(unsent, raising(NotSent()), **A)
    assert isinstance(nothing, Refused)
    assert nothing.state == "failed"
    assert client.run(unsent, Counting(), **A)


def test_classify_speaks_before_the_lists(client: Client) -> None:
    """`classify` may know more of an exception; where it says nothing the lists are asked; where it fails, nothing is known."""

    def known(error: BaseException) -> str | None:
        return "rejected" if isinstance(error, KeyError) else None

    def fails(error: BaseException) -> str:
        raise RuntimeError

    for error, classify, kind in (
        (KeyError("x"), known, Refused),
        (NotSent(), known, Refused),
        (ValueError(), known, InDoubt),
        (KeyError("x"), fails, InDoubt),
        (KeyError("x"), lambda error: "nonsense", InDoubt),
    ):
        assert type(client.run(a_charge(), raising(error), classify=classify, wait=0, **A)) is kind, (error, classify)


def test_class_c_stays_in_doubt_for_a_person(client: Client) -> None:
    """After a doubt nothing of class C runs again by itself: the next caller is told that a person is needed."""
    call = ToolCall(tool="desk.letter.send", input={"to": reference()})
    options: dict[str, Any] = {"key": "letter:{to}", "guarantee_class": "C", "time_limit": 5}
    assert isinstance(client.run(call, raising(ValueError()), **options), InDoubt)
    handler = Counting()
    again = client.run(call, handler, **options)
    assert isinstance(again, InDoubt)
    assert again.retry.action == "ask-human"
    assert handler.effects == []


def test_without_a_time_limit_only_class_a(client: Client) -> None:
    """Class B and C without `time_limit` are a typed error before anything is reserved."""
    handler = Counting()
    for guarantee_class in ("B", "C"):
        with pytest.raises(errors.TimeLimitRequiredError):
            client.run(
                ToolCall(tool=TICKET, input={"order": reference()}),
                handler,
                **{**B, "guarantee_class": guarantee_class, "recovery": None},
            )
    assert handler.effects == []


def test_other_values_and_other_executors_run_nothing(client: Client) -> None:
    """A conflict runs no handler; nor does a call whose effect the gateway itself carried out: it is replayed."""
    call, handler = a_charge(), Counting()
    assert client.run(call, Counting(), **A)
    other = client.run(ToolCall(tool=CHARGE, input={**call.input, "amount": 7}), handler, **A)
    assert isinstance(other, Refused)
    assert other.code == "conflict"
    input = {"payment_intent": f"pi_{reference()}", "amount": 1200}
    gateways = client.call(tool="stripe.refund.create", input=input)
    replay = client.run(ToolCall(tool="stripe.refund.create", input=input), handler)
    assert (replay.replayed, replay.receipt) == (True, gateways.receipt)
    assert handler.effects == []


# Time.


def test_a_long_handler_keeps_its_lease(up: OutboxUp, client: Client) -> None:
    """A handler that takes three leases is Done, with one attempt: its lease was renewed; who comes meanwhile waits."""
    call = a_charge()
    result = client.run(call, lambda effect: after(3 * LEASE_SECONDS, {"id": "ch_1"}), **A)
    assert isinstance(result, Done)
    assert up.ledger.value("select count(*) from attempts where reservation_id = $1", result.reservation_id) == 1


async def test_a_coroutine_is_cancelled_at_its_time_limit(up: OutboxUp, tmp_path: Path) -> None:
    """At its limit a coroutine is cancelled and its effect is in doubt; class A is taken over by the next caller with the same key."""
    call, ended, keys = a_charge(), asyncio.Event(), []

    async def slow(effect: Effect) -> None:
        keys.append(effect.provider_key)
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with AsyncOutbox(url=up.url, key=up.ready()["agent_key"], spool=tmp_path) as outbox:
        began = time.monotonic()
        result = await outbox.run(call, slow, time_limit=1, wait=0, **A)
        assert time.monotonic() - began < 10
        assert isinstance(result, InDoubt)
        assert ended.is_set()
        handler = Counting()
        assert await outbox.run(call, handler, time_limit=5, **A)
        [effect] = handler.effects
        assert (effect.recovering, effect.provider_key, effect.number) == (True, keys[0], 2)


async def test_a_function_goes_on_after_its_time_and_its_success_counts(up: OutboxUp, tmp_path: Path) -> None:
    """A thread cannot be stopped: the caller is told of the doubt at the limit, and the late success settles it all the same."""
    call, go = a_charge(), threading.Event()
    async with AsyncOutbox(url=up.url, key=up.ready()["agent_key"], spool=tmp_path) as outbox:
        result = await outbox.run(call, lambda effect: go.wait(60) and {"id": "ch_late"}, time_limit=1, wait=0, **A)
        assert isinstance(result, InDoubt)
        go.set()
        found = await outbox.get(str(result.reservation_id), wait=30)
        assert found
        assert found.receipt is not None
        assert found.receipt.external_reference == "ch_late"


def test_a_function_in_this_thread_succeeds_after_its_time(up: OutboxUp, tmp_path: Path) -> None:
    """`Outbox` waits for its handler: others are told of the doubt meanwhile, and its late success is Done."""
    call = a_charge()
    with Outbox(url=up.url, key=up.ready()["agent_key"], spool=tmp_path) as outbox:
        seen: list[str] = []

        def slow(effect: Effect) -> dict[str, str]:
            wait_until(lambda: outbox.get(effect.reservation_id).state == "in_doubt", deadline_seconds=30, what="the doubt")
            seen.append(outbox.get(effect.reservation_id).state)
            return {"id": "ch_late"}

        result = outbox.run(call, slow, time_limit=1, **A)
        assert isinstance(result, Done)
        assert (seen, result.receipt.external_reference) == (["in_doubt"], "ch_late")


# Interrupted.


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_a_doubt_and_is_raised(client: Client, error: type[BaseException]) -> None:
    """KeyboardInterrupt and SystemExit in a handler are raised to the caller; the effect is in doubt, and is finished next time."""
    call, doubted = a_charge(), raising(error())
    with pytest.raises(error):
        client.run(call, doubted, **A)
    reservation_id = doubted.effects[0].reservation_id
    wait_until(lambda: client.get(reservation_id).state == "in_doubt", deadline_seconds=LEASE_SECONDS * 0.8, what="the doubt")
    handler = Counting()
    assert client.run(call, handler, **A)
    assert [effect.recovering for effect in handler.effects] == [True]


async def test_a_cancelled_caller_leaves_a_doubt(up: OutboxUp, tmp_path: Path) -> None:
    """Whoever awaits `run` is cancelled: so is the handler, the doubt is told, CancelledError is raised, and the next call finishes."""
    call, began, reservation_ids = a_charge(), asyncio.Event(), []

    async def slow(effect: Effect) -> None:
        reservation_ids.append(effect.reservation_id)
        began.set()
        await asyncio.sleep(60)

    async with AsyncOutbox(url=up.url, key=up.ready()["agent_key"], spool=tmp_path) as outbox:
        task = asyncio.ensure_future(outbox.run(call, slow, **A))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        handler = Counting()
        assert await outbox.run(call, handler, **A)
        assert handler.effects[0].recovering
        assert handler.effects[0].reservation_id == reservation_ids[0]


# Step by step.


def test_an_effect_reserved_and_settled_by_hand(client: Client) -> None:
    """`reserve` gives the effect, `heartbeat` renews it, `settle` ends it; whoever reserves it again gets the receipt."""
    call, options = a_charge(), {**A}
    effect = client.reserve(call, **options)
    assert isinstance(effect, Effect)
    assert not effect
    assert isinstance(client.reserve(call, wait=0, **options), Waiting)
    assert client.heartbeat(effect)
    assert 0 < effect.seconds_left() <= LEASE_SECONDS
    done = client.settle(effect, result={"id": "ch_1"})
    assert isinstance(done, Done)
    assert client.settle(effect, result={"id": "ch_1"}).document == done.document
    assert not client.heartbeat(effect)
    again = client.reserve(call, **options)
    assert isinstance(again, Done)
    assert again.receipt == done.receipt


def test_an_effect_given_back_was_never_sent(client: Client) -> None:
    """`void` ends an attempt as unsent, and the key is free; settling it afterwards with another outcome changes nothing."""
    call = a_charge()
    effect = client.reserve(call, **A)
    voided = client.void(effect, reason="the order was withdrawn")
    assert isinstance(voided, Refused)
    assert voided.state == "failed"
    assert isinstance(client.settle(effect, "rejected"), Refused)
    assert isinstance(client.reserve(call, **A), Effect)


# Class B.


def test_a_probe_that_finds_settles(client: Client) -> None:
    """An effect of class B in doubt is looked for with its marker; found, it is Done without another handler."""
    call, markers = ToolCall(tool=TICKET, input={"order": reference()}), []
    first = raising(ConnectionResetError())
    assert isinstance(client.run(call, first, time_limit=2, wait=0, probe=lambda effect: None, **B), InDoubt)

    def probe(effect: Effect) -> Found:
        markers.append((effect.marker, effect.attempt_id, dict(effect.input)))
        return Found(external_reference="tk_1", result={"id": "tk_1", "title": "Door"})

    handler = Counting()
    result = client.run(call, handler, time_limit=2, probe=probe, **B)
    assert isinstance(result, Done)
    assert (result.receipt.external_reference, result.result) == ("tk_1", {"id": "tk_1", "title": "Door"})
    assert markers == [(first.effects[0].marker, first.effects[0].attempt_id, call.input)]
    assert handler.effects == []


def test_a_probe_that_finds_nothing_is_believed_when_it_counts(client: Client) -> None:
    """Absence is proven by as many looks as the contract says, begun after the settle time; then the handler runs again, once."""
    call = ToolCall(tool=TICKET, input={"order": reference()})
    assert isinstance(client.run(call, raising(TimeoutError()), time_limit=2, wait=0, probe=lambda effect: None, **B), InDoubt)
    looks: list[float] = []

    def probe(effect: Effect) -> None:
        looks.append(time.monotonic())
        if len(looks) == 2:
            raise ConnectionError("a look that fails counts for nothing")

    handler = Counting()
    result = client.run(call, handler, time_limit=2, wait=40, probe=probe, **B)
    assert isinstance(result, Done), result
    assert len(handler.effects) == 1
    assert len(looks) >= 3


def test_a_doubt_of_class_b_without_a_probe_is_left_alone(client: Client) -> None:
    """Who cannot look is told of the doubt, and no handler runs."""
    call = ToolCall(tool=TICKET, input={"order": reference()})
    client.run(call, raising(TimeoutError()), time_limit=2, wait=0, probe=lambda effect: None, **B)
    handler = Counting()
    assert isinstance(client.run(call, handler, time_limit=2, wait=0, **B), InDoubt)
    assert handler.effects == []


# Processes.


Start = Callable[..., ChildProcess]


@pytest.fixture
def carry(up: OutboxUp, tmp_path: Path) -> Iterator[Start]:
    """Starts `tests/support/carried_out.py` with the agent's key; all share one spool."""
    started: list[ChildProcess] = []

    def begin(kind: str, operation: str, name: str, **env: str) -> ChildProcess:
        ready = up.ready()
        variables = {"OUTBOX_URL": up.url, "OUTBOX_KEY": ready["agent_key"], "SANDBOX_URL": ready["sandbox_url"]}
        variables |= {"OUTBOX_SPOOL": str(tmp_path / "spool"), **env}
        command = [sys.executable, str(carried_out.__file__), kind, operation]
        process = start_command(command, folder=tmp_path, name=name, env=variables)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.end()


def said(process: ChildProcess) -> list[dict[str, Any]]:
    """What a process has printed."""
    return [json.loads(line) for line in process.log().splitlines() if line.startswith("{")]


def of_order(up: OutboxUp, path: str, order: str) -> list[dict[str, Any]]:
    """What the provider has made for an order."""
    names = (order, f"pi_{order}")
    return [effect for effect in up.sandbox.effects(path) if any(value in names for value in effect["fields"].values())]


def asked(up: OutboxUp, path: str, count: int) -> None:
    """Waits until the provider was asked so often."""
    wait_until(lambda: len(up.sandbox.requests(path=path, method="POST")) >= count, deadline_seconds=40, what="the request")


@pytest.mark.parametrize(("kind", "path"), [("charge", REFUNDS), ("ticket", TICKETS)], ids=["class-A", "class-B"])
@pytest.mark.parametrize("fault", ["hang", "slow-commit", "drop-before-commit"])
def test_an_agent_killed_in_its_handler_is_finished_by_the_next(
    up: OutboxUp, carry: Start, kind: str, path: str, fault: str
) -> None:
    """kill -9 while the provider has the request: started again, the same program ends Done by itself, with one effect."""
    order, before = reference(), len(up.sandbox.requests(path=path, method="POST"))
    up.sandbox.plan(path, fault, delay_seconds=2)
    first = carry(kind, order, "first")
    asked(up, path, before + 1)
    first.send(signal.SIGKILL)
    first.wait(deadline_seconds=20)
    second = carry(kind, order, "second")
    assert second.wait(deadline_seconds=120) == 0, second.log()
    assert said(second)[-1]["kind"] == "Done", second.log()
    up.sandbox.drop_faults()
    assert len(of_order(up, path, order)) == 1, first.log() + second.log()
    handlers = [step for step in said(first) + said(second) if step["step"] == "handler"]
    assert len({step.get("provider_key", step.get("marker")) for step in handlers}) == 1
    if kind == "ticket":
        assert [step for step in said(second) if step["step"] == "probe"]


def test_an_agent_stopped_past_its_lease_makes_no_second_effect(up: OutboxUp, carry: Start) -> None:
    """SIGSTOP in the handler past the lease: another agent finishes with the same provider key; the first wakes and is Done with the same receipt."""
    order, before = reference(), len(up.sandbox.requests(path=REFUNDS, method="POST"))
    up.sandbox.plan(REFUNDS, "delay", delay_seconds=1)
    first = carry("charge", order, "first")
    asked(up, REFUNDS, before + 1)
    first.send(signal.SIGSTOP)
    second = carry("charge", order, "second")
    assert second.wait(deadline_seconds=90) == 0
    first.send(signal.SIGCONT)
    assert first.wait(deadline_seconds=60) == 0
    [effect] = of_order(up, REFUNDS, order)
    assert [said(process)[-1]["kind"] for process in (first, second)] == ["Done", "Done"], first.log() + second.log()
    assert {said(process)[-1]["result"]["id"] for process in (first, second)} == {effect["id"]}


def test_a_gateway_killed_under_a_handler_is_told_when_it_is_back(up: OutboxUp, tmp_path: Path) -> None:
    """The API dies while the handler runs: the handler is not run again, and what it did is recorded once the API is back."""
    former, handler_ended = up.pids("api"), threading.Event()

    def does(effect: Effect) -> dict[str, str]:
        up.kill(*former)
        handler_ended.set()
        return {"id": "ch_1"}

    handler = Counting(does)
    call = a_charge()
    with Outbox(url=up.url, key=up.ready()["agent_key"], spool=tmp_path) as outbox:
        result = outbox.run(call, handler, **A)
        assert isinstance(result, Done | Waiting)
        up.wait_replaced("api", former)
        again = outbox.run(call, handler, wait=50, **A)
        assert isinstance(again, Done)
        assert again.receipt.external_reference == "ch_1"
    assert len(handler.effects) == 1


def test_an_agent_killed_before_it_could_tell_is_told_by_the_next(up: OutboxUp, carry: Start, tmp_path: Path) -> None:
    """The handler has returned, the gateway hears nothing, kill -9: the next process of that key delivers it before anything else, and runs no handler."""
    order = reference()
    key, ready = up.ready()["agent_key"], up.ready()
    up.sandbox.plan(REFUNDS, "delay", delay_seconds=3)
    first = carry("charge", order, "first")
    folder = folder_of(tmp_path / "spool", url=up.url, key=key)
    assert folder is not None
    wait_until(lambda: said(first), deadline_seconds=40, what="the handler")
    for pid in ready["pids"]["api"]:
        up.freeze(pid)
    wait_until(lambda: list(folder.glob("[0-9]*.json")), deadline_seconds=40, what="the kept settlement")
    first.send(signal.SIGKILL)
    first.wait(deadline_seconds=20)
    for pid in ready["pids"]["api"]:
        up.thaw(pid)
    second = carry("charge", order, "second")
    assert second.wait(deadline_seconds=90) == 0
    [effect] = of_order(up, REFUNDS, order)
    assert said(second)[-1]["kind"] == "Done"
    assert said(second)[-1]["result"]["id"] == effect["id"]
    assert [step["step"] for step in said(second)] == ["result"], second.log()
    assert list(folder.iterdir()) == []


# The way to the gateway.


@pytest.mark.parametrize("guarantee_class", ["A", "B", "C"])
def test_a_grant_that_was_never_heard_is_no_doubt(up: OutboxUp, client: Client, tmp_path: Path, guarantee_class: str) -> None:
    """The grant is lost on its way until its lease is over: no handler ran, the client says so, and then one runs, once."""
    granted: list[float] = []

    def way(exchange: Exchange) -> None:
        received = exchange.received
        if granted and time.monotonic() - granted[0] < LEASE_SECONDS + 1.5:
            exchange.close()
            return
        headers = {
            name: received.headers[name] for name in ("authorization", "content-type", "prefer") if name in received.headers
        }
        answer = httpx2.request(received.method, up.url + received.path, content=received.body, headers=headers, timeout=60)
        if not granted:
            granted.append(time.monotonic())
            assert answer.status_code == 201, answer.text
            exchange.close()
        else:
            exchange.answer(answer.status_code, answer.content)

    handler = Counting()
    call = ToolCall(tool="desk.letter.send", input={"order": reference()})
    options: dict[str, Any] = {**B, "guarantee_class": guarantee_class, "time_limit": 5}
    if guarantee_class != "B":
        del options["recovery"]
    kind = "sync" if isinstance(client.client, Outbox) else "async"
    with serving(way) as between:
        asking = Client(kind, url=between.url, key=up.ready()["agent_key"], spool=tmp_path / "way")
        result = asking.run(call, handler, probe=raising(AssertionError("it looked")), wait=20, **options)
        asking.close()
    assert isinstance(result, Done), result
    assert len(handler.effects) == 1


# The gateway is away.


def test_without_a_gateway_no_handler_runs(client: Client, tmp_path: Path) -> None:
    """Nothing listens: UnreachableError, and no handler has run and nothing was kept."""
    handler = Counting()
    kind = "sync" if isinstance(client.client, Outbox) else "async"
    nobody = Client(kind, url="http://127.0.0.1:9", key="obx_sandbox_k_secret", spool=tmp_path / "other", deadline=2)
    with pytest.raises(errors.UnreachableError):
        nobody.run(a_charge(), handler, **A)
    nobody.close()
    assert handler.effects == []
    assert not (tmp_path / "other").exists()


def test_carried_out_is_what_these_tests_start() -> None:
    """The contracts of the processes are those of the tests in this process."""
    assert (carried_out.A, carried_out.B) == (A, B)
