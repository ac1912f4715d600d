"""What callers and providers say is nowhere to be read afterwards: not in a dump of Postgres, a log, a trace or a metric.

Canary strings travel through every field that may carry content, through answers and errors of a provider that repeats them, and
through calls that are refused. Then everything that is kept is searched, also for their hexadecimal and base64 forms. Runs against
`outbox up` with logs at level debug, an OTLP receiver, and the embedded Postgres and Redis (none where there is no Redis).
"""

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs
from uuid import UUID, uuid4

import pytest
from tests.support.outbox_up import CUSTOMER, ECHO, MAIL, PATHS, REFUND, TICKET, OutboxUp, reference, refund
from tests.support.traced_up import TracedUp, running_traced

from outbox_standalone.embedded_postgres import shipped_binaries


def canary(where: str) -> str:
    """A string that stands nowhere else; its beginning says where it was planted. Lower case, as an address is normalised to."""
    return f"canary{where}{uuid4().hex[:16]}"


class Talkative(BaseHTTPRequestHandler):
    """A provider that speaks Stripe's refunds and puts canaries into everything it says."""

    protocol_version = "HTTP/1.1"
    words: dict[str, str]
    markers: set[str]

    def do_GET(self) -> None:
        """Two refunds of every marker: a look-up that settles nothing, and talks as much as it can."""
        said = self.words["answer"]
        found = [
            {"id": f"re_{uuid4().hex}", "metadata": {"outbox": marker, said: said}, "status": said, said: said}
            for marker in self.markers
            for _ in range(2)
        ]
        self._answer(200, json.dumps({"data": found, "has_more": False, said: said}))

    def do_POST(self) -> None:
        """Answers as the payment's name asks for."""
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        said = self.words["answer"]
        self.markers.update(parse_qs(sent).get("metadata[outbox]", []))
        if "pi_declined" in sent:
            error = {"type": "card_error", "code": f"{said} was declined", "message": self.words["error"], "param": said}
            self._answer(402, json.dumps({"error": error, "note": said}))
        elif "pi_broken" in sent:
            self._answer(500, json.dumps({"error": {"type": "api_error", "message": self.words["error"]}}), replayed=True)
        elif "pi_garbage" in sent:
            self._answer(400, f"<html>{self.words['error']}", replayed=True)
        else:
            refund = {"id": f"re_{uuid4().hex}", "amount": 1200, "currency": "eur", "status": said, "note": said, said: said}
            self._answer(200, json.dumps(refund))

    def _answer(self, status: int, body: str, *, replayed: bool = False) -> None:
        content = body.encode()
        self.send_response(status, self.words["answer"])
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Note", self.words["answer"])
        self.send_header("Content-Length", str(len(content)))
        if replayed:
            self.send_header("Idempotent-Replayed", "true")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedUp]:
    """One stack for this module, as talkative as its settings allow."""
    with running_traced(tmp_path_factory.mktemp("up"), OUTBOX_LOG_LEVEL="debug") as started:
        yield started


@pytest.fixture(scope="module")
def canaries(stack: TracedUp) -> Iterator[dict[str, str]]:
    """What has travelled through the stack by now, by the place where it was planted."""
    words = {"answer": canary("answer"), "error": canary("error")}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Planted", (Talkative,), {"words": words, "markers": set()}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    planted = {"credential": canary("credential"), **words}
    try:
        with stack.up.checked() as up:
            base_url = f"http://127.0.0.1:{server.server_port}"
            up.connect("talkative", provider="stripe", base_url=base_url, credential=f"sk_test_{planted['credential']}")
            say_everything(up, planted)
            settle_everything(up)
            yield planted
    finally:
        server.shutdown()
        server.server_close()


def say_everything(up: OutboxUp, planted: dict[str, str]) -> None:
    """Calls that are carried out, declined, left in doubt and refused, with a canary in each field that may carry content."""

    def say(where: str) -> str:
        planted[where] = canary(where)
        return planted[where]

    settled = [
        up.call(CUSTOMER, {"email": f"{say('email')}@example.com", "name": say("name"), "metadata": {"note": say("metadata")}}),
        up.call(
            MAIL,
            {
                "from": f"{say('sender')}@example.com",
                "to": f"{say('recipient')}@example.com",
                "subject": say("subject"),
                "text": say("text"),
                "html": f"<p>{say('html')}</p>",
            },
            reference=reference(),
            context={"case_url": f"https://desk.example.com/{say('context')}"},
        ),
        up.call(
            MAIL,
            {"from": "desk@example.com", "to": f"{say('unnamed')}@example.com", "subject": "x", "text": "x"},
            run=reference(),
        ),
        up.call(ECHO, {say("member"): [say("value"), {"deep": say("deep")}]}, run=reference(), context={say("remark"): 1}),
        up.call(TICKET, {"title": say("title"), "body": say("body")}, reference=reference()),
        up.call(REFUND, refund(), connection="talkative"),
    ]
    assert [one.status for one in settled] == [200] * len(settled), [one.body for one in settled]
    assert settled[-1].document["result"]["status"] == planted["answer"]
    declined = up.call(REFUND, refund("pi_declined"), connection="talkative", context={"why": say("failedcontext")})
    assert (declined.status, declined.document["failure"]["provider_message"]) == (422, planted["error"])
    for payment in ("pi_broken", "pi_garbage"):
        up.start_call(REFUND, refund(payment), connection="talkative", context={"why": say("doubtcontext")})
    up.sandbox.plan(PATHS[CUSTOMER], "commit-then-500")
    found = up.call(CUSTOMER, {"email": f"{say('lookedup')}@example.com", "name": say("lookedupname")})
    assert (found.status, found.document["receipt"]["confidence"]) == (200, "confirmed-by-lookup"), found.body
    refused = [
        up.call(REFUND, {"payment_intent": say("refused"), "amount": 1}),
        up.call(REFUND, {**refund(), say("unknownfield"): 1}),
        up.call(REFUND, {**refund(), "reason": say("reason")}),
        up.call(CUSTOMER, {"email": f"{planted['email']}@example.com", "name": say("othername")}),
        up.send("POST", "/v1/tool-calls", body=b'{"tool": "sandbox.echo", "input": {"' + say("cutoff").encode()),
        up.send("POST", "/v1/tool-calls", body=json.dumps({"tool": ECHO, "input": {}, say("callfield"): 1}).encode()),
        up.send("POST", "/v1/tool-calls", body=b"{}", headers={"Authorization": f"Bearer {say('bearer')}"}),
        up.send("POST", "/v1/tool-calls", body=b"{}", headers={"Authorization": f"Bearer obx_sandbox_{say('secret')}"}),
        up.send("GET", f"/v1/receipts/{say('path')}"),
        up.send("GET", f"/v1/reservations?nonsense={say('query')}"),
    ]
    assert {one.status // 100 for one in refused} == {4}, [one.body for one in refused]


def settle_everything(up: OutboxUp) -> None:
    """Waits until nothing moves any more by itself: all is closed, or a person must look."""
    moving = """select r.id from reservations r
        join open_reservations o on (o.organization_id, o.reservation_id) = (r.organization_id, r.id) where o.due_at < 'infinity'"""
    up.wait(lambda: not up.ledger.rows(moving), "everything to be settled or left to a person", deadline_seconds=40)


def forms(text: str) -> set[bytes]:
    """The text as it may stand somewhere: plain, in hexadecimal, in base64 at each of the three offsets."""
    plain = text.encode()
    found = {plain, plain.hex().encode(), plain.hex().upper().encode()}
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + plain)
        # Only what is determined by the text alone: neither what its neighbours decide nor padding.
        found.add(encoded[4 if offset else 0 : len(encoded) // 4 * 4 - 4])
    return found


def everything_kept(traced: TracedUp) -> dict[str, bytes]:
    """All that is kept after settlement, by the kind of its place."""
    up = traced.up
    dump = subprocess.run(
        [shipped_binaries().program("pg_dump"), "--dbname", up.ready()["postgres_url"]],
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout
    logs = b"\n".join(path.read_bytes() for path in up.logs())
    return {"pg_dump": dump, "logs": logs, "traces": traced.traces_file.read_bytes(), "metrics": up.metrics().encode()}


def places_of(text: str, kept: dict[str, bytes]) -> set[str]:
    """The kinds of places where a text stands in any form."""
    return {place for place, content in kept.items() if any(form in content for form in forms(text))}


def test_canaries_are_nowhere(stack: TracedUp, canaries: dict[str, str]) -> None:
    """No canary of any input, personal key field, answer, error or credential stands in a dump, a log, a trace or a metric."""
    wait_until_spans_have_arrived(stack)
    kept = everything_kept(stack)
    assert {where: found for where, text in canaries.items() if (found := places_of(text, kept))} == {}


def test_keys_are_nowhere(stack: TracedUp, canaries: dict[str, str]) -> None:
    """Neither scoped keys nor the keys that seal, nor passwords of services, stand in a dump, a log, a trace or a metric."""
    kept = everything_kept(stack)
    # `outbox up` shows its user the two scoped keys once, at its own terminal.
    kept["logs"] = b"\n".join(path.read_bytes() for path in stack.up.logs() if path != stack.up.process.log_path)
    keys: dict[str, str] = json.loads((stack.up.folder / "data" / "keys.json").read_text())
    assert {name: found for name, text in keys.items() if (found := places_of(text, kept))} == {}


def test_search_finds_what_is_meant_to_be_readable(stack: TracedUp, canaries: dict[str, str]) -> None:
    """Negative control: the search finds a tool's name in all four kinds of places, and a reference where references are kept."""
    wait_until_spans_have_arrived(stack)
    case = canary("reference")
    assert stack.up.call(REFUND, refund(), reference=case).status == 200
    kept = everything_kept(stack)
    assert places_of(REFUND, kept) == {"pg_dump", "logs", "traces", "metrics"}
    assert places_of(case, kept) == {"pg_dump"}


def test_search_finds_other_forms(stack: TracedUp, canaries: dict[str, str], tmp_path: Path) -> None:
    """Negative control: a canary planted as bytes, in hexadecimal or in the middle of base64 is found."""
    ledger = stack.up.ledger
    for planted in (canary("bytes"), canary("base64")):
        encoded = base64.b64encode(os.urandom(31) + planted.encode() + os.urandom(7)).decode()
        value = planted.encode() if "bytes" in planted else encoded.encode()
        ledger.rows(
            "create table planted as select $1::bytea as raw, $2::text as words", value, encoded if "base64" in planted else ""
        )
        try:
            assert places_of(planted, everything_kept(stack)) == {"pg_dump"}
        finally:
            ledger.rows("drop table planted")


def test_an_answer_still_tells_its_caller(stack: TracedUp, canaries: dict[str, str]) -> None:
    """What is sealed is not lost: a replay of the settled refund gives its caller the provider's own words again."""
    row = stack.up.ledger.rows(
        "select id from reservations where state = 'succeeded' and provider_status = 200 and tool = $1", REFUND
    )
    found = [stack.up.send("GET", f"/v1/reservations/{UUID(str(one['id']))}").document["result"]["status"] for one in row]
    assert canaries["answer"] in found


def wait_until_spans_have_arrived(traced: TracedUp) -> None:
    """A last call's trace has arrived, so everything before it has, from every process."""
    trace_id = uuid4().hex
    assert traced.up.call(REFUND, refund(), headers={"traceparent": f"00-{trace_id}-{trace_id[:16]}-01"}).status == 200
    traced.wait_spans(trace_id, "outbox.reserve", "outbox.execute", "outbox.send", "outbox.settle")
