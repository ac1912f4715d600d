"""One run: rounds strike while callers call; then everything comes to rest and is checked."""

import asyncio
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

from tests.fault.battery import callers, nemeses, schedule
from tests.fault.battery.callers import History, Wanted
from tests.fault.battery.checker import Evidence, Reservation, Violation, check
from tests.fault.battery.ground import Ground
from tests.fault.battery.network import Held
from tests.fault.battery.schedule import (
    CLASSES,
    COMMITTED,
    EDGES,
    FORGET_KEYS,
    PATHS,
    WORKER_POSTGRES,
    Cell,
    Operation,
    Round,
    impossible,
    possible_cells,
)
from tests.support.invariants import violations

REST_SECONDS = 120.0
QUIET_SECONDS = 0.6
PAUSE_SECONDS = 15.0
GATHER_SECONDS_MAX = 6.0
OPEN_MAX = 80
"""Operations under way at once; a round waits until there are fewer. More would measure the machine and not the product."""

TOKEN = re.compile(r"op[0-9a-f]{16}")

RESERVATIONS = """
select r.reference as token, r.state, r.tool, r.doubt_cause, r.external_reference, r.person_asked_at is not null as asked,
  o.due_at is not null as watched, r.created_at, r.settled_at,
  extract(epoch from r.created_at)::float8 as began, extract(epoch from r.settled_at)::float8 as ended,
  (select extract(epoch from min(e.at))::float8 from ledger_entries e
    where (e.organization_id, e.reservation_id) = (r.organization_id, r.id) and e.to_state = 'in_doubt') as doubted
from reservations r left join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id)
where r.reference like 'op%' order by r.created_at, r.id
"""
RESTLESS = """
select count(*) from open_reservations o join reservations r on (r.organization_id, r.id) = (o.organization_id, o.reservation_id)
where o.due_at < 'infinity' and r.reference like 'op%'
"""
CONTRADICTED = """
select distinct r.reference from reservations r join ledger_entries e on (e.organization_id, e.reservation_id) = (r.organization_id, r.id)
where e.kind = 'contradiction'
"""
ATTEMPTS = """
select r.reference as token, a.worker, extract(epoch from a.claimed_at)::float8 as began,
  extract(epoch from coalesce(a.closed_at, now()))::float8 as ended
from attempts a join reservations r on (r.organization_id, r.id) = (a.organization_id, a.reservation_id) where r.reference like 'op%'
"""


@dataclass(frozen=True, kw_only=True)
class Struck:
    """A round's strike and who was at its edge."""

    nemesis: str
    at: float
    until: float
    process_id: int | None
    held: Mapping[str, str]
    """The edge at which an operation was stopped when the nemesis struck, by its token."""


@dataclass(kw_only=True)
class Totals:
    """What a class of tools, or a tool, came to."""

    keys: int = 0
    faulted: int = 0
    receipts: int = 0
    refused: int = 0
    duplicates: int = 0
    lost: int = 0
    doubted: int = 0
    resolved: int = 0
    for_a_person: int = 0
    seconds: list[float] = field(default_factory=list)

    def count(self, row: Mapping[str, Any]) -> None:
        """One reservation, as `RESERVATIONS` reads it."""
        self.receipts += row["state"] == "succeeded"
        self.refused += row["state"] in ("failed", "voided")
        if row["doubted"] is None:
            return
        self.doubted += 1
        if row["ended"] is None:
            self.for_a_person += 1
        else:
            self.resolved += 1
            self.seconds.append(row["ended"] - row["doubted"])

    def percentile(self, share: int) -> float | None:
        """Seconds from the first doubt to the end, of those that ended by themselves."""
        if len(self.seconds) < 2:
            return self.seconds[0] if self.seconds else None
        return quantiles(self.seconds, n=100, method="inclusive")[share - 1]


@dataclass(kw_only=True)
class Result:
    """What a run came to.

    Attributes:
        cells: how often an operation that met the fault was at the edge when the nemesis struck.
        faulted_keys, faulted_calls: operations on whose path a fault fired: effects that were wanted, and calls.
    """

    seed: int
    evidence: Evidence
    found: list[Violation]
    cells: Counter[Cell]
    classes: dict[str, Totals]
    keys: int
    calls: int
    faulted_keys: int
    faulted_calls: int
    rounds: int
    seconds: float
    fired: Counter[str]
    missing: dict[str, str]


class Run:
    """Callers and strikes on one ground."""

    def __init__(self, ground: Ground, *, seed: int, history: History | None = None) -> None:
        """Nothing has happened yet."""
        self.ground = ground
        self.seed = seed
        self.history = history or History()
        self.operations: dict[str, Operation] = {}
        self.strikes: list[Struck] = []
        self.missing: dict[str, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._processes = 0
        self._began = time.time()

    # Operations.

    def begin(self, operation: Operation) -> asyncio.Task[Any]:
        """Plans the operation's fault and starts its callers; the task ends when all of them have their last word."""
        self.operations[operation.token] = operation
        return self._spawn(self._operate(operation))

    async def warm_up(self, number: int = 12) -> None:
        """Operations that meet nothing, until they are done: a process that has just begun is slow, and slow is not struck."""
        dice = random.Random(self.seed + 1)
        for _ in range(number):
            self.begin(schedule.operation(dice, "none"))
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _operate(self, operation: Operation) -> None:
        await asyncio.sleep(operation.begins)
        tenant = self.ground.tenants["forgetful" if operation.fault == FORGET_KEYS else "ordinary"]
        connection = tenant.connection(operation.tool, operation.connection)
        await self._plan(operation, connection)
        conflicting = len(operation.callers)
        starts = [*operation.callers, *([0.3] if operation.conflicting else [])]
        async with asyncio.TaskGroup() as group:
            for place, after in enumerate(starts):
                other = place == conflicting
                body = callers.tool_call(
                    operation.tool,
                    operation.token,
                    connection=connection,
                    run=None if other else operation.runs[place],
                    conflicting=other,
                )
                wanted = Wanted(
                    token=operation.token,
                    key=tenant.scene.agent_key,
                    body=body,
                    conflicting=other,
                    wait_seconds=operation.waits[place % conflicting],
                )
                group.create_task(self._call(wanted, after))

    async def _call(self, wanted: Wanted, after: float) -> None:
        self._processes += 1
        process = self._processes
        await asyncio.sleep(after)
        await callers.ask(self.history, self.ground.network.ports["caller-api"], wanted, process)

    async def _plan(self, operation: Operation, connection: str) -> None:
        fault, path = operation.fault, PATHS[operation.tool]
        if fault == "none":
            return
        document: dict[str, Any]
        if fault.startswith("webhook "):
            webhook = self.ground.tenants["ordinary"].webhooks[connection]
            document = {"mode": fault.partition(" ")[2], "path": path, "url": webhook.url, "secret": webhook.secret}
            document |= {"delay_seconds": operation.delay_seconds, "containing": operation.token}
            await self.control("ordinary", "webhooks", document)
            return
        name = "commit-then-drop" if fault == FORGET_KEYS else fault
        document = {"path": path, "fault": name, "delay_seconds": operation.delay_seconds, "containing": operation.token}
        await self.control("forgetful" if fault == FORGET_KEYS else "ordinary", "faults", document)

    async def control(self, sandbox: str, what: str, document: dict[str, Any] | None = None) -> Any:
        """Plans something at a provider, or reads its account."""
        port = int(self.ground.sandboxes[sandbox].rpartition(":")[2])
        if document is None:
            return json.loads(await _get(port, f"/_control/{what}"))
        status, body = await callers.post(port, f"/_control/{what}", json.dumps(document).encode(), {}, seconds=30)
        assert status == 200, body
        return json.loads(body)

    # Rounds.

    async def strike(self, round: Round) -> None:
        """One round: each operation comes to its edge, the nemesis strikes, and what was held goes on."""
        if (reason := nemeses.missing(self.ground, round.nemesis)) is not None:
            self.missing[round.nemesis] = reason
            return
        while len(self._tasks) > OPEN_MAX:
            await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([self.begin(operation) for operation in round.ahead], timeout=GATHER_SECONDS_MAX)
        holds = {edge: await self._hold(edge, round) for edge in round.edges}
        for operation in round.operations:
            self.begin(operation)
        await self._gather(holds, len(round.operations))
        worker = await self._worker(holds, round)
        forgets = any(operation.fault == FORGET_KEYS for operation in round.operations)
        async with nemeses.striking(self.ground, round.nemesis, worker=worker, seconds=round.seconds) as strike:
            held = {edge: await hold.release(deliver=round.deliver) for edge, hold in holds.items()}
            if forgets:
                self._spawn(self._forget())
        # Where a worker is struck, those that the other one was carrying were not.
        other = None if strike.process_id is None else WORKER_POSTGRES[1 - worker]
        self.strikes.append(
            Struck(
                nemesis=round.nemesis,
                at=strike.at,
                until=strike.until,
                process_id=strike.process_id,
                held={token: edge for edge, tokens in held.items() for token, link in tokens.items() if link != other},
            )
        )

    async def _worker(self, holds: Mapping[str, Held], round: Round) -> int:
        """The worker that more of the operations at the edges are with; the round's own choice where that says nothing."""
        links: Counter[str] = Counter()
        for hold in holds.values():
            links.update((await hold.tokens()).values())
        first, second = (links[link] for link in WORKER_POSTGRES)
        return round.worker if first == second else int(second > first)

    async def _hold(self, name: str, round: Round) -> Held:
        edge = EDGES[name]
        tokens = [operation.token for operation in round.operations if operation.edge == name]
        return await self.ground.network.hold(
            edge.links, part=edge.part, statement=edge.statement, method=edge.method, containing=tokens
        )

    async def _gather(self, holds: Mapping[str, Held], number: int) -> None:
        """Until so many are at their edges, or nobody comes any more, or the time is up."""
        loop = asyncio.get_running_loop()
        seconds = min(EDGES[edge].gather_seconds for edge in holds)
        give_up = loop.time() + GATHER_SECONDS_MAX
        met, last_came, first_came = 0, loop.time(), give_up
        while met < number and loop.time() < min(give_up, first_came + seconds):
            now = sum([len(await hold.tokens()) for hold in holds.values()])
            if now > met:
                first_came = min(first_came, loop.time())
                met, last_came = now, loop.time()
            elif met >= number // 2 and loop.time() - last_came > QUIET_SECONDS:
                return
            await asyncio.sleep(0.03)

    async def _forget(self) -> None:
        """The forgetful provider's keys are gone, again and again while operations of a round are under way."""
        for _ in range(4):
            await self.control("forgetful", "faults", {"fault": "forget-keys"})
            await asyncio.sleep(0.7)

    # The end.

    async def pause(self) -> None:
        """Waits until most callers have their last word, and not for those who have the most patience."""
        began = time.monotonic()
        while self._tasks and time.monotonic() < began + PAUSE_SECONDS:
            await asyncio.wait(set(self._tasks), timeout=1, return_when=asyncio.ALL_COMPLETED)

    async def rest(self) -> None:
        """Waits until every caller has its last word and nothing but people can move what is open.

        Raises:
            TimeoutError: something is still under way; the message says how much.
        """
        while self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5)
        scene = self.ground.tenants["ordinary"].scene
        deadline = time.monotonic() + REST_SECONDS
        while True:
            [row] = await scene.fetch(RESTLESS)
            if row["count"] == 0:
                return
            if time.monotonic() > deadline:
                return  # The checker names what is left and why it must not be.
            await asyncio.sleep(0.3)

    async def evidence(self) -> Evidence:
        """Everything that is known of what was recorded, made and written down."""
        scene = self.ground.tenants["ordinary"].scene
        rows = await scene.fetch(RESERVATIONS)
        contradicted = frozenset(row["reference"] for row in await scene.fetch(CONTRADICTED))
        effects = await self._effects()
        reservations: dict[str, list[Reservation]] = defaultdict(list)
        for row in rows:
            reservations[row["token"]].append(
                Reservation(
                    token=row["token"],
                    state=row["state"],
                    reason=row["doubt_cause"],
                    attended=bool(row["asked"] or row["watched"]),
                    external_reference=row["external_reference"],
                )
            )
        async with scene.connection() as connection:
            broken = await violations(connection)
        return Evidence(
            history=self.history.events,
            effects=effects,
            reservations=reservations,
            contradicted=contradicted,
            vouched=await self._vouched(effects),
            invariants=broken,
        )

    async def _effects(self) -> dict[str, list[str]]:
        """What the providers have done, by their own count: the references they gave, by token."""
        effects: dict[str, list[str]] = defaultdict(list)
        for sandbox in self.ground.sandboxes:
            made = await self.control(sandbox, "effects")
            called_off = {effect["fields"]["batch"] for effect in made if effect["resource"] == "mail_cancellation"}
            labels: set[str] = set()
            for effect in made:
                fields = json.dumps(effect["fields"], sort_keys=True)
                token = TOKEN.search(fields)
                # What was accepted and called off never comes, and to set a label once more to the same is no second effect.
                if token is None or effect["fields"].get("batch") in called_off or fields in labels:
                    continue
                if effect["resource"] == "label":
                    labels.add(fields)
                named_by_caller = effect["resource"] in ("label", "record")
                effects[token.group()].append(effect["result"]["id"] if named_by_caller else effect["id"])
        return effects

    async def result(self, *, progress_min: float) -> Result:
        """All of it, judged, and put into the table."""
        scene = self.ground.tenants["ordinary"].scene
        evidence = await self.evidence()
        found = check(evidence, progress_min=progress_min)
        return await self._judged(evidence, found, await scene.fetch(RESERVATIONS), await scene.fetch(ATTEMPTS))

    async def _vouched(self, effects: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """References of effects that there never were, and that the provider told of under its signature."""
        of_effect = {id: token for token, ids in effects.items() for id in ids}
        found: dict[str, list[str]] = defaultdict(list)
        for one in await self.control("ordinary", "webhooks"):
            if one["mode"] == "contradicting" and one["effect"] in of_effect:
                found[of_effect[one["effect"]]].append(f"{one['effect']}_other")
        return found

    async def _judged(
        self, evidence: Evidence, found: list[Violation], rows: Sequence[dict[str, Any]], attempts: Sequence[dict[str, Any]]
    ) -> Result:
        fired = await self._fired(evidence.effects, evidence.reservations)
        open_times = _open_times(self.history.events, rows)
        workers = _workers(attempts)
        windows = Windows(self.strikes)
        faulted = {token for token, of in open_times.items() if token in fired or windows.meet(of, workers.get(token, ()))}
        calls, faulted_calls = self._faulted_calls(fired, rows, workers)
        return Result(
            seed=self.seed,
            evidence=evidence,
            found=found,
            cells=self._cells(fired, workers),
            classes=self._classes(evidence, rows, faulted),
            keys=len(self.operations),
            calls=calls,
            faulted_keys=len(faulted & set(self.operations)),
            faulted_calls=faulted_calls,
            rounds=len(self.strikes),
            seconds=time.time() - self._began,
            fired=Counter(fired.values()),
            missing=dict(self.missing),
        )

    async def _fired(self, effects: Mapping[str, Sequence[str]], reserved: Collection[str]) -> dict[str, str]:
        """The faults that struck: planned ones that are not waiting any more, events that were sent, keys that were forgotten."""
        waiting = {one["containing"] for name in self.ground.sandboxes for one in await self.control(name, "faults")}
        of_effect = {id: token for token, ids in effects.items() for id in ids}
        told = {of_effect.get(one["effect"]) for one in await self.control("ordinary", "webhooks")}
        fired = {}
        for token, operation in self.operations.items():
            if operation.fault == "none":
                continue
            event = operation.fault.startswith("webhook")
            struck = token in told if event else token not in waiting and token in reserved
            if struck:
                fired[token] = operation.fault
        return fired

    async def standing(self) -> tuple[Counter[Cell], int]:
        """How the table stands while operations are under way, and how many calls have ended with a fault on their path."""
        scene = self.ground.tenants["ordinary"].scene
        rows = await scene.fetch(RESERVATIONS)
        effects = await self._effects()
        fired = await self._fired(effects, {row["token"] for row in rows})
        workers = _workers(await scene.fetch(ATTEMPTS))
        return self._cells(fired, workers), self._faulted_calls(fired, rows, workers)[1]

    def _cells(self, fired: Mapping[str, str], workers: "Workers") -> Counter[Cell]:
        cells: Counter[Cell] = Counter()
        for strike in self.strikes:
            for token, edge in strike.held.items():
                fault = self.operations[token].fault
                if fired.get(token, "none") != fault:
                    continue  # Its fault never struck: it stands for no column.
                if impossible(fault, edge):
                    continue
                if strike.process_id is not None and edge in ("during the send", COMMITTED):
                    by = {worker for began, ended, worker in workers.get(token, ()) if began <= strike.at <= ended + 1}
                    if not any(worker.endswith(f":{strike.process_id}") for worker in by):
                        continue
                cells[strike.nemesis, fault, edge] += 1
        return cells

    def _faulted_calls(self, fired: Mapping[str, str], rows: Iterable[Mapping[str, Any]], workers: "Workers") -> tuple[int, int]:
        """How many calls have ended, and how many of them met a nemesis or were made before their effect, which met a fault, was settled."""
        windows = Windows(self.strikes)
        settled = {row["token"]: row["ended"] or float("inf") for row in rows}
        begun: dict[int, float] = {}
        calls = faulted = 0
        for event in self.history.events:
            if event["type"] == "invoke":
                begun[event["call"]] = event["time"]
                continue
            calls += 1
            began, token = begun[event["call"]], event["key"]
            met = token in fired and began <= settled.get(token, 0.0)
            faulted += met or windows.meet((began, event["time"]), workers.get(token, ()))
        return calls, faulted

    def _classes(self, evidence: Evidence, rows: Iterable[dict[str, Any]], faulted: set[str]) -> dict[str, Totals]:
        totals = {name: Totals() for name in (*sorted(set(CLASSES.values())), *CLASSES)}
        for token, operation in self.operations.items():
            for of in (totals[CLASSES[operation.tool]], totals[operation.tool]):
                of.keys += 1
                of.faulted += token in faulted
                of.duplicates += len(evidence.effects.get(token, ())) > 1
        for row in rows:
            if row["token"] in self.operations:
                totals[CLASSES[row["tool"]]].count(row)
                totals[row["tool"]].count(row)
        for violation in check(evidence, progress_min=0.0):
            if violation.token in self.operations and violation.property in LOST:
                tool = self.operations[violation.token].tool
                totals[CLASSES[tool]].lost += 1
                totals[tool].lost += 1
        return totals


LOST = frozenset(
    {
        "each success receipt has exactly one effect",
        "an effect that happened is never denied",
        "what was acknowledged stays in the ledger",
        "every info ends resolved or in doubt with a reason",
    }
)


class Windows:
    """When which nemesis was at work, for asking whether an operation was open meanwhile."""

    def __init__(self, strikes: Sequence[Struck]) -> None:
        """Of one run; strikes follow one another."""
        self._strikes = sorted(strikes, key=lambda one: one.at)
        self._ends = [one.until for one in self._strikes]

    def meet(self, of: tuple[float, float], workers: Sequence[tuple[float, float, str]]) -> bool:
        """Whether a nemesis was at work on the way of an operation that was open from then to then.

        Network, Postgres, Redis and the one API are on the way of every operation; a worker is where it held an attempt.
        """
        from bisect import bisect_left

        for strike in self._strikes[bisect_left(self._ends, of[0]) :]:
            if strike.at > of[1]:
                return False
            if strike.process_id is None:
                return True
            name = f":{strike.process_id}"
            if any(began <= strike.until and ended >= strike.at and worker.endswith(name) for began, ended, worker in workers):
                return True
        return False


Workers = dict[str, list[tuple[float, float, str]]]
"""Which worker held an attempt from when to when, by token."""


def _workers(attempts: Iterable[Mapping[str, Any]]) -> Workers:
    found: Workers = defaultdict(list)
    for row in attempts:
        found[row["token"]].append((row["began"], row["ended"], row["worker"]))
    return found


def _open_times(events: Sequence[dict[str, Any]], rows: Iterable[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """From an operation's first call to its last word, or to the end of its reservation if that is later."""
    times: dict[str, tuple[float, float]] = {}
    for event in events:
        began, ended = times.get(event["key"], (event["time"], event["time"]))
        times[event["key"]] = (min(began, event["time"]), max(ended, event["time"]))
    for row in rows:
        if row["token"] in times and row["ended"] is not None:
            began, ended = times[row["token"]]
            times[row["token"]] = (began, max(ended, row["ended"]))
    return times


async def _get(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: battery\r\nConnection: close\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n", 1)[0], head
    body = await reader.read(-1)
    writer.close()
    return body


def empty_cells(cells: Counter[Cell], nemeses_struck: Iterable[str]) -> list[Cell]:
    """The cells that could be filled and are not."""
    return [cell for cell in possible_cells(nemeses_struck) if not cells[cell]]
