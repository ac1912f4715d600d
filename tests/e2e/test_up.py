"""`outbox up` as a user meets it: one command, everything answers, nothing is left behind, everything survives a restart."""

import contextlib
import http.client
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.support.postgres import PostgresServer
from tests.support.processes import ChildProcess, gone, start_command, wait_until

from outbox_standalone import child
from outbox_standalone.refusal import Refusal
from outbox_standalone.stack import connected_accounts

READY_SECONDS = 60.0
GONE_SECONDS = 20.0


class Up:
    """One running `outbox up`."""

    def __init__(self, process: ChildProcess, ready_file: Path, data_dir: Path) -> None:
        """Wraps a process that was just started."""
        self.process = process
        self.ready_file = ready_file
        self.data_dir = data_dir

    def ready(self) -> dict[str, Any]:
        """The ready file, waited for."""
        self.process.wait_for(self.ready_file.exists, deadline_seconds=READY_SECONDS)
        found: dict[str, Any] = json.loads(self.ready_file.read_text())
        return found

    def all_ids(self) -> set[int]:
        """Once it is ready: ids of everything that runs because of it, itself, watchdog and helpers included."""
        ready = self.ready()
        return {self.process.pid, *child.descendants(self.process.pid), *pids_of(ready)}


Start = Callable[..., Up]


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Gives a function that starts `outbox up` in a folder; whatever is left of it is ended afterwards."""
    with contextlib.ExitStack() as stack:
        number = 0

        def start(*options: str, data_dir: Path | None = None, env: dict[str, str] | None = None) -> Up:
            nonlocal number
            number += 1
            ready_file = folder / f"ready-{number}.json"
            command = [str(Path(sys.executable).with_name("outbox")), "up", "--data-dir", str(data_dir or folder / "data")]
            command += ["--ready-file", str(ready_file), *options]
            started = start_command(command, env=env, folder=folder, name=f"up-{number}")
            stack.callback(_end, started)
            return Up(started, ready_file, data_dir or folder / "data")

        yield start


@pytest.fixture
def start_up(tmp_path: Path) -> Iterator[Start]:
    """Starts `outbox up` in a folder of this test's own."""
    with starting(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One `outbox up` with two API processes and two workers, for the tests that leave it running."""
    with starting(tmp_path_factory.mktemp("shared")) as start:
        yield start("--api-workers", "2", "--workers", "2")


def _end(process: ChildProcess) -> None:
    """SIGTERM first, so that Postgres writes its data, then by force."""
    if process.process.poll() is None:
        process.send(signal.SIGTERM)
        with contextlib.suppress(Exception):
            process.wait(deadline_seconds=GONE_SECONDS)
    process.end()


def pids_of(ready: dict[str, Any]) -> list[int]:
    """Every process id of a ready file."""
    found: list[int] = []
    for value in ready["pids"].values():
        found += value if isinstance(value, list) else [value] if value is not None else []
    return found


def get(url: str, path: str = "") -> int:
    """The status of a GET."""
    parts = urlsplit(url + path)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status
    finally:
        connection.close()


def refund(ready: dict[str, Any], payment: str) -> dict[str, Any]:
    """The final answer to one refund, asked for again with the same call while it is not final: that is always safe."""
    parts = urlsplit(ready["url"])
    body = json.dumps({"tool": "stripe.refund.create", "input": {"payment_intent": payment, "amount": 100}})
    headers = {"Authorization": f"Bearer {ready['agent_key']}", "Content-Type": "application/json"}

    def answer() -> dict[str, Any] | None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=70)
        try:
            connection.request("POST", "/v1/tool-calls", body, headers)
            found = connection.getresponse()
            text = found.read()
            return json.loads(text) if found.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    return wait_until(answer, deadline_seconds=READY_SECONDS, what=f"the refund of {payment}") or {}


def test_ready_file_tells_the_truth(shared: Up) -> None:
    """The ready file has mode 0600 and the promised members; every address answers and every process id is alive."""
    ready = shared.ready()
    assert stat.S_IMODE(shared.ready_file.stat().st_mode) == 0o600
    assert set(ready) == {
        "url",
        "admin_key",
        "agent_key",
        "postgres_url",
        "redis_url",
        "sandbox_url",
        "webhooks",
        "metrics_urls",
        "pids",
    }
    assert set(ready["pids"]) == {"api", "worker", "rollup", "sandbox", "postgres", "redis"}
    assert len(ready["pids"]["api"]) == len(ready["pids"]["worker"]) == 2
    assert ready["pids"]["rollup"] == []
    assert len(ready["metrics_urls"]) == 4
    assert ready["agent_key"].startswith("obx_sandbox_")
    assert ready["admin_key"].startswith("obx_sandbox_")
    assert all(child.is_alive(pid) for pid in pids_of(ready))
    assert get(ready["url"], "/healthz") == 200
    assert all(get(url) == 200 for url in ready["metrics_urls"])
    assert get(ready["sandbox_url"], "/_control/effects") == 200


async def test_database_is_filled(shared: Up) -> None:
    """Organization demo, project default, environment sandbox, the shipped contracts, and connections in EUR to the sandbox."""
    ready = shared.ready()
    connection = await asyncpg.connect(ready["postgres_url"])
    assert await connection.fetchval("select rolsuper from pg_roles where rolname = current_user")
    assert await connection.fetchval("select name from organizations") == "demo"
    assert await connection.fetchval("select name from projects") == "default"
    assert await connection.fetchval("select name from environments") == "sandbox"
    rows = await connection.fetch("select provider, base_url, currency, is_default from connections order by provider")
    assert [tuple(row) for row in rows] == [
        (provider, ready["sandbox_url"], "EUR", True) for provider in ("sandbox", "sendgrid", "stripe")
    ]
    assert await connection.fetchval("select count(*) from provider_credentials") == 3
    tools = {row["tool"] for row in await connection.fetch("select tool from tool_contracts")}
    assert {"stripe.refund.create", "stripe.customer.create", "sendgrid.mail.send", "sandbox.echo"} <= tools
    assert await connection.fetchval("select m.roles from members m join actors a on a.id = m.actor_id") == ["owner"]
    assert await connection.fetchval("select count(*) from scoped_keys") == 2
    assert await connection.fetchval("show fsync") == "on"
    await connection.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stops_clean(start_up: Start, number: signal.Signals) -> None:
    """SIGINT and SIGTERM end it with code 0, with every process it started and without the ready file."""
    up = start_up()
    ids = up.all_ids()
    up.process.send(number)
    assert up.process.wait(deadline_seconds=GONE_SECONDS) == 0
    assert gone(ids)
    assert not up.ready_file.exists()
    assert "Traceback" not in up.process.log()


def test_sigkill_leaves_no_process(start_up: Start, tmp_path: Path) -> None:
    """After SIGKILL of `outbox up` itself nothing it started survives, and the next start finds its data at once."""
    up = start_up("--workers", "2")
    before = up.ready()
    ids = up.all_ids()
    assert len(ids) >= 7
    up.process.kill()
    wait_until(lambda: gone(ids), deadline_seconds=GONE_SECONDS, what=f"the end of {ids}")
    again = start_up().ready()
    assert again["agent_key"] == before["agent_key"]


def test_successor_waits_for_what_is_left(start_up: Start) -> None:
    """A start right after the SIGKILL of its predecessor waits until the predecessor's processes are gone."""
    up = start_up()
    ids = up.all_ids()
    up.process.kill()
    start_up().ready()
    assert gone(ids)


def test_sigkill_of_the_whole_group_and_of_stopped_children(start_up: Start) -> None:
    """Also children that are frozen (SIGSTOP) end after `outbox up` was killed."""
    up = start_up()
    ready = up.ready()
    ids = up.all_ids()
    for pid in (*ready["pids"]["worker"], *ready["pids"]["api"]):
        os.kill(pid, signal.SIGSTOP)
    os.killpg(up.process.pid, signal.SIGKILL)
    wait_until(lambda: gone(ids), deadline_seconds=GONE_SECONDS, what=f"the end of {ids}")


def test_sigkill_of_watchdog_and_itself(start_up: Start) -> None:
    """Even when the watchdog is killed together with `outbox up`, every child ends by the kernel's signal at its parent's death."""
    up = start_up()
    ids = up.all_ids()
    watchdogs = [pid for pid in ids if b"outbox_standalone.watchdog" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(watchdogs) == 1
    os.kill(watchdogs[0], signal.SIGKILL)
    up.process.kill()
    wait_until(lambda: gone(ids), deadline_seconds=GONE_SECONDS, what=f"the end of {ids}")


@pytest.mark.parametrize("kind", ["worker", "api", "sandbox", "redis", "postgres"])
def test_killed_child_is_started_again(shared: Up, kind: str) -> None:
    """A child that is killed is started again, the ready file names its successor, and a refund is made once all the same."""
    before = shared.ready()
    old = before["pids"][kind]
    if old is None:
        pytest.skip(f"there is no {kind} here")
    os.kill(old[0] if isinstance(old, list) else old, signal.SIGKILL)

    def replaced() -> dict[str, Any] | None:
        found: dict[str, Any] = json.loads(shared.ready_file.read_text())
        return found if found["pids"][kind] != old else None

    after = shared.process.wait_for(replaced, deadline_seconds=READY_SECONDS) or {}
    assert all(child.is_alive(pid) for pid in pids_of(after))
    assert {key: after[key] for key in after if key not in ("pids", "metrics_urls")} == {
        key: before[key] for key in before if key not in ("pids", "metrics_urls")
    }
    assert all(get(url) == 200 for url in after["metrics_urls"])
    first, second = refund(after, f"pi_{kind}"), refund(after, f"pi_{kind}")
    assert first["receipt"] == second["receipt"]
    assert second["replayed"]


async def test_data_and_keys_survive_a_restart(start_up: Start, tmp_path: Path) -> None:
    """A second run on the same folder has the same keys and the same rows; the keys lie in a file of mode 0600."""
    up = start_up()
    before = up.ready()
    connection = await asyncpg.connect(before["postgres_url"])
    organization = await connection.fetchval("select id from organizations")
    await connection.close()
    up.process.send(signal.SIGINT)
    assert up.process.wait(deadline_seconds=GONE_SECONDS) == 0
    assert stat.S_IMODE((tmp_path / "data" / "keys.json").stat().st_mode) == 0o600
    after = start_up().ready()
    assert (after["admin_key"], after["agent_key"]) == (before["admin_key"], before["agent_key"])
    connection = await asyncpg.connect(after["postgres_url"])
    assert await connection.fetchval("select id from organizations") == organization
    assert await connection.fetchval("select base_url from connections where provider = 'stripe'") == after["sandbox_url"]
    await connection.close()


def test_runs_without_redis(start_up: Start) -> None:
    """`--no-redis` starts no Redis and says so in the ready file."""
    ready = start_up("--no-redis").ready()
    assert ready["redis_url"] is None
    assert ready["pids"]["redis"] is None
    assert get(ready["url"], "/healthz") == 200


def test_second_run_on_one_folder_is_refused(shared: Up, start_up: Start) -> None:
    """A second `outbox up` on the same folder ends with one sentence; the first goes on."""
    ready = shared.ready()
    second = start_up(data_dir=shared.data_dir)
    assert second.process.wait() == 1
    assert f"Another `outbox up` (process {shared.process.pid}) uses" in second.process.log()
    assert get(ready["url"], "/healthz") == 200


def test_taken_port_is_refused(shared: Up, start_up: Start) -> None:
    """`--port` of a port that somebody listens on ends with one sentence."""
    port = urlsplit(shared.ready()["url"]).port
    second = start_up("--port", str(port))
    assert second.process.wait() == 1
    assert f"Port {port} of 127.0.0.1 cannot be used" in second.process.log()


async def test_given_postgres_replaces_the_embedded_one(start_up: Start, postgres_server: PostgresServer) -> None:
    """OUTBOX_POSTGRES_URL is used instead of an embedded server, whose process id is then null."""
    database = postgres_server.empty_database()
    up = start_up("--no-redis", env={"OUTBOX_POSTGRES_URL": database.superuser_url})
    ready = up.ready()
    assert ready["postgres_url"] == database.superuser_url
    assert ready["pids"]["postgres"] is None
    connection = await asyncpg.connect(database.superuser_url)
    assert await connection.fetchval("select name from organizations") == "demo"
    await connection.close()
    up.process.send(signal.SIGTERM)
    assert up.process.wait(deadline_seconds=GONE_SECONDS) == 0
    other_folder = start_up(
        "--no-redis", data_dir=up.ready_file.parent / "other", env={"OUTBOX_POSTGRES_URL": database.superuser_url}
    )
    assert other_folder.process.wait() == 1
    assert "opens with the keys.json of another data folder" in other_folder.process.log()
    postgres_server.drop(database)


def test_live_key_is_refused(start_up: Start) -> None:
    """`--connect` with a live Stripe key ends with one sentence that does not show the key; nothing was started."""
    live = "sk_live_" + "4" * 24
    up = start_up("--connect", "stripe=env:STRIPE_API_KEY", env={"STRIPE_API_KEY": live})
    assert up.process.wait() == 1
    assert "live key" in up.process.log()
    assert live not in up.process.log()


@pytest.mark.parametrize(
    ("value", "environment", "sentence"),
    [
        ("stripe=sk_test_1", {}, "write PROVIDER=env:VARIABLE"),
        ("stripe=env:MISSING", {}, "MISSING is not set"),
        ("stripe=env:KEY", {"KEY": "rk_live_1"}, "a live key"),
        ("stripe=env:KEY", {"KEY": "mk_1"}, "no test key"),
        ("sendgrid=env:KEY", {"KEY": "SG.1"}, "only stripe can be connected"),
    ],
)
def test_connect_takes_test_keys_only(value: str, environment: dict[str, str], sentence: str) -> None:
    """Whatever is not plainly a provider's test key in a variable is refused with a sentence that says why."""
    with pytest.raises(Refusal, match=sentence):
        connected_accounts([value], environment)


async def test_connected_account_is_the_default(start_up: Start) -> None:
    """`--connect stripe=...` makes Stripe's own API the default; without it the sandbox provider is the default again."""
    key = "sk_test_" + "5" * 24
    up = start_up("--connect", "stripe=env:STRIPE_API_KEY", env={"STRIPE_API_KEY": key})
    assert await _default_of_stripe(up.ready()) == ("stripe-account", "https://api.stripe.com")
    up.process.send(signal.SIGTERM)
    up.process.wait(deadline_seconds=GONE_SECONDS)
    assert key not in up.process.log()
    again = start_up().ready()
    assert await _default_of_stripe(again) == ("stripe", again["sandbox_url"])


async def _default_of_stripe(ready: dict[str, Any]) -> tuple[str, str]:
    connection = await asyncpg.connect(ready["postgres_url"])
    try:
        row = await connection.fetchrow("select name, base_url from connections where provider = 'stripe' and is_default")
    finally:
        await connection.close()
    assert row is not None
    return row["name"], row["base_url"]
