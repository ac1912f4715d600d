"""What a run does: rounds, each with one nemesis and the operations that it meets, each of them at an edge of its own. Pure.

The first pass is derived from the seed alone. What is played after it is derived from the seed and from the cells still empty.
"""

import itertools
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Executor = Literal["gateway", "client"]
"""Who carries an effect out: a worker, or a caller of its own accord; the callers that do are *agents* here."""

REFUND, TICKET, MAIL = "stripe.refund.create", "sandbox.ticket.create", "sendgrid.mail.send"
RECORD, MESSAGE, LABEL = "sandbox.record.create", "sandbox.message.send", "sandbox.label.set"
SCHEDULED = "sandbox.mail.schedule"
OWN_REFUND, OWN_TICKET = "shop.refund.create", "desk.ticket.create"
CLASSES = {
    REFUND: "A",
    RECORD: "A",
    MESSAGE: "A",
    LABEL: "A",
    OWN_REFUND: "A",
    TICKET: "B",
    SCHEDULED: "B",
    OWN_TICKET: "B",
    MAIL: "C",
}
WAYS = {
    REFUND: "replay",
    RECORD: "conflict",
    MESSAGE: "window",
    LABEL: "natural",
    TICKET: "look-up",
    SCHEDULED: "cancel-first",
    MAIL: "person",
    OWN_REFUND: "hand-over",
    OWN_TICKET: "probe",
}
"""How each tool's doubts end."""

EXECUTORS: dict[str, Executor] = {name: "client" if name in (OWN_REFUND, OWN_TICKET) else "gateway" for name in CLASSES}
KEYED: dict[Executor, str] = {"gateway": REFUND, "client": OWN_REFUND}
"""The tool that a fault of keys (or of events, which no other tool's provider sends) is about."""

PLAIN: dict[Executor, tuple[str, ...]] = {"gateway": (REFUND, TICKET), "client": (OWN_REFUND, OWN_TICKET)}
"""The tools of operations that go ahead of a round."""

TOOL_WEIGHTS = {REFUND: 28, RECORD: 9, MESSAGE: 9, LABEL: 9, TICKET: 24, SCHEDULED: 9, MAIL: 12, OWN_REFUND: 18, OWN_TICKET: 18}
WAITS_SECONDS = (1, 2, 4, 7)
PATHS = {REFUND: "/v1/refunds", TICKET: "/v1/tickets", MAIL: "/v3/mail/send"}
PATHS |= {RECORD: "/v1/records", MESSAGE: "/v1/messages", LABEL: "/v1/labels", SCHEDULED: "/v1/mails"}
PATHS |= {OWN_REFUND: PATHS[REFUND], OWN_TICKET: PATHS[TICKET]}

LINKS: dict[str, tuple[str, ...]] = {
    "caller-api": ("caller-api",),
    "api-postgres": ("api-postgres",),
    "worker-postgres": ("worker-1-postgres", "worker-2-postgres"),
    "api-redis": ("api-redis",),
    "worker-redis": ("worker-1-redis", "worker-2-redis"),
    "worker-provider": ("worker-provider", "worker-forgetful"),
    "agent-api": ("agent-1-api", "agent-2-api"),
    "agent-provider": ("agent-1-provider", "agent-2-provider", "agent-1-forgetful", "agent-2-forgetful"),
}
"""Every pair of parts that talk to each other, and the links of the proxy between them."""

NETWORK_FAULTS = ("reset", "half-open", "delay", "drop", "hold-back", "slow")
PROCESS_NEMESES = (
    *("kill-api", "kill-worker", "freeze-worker", "kill-agent", "freeze-agent"),
    *("postgres-stop", "postgres-full", "redis-kill", "redis-flush"),
)
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
    resource: str | None = None
    """The last segment of the request's path."""

    gather_seconds: float = 2.0
    """How long calls are gathered there at most: a claim is worth nothing any more after a while."""

    executor: Executor = "gateway"
    """Whose effects pass it."""


def _of_agents(part: str, *, at: str = "agent-api", gather_seconds: float = 2.0, **what: str) -> Edge:
    links = LINKS.get(at, (at,))
    if "statement" not in what:
        what["method"] = "POST"
    return Edge(links=links, part=part, gather_seconds=gather_seconds, executor="client", **what)


COMMITTED, AGENT_COMMITTED = "provider committed, not answered", "provider committed, agent not answered"
EDGES = {
    "before T1": Edge(links=("api-postgres",), statement="reserve", part="whole"),
    "T1 in flight": Edge(links=("api-postgres",), statement="reserve", part="commit"),
    "after T1": Edge(links=("api-postgres",), statement="reserve", part="answer"),
    "T2 in flight": Edge(links=WORKER_POSTGRES, statement="claim", part="commit", gather_seconds=1.3),
    "after T2, before the send": Edge(links=WORKER_POSTGRES, statement="claim", part="answer", gather_seconds=1.3),
    "during the send": Edge(links=PROVIDER, method="POST", part="last-byte", gather_seconds=2.5),
    COMMITTED: Edge(links=PROVIDER, method="POST", part="answer", gather_seconds=2.5),
    "answered, before T3": Edge(links=WORKER_POSTGRES, statement="settle", part="whole", gather_seconds=2.8),
    "T3 in flight": Edge(links=WORKER_POSTGRES, statement="settle", part="commit", gather_seconds=2.8),
    "after T3": Edge(links=WORKER_POSTGRES, statement="settle", part="answer", gather_seconds=2.8),
    "agent, before its reservation": _of_agents("whole", resource="reservations"),
    "agent's reservation in flight": _of_agents("commit", at="api-postgres", statement="reserve"),
    "agent's reservation committed, not answered": _of_agents("answer", resource="reservations", gather_seconds=1.3),
    "in the handler, before its request": _of_agents("whole", at="agent-provider"),
    "during the handler's request": _of_agents("last-byte", at="agent-provider"),
    AGENT_COMMITTED: _of_agents("answer", at="agent-provider"),
    "handler done, before its settlement": _of_agents("whole", resource="settle"),
    "agent's settlement in flight": _of_agents("commit", at="api-postgres", statement="settle"),
    "agent's settlement committed": _of_agents("answer", at="api-postgres", statement="settle"),
    "agent's settlement made, not answered": _of_agents("answer", resource="settle"),
}
NOT_COMMITTING = ("drop-before-commit", "fail-500", "reject-402", "rate-limit")
"""Faults with which the provider commits nothing."""


def concerns(nemesis: str) -> frozenset[Executor]:
    """Whose effects pass through the part that a nemesis strikes."""
    if "agent" in nemesis:
        return frozenset({"client"})
    if "worker" in nemesis or nemesis.startswith("caller-api"):
        return frozenset({"gateway"})
    return frozenset({"gateway", "client"})


def impossible(nemesis: str, fault: str, edge: str) -> str | None:
    """Why a cell cannot be filled by construction; None where it can."""
    executor = EDGES[edge].executor
    if executor not in concerns(nemesis):
        if executor == "gateway":
            return "what a worker carries out does not pass through an agent"
        return "what an agent carries out passes through no worker, and reaches the API by a link of the agent's own"
    if executor == "client" and fault.startswith("webhook"):
        return "no event speaks of a tool whose contract is its caller's own"
    if edge in (COMMITTED, AGENT_COMMITTED) and fault in NOT_COMMITTING:
        return "with this fault the provider commits nothing"
    return None


Cell = tuple[str, str, str]
"""A nemesis, a fault, an edge: an operation that met the fault was at the edge when the nemesis struck."""

STAGES = (
    ("before T1", "T1 in flight", "after T1"),
    ("T2 in flight", "after T2, before the send"),
    ("during the send", COMMITTED),
    ("answered, before T3", "T3 in flight", "after T3"),
    ("agent, before its reservation", "agent's reservation in flight", "agent's reservation committed, not answered"),
    ("in the handler, before its request", "during the handler's request", AGENT_COMMITTED),
    (
        "handler done, before its settlement",
        "agent's settlement in flight",
        "agent's settlement committed",
        "agent's settlement made, not answered",
    ),
)
"""Edges that a crowd reaches at about the same time: one strike meets operations at all of them."""
assert tuple(itertools.chain(*STAGES)) == tuple(EDGES)

TOGETHER = (STAGES[:2], STAGES[2:4], *((stage,) for stage in STAGES[4:]))
"""Stages that a small crowd reaches in one round: who is stopped early must not wait for who comes late until its claim is worth nothing."""

AFTER_THE_SEND = (COMMITTED, *STAGES[3], AGENT_COMMITTED, *STAGES[6])


def possible_cells(nemeses: Iterable[str] = NEMESES) -> list[Cell]:
    """All cells that can be filled, nemesis by nemesis and edge by edge."""
    return [
        (nemesis, fault, edge)
        for nemesis in nemeses
        for edge in EDGES
        for fault in FAULTS
        if impossible(nemesis, fault, edge) is None
    ]


SLOW_SECONDS = 1.8
"""How late the provider commits at most. With what the network holds it stays within lease and settle time: else no look-up can know."""

SOON_SECONDS = 0.8
"""How late it is where the operation is awaited at an edge behind it: others are held there meanwhile."""

KEYS_MAX = 54
"""Operation keys in a round at most; all of a stage fit in."""

AHEAD = 3
"""Operations that go ahead of a round."""

COPIES_MAX = 4
"""Operation keys for one cell in a round at most, where earlier rounds left it empty."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One effect that somebody wants.

    Attributes:
        token: names its operation key everywhere.
        fault: one of `FAULTS`.
        delay_seconds: of the fault, or of the webhook.
        edge: where it is stopped; None where it only passes.
        connection: a number; the runner takes it modulo the connections there are.
        callers: when each of its callers begins, in seconds after the operation's own begin.
        waits: for how many seconds each of them lets the API wait.
        runs: each caller's run; different ones are forks of the work.
        conflicting: a further caller uses the key with another input.
        begins: seconds after the round's.
    """

    token: str
    tool: str
    fault: str
    delay_seconds: float
    edge: str | None
    connection: int
    callers: tuple[float, ...]
    waits: tuple[int, ...]
    runs: tuple[str | None, ...]
    conflicting: bool
    begins: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """One nemesis.

    Attributes:
        worker: which of the two workers, or agents, is struck, where one is.
        deliver: whether what was held is delivered after the strike, or lost with its connection.
        seconds: how long the nemesis lasts, where it has a duration.
        ahead: operations that meet nothing and go through before the others begin: what the last round broke has noticed it then.
    """

    number: int
    nemesis: str
    worker: int
    deliver: bool
    seconds: float
    ahead: tuple[Operation, ...]
    operations: tuple[Operation, ...]

    @property
    def edges(self) -> tuple[str, ...]:
        """Where it strikes."""
        wanted = {operation.edge for operation in self.operations}
        return tuple(edge for edge in EDGES if edge in wanted)


def operation(
    dice: random.Random,
    fault: str,
    edge: str | None = None,
    *,
    tools: Sequence[str] = tuple(CLASSES),
    crowd: int | None = None,
) -> Operation:
    """One operation that is to meet a fault and to be stopped at an edge; with so many callers, or as many as the dice say."""
    executor = None if edge is None else EDGES[edge].executor
    if fault == FORGET_KEYS or fault.startswith("webhook"):
        tool = KEYED[executor or "gateway"]
    elif fault == "fail-500" and executor == "client":
        tool = OWN_TICKET  # A client cannot say that its provider stores a failure, and would be given the same key for ever.
    else:
        there = [name for name in tools if executor in (None, EXECUTORS[name])]
        tool = dice.choices(there, [TOOL_WEIGHTS[name] for name in there])[0]
    soon = edge in AFTER_THE_SEND
    slow = dice.uniform(0.1, SOON_SECONDS if soon else SLOW_SECONDS)
    delay = {
        "delay": slow,
        "slow-commit": slow,
        "hang": slow if soon else dice.choice((dice.uniform(0.3, 1.2), dice.uniform(2.2, 3.0))),
        "rate-limit": 1.0,
    }.get(fault, dice.uniform(0.05, 2.0))
    number = crowd or dice.choices((1, 2, 3, 4, 6), (15, 20, 25, 25, 15))[0]
    # Most begin when the first one's call is under way: all at once they would wait for each other in front of every edge.
    starts = (dice.choice((0.0, *(dice.uniform(0.3, 4.0) for _ in range(5)))) for _ in range(number - 1))
    return Operation(
        token=f"op{dice.getrandbits(64):016x}",
        tool=tool,
        fault=fault,
        delay_seconds=round(delay, 3),
        edge=edge,
        connection=dice.randrange(1 << 30),
        callers=(0.0, *(round(start, 3) for start in starts)),
        waits=tuple(dice.choice(WAITS_SECONDS) for _ in range(number)),
        runs=tuple(dice.choice((None, None, f"run-{dice.randrange(20)}")) for _ in range(number)),
        conflicting=crowd is None and dice.random() < 0.03,
        begins=round(dice.uniform(0, 0.15), 3),
    )


def a_pass(
    seed: int, number: int, *, cells: Collection[Cell], copies: int = 1, keys_min: int = 0, keys_max: int = KEYS_MAX
) -> list[Round]:
    """Rounds that have an operation for each of these cells.

    Args:
        seed: of the run.
        number: of the pass: each draws anew.
        cells: those that are wanted; the rounds follow from them, and not from their order.
        copies: operations for each cell.
        keys_min: a round with fewer is filled up with further faults at its edges.
        keys_max: a round takes another stage as long as it has no more.
    """
    # By a text, and not by a tuple: the hash of a tuple is not promised to be the same in every process.
    dice = random.Random(f"{seed} {number}")
    wanted = set(cells)
    drawn: list[tuple[str, list[tuple[str, str]]]] = []
    for nemesis, stages in itertools.product(NEMESES, TOGETHER):
        crowd: list[tuple[str, str]] = []
        for stage in stages:
            here = [(fault, edge) for edge in stage for fault in FAULTS if (nemesis, fault, edge) in wanted] * copies
            if crowd and len(crowd) + len(here) > keys_max:
                drawn.append((nemesis, crowd))
                crowd = []
            crowd += here
        if crowd:
            drawn.append((nemesis, crowd))
    dice.shuffle(drawn)
    # What can end in a doubt for a person may never come to its fault: it is left out where a cell is tried again.
    tools = tuple(name for name, way in WAYS.items() if number == 0 or way != "person")
    return [
        _round(dice, place, nemesis, _filled_up(dice, crowd, keys_min), tools=tools)
        for place, (nemesis, crowd) in enumerate(drawn)
    ]


def _filled_up(dice: random.Random, crowd: Sequence[tuple[str, str]], number: int) -> list[tuple[str, str]]:
    edges = sorted({edge for _, edge in crowd})
    executor = EDGES[edges[0]].executor
    faults = [fault for fault in FAULTS if executor == "gateway" or not fault.startswith("webhook")]
    return [*crowd, *((dice.choice(faults), dice.choice(edges)) for _ in range(number - len(crowd)))]


def _round(dice: random.Random, number: int, nemesis: str, crowd: list[tuple[str, str]], *, tools: Sequence[str]) -> Round:
    dice.shuffle(crowd)
    return Round(
        number=number,
        nemesis=nemesis,
        worker=dice.randrange(2),
        deliver=dice.random() < 0.6,
        seconds=round(dice.uniform(0.3, 0.8), 3),
        ahead=tuple(operation(dice, "none", tools=PLAIN[EDGES[crowd[0][1]].executor], crowd=1) for _ in range(AHEAD)),
        operations=tuple(operation(dice, fault, edge, tools=tools) for fault, edge in crowd),
    )
