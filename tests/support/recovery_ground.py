"""A worker, a provider and Postgres as processes, and organizations of tests whose doubts the worker must end.

The API plays no part: reservations are made as it makes them. Contracts are the shipped ones with shorter times, installed as
further versions for an organization of the test's own; the worker's lease is short. Nothing of the product is switched.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.support.api import Scene, make_scene, until
from tests.support.ledger import World
from tests.support.outbox_up import PATHS, SandboxControl
from tests.support.postgres import Database
from tests.support.processes import ChildProcess, start

from outbox_domain.contract import LookupRule, RecoveryRule, ResendRule, ToolContract
from outbox_domain.identity import template_segments
from outbox_domain.recovery import settle_seconds
from outbox_providers.catalog import shipped
from outbox_providers.lint import lint
from outbox_runtime.sealing import WrappingKey, generate_private_key, seal_to
from outbox_runtime.vault import StoredInput
from outbox_store import connections, tool_contracts
from outbox_store.reserve import NewReservation, Won, reserve

LEASE_SECONDS = 2.0
SETTLE = timedelta(seconds=1)
DEADLINE = timedelta(seconds=3)
WINDOW = timedelta(seconds=8)
SENT_AFTER = timedelta(seconds=8)
NATURAL_SETTLE = timedelta(seconds=5)
QUICK = 2
"""The version of every contract here whose times are short."""

RECOVERED_SECONDS = 30.0


def quick(contract: ToolContract, *, deadline: timedelta = DEADLINE, **changes: Any) -> ToolContract:
    """A contract with short times: deadline, settle time, window, delay; `changes` replace members of its look-up."""
    # Where a time of the contract bounds its deadline, the short times leave room for the short one only.
    bounded = contract.marks_attempts or (contract.resend is not None and contract.resend.strategy == "window")
    request = contract.request.model_copy(update={"deadline": DEADLINE if bounded else deadline})
    if contract.marks_attempts and request.body is not None:
        seconds = int(SENT_AFTER.total_seconds())
        request = request.model_copy(update={"body": {**request.body, "send_in_seconds": seconds}})
    recovery = tuple(_quick_rule(rule, changes) for rule in contract.recovery)
    return contract.model_copy(update={"version": QUICK, "recovery": recovery, "request": request})


def _quick_rule(rule: RecoveryRule, changes: dict[str, Any]) -> RecoveryRule:
    match rule:
        case LookupRule() if rule.cancels:
            return rule.model_copy(update={"delay": SENT_AFTER, "margin": timedelta(seconds=2), "settle": SENT_AFTER + SETTLE})
        case LookupRule():
            return rule.model_copy(update={"settle": SETTLE, **changes})
        case ResendRule(strategy="natural"):
            return rule.model_copy(update={"settle": NATURAL_SETTLE})
        case ResendRule(strategy="window"):
            return rule.model_copy(update={"within": WINDOW, "margin": timedelta(seconds=1)})
        case _:
            return rule


@dataclass(frozen=True, kw_only=True)
class Servers:
    """What the tests of a module share: one database, one sandbox provider, and one worker at a time."""

    database: Database
    wrapping_key: WrappingKey
    private_key: X25519PrivateKey
    sandbox: SandboxControl
    folder: Path
    workers: list[ChildProcess] = field(default_factory=list)

    def start_worker(self, **more: str) -> ChildProcess:
        """A further worker process."""
        private_key = self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        worker = start(
            "outbox_worker",
            folder=self.folder,
            name=f"worker-{len(self.workers)}",
            env={
                "OUTBOX_POSTGRES_URL": self.database.worker_url,
                "OUTBOX_WRAPPING_KEY": self.wrapping_key.to_base64(),
                "OUTBOX_WORKER_PRIVATE_KEY": private_key,
                "OUTBOX_SWEEP_SECONDS": "0.1",
                "OUTBOX_LEASE_SECONDS": str(LEASE_SECONDS),
                "OUTBOX_SEND_BY_SECONDS": "1",
                "OUTBOX_PAUSE_ALLOWANCE_SECONDS": "0.5",
                "OUTBOX_RENEW_SECONDS": "0.5",
                "OUTBOX_RENEW_MARGIN_SECONDS": "0.5",
                **more,
            },
        )
        self.workers.append(worker)
        return worker

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """No worker does anything during this block."""
        for worker in self.workers:
            worker.send(signal.SIGSTOP)
        try:
            yield
        finally:
            for worker in self.workers:
                worker.send(signal.SIGCONT)

    def log(self) -> str:
        """What the workers have written."""
        return "".join(worker.log() for worker in self.workers)


@contextlib.contextmanager
def serving(database: Database, folder: Path, **worker: str) -> Iterator[Servers]:
    """The provider and a worker on a database, for this block; the worker has these settings as well."""
    ready_file = folder / "sandbox-ready.json"
    sandbox = start("outbox_sandbox", "--port", "0", "--ready-file", str(ready_file), folder=folder)
    servers: Servers | None = None
    try:
        sandbox.wait_for(ready_file.exists)
        servers = Servers(
            database=database,
            wrapping_key=WrappingKey.generate(),
            private_key=generate_private_key(),
            sandbox=SandboxControl(json.loads(ready_file.read_text())["url"]),
            folder=folder,
        )
        servers.start_worker(**worker)
        yield servers
    finally:
        for process in (*(servers.workers if servers is not None else ()), sandbox):
            process.end()


@dataclass(frozen=True, kw_only=True)
class Ground:
    """An organization whose provider is the sandbox."""

    servers: Servers
    scene: Scene
    world: World
    contracts: dict[str, ToolContract]

    @property
    def sandbox(self) -> SandboxControl:
        """The provider's own account."""
        return self.servers.sandbox

    async def reserve(self, tool: str, *, token: str | None = None, **input: object) -> NewReservation:
        """Reserve one call of a tool under its quick contract, as the API does; the same token asks for the same effect again."""
        row, verdict = await self.try_to_reserve(tool, token=token, **input)
        assert isinstance(verdict, Won), verdict
        return row

    async def try_to_reserve(self, tool: str, *, token: str | None = None, **input: object) -> tuple[NewReservation, object]:
        """The same, where something may stand in the way; gives the verdict too."""
        contract, vault, token = self.contracts[tool], await self.scene.vault(), token or uuid4().hex
        inputs: dict[str, dict[str, Any]] = {
            "stripe.refund.create": {"payment_intent": f"pi_{token}", "amount": 1200},
            "stripe.customer.create": {"email": f"{token}@example.com"},
            "sandbox.ticket.create": {"title": f"Door {token}"},
            "sendgrid.mail.send": {"from": "a@example.com", "to": "b@example.com", "subject": token, "text": "t"},
            "sandbox.echo": {"token": token},
            "sandbox.label.set": {"name": f"name-{token}", "value": token},
            "sandbox.record.create": {"title": f"Record {token}"},
            "sandbox.message.send": {"text": f"Message {token}"},
            "sandbox.mail.schedule": {"text": f"Mail {token}"},
        }
        found = await self.scene.fetch("select id from connections where {own} and provider = $1", contract.provider)
        money: dict[str, Any] = {} if contract.amount is not None else {"amount": None, "currency": None}
        row = self.world.row(
            f"{tool}:{token}",
            tool=tool,
            guarantee_class=contract.guarantee_class,
            connection_id=found[0]["id"],
            contract_version=contract.version,
            object_key=_object_key(contract, {**inputs[tool], **input}),
            quiet_seconds=settle_seconds(contract),
            attention=contract.attention,
            blocks_run=contract.blocks_run,
            **money,
        )
        sealed = vault.seal_input(row.id, StoredInput(input={**inputs[tool], **input}, names={}))
        row = NewReservation(**{**{name: getattr(row, name) for name in row.__dataclass_fields__}, "sealed_input": sealed})
        async with self.scene.connection(self.scene.database.api_url) as connection:
            [verdict] = await reserve(connection, [row])
        return row, verdict

    async def install(self, contract: ToolContract) -> None:
        """Put a changed contract in force for this organization, as a further version of its tool."""
        contract = contract.model_copy(update={"version": self.contracts[contract.tool].version + 1})
        assert lint(contract) == []
        async with self.scene.connection() as connection:
            rows = [(contract.tool, contract.version, contract.document())]
            await tool_contracts.install(connection, self.scene.organization_id, rows)
        self.contracts[contract.tool] = contract

    async def faulty(
        self, tool: str, fault: str, *, times: int = 1, delay_seconds: float = 1.0, **input: object
    ) -> NewReservation:
        """Reserve one call whose request meets a fault."""
        self.sandbox.plan(PATHS[tool], fault, times=times, delay_seconds=delay_seconds)
        return await self.reserve(tool, token=None, **input)

    async def read(self, row: NewReservation) -> dict[str, Any]:
        """How a reservation stands, with its attempts and its receipt."""
        [found] = await self.scene.fetch(
            """select r.state, r.unknown_attempts, r.lookups, r.absences, r.resends, r.tries, r.generation, r.recovery_step, r.person_asked_at,
                 r.absence_counts_at, r.late_write, r.provider_code, r.doubt_cause,
                 case when o.due_at = 'infinity' then 'infinity' else extract(epoch from o.due_at - now())::float8 end as due_seconds, t.confidence, t.external_reference, t.evidence,
                 array(select a.outcome from attempts a where a.reservation_id = r.id order by number) as outcomes,
                 array(select a.proven_absent from attempts a where a.reservation_id = r.id order by number) as absent,
                 array(select a.marker from attempts a where a.reservation_id = r.id order by number) as markers,
                 array(select e.detail from ledger_entries e where e.reservation_id = r.id and e.kind = 'evidence' order by id) as evidence_entries
               from reservations r left join open_reservations o on o.reservation_id = r.id
               left join receipts t on t.reservation_id = r.id
               where r.organization_id = $1 and r.id = $2""",
            self.scene.organization_id,
            row.id,
        )
        return found

    async def until(
        self, row: NewReservation, condition: Callable[[dict[str, Any]], object], *, deadline_seconds: float = RECOVERED_SECONDS
    ) -> dict[str, Any]:
        """Wait until a reservation stands so."""
        last: list[dict[str, Any]] = []

        async def there() -> dict[str, Any] | None:
            last[:] = [await self.read(row)]
            return last[0] if condition(last[0]) else None

        try:
            found: dict[str, Any] = await until(there, deadline_seconds=deadline_seconds)
        except TimeoutError:
            raise AssertionError(f"it stands so: {last}\n{self.servers.log()[-6000:]}") from None
        return found

    async def until_state(
        self, row: NewReservation, state: str, *, deadline_seconds: float = RECOVERED_SECONDS
    ) -> dict[str, Any]:
        """Wait until a reservation has a state."""
        return await self.until(row, lambda found: found["state"] == state, deadline_seconds=deadline_seconds)

    async def until_a_person(self, row: NewReservation, *, deadline_seconds: float = RECOVERED_SECONDS) -> dict[str, Any]:
        """Wait until a doubt is left to a person."""
        return await self.until(row, is_for_a_person, deadline_seconds=deadline_seconds)

    async def change(self, statement: str, *binds: object) -> None:
        """A superuser's statement."""
        async with self.scene.connection() as connection:
            await connection.execute(statement, *binds)

    async def effects(self, row: NewReservation) -> list[dict[str, Any]]:
        """What the provider has made of a reservation."""
        token = row.operation_key.rpartition(":")[2]
        found = await asyncio.to_thread(self.sandbox.effects, PATHS[row.tool])
        return [one for one in found if token in json.dumps(one)]

    async def lookups(self, tool: str) -> list[dict[str, Any]]:
        """The reads of a tool's path that the provider has received, in order."""
        return await asyncio.to_thread(lambda: self.sandbox.requests(path=PATHS[tool], method="GET"))


def _object_key(contract: ToolContract, input: dict[str, Any]) -> str | None:
    if contract.object_key is None:
        return None
    segments = template_segments(contract.object_key)
    return ":".join(one.before + ("" if one.field is None else str(input[one.field])) + one.after for one in segments)


def is_for_a_person(found: dict[str, Any]) -> bool:
    """Whether only a person can decide."""
    return bool(found["state"] == "in_doubt" and found["due_seconds"] == float("inf"))


async def make_ground(servers: Servers, *, deadline: timedelta = DEADLINE, **lookup_changes: Any) -> Ground:
    """An organization of a test's own; `deadline` is every contract's, `lookup_changes` replace members of its look-up."""
    scene = await make_scene(servers.database, servers.wrapping_key, base_url=servers.sandbox.url)
    contracts = [quick(contract, deadline=deadline, **lookup_changes) for contract in shipped()]
    for contract in contracts:
        assert lint(contract) == []
    found = await scene.fetch("select id, provider from connections where {own}")
    async with scene.connection() as connection:
        for row in found:
            info = f"credential:{scene.organization_id}:{row['id']}".encode()
            sealed = seal_to(servers.private_key.public_key(), b"sk_test_1", info)
            await connections.seal_credential(connection, scene.organization_id, row["id"], sealed)
        await tool_contracts.install(
            connection, scene.organization_id, [(one.tool, one.version, one.document()) for one in contracts]
        )
    world = World(
        organization_id=scene.organization_id,
        project_id=scene.project_id,
        environment_id=scene.environment_id,
        connection_id=found[0]["id"],
        actor_id=scene.agent_id,
        run_id=UUID(int=0),
    )
    return Ground(servers=servers, scene=scene, world=world, contracts={one.tool: one for one in contracts})
