"""The whole product behind a network of ours: Postgres on a small disk, Redis, two providers, the API, two workers, and two agents.

Every pair of parts talks through the proxy. Times are short by settings and by contracts of the organizations' own; nothing of the
product is switched. What is killed is started again by whoever killed it.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from redis import Redis
from tests.fault.battery.agents import NUMBERS, Agents
from tests.fault.battery.network import ROOT, Network
from tests.fault.battery.network import running as network_running
from tests.fault.battery.schedule import MAIL, REFUND, TICKET
from tests.support.api import Scene, make_scene
from tests.support.postgres import Database, PostgresServer
from tests.support.processes import ChildProcess, start

from outbox_domain.contract import LookupRule, ResendRule, ToolContract
from outbox_providers.catalog import shipped
from outbox_providers.lint import lint
from outbox_runtime.sealing import WrappingKey, generate_private_key, seal_to
from outbox_standalone import child
from outbox_standalone.embedded_postgres import EmbeddedPostgres, shipped_binaries
from outbox_standalone.embedded_redis import EmbeddedRedis, find_binary
from outbox_store import connections, tool_contracts, webhooks_in

DEADLINE = timedelta(seconds=2)
SETTLE = timedelta(seconds=4)
LEASE_SECONDS = 4.0
CLIENT_LEASE_SECONDS, CLIENT_MARGIN_SECONDS = 3.0, 1.0
CANCEL_DELAY, CANCEL_MARGIN, CANCEL_SETTLE = timedelta(seconds=24), timedelta(seconds=4), timedelta(seconds=26)
"""Of cancel-first: when what was accepted goes out, long enough after a lapsed lease for the cancellation to come in time."""

QUICK = 2
"""The version of every contract here whose times are short."""

WINDOW_NEARLY_OVER = DEADLINE + timedelta(seconds=60.1)
"""A provider's window in which the product's margin leaves a tenth of a second for resends: who forgets keys is never asked by key."""

READY_SECONDS = 180.0
API_POOL, WORKER_POOL = 90, 60
HOST = "127.0.0.1"


def quick(
    contract: ToolContract,
    *,
    settle: timedelta = SETTLE,
    within: timedelta | None = None,
    resends: int | None = None,
    margin: timedelta | None = None,
    deadline: timedelta = DEADLINE,
    **changes: Any,
) -> ToolContract:
    """A shipped contract with short times.

    Args:
        contract: as it is shipped.
        settle: of its look-up, and of a resend that has no look-up beside it.
        within: the window of its resends, the contract's own unless given.
        resends: how many there may be, the contract's own number unless given.
        margin: of the window, the contract's own unless given.
        deadline: of a request.
        changes: of further members.
    """
    recovery: list[Any] = []
    for rule in contract.recovery:
        if isinstance(rule, LookupRule) and rule.cancels:
            times = {"delay": CANCEL_DELAY, "margin": CANCEL_MARGIN, "settle": CANCEL_SETTLE}
            recovery.append(rule.model_copy(update=times))
        elif isinstance(rule, LookupRule):
            recovery.append(rule.model_copy(update={"settle": settle}))
        elif isinstance(rule, ResendRule):
            recovery.append(
                rule.model_copy(
                    update={
                        "within": within or rule.within,
                        "times": resends or rule.times,
                        "margin": rule.margin if margin is None else margin,
                        "settle": None if rule.settle is None else settle,
                    }
                )
            )
        else:
            recovery.append(rule)
    request = contract.request.model_copy(update={"deadline": deadline})
    if contract.marks_attempts:
        assert request.body is not None
        body = {**request.body, "send_in_seconds": int(CANCEL_DELAY.total_seconds())}
        request = request.model_copy(update={"body": body})
    return contract.model_copy(update={"version": QUICK, "recovery": tuple(recovery), "request": request, **changes})


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """Where a connection's events go and what they are signed with."""

    url: str
    secret: str


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """One organization with many connections, so that a breaker holds few operations."""

    scene: Scene
    names: Mapping[str, Sequence[str]]
    webhooks: Mapping[str, Webhook]

    def connection(self, tool: str, number: int) -> str:
        """The name of a connection of the tool's provider."""
        names = self.names[tool.partition(".")[0]]
        return names[number % len(names)]


class SmallDisk:
    """A file system of its own for Postgres, where root may mount one; else a folder that cannot be filled."""

    def __init__(self, folder: Path, size_megabytes: int) -> None:
        """Mounts it."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.reason: str | None = None
        if os.geteuid() != 0:
            self.reason = "a small file system can be mounted by root alone"
        else:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size_megabytes}m,mode=0755", "battery", str(folder)]
            made = subprocess.run(mount, capture_output=True, text=True, check=False)
            self.reason = None if made.returncode == 0 else f"mount refused: {made.stderr.strip()}"
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Nothing more can be written."""
        with self._filler.open("wb") as file:
            free = os.statvfs(self.folder)
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)

    def free(self) -> None:
        """What filled it is removed."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts it."""
        if self.reason is None:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(kw_only=True)
class Ground:
    """What a battery attacks."""

    folder: Path
    network: Network
    disk: SmallDisk
    postgres: EmbeddedPostgres
    server: PostgresServer
    database: Database
    redis: EmbeddedRedis | None
    sandboxes: dict[str, str]
    wrapping_key: WrappingKey
    private_key: X25519PrivateKey
    api_port: int
    unguarded: str | None
    tenants: dict[str, Tenant] = field(default_factory=dict)
    api: ChildProcess | None = None
    workers: list[ChildProcess] = field(default_factory=list)
    agents: Agents = field(default_factory=Agents)
    agent_processes: dict[int, ChildProcess] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where callers reach the API."""
        return f"http://{HOST}:{self.network.ports['caller-api']}"

    # Processes.

    def start_api(self) -> None:
        """Starts the API without waiting for it."""
        env = {
            **self._common("api"),
            "OUTBOX_POSTGRES_URL": self._through("api-postgres", self.database.api_url),
            "OUTBOX_POSTGRES_POOL_MAX": str(API_POOL),
            "OUTBOX_PORT": str(self.api_port),
            "OUTBOX_CLIENT_LEASE_SECONDS": str(CLIENT_LEASE_SECONDS),
            "OUTBOX_CLIENT_MARGIN_SECONDS": str(CLIENT_MARGIN_SECONDS),
        }
        self.api = self._start("outbox_api", "api", env)

    def start_worker(self, number: int) -> None:
        """Starts worker 1 or 2 without waiting for it."""
        private_key = self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        env = {
            **self._common(f"worker-{number}"),
            "OUTBOX_POSTGRES_URL": self._through(f"worker-{number}-postgres", self.database.worker_url),
            "OUTBOX_POSTGRES_POOL_MAX": str(WORKER_POOL),
            "OUTBOX_WORKER_PRIVATE_KEY": private_key,
            "OUTBOX_WORKER_SLOTS": "400",
            "OUTBOX_SWEEP_SECONDS": "0.3",
            "OUTBOX_LEASE_SECONDS": str(LEASE_SECONDS),
            "OUTBOX_SEND_BY_SECONDS": "2",
            "OUTBOX_PAUSE_ALLOWANCE_SECONDS": "1",
            "OUTBOX_RENEW_SECONDS": "1",
            "OUTBOX_RENEW_MARGIN_SECONDS": "0.5",
            **self.settings,
        }
        made = self._start("outbox_worker", f"worker-{number}", env)
        if number > len(self.workers):
            self.workers.append(made)
        else:
            self.workers[number - 1] = made

    def start_agent(self, number: int) -> None:
        """Starts agent 1 or 2 without waiting for it; what its client has spooled is still there."""
        self.agent_processes[number] = start(
            "tests.fault.battery.agent",
            *(str(number), str(self.agents.port), str(self.folder / f"spool-{number}")),
            folder=self.folder,
            name=f"agent-{number}",
            env={"PYTHONPATH": str(ROOT), "OUTBOX_URL": f"http://{HOST}:{self.network.ports[f'agent-{number}-api']}"},
        )

    def _common(self, who: str) -> dict[str, str]:
        redis = {}
        if self.redis is not None:
            port = self.network.ports[f"{who}-redis"]
            redis["OUTBOX_REDIS_URL"] = self.redis.url.replace(f":{self.redis.port}/", f":{port}/")
        return {
            "PYTHONPATH": str(ROOT),
            "OUTBOX_WRAPPING_KEY": self.wrapping_key.to_base64(),
            "OUTBOX_POSTGRES_COMMAND_SECONDS": "4",
            "OUTBOX_POSTGRES_CONNECT_SECONDS": "2",
            "OUTBOX_POSTGRES_START_SECONDS": "60",
            "OUTBOX_LOG_LEVEL": "warning",
            **redis,
        }

    def _start(self, module: str, name: str, env: dict[str, str]) -> ChildProcess:
        # A new log each time: what is long is moved away, and only the newest is of interest.
        if self.unguarded is None:
            return start(module, folder=self.folder, name=name, env=env)
        return start("tests.fault.battery.unguarded", self.unguarded, module, folder=self.folder, name=name, env=env)

    def _through(self, link: str, url: str) -> str:
        return url.replace(f":{self.postgres.port}/", f":{self.network.ports[link]}/")

    async def api_answers(self) -> None:
        """Waits until the API is ready, past the proxy."""
        async with asyncio.timeout(READY_SECONDS):
            while True:
                assert self.api is not None
                if self.api.process.poll() is not None:
                    self.start_api()
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    reader, writer = await asyncio.open_connection(HOST, self.api_port)
                    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    line = await reader.readline()
                    writer.close()
                    if b" 200 " in line:
                        return
                await asyncio.sleep(0.05)

    async def worker_answers(self, number: int) -> None:
        """Waits until a worker holds connections to Postgres; one that has ended is started again."""
        async with asyncio.timeout(READY_SECONDS):
            port = self.network.ports[f"worker-{number}-postgres"]
            while not await asyncio.to_thread(_connected_to, self.workers[number - 1].pid, port):
                if self.workers[number - 1].process.poll() is not None:
                    self.start_worker(number)
                await asyncio.sleep(0.05)

    async def agent_answers(self, number: int) -> None:
        """Waits until an agent is there to be told what to do; one that has ended is started again."""
        async with asyncio.timeout(READY_SECONDS):
            while not self.agents.is_present(number, self.agent_processes[number].pid):
                if self.agent_processes[number].process.poll() is not None:
                    self.start_agent(number)
                await asyncio.sleep(0.05)

    def assert_agents_live(self) -> None:
        """An agent that has ended without having been killed is a defect of the client, and nobody would bring its effects to their end."""
        for process in self.agent_processes.values():
            assert process.process.poll() is None, f"{process.name} has ended:\n{process.log()}"

    def agent_ports(self, number: int) -> dict[str, int]:
        """Where an agent reaches the providers, by their names."""
        return {
            "ordinary": self.network.ports[f"agent-{number}-provider"],
            "forgetful": self.network.ports[f"agent-{number}-forgetful"],
        }

    async def postgres_answers(self) -> None:
        """Waits until Postgres accepts connections; one that has ended is started again."""
        async with asyncio.timeout(READY_SECONDS):
            while True:
                try:
                    if await asyncio.to_thread(self.postgres.is_ready):
                        return
                except Exception:
                    self.postgres.start()
                await asyncio.sleep(0.03)

    async def redis_answers(self) -> None:
        """Waits until Redis answers; one that has ended is started again."""
        assert self.redis is not None
        async with asyncio.timeout(READY_SECONDS):
            while True:
                try:
                    if await asyncio.to_thread(self.redis.is_ready):
                        return
                except Exception:
                    self.redis.start()
                await asyncio.sleep(0.03)

    def flush_redis(self) -> None:
        """Everything in it is gone."""
        assert self.redis is not None
        with Redis.from_url(self.redis.url) as client:
            client.flushall()

    def log(self, lines: int = 30) -> str:
        """The end of what API, workers and agents have written."""
        shown = [process for process in (self.api, *self.workers, *self.agent_processes.values()) if process is not None]
        return "\n".join(f"--- {one.name}\n" + "\n".join(one.log().splitlines()[-lines:]) for one in shown)


def _connected_to(process_id: int, port: int) -> bool:
    """Whether a process has an established TCP connection to a local port."""
    wanted = f":{port:04X}"
    try:
        own = {os.readlink(path) for path in Path(f"/proc/{process_id}/fd").iterdir()}
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return False
    for line in lines:
        fields = line.split()
        if fields[2].endswith(wanted) and fields[3] == "01" and f"socket:[{fields[9]}]" in own:
            return True
    return False


async def make_tenant(ground: Ground, provider_of_all: str, *, number: int, **contract_changes: Any) -> Tenant:
    """An organization whose providers are one sandbox, with so many connections to each; `contract_changes` are of `quick`."""
    link = "worker-forgetful" if provider_of_all == "forgetful" else "worker-provider"
    base_url = f"http://{HOST}:{ground.network.ports[link]}"
    scene = await make_scene(ground.database, ground.wrapping_key, base_url=base_url)
    contracts = [quick(one, **contract_changes) for one in shipped()]
    vault = await scene.vault()
    names: dict[str, list[str]] = {}
    webhooks: dict[str, Webhook] = {}
    # Checked before the connection is opened: a contract that the linter refuses would test nothing.
    refused = [problem for one in contracts if timedelta(0) not in contract_changes.values() for problem in lint(one)]
    assert refused == []
    async with scene.connection() as connection, connection.transaction():
        await tool_contracts.install(
            connection, scene.organization_id, [(one.tool, one.version, one.document()) for one in contracts]
        )
        for provider in (REFUND.partition(".")[0], TICKET.partition(".")[0], MAIL.partition(".")[0]):
            for place in range(number):
                row = connections.ConnectionRow(
                    organization_id=scene.organization_id,
                    id=uuid4(),
                    environment_id=scene.environment_id,
                    provider=provider,
                    name=f"{provider}-{place}",
                    base_url=base_url,
                    fixed_headers={},
                    currency="EUR",
                    allow_private=True,
                    is_default=False,
                )
                await connections.ensure(connection, row)
                info = f"credential:{scene.organization_id}:{row.id}".encode()
                sealed = seal_to(ground.private_key.public_key(), b"sk_test_1", info)
                await connections.seal_credential(connection, scene.organization_id, row.id, sealed)
                names.setdefault(provider, []).append(row.name)
                if provider == "stripe":
                    secret = f"whsec_{secrets.token_hex(12)}"
                    await webhooks_in.keep_secret(
                        connection, scene.organization_id, row.id, vault.seal_webhook_secret(row.id, secret)
                    )
                    url = f"http://{HOST}:{ground.api_port}/v1/webhooks/{row.id}"
                    webhooks[row.name] = Webhook(url=url, secret=secret)
    return Tenant(scene=scene, names=names, webhooks=webhooks)


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    *,
    connections_each: int = 40,
    disk_megabytes: int = 700,
    unguarded: str | None = None,
    without: str | None = None,
    settings: Mapping[str, str] | None = None,
    agents: bool = True,
) -> AsyncIterator[Ground]:
    """A ground for this block.

    Args:
        folder: empty, of its own.
        connections_each: connections of each provider in each organization.
        disk_megabytes: size of Postgres's file system.
        unguarded: a guard that `tests.fault.battery.unguarded` takes out of API and workers.
        without: SQL of a superuser that takes a guard out of the schema.
        settings: of the workers, replacing ours.
        agents: whether there are any.
    """
    async with contextlib.AsyncExitStack() as stack:
        network = await stack.enter_async_context(network_running(folder))
        disk = SmallDisk(folder / "disk", disk_megabytes)
        stack.callback(disk.close)
        server = EmbeddedPostgres(
            disk.folder / "postgres",
            binaries=shipped_binaries(),
            password=secrets.token_hex(16),
            log=folder / "postgres.log",
            settings={
                "max_connections": "300",
                "max_wal_size": "128MB",
                "min_wal_size": "64MB",
                "log_min_messages": "panic",
                # Connections live for seconds here: planning anew what each has just planned would be most of the work.
                "plan_cache_mode": "force_generic_plan",
            },
        )
        server.prepare()
        server.start_and_wait()
        stack.callback(_kill, server)
        made = PostgresServer(server.url(), version=server.binaries.version, binaries=server.binaries)
        database = await asyncio.to_thread(made.migrated_database)
        redis = _redis(folder)
        if redis is not None:
            redis.start_and_wait()
            stack.callback(redis.stop)
        sandboxes = {name: await _sandbox(stack, folder, name) for name in ("ordinary", "forgetful")}
        ground = Ground(
            folder=folder,
            network=network,
            disk=disk,
            postgres=server,
            server=made,
            database=database,
            redis=redis,
            sandboxes=sandboxes,
            wrapping_key=WrappingKey.generate(),
            private_key=generate_private_key(),
            api_port=child.free_port(),
            unguarded=unguarded,
            settings=dict(settings or {}),
        )
        await network.link("caller-api", "raw", HOST, ground.api_port)
        for who in ("api", "worker-1", "worker-2"):
            await network.link(f"{who}-postgres", "postgres", HOST, server.port)
            if redis is not None:
                await network.link(f"{who}-redis", "raw", HOST, redis.port)
        for link, sandbox in (("worker-provider", "ordinary"), ("worker-forgetful", "forgetful")):
            await network.link(link, "http", HOST, urlsplit(sandboxes[sandbox]).port or 0)
        for number in NUMBERS:
            await network.link(f"agent-{number}-api", "http", HOST, ground.api_port)
            for link, sandbox in (("provider", "ordinary"), ("forgetful", "forgetful")):
                await network.link(f"agent-{number}-{link}", "http", HOST, urlsplit(sandboxes[sandbox]).port or 0)
        await stack.enter_async_context(ground.agents.listening())
        ground.tenants["ordinary"] = await make_tenant(ground, "ordinary", number=connections_each)
        ground.tenants["forgetful"] = await make_tenant(ground, "forgetful", number=connections_each, within=WINDOW_NEARLY_OVER)
        if without is not None:
            async with ground.tenants["ordinary"].scene.connection() as connection:
                await connection.execute(without)
        stack.callback(_end, ground)
        ground.start_api()
        ground.start_worker(1)
        ground.start_worker(2)
        for number in NUMBERS if agents else ():
            ground.start_agent(number)
        await ground.api_answers()
        for number in (1, 2):
            await ground.worker_answers(number)
        for number in ground.agent_processes:
            await ground.agent_answers(number)
        yield ground


def _end(ground: Ground) -> None:
    for process in (ground.api, *ground.workers, *ground.agent_processes.values()):
        if process is not None:
            process.end()


def _kill(server: EmbeddedPostgres) -> None:
    """Its data are thrown away with the disk: nothing needs to be written."""
    if server.process is not None and server.process.poll() is None:
        server.process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(10)
    server.stop()


def _redis(folder: Path) -> EmbeddedRedis | None:
    binary = find_binary()
    if binary is None:
        return None
    return EmbeddedRedis(folder / "redis", binary=binary, password=secrets.token_hex(16), log=folder / "redis.log")


async def _sandbox(stack: contextlib.AsyncExitStack, folder: Path, name: str) -> str:
    ready_file = folder / f"sandbox-{name}.json"
    process = start("outbox_sandbox", "--port", "0", "--ready-file", str(ready_file), folder=folder, name=f"sandbox-{name}")
    stack.callback(process.end)
    await asyncio.to_thread(process.wait_for, ready_file.exists)
    url: str = json.loads(ready_file.read_text())["url"]
    return url
