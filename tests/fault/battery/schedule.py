"""What a run does: rounds, each with one nemesis and the operations that it meets, each of them at an edge of its own. Pure.

The first pass is derived from the seed alone. What is played after it is derived from the seed and from the cells still empty.
"""

import itertools
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

REFUND, TICKET, MAIL = "stripe.refund.create", "sandbox.ticket.create", "sendgrid.mail.send"
RECORD, MESSAGE, LABEL = "sandbox.record.create", "sandbox.message.send", "sandbox.label.set"
SCHEDULED = "sandbox.mail.schedule"
CLASSES = {REFUND: "A", RECORD: "A", MESSAGE: "A", LABEL: "A", TICKET: "B", SCHEDULED: "B", MAIL: "C"}
WAYS = {
    REFUND: "replay",
    RECORD: "conflict",
    MESSAGE: "window",
    LABEL: "natural",
    TICKET: "look-up",
    SCHEDULED: "cancel-first",
    MAIL: "person",
}
"""How each tool's doubts end."""

TOOL_WEIGHTS = {REFUND: 28, RECORD: 9, MESSAGE: 9, LABEL: 9, TICKET: 24, SCHEDULED: 9, MAIL: 12}
WAITS_SECONDS = (1, 2, 4, 7)
PATHS = {REFUND: "/v1/refunds", TICKET: "/v1/tickets", MAIL: "/v3/mail/send"}
PATHS |= {RECORD: "/v1/records", MESSAGE: "/v1/messages", LABEL: "/v1/labels", SCHEDULED: "/v1/mails"}

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
    "T2 in flight": Edge(links=WORKER_POSTGRES, statement="claim", part="commit", gather_seconds=1.3),
    "after T2, before the send": Edge(links=WORKER_POSTGRES, statement="claim", part="answer", gather_seconds=1.3),
    "during the send": Edge(links=PROVIDER, method="POST", part="last-byte", gather_seconds=2.5),
    "provider committed, not answered": Edge(links=PROVIDER, method="POST", part="answer", gather_seconds=2.5),
    "answered, before T3": Edge(links=WORKER_POSTGRES, statement="settle", part="whole", gather_seconds=2.8),
    "T3 in flight": Edge(links=WORKER_POSTGRES, statement="settle", part="commit", gather_seconds=2.8),
    "after T3": Edge(links=WORKER_POSTGRES, statement="settle", part="answer", gather_seconds=2.8),
}
COMMITTED = "provider committed, not answered"
NOT_COMMITTING = ("drop-before-commit", "fail-500", "reject-402", "rate-limit")
"""Faults with which the provider commits nothing."""


def impossible(fault: str, edge: str) -> str | None:
    """Why a cell cannot be filled by construction; None where it can."""
    if edge == COMMITTED and fault in NOT_COMMITTING:
        return "with this fault the provider commits nothing"
    return None


Cell = tuple[str, str, str]
"""A nemesis, a fault, an edge: an operation that met the fault was at the edge when the nemesis struck."""

STAGES = (
    ("before T1", "T1 in flight", "after T1"),
    ("T2 in flight", "after T2, before the send"),
    ("during the send", COMMITTED),
    ("answered, before T3", "T3 in flight", "after T3"),
)
"""Edges that a crowd reaches at about the same time: one strike meets operations at all of them."""
assert tuple(itertools.chain(*STAGES)) == tuple(EDGES)

TOGETHER = (STAGES[:2], STAGES[2:])
"""Stages that a small crowd reaches in one round: who is stopped early must not wait for who comes late until its claim is worth nothing."""

AFTER_THE_SEND = (COMMITTED, *STAGES[-1])


def possible_cells(nemeses: Iterable[str] = NEMESES) -> list[Cell]:
    """All cells that can be filled, nemesis by nemesis and edge by edge."""
    return [
        (nemesis, fault, edge) for nemesis in nemeses for edge in EDGES for fault in FAULTS if impossible(fault, edge) is None
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
        worker: which of the two workers is struck, where one is.
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
    if fault == FORGET_KEYS or fault.startswith("webhook"):
        tool = REFUND
    else:
        tool = dice.choices(tools, [TOOL_WEIGHTS[name] for name in tools])[0]
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
    return [*crowd, *((dice.choice(FAULTS), dice.choice(edges)) for _ in range(number - len(crowd)))]


def _round(dice: random.Random, number: int, nemesis: str, crowd: list[tuple[str, str]], *, tools: Sequence[str]) -> Round:
    dice.shuffle(crowd)
    return Round(
        number=number,
        nemesis=nemesis,
        worker=dice.randrange(2),
        deliver=dice.random() < 0.6,
        seconds=round(dice.uniform(0.3, 0.8), 3),
        ahead=tuple(operation(dice, "none", tools=(REFUND, TICKET), crowd=1) for _ in range(AHEAD)),
        operations=tuple(operation(dice, fault, edge, tools=tools) for fault, edge in crowd),
    )
