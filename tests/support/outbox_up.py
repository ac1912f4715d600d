"""`outbox up` under attack: the whole product in child processes, its callers, its provider, and what must hold afterwards.

A stack is started once for tests that do not disturb one another; each test borrows it through `checked`, which asks the
ledger's invariants and compares the provider's own count of requests with the attempts when the test is over.
Postgres and Redis are the embedded ones unless the test hands over others. Faults come from outside: signals, row locks of
a superuser, and the sandbox provider.
"""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit
from uuid import UUID, uuid4

import asyncpg
from tests.support.invariants import violations
from tests.support.processes import ChildProcess, gone, start_command, wait_until

from outbox_domain.contract import ToolContract
from outbox_domain.identity import Scope, marker, provider_key
from outbox_runtime import sealing
from outbox_runtime.postgres import prepare
from outbox_runtime.vault import Vault
from outbox_standalone import child
from outbox_store import connections

T = TypeVar("T")

READY_SECONDS = 90.0
END_SECONDS = 30.0
CALL_SECONDS = 90.0
LOG_LINES_SHOWN = 120
CALLERS_MAX = 220

REFUND = "stripe.refund.create"
CUSTOMER = "stripe.customer.create"
MAIL = "sendgrid.mail.send"
TICKET = "sandbox.ticket.create"
ECHO = "sandbox.echo"
LABEL = "sandbox.label.set"
RECORD = "sandbox.record.create"
MESSAGE = "sandbox.message.send"
SCHEDULED = "sandbox.mail.schedule"

PATHS: Mapping[str, str] = {
    REFUND: "/v1/refunds",
    CUSTOMER: "/v1/customers",
    MAIL: "/v3/mail/send",
    TICKET: "/v1/tickets",
    ECHO: "/v1/echo",
    LABEL: "/v1/labels",
    RECORD: "/v1/records",
    MESSAGE: "/v1/messages",
    SCHEDULED: "/v1/mails",
}
"""Where the sandbox provider takes the requests of each tool."""


class Unanswered(Exception):
    """No answer came: the connection was refused or broken."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One HTTP answer.

    Attributes:
        headers: names in lower case.
        seconds: how long it took.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def receipt_bytes(self) -> bytes:
        """The receipt as it stands in the body, byte for byte."""
        text = self.body.decode()
        start = text.index('"receipt":') + len('"receipt":')
        _, end = json.JSONDecoder().raw_decode(text, start)
        return text[start:end].encode()


def request(
    url: str, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None, seconds: float
) -> Answer:
    """One HTTP request over a connection of its own.

    Raises:
        Unanswered: the connection was refused, broken, or silent for `seconds`.
    """
    parts = urlsplit(url)
    began = time.monotonic()
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unanswered(f"{method} {path}: {error!r}") from error
    finally:
        connection.close()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(status=response.status, headers=found, body=content, seconds=time.monotonic() - began)


class SandboxControl:
    """The sandbox provider's own account of what it was asked and what it did."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: of the sandbox provider.
        """
        self.url = url

    def effects(self, path: str | None = None) -> list[dict[str, Any]]:
        """Every effect, or those of one path, oldest first."""
        return self._list("effects", {"path": path})

    def requests(self, **filters: str | None) -> list[dict[str, Any]]:
        """Every request received, oldest first: `path`, `method`, `idempotency_key`, `marker` narrow it."""
        return self._list("requests", filters)

    def plan(self, path: str, fault: str, *, times: int = 1, delay_seconds: float = 1.0, method: str = "POST") -> None:
        """The next `times` requests of `method` to exactly `path` meet the fault."""
        members = {"path": path, "fault": fault, "times": times, "delay_seconds": delay_seconds, "method": method}
        answer = request(self.url, "POST", "/_control/faults", body=json.dumps(members).encode(), seconds=10)
        assert answer.status == 200, answer.body

    def drop_faults(self) -> None:
        """Planned faults that have not struck are forgotten."""
        request(self.url, "DELETE", "/_control/faults", seconds=10)

    def _list(self, what: str, filters: Mapping[str, str | None]) -> list[dict[str, Any]]:
        query = urlencode({name: value for name, value in filters.items() if value is not None})
        answer = request(self.url, "GET", f"/_control/{what}" + (f"?{query}" if query else ""), seconds=10)
        assert answer.status == 200, answer.body
        found: list[dict[str, Any]] = answer.document
        return found


class Ledger:
    """Postgres as its superuser sees it, from a thread of its own, so that tests need no event loop."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: the superuser's.
        """
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """The rows of one statement; a connection that Postgres has closed is opened again."""
        return self.run(self._rows(query, arguments))

    def value(self, query: str, *arguments: object) -> Any:
        """The first column of the first row, None without one."""
        found = self.rows(query, *arguments)
        return found[0][0] if found else None

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 30.0) -> T:
        """A coroutine's result, run on this ledger's own event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    async def connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        """A further connection of the superuser's, with jsonb as Python values."""
        connection = await asyncpg.connect(self._url, timeout=10)
        await prepare(connection)
        return connection

    def close(self) -> None:
        """Closes the connection and ends the thread."""
        if self._connection is not None:
            self._connection.terminate()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _rows(self, query: str, arguments: Sequence[object]) -> list[asyncpg.Record]:
        for again in (True, False):
            if self._connection is None or self._connection.is_closed():
                self._connection = await self.connect()
            try:
                return await self._connection.fetch(query, *arguments)
            except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.OperatorInterventionError, OSError):
                self._connection.terminate()
                if not again:
                    raise
        raise AssertionError("unreachable")


class Lock:
    """A superuser's transaction that holds a lock, so that statements of the services wait for it."""

    def __init__(self, ledger: Ledger, statement: str, *arguments: object) -> None:
        """Takes the lock by a statement; it waits where somebody else has it."""
        self._ledger = ledger
        self._connection = ledger.run(self._take(statement, arguments))

    async def _take(self, statement: str, arguments: Sequence[object]) -> "asyncpg.Connection[asyncpg.Record]":
        connection = await self._ledger.connect()
        await connection.execute("begin")
        await connection.fetch(statement, *arguments)
        return connection

    def release(self) -> None:
        """Rolls the transaction back; once more is harmless."""
        if not self._connection.is_closed():
            self._ledger.run(self._connection.close())

    def waiting(self) -> list[int]:
        """Process ids of the Postgres backends that wait for a lock this transaction holds."""
        mine = self._connection.get_server_pid()
        found = self._ledger.rows("select pid from pg_stat_activity where $1 = any(pg_blocking_pids(pid))", mine)
        return [row["pid"] for row in found]

    def end_waiting(self) -> None:
        """Ends the sessions that wait for this lock, so that their statements never commit, and waits until they are gone."""
        pids = self.waiting()
        self._ledger.rows("select pg_terminate_backend(pid) from unnest($1::int[]) as i (pid)", pids)
        wait_until(
            lambda: not self._ledger.rows("select pid from pg_stat_activity where pid = any($1::int[])", pids),
            deadline_seconds=15,
            what=f"the end of the sessions {pids}",
        )


class OutboxUp:
    """One running `outbox up`.

    Attributes:
        folder: of its data and logs.
        process: the command itself.
        sandbox: the provider's own account.
        ledger: Postgres, as the superuser.
        has_redis: whether wake-ups go through Redis.
    """

    def __init__(self, process: ChildProcess, folder: Path, ready_file: Path) -> None:
        """Waits until everything answers."""
        self.process = process
        self.folder = folder
        self._ready_file = ready_file
        process.wait_for(ready_file.exists, deadline_seconds=READY_SECONDS)
        ready = self.ready()
        self.url: str = ready["url"]
        self.has_redis = ready["redis_url"] is not None
        self.sandbox = SandboxControl(ready["sandbox_url"])
        self.ledger = Ledger(ready["postgres_url"])
        self._agent_key: str = ready["agent_key"]
        self._admin_key: str = ready["admin_key"]
        self._callers = ThreadPoolExecutor(CALLERS_MAX, thread_name_prefix="caller")
        self._frozen: set[int] = set()
        self._locks: list[Lock] = []
        self._lost_attempts: Counter[str] = Counter()

    def ready(self) -> dict[str, Any]:
        """The ready file as it stands now; it is written anew when a process was replaced."""
        found: dict[str, Any] = json.loads(self._ready_file.read_text())
        return found

    # Callers.

    def call(
        self, tool: str, input: Mapping[str, object], *, headers: Mapping[str, str] | None = None, **names: object
    ) -> Answer:
        """One tool call of the agent's; `names` are the other members of the request (`reference`, `run`, ...).

        Raises:
            Unanswered: the API gave no answer.
        """
        body = json.dumps({"tool": tool, "input": input, **names}).encode()
        return self.send("POST", "/v1/tool-calls", body=body, headers=headers)

    def later(
        self, tool: str, input: Mapping[str, object], *, headers: Mapping[str, str] | None = None, **names: object
    ) -> "Future[Answer]":
        """The same call from another thread, while the test goes on."""
        return self._callers.submit(self.call, tool, input, headers=headers, **names)

    def start_call(self, tool: str, input: Mapping[str, object], **names: object) -> UUID:
        """A tool call that does not wait for its end; returns the reservation it made or met."""
        answer = self.call(tool, input, headers={"Prefer": "respond-async"}, **names)
        assert answer.status in (200, 202), answer.body
        return UUID(answer.document["reservation_id"])

    def until_answered(self, tool: str, input: Mapping[str, object], *, deadline_seconds: float, **names: object) -> Answer:
        """What a patient agent does: the same call again while no answer, 202, 503 or a doubt under recovery comes.

        Raises:
            TimeoutError: nothing final came in time; the message carries the last answer.
        """
        deadline = time.monotonic() + deadline_seconds
        last: object = None
        while time.monotonic() < deadline:
            try:
                answer = self.call(tool, input, headers={"Prefer": "wait=5"}, **names)
            except Unanswered as error:
                last = error
            else:
                last = answer.body
                action = answer.document["retry"]["action"]
                if answer.status != 202 and not (answer.status == 503 or (answer.status == 409 and action == "wait")):
                    return answer
            time.sleep(0.05)
        raise TimeoutError(f"{tool} was not answered finally within {deadline_seconds:g} s; last: {last!r}")

    def send(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None, admin: bool = False
    ) -> Answer:
        """One request to the API with the agent's key, or the admin's.

        Raises:
            Unanswered: no answer came.
        """
        key = self._admin_key if admin else self._agent_key
        given = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **(headers or {})}
        return request(self.url, method, path, body=body, headers=given, seconds=CALL_SECONDS)

    # What the ledger says.

    def state(self, reservation_id: UUID) -> str | None:
        """Where a reservation stands; None without one."""
        found: str | None = self.ledger.value("select state from reservations where id = $1", reservation_id)
        return found

    def attempts(self, reservation_id: UUID) -> list[asyncpg.Record]:
        """The attempts of a reservation, first to last."""
        return self.ledger.rows("select * from attempts where reservation_id = $1 order by number", reservation_id)

    def outcomes(self, reservation_id: UUID) -> list[str | None]:
        """The outcomes of a reservation's attempts, first to last; None for an open one."""
        return [row["outcome"] for row in self.attempts(reservation_id)]

    def needs_a_person(self, reservation_id: UUID) -> bool:
        """Whether it is in doubt and nothing automatic is left to try."""
        return bool(
            self.ledger.value(
                """select r.state = 'in_doubt' and o.due_at = 'infinity' from reservations r
                join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id) where r.id = $1""",
                reservation_id,
            )
        )

    def wait_state(self, reservation_id: UUID, *states: str, deadline_seconds: float = 30.0) -> str:
        """Waits until a reservation stands in one of `states`; returns it."""
        what = f"reservation {reservation_id} to be {' or '.join(states)}"

        def found() -> str | None:
            state = self.state(reservation_id)
            return state if state in states else None

        try:
            return self.wait(found, what, deadline_seconds=deadline_seconds) or ""
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it is {self.state(reservation_id)}, attempts {self.outcomes(reservation_id)}") from None

    def wait(self, condition: Callable[[], T], what: str, *, deadline_seconds: float = 15.0) -> T:
        """Polls until `condition` returns something true and returns that."""
        return wait_until(condition, deadline_seconds=deadline_seconds, what=what)

    def wait_received(self, tool: str, number: int, *, deadline_seconds: float = 15.0) -> None:
        """Waits until the sandbox provider has received so many requests of a tool in all."""
        path = PATHS[tool]
        self.wait(
            lambda: len(self.sandbox.requests(path=path, method="POST")) >= number,
            f"request number {number} to {path}",
            deadline_seconds=deadline_seconds,
        )

    def received(self, tool: str) -> int:
        """How many requests of a tool the sandbox provider has received."""
        return len(self.sandbox.requests(path=PATHS[tool], method="POST"))

    def lock(self, reservation_id: UUID) -> Lock:
        """Holds a reservation's row until released, at the latest when the test is over: claim and settle wait for it."""
        return self._lock("select id from reservations where id = $1 for update", reservation_id)

    def lock_new_reservations(self) -> Lock:
        """Holds up whoever reserves: T1 has done its work and waits, before it commits, to see that its actor exists.

        A lock of a table would not do: a statement that is new to its session waits for that already when it is prepared.
        """
        return self._lock("select id from actors for update")

    def _lock(self, statement: str, *arguments: object) -> Lock:
        taken = Lock(self.ledger, statement, *arguments)
        self._locks.append(taken)
        return taken

    def lose_rows(self, reservation_id: UUID) -> None:
        """Deletes everything the ledger knows of a reservation, as a lost tail would; its attempts stay counted here."""
        for name, sent in self._attempts_by_name().items():
            if reservation_id in sent.reservations:
                self.account_for(name, sent.possible)
        self.ledger.rows("delete from ledger_entries where reservation_id = $1", reservation_id)
        self.ledger.rows("delete from tool_calls where reservation_id = $1", reservation_id)
        self.ledger.rows("delete from reservations where id = $1", reservation_id)

    def account_for(self, name: str, requests: int) -> None:
        """So many requests under a provider key or marker are known to have no attempt in the ledger."""
        self._lost_attempts[name] += requests

    def connect(self, name: str, *, provider: str, base_url: str, credential: str) -> None:
        """Adds a named connection to another provider, as an administrator would."""
        self.ledger.run(self._connect(name, provider, base_url, credential))

    async def _connect(self, name: str, provider: str, base_url: str, credential: str) -> None:
        connection = await self.ledger.connect()
        try:
            environment = await connection.fetchrow("select organization_id, id from environments")
            assert environment is not None
            organization_id = environment["organization_id"]
            row = connections.ConnectionRow(
                organization_id=organization_id,
                id=uuid4(),
                environment_id=environment["id"],
                provider=provider,
                name=name,
                base_url=base_url,
                fixed_headers={},
                currency="EUR",
                allow_private=True,
                is_default=False,
            )
            connection_id = await connections.ensure(connection, row)
            public_key = sealing.read_private_key(self._keys()["worker_private_key"].encode()).public_key()
            info = f"credential:{organization_id}:{connection_id}".encode()
            sealed = sealing.seal_to(public_key, credential.encode(), info)
            await connections.seal_credential(connection, organization_id, connection_id, sealed)
        finally:
            await connection.close()

    # Processes.

    def pids(self, kind: str) -> list[int]:
        """Ids of the processes that do the work of `worker`, `api`, `sandbox`, `postgres` or `redis`."""
        found = self.ready()["pids"][kind]
        return list(found) if isinstance(found, list) else [] if found is None else [found]

    def kill(self, *pids: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends processes a signal, SIGKILL unless another is named."""
        for pid in pids:
            os.kill(pid, number)
        if number == signal.SIGKILL:
            self._frozen.difference_update(pids)

    def freeze(self, *pids: int) -> None:
        """SIGSTOP; what is frozen at the end of a test is thawed."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            self._frozen.add(pid)

    def thaw(self, *pids: int) -> None:
        """SIGCONT."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self._frozen.discard(pid)

    def wait_replaced(self, kind: str, former: Sequence[int], *, deadline_seconds: float = 40.0) -> list[int]:
        """Waits until the supervisor has replaced killed processes and everything answers again; returns their ids."""
        number = len(self.pids(kind))

        def found() -> list[int]:
            now = self.pids(kind)
            alive = len(now) == number and not set(now) & set(former) and all(child.is_alive(pid) for pid in now)
            return now if alive else []

        return self.wait(found, f"other processes of {kind} than {former}", deadline_seconds=deadline_seconds)

    def metrics(self) -> str:
        """What all processes serve to Prometheus."""
        pages = []
        for url in self.ready()["metrics_urls"]:
            parts = urlsplit(url)
            pages.append(request(f"http://{parts.netloc}", "GET", parts.path, seconds=10).body.decode())
        return "\n".join(pages)

    def metric(self, name: str) -> float:
        """A sample without labels, summed over all processes."""
        return sum(float(line.split()[-1]) for line in self.metrics().splitlines() if line.startswith(f"{name} "))

    # The end of a test and of the stack.

    @contextlib.contextmanager
    def checked(self) -> Iterator["OutboxUp"]:
        """One test's use of the stack: afterwards nothing is frozen, locked or planned, and what must hold is asked.

        What the processes have written meanwhile is printed, for pytest to show where the test failed.
        """
        assert self.process.process.poll() is None, f"outbox up has ended:\n{self.process.log()}"
        sizes = {path: path.stat().st_size for path in self.logs()}
        try:
            yield self
        finally:
            for lock in self._locks:
                with contextlib.suppress(Exception):
                    lock.release()
            self._locks.clear()
            self.thaw(*tuple(self._frozen))
            self.sandbox.drop_faults()
            for path in self.logs():
                with path.open("rb") as file:
                    file.seek(sizes.get(path, 0))
                    written = file.read().decode(errors="replace").splitlines()
                if written:
                    print(f"--- {path.name}", *written[-LOG_LINES_SHOWN:], sep="\n")
        self.check()

    def check(self) -> None:
        """The ledger's invariants hold, and the provider saw neither fewer nor more requests than the attempts allow.

        Per reservation: at least the attempts that had an answer, at most those that are not closed as unsent.
        """
        wait_until(self._postgres_answers, deadline_seconds=30, what="Postgres to answer the check")
        broken = self.ledger.run(self._violations())
        assert broken == {}, f"broken invariants: {broken}"
        before = self._attempts_by_name()
        seen: Counter[str] = Counter()
        for one in self.sandbox.requests(method="POST"):
            for name in (one["idempotency_key"], one["marker"]):
                if name is not None:
                    seen[name] += 1
        after = self._attempts_by_name()
        for name, sent in after.items():
            answered = before[name].answered if name in before else 0
            possible = sent.possible + self._lost_attempts[name]
            told = f"{sent.tool}: {answered} attempts had an answer, {possible} may have been sent, the provider saw {seen[name]}"
            assert answered <= seen[name] <= possible, told

    def logs(self) -> list[Path]:
        """Everything that is written while it runs, of whatever process."""
        return [self.process.log_path, *sorted((self.folder / "data" / "logs").glob("*.log*"))]

    def close(self) -> None:
        """Ends everything: SIGTERM first, so that Postgres writes its data, then by force."""
        self.thaw(*tuple(self._frozen))
        ids = {self.process.pid, *child.descendants(self.process.pid)}
        if self.process.process.poll() is None:
            self.process.send(signal.SIGTERM)
            with contextlib.suppress(Exception):
                self.process.wait(deadline_seconds=END_SECONDS)
        self.process.end()
        self._callers.shutdown(wait=False, cancel_futures=True)
        self.ledger.close()
        wait_until(lambda: gone(ids), deadline_seconds=END_SECONDS, what=f"the end of {ids}")

    def _postgres_answers(self) -> bool:
        try:
            return bool(self.ledger.value("select true"))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False

    async def _violations(self) -> dict[str, list[str]]:
        connection = await self.ledger.connect()
        try:
            return await violations(connection)
        finally:
            await connection.close()

    def _keys(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "data" / "keys.json").read_text())
        return found

    def _attempts_by_name(self) -> "dict[str, Sent]":
        """Attempts towards the sandbox provider, counted by the name that their requests carry: provider key or marker.

        Reservations of one effect that share a marker (a later one after a failed one) are counted together.
        """
        organization = self.ledger.rows("select * from organizations")[0]
        vault = Vault.open(
            sealing.WrappingKey.from_base64(self._keys()["wrapping_key"]),
            organization["id"],
            data_key_wrapped=organization["data_key_wrapped"],
            digest_key_wrapped=organization["digest_key_wrapped"],
            provider_key_secret_wrapped=organization["provider_key_secret_wrapped"],
        )
        contracts = {
            (row["tool"], row["version"]): ToolContract.from_document(row["document"])
            for row in self.ledger.rows("select tool, version, document from tool_contracts")
        }
        counted: dict[str, Sent] = {}
        for row in self.ledger.rows(SENT, self.sandbox.url):
            scope = Scope(
                organization=row["organization"],
                project=row["project"],
                environment=row["environment"],
                connection=row["connection"],
                tool=row["tool"],
            )
            of = {
                "scope": scope,
                "key_scope": "environment" if row["scope"] == "environment" else f"run:{row['lineage_name']}",
                "operation_key": row["operation_key"],
                "occurrence": row["occurrence"],
            }
            secret = vault.secrets.provider_key_secret
            if contracts[row["tool"], row["contract_version"]].request.provider_key:
                name = provider_key(secret, generation=row["generation"], **of)
            else:
                name = marker(secret, **of)
            sent = counted.setdefault(name, Sent(tool=row["tool"]))
            sent.reservations.append(row["id"])
            sent.answered += row["answered"]
            sent.possible += row["possible"]
        return counted


SENT = """
select r.id, g.name as organization, p.name as project, e.name as environment, n.name as connection, r.tool, r.contract_version,
  r.scope, root.name as lineage_name, r.operation_key, r.occurrence, r.generation,
  count(*) filter (where a.provider_status is not null) as answered,
  count(*) filter (where a.outcome is distinct from 'unsent' and a.late_outcome is distinct from 'unsent') as possible
from reservations r
join attempts a on (a.organization_id, a.reservation_id) = (r.organization_id, r.id)
join organizations g on g.id = r.organization_id
join projects p on (p.organization_id, p.id) = (r.organization_id, r.project_id)
join environments e on (e.organization_id, e.id) = (r.organization_id, r.environment_id)
join connections n on (n.organization_id, n.id) = (r.organization_id, r.connection_id)
left join runs root on (root.organization_id, root.id) = (r.organization_id, r.lineage)
where n.base_url = $1
group by r.organization_id, r.id, g.name, p.name, e.name, n.name, root.name
"""


class Sent:
    """How many requests of one name the attempts account for.

    Attributes:
        answered: attempts that had an answer: so many requests there were at least.
        possible: attempts not closed as unsent: so many there were at most.
        reservations: whose attempts they are.
    """

    def __init__(self, *, tool: str) -> None:
        """Nothing is counted yet."""
        self.tool = tool
        self.answered = 0
        self.possible = 0
        self.reservations: list[UUID] = []


@contextlib.contextmanager
def running(folder: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[OutboxUp]:
    """A running `outbox up` with data in `folder`, ended afterwards with everything it started.

    Args:
        folder: empty, of this stack's own.
        options: of `outbox up`, e.g. `--workers 2`.
        env: variables for it and its children (`OUTBOX_*`, `OTEL_*`).
    """
    ready_file = folder / "ready.json"
    command = [str(Path(sys.executable).with_name("outbox")), "up", "--data-dir", str(folder / "data")]
    process = start_command([*command, "--ready-file", str(ready_file), *options], env=env, folder=folder, name="up")
    try:
        up = OutboxUp(process, folder, ready_file)
    except BaseException:
        process.end()
        raise
    try:
        yield up
    finally:
        up.close()


def refund(payment: str | None = None, amount: int = 1200) -> dict[str, object]:
    """The input of a refund, of a payment of its own unless one is named."""
    return {"payment_intent": payment or f"pi_{uuid4().hex}", "amount": amount}


def mail(**changes: object) -> dict[str, object]:
    """The input of a mail."""
    return {
        "from": "desk@example.com",
        "to": "a.berg@example.com",
        "subject": "Your refund",
        "text": "It is on its way.",
        **changes,
    }


def reference() -> str:
    """A reference that nobody has used."""
    return f"case-{uuid4().hex[:12]}"
