"""One trace from the caller to the provider, seen by an OTLP receiver in a process of its own, and where a call's time went.

Runs against `outbox up` with the embedded Postgres and Redis (none where there is no Redis).
"""

import re
import secrets
from collections.abc import Iterator
from uuid import UUID

import pytest
from tests.support.effects import Wish, a_mail, a_refund
from tests.support.traced_up import TracedUp, running_traced

ON_THE_WAY = ("outbox.reserve", "outbox.execute", "outbox.send", "outbox.settle")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedUp]:
    """One stack for this module."""
    with running_traced(tmp_path_factory.mktemp("up")) as started:
        yield started


@pytest.fixture
def traced(stack: TracedUp) -> Iterator[TracedUp]:
    """The stack, asked for its invariants when the test is over."""
    with stack.up.checked():
        yield stack


def caller() -> tuple[str, str, str]:
    """A caller's trace id, span id and `traceparent`."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-01"


def sent_by(traced: TracedUp, wish: Wish) -> list[str]:
    """The `traceparent` of each request by which the provider made the wished effect."""
    ids = {one["request_id"] for one in wish.effects(traced.up)}
    return [one["traceparent"] for one in traced.up.sandbox.requests(path=wish.path) if one["request_id"] in ids]


def test_one_trace_from_the_caller_to_the_provider(traced: TracedUp) -> None:
    """Reserve, execute, send and settle are one trace: the caller's, parent by parent, up to the request at the provider."""
    trace_id, span_id, traceparent = caller()
    wish = a_refund()
    assert wish.call(traced.up, traceparent=traceparent).status == 200
    spans = traced.wait_spans(trace_id, *ON_THE_WAY)
    reserve, execute, send, settle = (spans[name] for name in ON_THE_WAY)
    assert reserve.parent_id == span_id
    assert execute.parent_id == reserve.span_id
    assert send.parent_id == settle.parent_id == execute.span_id
    assert [one.service for one in (reserve, execute, send, settle)] == ["outbox-api", *["outbox-worker"] * 3]
    assert (reserve.kind, send.kind) == ("SERVER", "CLIENT")
    assert len(traced.spans(trace_id)) == len(ON_THE_WAY)
    assert sent_by(traced, wish) == [f"00-{trace_id}-{send.span_id}-01"]


def test_every_ledger_entry_carries_the_trace(traced: TracedUp) -> None:
    """The ledger entries of a reservation, as the API lists them, carry the trace id; a search by it finds the reservation."""
    trace_id, _, traceparent = caller()
    told = a_mail().call(traced.up, traceparent=traceparent).document
    listed = traced.up.send("GET", f"/v1/ledger-entries?reservation_id={told['reservation_id']}&limit=100", admin=True)
    assert listed.status == 200, listed.body
    entries = listed.document["items"]
    assert [(one["from"], one["to"]) for one in entries] == [
        (None, "reserved"),
        ("reserved", "executing"),
        ("executing", "succeeded"),
    ]
    assert {one["trace_id"] for one in entries} == {trace_id}
    found = traced.up.send("GET", f"/v1/reservations?trace_id={trace_id}", admin=True)
    assert [one["reservation_id"] for one in found.document["items"]] == [told["reservation_id"]]


def test_a_call_without_trace_begins_one(traced: TracedUp) -> None:
    """Without a `traceparent`, or with a broken one, a new trace is begun, and it too is one from reserve to the provider."""
    for headers in ({}, {"traceparent": "00-zz-1-01"}):
        wish = a_refund()
        told = wish.call(traced.up, **headers).document
        [trace_id] = {
            row["trace_id"]
            for row in traced.up.ledger.rows(
                "select trace_id from ledger_entries where reservation_id = $1", UUID(told["reservation_id"])
            )
        }
        spans = traced.wait_spans(trace_id, *ON_THE_WAY)
        assert spans["outbox.reserve"].parent_id == ""
        assert [one.split("-")[1] for one in sent_by(traced, wish)] == [trace_id]


def test_a_resend_stays_in_the_trace(traced: TracedUp) -> None:
    """The reply is lost and the refund is sent again: both requests at the provider belong to the caller's trace."""
    trace_id, _, traceparent = caller()
    wish = a_refund()
    traced.up.sandbox.plan(wish.path, "commit-then-drop")
    assert wish.call(traced.up, traceparent=traceparent).status == 200
    [effect] = wish.effects(traced.up)
    requests = traced.up.sandbox.requests(idempotency_key=effect["idempotency_key"])
    assert [one["traceparent"].split("-")[1] for one in requests] == [trace_id] * 2
    assert len({one["traceparent"] for one in requests}) == 2
    traced.up.wait(
        lambda: sorted(one.name for one in traced.spans(trace_id)) == sorted([*ON_THE_WAY, *ON_THE_WAY[1:]]),
        "both attempts' spans",
    )


def test_server_timing(traced: TracedUp) -> None:
    """`Server-Timing` tells reserve, queue, provider and settle; the provider's own delay stands under provider."""
    wish = a_refund()
    traced.up.sandbox.plan(wish.path, "delay", delay_seconds=0.5)
    first = timing(wish.call(traced.up).headers["server-timing"])
    assert list(first) == ["reserve", "queue", "provider", "settle"]
    assert 500 <= first["provider"] < 5_000
    assert 0 < first["reserve"] < 5_000
    assert 0 < first["settle"] < 5_000
    replay = timing(wish.call(traced.up).headers["server-timing"])
    assert list(replay) == ["reserve", "queue", "provider", "settle"]
    assert (replay["queue"], replay["provider"], replay["settle"]) == (0, 0, 0)
    refused = traced.up.send("POST", "/v1/tool-calls", body=b"{}").headers["server-timing"]
    assert list(timing(refused)) == ["reserve", "queue", "provider", "settle"]
    page = traced.up.metrics()
    for name in ("reserve", "queue", "provider", "settle"):
        assert re.search(rf'^outbox_{name}_seconds_count{{tool="stripe.refund.create"}} [1-9]', page, re.MULTILINE), name


def timing(header: str) -> dict[str, float]:
    """Names and milliseconds of a `Server-Timing` header."""
    return {name: float(milliseconds) for name, milliseconds in re.findall(r"(\w+);dur=([0-9.]+)", header)}
