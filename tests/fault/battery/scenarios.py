"""The orders of events that break the promise where one guard is missing, each as a script: the model's traces on the real product.

Every script is about one operation key in an organization of its own. With all guards the checker finds nothing; without the one
that the script is named after it names the property.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tests.fault.battery import callers, checker
from tests.fault.battery.agents import NUMBERS, WantedByAgent
from tests.fault.battery.callers import Wanted
from tests.fault.battery.ground import Tenant
from tests.fault.battery.network import Held
from tests.fault.battery.run import Run
from tests.fault.battery.schedule import EXECUTORS, OWN_TICKET, PATHS, REFUND, TICKET

PATIENCE_SECONDS = 60.0
SETTLE = timedelta(seconds=1)
SETTINGS = {
    "OUTBOX_LEASE_SECONDS": "2",
    "OUTBOX_SEND_BY_SECONDS": "1",
    "OUTBOX_PAUSE_ALLOWANCE_SECONDS": "0.5",
    "OUTBOX_RENEW_SECONDS": "0.5",
    "OUTBOX_RENEW_MARGIN_SECONDS": "0.5",
    # A statement whose answer is held must not be given up before the script lets it go.
    "OUTBOX_POSTGRES_COMMAND_SECONDS": "60",
}
"""Of the workers: short leases, so that a script takes seconds."""

LIVE_KEY = "(organization_id, project_id, environment_id, connection_id, tool, scope, operation_key, occurrence)"
WINDOW = timedelta(seconds=75)
LATE_SECONDS = 15.0
"""When a slow provider commits: long after look-ups that come too early, also on a machine that is slow itself."""

SLOW_SECONDS, PATIENT = 6.0, timedelta(seconds=9)
"""When a provider commits that is slow but answers in time, and the deadline of who waits for it: long for a slow machine."""

MORE_THAN_HALF = 60_000_000
"""Of what a payment of the sandbox provider can give back, in minor units: a second refund of it is refused."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """One key, and what happens to it.

    Attributes:
        run: of the battery, which records and judges.
        tenant: the organization.
        provider: its sandbox.
        token: names the key.
        tool: what is called.
    """

    run: Run
    tenant: Tenant
    provider: str
    token: str
    tool: str

    async def ask(self, *, conflicting: bool = False, amount: int = 1200) -> str:
        """A patient caller's last word."""
        connection = self.tenant.connection(self.tool, 0)
        body = callers.tool_call(self.tool, self.token, connection=connection, run=None, conflicting=conflicting, amount=amount)
        wanted = Wanted(token=self.token, key=self.tenant.scene.agent_key, body=body, conflicting=conflicting)
        port = self.run.ground.network.ports["caller-api"]
        return await callers.ask(self.run.history, port, wanted, int(self.token[2:], 16) * 2 + conflicting)

    async def ask_by(self, agent: int, *, time_limit_seconds: float) -> str:
        """A patient agent's last word."""
        wanted = WantedByAgent(
            token=self.token,
            tool=self.tool,
            key=self.tenant.scene.agent_key,
            sandbox=self.provider,
            time_limit_seconds=time_limit_seconds,
            settle_seconds=SETTLE.total_seconds(),
        )
        ground = self.run.ground
        process = int(self.token[2:], 16) * len(NUMBERS) + agent
        return await ground.agents.ask(self.run.history, agent, wanted, process, provider_ports=ground.agent_ports(agent))

    async def plan(self, fault: str, *, delay_seconds: float = 0.0) -> None:
        """The next request of this key meets a fault."""
        document = {"path": PATHS[self.tool], "fault": fault, "delay_seconds": delay_seconds, "containing": self.token}
        await self.run.control(self.provider, "faults", document)

    async def hold(self, **what: Any) -> Held:
        """Stops this key's messages at an edge, once; those of workers, unless a resource of the API is named."""
        links = ["worker-1-postgres", "worker-2-postgres"] if "statement" in what else ["worker-provider", "worker-forgetful"]
        if "resource" in what:
            links = [f"agent-{number}-api" for number in NUMBERS]
        return await self.run.ground.network.hold(links, containing=[self.token], limit=1, **what)

    async def row(self) -> dict[str, Any]:
        """The newest reservation of the key, with its attempts."""
        found = await self.tenant.scene.fetch(
            """select r.id, r.state, array(select a.outcome from attempts a where a.reservation_id = r.id order by number) as outcomes
               from reservations r where r.reference = $1 order by r.created_at desc limit 1""",
            self.token,
        )
        return found[0] if found else {"state": None, "outcomes": []}

    async def until(self, condition: Callable[[dict[str, Any]], bool], what: str) -> None:
        """Waits until the reservation stands so."""

        async def stands() -> bool:
            return condition(await self.row())

        await self._so(stands, what)

    async def until_effects(self, number: int) -> None:
        """Waits until the provider has so many effects of the key."""

        async def made() -> bool:
            effects = await self.run.control(self.provider, "effects")
            return sum(self.token in json.dumps(one["fields"]) for one in effects) >= number

        await self._so(made, f"{number} effects")

    async def until_met(self) -> None:
        """Waits until a request of the key has met the fault that was planned."""

        async def met() -> bool:
            planned = await self.run.control(self.provider, "faults")
            return all(one["containing"] != self.token for one in planned)

        await self._so(met, "the fault")

    async def _so(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not await condition():
            assert time.monotonic() < give_up, f"waited for {what}; it stands so: {await self.row()}\n{self.run.ground.log()}"
            await asyncio.sleep(0.02)

    async def reached(self, held: Held) -> None:
        """Waits until the key is at the edge."""
        assert await held.reached(1, deadline_seconds=PATIENCE_SECONDS), f"never reached\n{self.run.ground.log()}"


async def unique_index(of: Script) -> None:
    """Two callers want the same."""
    await of.ask()
    await of.ask()


async def digest_check(of: Script) -> None:
    """Another caller uses the key for something else."""
    await of.ask()
    await of.ask(conflicting=True)


async def settle_time(of: Script) -> None:
    """The provider commits long after the answer was given up, and after a look-up that comes too early has found nothing."""
    began = time.monotonic()
    await of.plan("slow-commit", delay_seconds=LATE_SECONDS)
    await of.ask()
    # What was sent again must not end the script before the provider has committed what was sent first.
    await asyncio.sleep(max(0.0, began + LATE_SECONDS + 6.0 - time.monotonic()))


async def send_by(of: Script) -> None:
    """A worker learns of its claim after another one has proven absence and sent again; it may not send any more."""
    held = await of.hold(statement="claim", part="answer")
    asking = asyncio.create_task(of.ask())
    await of.reached(held)
    await of.until(lambda row: row["state"] == "succeeded", "the other worker's success")
    await held.release()
    await asking
    await asyncio.sleep(1.5)


async def attempt_check(of: Script) -> None:
    """A worker that slept says of its own attempt that nothing was sent, while another worker's attempt is under way."""
    held = await of.hold(statement="claim", part="answer")
    await of.plan("slow-commit", delay_seconds=SLOW_SECONDS)
    asking = asyncio.create_task(of.ask())
    await of.reached(held)
    await of.until(lambda row: len(row["outcomes"]) == 2 and row["outcomes"][1] is None, "the other worker's attempt")
    await held.release()
    await asking
    if len((await of.row())["outcomes"]) > 2:
        # Somebody has sent once more, and what was sent before is on its way to the provider's books.
        await of.until_effects(2)


async def own_settlement(of: Script) -> None:
    """An agent learns of its attempt after another one has proven absence and begun anew, and says that it has sent nothing."""
    held = await of.hold(method="POST", resource="reservations", part="answer")
    sleeping = asyncio.create_task(of.ask_by(1, time_limit_seconds=2.0))
    await of.reached(held)
    await of.plan("slow-commit", delay_seconds=SLOW_SECONDS)
    other = asyncio.create_task(of.ask_by(2, time_limit_seconds=PATIENT.total_seconds()))
    await of.until(lambda row: len(row["outcomes"]) == 2 and row["outcomes"][1] is None, "the other agent's attempt")
    await of.until_met()
    await held.release()
    await sleeping
    await other
    if len(await of.tenant.scene.fetch("select id from reservations where reference = $1", of.token)) > 1:
        # The key was free although something was on its way to the provider's books.
        await of.until_effects(2)


async def own_attempt(of: Script) -> None:
    """The first sending's answer is lost; the second is refused, because there is nothing left to give back."""
    answer = await of.hold(method="POST", part="answer")
    asking = asyncio.create_task(of.ask(amount=MORE_THAN_HALF))
    await of.reached(answer)
    # The provider has lost the key, so that it judges the second sending anew.
    await of.run.control("forgetful", "faults", {"fault": "forget-keys"})
    await answer.release(deliver=False)
    await asking


async def resend_margin(of: Script) -> None:
    """A resend that begins within the provider's window is on its way while the window ends."""
    answer = await of.hold(method="POST", part="answer")
    asking = asyncio.create_task(of.ask())
    await of.reached(answer)
    left = 8.0
    async with of.tenant.scene.connection() as connection:
        # Time passes for the window alone: almost all of it.
        await connection.execute(
            "update reservations set possible_send_at = now() - make_interval(secs => $2) where reference = $1",
            of.token,
            WINDOW.total_seconds() - left,
        )
    window_ends = time.monotonic() + left
    resend = await of.hold(method="POST", part="last-byte")
    await answer.release(deliver=False)
    await resend.reached(1, deadline_seconds=left)
    await asyncio.sleep(max(0.0, window_ends - time.monotonic()))
    await of.run.control("forgetful", "faults", {"fault": "forget-keys"})
    await resend.release()
    await asking
    await asyncio.sleep(1.0)


@dataclass(frozen=True, kw_only=True)
class Control:
    """A script, what it needs, and what is found when its guard is missing.

    Attributes:
        guard: in words.
        properties: those that must be among what is violated.
        unguarded: of `tests.fault.battery.unguarded`; "" where the guard is in the schema or in the contract.
        without: SQL that takes the guard out of the schema.
        contract: changes of the contracts.
        weak: changes that take the guard out of the contract.
    """

    guard: str
    script: Callable[[Script], Awaitable[None]]
    tool: str
    properties: frozenset[str]
    unguarded: str | None = None
    without: str | None = None
    contract: dict[str, Any] = field(default_factory=dict)
    weak: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the script."""
        return getattr(self.script, "__name__", "script")

    @property
    def by_agents(self) -> bool:
        """Whether its callers carry the effect out themselves."""
        return EXECUTORS[self.tool] == "client"

    @property
    def provider(self) -> str:
        """Which of the two."""
        return "forgetful" if self.name in ("resend_margin", "own_attempt") else "ordinary"


CONTROLS = (
    Control(
        guard="the unique index of live keys",
        script=unique_index,
        tool=TICKET,
        properties=frozenset({checker.AT_MOST_ONE, checker.INVARIANTS}),
        without=f"drop index reservations_live; create index reservations_live on reservations {LIVE_KEY} where live",
    ),
    Control(
        guard="the attempt check of T3",
        script=attempt_check,
        tool=TICKET,
        properties=frozenset({checker.AT_MOST_ONE}),
        unguarded="attempt_check",
        contract={"settle": SETTLE, "deadline": PATIENT},
    ),
    Control(
        guard="the attempt check of a client's settlement",
        script=own_settlement,
        tool=OWN_TICKET,
        properties=frozenset({checker.AT_MOST_ONE}),
        unguarded="attempt_check",
    ),
    Control(
        guard="the digest check",
        script=digest_check,
        tool=REFUND,
        properties=frozenset({checker.OTHER_INPUT_REFUSED}),
        unguarded="digest_check",
    ),
    Control(
        guard="the settle time",
        script=settle_time,
        tool=TICKET,
        properties=frozenset({checker.AT_MOST_ONE}),
        contract={"settle": timedelta(seconds=17)},
        weak={"settle": timedelta(0)},
    ),
    Control(
        guard="the send_by rule",
        script=send_by,
        tool=TICKET,
        properties=frozenset({checker.AT_MOST_ONE}),
        unguarded="send_by",
        contract={"settle": SETTLE},
    ),
    Control(
        guard="the resend margin",
        script=resend_margin,
        tool=REFUND,
        properties=frozenset({checker.AT_MOST_ONE}),
        contract={"settle": SETTLE, "within": WINDOW},
        weak={"margin": timedelta(0)},
    ),
    Control(
        guard="an outcome speaks of its own attempt",
        script=own_attempt,
        tool=REFUND,
        properties=frozenset({checker.NOTHING_LOST}),
        unguarded="own_attempt",
        contract={"settle": SETTLE, "resends": 1},
    ),
)
