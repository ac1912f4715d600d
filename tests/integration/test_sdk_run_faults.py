"""Client-executed effects against a server on a real socket that misbehaves: what is sent again, what is kept, and when no handler runs.

`Ground` answers as the gateway does for one effect; a test says where it does not.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import wait_until
from tests.support.scripted_gateway import (
    RESERVATION_ID,
    Exchange,
    Script,
    ScriptedGateway,
    done,
    drops,
    problem,
    says,
    serving,
    skeleton,
    truncates,
    waiting,
)
from tests.support.sdk_clients import KINDS, Client

from agent_outbox import AsyncOutbox, Done, Effect, InDoubt, Outbox, Refused, ToolCall, Waiting, carry, errors, perform
from agent_outbox import delivery as deliveries
from agent_outbox.spool import Spool, folder_of

CALL = ToolCall(tool="stripe.refund.create", input={"payment_intent": "pi_1", "amount": 1200})
KEY = "obx_sandbox_keyid_secretsecretsecret"
UNAVAILABLE = problem("unavailable", 503, action="same-request", after_seconds=0.1)


class Ground:
    """The gateway's answers for one effect; `faults` of an endpoint are taken first, one for each request."""

    def __init__(self, lease_seconds: float = 10.0) -> None:
        """Every request is answered as the gateway does."""
        self.lease_seconds = lease_seconds
        self.faults: dict[str, list[Script]] = {}
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, exchange: Exchange) -> None:
        """Answers one request."""
        verb = exchange.received.path.rsplit("/", 1)[-1].partition("?")[0]
        body = json.loads(exchange.received.body or b"{}")
        self.heard.append((verb, body))
        if self.faults.get(verb):
            self.faults[verb].pop(0)(exchange)
        elif verb == "reservations":
            exchange.answer(201, self.granted(body["attempt_id"]))
        elif verb == "heartbeat":
            exchange.answer(200, {"lease_seconds": self.lease_seconds, "lease_until": "2026-01-31T08:15:00Z"})
        elif verb == "settle" and body["outcome"] == "succeeded":
            exchange.answer(200, done(result=body["result"]))
        elif verb == "settle":
            state = "in_doubt" if body["outcome"] == "unknown" else "failed"
            exchange.answer(200, skeleton(state=state, reservation_id=RESERVATION_ID, retry={"action": "wait"}))
        else:
            exchange.answer(200, done())

    def granted(self, attempt_id: str, **members: object) -> dict[str, Any]:
        """A 201 for an attempt."""
        attempt = {
            "id": attempt_id,
            "number": 1,
            "epoch": 1,
            "provider_key": "obx_key",
            "marker": "obm_marker",
            "lease_until": "2026-01-31T08:15:00Z",
            "lease_seconds": self.lease_seconds,
            "time_limit_seconds": None,
            "recovering": False,
            **members,
        }
        return skeleton(state="executing", reservation_id=RESERVATION_ID, attempt=attempt, probe=None)

    def of(self, verb: str) -> list[dict[str, Any]]:
        """The bodies that an endpoint has heard."""
        return [body for heard, body in self.heard if heard == verb]


Play = Callable[..., tuple[Client, ScriptedGateway]]


@pytest.fixture(params=KINDS)
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Play]:
    """Starts a server with a script and a client of each kind that asks it."""
    with contextlib.ExitStack() as stack:

        def start(script: Script, **settings: Any) -> tuple[Client, ScriptedGateway]:
            gateway = stack.enter_context(serving(script))
            client = Client(request.param, **{"url": gateway.url, "key": KEY, "spool": tmp_path, **settings})
            stack.callback(client.close)
            return client, gateway

        yield start


def kept(folder: Path) -> list[Path]:
    """The settlements that are kept below a folder."""
    return sorted(folder.rglob("*.json"))


class Handler:
    """Counts its calls."""

    def __init__(self, result: object = None) -> None:
        """Nothing was called yet."""
        self.effects: list[Effect] = []
        self._result = {"id": "re_1"} if result is None else result

    def __call__(self, effect: Effect) -> object:
        """Counts."""
        self.effects.append(effect)
        return self._result


def after(seconds: float, result: object) -> object:
    """The result of a handler that takes so long."""
    time.sleep(seconds)
    return result


# Before the handler.


def test_a_lost_grant_is_asked_for_again_with_the_same_attempt(play: Play) -> None:
    """The answer is lost twice: the same bytes with the same attempt id are sent again, and the handler runs once."""
    ground, handler = Ground(), Handler()
    ground.faults["reservations"] = [drops, truncates]
    client, _ = play(ground)
    assert isinstance(client.run(CALL, handler), Done)
    assert len(ground.of("reservations")) == 3
    assert len({body["attempt_id"] for body in ground.of("reservations")}) == 1
    assert len(handler.effects) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"<html>a login page</html>"),
        (201, {"state": "executing"}),
        (201, {**Ground().granted("another-attempt")}),
        (403, problem("policy-denied", 403)),
        (422, problem("conflict", 422, action="change-input")),
        (422, problem("time-limit-required", 422, action="change-input")),
        (401, problem("invalid-key", 401)),
        (202, waiting()),
        (409, problem("in-doubt", 409, action="ask-human", state="in_doubt", reservation_id=RESERVATION_ID)),
        (200, done()),
    ],
    ids=[
        "not-the-gateway",
        "half-an-answer",
        "another-attempt",
        "denied",
        "conflict",
        "no-limit",
        "key",
        "waiting",
        "doubt",
        "replay",
    ],
)
def test_only_a_grant_runs_the_handler(play: Play, answer: tuple[int, Any]) -> None:
    """Whatever else the gateway, or something in its place, answers: no handler runs and nothing is kept."""
    handler = Handler()
    client, _ = play(says(*answer))
    with contextlib.suppress(errors.OutboxError):
        client.run(CALL, handler, wait=0, deadline=3)
    assert handler.effects == []


def test_no_handler_runs_when_its_lease_was_over_before_it_began(play: Play) -> None:
    """A grant that comes after its lease is over is given back as unsent, and another attempt is asked for."""

    def late(exchange: Exchange) -> None:
        exchange.hold(1.2)
        exchange.answer(201, ground.granted(json.loads(exchange.received.body)["attempt_id"]))

    ground, handler = Ground(lease_seconds=1.0), Handler()
    ground.faults["reservations"] = [late]
    ground.faults["heartbeat"] = [says(409, problem("lease-lost", 409))]
    client, _ = play(ground)
    assert isinstance(client.run(CALL, handler), Done)
    first, second = (body["attempt_id"] for body in ground.of("reservations"))
    assert first != second
    assert [effect.attempt_id for effect in handler.effects] == [second]
    assert [(body["attempt_id"], body["outcome"]) for body in ground.of("settle")] == [(first, "unsent"), (second, "succeeded")]


def test_a_grant_that_came_late_is_renewed_before_the_handler(play: Play) -> None:
    """Where nobody knows since when a lease runs, it is renewed first; the handler begins with a whole one."""

    def late(exchange: Exchange) -> None:
        exchange.hold(1.2)
        exchange.answer(201, ground.granted(json.loads(exchange.received.body)["attempt_id"]))

    ground, left = Ground(lease_seconds=2.0), list[float]()
    ground.faults["reservations"] = [late]
    client, _ = play(ground)
    assert client.run(CALL, lambda effect: left.append(effect.seconds_left()))
    assert len(ground.of("heartbeat")) == 1
    assert left[0] > 1.0


def test_settings_hold_until_a_run_says_otherwise(play: Play) -> None:
    """Time limit, owner and classify come from the client, each by itself; what a run says wins, and None is a value."""
    ground = Ground()
    client, _ = play(ground, time_limit=7, owner="billing", classify=lambda error: "unsent")

    def fails(effect: Effect) -> None:
        raise ValueError

    assert isinstance(client.run(CALL, fails, key="input"), Refused)
    assert isinstance(client.run(CALL, fails, key="input", time_limit=None, owner=None, classify=None), InDoubt)
    assert isinstance(
        client.run(CALL, fails, contract={"key": "{payment_intent}", "owner": "desk"}, key="input", time_limit=9), Refused
    )
    asked = [(body.get("time_limit_seconds"), body["contract"]) for body in ground.of("reservations")]
    assert asked == [(7, {"key": "input", "owner": "billing"}), (None, {"key": "input"}), (9, {"key": "input", "owner": "desk"})]
    assert [body["outcome"] for body in ground.of("settle")] == ["unsent", "unknown", "unsent"]


# While the handler runs.


def test_heartbeats_that_fail_are_sent_again(play: Play) -> None:
    """Lost heartbeats are repeated soon enough; the lease is kept and the success is the first settlement."""
    ground = Ground(lease_seconds=3.0)
    ground.faults["heartbeat"] = [drops, says(503, UNAVAILABLE)]
    client, _ = play(ground)
    assert client.run(CALL, lambda effect: after(5, {"id": "re_1"}))
    assert len(ground.of("heartbeat")) >= 4
    assert [body["outcome"] for body in ground.of("settle")] == ["succeeded"]


async def test_a_coroutine_is_cancelled_when_its_lease_is_lost_or_over(tmp_path: Path) -> None:
    """The gateway says that the attempt is another's, or nobody answers until the lease is over: the coroutine is cancelled, in doubt."""
    for faults in ([says(409, problem("lease-lost", 409))], [drops] * 50):
        ground, ended = Ground(lease_seconds=1.0), asyncio.Event()
        ground.faults["heartbeat"] = list(faults)

        async def handler(effect: Effect, ended: asyncio.Event = ended) -> None:
            try:
                await asyncio.sleep(30)
            finally:
                ended.set()

        with serving(ground) as gateway:
            async with AsyncOutbox(url=gateway.url, key=KEY, spool=tmp_path) as outbox:
                began = time.monotonic()
                assert isinstance(await outbox.run(CALL, handler), InDoubt)
                assert time.monotonic() - began < 10
                assert ended.is_set()
        assert [body["outcome"] for body in ground.of("settle")] == ["unknown"]


async def test_a_function_that_ends_as_its_caller_is_cancelled_has_happened(tmp_path: Path) -> None:
    """A function returns in the very moment in which `run` is cancelled: its success is told, not that nobody knows."""
    ground, began, go = Ground(), threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def handler(effect: Effect) -> dict[str, str]:
        threads.append(threading.current_thread())
        began.set()
        go.wait(30)
        return {"id": "re_1"}

    with serving(ground) as gateway:
        async with AsyncOutbox(url=gateway.url, key=KEY, spool=tmp_path) as outbox:
            running = asyncio.ensure_future(outbox.run(CALL, handler))
            assert await asyncio.to_thread(began.wait, 30)
            # The event loop hears of the end and of the cancellation in one turn, the end first.
            go.set()
            threads[0].join(30)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await asyncio.to_thread(wait_until, lambda: kept(tmp_path) == [], deadline_seconds=20, what="the delivery")
    assert [body["outcome"] for body in ground.of("settle")] == ["succeeded"]


async def test_what_would_only_begin_is_not_begun_after_the_end(tmp_path: Path) -> None:
    """A function returns a coroutine as `run` is cancelled, or after its time: nothing of it runs, and no success is told."""
    begun: list[str] = []

    async def send() -> dict[str, str]:
        begun.append("sent")
        return {"id": "re_1"}

    for time_limit in (None, 1):
        ground, called, go = Ground(), threading.Event(), threading.Event()
        threads: list[threading.Thread] = []

        def handler(
            effect: Effect,
            called: threading.Event = called,
            go: threading.Event = go,
            threads: list[threading.Thread] = threads,
        ) -> Any:
            threads.append(threading.current_thread())
            called.set()
            go.wait(30)
            return send()

        with serving(ground) as gateway:
            async with AsyncOutbox(url=gateway.url, key=KEY, spool=tmp_path) as outbox:
                running = asyncio.ensure_future(outbox.run(CALL, handler, time_limit=time_limit))
                assert await asyncio.to_thread(called.wait, 30)
                if time_limit is None:
                    # The event loop hears of the end and of the cancellation in one turn, the end first.
                    go.set()
                    threads[0].join(30)
                    running.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await running
                else:
                    assert isinstance(await running, InDoubt)
                    go.set()
                    await asyncio.to_thread(threads[0].join, 30)
                await asyncio.to_thread(wait_until, lambda: kept(tmp_path) == [], deadline_seconds=20, what="the delivery")
        assert begun == []
        assert [body["outcome"] for body in ground.of("settle")] == ["unknown"]


def test_a_lease_is_kept_although_a_heartbeat_raises(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that fails in a way that nobody foresaw is followed by the next one, and the handler goes on."""
    raised: list[float] = []

    def heartbeating(*arguments: Any) -> Any:
        if not raised:
            raised.append(time.monotonic())
            raise MemoryError
        return carry.heartbeating(*arguments)

    monkeypatch.setattr(perform, "heartbeating", heartbeating)
    ground = Ground(lease_seconds=2.0)
    client, _ = play(ground)

    async def later() -> dict[str, str]:
        await asyncio.sleep(3)
        return {"id": "re_1"}

    result = client.run(
        CALL, (lambda effect: after(3, {"id": "re_1"})) if isinstance(client.client, Outbox) else lambda effect: later()
    )
    assert isinstance(result, Done)
    assert raised
    assert [body["outcome"] for body in ground.of("settle")] == ["succeeded"]


def refusing_threads(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Lets no thread of these names start, as in a process that has too many of them or is ending."""
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if thread.name in names:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_others)


def test_a_handler_for_which_there_is_no_thread_sent_nothing(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started for the handler or its lease, the handler is not called and the attempt is given back unsent."""
    refusing_threads(monkeypatch, "outbox-heartbeat", "outbox-handler")
    ground, handler = Ground(), Handler()
    client, _ = play(ground)
    result = client.run(CALL, handler)
    assert isinstance(result, Refused)
    assert handler.effects == []
    assert [body["outcome"] for body in ground.of("settle")] == ["unsent"]


# After the handler.


def test_a_lost_answer_to_a_settlement_is_asked_for_again(play: Play, tmp_path: Path) -> None:
    """The same settlement goes again until it is answered; nothing is kept then, and the handler ran once."""
    ground, handler = Ground(), Handler()
    ground.faults["settle"] = [drops, says(503, UNAVAILABLE), truncates]
    client, _ = play(ground)
    assert isinstance(client.run(CALL, handler), Done)
    assert len(ground.of("settle")) == 4
    assert len({json.dumps(body) for body in ground.of("settle")}) == 1
    assert len(handler.effects) == 1
    assert kept(tmp_path) == []


def test_a_settlement_that_cannot_be_delivered_is_kept_and_delivered(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway is silent: the caller is told that it has no end yet, the settlement is on disk, and is delivered in the background."""
    monkeypatch.setattr(deliveries, "SETTLE_SECONDS", 1.0)
    ground, handler, silent = Ground(), Handler(), threading.Event()
    silent.set()

    def answers(exchange: Exchange) -> None:
        if silent.is_set() and exchange.received.path.endswith("/settle"):
            exchange.close()
        else:
            ground(exchange)

    client, _ = play(answers)
    result = client.run(CALL, handler)
    assert isinstance(result, Waiting)
    assert not result
    assert (result.state, result.result, result.retry.action) == ("executing", {"id": "re_1"}, "wait")
    assert result.as_tool_message().startswith("Not finished.")
    [file] = kept(tmp_path)
    assert json.loads(file.read_text())["body"]["outcome"] == "succeeded"
    assert "secret" not in file.read_text() + str(file)
    silent.clear()
    wait_until(lambda: kept(tmp_path) == [], deadline_seconds=20, what="the delivery")
    [settled] = ground.of("settle")
    assert settled["result"] == {"id": "re_1"}
    assert len(handler.effects) == 1


def test_what_is_kept_is_delivered_before_anything_new(tmp_path: Path) -> None:
    """What an earlier process kept is told before the next effect is reserved; what the gateway refuses for good is set aside."""
    ground = Ground()
    verdicts = {
        "a-0": says(200, done()),
        "a-1": says(404, problem("not-found", 404)),
        "a-2": says(409, problem("outcome-differs", 409)),
    }

    def answers(exchange: Exchange) -> None:
        body = json.loads(exchange.received.body or b"{}")
        if exchange.received.path.endswith("/settle") and body["attempt_id"] in verdicts:
            ground.heard.append(("settle", body))
            verdicts[body["attempt_id"]](exchange)
        else:
            ground(exchange)

    with serving(answers) as gateway:
        folder = folder_of(tmp_path, url=gateway.url, key=KEY)
        assert folder is not None
        earlier = Spool(folder)
        for attempt_id in verdicts:
            body = {"attempt_id": attempt_id, "outcome": "succeeded", "result": 1}
            earlier.keep(f"/v1/reservations/{RESERVATION_ID}/settle", body)
        with Outbox(url=gateway.url, key=KEY, spool=tmp_path) as outbox:
            assert outbox.run(CALL, Handler())
        grant = [verb for verb, _ in ground.heard].index("reservations")
        assert {body["attempt_id"] for _, body in ground.heard[:grant]} == set(verdicts)
        wait_until(lambda: list(folder.glob("*.json")) == [], deadline_seconds=20, what="the delivery")
        [aside] = list((folder / "refused").glob("*.json"))
        assert "a-1" in aside.name


def test_one_that_cannot_be_delivered_stands_in_nobodys_way(tmp_path: Path) -> None:
    """Settlements that the gateway cannot take now, and one that no request can carry, keep neither others nor new effects waiting."""
    ground = Ground()
    stuck = {f"a-{number:02}" for number in range(25)}

    def answers(exchange: Exchange) -> None:
        body = json.loads(exchange.received.body or b"{}")
        if body.get("attempt_id") in stuck:
            ground.heard.append(("stuck", body))
            exchange.answer(500, problem("internal", 500, action="same-request"))
        else:
            ground(exchange)

    with serving(answers) as gateway:
        folder = folder_of(tmp_path, url=gateway.url, key=KEY)
        assert folder is not None
        earlier, path = Spool(folder), f"/v1/reservations/{RESERVATION_ID}/settle"
        for attempt_id in sorted(stuck):
            earlier.keep(path, {"attempt_id": attempt_id, "outcome": "unknown"})
        earlier.keep(path, {"attempt_id": "f-01", "outcome": "succeeded", "amount": {"value": float("nan"), "currency": "EUR"}})
        earlier.keep(path, {"attempt_id": "a-99", "outcome": "unknown"})
        with Outbox(url=gateway.url, key=KEY, spool=tmp_path) as outbox:
            for _ in range(3):
                assert outbox.run(CALL, Handler())

            def others_are_delivered() -> bool:
                return "a-99" in [body["attempt_id"] for body in ground.of("settle")] and len(kept(folder / "refused")) == 1

            wait_until(others_are_delivered, deadline_seconds=20, what="the delivery of what can be delivered")
            asked = len(ground.of("stuck"))
            assert outbox.run(CALL, Handler())
            assert len(ground.of("stuck")) - asked < len(stuck)
        assert len(list(folder.glob("*.json"))) == len(stuck)
        assert "f-01" in kept(folder / "refused")[0].name


def test_many_that_were_kept_are_delivered_without_a_pause(tmp_path: Path) -> None:
    """After an outage everything is delivered as fast as the gateway answers, not twenty at a time with pauses between."""
    ground = Ground()
    with serving(ground) as gateway:
        folder = folder_of(tmp_path, url=gateway.url, key=KEY)
        assert folder is not None
        earlier = Spool(folder)
        for number in range(150):
            earlier.keep(f"/v1/reservations/{RESERVATION_ID}/settle", {"attempt_id": f"a-{number}", "outcome": "unknown"})
        began = time.monotonic()
        with Outbox(url=gateway.url, key=KEY, spool=tmp_path):
            wait_until(lambda: kept(tmp_path) == [], deadline_seconds=30, what="the delivery")
        assert time.monotonic() - began < 10


def test_a_success_that_was_kept_is_delivered_without_what_undoes_it(tmp_path: Path) -> None:
    """Where the gateway takes the result or reference of a kept success for none, it is delivered without them, not set aside."""
    ground = Ground()
    ground.faults["settle"] = [says(422, problem("invalid-input", 422, action="change-input"))]
    with serving(ground) as gateway:
        folder = folder_of(tmp_path, url=gateway.url, key=KEY)
        assert folder is not None
        body = {"attempt_id": "a-1", "outcome": "succeeded", "result": 1, "external_reference": "x" * 2_000}
        Spool(folder).keep(f"/v1/reservations/{RESERVATION_ID}/settle", body)
        with Outbox(url=gateway.url, key=KEY, spool=tmp_path):
            wait_until(lambda: kept(tmp_path) == [], deadline_seconds=20, what="the delivery")
    assert [set(settled) for settled in ground.of("settle")] == [set(body), set(body) - {"external_reference"}]


def test_a_result_is_told_although_nothing_can_be_delivered_behind_it(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread can be started to deliver what the gateway did not take, the caller has its result and the file stays."""
    refusing_threads(monkeypatch, "outbox-deliver")
    ground = Ground()
    ground.faults["settle"] = [says(401, problem("key-revoked", 401))]
    client, _ = play(ground)
    assert isinstance(client.run(CALL, Handler()), Waiting)
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (404, "<html>not here</html>"),
        (500, "oops"),
        (200, {"welcome": "to the hotel"}),
        (401, problem("key-revoked", 401)),
        (403, problem("out-of-scope", 403)),
        (422, problem("not-enforced", 422, action="change-input")),
    ],
    ids=lambda answer: f"{answer[0]}",
)
def test_what_happens_after_the_handler_never_looks_like_before_it(play: Play, tmp_path: Path, answer: tuple[int, Any]) -> None:
    """Whatever answers the settlement without taking it, the caller is told that it has no end yet, and it stays on disk."""
    ground, handler = Ground(), Handler()
    ground.faults["settle"] = [says(*answer)] * 1_000
    client, _ = play(ground)
    result = client.run(CALL, handler)
    assert isinstance(result, Waiting)
    assert (result.result, len(handler.effects)) == ({"id": "re_1"}, 1)
    assert result.as_tool_message().startswith("Not finished.")
    [file] = kept(tmp_path)
    assert file.parent.name != "refused"


def test_a_full_spool_begins_nothing(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While too much waits that cannot be delivered, nothing new is reserved: SpoolFullError."""
    monkeypatch.setattr("agent_outbox.spool.FILES_MAX", 2)
    ground, handler = Ground(), Handler()
    ground.faults["settle"] = [says(503, UNAVAILABLE)] * 1000
    client, gateway = play(ground)
    spool = Spool(folder_of(tmp_path, url=gateway.url, key=KEY))
    for number in range(2):
        spool.keep(f"/v1/reservations/{RESERVATION_ID}/settle", {"attempt_id": f"a-{number}", "outcome": "unknown"})
    with pytest.raises(errors.SpoolFullError):
        client.run(CALL, handler)
    assert (handler.effects, ground.of("reservations")) == ([], [])


@pytest.mark.parametrize("code", ["too-large", "invalid-input"])
def test_what_is_said_of_a_success_cannot_undo_it(play: Play, tmp_path: Path, code: str) -> None:
    """Where the gateway takes a result or reference for none, the success is settled without them."""
    ground = Ground()
    ground.faults["settle"] = [says(413 if code == "too-large" else 422, problem(code, 413, action="change-input"))]
    client, _ = play(ground)
    result = client.run(CALL, Handler())
    assert isinstance(result, Done)
    assert result.result == {"$not_stored": {"type": "object"}}
    assert [body["outcome"] for body in ground.of("settle")] == ["succeeded", "succeeded"]
    assert kept(tmp_path) == []


@pytest.mark.parametrize("code", ["attempt-closed", "outcome-differs"])
def test_an_attempt_that_somebody_else_closed_shows_what_stands(play: Play, tmp_path: Path, code: str) -> None:
    """A settlement that came too late is evidence; the caller is told what the reservation has come to."""
    ground = Ground()
    ground.faults["settle"] = [says(409, problem(code, 409))]
    client, _ = play(ground)
    result = client.run(CALL, Handler())
    assert isinstance(result, Done)
    assert result.replayed
    assert kept(tmp_path) == []


def test_a_settlement_that_is_never_taken_is_raised(play: Play, tmp_path: Path) -> None:
    """`not-found`, as after a ledger that lost its end: the caller gets the problem, and what it said is kept aside for people."""
    ground = Ground()
    ground.faults["settle"] = [says(404, problem("not-found", 404))] * 3
    client, _ = play(ground)
    with pytest.raises(errors.NotFoundError):
        client.run(CALL, Handler())
    [aside] = kept(tmp_path)
    assert aside.parent.name == "refused"


def test_a_contradiction_is_a_doubt(play: Play, tmp_path: Path) -> None:
    """Proof against what was settled meanwhile: InDoubt, for a person."""
    ground = Ground()
    ground.faults["settle"] = [
        says(409, problem("contradiction", 409, action="ask-human", state="failed", reservation_id=RESERVATION_ID))
    ]
    client, _ = play(ground)
    result = client.run(CALL, Handler())
    assert isinstance(result, InDoubt)
    assert (result.code, result.retry.action) == ("contradiction", "ask-human")
    assert kept(tmp_path) == []


def test_a_spool_that_cannot_be_written_stops_nothing(play: Play, tmp_path: Path) -> None:
    """With a spool where nothing can be written, and with none, effects are carried out and settled."""
    (tmp_path / "file").write_text("no folder")
    for spool in (tmp_path / "file", None):
        ground = Ground()
        client, _ = play(ground, spool=spool)
        assert isinstance(client.run(CALL, Handler()), Done)


def test_the_reason_of_a_refusal_is_a_few_plain_words(play: Play) -> None:
    """Whatever an exception is called, the gateway is told plain words, never its text."""
    ground = Ground()
    client, _ = play(ground)

    class Örror(Exception):
        pass

    def handler(effect: Effect) -> None:
        raise Örror("4242 4242 4242 4242")

    result = client.run(CALL, handler)
    assert isinstance(result, InDoubt | Refused)
    [body] = ground.of("settle")
    assert "4242" not in json.dumps(body)
    assert body["reason"].isascii()


def test_a_handler_that_returns_a_coroutine_is_never_taken_for_done(play: Play) -> None:
    """A plain function that only makes a coroutine has done nothing: `Outbox` says so, `AsyncOutbox` awaits it."""
    ground = Ground()
    client, _ = play(ground)

    async def later() -> dict[str, str]:
        return {"id": "re_9"}

    result = client.run(CALL, lambda effect: later())
    [body] = ground.of("settle")
    if isinstance(client.client, Outbox):
        assert isinstance(result, InDoubt)
        assert isinstance(result.raised, errors.BadHandlerError)
        assert body["outcome"] == "unknown"
    else:
        assert (bool(result), body["result"]) == (True, {"id": "re_9"})
