"""Agents keep asking while processes are killed, servers are taken away and the provider misbehaves: no effect happens twice.

A floor of progress fails a run in which nothing but errors happens. Embedded Postgres and Redis (none where there is no Redis).
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from tests.support.effects import Wish, a_mail, a_refund, a_ticket
from tests.support.outbox_up import PATHS, REFUND, Answer, OutboxUp, running
from tests.support.processes import gone

AGENTS = 12
SECONDS_BETWEEN_STRIKES = 1.5
PATIENCE_SECONDS = 90.0
SETTLED_MIN = 60
"""Refunds that must have come to their receipts: a handful for each agent, far below what an undisturbed run settles."""

FAULTS = ("commit-then-drop", "drop-before-commit", "truncate-body", "rate-limit", "delay", "slow-commit")
"""What the provider does to refunds; each of these ends with a receipt for who repeats the call."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutboxUp]:
    """A stack of this test's own, because its supervisor becomes slow to restart what dies often."""
    with running(tmp_path_factory.mktemp("up"), "--workers", "2", "--api-workers", "2") as started:
        yield started


def work(up: OutboxUp, seed: int, enough: Event) -> list[tuple[Wish, Answer]]:
    """One agent: wants one effect after the other, and asks for each until the answer is final."""
    dice = random.Random(seed)
    done: list[tuple[Wish, Answer]] = []
    while not enough.is_set():
        wish = dice.choices([a_refund, a_mail, a_ticket], [8, 1, 1])[0]()
        done.append((wish, wish.until_answered(up, deadline_seconds=PATIENCE_SECONDS)))
    return done


def strikes(up: OutboxUp, dice: random.Random) -> Iterator[str]:
    """Strikes one thing after the other; yields what it was."""
    order = ["worker", "redis", "api", "postgres", "worker", "freeze", "redis", "api", "postgres"]
    for kind in order:
        # What fell with something else is being replaced, and stands in the ready file until it is.
        alive = [pid for pid in up.pids("worker" if kind == "freeze" else kind) if not gone([pid])]
        if not alive:
            continue
        struck = dice.choice(alive)
        if kind == "freeze":
            up.freeze(struck)
            yield "froze a worker"
            up.thaw(struck)
        else:
            number = signal.SIGQUIT if kind == "postgres" else signal.SIGKILL
            up.kill(struck, number=number)
            yield f"{number.name} to {kind}"


def token_of(effect: dict[str, Any]) -> str:
    """The token of the wish that an effect is of: it stands in the payment, the subject or the title."""
    fields = effect["fields"]
    return str(next(fields[name] for name in ("payment_intent", "subject", "title") if name in fields))[-32:]


def test_everything_at_once(stack: OutboxUp) -> None:
    """Every refund ends with one effect and its receipt; no mail or ticket exists twice; and the run gets somewhere."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    enough = Event()
    with stack.checked() as up, ThreadPoolExecutor(AGENTS) as agents:
        pending = [agents.submit(work, up, seed + number, enough) for number in range(AGENTS)]
        try:
            for struck in strikes(up, dice):
                print(f"{time.monotonic():.2f} {struck}")
                up.sandbox.plan(PATHS[REFUND], dice.choice(FAULTS), times=2, delay_seconds=1.0)
                # Time must pass between strikes; an agent's end would mean that its patience was used up.
                assert not enough.wait(SECONDS_BETWEEN_STRIKES)
        finally:
            enough.set()
        done = [each for one in pending for each in one.result()]
        made: dict[str, list[str]] = {}
        for effect in up.sandbox.effects():
            made.setdefault(token_of(effect), []).append(effect["id"])
        for wish, answer in done:
            effects = made.get(wish.token, [])
            assert len(effects) <= 1, f"{wish} happened {len(effects)} times"
            if answer.status == 200:
                assert effects == [answer.document["receipt"]["external_reference"]], wish
            elif wish.tool != REFUND:
                assert (answer.status, answer.document["code"]) == (409, "in-doubt"), answer.body
        refunds = Counter(answer.status for wish, answer in done if wish.tool == REFUND)
        print(f"refunds by status: {refunds}")
        assert set(refunds) == {200}
        assert refunds[200] >= SETTLED_MIN
