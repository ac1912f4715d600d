"""One reservation that a worker cannot make anything of takes nothing else along, and never becomes a doubt of our own making.

Postgres: the session's. No Redis: the sweep finds everything. The provider is the sandbox, served by the test itself.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.support.api import Scene, make_scene, until
from tests.support.invariants import assert_invariants
from tests.support.ledger import World, claimed
from tests.support.postgres import Database
from tests.support.processes import ChildProcess

from outbox_runtime.sealing import WrappingKey, generate_private_key, seal_to
from outbox_runtime.vault import StoredInput
from outbox_sandbox.records import Records
from outbox_sandbox.server import Sandbox, serving
from outbox_store import connections
from outbox_store.reserve import NewReservation, Won, reserve

INPUTS: dict[str, dict[str, Any]] = {
    "stripe.refund.create": {"payment_intent": "pi_1", "amount": 1200},
    "sandbox.ticket.create": {"title": "Door"},
    "sendgrid.mail.send": {"from": "a@example.com", "to": "b@example.com", "subject": "s", "text": "t"},
}
CLASSES = {"stripe.refund.create": "A", "sandbox.ticket.create": "B", "sendgrid.mail.send": "C"}


@dataclass(frozen=True, kw_only=True)
class Ground:
    """An organization whose provider is the sandbox, and what a test does there."""

    scene: Scene
    world: World
    private_key: X25519PrivateKey
    provider_url: str
    start_module: Callable[..., ChildProcess]

    def start_worker(self, wrapping_key: WrappingKey | None = None, **more: str) -> ChildProcess:
        """A worker process; it opens what is sealed unless it is given another wrapping key."""
        private_key = self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return self.start_module(
            "outbox_worker",
            env={
                "OUTBOX_POSTGRES_URL": self.scene.database.worker_url,
                "OUTBOX_WRAPPING_KEY": (wrapping_key or self.scene.wrapping_key).to_base64(),
                "OUTBOX_WORKER_PRIVATE_KEY": private_key,
                "OUTBOX_SWEEP_SECONDS": "0.2",
                **more,
            },
        )

    async def reserve(self, tool: str, key: str) -> NewReservation:
        """Reserve one call of a tool, as the API does."""
        vault = await self.scene.vault()
        money: dict[str, Any] = {} if CLASSES[tool] == "A" else {"amount": None, "currency": None}
        found = await self.scene.fetch("select id from connections where {own} and provider = $1", tool.split(".")[0])
        row = self.world.row(key, tool=tool, guarantee_class=CLASSES[tool], connection_id=found[0]["id"], **money)
        sealed = vault.seal_input(row.id, StoredInput(input=INPUTS[tool], names={}))
        row = NewReservation(**{**{name: getattr(row, name) for name in row.__dataclass_fields__}, "sealed_input": sealed})
        async with self.scene.connection(self.scene.database.api_url) as connection:
            [verdict] = await reserve(connection, [row])
        assert isinstance(verdict, Won), verdict
        return row

    async def read(self, row: NewReservation) -> dict[str, Any]:
        """How a reservation stands, with the outcomes and reasons of its attempts and how long nobody looks at it."""
        [found] = await self.scene.fetch(
            """select r.state, r.unknown_attempts, extract(epoch from o.due_at - now())::float8 as due_seconds,
                 array(select a.outcome from attempts a where a.reservation_id = r.id order by number) as outcomes
               from reservations r left join open_reservations o on o.reservation_id = r.id
               where r.organization_id = $1 and r.id = $2""",
            self.scene.organization_id,
            row.id,
        )
        return found

    async def until_state(self, row: NewReservation, state: str) -> dict[str, Any]:
        """Wait until a reservation has a state."""

        async def there() -> dict[str, Any] | None:
            found = await self.read(row)
            return found if found["state"] == state else None

        found: dict[str, Any] = await until(there, deadline_seconds=20.0, what=state)
        return found

    async def until_attempted(self, row: NewReservation, outcome: str) -> dict[str, Any]:
        """Wait until the first attempt of a reservation is closed with an outcome."""

        async def there() -> dict[str, Any] | None:
            found = await self.read(row)
            return found if found["outcomes"][:1] == [outcome] else None

        found: dict[str, Any] = await until(there, deadline_seconds=20.0, what=outcome)
        return found


@pytest.fixture
async def ground(database: Database, start_module: Callable[..., ChildProcess]) -> AsyncIterator[Ground]:
    """An organization of this test's own; the invariants are asked afterwards."""
    async with serving(Sandbox(Records()), host="127.0.0.1", port=0) as url:
        scene = await make_scene(database, base_url=url)
        private_key = generate_private_key()
        found = await scene.fetch("select id, provider from connections where {own}")
        async with scene.connection() as connection:
            for row in found:
                info = f"credential:{scene.organization_id}:{row['id']}".encode()
                sealed = seal_to(private_key.public_key(), b"sk_test_1", info)
                await connections.seal_credential(connection, scene.organization_id, row["id"], sealed)
        yield Ground(
            scene=scene,
            world=World(
                organization_id=scene.organization_id,
                project_id=scene.project_id,
                environment_id=scene.environment_id,
                connection_id=next(row["id"] for row in found if row["provider"] == "stripe"),
                actor_id=scene.agent_id,
                run_id=UUID(int=0),
            ),
            private_key=private_key,
            provider_url=url,
            start_module=start_module,
        )
    await assert_invariants(database.superuser_url)


async def test_contract_that_cannot_be_read(ground: Ground) -> None:
    """A pinned contract of a newer version than the worker's: its reservations wait unsent or in doubt, all others are carried out."""
    lapsed, waiting = (
        await ground.reserve("sandbox.ticket.create", "ticket:1"),
        await ground.reserve("sandbox.ticket.create", "ticket:2"),
    )
    async with ground.scene.connection() as connection:
        await claimed(connection, lapsed, lease_seconds=0.05)
        await connection.execute(
            "update tool_contracts set document = document || '{\"of_a_newer_version\": 1}' where tool = 'sandbox.ticket.create'"
        )
    worker = ground.start_worker()
    await ground.until_state(lapsed, "in_doubt")
    found = await ground.until_attempted(waiting, "unsent")
    assert found["unknown_attempts"] == 0
    other = await ground.reserve("stripe.refund.create", "refund:pi_1")
    await ground.until_state(other, "succeeded")
    assert (await ground.read(lapsed))["due_seconds"] > 5.0, "nobody looks at it every moment"
    assert worker.process.poll() is None
    assert "of_a_newer_version" not in worker.log()


async def test_keys_that_do_not_open(ground: Ground) -> None:
    """A worker with another wrapping key sends nothing and says so: unsent, never a doubt, not even of class C."""
    mail = await ground.reserve("sendgrid.mail.send", "mail:1")
    worker = ground.start_worker(WrappingKey.generate())
    found = await ground.until_attempted(mail, "unsent")
    assert found["state"] == "reserved"
    worker.end()
    ground.start_worker()
    await ground.until_state(mail, "succeeded")


async def test_parked_doubt(ground: Ground) -> None:
    """A doubt under a contradiction is looked at again after a while, and not at every look of the sweep."""
    row = await ground.reserve("stripe.refund.create", "refund:pi_1")
    async with ground.scene.connection() as connection:
        await claimed(connection, row, lease_seconds=0.05)
        await connection.execute(
            """insert into contradictions (organization_id, id, reservation_id, project_id, environment_id, connection_id, tool, scope,
                 operation_key, external_reference)
               select organization_id, gen_random_uuid(), id, project_id, environment_id, connection_id, tool, scope, operation_key, 're_0'
               from reservations where id = $1""",
            row.id,
        )
    ground.start_worker()
    await ground.until_state(row, "in_doubt")

    async def left_alone() -> bool:
        return float((await ground.read(row))["due_seconds"]) > 10.0

    await until(left_alone, what="the doubt to be left alone")
    assert (await ground.read(row))["outcomes"] == ["unknown"]


async def test_provider_that_hangs(ground: Ground) -> None:
    """More calls than there are slots hang at one provider: the calls of another are carried out meanwhile."""
    hanging = [await ground.reserve("sandbox.ticket.create", f"ticket:{number}") for number in range(8)]
    async with httpx2.AsyncClient(base_url=ground.provider_url) as client:
        fault = {"path": "/v1/tickets", "fault": "hang", "times": 8, "delay_seconds": 60}
        assert (await client.post("/_control/faults", json=fault)).status_code == 200
    ground.start_worker(OUTBOX_WORKER_SLOTS="4")
    await ground.until_state(hanging[0], "executing")
    other = await ground.reserve("stripe.refund.create", "refund:pi_1")
    async with asyncio.timeout(8.0):
        await ground.until_state(other, "succeeded")
    assert (await ground.read(hanging[0]))["state"] == "executing"


async def test_renewal_that_is_refused(ground: Ground) -> None:
    """A lease that cannot be renewed for a moment takes nothing away from the answer: the mail succeeds, and is in no doubt."""
    mail = await ground.reserve("sendgrid.mail.send", "mail:1")
    async with httpx2.AsyncClient(base_url=ground.provider_url) as client:
        fault = {"path": "/v3/mail/send", "fault": "delay", "times": 1, "delay_seconds": 4}
        assert (await client.post("/_control/faults", json=fault)).status_code == 200
    async with ground.scene.connection() as holder:
        name = ground.scene.database.worker_url.rpartition("/")[2]
        await holder.execute(f"alter role outbox_worker in database \"{name}\" set lock_timeout = '50ms'")
        worker = ground.start_worker(OUTBOX_RENEW_SECONDS="0.5")
        await ground.until_state(mail, "executing")
        async with holder.transaction():
            await holder.execute("lock table attempts in access exclusive mode")
            worker.wait_for(lambda: "renewal-unanswered" in worker.log(), deadline_seconds=3.0)
        found = await ground.until_state(mail, "succeeded")
    assert found["outcomes"] == ["succeeded"]
