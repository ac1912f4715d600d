"""The sandbox as Stripe: its shapes, its refusals, its lists, and Stripe's own SDK against it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import stripe
from openapi_schema_validator import OAS30Validator


def sdk(url: str, retries: int = 0) -> stripe.StripeClient:
    """Stripe's client pointed at the sandbox."""
    return stripe.StripeClient(
        "sk_test_sandbox", base_addresses={"api": url}, max_network_retries=retries, http_client=stripe.RequestsClient(timeout=10)
    )


async def test_sdk_creates_and_finds_a_refund(provider: Any) -> None:
    """Stripe's SDK creates a refund under a key, gets the same one for the key, lists it and reads it."""
    client = sdk(provider.url)

    def play() -> tuple[Any, Any, Any, Any]:
        params: Any = {"payment_intent": "pi_sdk", "amount": 700, "metadata": {"outbox": "m1", "case": "8841"}}
        first = client.v1.refunds.create(params, {"idempotency_key": "k"})
        again = client.v1.refunds.create(params, {"idempotency_key": "k"})
        listed = client.v1.refunds.list({"payment_intent": "pi_sdk"})
        return first, again, listed, client.v1.refunds.retrieve(first.id)

    first, again, listed, read = await asyncio.to_thread(play)
    assert (first.amount, first.currency, first.status, first.payment_intent) == (700, "eur", "succeeded", "pi_sdk")
    assert first.metadata["outbox"] == "m1"
    assert again.id == read.id == first.id
    assert [each.id for each in listed.data] == [first.id]
    [effect] = await provider.effects()
    assert (effect["id"], effect["amount"], effect["marker"], effect["idempotency_key"]) == (first.id, 700, "m1", "k")


async def test_sdk_understands_the_errors(provider: Any) -> None:
    """Each refusal comes out of the SDK as the exception Stripe's own answer would raise."""
    client = sdk(provider.url)
    await provider.fault("reject-402")
    await provider.fault("rate-limit")
    await provider.fault("fail-500")
    params: Any = {"payment_intent": "pi_sdk", "amount": 700}
    for expected in (stripe.CardError, stripe.RateLimitError, stripe.APIError):
        with pytest.raises(expected):
            await asyncio.to_thread(client.v1.refunds.create, params)
    unknown: Any = {**params, "colour": "red"}
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await asyncio.to_thread(client.v1.refunds.create, unknown)
    assert (refused.value.param, refused.value.code) == ("colour", "parameter_unknown")
    await asyncio.to_thread(client.v1.refunds.create, params, {"idempotency_key": "k"})
    other: Any = {**params, "amount": 701}
    with pytest.raises(stripe.IdempotencyError):
        await asyncio.to_thread(client.v1.refunds.create, other, {"idempotency_key": "k"})
    with pytest.raises(stripe.AuthenticationError):
        await asyncio.to_thread(stripe.StripeClient("sk_test_expired", base_addresses={"api": provider.url}).v1.refunds.list)


async def test_sdk_retry_after_a_lost_answer_is_one_effect(provider: Any) -> None:
    """The SDK's own retry after a lost answer meets the stored one: two requests, one effect."""
    await provider.fault("commit-then-drop")
    params: Any = {"payment_intent": "pi_sdk", "amount": 700}
    refund = await asyncio.to_thread(sdk(provider.url, retries=2).v1.refunds.create, params)
    assert [each["id"] for each in await provider.effects()] == [refund.id]
    assert len(await provider.requests(path="/v1/refunds")) == 2


async def test_sdk_pages_through_a_list(provider: Any) -> None:
    """Auto-paging by starting_after sees every refund once, newest first."""
    made = [(await provider.refund(payment_intent="pi_many", amount=str(1 + place))).json["id"] for place in range(7)]
    await provider.refund(payment_intent="pi_other")
    client = sdk(provider.url)
    params: Any = {"payment_intent": "pi_many", "limit": 3}
    seen = await asyncio.to_thread(lambda: [each.id for each in client.v1.refunds.list(params).auto_paging_iter()])
    assert seen == made[::-1]


async def test_lists_read_in_both_directions(provider: Any) -> None:
    """starting_after gives older ones, ending_before the nearest newer ones, both newest first; has_more says if there are more."""
    made = [(await provider.refund(amount=str(1 + place))).json["id"] for place in range(5)]

    async def page(**parameters: str) -> tuple[list[int], bool]:
        reply = (await provider.call("GET", "/v1/refunds", params=parameters)).json
        return [made.index(each["id"]) for each in reply["data"]], reply["has_more"]

    assert await page(limit="2") == ([4, 3], True)
    assert await page(limit="2", starting_after=made[3]) == ([2, 1], True)
    assert await page(limit="2", starting_after=made[1]) == ([0], False)
    assert await page(limit="2", ending_before=made[1]) == ([3, 2], True)
    assert await page(limit="2", ending_before=made[2]) == ([4, 3], False)
    assert await page(charge="ch_1") == ([4, 3, 2, 1, 0], False)
    assert await page(charge="ch_1", payment_intent="pi_2") == ([], False)
    assert await page(payment_intent="pi_2") == ([], False)


async def test_lists_keep_to_a_range_of_creation_times(provider: Any) -> None:
    """created with gt, gte, lt, lte and as one second."""
    early = (await provider.refund()).json
    provider.clock.ahead_seconds = 1000
    late = (await provider.refund()).json

    async def found(parameter: str, second: int) -> list[str]:
        reply = (await provider.call("GET", "/v1/refunds", params={parameter: str(second)})).json
        return [each["id"] for each in reply["data"]]

    assert await found("created[gte]", late["created"]) == [late["id"]]
    assert await found("created[gt]", late["created"]) == []
    assert await found("created[lte]", early["created"]) == [early["id"]]
    assert await found("created[lt]", early["created"]) == []
    assert await found("created", early["created"]) == [early["id"]]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("colour=red", "colour"),
        ("email=a", "email"),
        ("starting_after=re_none", "starting_after"),
        ("starting_after=re_1&ending_before=re_2", "ending_before"),
        ("created[around]=1", "around"),
    ],
)
async def test_lists_refuse_what_they_do_not_know(provider: Any, query: str, param: str) -> None:
    """A list parameter that is unknown or wrong is refused with its name."""
    reply = await provider.call("GET", f"/v1/refunds?{query}")
    assert (reply.status, reply.json["error"]["param"]) == (400, param)


async def test_a_refund_without_amount_gives_back_everything(provider: Any) -> None:
    """Without amount all that is left is refunded, and then nothing is."""
    await provider.refund(amount="9")
    whole = await provider.call("POST", "/v1/refunds", data={"payment_intent": "pi_1"})
    assert whole.json["amount"] == 99_999_999 - 9
    nothing = await provider.refund(amount="1")
    assert (nothing.status, nothing.json["error"]["code"]) == (400, "charge_already_refunded")
    assert (await provider.refund(payment_intent="pi_2")).status == 200


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"amount": "1"}, "payment_intent"),
        ({"payment_intent": "", "amount": "1"}, "payment_intent"),
        ({"payment_intent": "in_1", "amount": "1"}, "payment_intent"),
        ({"payment_intent": "pi_1", "charge": "ch_1"}, "charge"),
        ({"charge": "pi_1"}, "charge"),
        ({"payment_intent": "pi_1", "amount": "0"}, "amount"),
        ({"payment_intent": "pi_1", "amount": "-5"}, "amount"),
        ({"payment_intent": "pi_1", "amount": "1.5"}, "amount"),
        ({"payment_intent": "pi_1", "amount": ""}, "amount"),
        ({"payment_intent": "pi_1", "amount": "1", "reason": "because"}, "reason"),
        ({"payment_intent": "pi_1", "amount": "1", "currency": "usd"}, "currency"),
        ({"payment_intent": "pi_1", "amount": "1", "metadata": "text"}, "metadata"),
        ({"payment_intent": "pi_1", "amount": "1", "metadata[a]": "v" * 501}, "metadata[a]"),
        ({"payment_intent": "pi_1", "amount": "1", "metadata[a][b]": "v"}, "metadata[a]"),
        ({"payment_intent": "pi_1", "amount": "1", "state": "x"}, "state"),
    ],
)
async def test_wrong_refunds_are_refused_by_name(provider: Any, form: dict[str, str], param: str) -> None:
    """A refund with a wrong, missing or unknown parameter: 400 invalid_request_error naming it, no effect."""
    reply = await provider.call("POST", "/v1/refunds", data=form)
    assert (reply.status, reply.json["error"]["type"], reply.json["error"]["param"]) == (400, "invalid_request_error", param)
    assert await provider.effects() == []


async def test_only_forms_are_taken(provider: Any) -> None:
    """JSON on a v1 path, a broken form and text that is not UTF-8 are refused."""
    assert (await provider.call("POST", "/v1/refunds", json={"payment_intent": "pi_1"})).status == 400
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for body in (b"a[b=1", b"=1", b"a=1&a[b]=2", b"a=%ff", b"\xff=1", b"a" + b"[b]" * 9 + b"=1"):
        assert (await provider.call("POST", "/v1/refunds", content=body, headers=form)).status == 400, body
    assert await provider.effects() == []


@pytest.mark.parametrize("authorization", ["", "Basic eA==", "Bearer", "Bearer sk_live_123456789", "Bearer sk_test_expired"])
async def test_a_usable_key_is_required(provider: Any, authorization: str) -> None:
    """No key, a live one, an expired one: 401 with Stripe's error body, on reads and writes."""
    for method in ("GET", "POST"):
        reply = await provider.call(method, "/v1/refunds", headers={"Authorization": authorization})
        assert (reply.status, reply.json["error"]["type"]) == (401, "invalid_request_error")
        assert reply.headers["Request-Id"].startswith("req_")


async def test_customers_are_found_by_email_and_id(provider: Any) -> None:
    """A customer is kept as sent, listed by email and read by id."""
    form = {"email": "a@example.org", "name": "A", "metadata[outbox]": "m"}
    made = (await provider.call("POST", "/v1/customers", data=form)).json
    await provider.call("POST", "/v1/customers", data={"email": "b@example.org"})
    assert (made["object"], made["email"], made["name"], made["metadata"]) == ("customer", "a@example.org", "A", {"outbox": "m"})
    assert made["id"].startswith("cus_")
    listed = (await provider.call("GET", "/v1/customers", params={"email": "a@example.org"})).json
    assert listed == {"object": "list", "data": [made], "has_more": False, "url": "/v1/customers"}
    assert (await provider.call("GET", f"/v1/customers/{made['id']}")).json == made
    assert (await provider.call("POST", "/v1/customers", data={"email": "nobody"})).json["error"]["code"] == "email_invalid"
    assert (await provider.call("POST", "/v1/customers", data={"emial": "x"})).json["error"]["code"] == "parameter_unknown"


async def test_events_carry_the_key_and_the_request_that_caused_them(provider: Any) -> None:
    """An event of each effect names its idempotency key and request id; a replay causes none."""
    refund = await provider.refund("k")
    await provider.refund("k")
    await provider.call("POST", "/v1/customers", data={"email": "a@example.org"})
    everything = (await provider.call("GET", "/v1/events")).json["data"]
    assert [each["type"] for each in everything] == ["customer.created", "refund.created"]
    [event] = (await provider.call("GET", "/v1/events", params={"type": "refund.created"})).json["data"]
    assert event["request"] == {"id": refund.headers["Request-Id"], "idempotency_key": "k"}
    assert event["data"]["object"] == refund.json
    assert (await provider.call("GET", f"/v1/events/{event['id']}")).json == event
    several = (await provider.call("GET", "/v1/events?types[]=refund.created&types[]=payout.paid")).json["data"]
    assert several == [event]
    assert (await provider.call("GET", "/v1/events?type=payout.paid")).json["data"] == []


@pytest.mark.parametrize(
    "path", ["/v1/refunds/re_x", "/v1/customers/re_x", "/v1/events/evt_x", "/v1/events/x", "/v1/refunds/a/b"]
)
async def test_what_does_not_exist_is_404(provider: Any, path: str) -> None:
    """An unknown id and an unknown path: 404 in Stripe's shape."""
    reply = await provider.call("GET", path)
    assert (reply.status, reply.json["error"]["type"]) == (404, "invalid_request_error")


async def test_a_thing_is_not_read_as_another(provider: Any) -> None:
    """A refund's id is no customer's id."""
    refund = (await provider.refund()).json["id"]
    assert (await provider.call("GET", f"/v1/customers/{refund}")).status == 404
    assert (await provider.call("POST", "/v1/events", data={})).status == 404
    assert (await provider.call("DELETE", f"/v1/refunds/{refund}")).status == 405


async def test_answers_have_the_published_shapes(provider: Any, specs_dir: Path) -> None:
    """Refund, customer, event, list and error validate against Stripe's published schemas."""
    document = json.loads((specs_dir / "stripe.json").read_text())

    def check(schema: str, answer: Any) -> None:
        validator = OAS30Validator({"$ref": f"#/components/schemas/{schema}", "components": document["components"]})
        assert not [problem.message for problem in validator.iter_errors(answer)]

    refund = await provider.refund("k", reason="duplicate", **{"metadata[outbox]": "m"})
    check("refund", refund.json)
    customer = await provider.call("POST", "/v1/customers", data={"email": "a@example.org", "name": "A"})
    check("customer", customer.json)
    events = (await provider.call("GET", "/v1/events")).json["data"]
    assert len(events) == 2
    for event in events:
        check("event", event)
    check("error", (await provider.refund(amount="0")).json)
    listed = document["paths"]["/v1/refunds"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    problems = OAS30Validator({**listed, "components": document["components"]}).iter_errors(
        (await provider.call("GET", "/v1/refunds")).json
    )
    assert not [problem.message for problem in problems]


async def test_every_published_parameter_is_taken(provider: Any, specs_dir: Path) -> None:
    """No parameter that Stripe publishes for these calls is refused as unknown."""
    operations = json.loads((specs_dir / "stripe-params.json").read_text())["operations"]
    for path in ("/v1/refunds", "/v1/customers"):
        for name in operations[f"POST {path}"]["params"]:
            reply = await provider.call("POST", path, data={name: "1"})
            assert reply.status == 200 or reply.json["error"].get("code") != "parameter_unknown", name
    for name in operations["GET /v1/events"]["params"]:
        reply = await provider.call("GET", "/v1/events", params={name: "1"})
        assert reply.status == 200 or reply.json["error"].get("code") != "parameter_unknown", name
