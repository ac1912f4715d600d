"""Readings: every row of every contract's table, and everything that no row speaks of."""

import json
from typing import Any

import pytest

from outbox_domain.contract import ToolContract
from outbox_domain.reservation import Outcome
from outbox_providers import catalog
from outbox_providers.driver import Failure, Reading, WireAnswer, read_answer

REFUND, CUSTOMER, MAIL, ECHO, TICKET = (
    "stripe.refund.create",
    "stripe.customer.create",
    "sendgrid.mail.send",
    "sandbox.echo",
    "sandbox.ticket.create",
)
KEYED = (REFUND, CUSTOMER, ECHO)
LABEL, RECORD, MESSAGE, SCHEDULED = (
    "sandbox.label.set",
    "sandbox.record.create",
    "sandbox.message.send",
    "sandbox.mail.schedule",
)


def shipped(tool: str) -> ToolContract:
    """The shipped contract of a tool."""
    return next(each for each in catalog.shipped() if each.tool == tool)


def read(tool: str, status: int, body: Any = b"", **headers: str) -> Reading:
    """The reading of an answer; a body that is no bytes is written as JSON, underscores of header names are hyphens."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return read_answer(shipped(tool), WireAnswer(status=status, headers=named, body=content))


def stripe_error(kind: str, **members: str) -> dict[str, Any]:
    """An error in Stripe's shape."""
    return {"error": {"type": kind, "message": "words of the provider", **members}}


SENDGRID_ERROR = {"errors": [{"message": "words of the provider", "field": "from.email", "help": None}]}
CONFLICT = stripe_error("idempotency_error")
DECLINE = stripe_error("card_error", code="card_declined")
INVALID = stripe_error("invalid_request_error", code="resource_missing")

# tool, number of the row it is meant for (None: no row), status, body, headers, outcome, stored, retry after
ROWS: list[tuple[str, int | None, int, Any, dict[str, str], str, bool, float | None]] = [
    (REFUND, 1, 200, {"id": "re_1"}, {}, "succeeded", False, None),
    (REFUND, 2, 409, stripe_error("idempotency_error", code="idempotency_key_in_use"), {}, "deferred", False, None),
    (REFUND, 3, 401, INVALID, {"Retry-After": "7"}, "deferred", False, 7.0),
    (REFUND, 3, 429, b"<html>slow down</html>", {"retry-after": "3"}, "deferred", False, 3.0),
    (REFUND, 4, 400, CONFLICT, {}, "unknown", False, None),
    (REFUND, 5, 402, DECLINE, {}, "rejected", True, None),
    (REFUND, 6, 400, INVALID, {}, "rejected", False, None),
    (REFUND, 6, 403, INVALID, {}, "rejected", False, None),
    (REFUND, 6, 404, INVALID, {}, "rejected", False, None),
    (CUSTOMER, 1, 200, {"id": "cus_1"}, {}, "succeeded", False, None),
    (CUSTOMER, 2, 409, stripe_error("idempotency_error"), {}, "deferred", False, None),
    (CUSTOMER, 3, 401, b"", {}, "deferred", False, None),
    (CUSTOMER, 3, 429, b"", {"Retry-After": "1"}, "deferred", False, 1.0),
    (CUSTOMER, 4, 400, CONFLICT, {}, "unknown", False, None),
    (CUSTOMER, 5, 402, DECLINE, {}, "rejected", True, None),
    (CUSTOMER, 6, 400, INVALID, {}, "rejected", False, None),
    (MAIL, 1, 202, b"", {"X-Message-Id": "msg-1"}, "succeeded", False, None),
    (MAIL, 2, 429, SENDGRID_ERROR, {"Retry-After": "5", "X-RateLimit-Reset": "1"}, "deferred", False, 5.0),
    (MAIL, 2, 401, SENDGRID_ERROR, {"Retry-After": "5"}, "deferred", False, 5.0),
    (
        *(MAIL, 3, 429, SENDGRID_ERROR),
        {"X-RateLimit-Reset": "1766142060", "Date": "Fri, 19 Dec 2025 11:00:00 GMT"},
        *("deferred", False, 60.0),
    ),
    (MAIL, 3, 401, SENDGRID_ERROR, {}, "deferred", False, None),
    *((MAIL, 4, status, SENDGRID_ERROR, {}, "rejected", False, None) for status in (400, 402, 403, 404, 405, 413, 415)),
    (ECHO, 1, 200, {"id": "ech_1"}, {}, "succeeded", False, None),
    (ECHO, 2, 409, stripe_error("idempotency_error"), {}, "deferred", False, None),
    (ECHO, 3, 429, {}, {"Retry-After": "2"}, "deferred", False, 2.0),
    (ECHO, 4, 400, CONFLICT, {}, "unknown", False, None),
    (ECHO, 5, 402, DECLINE, {}, "rejected", True, None),
    (ECHO, 6, 404, INVALID, {}, "rejected", False, None),
    (TICKET, 1, 201, {"id": "tic_1"}, {}, "succeeded", False, None),
    (TICKET, 1, 200, {"id": "tic_1"}, {}, "succeeded", False, None),
    (TICKET, 2, 401, {}, {}, "deferred", False, None),
    (TICKET, 2, 429, {}, {"Retry-After": "2"}, "deferred", False, 2.0),
    *((TICKET, 3, status, DECLINE, {}, "rejected", False, None) for status in (400, 402, 403, 404, 422)),
    *(
        (tool, 1, status, {"id": "x_1"}, {}, "succeeded", False, None)
        for tool, status in ((LABEL, 200), (RECORD, 201), (SCHEDULED, 202))
    ),
    *((tool, 3, 429, {}, {"Retry-After": "2"}, "deferred", False, 2.0) for tool in (RECORD, SCHEDULED)),
    *((tool, 4, 402, DECLINE, {}, "rejected", False, None) for tool in (RECORD, SCHEDULED)),
    (LABEL, 2, 429, {}, {"Retry-After": "2"}, "deferred", False, 2.0),
    (LABEL, 3, 402, DECLINE, {}, "rejected", False, None),
    (RECORD, 2, 409, stripe_error("invalid_request_error", code="already_exists"), {}, "unknown", False, None),
    (RECORD, None, 409, stripe_error("invalid_request_error", code="locked"), {}, "unknown", False, None),
    (SCHEDULED, 2, 410, stripe_error("invalid_request_error", code="batch_cancelled"), {}, "unknown", False, None),
    (MESSAGE, 1, 200, {"id": "msg_1"}, {}, "succeeded", False, None),
    (MESSAGE, 2, 409, stripe_error("idempotency_error"), {}, "deferred", False, None),
    (MESSAGE, 3, 400, CONFLICT, {}, "unknown", False, None),
    (MESSAGE, 4, 429, {}, {"Retry-After": "2"}, "deferred", False, 2.0),
    (MESSAGE, 5, 402, DECLINE, {}, "rejected", True, None),
    (MESSAGE, 6, 404, INVALID, {}, "rejected", False, None),
    # What no row speaks of.
    *(
        (tool, None, status, stripe_error("api_error"), {}, "unknown", False, None)
        for tool in KEYED
        for status in (500, 502, 503, 504)
    ),
    *((tool, None, 408, INVALID, {"Retry-After": "1"}, "unknown", False, None) for tool in (*KEYED, MAIL, TICKET)),
    *((tool, None, 500, SENDGRID_ERROR, {}, "unknown", False, None) for tool in (MAIL, TICKET)),
    *((tool, None, status, b"", {}, "unknown", False, None) for tool in (REFUND, MAIL) for status in (100, 204, 301, 302, 304)),
    (REFUND, None, 418, INVALID, {}, "unknown", False, None),
    (REFUND, None, 201, {"id": "re_1"}, {}, "unknown", False, None),
    (REFUND, None, 200, {"object": "refund"}, {}, "unknown", False, None),
    (REFUND, None, 200, {"id": None}, {}, "unknown", False, None),
    (REFUND, None, 200, b"", {}, "unknown", False, None),
    (REFUND, None, 402, b"<html>pay first</html>", {}, "unknown", False, None),
    (REFUND, None, 403, b"<html>blocked by the firewall</html>", {}, "unknown", False, None),
    (REFUND, None, 404, {"error": "not found"}, {}, "unknown", False, None),
    (REFUND, None, 400, {"error": {}}, {}, "unknown", False, None),
    (MAIL, None, 202, b"", {}, "unknown", False, None),
    (MAIL, None, 202, b"", {"X-Message-Id": ""}, "unknown", False, None),
    (MAIL, None, 200, b"", {"X-Message-Id": "msg-1"}, "unknown", False, None),
    (MAIL, None, 403, b"<html>blocked</html>", {}, "unknown", False, None),
    (MAIL, None, 400, {"errors": []}, {}, "unknown", False, None),
    (TICKET, None, 409, INVALID, {}, "unknown", False, None),
]


@pytest.mark.parametrize(
    ("tool", "row", "status", "body", "headers", "outcome", "stored", "after"),
    ROWS,
    ids=[f"{each[0]}-{each[2]}-{each[5]}-{index}" for index, each in enumerate(ROWS)],
)
def test_an_answer_is_read(
    tool: str, row: int | None, status: int, body: Any, headers: dict[str, str], outcome: str, stored: bool, after: float | None
) -> None:
    """Each row's answer comes to the row's outcome; what matches no row is unknown, an HTML page in place of an error included."""
    reading = read(tool, status, body, **{name.replace("-", "_"): value for name, value in headers.items()})
    assert (reading.outcome, reading.stored, reading.retry_after_seconds) == (Outcome(outcome), stored, after)
    assert (reading.external_reference is not None) == (outcome == "succeeded")
    assert (reading.result is None) == (outcome != "succeeded")
    assert (reading.failure is None) == (outcome == "succeeded")
    if reading.failure is not None:
        assert reading.failure.provider_status == status


@pytest.mark.parametrize("contract", catalog.shipped(), ids=lambda each: each.tool)
def test_every_row_is_tried(contract: ToolContract) -> None:
    """No row of a shipped table stands without its answer in the table of this test."""
    tried = {row for tool, row, *_ in ROWS if tool == contract.tool and row is not None}
    assert tried == set(range(1, len(contract.outcomes) + 1))


def test_a_conflict_is_marked() -> None:
    """The answer that the identity is taken is unknown and says so; another refusal of the same status is unknown alone."""
    taken = stripe_error("invalid_request_error", code="already_exists")
    assert [read(RECORD, 409, body).conflict for body in (taken, INVALID)] == [True, False]
    assert not read(RECORD, 201, {"id": "obx_1"}).conflict


def test_a_refunds_receipt() -> None:
    """Reference, request id and the kept projection; amount and currency as reported, for the variance check."""
    body = {"id": "re_1", "status": "succeeded", "amount": 1200, "currency": "eur", "charge": "ch_1", "metadata": {"a": "b"}}
    reading = read(REFUND, 200, body, Request_Id="req_1")
    assert reading == Reading(
        outcome=Outcome.SUCCEEDED,
        stored=False,
        retry_after_seconds=None,
        external_reference="re_1",
        provider_request_id="req_1",
        result={"id": "re_1", "status": "succeeded", "amount": 1200, "currency": "eur"},
        amount_reported=1200,
        currency_reported="EUR",
        failure=None,
        stored_failure=False,
    )


def test_a_mails_receipt_is_a_header() -> None:
    """202 with an empty body: header names are read in any case."""
    reading = read(MAIL, 202, b"", x_message_id="14c5d75ce93.dfd.64b469")
    assert (reading.external_reference, reading.result) == ("14c5d75ce93.dfd.64b469", {"message_id": "14c5d75ce93.dfd.64b469"})
    assert (reading.amount_reported, reading.currency_reported) == (None, None)


def test_a_projection_of_absent_fields_is_null() -> None:
    """An answer without the optional parts is still a success; what is absent is null, never invented."""
    reading = read(REFUND, 200, {"id": "re_1"})
    assert reading.result == {"id": "re_1", "status": None, "amount": None, "currency": None}
    assert (reading.amount_reported, reading.currency_reported, reading.provider_request_id) == (None, None, None)


def test_a_number_may_be_a_reference() -> None:
    """Providers that number their things have a reference too."""
    assert read(TICKET, 201, {"id": 4711}).external_reference == "4711"


@pytest.mark.parametrize(
    "value", [True, False, 1.5, [], ["re_1"], {}, {"id": "x"}, "", " ", "two words", "x\ny", "x\x00y", "x" * 256]
)
def test_what_is_no_name_is_no_reference(value: object) -> None:
    """Prose, containers and endless texts prove no effect: unknown, not succeeded."""
    assert read(REFUND, 200, {"id": value}).outcome is Outcome.UNKNOWN


def test_the_first_row_wins() -> None:
    """The conflict answer has the same status as a refusal and stands before it."""
    assert read(REFUND, 400, CONFLICT).outcome is Outcome.UNKNOWN
    document = shipped(REFUND).document()
    document["outcomes"] = [row for row in document["outcomes"] if row["outcome"] != "unknown"]
    answer = WireAnswer(status=400, headers=(), body=json.dumps(CONFLICT).encode())
    # The negative control: without the row an effect that we forgot would count as refused.
    assert read_answer(ToolContract.from_document(document), answer).outcome is Outcome.REJECTED


def test_a_row_that_cannot_be_evaluated_decides_nothing() -> None:
    """A conflict row that fails on a hostile type does not give way to the refusal behind it."""
    document = shipped(REFUND).document()
    conflict = {"status": [400], "match": "contains(error.message, 'idempotent')", "outcome": "unknown"}
    document["outcomes"] = [conflict, {"status": [400], "has": "error", "outcome": "rejected"}]
    contract = ToolContract.from_document(document)

    def outcome(message: object) -> Outcome:
        body = json.dumps({"error": {"message": message}}).encode()
        return read_answer(contract, WireAnswer(status=400, headers=(), body=body)).outcome

    assert outcome("no such thing") is Outcome.REJECTED
    assert outcome("not idempotent") is Outcome.UNKNOWN
    assert outcome(17) is Outcome.UNKNOWN
    assert outcome(None) is Outcome.UNKNOWN


FALSE_VALUES: tuple[object, ...] = (None, False, "", [], {})
TRUE_VALUES: tuple[object, ...] = (0, "x", [0], {"a": 0}, True)


@pytest.mark.parametrize(
    ("found", "outcome"), [*((each, "rejected") for each in TRUE_VALUES), *((each, "unknown") for each in FALSE_VALUES)]
)
def test_truth_is_jmespaths(found: object, outcome: str) -> None:
    """Null, false and what is empty are false; zero is true (jmespath.org, `or` expressions)."""
    document = shipped(TICKET).document()
    document["outcomes"] = [{"status": [422], "match": "error", "outcome": "rejected"}]
    answer = WireAnswer(status=422, headers=(), body=json.dumps({"error": found}).encode())
    assert read_answer(ToolContract.from_document(document), answer).outcome is Outcome(outcome)


@pytest.mark.parametrize("outcome", ["rejected", "deferred", "succeeded", "unsent"])
def test_no_table_makes_a_server_error_certain(outcome: str) -> None:
    """Even a table that no linter saw cannot turn a 5xx, a 408 or an answered request into knowledge."""
    document = shipped(REFUND).document()
    document["outcomes"] = [{"status": [408, 500, 503, 400], "outcome": outcome, "stored": outcome == "rejected"}]
    contract = ToolContract.from_document(document)
    for status in (408, 500, 503):
        reading = read_answer(contract, WireAnswer(status=status, headers=(), body=b'{"id": "re_1"}'))
        assert (reading.outcome, reading.stored) == (Outcome.UNKNOWN, False)
    if outcome in ("succeeded", "unsent"):
        reading = read_answer(contract, WireAnswer(status=400, headers=(), body=b'{"id": "re_1"}'))
        assert (reading.outcome, reading.external_reference) == (Outcome.UNKNOWN, None)


@pytest.mark.parametrize("tool", KEYED)
def test_a_replayed_server_error_is_a_stored_failure(tool: str) -> None:
    """A 5xx that the provider says it replayed proves nothing of this attempt; a fresh one and other answers are no such thing."""
    error = stripe_error("api_error")
    assert read(tool, 500, error, Idempotent_Replayed="true").stored_failure
    assert read(tool, 503, error, idempotent_replayed="True").stored_failure
    assert not read(tool, 500, error).stored_failure
    assert not read(tool, 500, error, Idempotent_Replayed="false").stored_failure
    assert not read(tool, 402, DECLINE, Idempotent_Replayed="true").stored_failure
    assert not read(tool, 200, {"id": "x"}, Idempotent_Replayed="true").stored_failure
    assert not read(TICKET, 500, error, Idempotent_Replayed="true").stored_failure


def test_a_replayed_success_is_a_success() -> None:
    """The provider's replay of the first answer is what a resend is for."""
    assert read(REFUND, 200, {"id": "re_1"}, Idempotent_Replayed="true").outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (DECLINE, "card_declined", "words of the provider"),
        (stripe_error("card_error"), "card_error", "words of the provider"),
        (stripe_error("card_error", code="Please call +49 30 1234"), "card_error", "words of the provider"),
        (stripe_error("bad words here", code="x" * 65), None, "words of the provider"),
        (SENDGRID_ERROR, None, "words of the provider"),
        ({"error": "invalid_auth"}, "invalid_auth", "invalid_auth"),
        ({"error": "some words"}, None, "some words"),
        ({"code": "E_1", "message": "m\r\nn\x00"}, "E_1", "m  n "),
        ({"message": "x" * 501}, None, "x" * 500),
        ({"error": {"message": ["no text"], "code": 17}}, None, None),
        ([], None, None),
        (b"<html>words</html>", None, None),
    ],
)
def test_what_is_kept_of_a_failure(body: Any, code: str | None, message: str | None) -> None:
    """A code only where it looks like one, since it is recorded readable; foreign text cut, on one line, apart."""
    assert read(REFUND, 402, body).failure == Failure(provider_status=402, provider_code=code, provider_message=message)


def test_foreign_text_does_not_print_itself() -> None:
    """Readings pass near logs; the provider's words and the projection are not in their printed form."""
    assert "words of the provider" not in repr(read(REFUND, 402, DECLINE))
    assert "canary" not in repr(read(REFUND, 200, {"id": "re_1", "status": "canary"}))
    assert "canary" not in repr(WireAnswer(status=200, headers=(("X", "canary"),), body=b"canary"))


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("0", None, 0.0),
        ("120", None, 120.0),
        (" 2.5 ", None, 2.5),
        ("999999", None, 86400.0),
        ("-1", None, None),
        ("soon", None, None),
        ("", None, None),
        ("1e9", None, None),
        ("NaN", None, None),
        ("9" * 200, None, None),
        ("9" * 15, "Fri, 19 Dec 2025 11:00:00 GMT", 86400.0),
        ("Fri, 19 Dec 2025 11:00:30 GMT", "Fri, 19 Dec 2025 11:00:00 GMT", 30.0),
        ("Fri, 19 Dec 2025 10:59:30 GMT", "Fri, 19 Dec 2025 11:00:00 GMT", 0.0),
        ("Friday, 19-Dec-25 11:00:30 GMT", "Fri Dec 19 11:00:00 2025", 30.0),
        ("Fri, 19 Dec 9999 11:00:30 GMT", "Fri, 19 Dec 2025 11:00:00 GMT", 86400.0),
        ("Fri, 19 Dec 2025 11:00:30 GMT", None, None),
        ("Fri, 19 Dec 2025 11:00:30 GMT", "yesterday", None),
        ("Fri, 99 Dec 2025 11:00:30 GMT", "Fri, 19 Dec 2025 11:00:00 GMT", None),
        ("1766142060", "Fri, 19 Dec 2025 11:00:00 GMT", 60.0),
        ("1766142060", None, None),
    ],
)
def test_when_to_try_again(retry_after: str, date: str | None, seconds: float | None) -> None:
    """Seconds, a date or epoch seconds; a point in time is counted from the answer's own Date, and nobody makes us wait for ever."""
    headers = {"Retry_After": retry_after} | ({"Date": date} if date is not None else {})
    assert read(REFUND, 429, b"", **headers).retry_after_seconds == seconds
