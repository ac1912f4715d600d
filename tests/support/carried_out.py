"""A process that carries effects out with `Outbox.run`, to be killed, stopped and started again.

Its handlers ask the sandbox provider, which counts what it has done: refunds with the provider key, tickets with the marker.
`python tests/support/carried_out.py KIND OPERATION` prints what it comes to as one JSON document, a line for each step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any
from urllib.parse import quote

import httpx2

from agent_outbox import Effect, Found, Outbox, ToolCall

SANDBOX_URL = os.environ.get("SANDBOX_URL", "")
AUTHORIZATION = {"Authorization": "Bearer sandbox"}

CHARGE = "billing.charge.create"
TICKET = "desk.ticket.create"
A: dict[str, Any] = {"key": "charge:{order}", "guarantee_class": "A", "receipt": "id", "owner": "billing"}
B: dict[str, Any] = {
    "key": "ticket:{order}",
    "guarantee_class": "B",
    "receipt": "id",
    "owner": "desk",
    "recovery": [{"lookup": {"settle": "1s", "times": 2}}],
}


def say(**members: object) -> None:
    """One line for the test."""
    print(json.dumps(members), flush=True)


def charge(effect: Effect) -> dict[str, Any]:
    """Makes a refund at the sandbox provider under the provider key."""
    say(step="handler", recovering=effect.recovering, provider_key=effect.provider_key)
    answer = httpx2.post(
        f"{SANDBOX_URL}/v1/refunds",
        data={"payment_intent": f"pi_{effect.input['order']}", "amount": "1200"},
        headers={**AUTHORIZATION, "Idempotency-Key": effect.provider_key},
        timeout=60,
    )
    answer.raise_for_status()
    made: dict[str, Any] = answer.json()
    return made


def ticket(effect: Effect) -> dict[str, Any]:
    """Makes a ticket at the sandbox provider with the marker."""
    say(step="handler", recovering=effect.recovering, marker=effect.marker)
    body = {"title": str(effect.input["order"]), "marker": effect.marker}
    answer = httpx2.post(f"{SANDBOX_URL}/v1/tickets", json=body, headers=AUTHORIZATION, timeout=60)
    answer.raise_for_status()
    made: dict[str, Any] = answer.json()
    return made


def find_ticket(effect: Effect) -> Found | None:
    """Looks for the ticket with the marker."""
    say(step="probe", marker=effect.marker)
    answer = httpx2.get(f"{SANDBOX_URL}/v1/tickets?marker={quote(effect.marker)}", headers=AUTHORIZATION, timeout=60)
    answer.raise_for_status()
    for made in answer.json()["data"]:
        return Found(external_reference=made["id"], result=made)
    return None


def main() -> None:
    """Carries one effect out, as often as it takes until it is done or refused."""
    kind, operation = sys.argv[1:3]
    deadline = time.monotonic() + 90
    with Outbox(wait=20) as outbox:
        while True:
            if kind == "ticket":
                call = ToolCall(tool=TICKET, input={"order": operation})
                result = outbox.run(call, ticket, probe=find_ticket, time_limit=4, **B)
            else:
                result = outbox.run(ToolCall(tool=CHARGE, input={"order": operation}), charge, **A)
            say(step="result", kind=type(result).__name__, result=result.result, message=result.message)
            if result or result.retry.action != "wait" or time.monotonic() > deadline:
                return


if __name__ == "__main__":
    main()
