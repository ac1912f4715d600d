"""The client against a server on a real socket that misbehaves: what is repeated, how often, when, and what is never repeated."""

import asyncio
import contextlib
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.processes import wait_until
from tests.support.scripted_gateway import (
    RESERVATION_ID,
    Exchange,
    Script,
    ScriptedGateway,
    done,
    drips,
    drops,
    hangs,
    problem,
    resets,
    says,
    serving,
    skeleton,
    truncates,
    waiting,
)
from tests.support.sdk_clients import KINDS, Client

from agent_outbox import AsyncOutbox, Done, InDoubt, Outbox, Refused, Waiting, errors
from agent_outbox.errors import (
    ERRORS,
    InternalError,
    OutboxError,
    OutOfScopeError,
    RequestInProgressError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
)
from outbox_api.errors import STATUS

REFUND: Any = {"tool": "stripe.refund.create", "input": {"payment_intent": "pi_1", "amount": 1200}}
UNAVAILABLE = problem("unavailable", 503, action="same-request", after_seconds=0.1)

Play = Callable[..., tuple[Client, ScriptedGateway]]


@pytest.fixture(params=KINDS)
def play(request: pytest.FixtureRequest) -> Iterator[Play]:
    """Starts a server with scripts and a client of each kind that asks it."""
    with contextlib.ExitStack() as stack:

        def start(*scripts: Script, **settings: Any) -> tuple[Client, ScriptedGateway]:
            gateway = stack.enter_context(serving(*scripts))
            client = Client(request.param, **{"url": gateway.url, "key": "obx_key", **settings})
            stack.callback(client.close)
            return client, gateway

        yield start


def took(began: float) -> float:
    """Seconds since."""
    return time.monotonic() - began


# One for each problem.


@pytest.mark.parametrize("code", sorted(errors.REFUSALS | errors.DOUBTS))
def test_a_problem_of_the_effect_is_a_result(play: Play, code: str) -> None:
    """Each problem that speaks of the effect comes back as Refused or InDoubt, false, with the gateway's text and its exception."""
    client, gateway = play(says(STATUS[code], problem(code, STATUS[code], path="$.input.amount", state=None)))
    result = client.call(**REFUND, wait=0)
    assert type(result) is (InDoubt if code in errors.DOUBTS else Refused)
    assert not result
    assert (result.code, result.status) == (code, STATUS[code])
    assert result.as_tool_message() == f"NOT SENT. The message of {code}."
    assert type(result.error) is ERRORS[code]
    assert (result.error.status, result.error.message, result.error.retry) == (result.status, result.message, result.retry)
    with pytest.raises(ERRORS[code]):
        result.expect_done()
    assert len(gateway.received) == 1


@pytest.mark.parametrize("code", sorted(ERRORS.keys() - errors.REFUSALS - errors.DOUBTS))
def test_a_problem_of_the_request_is_raised(play: Play, code: str) -> None:
    """Each other problem is raised by its own class, with the gateway's text, and once is enough where it says never."""
    client, gateway = play(says(STATUS[code], problem(code, STATUS[code], path="$.run")))
    with pytest.raises(ERRORS[code]) as caught:
        client.call(**REFUND)
    error = caught.value
    assert type(error) is ERRORS[code]
    assert (error.code, error.status, error.path, error.detail) == (code, STATUS[code], "$.run", f"The detail of {code}.")
    if not error.possibly_recorded:
        assert error.as_tool_message() == f"NOT SENT. The message of {code}."
    assert len(gateway.received) == 1


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_every_problem_is_raised_where_something_is_looked_at(play: Play, code: str) -> None:
    """`get` raises every problem: there is no effect that it could be a result of."""
    client, _ = play(says(STATUS[code], problem(code, STATUS[code])))
    with pytest.raises(ERRORS[code]) as caught:
        client.get(RESERVATION_ID)
    assert not caught.value.possibly_recorded


def test_a_problem_of_a_newer_gateway_is_raised_with_its_code(play: Play) -> None:
    """A code that this client does not know is a plain OutboxError that names it; an unknown action is not acted upon."""
    client, gateway = play(says(422, problem("brand-new", 422, action="dance", after_seconds=0.1)))
    with pytest.raises(OutboxError) as caught:
        client.call(**REFUND)
    assert type(caught.value) is OutboxError
    assert (caught.value.code, caught.value.retry.action) == ("brand-new", "never")
    assert len(gateway.received) == 1


# What is repeated.


@pytest.mark.parametrize("fails", [drops, resets, truncates], ids=["closed", "reset", "half-a-body"])
def test_a_broken_connection_is_asked_again_with_the_same_bytes(play: Play, fails: Script) -> None:
    """After two broken connections the third try is answered; all three carried the same body and request key."""
    client, gateway = play(fails, fails, says(200, done()))
    result = client.call(**REFUND, request_key="key-1")
    assert isinstance(result, Done)
    assert len(gateway.received) == 3
    assert len(gateway.bodies) == 1
    assert {request.headers["idempotency-key"] for request in gateway.received} == {"key-1"}


def test_pauses_between_broken_connections_grow(play: Play) -> None:
    """The pause before each further try is longer than half of a doubling back-off, and not much longer than it."""
    client, gateway = play(drops, drops, drops, drops, says(200, done()))
    assert client.call(**REFUND)
    for number, pause in enumerate(gateway.pauses()):
        assert 0.1 * 2**number <= pause <= 0.2 * 2**number + 0.5


def test_a_problem_is_repeated_when_it_says_so(play: Play) -> None:
    """`same-request` and `wait` are tried again, not before `after_seconds`."""
    limited = problem("rate-limited", 429, action="wait", after_seconds=0.3)
    busy = problem("request-in-progress", 409, action="wait", after_seconds=0.2)
    internal = problem("internal", 500, action="same-request", after_seconds=0.1)
    client, gateway = play(says(503, UNAVAILABLE), says(429, limited), says(409, busy), says(500, internal), says(200, done()))
    assert client.call(**REFUND)
    assert len(gateway.received) == 5
    assert all(pause >= least for pause, least in zip(gateway.pauses(), (0.1, 0.3, 0.2, 0.1), strict=True))


@pytest.mark.parametrize("action", ["none", "change-input", "ask-human", "never"])
def test_no_other_action_is_repeated(play: Play, action: str) -> None:
    """A problem that does not say `same-request` or `wait` is asked once, whatever its status and `after_seconds`."""
    client, gateway = play(says(503, problem("unavailable", 503, action=action, after_seconds=0.1)), says(200, done()))
    with pytest.raises(UnavailableError):
        client.call(**REFUND)
    assert len(gateway.received) == 1


@pytest.mark.parametrize(
    ("code", "state"),
    [("voided", "voided"), ("provider-unreachable", "voided"), ("failed", "failed"), ("review-denied", "denied")],
)
def test_an_ended_reservation_is_not_made_again(play: Play, code: str, state: str) -> None:
    """Once a reservation has ended, the same request would be a new one: it is the caller's to make, though the problem allows it."""
    ended = problem(code, STATUS[code], action="same-request", after_seconds=0.1, state=state, reservation_id=RESERVATION_ID)
    client, gateway = play(says(STATUS[code], ended), says(200, done()))
    result = client.call(**REFUND)
    assert isinstance(result, Refused)
    assert result.retry.action == "same-request"
    assert len(gateway.received) == 1


def test_nothing_is_repeated_past_the_deadline(play: Play) -> None:
    """With a deadline of one second, a problem that asks for a pause of 0.3 s is tried at most four times, then raised."""
    client, gateway = play(says(503, problem("unavailable", 503, action="same-request", after_seconds=0.3)))
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        client.call(**REFUND, deadline=1.0)
    assert took(began) < 1.0
    assert 3 <= len(gateway.received) <= 4


def test_a_pause_beyond_the_deadline_is_not_begun(play: Play) -> None:
    """Who is told to come back after the deadline is told at once."""
    client, gateway = play(says(429, problem("quota-exceeded", 429, action="wait", after_seconds=3600)))
    began = time.monotonic()
    result = client.call(**REFUND, deadline=5.0)
    assert isinstance(result, Refused)
    assert result.retry.after_seconds == 3600
    assert took(began) < 2
    assert len(gateway.received) == 1


def test_a_silent_gateway_is_left_at_the_deadline(play: Play) -> None:
    """No answer within the deadline: UnreachableError, in time, and nobody says that nothing was done."""
    client, gateway = play(hangs)
    began = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        client.call(**REFUND, deadline=1.0)
    assert took(began) < 2.5
    assert caught.value.possibly_recorded
    assert caught.value.as_tool_message().startswith("Not finished. Ask again in ")
    assert len(gateway.received) == 1


def test_a_dripping_answer_is_left_at_the_deadline(play: Play) -> None:
    """An answer whose bytes come one by one does not hold the caller beyond the deadline."""
    client, _ = play(drips)
    began = time.monotonic()
    with pytest.raises(UnreachableError):
        client.call(**REFUND, deadline=1.0)
    assert took(began) < 2.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_connection_says_that_nothing_was_sent(kind: str) -> None:
    """Where nothing listens, nothing was sent, and the text for the model says so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = Client(kind, url=f"http://127.0.0.1:{port}", key=None)
    with pytest.raises(UnreachableError) as caught:
        client.call(**REFUND, deadline=0.5)
    assert not caught.value.possibly_recorded
    assert caught.value.as_tool_message().startswith("NOT SENT. Try the same call in ")
    client.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gateway_that_comes_back_is_reached(kind: str) -> None:
    """A call begun while nothing listens is answered once the gateway is back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = Client(kind, url=f"http://127.0.0.1:{port}", key=None)
    results: list[Any] = []
    caller = threading.Thread(target=lambda: results.append(client.call(**REFUND, deadline=20)))
    caller.start()
    time.sleep(0.5)
    with serving(says(200, done()), port=port):
        caller.join(20)
    assert [type(result) for result in results] == [Done]
    client.close()


def test_what_may_have_been_recorded_is_not_denied(play: Play) -> None:
    """After a broken connection nobody knows what was recorded: later refusals of the key, of the ledger or of a proxy are raised
    with the text that it is not finished, though their own text says that nothing was sent."""
    for status, code, error in ((503, "unavailable", UnavailableError), (403, "out-of-scope", OutOfScopeError)):
        client, gateway = play(drops, says(status, problem(code, status)))
        with pytest.raises(error) as caught:
            client.call(**REFUND)
        assert caught.value.possibly_recorded
        assert caught.value.message.startswith("NOT SENT.")
        assert caught.value.as_tool_message().startswith("Not finished. ")
        assert len(gateway.received) == 2


@pytest.mark.parametrize(("code", "error"), [("internal", InternalError), ("request-in-progress", RequestInProgressError)])
def test_the_gateways_own_trouble_may_have_recorded(play: Play, code: str, error: type[OutboxError]) -> None:
    """What failed inside the gateway, or is under way there, may be recorded."""
    client, _ = play(says(STATUS[code], problem(code, STATUS[code])))
    with pytest.raises(error) as caught:
        client.call(**REFUND)
    assert caught.value.possibly_recorded


def test_a_ledger_lost_while_recording_may_have_recorded(play: Play) -> None:
    """`unavailable` with the text of something unfinished is not told as nothing sent."""
    lost = problem("unavailable", 503, message="Not finished. Ask again in 2 s with the same arguments.")
    client, _ = play(says(503, lost))
    with pytest.raises(UnavailableError) as caught:
        client.call(**REFUND)
    assert caught.value.possibly_recorded


# Answers of somebody else.


@pytest.mark.parametrize(
    "script",
    [
        says(200, b"<html>Sign in</html>"),
        says(200, {"hello": "world"}),
        says(200, done(receipt=None)),
        says(200, done(state="executing")),
        says(200, done(receipt={**done()["receipt"], "tool": "stripe.customer.create"})),
        says(200, done(retry={})),
        says(200, b'{"message": NaN}'),
        says(200, b"[" * 100_000),
        says(201, done()),
        says(202, {**waiting(), "reservation_id": None}),
        says(302, b"", Location="http://127.0.0.1:1/"),
        says(404, b"<html>Not found</html>"),
        says(403, {"error": "forbidden"}),
        says(500, b"oops"),
    ],
)
def test_what_is_not_an_answer_of_the_gateway_is_not_believed(play: Play, script: Script) -> None:
    """Pages of proxies, successes without a receipt or with another tool's, redirects: one try, UnexpectedAnswerError, not denied."""
    client, gateway = play(script)
    with pytest.raises(UnexpectedAnswerError) as caught:
        client.call(**REFUND)
    assert caught.value.possibly_recorded
    assert len(gateway.received) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_that_reached_nobody_is_asked_again(play: Play, status: int) -> None:
    """502, 503 and 504 without the gateway's document are no answer: asked again, not before Retry-After."""
    client, gateway = play(says(status, b"<html>Bad gateway</html>", Retry_After="1"), says(200, done()))
    assert client.call(**REFUND)
    assert len(gateway.received) == 2
    assert gateway.pauses()[0] >= 1


# Waiting.


def test_a_call_waits_on_by_looking_not_by_calling(play: Play) -> None:
    """A call that waits longer than one answer looks at its reservation; it is sent once, and ends with what it came to."""
    client, gateway = play(says(202, waiting()), says(200, waiting()), says(200, done()))
    result = client.call(**REFUND, wait=10)
    assert isinstance(result, Done)
    assert not result.replayed
    assert [request.method for request in gateway.received] == ["POST", "GET", "GET"]
    assert gateway.received[1].path.startswith(f"/v1/reservations/{RESERVATION_ID}?wait=")
    assert gateway.received[0].headers["prefer"] == "wait=10"


def test_a_call_that_does_not_wait_says_so(play: Play) -> None:
    """`wait=0` asks once and is told what is there; `wait=None` leaves the wait to the gateway."""
    client, gateway = play(says(202, waiting()))
    for wait in (0, None):
        result = client.call(**REFUND, wait=wait)
        assert isinstance(result, Waiting)
        assert result.reservation_id == RESERVATION_ID
        with pytest.raises(errors.NotFinishedError):
            result.expect_done()
    assert gateway.received[0].headers["prefer"] == "respond-async"
    assert "prefer" not in gateway.received[1].headers
    assert len(gateway.received) == 2


def test_a_wait_that_is_over_tells_the_last_that_was_known(play: Play) -> None:
    """At the end of its wait a call returns Waiting, in time, with pauses between looks where the gateway does not hold them."""
    client, gateway = play(says(202, waiting(0.4)))
    began = time.monotonic()
    result = client.call(**REFUND, wait=3)
    assert isinstance(result, Waiting)
    assert took(began) < 4
    assert 4 <= len(gateway.received) <= 8
    assert len([request for request in gateway.received if request.method == "POST"]) == 1


@pytest.mark.parametrize(
    ("document", "expected", "code"),
    [
        (skeleton(state="failed", message="NOT DONE."), Refused, "failed"),
        (
            skeleton(
                state="failed", failure={"provider_status": 402, "provider_code": "card_declined", "provider_message": None}
            ),
            Refused,
            "provider-refused",
        ),
        (skeleton(state="denied"), Refused, "review-denied"),
        (skeleton(state="voided"), Refused, "voided"),
        (skeleton(state="voided", code="provider-unreachable"), Refused, "provider-unreachable"),
        (skeleton(state="in_doubt", retry={"action": "ask-human"}, reservation_id=RESERVATION_ID), InDoubt, "in-doubt"),
    ],
)
def test_an_end_that_is_looked_at_is_the_same_result(play: Play, document: Any, expected: Any, code: str) -> None:
    """A reservation that ends while it is waited for is the result that the call itself would have been, and is not called again."""
    client, gateway = play(says(202, waiting()), says(200, document))
    result: Any = client.call(**REFUND, wait=5)
    assert type(result) is expected
    assert (result.code, result.status) == (code, None)
    assert type(result.error) is ERRORS[code]
    assert [request.method for request in gateway.received] == ["POST", "GET"]


def test_a_doubt_is_waited_for_while_it_is_recovered(play: Play) -> None:
    """InDoubt with `wait` is looked at until it ends; with `ask-human` it is returned at once."""
    doubt = {"since": "2026-01-31T08:15:00Z", "cause": "read-timeout", "recovery": "automatic", "next_check": None}
    members: dict[str, Any] = {"state": "in_doubt", "reservation_id": RESERVATION_ID, "doubt": doubt}
    recovering = problem("in-doubt", 409, action="wait", after_seconds=0.1, **members)
    client, gateway = play(says(409, recovering), says(200, done()))
    assert client.call(**REFUND, wait=5)
    assert [request.method for request in gateway.received] == ["POST", "GET"]

    client, gateway = play(says(409, problem("in-doubt", 409, action="ask-human", **members)))
    result = client.call(**REFUND, wait=5)
    assert isinstance(result, InDoubt)
    assert result.doubt is not None
    assert (result.doubt.cause, result.doubt.recovery) == ("read-timeout", "automatic")
    assert len(gateway.received) == 1


def test_a_joiner_is_told_that_it_sent_nothing(play: Play) -> None:
    """A call that met another one's reservation asks once more when that succeeded, for the replay that is its own answer."""
    replay = done(
        replayed=True,
        message="Already done.",
        replay={"settled_at": "2026-01-31T08:15:00Z", "run": "other", "same_run": False},
    )
    client, gateway = play(says(202, waiting(replayed=True)), says(200, done()), says(200, replay))
    result = client.call(**REFUND, wait=5)
    assert (result.replayed, result.as_tool_message(), result.replay.run) == (True, "Already done.", "other")
    assert [request.method for request in gateway.received] == ["POST", "GET", "POST"]


def test_a_replay_is_asked_once(play: Play) -> None:
    """A call that is answered by an older effect at once is one request."""
    client, gateway = play(says(200, done(replayed=True)))
    assert client.call(**REFUND, wait=5).replayed
    assert len(gateway.received) == 1


def test_a_joiner_without_its_own_answer_is_told_what_was_seen(play: Play) -> None:
    """Where the replay cannot be asked for, the success that was seen is returned as another call's."""
    client, _ = play(says(202, waiting(replayed=True)), says(200, done()), drops)
    result = client.call(**REFUND, wait=5)
    assert isinstance(result, Done)
    assert result.replayed


def test_trouble_while_waiting_does_not_lose_what_is_known(play: Play) -> None:
    """Broken looks are repeated within the wait; one that will never do leaves the last that was known."""
    client, gateway = play(says(202, waiting()), drops, says(503, UNAVAILABLE), says(200, done()))
    assert client.call(**REFUND, wait=10)
    assert len(gateway.received) == 4

    client, gateway = play(says(202, waiting()), says(401, problem("key-revoked", 401)))
    assert isinstance(client.call(**REFUND, wait=10), Waiting)
    assert len(gateway.received) == 2


# Headers.


def test_a_call_carries_its_key_and_no_more(play: Play) -> None:
    """Authorization, JSON, and a request key only where one is wanted."""
    client, gateway = play(says(200, done()))
    client.call(**REFUND)
    headers = gateway.received[0].headers
    assert headers["authorization"] == "Bearer obx_key"
    assert headers["content-type"] == "application/json"
    assert "idempotency-key" not in headers
    assert "traceparent" not in headers


def test_request_keys_of_their_own(play: Play) -> None:
    """With `request_keys` every call has another key, the same in each of its tries; None or a key of the caller's wins."""
    client, gateway = play(drops, says(200, done()), request_keys=True)
    client.call(**REFUND)
    client.call(**REFUND)
    client.call(**REFUND, request_key=None)
    client.call(**REFUND, request_key="mine")
    keys = [request.headers.get("idempotency-key") for request in gateway.received]
    assert keys[0] == keys[1] is not None
    assert keys[2] not in (None, keys[0])
    assert keys[3:] == [None, "mine"]


def test_without_a_key_nothing_is_claimed(play: Play) -> None:
    """`key=None` sends no Authorization."""
    client, gateway = play(says(200, done()), key=None)
    client.call(**REFUND)
    assert "authorization" not in gateway.received[0].headers


def test_a_path_in_the_address_is_kept() -> None:
    """A gateway below a path of its host is asked there."""
    with serving(says(200, done())) as gateway, Outbox(url=f"{gateway.url}/teams/outbox/", key=None) as client:
        client.call(**REFUND)
    assert gateway.received[0].path == "/teams/outbox/v1/tool-calls"


def test_ids_stay_ids(play: Play) -> None:
    """What is given as an id cannot lead to another address."""
    client, gateway = play(says(404, problem("not-found", 404)))
    for ask in (client.get, client.receipt):
        with pytest.raises(errors.NotFoundError):
            ask("../tool-calls?x=1")
    assert [request.path for request in gateway.received] == [
        "/v1/reservations/..%2Ftool-calls%3Fx%3D1",
        "/v1/receipts/..%2Ftool-calls%3Fx%3D1",
    ]


# Processes, loops, cancellation.


def test_a_fork_does_not_share_connections() -> None:
    """A child process opens connections of its own: on a shared one each would read the other's answers."""
    with serving(says(200, done())) as gateway, Outbox(url=gateway.url, key=None) as client:
        client.call(**REFUND)
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                code = 0 if client.call(**REFUND) else 1
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.call(**REFUND)
    assert [request.connection for request in gateway.received] == [0, 1, 0]


def test_one_client_serves_several_event_loops() -> None:
    """An AsyncOutbox made once is used by one `asyncio.run` after another."""
    script = """
        import asyncio, sys
        from agent_outbox import AsyncOutbox
        client = AsyncOutbox(url=sys.argv[1], key=None)
        call = lambda: client.call(tool="stripe.refund.create", input={})
        for _ in range(2):
            assert asyncio.run(call())
    """
    with serving(says(200, done())) as gateway:
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), gateway.url]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert len(gateway.received) == 2


def test_works_without_opentelemetry() -> None:
    """Where opentelemetry is not installed, calls go without a trace; importing the client imports no framework."""
    script = """
        import sys
        sys.modules["opentelemetry"] = None
        from agent_outbox import Outbox
        for name in ("openai", "anthropic", "langchain_core", "stripe", "requests", "pydantic", "outbox_domain"):
            assert name not in sys.modules, name
        assert Outbox(url=sys.argv[1], key=None).call(tool="stripe.refund.create", input={})
    """
    with serving(says(200, done())) as gateway:
        command = [sys.executable, "-c", textwrap.dedent(script), gateway.url]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "traceparent" not in gateway.received[0].headers


async def test_a_cancelled_call_ends_at_once() -> None:
    """Cancelling whoever awaits a call ends it, and the client goes on to serve others."""
    with serving(hangs, says(200, done())) as gateway:
        async with AsyncOutbox(url=gateway.url, key=None) as client:
            task = asyncio.create_task(client.call(**REFUND))
            await asyncio.to_thread(wait_until, lambda: gateway.received, deadline_seconds=10, what="the request")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.call(**REFUND)


def test_many_threads_share_a_client() -> None:
    """Forty threads with one client each get the answer to their own call."""

    def echo(exchange: Exchange) -> None:
        exchange.answer(200, done(message=exchange.received.headers["idempotency-key"]))

    with serving(echo) as gateway, Outbox(url=gateway.url, key=None) as client:
        told: dict[str, str] = {}

        def ask(name: str) -> None:
            told[name] = client.call(**REFUND, request_key=name).as_tool_message()

        threads = [threading.Thread(target=ask, args=(f"key-{number}",)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert told == {f"key-{number}": f"key-{number}" for number in range(40)}


def test_a_client_that_is_closed_under_a_call_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread closes the client just as a call has taken its connections: the call goes on with new ones."""
    with serving(says(200, done())) as gateway, Outbox(url=gateway.url, key=None, spool=None) as outbox:
        take, closed = outbox._transport._client, list[object]()

        def closed_at_first() -> Any:
            taken = take()
            if not closed:
                closed.append(taken)
                outbox.close()
            return taken

        monkeypatch.setattr(outbox._transport, "_client", closed_at_first)
        assert isinstance(outbox.call(tool="stripe.refund.create", input={}), Done)
        assert closed


def test_errors_travel_between_processes() -> None:
    """A raised problem is the same after pickling, as multiprocessing and task queues do it."""
    with serving(says(401, problem("key-expired", 401))) as gateway, Outbox(url=gateway.url, key=None) as client:
        with pytest.raises(errors.KeyExpiredError) as caught:
            client.call(**REFUND)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is errors.KeyExpiredError
    assert (copy.code, copy.status, copy.message, copy.retry) == ("key-expired", 401, caught.value.message, caught.value.retry)
