"""What a run does, derived from its seed alone: rounds, each with one nemesis at one edge, and the operations that meet it. Pure."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

REFUND, TICKET, MAIL = "stripe.refund.create", "sandbox.ticket.create", "sendgrid.mail.send"
CLASSES = {REFUND: "A", TICKET: "B", MAIL: "C"}
PATHS = {REFUND: "/v1/refunds", TICKET: "/v1/tickets", MAIL: "/v3/mail/send"}

LINKS: dict[str, tuple[str, ...]] = {
    "caller-api": ("caller-api",),
    "api-postgres": ("api-postgres",),
    "worker-postgres": ("worker-1-postgres", "worker-2-postgres"),
    "api-redis": ("api-redis",),
    "worker-redis": ("worker-1-redis", "worker-2-redis"),
    "worker-provider": ("worker-provider", "worker-forgetful"),
}
"""Every pair of parts that talk to each other, and the links of the proxy between them."""

NETWORK_FAULTS = ("reset", "half-open", "delay", "drop", "hold-back", "slow")
PROCESS_NEMESES = ("kill-api", "kill-worker", "freeze-worker", "postgres-stop", "postgres-full", "redis-kill", "redis-flush")
NEMESES = (*PROCESS_NEMESES, *(f"{pair} {fault}" for pair in LINKS for fault in NETWORK_FAULTS))

REQUEST_FAULTS = (
    "commit-then-drop",
    "commit-then-500",
    "drop-before-commit",
    "delay",
    "hang",
    "slow-commit",
    "truncate-body",
    "fail-500",
    "reject-402",
    "rate-limit",
)
FORGET_KEYS = "forget-keys"
WEBHOOKS = ("early", "late", "twice", "contradicting", "forged")
FAULTS = ("none", *REQUEST_FAULTS, FORGET_KEYS, *(f"webhook {mode}" for mode in WEBHOOKS))

WORKER_POSTGRES = LINKS["worker-postgres"]
PROVIDER = LINKS["worker-provider"]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A place between two steps of a call, and how the proxy holds calls there."""

    links: tuple[str, ...]
    part: str
    statement: str | None = None
    method: str | None = None
    gather_seconds: float = 2.0
    """How long calls are gathered there at most: a claim is worth nothing any more after a while."""


EDGES = {
    "before T1": Edge(links=("api-postgres",), statement="reserve", part="whole"),
    "T1 in flight": Edge(links=("api-postgres",), statement="reserve", part="commit"),
    "after T1": Edge(links=("api-postgres",), statement="reserve", part="answer"),
    "T2 in flight": Edge(links=WORKER_POSTGRES, statement="claim", part="commit", gather_seconds=0.9),
    "after T2, before the send": Edge(links=WORKER_POSTGRES, statement="claim", part="answer", gather_seconds=0.9),
    "during the send": Edge(links=PROVIDER, method="POST", part="last-byte"),
    "provider committed, not answered": Edge(links=PROVIDER, method="POST", part="answer"),
    "answered, before T3": Edge(links=WORKER_POSTGRES, statement="settle", part="whole"),
    "T3 in flight": Edge(links=WORKER_POSTGRES, statement="settle", part="commit"),
    "after T3": Edge(links=WORKER_POSTGRES, statement="settle", part="answer"),
}
COMMITTED = "provider committed, not answered"
NOT_COMMITTING = ("drop-before-commit", "fail-500", "reject-402", "rate-limit")
"""Faults with which the provider commits nothing."""


def impossible(fault: str, edge: str) -> str | None:
    """Why a cell cannot be filled by construction; None where it can."""
    if edge == COMMITTED and fault in NOT_COMMITTING:
        return "with this fault the provider commits nothing"
    return None


SLOW_SECONDS = 1.8
"""How late the provider commits at most. With what the network holds it stays within lease and settle time: else no look-up can know."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One effect that somebody wants.

    Attributes:
        token: names its operation key everywhere.
        fault: one of `FAULTS`.
        delay_seconds: of the fault, or of the webhook.
        connection: a number; the runner takes it modulo the connections there are.
        callers: when each of its callers begins, in seconds after the operation's own begin.
        runs: each caller's run; different ones are forks of the work.
        conflicting: a further caller uses the key with another input.
        begins: seconds after the round's.
    """

    token: str
    tool: str
    fault: str
    delay_seconds: float
    connection: int
    callers: tuple[float, ...]
    runs: tuple[str | None, ...]
    conflicting: bool
    begins: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """One nemesis at one edge.

    Attributes:
        worker: which of the two workers is struck, where one is.
        deliver: whether what was held is delivered after the strike, or lost with its connection.
        seconds: how long the nemesis lasts, where it has a duration.
    """

    number: int
    nemesis: str
    edge: str
    worker: int
    deliver: bool
    seconds: float
    operations: tuple[Operation, ...]


def operation(dice: random.Random, fault: str) -> Operation:
    """One operation that is to meet a fault."""
    if fault == FORGET_KEYS or fault.startswith("webhook"):
        tool = REFUND
    else:
        tool = dice.choices((REFUND, TICKET, MAIL), (45, 40, 15))[0]
    delay = {
        "delay": dice.uniform(0.1, SLOW_SECONDS),
        "slow-commit": dice.uniform(0.1, SLOW_SECONDS),
        "hang": dice.choice((dice.uniform(0.3, 1.2), dice.uniform(2.2, 3.0))),
        "rate-limit": 1.0,
    }.get(fault, dice.uniform(0.05, 2.0))
    number = dice.choices((1, 2, 3), (55, 35, 10))[0]
    return Operation(
        token=f"op{dice.getrandbits(64):016x}",
        tool=tool,
        fault=fault,
        delay_seconds=round(delay, 3),
        connection=dice.randrange(1 << 30),
        callers=(0.0, *(round(dice.choice((0.0, dice.uniform(0, 0.5), dice.uniform(0, 4))), 3) for _ in range(number - 1))),
        runs=tuple(dice.choice((None, None, f"run-{dice.randrange(20)}")) for _ in range(number)),
        conflicting=dice.random() < 0.03,
        begins=round(dice.uniform(0, 0.15), 3),
    )


def rounds(seed: int, *, operations_per_round: int, nemeses: tuple[str, ...] = NEMESES) -> Iterator[Round]:
    """Rounds without end: each pass strikes with every nemesis at every edge once, in an order of its own."""
    dice = random.Random(seed)
    number = 0
    while True:
        order = [(nemesis, edge) for nemesis in nemeses for edge in EDGES]
        dice.shuffle(order)
        for nemesis, edge in order:
            fillers = dice.choices(FAULTS, k=max(0, operations_per_round - len(FAULTS)))
            faults = [*FAULTS, *fillers] if operations_per_round >= len(FAULTS) else dice.sample(FAULTS, operations_per_round)
            dice.shuffle(faults)
            yield Round(
                number=number,
                nemesis=nemesis,
                edge=edge,
                worker=dice.randrange(2),
                deliver=dice.random() < 0.6,
                seconds=round(dice.uniform(0.3, 0.8), 3),
                operations=tuple(operation(dice, fault) for fault in faults),
            )
            number += 1
