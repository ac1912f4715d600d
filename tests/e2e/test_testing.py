"""`agent_outbox.testing` as a user meets it: faults played against tools of their own, and tools that must be seen to fail."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.rules.house import ROOT
from tests.support.pages import blocks

from agent_outbox import Done, ToolCall
from agent_outbox.effect import Effect
from agent_outbox.testing import FAULTS, Environment, Server
from agent_outbox.testing.fresh import fresh_environment
from agent_outbox.testing.local_server import StartFailed, named
from agent_outbox.testing.story import Story

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Key = Callable[[Effect], str | None]


@dataclass
class Shop:
    """A provider in this process, which agents in other processes reach over HTTP.

    Attributes:
        orders: the orders that were placed, by the name of the case.
    """

    url: str = ""
    orders: dict[str, list[str]] = field(default_factory=dict)
    _keys: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def place(self, case: str, key: str | None) -> str:
        """Places an order; one that came under the same key before is the same."""
        with self._lock:
            if key is not None and key in self._keys:
                return self._keys[key]
            placed = self.orders.setdefault(case, [])
            placed.append(f"ord_{case}_{len(placed)}")
            if key is not None:
                self._keys[key] = placed[-1]
            return placed[-1]

    def made(self, case: str) -> int:
        """How many orders of a case there are."""
        return len(self.orders.get(case, []))


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """The shop, open."""
    shop = Shop()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"id": shop.place(wish["case"], self.headers.get("Idempotency-Key"))}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shop.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield shop
    server.shutdown()
    server.server_close()
    thread.join(5)


def ordering(shop: Shop, key: Key = lambda effect: effect.provider_key) -> Callable[[Effect], dict[str, Any]]:
    """A tool of a user's: places an order under some key."""

    def place_order(effect: Effect) -> dict[str, Any]:
        found = key(effect)
        headers = {} if found is None else {"Idempotency-Key": found}
        answer = httpx2.post(f"{shop.url}/orders", json={"case": effect.input["case"]}, headers=headers, timeout=10)
        document: dict[str, Any] = answer.raise_for_status().json()
        return document

    return place_order


def order(case: str) -> ToolCall:
    """What an agent asks for."""
    return ToolCall(tool="shop.order.place", input={"case": case})


A: dict[str, Any] = {"key": "order:{case}", "guarantee_class": "A", "receipt": "id", "owner": "shop", "time_limit": 5.0}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tool_with_native_identity_happens_once(outbox_environment: Environment, shop: Shop, fault: str) -> None:
    """Class A: planned 1, succeeded 1, receipt 1, duplicates 0, whatever happens; the receipt names the shop's order."""
    case = f"a-{fault}"
    story = outbox_environment.play(fault, order(case), ordering(shop), **A)
    story.assert_once(effects=shop.made(case))
    story.assert_once()
    assert story.references == (shop.orders[case][0],)
    assert story.duplicates(effects=shop.made(case)) == 0
    assert story.executions == {"time-out": 2, "crash": 2, "loop": 1, "fork": 1}[fault], story.sentence()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tool_without_identity_never_happens_twice(outbox_environment: Environment, shop: Shop, fault: str) -> None:
    """Class C: once where nothing is lost, else a doubt that is said as one; `assert_once` says that it is not once."""
    case = f"c-{fault}"
    story = outbox_environment.play(fault, order(case), ordering(shop, lambda effect: None), **{**A, "guarantee_class": "C"})
    story.assert_never_twice(effects=shop.made(case))
    assert story.executions == 1, story.sentence()
    if fault in ("time-out", "crash"):
        assert story.told[-1] == "in-doubt"
        with pytest.raises(AssertionError, match="not once"):
            story.assert_once(effects=shop.made(case))
    else:
        story.assert_once(effects=shop.made(case))


def test_an_async_tool_happens_once(outbox_environment: Environment, shop: Shop) -> None:
    """A handler that is a coroutine is played the same way."""

    async def place_order(effect: Effect) -> dict[str, Any]:
        return await asyncio.to_thread(ordering(shop), effect)

    story = outbox_environment.play("time-out", order("async"), place_order, **A)
    story.assert_once(effects=shop.made("async"))


@pytest.mark.parametrize(
    "key", [lambda effect: None, lambda effect: effect.attempt_id], ids=["without-a-key", "a-key-for-each-attempt"]
)
def test_a_tool_that_repeats_itself_is_caught(outbox_environment: Environment, shop: Shop, key: Key) -> None:
    """Negative control: a tool that calls itself class A and does not send the effect's key makes two, and the story says so."""
    case = f"naive-{key(_ANY) is None}"
    story = outbox_environment.play("crash", order(case), ordering(shop, key), **A)
    assert shop.made(case) == 2
    assert story.duplicates(effects=2) == 1
    with pytest.raises(AssertionError, match="effects 2, duplicates 1"):
        story.assert_once(effects=shop.made(case))


def test_a_key_that_a_model_varies_is_caught(outbox_environment: Environment, shop: Shop) -> None:
    """Negative control: where the operation key holds the run, forks have an effect each, which is more than planned."""
    call = ToolCall(tool="shop.order.place", input={"case": "forked"})
    story = outbox_environment.play("fork", call, ordering(shop), **{**A, "scope": "run"})
    with pytest.raises(AssertionError, match="not once"):
        story.assert_once(effects=shop.made("forked"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tool_of_the_gateway_happens_once(outbox_environment: Environment, fault: str) -> None:
    """A shipped tool, carried out by the gateway: agents are killed, loop and fork; the sandbox provider counts one effect."""
    call = ToolCall(tool="stripe.refund.create", input={"payment_intent": "pi_same", "amount": 1200}, reference="case-1")
    outbox_environment.play(fault, call).assert_once()


def test_environments_have_nothing_in_common(outbox_server: Server, shop: Shop, tmp_path: Path) -> None:
    """The same call in two environments is two effects; each sees its own."""
    for number in (1, 2):
        (folder := tmp_path / str(number)).mkdir()
        environment = fresh_environment(outbox_server, folder)
        with environment.client() as client:
            result = client.run(order("shared"), ordering(shop), **A)
            assert isinstance(result, Done)
            assert not result.replayed
            assert len(list(client.find())) == 1
        assert shop.made("shared") == number


def test_the_page_can_be_followed(outbox_server: Server, tmp_path: Path) -> None:
    """The example of docs/testing-your-tools.md passes as it stands, on a named server; without its key it fails where it should."""
    [example] = [block.text for block in blocks(ROOT / "docs" / "testing-your-tools.md") if block.language == "python"]
    named = {
        "OUTBOX_TEST_URL": outbox_server.url,
        "OUTBOX_TEST_ADMIN_KEY": outbox_server.admin_key,
        "OUTBOX_TEST_SANDBOX_URL": outbox_server.sandbox_url or "",
    }

    def followed(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), name]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **named}, capture_output=True, text=True, timeout=200)
        return done.stdout + done.stderr

    assert "4 passed" in followed("test_shop.py", example)
    careless = example.replace("(shop / idempotency_key)", "(shop / str(__import__('time').time_ns()))")
    assert careless != example
    shown = followed("test_careless.py", careless)
    assert "2 failed, 2 passed" in shown, shown
    for fault in ("time-out", "crash"):
        assert f"not once: {fault}: planned 1, succeeded 1, receipts 1, effects 2, duplicates 1" in shown, shown


def test_a_named_server_is_used() -> None:
    """OUTBOX_TEST_URL names a server that runs already; without its admin key that is said, and nothing is started."""
    assert named({}) is None
    found = named({"OUTBOX_TEST_URL": "http://127.0.0.1:1", "OUTBOX_TEST_ADMIN_KEY": "k", "OUTBOX_TEST_SANDBOX_URL": ""})
    assert found == Server(url="http://127.0.0.1:1", admin_key="k", sandbox_url=None)
    with pytest.raises(StartFailed, match="OUTBOX_TEST_ADMIN_KEY"):
        named({"OUTBOX_TEST_URL": "http://127.0.0.1:1"})


def test_a_story_that_nobody_counted_is_not_judged() -> None:
    """Without any count of effects there is no verdict; a fault that there is not is refused."""
    story = Story(fault="loop", told=("done",), planned=1, succeeded=1, receipts=1, references=("r",), executions=0, effects=None)
    with pytest.raises(ValueError, match="effects="):
        story.assert_once()
    story.assert_once(effects=1)


_ANY: Any = type("Any", (), {"attempt_id": "x"})()
