"""The shipped contracts over real HTTP: our bytes to the sandbox provider's process, its answers through our tables.

Uses the sandbox provider as a process of its own; no Postgres and no Redis.
"""

import json
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.support.processes import ChildProcess

from outbox_domain.binding import bind
from outbox_domain.contract import ToolContract
from outbox_domain.reservation import Outcome
from outbox_providers import catalog
from outbox_providers.driver import Reading, WireAnswer, WireRequest, build_request, read_answer
from outbox_providers.reading import expression
from outbox_providers.templates import expand_url

KEY = "obx_" + "a" * 64
MARKER = "obx_" + "b" * 64

INPUTS: dict[str, dict[str, Any]] = {
    "stripe.refund.create": {"payment_intent": "pi_3Nx", "amount": 1200, "reason": "duplicate"},
    "stripe.customer.create": {"email": " A.Berg@Example.ORG ", "name": "Änne Berg", "metadata": {"crm": "7", "outbox": "x"}},
    "sendgrid.mail.send": {"from": "a@b.example", "to": "c@d.example", "subject": "Grüße", "text": "t", "html": "<p>t</p>"},
    "sandbox.echo": {"any": [1, {"x": None}], "text": "ü"},
    "sandbox.ticket.create": {"title": "T", "body": "B"},
    "sandbox.label.set": {"name": "colour", "value": "grün"},
    "sandbox.record.create": {"title": "T", "body": "B"},
    "sandbox.message.send": {"text": "Grüße"},
    "sandbox.mail.schedule": {"text": "Grüße"},
}
KEYED = ("stripe.refund.create", "stripe.customer.create", "sandbox.echo", "sandbox.message.send")
CHANGES: dict[str, dict[str, Any]] = {"stripe.refund.create": {"amount": 5}, "sandbox.message.send": {"text": "Another"}}


def exchange(request: WireRequest) -> WireAnswer:
    """Sends one request on a connection of its own and reads the whole answer."""
    address = urlsplit(request.url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
    try:
        path = address.path + (f"?{address.query}" if address.query else "")
        connection.request(request.method, path, body=request.body, headers=dict(request.headers))
        answer = connection.getresponse()
        return WireAnswer(status=answer.status, headers=tuple(answer.getheaders()), body=answer.read())
    finally:
        connection.close()


class Provider:
    """The sandbox provider and how it is called through contracts."""

    def __init__(self, url: str) -> None:
        """A provider that answers at `url`."""
        self.url = url

    def call(self, tool: str, **change: Any) -> Reading:
        """Sends a tool's request with our key and marker and reads the answer; `change` goes into its input."""
        contract = contract_of(tool)
        bound = bind(contract, INPUTS[tool] | change, connection_currency="EUR").value
        request = build_request(
            contract,
            base_url=self.url,
            credential="sk_test_sandbox",
            fixed_headers={},
            bound=bound,
            names={"reference": "case-1"},
            provider_key=KEY,
            marker=MARKER,
        )
        return read_answer(contract, exchange(request))

    def control(self, method: str, path: str, body: object = None) -> Any:
        """Asks the sandbox's control interface."""
        content = json.dumps(body).encode() if body is not None else b""
        headers = (("Content-Type", "application/json"),)
        answer = exchange(WireRequest(method=method, url=f"{self.url}/_control/{path}", headers=headers, body=content))
        assert answer.status < 300, answer.body
        return json.loads(answer.body) if answer.body else None

    def plan(self, tool: str, fault: str) -> None:
        """Plans one fault for the tool's next request."""
        self.control("POST", "faults", {"path": contract_of(tool).request.url, "fault": fault, "times": 1, "delay_seconds": 2})

    def effects(self) -> list[dict[str, Any]]:
        """Everything the provider has done."""
        found = self.control("GET", "effects")
        effects: list[dict[str, Any]] = found["effects"] if isinstance(found, dict) else found
        return effects


def contract_of(tool: str) -> ToolContract:
    """The shipped contract of a tool."""
    return next(each for each in catalog.shipped() if each.tool == tool)


@pytest.fixture
def provider(start_module: Callable[..., ChildProcess], tmp_path: Path) -> Provider:
    """A sandbox provider of this test alone."""
    ready_file = tmp_path / "sandbox.json"
    child = start_module("outbox_sandbox", "--port", "0", "--ready-file", str(ready_file))
    child.wait_for(ready_file.exists)
    return Provider(json.loads(ready_file.read_text())["url"])


@pytest.mark.parametrize("tool", INPUTS)
def test_a_call_succeeds_with_a_receipt(provider: Provider, tool: str) -> None:
    """Each tool's bytes are taken, one effect happens, and the answer proves it."""
    reading = provider.call(tool)
    assert (reading.outcome, reading.failure) == (Outcome.SUCCEEDED, None)
    assert reading.external_reference
    assert reading.result
    assert None not in reading.result.values()
    if tool == "stripe.refund.create":
        assert (reading.amount_reported, reading.currency_reported) == (1200, "EUR")
    assert len(provider.effects()) == 1


@pytest.mark.parametrize("tool", KEYED)
def test_the_identical_request_is_replayed(provider: Provider, tool: str) -> None:
    """A resend with the same key has the first receipt and no second effect; other parameters under the key are unknown."""
    first, second = provider.call(tool), provider.call(tool)
    assert second.external_reference == first.external_reference
    conflict = provider.call(tool, **CHANGES.get(tool, {"name": "Another"}))
    assert conflict.outcome is Outcome.UNKNOWN
    assert conflict.failure is not None
    assert conflict.failure.provider_status == 400
    assert len(provider.effects()) == 1


@pytest.mark.parametrize("tool", INPUTS)
def test_planned_faults_are_read_as_the_table_says(provider: Provider, tool: str) -> None:
    """A limit defers for the stated time, a decline rejects and is stored where keys are, a 500 is unknown."""
    provider.plan(tool, "rate-limit")
    limited = provider.call(tool)
    assert (limited.outcome, limited.retry_after_seconds) == (Outcome.DEFERRED, 2.0)
    provider.plan(tool, "reject-402")
    declined = provider.call(tool)
    assert (declined.outcome, declined.stored) == (Outcome.REJECTED, tool in KEYED)
    if tool in KEYED:
        assert provider.call(tool).outcome is Outcome.REJECTED
        provider.control("POST", "reset")
    provider.plan(tool, "commit-then-500")
    failed = provider.call(tool)
    assert (failed.outcome, failed.stored_failure) == (Outcome.UNKNOWN, False)
    if tool in KEYED:
        again = provider.call(tool)
        assert (again.outcome, again.stored_failure) == (Outcome.UNKNOWN, True)
    assert len(provider.effects()) == 1


def test_a_taken_identity_is_a_conflict(provider: Provider) -> None:
    """A second creation under the identity that we chose is unknown by itself and marked, whatever it carries; one effect."""
    assert provider.call("sandbox.record.create").outcome is Outcome.SUCCEEDED
    for change in ({}, {"title": "Another"}):
        reading = provider.call("sandbox.record.create", **change)
        assert (reading.outcome, reading.conflict) == (Outcome.UNKNOWN, True)
    assert len(provider.effects()) == 1


@pytest.mark.parametrize(
    "tool", ["stripe.refund.create", "stripe.customer.create", "sandbox.ticket.create", "sandbox.message.send"]
)
def test_the_lookup_finds_the_planted_marker(provider: Provider, tool: str) -> None:
    """The contract's own lookup shows the effect by its marker, and shows nothing for another marker."""
    contract = contract_of(tool)
    assert contract.lookup is not None
    reference = provider.call(tool).external_reference
    bound = bind(contract, INPUTS[tool], connection_currency="EUR").value
    for marker, found in ((MARKER, [reference]), ("obx_" + "c" * 64, [])):
        url = provider.url + expand_url(contract.lookup.url, bound, {"marker": marker})
        headers = (("Authorization", "Bearer sk_test_sandbox"),)
        answer = exchange(WireRequest(method=contract.lookup.method, url=url, headers=headers, body=b""))
        seen = expression(contract.lookup.match.replace("{marker}", marker)).search(json.loads(answer.body))
        assert [each["id"] for each in seen] == found
