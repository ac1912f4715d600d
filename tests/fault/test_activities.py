"""Activities of a workflow engine: retried until they return, each time in a process of their own, and killed at the worst moment.

A workflow engine promises that an activity is run at least once. These activities ask Outbox for their effect, so that it happens
once: by the gateway (`call`), or by their own code (`run`).
"""

import json
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.support.outbox_up import OutboxUp, running
from tests.support.processes import ChildProcess, start_command

REFUNDS = "/v1/refunds"
ATTEMPTS_MAX = 5
ATTEMPT_SECONDS = 90.0
HELD_SECONDS = 60.0
SLOW_SECONDS = 1.5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

GATEWAY_EXECUTED = """
import sys
from agent_outbox import Outbox

payment = sys.argv[1]
with Outbox(run="workflow-1") as outbox:
    result = outbox.call(tool="stripe.refund.create", input={"payment_intent": payment, "amount": 1200}, reference="case-1")
print(result.as_tool_message())
print(result.receipt.external_reference if result else "")
sys.exit(0 if result else 1)
"""

CLIENT_EXECUTED = """
import os, sys
import httpx2
from agent_outbox import Outbox, ToolCall

payment = sys.argv[1]

def refund(effect):
    headers = {"Authorization": "Bearer sk_test_1", "Idempotency-Key": effect.provider_key}
    fields = {"payment_intent": effect.input["payment"], "amount": "1200"}
    answer = httpx2.post(os.environ["PROVIDER_URL"] + "/v1/refunds", data=fields, headers=headers, timeout=60)
    return answer.raise_for_status().json()

call = ToolCall(tool="shop.refund", input={"payment": payment})
with Outbox(run="workflow-1") as outbox:
    result = outbox.run(
        call, refund, key="refund:{payment}", guarantee_class="A", receipt="id", owner="shop", time_limit=30, wait=45
    )
print(result.as_tool_message())
print(result.receipt.external_reference if result else "")
sys.exit(0 if result else 1)
"""

ACTIVITIES = {"gateway": GATEWAY_EXECUTED, "client": CLIENT_EXECUTED}


class Engine:
    """Runs one activity until it returns, as often as it takes."""

    def __init__(self, up: OutboxUp, folder: Path, script: str) -> None:
        """Nothing runs yet; the payment is this activity's own."""
        self.payment = f"pi_{uuid4().hex}"
        self._up, self._folder, self._script = up, folder, textwrap.dedent(script)
        self._attempts = 0

    def attempt(self) -> ChildProcess:
        """One more attempt, running."""
        self._attempts += 1
        env = {
            "OUTBOX_URL": self._up.url,
            "OUTBOX_KEY": self._up.ready()["agent_key"],
            "OUTBOX_SPOOL": str(self._folder / "spool"),
            "PROVIDER_URL": self._up.sandbox.url,
        }
        command = [sys.executable, "-c", self._script, self.payment]
        return start_command(command, env=env, folder=self._folder, name=f"attempt-{self._attempts}")

    def until_returned(self) -> str:
        """Attempts until one returns; the provider's name of the effect, as the activity was told it."""
        for _ in range(ATTEMPTS_MAX):
            activity = self.attempt()
            if activity.wait(deadline_seconds=ATTEMPT_SECONDS) == 0:
                return activity.log().splitlines()[-1]
        raise AssertionError(f"no attempt returned; the last one wrote:\n{activity.log()}")

    def effects(self) -> list[dict[str, Any]]:
        """What the provider has made for this activity."""
        return [one for one in self._up.sandbox.effects(REFUNDS) if self.payment in json.dumps(one)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutboxUp]:
    """One `outbox up` for the tests of this module."""
    with running(tmp_path_factory.mktemp("up")) as started:
        yield started


@pytest.fixture
def up(stack: OutboxUp) -> Iterator[OutboxUp]:
    """The stack, asked for its invariants when the test is over."""
    with stack.checked():
        yield stack


@pytest.mark.parametrize("by", ACTIVITIES)
def test_killed_when_the_effect_has_happened(up: OutboxUp, tmp_path: Path, by: str) -> None:
    """SIGKILL when the provider has committed and the activity knows nothing of it: the retry returns the one effect."""
    engine = Engine(up, tmp_path, ACTIVITIES[by])
    up.sandbox.plan(REFUNDS, "hang", delay_seconds=HELD_SECONDS)
    first = engine.attempt()
    first.wait_for(engine.effects)
    assert first.kill() == -signal.SIGKILL
    told = engine.until_returned()
    assert [effect["id"] for effect in engine.effects()] == [told]


@pytest.mark.parametrize("by", ACTIVITIES)
def test_killed_between_the_effect_and_the_return(up: OutboxUp, tmp_path: Path, by: str) -> None:
    """The handler has returned and the settlement is on its way to an API that stands still; SIGKILL; the retry returns the one effect."""
    engine = Engine(up, tmp_path, ACTIVITIES[by])
    seen = len(up.sandbox.requests(path=REFUNDS))
    up.sandbox.plan(REFUNDS, "delay", delay_seconds=SLOW_SECONDS)
    first = engine.attempt()
    first.wait_for(lambda: up.sandbox.requests(path=REFUNDS)[seen:])
    up.freeze(*up.pids("api"))
    first.wait_for(lambda: any(one["status"] is not None for one in up.sandbox.requests(path=REFUNDS)[seen:]))
    assert first.process.poll() is None, first.log()
    first.kill()
    up.thaw(*up.pids("api"))
    told = engine.until_returned()
    assert [effect["id"] for effect in engine.effects()] == [told]


@pytest.mark.parametrize("by", ACTIVITIES)
def test_run_again_when_it_had_returned(up: OutboxUp, tmp_path: Path, by: str) -> None:
    """An engine that loses an activity's return runs it again: it is told of the same effect, and nothing is sent."""
    engine = Engine(up, tmp_path, ACTIVITIES[by])
    told = [engine.until_returned() for _ in range(3)]
    assert [effect["id"] for effect in engine.effects()] == [told[0]]
    assert set(told) == {told[0]}
