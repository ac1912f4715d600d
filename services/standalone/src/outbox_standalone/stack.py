"""What `outbox up` starts, in which order, and what it tells about it."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from outbox_runtime.postgres import AWAY
from outbox_standalone import bootstrap, child, watchdog
from outbox_standalone.bootstrap import ProviderAccount, ServiceUrls, Webhook
from outbox_standalone.data_folder import DataFolder, LocalKeys, locked, write_private_file
from outbox_standalone.embedded_postgres import EmbeddedPostgres, PostgresStartError, PostgresUnusableError, shipped_binaries
from outbox_standalone.embedded_redis import EmbeddedRedis, RedisStartError, find_binary
from outbox_standalone.refusal import Refusal
from outbox_standalone.supervisor import Child, Supervisor, removed_at_end

HOST = "127.0.0.1"
_READY_SECONDS = 90.0
_PROBE_SECONDS = 1.0
_DRAIN_SECONDS = "8"
_STOP_POLL_SECONDS = 0.1
_CONNECTIONS_PER_PROCESS = 20
_CONNECTIONS_SPARE = 100

ACCOUNT_URLS: Mapping[str, str] = {"stripe": "https://api.stripe.com"}
"""Providers whose real accounts can take the sandbox provider's place, because they have test keys."""

TEST_KEY_PREFIXES: Mapping[str, tuple[str, ...]] = {"stripe": ("sk_test_", "rk_test_")}
"""How a provider's test keys begin (https://docs.stripe.com/keys); everything else could move real money."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How one `outbox up` runs.

    Attributes:
        data_dir: folder of data, keys and logs.
        port: port of the API, 0 for a free one.
        workers: number of worker processes.
        api_workers: number of API processes, which share the port.
        redis: whether Redis is used if there is one.
        ready_file: where the ready file goes, or None.
        accounts: real accounts, by provider.
        console: where the person is told what happens.
    """

    data_dir: Path
    port: int = 0
    workers: int = 1
    api_workers: int = 1
    redis: bool = True
    ready_file: Path | None = None
    accounts: Mapping[str, ProviderAccount] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))


def connected_accounts(values: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, ProviderAccount]:
    """Reads the values of `--connect`.

    Args:
        values: each `PROVIDER=env:VARIABLE`.
        environment: where the variables are looked up; the process's unless given.

    Returns:
        The accounts by provider.

    Raises:
        Refusal: the form is another, the provider has no test keys, the variable is not set, or the key is not a test key.
    """
    found: dict[str, ProviderAccount] = {}
    for value in values:
        provider, _, source = value.partition("=")
        kind, _, variable = source.partition(":")
        if kind != "env" or not variable:
            raise Refusal(f"--connect {provider}: write PROVIDER=env:VARIABLE, so that no key stands on the command line.")
        if provider not in ACCOUNT_URLS:
            raise Refusal(
                f"--connect {provider}: only {', '.join(sorted(ACCOUNT_URLS))} can be connected here, because only there "
                "test keys exist that cannot reach anything real."
            )
        credential = (os.environ if environment is None else environment).get(variable, "").strip()
        if not credential:
            raise Refusal(f"--connect {provider}: the variable {variable} is not set.")
        if not credential.startswith(TEST_KEY_PREFIXES[provider]):
            live = credential.startswith(("sk_live_", "rk_live_"))
            raise Refusal(
                f"--connect {provider}: {variable} holds {'a live key' if live else 'no test key'}, and `outbox up` never takes "
                f"a key that could move real money; a test key begins with {' or '.join(TEST_KEY_PREFIXES[provider])}."
            )
        found[provider] = ProviderAccount(provider=provider, base_url=ACCOUNT_URLS[provider], credential=credential)
    return found


def run(options: Options) -> None:
    """Runs everything until SIGINT, SIGTERM or SIGHUP; returns after the last child has ended.

    Raises:
        Refusal: it cannot be started as asked.
    """
    with contextlib.ExitStack() as held:
        folder = held.enter_context(locked(options.data_dir))
        keys = folder.keys()
        ready_file = options.ready_file.resolve() if options.ready_file is not None else None
        held.enter_context(removed_at_end(ready_file))
        port = held.enter_context(_kept_port(options.port))
        supervisor = held.enter_context(
            Supervisor(log_folder=folder.logs, lock_fd=folder.lock_fd, say=lambda line: _say(options.console, line))
        )
        stack = _Stack(options, folder, keys, supervisor, port)
        if not stack.start():
            return
        stack.announce(ready_file)
        _show(options.console, stack.ready_document(), stack.versions(), folder)
        supervisor.run(on_change=lambda: stack.announce(ready_file))
        _say(options.console, "Stopping.")


def _say(console: Console, line: str) -> None:
    """Prints one line; a terminal that is gone is no reason to stop."""
    with contextlib.suppress(OSError):
        console.print(escape(line))


@contextlib.contextmanager
def _kept_port(wanted: int) -> Iterator[int]:
    """A port of 127.0.0.1 that stays ours over restarts of the API.

    The API's processes share the port (SO_REUSEPORT). A socket that is bound but never listens keeps others from being given it.

    Raises:
        Refusal: somebody else has the port.
    """
    with socket.socket() as alone:
        # Without SO_REUSEPORT, so that this fails where any other process listens, another `outbox up` included.
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            alone.bind((HOST, wanted))
        except OSError as error:
            raise Refusal(f"Port {wanted} of {HOST} cannot be used: {error.strerror}.") from error
        port: int = alone.getsockname()[1]
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            keeper.bind((HOST, port))
        except OSError as error:
            raise Refusal(f"Port {port} of {HOST} cannot be used: {error.strerror}.") from error
        yield port


def _answers(port: int, path: str) -> int | None:
    """The status that a local server gives to a GET, None when it does not answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class _Stack:
    """The children of one `outbox up` and what is known of them."""

    def __init__(self, options: Options, folder: DataFolder, keys: LocalKeys, supervisor: Supervisor, port: int) -> None:
        self._options = options
        self._folder = folder
        self._keys = keys
        self._supervisor = supervisor
        self._port = port
        self._postgres: EmbeddedPostgres | None = None
        self._redis: EmbeddedRedis | None = None
        self._owner_url = os.environ.get("OUTBOX_POSTGRES_URL", "")
        self._redis_url = os.environ.get("OUTBOX_REDIS_URL", "") if options.redis else ""
        self._sandbox_port = child.free_port()
        self._metrics_ports: dict[str, int] = {}
        self._urls: ServiceUrls | None = None
        self._webhooks: Mapping[str, Webhook] = {}

    def start(self) -> bool:
        """Starts everything in order; False when a signal asked to stop meanwhile.

        Raises:
            Refusal: something does not start; the message says what and shows the end of its log.
        """
        console = self._options.console
        with console.status("Starting Postgres") if console.is_terminal else contextlib.nullcontext() as status:
            self._supervisor.add(self._sandbox())
            if self._options.redis and not self._redis_url:
                self._start_redis()
            if not self._owner_url:
                self._start_postgres()
            if status is not None:
                status.update("Preparing the database")
            if not self._prepare_database():
                return False
            if status is not None:
                status.update("Starting the API and the workers")
            for number in range(1, self._options.api_workers + 1):
                self._supervisor.add(self._api(f"api-{number}"))
            for number in range(1, self._options.workers + 1):
                self._supervisor.add(self._worker(f"worker-{number}"))
            return self._supervisor.wait_until_ready(deadline_seconds=_READY_SECONDS)

    def _start_postgres(self) -> None:
        log = self._folder.logs / "postgres.log"
        log.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            server = EmbeddedPostgres(
                self._folder.path / "postgres",
                binaries=shipped_binaries(),
                password=self._keys.postgres_password,
                log=log,
                settings={"max_connections": str(self._connections_max())},
            )
            server.prepare()
            server.start_and_wait()
        except (PostgresUnusableError, PostgresStartError) as error:
            raise Refusal(str(error)) from error
        except PermissionError as error:
            raise Refusal(f"{error.filename} belongs to another user: {error.strerror}.") from error
        self._postgres = server

        def restart() -> subprocess.Popen[bytes]:
            server.start()
            assert server.process is not None
            return server.process

        self._supervisor.adopt(
            Child(
                name="postgres",
                stage=watchdog.USED,
                log=log,
                start=restart,
                is_ready=server.is_ready,
                stop_signal=signal.SIGINT,
                process=server.process,
            )
        )
        _run_unless_stopped(self._supervisor, bootstrap.make_database(server.url()))
        self._owner_url = server.url(bootstrap.DATABASE)

    def _connections_max(self) -> int:
        """Enough for the full pool of every process, its listener, and people who look."""
        processes = self._options.workers + self._options.api_workers
        return _CONNECTIONS_SPARE + processes * _CONNECTIONS_PER_PROCESS

    def _start_redis(self) -> None:
        binary = find_binary()
        if binary is None:
            _say(self._options.console, "No Redis was found on this machine: running without it, only slower.")
            return
        log = self._folder.logs / "redis.log"
        server = EmbeddedRedis(self._folder.path / "redis", binary=binary, password=self._keys.redis_password, log=log)
        try:
            server.start_and_wait()
        except RedisStartError as error:
            raise Refusal(str(error)) from error
        self._redis, self._redis_url = server, server.url

        def restart() -> subprocess.Popen[bytes]:
            server.start()
            assert server.process is not None
            return server.process

        self._supervisor.adopt(
            Child(name="redis", stage=watchdog.USED, log=log, start=restart, is_ready=server.is_ready, process=server.process)
        )

    def _prepare_database(self) -> bool:
        """Migrates and fills the database; False when a signal asked to stop meanwhile."""

        async def prepare() -> None:
            self._urls = await bootstrap.migrate_and_open(self._owner_url, self._keys, embedded=self._postgres is not None)
            self._webhooks = await bootstrap.fill(
                self._owner_url, self._keys, sandbox_url=self.sandbox_url, accounts=self._options.accounts
            )

        try:
            finished = _run_unless_stopped(self._supervisor, prepare())
        except Exception as error:
            # What Postgres itself refuses carries an SQLSTATE: a wrong password, a missing privilege.
            if isinstance(error, AWAY) or hasattr(error, "sqlstate"):
                raise Refusal(f"The database cannot be prepared; Postgres says: {error or type(error).__name__}") from error
            raise
        if finished and self._urls is not None and self._urls.warning is not None:
            _say(self._options.console, self._urls.warning)
        return finished

    @property
    def sandbox_url(self) -> str:
        """Where the sandbox provider answers."""
        return f"http://{HOST}:{self._sandbox_port}"

    def _sandbox(self) -> Child:
        announced = self._folder.path / "sandbox.json"
        log = self._folder.logs / "sandbox.log"
        arguments = (
            f"--host={HOST}",
            f"--port={self._sandbox_port}",
            f"--state-file={self._folder.path / 'sandbox.sqlite'}",
            f"--ready-file={announced}",
            f"--parent-pid={os.getpid()}",
        )
        made = Child(
            name="sandbox",
            stage=watchdog.USED,
            log=log,
            start=lambda: _start_module("outbox_sandbox", *arguments, environment=_clean_environment(), log=log),
            is_ready=lambda: made.process is not None and _announced_by(announced, made.process.pid),
        )
        return made

    def _api(self, name: str) -> Child:
        assert self._urls is not None
        own = {"OUTBOX_POSTGRES_URL": self._urls.api, "OUTBOX_HOST": HOST, "OUTBOX_PORT": str(self._port)}
        return self._service(name, "outbox_api", own, lambda: _answers(self._port, "/healthz") == 200)

    def _worker(self, name: str) -> Child:
        assert self._urls is not None
        own = {
            "OUTBOX_POSTGRES_URL": self._urls.worker,
            "OUTBOX_WORKER_PRIVATE_KEY": self._keys.worker_private_key,
            "OUTBOX_STATE_FOLDER": str(self._folder.path / "state"),
        }
        return self._service(name, "outbox_worker", own, lambda: True)

    def _service(self, name: str, module: str, own: Mapping[str, str], also_ready: Callable[[], bool]) -> Child:
        """A deployable: the common settings, its own ones, and a port for metrics and health that is new at every start."""
        log = self._folder.logs / f"{name}.log"

        def start() -> subprocess.Popen[bytes]:
            port = self._metrics_ports[name] = child.free_port()
            environment = {
                "OUTBOX_DRAIN_SECONDS": _DRAIN_SECONDS,
                **_clean_environment(),
                **own,
                "OUTBOX_WRAPPING_KEY": self._keys.wrapping_key,
                "OUTBOX_METRICS_HOST": HOST,
                "OUTBOX_METRICS_PORT": str(port),
            }
            if self._redis_url:
                environment["OUTBOX_REDIS_URL"] = self._redis_url
            return _start_module(module, environment=environment, log=log)

        return Child(
            name=name,
            stage=watchdog.SERVICES,
            log=log,
            start=start,
            is_ready=lambda: _answers(self._metrics_ports[name], "/readyz") == 200 and also_ready(),
        )

    def ready_document(self) -> dict[str, object]:
        """The content of the ready file (`interfaces.md` section 8)."""
        services = [one for one in self._supervisor.children if one.name in self._metrics_ports]

        def work_ids(prefix: str) -> list[int]:
            return [number for one in self._supervisor.children if one.name.startswith(prefix) for number in one.work_ids]

        return {
            "url": f"http://{HOST}:{self._port}",
            "admin_key": self._keys.admin_key,
            "agent_key": self._keys.agent_key,
            "postgres_url": self._owner_url,
            "redis_url": self._redis_url or None,
            "sandbox_url": self.sandbox_url,
            "webhooks": {
                provider: {"url": f"http://{HOST}:{self._port}/v1/webhooks/{webhook.connection_id}", "secret": webhook.secret}
                for provider, webhook in self._webhooks.items()
            },
            "metrics_urls": [f"http://{HOST}:{self._metrics_ports[one.name]}/metrics" for one in services],
            "pids": {
                "api": work_ids("api-"),
                "worker": work_ids("worker-"),
                "rollup": [],
                "sandbox": work_ids("sandbox"),
                "postgres": next(iter(work_ids("postgres")), None),
                "redis": next(iter(work_ids("redis")), None),
            },
        }

    def versions(self) -> dict[str, str]:
        """Which Postgres and Redis are used, without their passwords."""
        postgres = "at OUTBOX_POSTGRES_URL"
        if self._postgres is not None:
            postgres = f"{self._postgres.binaries.version} on {HOST}:{self._postgres.port}"
        redis = "none (everything happens, only later)"
        if self._redis is not None:
            redis = f"{self._redis.version} on {HOST}:{self._redis.port}"
        elif self._redis_url:
            redis = "at OUTBOX_REDIS_URL"
        return {"Postgres": postgres, "Redis": redis}

    def announce(self, ready_file: Path | None) -> None:
        """Writes the ready file, readable by this user only, because it holds keys."""
        if ready_file is not None:
            ready_file.parent.mkdir(parents=True, exist_ok=True)
            write_private_file(ready_file, json.dumps(self.ready_document(), indent=2) + "\n")


_OWN_VARIABLES = tuple(
    f"OUTBOX_{name}{suffix}"
    for name in (
        "POSTGRES_URL",
        "POSTGRES_DIRECT_URL",
        "REDIS_URL",
        "WRAPPING_KEY",
        "WORKER_PRIVATE_KEY",
        "WORKER_PUBLIC_KEY",
        "METRICS_HOST",
        "METRICS_PORT",
        "HOST",
        "PORT",
        "STATE_FOLDER",
        "WORKERS",
        "KEY",
        "URL",
    )
    for suffix in ("", "_FILE")
)


def _clean_environment() -> dict[str, str]:
    """This process's environment without what the children are told anew; other settings reach them as they are."""
    return {name: value for name, value in os.environ.items() if name not in _OWN_VARIABLES}


def _start_module(module: str, *arguments: str, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    return child.start([sys.executable, "-P", "-m", module, *arguments], environment=environment, log=log)


def _announced_by(path: Path, process_id: int) -> bool:
    """Whether that very process has written the ready file."""
    try:
        found: object = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(found, dict) and found.get("pid") == process_id


def _run_unless_stopped(supervisor: Supervisor, work: Coroutine[Any, Any, None]) -> bool:
    """Runs a coroutine to its end, or cancels it when a signal asks to stop; returns whether it came to its end."""

    async def run() -> bool:
        task = asyncio.ensure_future(work)
        while not supervisor.stop_requested:
            done, _ = await asyncio.wait([task], timeout=_STOP_POLL_SECONDS)
            if done:
                await task
                return True
        task.cancel()
        await asyncio.wait([task])
        return False

    return asyncio.run(run())


def _show(console: Console, ready: Mapping[str, object], versions: Mapping[str, str], folder: DataFolder) -> None:
    """Tells the person at the terminal what runs, and gives lines to paste. Passwords stay in the ready file and `keys.json`."""
    url, agent_key = ready["url"], str(ready["agent_key"])
    rows = {
        "API": str(url),
        "agent key": agent_key,
        "admin key": str(ready["admin_key"]),
        **versions,
        "sandbox provider": f"{ready['sandbox_url']} (what it did: {ready['sandbox_url']}/_control/effects)",
        "data, logs": f"{folder.path}, {folder.logs}",
    }
    call = json.dumps(
        {"tool": "stripe.refund.create", "input": {"payment_intent": "pi_3Nx", "amount": 1200}, "reference": "case-8841"}
    )
    curl = f"curl -sS {url}/v1/tool-calls -H 'Authorization: Bearer {agent_key}' -H 'Content-Type: application/json' -d '{call}'"
    with contextlib.suppress(OSError):
        console.print("[bold green]Agent Outbox runs.[/]")
        for label, value in rows.items():
            console.print(f"  [bold]{escape(label):<17}[/] {escape(value)}")
        console.print("\nA refund. Send it twice, and one is made:\n")
        console.print(f"  {escape(curl)}")
        console.print("\nFor `outbox tail` and `outbox receipts` in other terminals:\n")
        console.print(f"  export OUTBOX_URL={url} OUTBOX_KEY={escape(str(ready['admin_key']))}")
        console.print("\nCtrl+C ends it; the data stay.")
