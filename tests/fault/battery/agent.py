"""`python -m tests.fault.battery.agent NUMBER CONTROL_PORT FOLDER`: a process that carries effects out itself, with the real client.

It is told what to do by lines of JSON over one TCP connection (`tests.fault.battery.agents` speaks for the battery) and answers each
with what `Outbox.run` came to. It remembers nothing but what its client spools: who is killed is started again and told again, as a
workflow engine does. Agent 1 uses the client of threads, agent 2 that of an event loop.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from agent_outbox import AsyncOutbox, CallResult, Classified, Done, Effect, Found, InDoubt, Outbox, OutboxError, Refused, ToolCall
from agent_outbox.classify import classify

REFUND = "shop.refund.create"
ANSWER_SECONDS = 1.5
"""How long before a handler's time limit its one request is given up."""

RESERVE_SECONDS = 12.0
MARGIN_SECONDS = 60.0
"""What the product leaves of a provider's window: with a window of this and the time limit nothing is ever handed over."""

CALLS_MAX = 500
UNLIMITED = httpx2.Limits(max_connections=None, max_keepalive_connections=0)


@dataclass(frozen=True, kw_only=True)
class Order:
    """One call of `run`, as the battery words it.

    Attributes:
        call: names it in the answer.
        tool: one of the two.
        token: names the operation key everywhere.
        key: the scoped key.
        provider: the address of the sandbox provider.
        amount: of the input; another one under a token is another input.
        run: the caller's.
        wait: for how many seconds others' attempts are waited for.
        time_limit: of the handler, in seconds.
        settle: of the contract.
        forgets: the provider forgets keys.
    """

    call: int
    tool: str
    token: str
    key: str
    provider: str
    amount: int
    run: str | None
    wait: int
    time_limit: float
    settle: str
    forgets: bool

    def options(self) -> dict[str, Any]:
        """What `run` is told of the tool, beside handler and probe."""
        refund = self.tool == REFUND
        look_up = {"lookup": {"settle": self.settle, "times": 2}}
        # A provider that forgets keys is never asked by key again: what it may have done is looked up.
        within = f"{MARGIN_SECONDS + self.time_limit:g}s" if self.forgets else "1h"
        resend = {"resend": {"within": within, "times": 3}}
        return {
            "key": "own:{reference}",
            "guarantee_class": "A" if refund else "B",
            "receipt": "id",
            "owner": "shop",
            "recovery": [resend, look_up] if refund else [look_up],
            "time_limit": self.time_limit,
            "wait": self.wait,
            "deadline": RESERVE_SECONDS,
            "classify": self.told,
        }

    def tool_call(self) -> ToolCall:
        """What is asked for."""
        return ToolCall(tool=self.tool, input={"order": self.token, "amount": self.amount}, reference=self.token, run=self.run)

    def told(self, error: BaseException) -> Classified:
        """What the client itself says of an exception; a decline is stored under the provider key.

        The token in the reason tells the network whose settlement it is.
        """
        said = classify(error)
        stored = self.tool == REFUND and said.outcome == "rejected"
        return replace(said, stored=stored, reason=f"{said.reason} {self.token}")

    def sending(self, effect: Effect) -> dict[str, Any]:
        """The one request of the handler."""
        if self.tool == REFUND:
            fields = {"payment_intent": f"pi_{self.token}", "amount": str(self.amount)}
            headers = {"Authorization": "Bearer sk_test_1", "Idempotency-Key": effect.provider_key}
            return self._asking("POST", "refunds", data=fields, headers=headers)
        ticket = {"title": f"Door {self.token}", "marker": effect.marker}
        return self._asking("POST", "tickets", json=ticket)

    def looking(self, effect: Effect) -> dict[str, Any]:
        """The one request of the probe."""
        if self.tool == REFUND:
            headers = {"Authorization": "Bearer sk_test_1"}
            return self._asking("GET", "refunds", params={"payment_intent": f"pi_{self.token}"}, headers=headers)
        return self._asking("GET", "tickets", params={"marker": effect.marker})

    def _asking(self, method: str, what: str, **more: Any) -> dict[str, Any]:
        seconds = self.time_limit - ANSWER_SECONDS
        return {"method": method, "url": f"{self.provider}/v1/{what}", "timeout": seconds, **more}

    def made(self, answer: httpx2.Response) -> dict[str, Any]:
        """The handler's result."""
        return {"id": answer.raise_for_status().json()["id"], "order": self.token}

    def found(self, answer: httpx2.Response) -> Found | None:
        """The probe's."""
        seen = answer.raise_for_status().json()["data"]
        return Found(external_reference=seen[0]["id"], result={"id": seen[0]["id"], "order": self.token}) if seen else None


def told(result: CallResult | OutboxError) -> dict[str, Any]:
    """What a call came to, as the history of the battery has it.

    A refusal is final unless it is this caller's own that the provider never took: nothing keeps it from asking again then.
    """
    match result:
        case Done():
            return {"type": "ok", "replayed": result.replayed, "receipt": json.dumps(result.receipt.document)}
        case Refused():
            raised = result.raised
            again = raised is not None and classify(raised).outcome in ("unsent", "deferred")
            return {"type": "info" if again else "fail", "code": result.code, "status": result.status}
        case InDoubt():
            final = result.code == "contradiction" or result.retry.action == "ask-human"
            return {"type": "info", "code": result.code, "status": result.status, "final": final}
        case OutboxError():
            return {"type": "info", "code": result.code, "status": result.status}
        case _:
            return {"type": "info", "code": result.state}


class InThreads:
    """Carries out with `Outbox`, a thread for each call."""

    def __init__(self, outbox: Callable[[str], dict[str, Any]]) -> None:
        """
        Args:
            outbox: the settings of a client by its scoped key.
        """
        self._outbox = outbox
        self._clients: dict[str, Outbox] = {}
        self._http = httpx2.Client(limits=UNLIMITED)
        self._threads = ThreadPoolExecutor(CALLS_MAX)

    async def __call__(self, order: Order) -> CallResult:
        """One call."""
        if order.key not in self._clients:
            self._clients[order.key] = Outbox(**self._outbox(order.key))
        client = self._clients[order.key]
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, client, order)

    def _run(self, client: Outbox, order: Order) -> CallResult:
        def handler(effect: Effect) -> dict[str, Any]:
            return order.made(self._http.request(**order.sending(effect)))

        def probe(effect: Effect) -> Found | None:
            return order.found(self._http.request(**order.looking(effect)))

        return client.run(order.tool_call(), handler, probe=probe, **order.options())


class InTasks:
    """Carries out with `AsyncOutbox`, a task for each call."""

    def __init__(self, outbox: Callable[[str], dict[str, Any]]) -> None:
        """As `InThreads`."""
        self._outbox = outbox
        self._clients: dict[str, AsyncOutbox] = {}
        self._http = httpx2.AsyncClient(limits=UNLIMITED)

    async def __call__(self, order: Order) -> CallResult:
        """One call."""
        if order.key not in self._clients:
            self._clients[order.key] = AsyncOutbox(**self._outbox(order.key))

        async def handler(effect: Effect) -> dict[str, Any]:
            return order.made(await self._http.request(**order.sending(effect)))

        async def probe(effect: Effect) -> Found | None:
            return order.found(await self._http.request(**order.looking(effect)))

        return await self._clients[order.key].run(order.tool_call(), handler, probe=probe, **order.options())


async def serve(number: int, control_port: int, folder: Path) -> None:
    """Carry out what comes, until the battery is gone."""

    def outbox(key: str) -> dict[str, Any]:
        return {"url": os.environ["OUTBOX_URL"], "key": key, "spool": folder}

    carry_out: Callable[[Order], Coroutine[Any, Any, CallResult]] = InThreads(outbox) if number == 1 else InTasks(outbox)
    reader, writer = await asyncio.open_connection("127.0.0.1", control_port, limit=1 << 22)

    async def call(order: Order) -> None:
        result: CallResult | OutboxError
        try:
            result = await carry_out(order)
        except OutboxError as error:
            result = error
        writer.write(json.dumps({"call": order.call, **told(result)}).encode() + b"\n")

    writer.write(json.dumps({"agent": number, "process_id": os.getpid()}).encode() + b"\n")
    async with asyncio.TaskGroup() as calls:
        while line := await reader.readline():
            calls.create_task(call(Order(**json.loads(line))))
        # Nobody is there any more who could be told.
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
