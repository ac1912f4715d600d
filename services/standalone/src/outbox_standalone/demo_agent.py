"""The small agent of `outbox demo`, a process of its own: `python -m outbox_standalone.demo_agent plain|outbox TASK`.

TASK is `{"calls": [tool call, ...], "at_once": n}` as JSON; each tool call has the shape of `POST /v1/tool-calls`. What the agent
is told comes out as one JSON document a line. It knows nothing of faults: what goes wrong on the wire it tries again, as people
write it. Both columns of the demo run this same agent; only the function that carries a tool call out is another one.

It needs nothing but the standard library, so that its functions can be pasted into any agent.
"""

# ruff: noqa: S310 - the addresses come from whoever starts the agent, and the functions are shown to be pasted as they stand
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TRIES = 3
PAUSE_SECONDS = 0.2
PROVIDER_SECONDS = 30


def work(task: dict[str, Any], call_tool: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Does every call of the task in turn, each as often at once as the task says, and says what it was told."""
    at_once = task.get("at_once", 1)
    with ThreadPoolExecutor(at_once) as pool:
        for call in task["calls"]:
            for told in pool.map(lambda one: keep_trying(call_tool, one), [call] * at_once):
                print(json.dumps(told), flush=True)


def keep_trying(call_tool: Callable[[dict[str, Any]], dict[str, Any]], call: dict[str, Any]) -> dict[str, Any]:
    """The retry that everybody writes: a lost connection, a time-out or a 5xx is tried again, a little later each time."""
    for failures in range(TRIES - 1):
        try:
            return call_tool(call)
        except (OSError, http.client.HTTPException):
            time.sleep(PAUSE_SECONDS * 2**failures)
    return call_tool(call)


def call_provider(call: dict[str, Any]) -> dict[str, Any]:
    """The plain way: the provider's own HTTP API, as its first page of documentation shows it."""
    given = call["input"]
    if call["tool"] == "stripe.refund.create":
        path, content_type, body = "/v1/refunds", "application/x-www-form-urlencoded", urllib.parse.urlencode(given)
    else:
        mail = {
            "personalizations": [{"to": [{"email": given["to"]}]}],
            "from": {"email": given["from"]},
            "subject": given["subject"],
            "content": [{"type": "text/plain", "value": given["text"]}],
        }
        path, content_type, body = "/v3/mail/send", "application/json", json.dumps(mail)
    request = urllib.request.Request(
        os.environ["PROVIDER_URL"] + path,
        data=body.encode(),
        headers={"Authorization": "Bearer " + os.environ["PROVIDER_KEY"], "Content-Type": content_type},
    )
    with urllib.request.urlopen(request, timeout=PROVIDER_SECONDS) as answer:
        text = answer.read()
        return {"status": answer.status, "result": json.loads(text) if text else None}


def call_outbox(call: dict[str, Any]) -> dict[str, Any]:
    """One tool call through Agent Outbox; repeated, it is still one effect."""
    request = urllib.request.Request(
        os.environ["OUTBOX_URL"] + "/v1/tool-calls",
        data=json.dumps(call).encode(),
        headers={
            "Authorization": "Bearer " + os.environ["OUTBOX_KEY"],
            "Content-Type": "application/json",
        },
    )
    for _ in range(10):
        try:
            with urllib.request.urlopen(request, timeout=70) as answer:
                told: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as refused:
            if refused.code >= 500:
                raise
            told = json.load(refused)
        if told["retry"]["action"] != "wait":
            break
        time.sleep(told["retry"]["after_seconds"])
    return told


def main() -> None:
    """Works one task in the manner that is asked for."""
    manner, task = sys.argv[1:]
    work(json.loads(task), {"plain": call_provider, "outbox": call_outbox}[manner])


if __name__ == "__main__":
    main()
