"""The main job on real parts: an agent asks for an effect, it happens once, and every retry gets the same receipt.

Runs against `outbox up` with two API processes, embedded Postgres, and the sandbox provider: once with the embedded Redis, once
without any.
"""

import functools
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.support.outbox_up import (
    CUSTOMER,
    ECHO,
    MAIL,
    PATHS,
    REFUND,
    TICKET,
    Answer,
    OutboxUp,
    mail,
    reference,
    refund,
    request,
    running,
)
from tests.support.processes import start_command

from outbox_standalone import child

CALLERS = 200


@pytest.fixture(scope="module", params=["redis", "no-redis"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutboxUp]:
    """One `outbox up` for the tests of this module, with and without Redis; every test uses payments of its own."""
    options = ["--api-workers", "2", *(["--no-redis"] if request.param == "no-redis" else [])]
    with running(tmp_path_factory.mktemp("up"), *options) as started:
        if request.param == "redis" and not started.has_redis:
            pytest.skip("there is no Redis on this machine")
        yield started


@pytest.fixture
def up(stack: OutboxUp) -> Iterator[OutboxUp]:
    """The stack, asked for its invariants when the test is over."""
    with stack.checked():
        yield stack


def effects_of(up: OutboxUp, input: dict[str, object]) -> list[dict[str, Any]]:
    """The refunds that the provider has made of one payment."""
    return [one for one in up.sandbox.effects(PATHS[REFUND]) if one["fields"]["payment_intent"] == input["payment_intent"]]


def test_refund_settles_and_every_retry_gets_its_receipt(up: OutboxUp) -> None:
    """A refund is executed, its receipt is in Postgres, and every retry is answered with the same bytes of receipt and result."""
    input, case = refund(), reference()
    first = up.call(REFUND, input, reference=case)
    assert first.status == 200, first.body
    told = first.document
    assert (told["state"], told["replayed"], told["is_error"], told["retry"]) == ("succeeded", False, False, {"action": "none"})
    assert told["operation_key"] == f"refund:{input['payment_intent']}:{case}"
    [effect] = effects_of(up, input)
    assert told["result"] == {"id": effect["id"], "amount": 1200, "status": "succeeded", "currency": "eur"}
    [row] = up.ledger.rows("select * from receipts where reservation_id = $1", UUID(told["reservation_id"]))
    assert (row["external_reference"], row["confidence"], row["amount"], row["currency"]) == (
        effect["id"],
        "confirmed",
        1200,
        "EUR",
    )
    assert str(row["id"]) == told["receipt"]["id"]
    assert re.fullmatch(r"Done\. Refund re_\w+ of 12\.00 EUR\. Receipt [0-9a-f-]{36}\.", told["message"])
    for _ in range(5):
        again = up.call(REFUND, input, reference=case)
        assert again.status == 200
        assert again.receipt_bytes == first.receipt_bytes
        assert again.document["result"] == told["result"]
        assert again.document["replayed"] is True
        assert again.headers["outbox-replayed"] == again.headers["idempotent-replayed"] == "true"
    looked_up = up.send("GET", f"/v1/receipts/{told['receipt']['id']}")
    assert looked_up.document == told["receipt"]
    assert len(effects_of(up, input)) == 1
    assert up.outcomes(UUID(told["reservation_id"])) == ["succeeded"]


def test_200_concurrent_identical_calls(up: OutboxUp) -> None:
    """200 concurrent identical calls over two API processes: one effect, one attempt, 200 equal receipts."""
    input, case = refund(), reference()
    before = calls_by_process(up)
    answers = [one.result() for one in [up.later(REFUND, input, reference=case) for _ in range(CALLERS)]]
    assert Counter(one.status for one in answers) == {200: CALLERS}
    assert len({one.receipt_bytes for one in answers}) == 1
    assert Counter(one.document["replayed"] for one in answers) == {False: 1, True: CALLERS - 1}
    assert len(effects_of(up, input)) == 1
    assert up.outcomes(UUID(answers[0].document["reservation_id"])) == ["succeeded"]
    after = calls_by_process(up)
    served = [after[url] - before[url] for url in after if after[url] > before[url]]
    assert sum(served) == CALLERS
    assert len(served) == 2, f"the calls were not spread over two processes: {served}"


def calls_by_process(up: OutboxUp) -> dict[str, float]:
    """How many tool calls each process says it has answered."""
    found = {}
    for url in up.ready()["metrics_urls"]:
        page = request(url.removesuffix("/metrics"), "GET", "/metrics", seconds=10).body.decode()
        numbers = re.findall(
            rf'^outbox_\w*calls_total{{[^}}]*tool="{re.escape(REFUND)}"[^}}]*}} ([0-9.e+]+)$', page, re.MULTILINE
        )
        found[url] = sum(map(float, numbers))
    return found


def test_other_reference_is_another_effect(up: OutboxUp) -> None:
    """A second refund of one payment under another reference is a second effect with a provider key of its own."""
    payment = f"pi_{uuid4().hex}"
    one = up.call(REFUND, refund(payment, 500), reference=reference())
    other = up.call(REFUND, refund(payment, 700), reference=reference())
    assert (one.status, other.status) == (200, 200)
    assert sorted(effect["amount"] for effect in effects_of(up, refund(payment))) == [500, 700]
    keys = {
        sent["idempotency_key"]
        for sent in up.sandbox.requests(path=PATHS[REFUND])
        if sent["request_id"] in request_ids(one, other)
    }
    assert len(keys) == 2


def request_ids(*answers: Answer) -> set[str]:
    """The provider's own ids of the requests that answers came of."""
    return {one.document["receipt"]["provider_request_id"] for one in answers}


def test_other_amount_without_reference_is_a_conflict(up: OutboxUp) -> None:
    """After a call without reference: another amount without reference is refused naming the field, the same call is a replay."""
    input = refund()
    first = up.call(REFUND, input)
    assert first.status == 200
    conflict = up.call(REFUND, {**input, "amount": 1300})
    told = conflict.document
    assert (conflict.status, told["code"], told["state"]) == (422, "conflict", "succeeded")
    assert conflict.headers["content-type"] == "application/problem+json"
    assert told["fields"] == ["amount"]
    assert "amount" in told["message"]
    assert told["message"].startswith("NOT DONE. ")
    assert first.document["receipt"]["id"] in told["message"]
    replay = up.call(REFUND, input)
    assert (replay.status, replay.receipt_bytes) == (200, first.receipt_bytes)
    with_reference = up.call(REFUND, {**input, "amount": 1300}, reference=reference())
    assert with_reference.status == 200
    assert len(effects_of(up, input)) == 2
    kinds = up.ledger.rows("select kind from ledger_entries where reservation_id = $1", UUID(told["reservation_id"]))
    assert Counter(row["kind"] for row in kinds)["conflict"] == 1


def test_digest_keyed_call_belongs_to_its_run(up: OutboxUp) -> None:
    """A tool keyed by its input needs a run; the same call in one run is a replay, in another run a second effect."""
    input = {"order": uuid4().hex}
    refused = up.call(ECHO, input)
    assert (refused.status, refused.document["code"], refused.document["state"]) == (422, "run-required", None)
    run, other = reference(), reference()
    first, again = up.call(ECHO, input, run=run), up.call(ECHO, input, run=run)
    assert first.receipt_bytes == again.receipt_bytes
    assert again.document["replay"]["same_run"] is True
    elsewhere = up.call(ECHO, input, run=other)
    assert elsewhere.document["replayed"] is False
    assert len([one for one in up.sandbox.effects(PATHS[ECHO]) if one["fields"].get("order") == input["order"]]) == 2


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A body that must be refused, and how."""

    body: bytes
    status: int
    code: str
    path: str | None


def nested(depth: int) -> bytes:
    """A call whose input nests so deep in all."""
    return b'{"tool":"sandbox.echo","run":"deep","input":{"a":' + b"[" * (depth - 2) + b"]" * (depth - 2) + b"}}"


def written(input: str, rest: str = "") -> bytes:
    """A refund with this text as its input."""
    return f'{{"tool":"stripe.refund.create","input":{input}{rest}}}'.encode()


BAD = {
    "no JSON": Bad(body=b"refund please", status=400, code="malformed-body", path="$"),
    "empty": Bad(body=b"", status=400, code="malformed-body", path="$"),
    "cut off": Bad(body=b'{"tool": "stripe.refund.create", "input": {', status=400, code="malformed-body", path="$.input"),
    "not UTF-8": Bad(
        body=written('{"payment_intent":"pi_\xff"}').replace(b"\xc3\xbf", b"\xff"), status=400, code="malformed-body", path=None
    ),
    "NaN": Bad(body=written('{"payment_intent":"pi_1","amount":NaN}'), status=400, code="malformed-body", path="$.input.amount"),
    "Infinity": Bad(
        body=written('{"payment_intent":"pi_1","amount":-Infinity}'), status=400, code="malformed-body", path="$.input.amount"
    ),
    "one name twice": Bad(
        body=written('{"payment_intent":"pi_1","amount":1,"amount":2}'), status=400, code="malformed-body", path="$.input.amount"
    ),
    "half a character": Bad(
        body=written('{"payment_intent":"pi_\\ud800","amount":1}'),
        status=400,
        code="malformed-body",
        path="$.input.payment_intent",
    ),
    "a number no double holds": Bad(
        body=written('{"payment_intent":"pi_1","amount":9007199254740993}'),
        status=400,
        code="malformed-body",
        path="$.input.amount",
    ),
    "too deep": Bad(body=nested(65), status=400, code="too-deep", path=None),
    "too large": Bad(body=written('{"payment_intent":"pi_' + "1" * (1 << 20) + '"}'), status=413, code="too-large", path=None),
    "a list": Bad(body=b"[]", status=422, code="invalid-input", path="$"),
    "no tool": Bad(body=b'{"input":{}}', status=422, code="invalid-input", path="$.tool"),
    "no input": Bad(body=b'{"tool":"stripe.refund.create"}', status=422, code="invalid-input", path="$.input"),
    "input of a wrong type": Bad(body=written('"pi_1"'), status=422, code="invalid-input", path="$.input"),
    "field of a wrong type": Bad(
        body=written('{"payment_intent":"pi_1","amount":"12"}'), status=422, code="invalid-input", path="$.input.amount"
    ),
    "fraction": Bad(
        body=written('{"payment_intent":"pi_1","amount":1.5}'), status=422, code="invalid-input", path="$.input.amount"
    ),
    "nothing to refund": Bad(
        body=written('{"payment_intent":"pi_1","amount":0}'), status=422, code="invalid-input", path="$.input.amount"
    ),
    "unknown field of the input": Bad(
        body=written('{"payment_intent":"pi_1","amount":1,"charge":"ch_1"}'),
        status=422,
        code="invalid-input",
        path="$.input.charge",
    ),
    "missing field of the input": Bad(
        body=written('{"amount":1}'), status=422, code="invalid-input", path="$.input.payment_intent"
    ),
    "unknown field of the call": Bad(
        body=written('{"payment_intent":"pi_1","amount":1}', ',"idempotency_key":"x"'),
        status=422,
        code="invalid-input",
        path="$.idempotency_key",
    ),
    "reference of a wrong type": Bad(
        body=written('{"payment_intent":"pi_1","amount":1}', ',"reference":7'),
        status=422,
        code="invalid-input",
        path="$.reference",
    ),
}


def test_malformed_calls_leave_no_reservation(up: OutboxUp) -> None:
    """Whatever is wrong with a body: 4xx that names the path, in the one skeleton, no reservation and nothing sent."""
    reserved, sent = up.ledger.value("select count(*) from reservations"), len(up.sandbox.requests())
    wrong = {}
    for name, bad in BAD.items():
        answer = up.send("POST", "/v1/tool-calls", body=bad.body)
        told = answer.document
        found = (answer.status, told.get("code"), told.get("path") if bad.path is not None else None)
        if found != (bad.status, bad.code, bad.path):
            wrong[name] = (found, (bad.status, bad.code, bad.path))
        assert answer.headers["content-type"] == "application/problem+json"
        assert (told["state"], told["reservation_id"], told["is_error"]) == (None, None, True)
        assert told["message"].startswith("NOT SENT. "), told["message"]
    assert wrong == {}
    assert up.ledger.value("select count(*) from reservations") == reserved
    assert len(up.sandbox.requests()) == sent


@pytest.mark.parametrize("fault", ["commit-then-drop", "truncate-body", "drop-before-commit"])
def test_lost_reply_of_class_a(up: OutboxUp, fault: str) -> None:
    """The reply of a refund is lost, with or without the effect: the waiting caller gets its receipt, and one effect exists."""
    input = refund()
    up.sandbox.plan(PATHS[REFUND], fault)
    answer = up.until_answered(REFUND, input, deadline_seconds=20)
    assert answer.status == 200, answer.body
    assert len(effects_of(up, input)) == 1
    assert up.outcomes(UUID(answer.document["reservation_id"])) == ["unknown", "succeeded"]


def test_stored_failure_behind_which_it_happened(up: OutboxUp) -> None:
    """A 500 that the provider has stored is replayed and proves nothing; the refund behind it is found by its marker."""
    input = refund()
    up.sandbox.plan(PATHS[REFUND], "commit-then-500")
    answer = up.until_answered(REFUND, input, deadline_seconds=20)
    [effect] = effects_of(up, input)
    assert answer.status == 200, answer.body
    receipt = answer.document["receipt"]
    assert (receipt["external_reference"], receipt["confidence"]) == (effect["id"], "confirmed-by-lookup")
    assert up.outcomes(UUID(answer.document["reservation_id"])) == ["unknown", "unknown"]


def test_stored_failure_stays_in_doubt(up: OutboxUp) -> None:
    """A stored 500 without a refund: in doubt and looked up, told so; no absence counts before the settle time, nothing is sent."""
    input = refund()
    up.sandbox.plan(PATHS[REFUND], "fail-500")
    answer = up.call(REFUND, input, headers={"Prefer": "wait=6"})
    told = answer.document
    assert (answer.status, told["code"], told["state"]) == (409, "in-doubt", "in_doubt")
    assert told["message"].startswith("UNKNOWN. ")
    assert told["retry"]["action"] == "wait"
    id = UUID(told["reservation_id"])
    assert up.outcomes(id) == ["unknown", "unknown"]
    [row] = up.ledger.rows("select lookups, absences, absence_counts_at > now() as early from reservations where id = $1", id)
    assert (row["lookups"] > 0, row["absences"], row["early"]) == (True, 0, True)
    assert effects_of(up, input) == []


def test_declined_refund_takes_the_next_generation(up: OutboxUp) -> None:
    """A decline is final and stored under the provider key; the next call uses another provider key and succeeds."""
    input = refund()
    up.sandbox.plan(PATHS[REFUND], "reject-402")
    declined = up.call(REFUND, input)
    told = declined.document
    assert (declined.status, told["code"], told["state"]) == (422, "provider-refused", "failed")
    assert told["failure"]["provider_status"] == 402
    assert told["failure"]["provider_code"] == "card_declined"
    assert told["message"] == "NOT DONE. stripe refused it (card_declined)."
    assert effects_of(up, input) == []
    answer = up.call(REFUND, input)
    assert answer.status == 200, answer.body
    assert answer.document["replayed"] is False
    assert len(effects_of(up, input)) == 1
    ids = UUID(told["reservation_id"]), UUID(answer.document["reservation_id"])
    assert ids[0] != ids[1]
    assert [up.ledger.value("select generation from reservations where id = $1", id) for id in ids] == [0, 1]
    keys = [row["provider_key"] for id in ids for row in up.attempts(id)]
    assert len(set(keys)) == 2
    assert all(len(up.sandbox.requests(idempotency_key=key)) == 1 for key in keys)


def test_rate_limit_is_deferred(up: OutboxUp) -> None:
    """A rate limit is no failure: the refund is sent again, not before the stated time, and succeeds for the same caller."""
    input = refund()
    up.sandbox.plan(PATHS[REFUND], "rate-limit", delay_seconds=1)
    answer = up.call(REFUND, input)
    assert answer.status == 200, answer.body
    first, second = up.attempts(UUID(answer.document["reservation_id"]))
    assert (first["outcome"], second["outcome"]) == ("deferred", "succeeded")
    assert (second["claimed_at"] - first["closed_at"]).total_seconds() >= 1.0
    assert len(effects_of(up, input)) == 1


def test_lost_reply_without_native_identity(up: OutboxUp) -> None:
    """The reply of a mail (class C) is lost: in doubt, told so, and never a second one."""
    input = mail()
    case, before = reference(), len(up.sandbox.effects(PATHS[MAIL]))
    up.sandbox.plan(PATHS[MAIL], "commit-then-drop")
    answer = up.until_answered(MAIL, input, reference=case, deadline_seconds=10)
    told = answer.document
    assert (answer.status, told["code"], told["state"]) == (409, "in-doubt", "in_doubt")
    assert told["message"].startswith("UNKNOWN. It was sent and no answer came. Do not repeat it")
    assert told["retry"]["action"] == "ask-human"
    for _ in range(3):
        again = up.call(MAIL, input, reference=case)
        assert (again.status, again.document["reservation_id"]) == (409, told["reservation_id"])
    # What looks for doubts to recover has looked more than once by the time another call has gone all the way.
    assert up.call(MAIL, input, reference=reference()).status == 200
    time_of_two_sweeps(up)
    assert up.outcomes(UUID(told["reservation_id"])) == ["unknown"]
    assert up.needs_a_person(UUID(told["reservation_id"]))
    assert len(up.sandbox.effects(PATHS[MAIL])) == before + 2


def test_lost_reply_that_can_be_looked_up(up: OutboxUp) -> None:
    """The reply of a ticket (class B) is lost: the caller that waits gets the receipt of the one that was made."""
    case, before = reference(), len(up.sandbox.effects(PATHS[TICKET]))
    up.sandbox.plan(PATHS[TICKET], "commit-then-drop")
    answer = up.call(TICKET, {"title": "Door is stuck"}, reference=case)
    assert (answer.status, answer.document["receipt"]["confidence"]) == (200, "confirmed-by-lookup")
    assert up.outcomes(UUID(answer.document["reservation_id"])) == ["unknown"]
    assert len(up.sandbox.effects(PATHS[TICKET])) == before + 1


def time_of_two_sweeps(up: OutboxUp) -> None:
    """Lets the sweep look twice: a deferred refund needs it, so the end of one shows that it has."""
    up.sandbox.plan(PATHS[REFUND], "rate-limit", delay_seconds=1)
    assert up.call(REFUND, refund()).status == 200


def test_lost_ledger_tail(up: OutboxUp) -> None:
    """The rows of a settled refund are deleted behind our back: the repeated call presents the same provider key, one effect."""
    input, case = refund(), reference()
    first = up.call(REFUND, input, reference=case)
    [attempt] = up.attempts(UUID(first.document["reservation_id"]))
    # The tail itself stays: a worker that misses its newest attempt would declare a new epoch (tests/fault/test_lost_tail.py).
    assert up.call(REFUND, refund()).status == 200
    up.lose_rows(UUID(first.document["reservation_id"]))
    assert up.state(UUID(first.document["reservation_id"])) is None
    second = up.call(REFUND, input, reference=case)
    assert second.status == 200, second.body
    assert second.document["reservation_id"] != first.document["reservation_id"]
    assert second.document["replayed"] is False
    assert second.document["result"] == first.document["result"]
    requests = up.sandbox.requests(idempotency_key=attempt["provider_key"])
    assert [one["replayed"] for one in requests] == [False, True]
    assert len(effects_of(up, input)) == 1


def test_a_request_too_many_is_noticed(up: OutboxUp) -> None:
    """Negative control: a request that no attempt accounts for fails the check that follows every test."""
    answer = up.call(REFUND, refund())
    [attempt] = up.attempts(UUID(answer.document["reservation_id"]))
    up.check()
    headers = {"Authorization": "Bearer sk_test_somebody", "Idempotency-Key": attempt["provider_key"]}
    headers["Content-Type"] = "application/x-www-form-urlencoded"
    request(up.sandbox.url, "POST", PATHS[REFUND], body=b"payment_intent=pi_else&amount=1", headers=headers, seconds=10)
    with pytest.raises(AssertionError, match="the provider saw 2"):
        up.check()
    up.account_for(attempt["provider_key"], 1)


def test_broken_invariants_are_noticed(up: OutboxUp) -> None:
    """Negative control: a settled refund without its receipt fails the check that follows every test."""
    answer = up.call(REFUND, refund())
    id = UUID(answer.document["reservation_id"])
    up.ledger.rows("create table kept_receipt as select * from receipts where reservation_id = $1", id)
    up.ledger.rows("delete from receipts where reservation_id = $1", id)
    with pytest.raises(AssertionError, match="succeeded has exactly one receipt"):
        up.check()
    up.ledger.rows("insert into receipts select * from kept_receipt")
    up.ledger.rows("drop table kept_receipt")


def test_respond_async_answers_at_once(up: OutboxUp) -> None:
    """`Prefer: respond-async` answers 202 with where to look; looking with `wait` gives the receipt."""
    input = refund()
    up.sandbox.plan(PATHS[REFUND], "delay", delay_seconds=1)
    accepted = up.call(REFUND, input, headers={"Prefer": "respond-async"})
    assert accepted.status == 202
    assert accepted.seconds < 1
    assert "retry-after" in accepted.headers
    looked = up.send("GET", accepted.headers["location"] + "?wait=20")
    assert (looked.status, looked.document["state"]) == (200, "succeeded")
    joined = up.call(REFUND, input)
    assert joined.document["receipt"] == looked.document["receipt"]


@pytest.fixture(scope="module")
def stateful_mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The npm package stripe-stateful-mock, a double of Stripe that nobody here wrote; gives its URL."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not on PATH, so stripe-stateful-mock cannot be had")
    folder = tmp_path_factory.mktemp("stripe-stateful-mock")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "stripe-stateful-mock@0.0.16"]
    try:
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm could not install stripe-stateful-mock within 90 s")
    if installed.returncode != 0:
        pytest.skip(f"npm could not install stripe-stateful-mock: {installed.stderr.strip()[-300:]}")
    port = child.free_port()
    script = str(folder / "node_modules" / "stripe-stateful-mock" / "dist" / "cli.js")
    process = start_command(["node", script], env={"PORT": str(port)}, folder=folder, name="stripe-stateful-mock")
    url = f"http://127.0.0.1:{port}"
    try:
        process.wait_for(functools.partial(answers, url), deadline_seconds=20)
        yield url
    finally:
        process.end()


def answers(url: str) -> bool:
    """Whether anything answers there."""
    try:
        return request(url, "GET", "/", seconds=2).status > 0
    except Exception:
        return False


def test_customer_at_a_double_nobody_here_wrote(up: OutboxUp, stateful_mock: str) -> None:
    """A customer is created once at stripe-stateful-mock, which understands our request and repeats its answer for our key."""
    up.connect("stripe-double", provider="stripe", base_url=stateful_mock, credential="sk_test_outbox")
    email = f"a.berg+{uuid4().hex}@example.com"
    input = {"email": email, "name": "A. Berg", "metadata": {"tier": "gold"}}
    with ThreadPoolExecutor(8) as callers:
        call: Callable[[int], Answer] = lambda _: up.call(CUSTOMER, input, connection="stripe-double")  # noqa: E731
        found = list(callers.map(call, range(8)))
    assert {one.status for one in found} == {200}, found[0].body
    assert len({one.receipt_bytes for one in found}) == 1
    first = found[0].document
    assert email not in json.dumps(first)
    headers = {"Authorization": "Bearer sk_test_outbox"}
    listed = request(stateful_mock, "GET", "/v1/customers", headers=headers, seconds=10).document["data"]
    [customer] = [one for one in listed if one["email"] == email]
    assert customer["id"] == first["receipt"]["external_reference"]
    assert customer["metadata"]["tier"] == "gold"
    assert up.call(REFUND, refund()).status == 200
    up.lose_rows(UUID(first["reservation_id"]))
    again = up.call(CUSTOMER, input, connection="stripe-double")
    assert again.document["receipt"]["external_reference"] == customer["id"]
    listed = request(stateful_mock, "GET", "/v1/customers", headers=headers, seconds=10).document["data"]
    assert len([one for one in listed if one["email"] == email]) == 1
