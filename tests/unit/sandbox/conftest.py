"""A sandbox provider served over real HTTP in the test's own loop, with a clock that tests can move."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from outbox_sandbox.records import Records
from outbox_sandbox.server import Sandbox, serving

BEARER = {"Authorization": "Bearer sk_test_sandbox"}
PATIENCE_SECONDS = 10.0


@dataclass
class Reply:
    """One answer, read to the end."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Clock:
    """The provider's time: the real one, moved forward by `ahead_seconds`."""

    ahead_seconds: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_seconds


@dataclass
class Provider:
    """The provider as its callers see it."""

    url: str
    session: httpx2.AsyncClient
    sandbox: Sandbox
    clock: Clock = field(default_factory=Clock)

    async def call(self, method: str, path: str, *, headers: dict[str, str] | None = None, **options: Any) -> Reply:
        answer = await self.session.request(method, self.url + path, headers={**BEARER, **(headers or {})}, **options)
        return Reply(answer.status_code, answer.headers, answer.content)

    async def refund(self, key: str | None = None, *, timeout_seconds: float = PATIENCE_SECONDS, **form: Any) -> Reply:
        fields = {"payment_intent": "pi_1", "amount": "1200", **form}
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.call("POST", "/v1/refunds", data=fields, headers=headers, timeout=timeout_seconds)

    async def fault(self, fault: str, path: str = "/v1/refunds", **members: Any) -> Any:
        reply = await self.call("POST", "/_control/faults", json={"path": path, "fault": fault, **members})
        assert reply.status == 200, reply.body
        return reply.json

    async def effects(self, path: str | None = None) -> list[Any]:
        listed: list[Any] = (await self.call("GET", "/_control/effects", params={} if path is None else {"path": path})).json
        return listed

    async def requests(self, **filters: str) -> list[Any]:
        listed: list[Any] = (await self.call("GET", "/_control/requests", params=filters)).json
        return listed

    async def until(self, condition: Callable[[], Awaitable[Any]]) -> Any:
        """What `condition` comes to once it is true; fails after `PATIENCE_SECONDS`."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not (found := await condition()):
            assert time.monotonic() < end, "gave up waiting"
        return found


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    clock = Clock()
    records = Records()
    sandbox = Sandbox(records, clock=clock)
    async with serving(sandbox, host="127.0.0.1", port=0) as url:
        async with httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as session:
            yield Provider(url, session, sandbox, clock)
    records.close()


@pytest.fixture(scope="session")
def specs_dir() -> Path:
    """The folder of published provider schemas."""
    folder = Path(os.environ.get("OUTBOX_SPECS_DIR", Path(__file__).parents[4] / "shared" / "specs"))
    if not folder.is_dir():
        pytest.skip(f"no published provider schemas at {folder} (set OUTBOX_SPECS_DIR)")
    return folder
