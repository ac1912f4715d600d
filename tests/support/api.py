"""An organization in a database, API processes that serve it, and a stand-in for the worker: what tests of the HTTP API share."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
from tests.support.postgres import Database
from tests.support.processes import ChildProcess

from outbox_domain.ids import uuid7
from outbox_domain.reservation import Confidence, Outcome
from outbox_domain.scoped_key import KEY_ID_BYTES, SECRET_BYTES, key_id_text, mint
from outbox_providers.catalog import shipped
from outbox_runtime.sealing import WrappingKey
from outbox_runtime.vault import Vault, new_organization_keys
from outbox_store import actors, connections, epochs, organizations, scoped_keys, tool_contracts
from outbox_store.claim import Claim, Claimed, claim
from outbox_store.connection import prepare
from outbox_store.settle import ReceiptDraft, Settled, Settlement, settle

REFUND = {"tool": "stripe.refund.create", "input": {"payment_intent": "pi_1", "amount": 1200}}


def refund(payment_intent: str = "pi_1", amount: int = 1200, **members: Any) -> dict[str, Any]:
    """A tool call that asks for a refund."""
    return {"tool": "stripe.refund.create", "input": {"payment_intent": payment_intent, "amount": amount}, **members}


def new_id() -> UUID:
    """A UUIDv7 as services make them."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One organization with an environment, connections, contracts and two keys."""

    database: Database
    wrapping_key: WrappingKey
    organization_id: UUID
    environment_id: UUID
    environment: str
    project_id: UUID
    admin_id: UUID
    agent_id: UUID
    admin_key: str
    agent_key: str

    @contextlib.asynccontextmanager
    async def connection(self, url: str | None = None) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A connection of the superuser, or to another address, with the store's codecs."""
        connection = await asyncpg.connect(url or self.database.superuser_url)
        try:
            await prepare(connection)
            yield connection
        finally:
            await connection.close()

    async def fetch(self, query: str, *binds: object) -> list[dict[str, Any]]:
        """Rows of a query; `{own}` in it stands for the condition that a row is this organization's."""
        own = f"organization_id = '{self.organization_id}'"
        async with self.connection() as connection:
            return [dict(record) for record in await connection.fetch(query.replace("{own}", own), *binds)]

    async def count(self, table: str) -> int:
        """How many rows of a table are this organization's."""
        return int((await self.fetch(f"select count(*) as rows from {table} where {{own}}"))[0]["rows"])

    async def vault(self) -> Vault:
        """The organization's keys, opened."""
        async with self.connection() as connection:
            organization = await organizations.by_id(connection, self.organization_id)
        assert organization is not None
        return Vault.open(
            self.wrapping_key,
            self.organization_id,
            data_key_wrapped=organization.data_key_wrapped,
            digest_key_wrapped=organization.digest_key_wrapped,
            provider_key_secret_wrapped=organization.provider_key_secret_wrapped,
        )

    async def key(self, *, actor_id: UUID | None = None, **dimensions: Any) -> str:
        """A scoped key bound to `dimensions`; the agent's unless `actor_id` names another actor."""
        key_id, secret = os.urandom(KEY_ID_BYTES), os.urandom(SECRET_BYTES)
        text, digest = mint(self.environment, key_id, secret)
        bound: dict[str, Any] = {"project_id": None, "run": None, "providers": None, "tools": None, "expires_at": None}
        async with self.connection() as connection:
            await scoped_keys.insert(
                connection,
                scoped_keys.NewKey(
                    organization_id=self.organization_id,
                    id=key_id_text(key_id),
                    environment_id=self.environment_id,
                    actor_id=actor_id or self.agent_id,
                    secret_digest=digest,
                    created_by=self.admin_id,
                    **(bound | dimensions),
                ),
            )
        return text


async def make_scene(
    database: Database,
    wrapping_key: WrappingKey | None = None,
    *,
    environment: str = "sandbox",
    default_decision: Any = None,
    base_url: str = "http://127.0.0.1:1",
) -> Scene:
    """Write an organization into a migrated database; its keys are wrapped by a key of its own unless one is given."""
    wrapping_key, organization_id = wrapping_key or WrappingKey.generate(), uuid4()
    keys = new_organization_keys(wrapping_key, organization_id)
    connection = await asyncpg.connect(database.superuser_url)
    try:
        await prepare(connection)
        await organizations.create(
            connection,
            organizations.Organization(
                id=organization_id,
                name=f"org-{organization_id.hex[:12]}",
                data_key_wrapped=keys.data_key,
                digest_key_wrapped=keys.digest_key,
                provider_key_secret_wrapped=keys.provider_key_secret,
            ),
        )
        project_id = await organizations.create_project(connection, organization_id, uuid4(), "default")
        environment_id = await organizations.create_environment(
            connection, organization_id, uuid4(), environment, default_decision
        )
        for provider in ("stripe", "sendgrid", "sandbox"):
            await connections.ensure(
                connection,
                connections.ConnectionRow(
                    organization_id=organization_id,
                    id=uuid4(),
                    environment_id=environment_id,
                    provider=provider,
                    name=provider,
                    base_url=base_url,
                    fixed_headers={},
                    currency="EUR",
                    allow_private=True,
                    is_default=True,
                ),
            )
        contracts = [(contract.tool, contract.version, contract.document()) for contract in shipped()]
        await tool_contracts.install(connection, organization_id, contracts)
        agent_id = await actors.ensure(connection, organization_id, uuid4(), "agent", "refunds")
        admin_id = await actors.ensure(connection, organization_id, uuid4(), "member", "admin@example.com")
        await actors.make_member(connection, organization_id, admin_id, ["owner"])
    finally:
        await connection.close()
    scene = Scene(
        database=database,
        wrapping_key=wrapping_key,
        organization_id=organization_id,
        environment_id=environment_id,
        environment=environment,
        project_id=project_id,
        admin_id=admin_id,
        agent_id=agent_id,
        admin_key="",
        agent_key="",
    )
    return Scene(**{**scene.__dict__, "admin_key": await scene.key(actor_id=admin_id), "agent_key": await scene.key()})


@dataclass(frozen=True, kw_only=True)
class RunningApi:
    """An API process that answers."""

    process: ChildProcess
    url: str
    metrics_url: str

    def client(self, key: str | None, **options: Any) -> httpx2.AsyncClient:
        """A client that presents a key."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx2.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=70.0,
            limits=httpx2.Limits(max_connections=300, max_keepalive_connections=300),
            **options,
        )


def start_api(
    start: Callable[..., ChildProcess],
    database: Database,
    wrapping_key: WrappingKey,
    folder: Path,
    *,
    name: str = "api",
    port: int = 0,
    **more: str,
) -> RunningApi:
    """Start one API process and wait until it is ready.

    Args:
        start: `tests.support.processes.start`, or the fixture `start_module`.
        database: what it serves.
        wrapping_key: opens the keys of its organizations.
        folder: for its log and port files.
        name: of its log.
        port: 0 for a free one.
        more: further variables.
    """
    port_file, metrics_port_file = folder / f"{name}.port", folder / f"{name}.metrics-port"
    process = start(
        "outbox_api",
        name=name,
        folder=folder,
        env={
            "OUTBOX_POSTGRES_URL": database.api_url,
            "OUTBOX_WRAPPING_KEY": wrapping_key.to_base64(),
            "OUTBOX_PORT": str(port),
            "OUTBOX_PORT_FILE": str(port_file),
            "OUTBOX_METRICS_PORT_FILE": str(metrics_port_file),
            **more,
        },
    )
    process.wait_for(port_file.exists)
    metrics_url = f"http://127.0.0.1:{metrics_port_file.read_text()}"
    url = f"http://127.0.0.1:{port_file.read_text()}"
    process.wait_for(lambda: _answers(f"{metrics_url}/readyz") and _answers(f"{url}/readyz"))
    return RunningApi(process=process, url=url, metrics_url=metrics_url)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2.0).status_code == 200
    except httpx2.TransportError:
        return False


def problem_of(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem in an answer, which must be one of this status and code in the one skeleton."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["code"] == code, document
    assert document["status"] == status
    assert {"type", "title", "detail", "message", "is_error", "state", "retry", "reservation_id"} <= document.keys()
    assert document["is_error"] is True
    return document


async def until_waiting(api: "RunningApi", callers: int) -> None:
    """Wait until so many callers wait at a process for a receipt."""

    async def wait() -> bool:
        async with httpx2.AsyncClient() as client:
            return f"outbox_waiters {callers}.0" in (await client.get(f"{api.metrics_url}/metrics")).text

    await until(wait, what=f"{callers} waiting callers")


async def until(condition: Callable[[], Any], *, deadline_seconds: float = 10.0, what: str = "the condition") -> Any:
    """Await a coroutine function again and again until it returns something true."""
    async with asyncio.timeout(deadline_seconds):
        while True:
            found = await condition()
            if found:
                return found
            await asyncio.sleep(0.02)


@dataclass
class StandIn:
    """Plays the worker: claims reservations and settles them as it is told, without any provider."""

    scene: Scene
    vault: Vault
    connection: "asyncpg.Connection[asyncpg.Record]"
    settled: list[UUID] = field(default_factory=list)

    async def claim(self, reservation_id: UUID) -> Claimed:
        """Open an attempt."""
        [attempt] = await claim(
            self.connection,
            [
                Claim(
                    organization_id=self.scene.organization_id,
                    reservation_id=reservation_id,
                    attempt_id=new_id(),
                    worker="stand-in",
                    lease_seconds=10.0,
                    resend_window_seconds=3600.0,
                    resend_needs_seconds=20.0,
                    resends_max=5,
                )
            ],
        )
        assert isinstance(attempt, Claimed), attempt
        return attempt

    async def settle(self, attempt: Claimed, outcome: Outcome = Outcome.SUCCEEDED, **changes: Any) -> Settled:
        """Close an attempt and tell the waiters."""
        result = {"id": f"re_{attempt.reservation_id.hex}", "status": "succeeded", "amount": 1200, "currency": "eur"}
        receipt = ReceiptDraft(
            id=new_id(),
            provider=attempt.tool.split(".")[0],
            external_reference=str(result["id"]),
            confidence=Confidence.CONFIRMED,
            evidence=[{"kind": "answer", "at": "2026-01-01T00:00:00Z", "detail": {"status": 200}}],
            provider_request_id="req_1",
            sealed_result=self.vault.seal_result(attempt.reservation_id, result),
        )
        values: dict[str, Any] = {
            "organization_id": attempt.organization_id,
            "reservation_id": attempt.reservation_id,
            "attempt_id": attempt.attempt_id,
            "epoch": attempt.epoch,
            "outcome": outcome,
            "reason": "answer",
            "settle_seconds": 120.0,
            "again_seconds": 0.5,
            "recover_seconds": 60.0,
            "receipt": receipt if outcome is Outcome.SUCCEEDED else None,
            "provider_status": 200,
            "provider_seconds": 0.01,
        }
        [settled] = await settle(self.connection, [Settlement(**(values | changes))], tries_max=20)
        assert isinstance(settled, Settled), settled
        self.settled.append(attempt.reservation_id)
        await self.connection.execute("select pg_notify('outbox_settled', $1)", attempt.reservation_id.hex)
        return settled

    async def execute(self, reservation_id: UUID, outcome: Outcome = Outcome.SUCCEEDED, **changes: Any) -> Settled:
        """Claim and settle one reservation."""
        return await self.settle(await self.claim(reservation_id), outcome, **changes)

    async def execute_all(self, stop: asyncio.Event, *, pause_seconds: float = 0.0) -> None:
        """Execute every reservation that comes, until `stop` is set."""
        while not stop.is_set():
            due = await self.connection.fetch(
                "select id from reservations where organization_id = $1 and state = 'reserved' order by id limit 100",
                self.scene.organization_id,
            )
            for record in due:
                attempt = await self.claim(record["id"])
                await asyncio.sleep(pause_seconds)
                await self.settle(attempt)
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def stand_in(scene: Scene) -> AsyncIterator[StandIn]:
    """A stand-in for the worker, for this block; like one it compares the Postgres it finds before it claims anything."""
    async with scene.connection(scene.database.worker_url) as connection:
        await epochs.beat(connection, (await epochs.look(connection, [])).instance)
        yield StandIn(scene=scene, vault=await scene.vault(), connection=connection)


@contextlib.asynccontextmanager
async def executing_all(scene: Scene, *, pause_seconds: float = 0.0) -> AsyncIterator[StandIn]:
    """A stand-in that executes every reservation during this block."""
    async with stand_in(scene) as worker:
        stop = asyncio.Event()
        task = asyncio.create_task(worker.execute_all(stop, pause_seconds=pause_seconds))
        try:
            yield worker
        finally:
            stop.set()
            await task


def bodies(responses: Sequence[httpx2.Response], member: str) -> set[str]:
    """The distinct values of a member, as canonical text."""
    return {json.dumps(response.json()[member], sort_keys=True) for response in responses}
