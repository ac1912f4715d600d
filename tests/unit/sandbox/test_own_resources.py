"""Tickets and echo, the list of received requests, and what lies at no provider's path."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_tickets_are_found_by_their_marker(provider: Any) -> None:
    """A ticket answers 201, is listed by its marker and read by its id."""
    made = await provider.call("POST", "/v1/tickets", json={"title": "t", "body": "b", "marker": "m1"})
    await provider.call("POST", "/v1/tickets", json={"title": "t", "marker": "m2"})
    ticket = made.json
    assert (made.status, ticket["title"], ticket["body"], ticket["marker"]) == (201, "t", "b", "m1")
    assert ticket["id"].startswith("tic_")
    found = (await provider.call("GET", "/v1/tickets", params={"marker": "m1"})).json
    assert found == {"object": "list", "data": [ticket], "has_more": False}
    assert (await provider.call("GET", "/v1/tickets", params={"marker": "m3"})).json["data"] == []
    assert len((await provider.call("GET", "/v1/tickets")).json["data"]) == 2
    assert (await provider.call("GET", f"/v1/tickets/{ticket['id']}")).json == ticket
    assert (await provider.call("GET", "/v1/tickets/tic_x")).status == 404


@pytest.mark.parametrize(
    "body", [{}, {"title": ""}, {"title": 1}, {"title": "t", "body": 1}, {"title": "t", "colour": "red"}, []]
)
async def test_wrong_tickets_are_refused(provider: Any, body: Any) -> None:
    """A ticket without title, with a member of the wrong kind or an unknown one: 400, nothing filed."""
    assert (await provider.call("POST", "/v1/tickets", json=body)).status == 400
    assert await provider.effects() == []


async def test_a_lost_ticket_is_found(provider: Any) -> None:
    """The answer to a ticket is lost: it is there under its marker, and a resend would make a second one."""
    await provider.fault("commit-then-500", "/v1/tickets")
    ticket = {"title": "t", "marker": "m"}
    assert (await provider.call("POST", "/v1/tickets", json=ticket)).status == 500
    assert len((await provider.call("GET", "/v1/tickets", params={"marker": "m"})).json["data"]) == 1
    assert (await provider.call("POST", "/v1/tickets", json=ticket)).status == 201
    assert len(await provider.effects("/v1/tickets")) == 2


async def test_echo_answers_what_it_was_given(provider: Any) -> None:
    """Any object comes back under `echo`; whatever its members are called, the effect keeps its own id and the fields whole."""
    body = {"id": "mine", "path": "/x", "deep": {"a": [1, None, "é"]}}
    echoed = (await provider.call("POST", "/v1/echo", json=body)).json
    assert echoed["echo"] == body
    assert (await provider.call("GET", f"/v1/echo/{echoed['id']}")).json == echoed
    [effect] = await provider.effects("/v1/echo")
    assert (effect["id"], effect["path"], effect["fields"], effect["deep"]) == (echoed["id"], "/v1/echo", body, body["deep"])
    assert (await provider.call("POST", "/v1/echo", json=[1])).status == 400
    assert (await provider.call("GET", "/v1/echo/ech_x")).status == 404


async def test_every_received_request_is_listed(provider: Any) -> None:
    """Method, path, key, marker, traceparent, time, status and whether it committed: of every request, refused ones included."""
    headers = {"Idempotency-Key": "k", "traceparent": TRACEPARENT}
    form = {"payment_intent": "pi_1", "amount": "1", "metadata[outbox]": "m1"}
    for _ in range(2):
        await provider.call("POST", "/v1/refunds", data=form, headers=headers)
    await provider.refund(amount="0")
    await provider.call("GET", "/v1/tickets", params={"marker": "m1"})
    await provider.call("GET", "/nowhere")
    first, replay, refused, lookup, nowhere = await provider.requests()
    assert (first["method"], first["path"], first["idempotency_key"], first["marker"]) == ("POST", "/v1/refunds", "k", "m1")
    assert (first["traceparent"], first["committed"], first["replayed"], first["status"]) == (TRACEPARENT, True, False, 200)
    assert (replay["committed"], replay["replayed"], replay["status"]) == (False, True, 200)
    assert (refused["committed"], refused["status"], refused["idempotency_key"]) == (False, 400, None)
    assert (lookup["method"], lookup["query"], lookup["marker"], lookup["status"]) == ("GET", "marker=m1", "m1", 200)
    assert nowhere["status"] == 404
    assert first["received"] <= replay["received"] <= refused["received"]
    [effect] = await provider.effects()
    assert (effect["request_id"], effect["traceparent"]) == (first["request_id"], TRACEPARENT)
    assert await provider.requests(idempotency_key="k") == [first, replay]
    assert await provider.requests(marker="m1", method="GET") == [lookup]
    assert await provider.requests(path="/nowhere") == [nowhere]


async def test_a_request_cut_off_in_its_body_is_listed_and_makes_nothing(provider: Any) -> None:
    """The caller dies while writing: the request is listed as incomplete, nothing is committed, no answer is tried."""
    address = provider.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(address[0], int(address[1]))
    head = "POST /v1/refunds HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nIdempotency-Key: cut\r\nContent-Length: 50\r\n\r\n"
    writer.write(head.encode() + b"payment_intent=pi_1&am")
    await writer.drain()
    writer.close()
    [request] = await provider.until(lambda: provider.requests(idempotency_key="cut"))
    assert (request["complete"], request["committed"], request["status"]) == (False, False, None)
    assert await provider.effects() == []


async def test_control_calls_are_no_provider_requests(provider: Any) -> None:
    """Control calls are not listed as received; a mistyped one is refused by name."""
    assert (await provider.call("GET", "/_control/effect")).status == 404
    assert (await provider.call("GET", "/_control/effects", params={"pat": "/v1/refunds"})).status == 400
    assert (await provider.call("GET", "/_control/requests", params={"key": "k"})).status == 400
    assert await provider.requests() == []
