"""Labels, records, messages and scheduled mails: what a repeated, a late and a cancelled request does."""

from __future__ import annotations

from typing import Any

import pytest

from outbox_sandbox.strategies import MESSAGE_KEY_SECONDS


async def test_a_label_is_what_was_set_last(provider: Any) -> None:
    """Setting is absolute: the same again changes nothing, another value replaces it, each setting is listed."""
    for value in ("red", "red", "blue"):
        assert (await provider.call("POST", "/v1/labels", json={"name": "colour", "value": value})).status == 200
    [stands] = (await provider.call("GET", "/v1/labels", params={"name": "colour"})).json["data"]
    assert stands["value"] == "blue"
    assert (await provider.call("GET", "/v1/labels", params={"name": "size"})).json["data"] == []
    assert [one["value"] for one in await provider.effects("/v1/labels")] == ["red", "red", "blue"]


async def test_an_identity_is_taken_for_ever(provider: Any) -> None:
    """A second record under an id is 409, whatever it carries; another id is another record."""
    first = await provider.call("POST", "/v1/records", json={"id": "r1", "title": "t"})
    assert (first.status, first.json["id"], first.json["body"]) == (201, "r1", None)
    for title in ("t", "other"):
        refused = await provider.call("POST", "/v1/records", json={"id": "r1", "title": title})
        assert (refused.status, refused.json["error"]["code"]) == (409, "already_exists")
    assert (await provider.call("POST", "/v1/records", json={"id": "r2", "title": "t"})).status == 201
    found = (await provider.call("GET", "/v1/records", params={"id": "r1"})).json
    assert found == {"object": "list", "data": [first.json], "has_more": False}
    assert len(await provider.effects("/v1/records")) == 2


async def test_a_message_is_recognised_for_a_while(provider: Any) -> None:
    """The key of a message replays for so many seconds; afterwards it is a second message."""
    body, key = {"text": "t", "marker": "m"}, {"Idempotency-Key": "k"}
    first = await provider.call("POST", "/v1/messages", json=body, headers=key)
    provider.clock.ahead_seconds = MESSAGE_KEY_SECONDS - 1
    again = await provider.call("POST", "/v1/messages", json=body, headers=key)
    assert (again.json, again.headers["Idempotent-Replayed"]) == (first.json, "true")
    provider.clock.ahead_seconds = MESSAGE_KEY_SECONDS + 1
    assert (await provider.call("POST", "/v1/messages", json=body, headers=key)).json["id"] != first.json["id"]
    assert len((await provider.call("GET", "/v1/messages", params={"marker": "m"})).json["data"]) == 2


async def mail(provider: Any, batch: str, seconds: int = 60) -> int:
    """Asks for a mail; gives the status."""
    body = {"text": "t", "batch": batch, "send_in_seconds": seconds}
    return int((await provider.call("POST", "/v1/mails", json=body)).status)


async def states(provider: Any) -> list[tuple[str, str]]:
    """Batch and state of every mail, newest first."""
    found = (await provider.call("GET", "/v1/mails")).json["data"]
    return [(one["batch"], one["state"]) for one in found]


async def test_a_mail_goes_out_when_it_is_due(provider: Any) -> None:
    """Accepted, it is scheduled; it is sent once its time has come, and cannot be called off then."""
    assert await mail(provider, "b1") == 202
    assert await states(provider) == [("b1", "scheduled")]
    provider.clock.ahead_seconds = 61
    assert await states(provider) == [("b1", "sent")]
    late = await provider.call("POST", "/v1/mails/cancel", json={"batch": "b1"})
    assert (late.status, late.json["error"]["code"]) == (409, "already_sent")


async def test_a_cancelled_batch_takes_nothing_more(provider: Any) -> None:
    """Called off in time it never goes out, and what arrives for the batch afterwards is refused; also if nothing had come yet."""
    assert await mail(provider, "b1") == 202
    for batch in ("b1", "b2"):
        cancelled = await provider.call("POST", "/v1/mails/cancel", json={"batch": batch})
        assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled")
        assert await mail(provider, batch) == 410
    assert await mail(provider, "b3") == 202
    provider.clock.ahead_seconds = 61
    assert await states(provider) == [("b3", "sent"), ("b1", "cancelled")]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/labels", {"name": "n"}),
        ("/v1/labels", {"name": "n", "value": 1}),
        ("/v1/records", {"id": "", "title": "t"}),
        ("/v1/records", {"id": "r", "title": "t", "colour": "red"}),
        ("/v1/messages", {}),
        ("/v1/mails", {"text": "t", "batch": "b"}),
        ("/v1/mails", {"text": "t", "batch": "b", "send_in_seconds": True}),
        ("/v1/mails/cancel", {}),
    ],
)
async def test_what_is_malformed_is_refused(provider: Any, path: str, body: Any) -> None:
    """A member that is missing, unknown or of another kind: 400, nothing made."""
    assert (await provider.call("POST", path, json=body)).status == 400
    assert await provider.effects() == []


@pytest.mark.parametrize("path", ["/v1/labels", "/v1/records", "/v1/messages", "/v1/mails"])
async def test_lists_take_their_own_filter_only(provider: Any, path: str) -> None:
    """A filter that a list does not know is refused rather than ignored."""
    assert (await provider.call("GET", path, params={"colour": "red"})).status == 400
    assert (await provider.call("GET", f"{path}/x")).status == 404
