"""An agent of its own process that carries its effect out itself, over the wire contract alone: what a client library does.

`python client_agent.py API KEY PROVIDER CLASS ORDER [HANG]`: reserves, does the effect at the sandbox provider, settles, and prints
one line of JSON. With HANG it stops for ever between the effect and the settlement, so that the test can kill it there.
"""

import json
import sys
import time
import uuid
from typing import Any

import httpx2

RECOVERY = {"A": [{"resend": {"within": "1h"}}], "B": [{"lookup": {"settle": "1s", "times": 2}}]}
TIME_LIMIT_SECONDS = 1.0


def main(api: str, key: str, provider: str, guarantee_class: str, order: str, hang: bool) -> None:
    """Bring the effect of one order to its end."""
    gateway = httpx2.Client(base_url=api, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    sandbox = httpx2.Client(base_url=provider, headers={"Authorization": "Bearer sandbox"}, timeout=30)
    while True:
        answer = gateway.post(
            "/v1/reservations",
            headers={"Prefer": "wait=30"},
            json={
                "tool": f"shop.order.class_{guarantee_class.lower()}",
                "input": {"order": order},
                "attempt_id": str(uuid.uuid4()),
                "time_limit_seconds": TIME_LIMIT_SECONDS,
                "probe": guarantee_class == "B",
                "contract": {
                    "key": "order:{order}",
                    "class": guarantee_class,
                    "receipt": "id",
                    "recovery": RECOVERY[guarantee_class],
                },
            },
        )
        document = answer.json()
        if answer.status_code == 200:
            print(json.dumps({"receipt": document["receipt"], "replayed": document["replayed"]}), flush=True)
            return
        if answer.status_code == 202:
            continue
        assert answer.status_code == 201, answer.text
        url = f"/v1/reservations/{document['reservation_id']}"
        if document["attempt"] is None:
            probe(gateway, sandbox, url, document["probe"], order)
            continue
        attempt = document["attempt"]
        result = carry_out(sandbox, guarantee_class, order, attempt["provider_key"], order)
        print(json.dumps({"done": result["id"], "recovering": attempt["recovering"]}), flush=True)
        while hang:
            time.sleep(1)
        settled = gateway.post(f"{url}/settle", json={"attempt_id": attempt["id"], "outcome": "succeeded", "result": result})
        assert settled.status_code == 200, settled.text


def carry_out(sandbox: httpx2.Client, guarantee_class: str, order: str, provider_key: str, marker: str) -> dict[str, Any]:
    """The effect: an echo under the provider key, or a ticket with the order in its marker."""
    if guarantee_class == "A":
        answer = sandbox.post("/v1/echo", json={"order": order}, headers={"Idempotency-Key": provider_key})
    else:
        answer = sandbox.post("/v1/tickets", json={"title": "order", "marker": marker})
    assert answer.status_code in (200, 201), answer.text
    found: dict[str, Any] = answer.json()
    return found


def probe(gateway: httpx2.Client, sandbox: httpx2.Client, url: str, first: dict[str, Any], marker: str) -> None:
    """Look whether an earlier attempt did it, as often as it takes."""
    while True:
        begun = gateway.post(f"{url}/probes", json={"attempt_id": first["attempt_id"]})
        if begun.status_code != 201:
            return
        found = sandbox.get("/v1/tickets", params={"marker": marker}).json()["data"]
        seen = {"found": True, "external_reference": found[0]["id"], "result": found[0]} if found else {"found": False}
        said = gateway.post(f"{url}/probes/{begun.json()['probe_id']}", json=seen)
        assert said.status_code == 200, said.text
        again = said.json()["probe"].get("again_seconds")
        if again is None:
            return
        time.sleep(again)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5], hang=len(sys.argv) > 6)
