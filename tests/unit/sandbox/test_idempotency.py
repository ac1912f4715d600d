"""Idempotency keys as Stripe documents them: what is stored, for how long, and who is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

DAY_SECONDS = 24 * 3600


async def test_success_is_replayed_with_the_same_bytes(provider: Any) -> None:
    """The same key and parameters, in whatever order: the first answer's bytes, marked as replayed, one effect."""
    first = await provider.refund("k", reason="duplicate")
    form = {"reason": "duplicate", "amount": "1200", "payment_intent": "pi_1"}
    second = await provider.call("POST", "/v1/refunds", data=form, headers={"Idempotency-Key": "k"})
    assert (second.status, second.body) == (200, first.body)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.headers["Original-Request"] == first.headers["Request-Id"] != second.headers["Request-Id"]
    assert len(await provider.effects()) == 1


async def test_without_key_every_request_is_an_effect(provider: Any) -> None:
    """No key: two equal requests are two effects."""
    await provider.refund()
    await provider.refund()
    assert len(await provider.effects()) == 2


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/refunds", {"payment_intent": "pi_1", "amount": "1300"}),
        ("/v1/refunds", {"payment_intent": "pi_1"}),
        ("/v1/refunds", {"payment_intent": "pi_1", "amount": "1200", "unknown": "1"}),
        ("/v1/customers", {"email": "a@example.org"}),
    ],
)
async def test_other_parameters_under_a_used_key_are_refused(provider: Any, path: str, form: dict[str, str]) -> None:
    """Mismatch: 400 idempotency_error, also for another path, and no second effect."""
    await provider.refund("k")
    reply = await provider.call("POST", path, data=form, headers={"Idempotency-Key": "k"})
    assert (reply.status, reply.json["error"]["type"]) == (400, "idempotency_error")
    assert len(await provider.effects()) == 1


async def test_validation_failures_and_401_are_not_stored(provider: Any) -> None:
    """A key whose request was refused for its parameters or its credential is still free."""
    assert (await provider.refund("k", amount="0")).status == 400
    unauthorised = await provider.call("POST", "/v1/refunds", headers={"Authorization": "", "Idempotency-Key": "k"})
    assert unauthorised.status == 401
    assert (await provider.refund("k")).status == 200


async def test_refusals_at_execution_are_not_stored(provider: Any) -> None:
    """A refund beyond what is left is refused and takes nothing, its key included."""
    too_much = await provider.refund("k", amount="100000000")
    assert (too_much.status, too_much.json["error"]["param"]) == (400, "amount")
    assert (await provider.refund("k")).status == 200


async def test_keys_are_forgotten_after_a_day(provider: Any) -> None:
    """A key answers for 24 hours; after that the same request is executed again."""
    await provider.refund("k")
    provider.clock.ahead_seconds = DAY_SECONDS - 60
    assert (await provider.refund("k")).headers["Idempotent-Replayed"] == "true"
    provider.clock.ahead_seconds = DAY_SECONDS + 60
    assert "Idempotent-Replayed" not in (await provider.refund("k")).headers
    assert len(await provider.effects()) == 2


async def test_concurrent_requests_with_one_key(provider: Any) -> None:
    """Fifty at once while the first is held: one effect, every other one 409 idempotency_key_in_use, then replays."""
    await provider.fault("slow-commit", delay_seconds=0.5)
    first = asyncio.create_task(provider.refund("k"))
    await provider.until(lambda: provider.requests(idempotency_key="k"))
    others = await asyncio.gather(*(provider.refund("k") for _ in range(50)))
    assert {(each.status, each.json["error"]["code"]) for each in others} == {(409, "idempotency_key_in_use")}
    assert {each.json["error"]["type"] for each in others} == {"idempotency_error"}
    assert (await first).status == 200
    assert (await provider.refund("k")).body == (await first).body
    assert len(await provider.effects()) == 1


async def test_keys_mean_nothing_on_reads(provider: Any) -> None:
    """A GET with a key is answered afresh."""
    headers = {"Idempotency-Key": "k"}
    assert (await provider.call("GET", "/v1/refunds", headers=headers)).json["data"] == []
    await provider.refund("k")
    reply = await provider.call("GET", "/v1/refunds", headers=headers)
    assert len(reply.json["data"]) == 1
    assert "Idempotent-Replayed" not in reply.headers


async def test_keys_longer_than_255_are_refused(provider: Any) -> None:
    """255 characters are a key, 256 are not."""
    assert (await provider.refund("k" * 255)).status == 200
    assert (await provider.refund("k" * 256)).status == 400
    assert len(await provider.effects()) == 1


async def test_echo_has_the_same_keys_in_its_own_space(provider: Any) -> None:
    """Echo replays, refuses another body, and does not meet Stripe's keys."""
    await provider.refund("k")

    async def echo(body: dict[str, Any]) -> Any:
        return await provider.call("POST", "/v1/echo", json=body, headers={"Idempotency-Key": "k"})

    first, second, other = await echo({"a": 1, "b": 2}), await echo({"b": 2, "a": 1}), await echo({"a": 2})
    assert (first.status, first.json["echo"]) == (200, {"a": 1, "b": 2})
    assert first.json["id"].startswith("ech_")
    assert (second.body, second.headers["Idempotent-Replayed"]) == (first.body, "true")
    assert (other.status, other.json["error"]["type"]) == (400, "idempotency_error")
    assert len(await provider.effects("/v1/echo")) == 1


@pytest.mark.parametrize("path", ["/v1/tickets", "/v3/mail/send"])
async def test_resources_without_keys_ignore_them(provider: Any, path: str) -> None:
    """Tickets and mails: the same key twice is two effects."""
    mail = {
        "personalizations": [{"to": [{"email": "a@example.org"}]}],
        "from": {"email": "b@example.org"},
        "subject": "s",
        "content": [{"type": "text/plain", "value": "t"}],
    }
    body = {"title": "t"} if path == "/v1/tickets" else mail
    for _ in range(2):
        reply = await provider.call("POST", path, json=body, headers={"Idempotency-Key": "k"})
        assert reply.status in (201, 202)
        assert "Idempotent-Replayed" not in reply.headers
    assert len(await provider.effects(path)) == 2
