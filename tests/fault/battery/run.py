"""One run: rounds strike while callers call; then everything comes to rest and is checked."""

import asyncio
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import quantiles
from typing import Any

from tests.fault.battery import callers, nemeses, schedule
from tests.fault.battery.agents import WantedByAgent
from tests.fault.battery.callers import History, Wanted
from tests.fault.battery.checker import AT_MOST_ONE, PROGRESS, Evidence, Reservation, Violation, check
from tests.fault.battery.ground import Ground
from tests.fault.battery.network import Held
from tests.fault.battery.schedule import (
    CLASSES,
    COMMITTED,
    EDGES,
    EXECUTORS,
    FORGET_KEYS,
    PATHS,
    WORKER_POSTGRES,
    Cell,
    Operation,
    Round,
    concerns,
    impossible,
    possible_cells,
)
from tests.support.invariants import violations

REST_SECONDS = 120.0
QUIET_SECONDS = 0.6
LOOK_SECONDS = 0.03
CUT_SHORT_SECONDS = 10.0
"""How long an interrupted run waits for what is under way."""

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
select r.reference as token from open_reservations o join reservations r on (r.organization_id, r.id) = (o.organization_id, o.reservation_id)
where o.due_at < 'infinity' and r.reference like 'op%' and not (r.executor = 'client' and r.state = 'in_doubt')
"""
"""A doubt about what an agent carries out moves by its callers alone."""

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
    holder: str | None
    """How the name of the worker or the agent that was struck ends; None where the strike was none of a single one."""

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
    restless: int


class Run:
    """Callers and strikes on one ground."""

    def __init__(self, ground: Ground, *, seed: int, history: History | None = None, stop: asyncio.Event | None = None) -> None:
        """Nothing has happened yet.

        Args:
            ground: what is attacked.
            seed: of the run.
            history: where it is recorded.
            stop: once it is set, nothing new is begun and nothing is waited for that can be done without.
        """
        self.ground = ground
        self.seed = seed
        self.history = history or History()
        self.stop = stop or asyncio.Event()
        self.restless: frozenset[str] = frozenset()
        self.operations: dict[str, Operation] = {}
        self.strikes: list[Struck] = []
        self.missing: dict[str, str] = {}
        self._tasks: dict[asyncio.Task[Any], str | None] = {}
        self._processes = 0
        self._began = time.time()

    # Operations.

    def begin(self, operation: Operation) -> asyncio.Task[Any]:
        """Plans the operation's fault and starts its callers; the task ends when all of them have their last word."""
        self.operations[operation.token] = operation
        return self._spawn(self._operate(operation), operation.token)

    async def warm_up(self, number: int = 12) -> None:
        """Operations that meet nothing, until they are done: a process that has just begun is slow, and slow is not struck."""
        dice = random.Random(self.seed + 1)
        for _ in range(number):
            self.begin(schedule.operation(dice, "none"))
        await self._while(lambda: bool(self._tasks))

    def _spawn(self, work: Coroutine[Any, Any, None], token: str | None) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks[task] = token
        task.add_done_callback(self._tasks.pop)
        return task

    async def _while(self, goes_on: Callable[[], bool], seconds: float = float("inf")) -> None:
        """Waits while something goes on, for so long at most, and no longer once the run is to stop."""
        until = time.monotonic() + seconds
        while goes_on() and not self.stop.is_set() and (left := until - time.monotonic()) > 0:  # noqa: ASYNC110 - anything may end it
            await asyncio.sleep(min(left, LOOK_SECONDS))

    async def _operate(self, operation: Operation) -> None:
        await asyncio.sleep(operation.begins)
        sandbox = "forgetful" if operation.fault == FORGET_KEYS else "ordinary"
        tenant = self.ground.tenants[sandbox]
        by_agents = EXECUTORS[operation.tool] == "client"
        connection = "" if by_agents else tenant.connection(operation.tool, operation.connection)
        await self._plan(operation, connection)
        conflicting = len(operation.callers)
        starts = [*operation.callers, *([0.3] if operation.conflicting else [])]
        async with asyncio.TaskGroup() as group:
            for place, after in enumerate(starts):
                other = place == conflicting
                run = None if other else operation.runs[place]
                wait_seconds = operation.waits[place % conflicting]
                if by_agents:
                    wanted_by_agent = WantedByAgent(
                        token=operation.token,
                        tool=operation.tool,
                        key=tenant.scene.agent_key,
                        sandbox=sandbox,
                        conflicting=other,
                        run=run,
                        wait_seconds=wait_seconds,
                    )
                    # Its callers are in both processes: one that lives may take over from one that was struck.
                    group.create_task(self._call_by_agent((operation.connection + place) % 2 + 1, wanted_by_agent, after))
                    continue
                body = callers.tool_call(operation.tool, operation.token, connection=connection, run=run, conflicting=other)
                wanted = Wanted(
                    token=operation.token, key=tenant.scene.agent_key, body=body, conflicting=other, wait_seconds=wait_seconds
                )
                group.create_task(self._call(wanted, after))

    async def _call(self, wanted: Wanted, after: float) -> None:
        process = self._new_process()
        await asyncio.sleep(after)
        await callers.ask(self.history, self.ground.network.ports["caller-api"], wanted, process)

    async def _call_by_agent(self, number: int, wanted: WantedByAgent, after: float) -> None:
        process = self._new_process()
        await asyncio.sleep(after)
        ports = self.ground.agent_ports(number)
        await self.ground.agents.ask(self.history, number, wanted, process, provider_ports=ports)

    def _new_process(self) -> int:
        self._processes += 1
        return self._processes

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
        self.ground.assert_agents_live()
        await self._while(lambda: len(self._tasks) > OPEN_MAX)
        ahead = [self.begin(operation) for operation in round.ahead if not self.stop.is_set()]
        await self._while(lambda: not all(task.done() for task in ahead), GATHER_SECONDS_MAX)
        if self.stop.is_set():
            return
        holds = {edge: await self._hold(edge, round) for edge in round.edges}
        for operation in round.operations:
            self.begin(operation)
        await self._gather(holds, len(round.operations))
        carriers = await self._carriers(holds)
        with_each = Counter(carriers.values())
        # The worker, or agent, that more of them are with; the round's own choice where that says nothing.
        worker = round.worker if with_each[0] == with_each[1] else int(with_each[1] > with_each[0])
        forgets = any(operation.fault == FORGET_KEYS for operation in round.operations)
        async with nemeses.striking(self.ground, round.nemesis, worker=worker, seconds=round.seconds) as strike:
            held = {edge: await hold.release(deliver=round.deliver) for edge, hold in holds.items()}
            if forgets:
                self._spawn(self._forget(), None)
        self.strikes.append(
            Struck(
                nemesis=round.nemesis,
                at=strike.at,
                until=strike.until,
                holder=strike.holder,
                held={
                    token: edge
                    for edge, tokens in held.items()
                    for token, link in tokens.items()
                    if strike.holder is None or _was_struck(round.nemesis, _by_link(link, carriers.get(token)), worker)
                },
            )
        )

    async def _carriers(self, holds: Mapping[str, Held]) -> dict[str, int | None]:
        """Which of the two workers, or agents, the operations at the edges are with: 0 or 1, by token; None where nothing tells."""
        carriers: dict[str, int | None] = {}
        for hold in holds.values():
            for token, link in (await hold.tokens()).items():
                agents = self.ground.agents.carrying(token)
                carriers[token] = _by_link(link, agents.pop() - 1 if len(agents) == 1 else None)
        return carriers

    async def _hold(self, name: str, round: Round) -> Held:
        edge = EDGES[name]
        tokens = [operation.token for operation in round.operations if operation.edge == name]
        return await self.ground.network.hold(
            edge.links, part=edge.part, statement=edge.statement, method=edge.method, resource=edge.resource, containing=tokens
        )

    async def _gather(self, holds: Mapping[str, Held], number: int) -> None:
        """Until so many are at their edges, or nobody comes any more, or the time is up."""
        loop = asyncio.get_running_loop()
        seconds = min(EDGES[edge].gather_seconds for edge in holds)
        give_up = loop.time() + GATHER_SECONDS_MAX
        met, last_came, first_came = 0, loop.time(), give_up
        while met < number and loop.time() < min(give_up, first_came + seconds) and not self.stop.is_set():
            now = sum([len(await hold.tokens()) for hold in holds.values()])
            if now > met:
                first_came = min(first_came, loop.time())
                met, last_came = now, loop.time()
            elif met >= number // 2 and loop.time() - last_came > QUIET_SECONDS:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _forget(self) -> None:
        """The forgetful provider's keys are gone, again and again while operations of a round are under way."""
        for _ in range(4):
            await self.control("forgetful", "faults", {"fault": "forget-keys"})
            await asyncio.sleep(0.7)

    # The end.

    async def pause(self) -> None:
        """Waits until most callers have their last word, and not for those who have the most patience."""
        await self._while(lambda: bool(self._tasks), PAUSE_SECONDS)

    async def rest(self) -> None:
        """Waits until every caller has its last word and nothing but people can move what is open.

        An interrupted run does not wait for long. What has not come to rest then is set aside: it is not counted, and of what must
        hold only that nothing happens twice is asked of it, which holds at any time.
        """
        await self._while(lambda: bool(self._tasks))
        self.ground.assert_agents_live()
        scene = self.ground.tenants["ordinary"].scene
        deadline = time.monotonic() + REST_SECONDS
        cut_short: float | None = None
        while True:
            if self.stop.is_set() and cut_short is None:
                cut_short = time.monotonic() + CUT_SHORT_SECONDS
            rows = {row["token"] for row in await scene.fetch(RESTLESS)}
            if not rows and not self._tasks:
                return
            if cut_short is not None and time.monotonic() > cut_short:
                self.restless = frozenset(rows | {token for token in self._tasks.values() if token is not None})
                for task in self._tasks:
                    task.cancel()
                return
            if cut_short is None and time.monotonic() > deadline:
                return  # The checker names what is left and why it must not be.
            await asyncio.sleep(0.3)

    async def evidence(self) -> Evidence:
        """Everything that is known of what was recorded, made and written down, whether it has come to rest or not."""
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
        everything = await self.evidence()
        twice = [one for one in check(everything, progress_min=0.0) if one.property == AT_MOST_ONE and one.token in self.restless]
        evidence = self._at_rest(everything)
        rows, attempts = await scene.fetch(RESERVATIONS), await scene.fetch(ATTEMPTS)
        rows = [row for row in rows if row["token"] not in self.restless]
        found = check(evidence, progress_min=progress_min)
        if self.stop.is_set():
            # It was not given the time that progress takes.
            found = [one for one in found if one.property != PROGRESS]
        return await self._judged(evidence, [*twice, *found], rows, attempts)

    def _at_rest(self, evidence: Evidence) -> Evidence:
        """What is left without that which has not come to rest; the operations and the history of this run are left without it too."""
        if not self.restless:
            return evidence
        self.operations = {token: one for token, one in self.operations.items() if token not in self.restless}
        self.history.events = [event for event in self.history.events if event["key"] not in self.restless]
        return replace(
            evidence,
            history=self.history.events,
            effects={token: made for token, made in evidence.effects.items() if token not in self.restless},
            reservations={token: made for token, made in evidence.reservations.items() if token not in self.restless},
        )

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
        workers, agents = _workers(attempts), _agents(self.history.events)
        windows = Windows(self.strikes)
        faulted = {
            token
            for token, of in open_times.items()
            if token in fired or windows.meet(of, self._executor(token), (*workers.get(token, ()), *agents.get(token, ())))
        }
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
            restless=len(self.restless),
        )

    def _executor(self, token: str) -> schedule.Executor:
        return EXECUTORS[self.operations[token].tool]

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
                if token not in self.operations:
                    continue  # It has not come to rest.
                fault = self.operations[token].fault
                if fired.get(token, "none") != fault:
                    continue  # Its fault never struck: it stands for no column.
                if impossible(strike.nemesis, fault, edge):
                    continue
                if strike.holder is not None and edge in ("during the send", COMMITTED):
                    by = {worker for began, ended, worker in workers.get(token, ()) if began <= strike.at <= ended + 1}
                    if not any(worker.endswith(strike.holder) for worker in by):
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
            times, token = (begun[event["call"]], event["time"]), event["key"]
            met = token in fired and times[0] <= settled.get(token, 0.0)
            agent = [(*times, nemeses.agent_name(event["agent"]))] if "agent" in event else []
            faulted += met or windows.meet(times, self._executor(token), (*workers.get(token, ()), *agent))
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

    def meet(self, of: tuple[float, float], executor: schedule.Executor, holders: Sequence[tuple[float, float, str]]) -> bool:
        """Whether a nemesis was at work on the way of an operation that was open from then to then.

        Which parts are on the way of an operation depends on who carries it out (`schedule.concerns`); a worker is where it held an
        attempt, and an agent where it was at a call.
        """
        from bisect import bisect_left

        for strike in self._strikes[bisect_left(self._ends, of[0]) :]:
            if strike.at > of[1]:
                return False
            if executor not in concerns(strike.nemesis):
                continue
            if strike.holder is None:
                return True
            if any(b <= strike.until and e >= strike.at and holder.endswith(strike.holder) for b, e, holder in holders):
                return True
        return False


Workers = dict[str, list[tuple[float, float, str]]]
"""Which worker held an attempt from when to when, by token."""


def _workers(attempts: Iterable[Mapping[str, Any]]) -> Workers:
    found: Workers = defaultdict(list)
    for row in attempts:
        found[row["token"]].append((row["began"], row["ended"], row["worker"]))
    return found


def _agents(events: Iterable[Mapping[str, Any]]) -> Workers:
    """Which agent was at a call from when to when, by token."""
    found: Workers = defaultdict(list)
    begun: dict[int, float] = {}
    for event in events:
        if event["type"] == "invoke":
            begun[event["call"]] = event["time"]
        elif "agent" in event:
            found[event["key"]].append((begun[event["call"]], event["time"], nemeses.agent_name(event["agent"])))
    return found


def _by_link(link: str, otherwise: int | None) -> int | None:
    """Which of the two workers, or agents, is behind a link; where both are, what else is known."""
    if link in WORKER_POSTGRES:
        return WORKER_POSTGRES.index(link)
    return int(link.split("-")[1]) - 1 if link.startswith("agent-") else otherwise


def _was_struck(nemesis: str, carrier: int | None, struck: int) -> bool:
    """Whether an operation at an edge was with the process that was struck; of a worker only the other one's are known not to be."""
    return carrier == struck if "agent" in nemesis else carrier in (None, struck)


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
