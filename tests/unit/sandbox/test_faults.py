"""Every fault: whether the effect is committed, and what the caller gets."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx2
import pytest

BEARER = {"Authorization": "Bearer sk_test_sandbox"}
BROKEN = (httpx2.NetworkError, httpx2.RemoteProtocolError)


async def test_commit_then_drop_commits_and_closes_the_connection(provider: Any) -> None:
    """commit-then-drop: the effect is there, the answer is not, and the resend under the key is a replay of it."""
    await provider.fault("commit-then-drop")
    with pytest.raises(BROKEN):
        await provider.refund("k")
    [effect] = await provider.effects()
    again = await provider.refund("k")
    assert (again.status, again.json["id"]) == (200, effect["id"])
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(await provider.effects()) == 1


async def test_commit_then_500_is_stored_with_its_effect(provider: Any) -> None:
    """commit-then-500: the effect is there, and the key answers 500 from then on."""
    await provider.fault("commit-then-500")
    first, second = await provider.refund("k"), await provider.refund("k")
    assert (first.status, second.status) == (500, 500)
    assert first.json["error"]["type"] == "api_error"
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.body == first.body
    assert len(await provider.effects()) == 1


async def test_drop_before_commit_commits_nothing(provider: Any) -> None:
    """drop-before-commit: no effect and no answer; the resend is carried out."""
    await provider.fault("drop-before-commit")
    with pytest.raises(BROKEN):
        await provider.refund("k")
    assert await provider.effects() == []
    again = await provider.refund("k")
    assert again.status == 200
    assert "Idempotent-Replayed" not in again.headers
    assert [each["committed"] for each in await provider.requests(idempotency_key="k")] == [False, True]


async def test_delay_commits_and_answers_late(provider: Any) -> None:
    """delay: nothing is committed before the delay is over; then the answer is the normal one."""
    await provider.fault("delay", delay_seconds=0.3)
    started = time.monotonic()
    call = asyncio.create_task(provider.refund("k"))
    await provider.until(lambda: provider.requests(idempotency_key="k"))
    assert await provider.effects() == []
    answer = await call
    assert answer.status == 200
    assert time.monotonic() - started >= 0.3
    assert len(await provider.effects()) == 1


async def test_hang_commits_at_once_and_never_answers(provider: Any) -> None:
    """hang: the effect is there while the caller waits, and the connection closes after the delay."""
    await provider.fault("hang", delay_seconds=0.4)
    started = time.monotonic()
    call = asyncio.create_task(provider.refund("k"))
    [effect] = await provider.until(provider.effects)
    assert not call.done()
    resent = await provider.refund("k")
    assert resent.json["id"] == effect["id"]
    assert time.monotonic() - started < 0.4
    with pytest.raises(BROKEN):
        await call
    assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize("fault", ["slow-commit", "delay"])
async def test_slow_commit_commits_though_the_caller_has_left(provider: Any, fault: str) -> None:
    """slow-commit: the effect comes at delay_seconds, also when the caller has closed the connection long before."""
    await provider.fault(fault, delay_seconds=0.4)
    with pytest.raises(httpx2.ReadTimeout):
        await provider.refund("k", timeout_seconds=0.05)
    assert await provider.effects() == []
    [effect] = await provider.until(provider.effects)
    [received] = await provider.requests(idempotency_key="k")
    assert received["committed"] is True
    assert effect["created"] - received["received"] >= 0.4


async def test_slow_commit_answers_a_caller_who_waits(provider: Any) -> None:
    """slow-commit: who still waits at the commit gets the true answer; meanwhile the key is in use."""
    await provider.fault("slow-commit", delay_seconds=0.3)
    call = asyncio.create_task(provider.refund("k"))
    await provider.until(lambda: provider.requests(idempotency_key="k"))
    meanwhile = await provider.refund("k")
    assert (meanwhile.status, meanwhile.json["error"]["code"]) == (409, "idempotency_key_in_use")
    answer = await call
    assert answer.status == 200
    assert answer.json["id"] == (await provider.effects())[0]["id"]


async def test_truncate_body_promises_all_and_sends_half(provider: Any) -> None:
    """truncate-body: committed; Content-Length says the whole, half of it comes, then the connection closes."""
    await provider.fault("truncate-body")
    got = bytearray()

    async def take(answer: httpx2.Response) -> None:
        async for piece in answer.aiter_raw():
            got.extend(piece)

    form = {"payment_intent": "pi_1", "amount": "5"}
    async with provider.session.stream("POST", provider.url + "/v1/refunds", data=form, headers=BEARER) as answer:
        with pytest.raises(httpx2.RemoteProtocolError):
            await take(answer)
    assert answer.status_code == 200
    assert len(got) == int(answer.headers["Content-Length"]) // 2
    assert len(await provider.effects()) == 1


async def test_truncate_body_breaks_an_empty_answer_too(provider: Any) -> None:
    """truncate-body on a mail, whose answer has no body: the head itself breaks off, so no whole answer arrives."""
    await provider.fault("truncate-body", "/v3/mail/send")
    mail = {
        "personalizations": [{"to": [{"email": "a@example.org"}]}],
        "from": {"email": "b@example.org"},
        "subject": "s",
        "content": [{"type": "text/plain", "value": "t"}],
    }
    with pytest.raises(BROKEN):
        await provider.call("POST", "/v3/mail/send", json=mail)
    assert len(await provider.effects("/v3/mail/send")) == 1


@pytest.mark.parametrize(("fault", "status", "kind"), [("fail-500", 500, "api_error"), ("reject-402", 402, "card_error")])
async def test_failures_are_stored_for_the_key(provider: Any, fault: str, status: int, kind: str) -> None:
    """fail-500, reject-402: no effect, the answer is replayed for its key, another key is carried out."""
    await provider.fault(fault)
    first, second = await provider.refund("k"), await provider.refund("k")
    assert (first.status, second.status, second.body) == (status, status, first.body)
    assert first.json["error"]["type"] == kind
    assert second.headers["Idempotent-Replayed"] == "true"
    assert await provider.effects() == []
    assert (await provider.refund("k2")).status == 200


async def test_rate_limit_is_not_stored(provider: Any) -> None:
    """rate-limit: 429 with Retry-After in whole seconds, no effect, and the same key is carried out afterwards."""
    await provider.fault("rate-limit", delay_seconds=2.2)
    limited = await provider.refund("k")
    assert (limited.status, limited.headers["Retry-After"]) == (429, "3")
    assert await provider.effects() == []
    assert (await provider.refund("k")).status == 200


async def test_forget_keys_makes_a_resend_a_second_effect(provider: Any) -> None:
    """forget-keys: acts when it is planned; the same key then makes a second effect."""
    await provider.refund("k")
    assert await provider.fault("forget-keys", times=1) == {"fault": "forget-keys", "forgotten": 1}
    assert "Idempotent-Replayed" not in (await provider.refund("k")).headers
    assert len(await provider.effects()) == 2
    assert (await provider.call("GET", "/_control/faults")).json == []


async def test_faults_are_used_up_in_order(provider: Any) -> None:
    """A fault strikes as often as it says, then the next one of the path; other paths and reads do not meet it."""
    await provider.fault("fail-500", times=2)
    await provider.fault("reject-402")
    listed = (await provider.call("GET", "/_control/faults")).json
    assert [(each["fault"], each["times"]) for each in listed] == [("fail-500", 2), ("reject-402", 1)]
    assert (await provider.call("POST", "/v1/echo", json={})).status == 200
    assert (await provider.call("GET", "/v1/refunds")).status == 200
    assert [(await provider.refund()).status for _ in range(4)] == [500, 500, 402, 200]
    assert [each["fault"] for each in await provider.requests(path="/v1/refunds", method="POST")] == [
        "fail-500",
        "fail-500",
        "reject-402",
        None,
    ]


async def test_refused_requests_leave_the_fault_to_the_next(provider: Any) -> None:
    """A request refused for its credential or its parameters does not use a fault up; a replay does not use up a failure."""
    await provider.refund("before")
    await provider.fault("fail-500")
    assert (await provider.refund(colour="red")).status == 400
    assert (await provider.call("POST", "/v1/refunds", headers={"Authorization": ""})).status == 401
    assert (await provider.refund("before")).status == 200
    assert (await provider.refund("after")).status == 500


async def test_a_lost_answer_loses_the_replay_too(provider: Any) -> None:
    """commit-then-drop twice: the resend's replay is lost as well; still one effect."""
    await provider.fault("commit-then-drop", times=2)
    for _ in range(2):
        with pytest.raises(BROKEN):
            await provider.refund("k")
    assert (await provider.refund("k")).status == 200
    assert len(await provider.effects()) == 1
    assert [each["committed"] for each in await provider.requests(idempotency_key="k")] == [True, False, False]


async def test_reads_meet_the_faults_planned_for_them(provider: Any) -> None:
    """A fault with method GET strikes lookups and no writes."""
    await provider.fault("drop-before-commit", method="GET")
    assert (await provider.refund()).status == 200
    with pytest.raises(BROKEN):
        await provider.call("GET", "/v1/refunds")
    assert len((await provider.call("GET", "/v1/refunds")).json["data"]) == 1


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"path": "/v1/refunds", "fault": "explode"}, "explode"),
        ({"path": "/v1/refunds"}, "fault"),
        ({"path": "/v1/refunds", "fault": ["delay"]}, "fault"),
        ({"path": "/v1/refunds", "fault": "delay", "colour": 1}, "colour"),
        ({"fault": "delay"}, "path"),
        ({"path": "v1/refunds", "fault": "delay"}, "path"),
        ({"path": "/_control/reset", "fault": "delay"}, "path"),
        ({"path": "/v1/refunds", "fault": "delay", "times": 0}, "times"),
        ({"path": "/v1/refunds", "fault": "delay", "times": True}, "times"),
        ({"path": "/v1/refunds", "fault": "delay", "times": 1.5}, "times"),
        ({"path": "/v1/refunds", "fault": "delay", "delay_seconds": -1}, "delay_seconds"),
        ({"path": "/v1/refunds", "fault": "delay", "delay_seconds": "1"}, "delay_seconds"),
        ({"path": "/v1/refunds", "fault": "delay", "delay_seconds": 10**10}, "delay_seconds"),
        ({"path": "/v1/refunds", "fault": "delay", "method": "PUT"}, "method"),
        ([], "object"),
    ],
)
async def test_malformed_faults_are_refused_by_name(provider: Any, members: Any, named: str) -> None:
    """A fault that is unknown, lacks a member or has a wrong one is refused with 400 naming it, and is not planned."""
    reply = await provider.call("POST", "/_control/faults", json=members)
    assert reply.status == 400
    assert named in reply.json["error"]
    assert (await provider.call("GET", "/_control/faults")).json == []


async def test_reset_forgets_everything_and_abandons_held_requests(provider: Any) -> None:
    """reset: effects, keys, requests and faults are gone, and a request that was being held never commits."""
    await provider.refund("k")
    await provider.fault("slow-commit", delay_seconds=0.3)
    await provider.fault("fail-500")
    held = asyncio.create_task(provider.refund("held"))
    await provider.until(lambda: provider.requests(idempotency_key="held"))
    assert (await provider.call("POST", "/_control/reset")).status == 200
    with pytest.raises(BROKEN):
        await held
    assert await provider.effects() == []
    assert await provider.requests() == []
    again = await provider.refund("k")
    assert "Idempotent-Replayed" not in again.headers
    assert (await provider.refund("held")).status == 200
    assert len(await provider.effects()) == 2


async def test_planned_faults_can_be_dropped(provider: Any) -> None:
    """DELETE /_control/faults forgets planned faults and nothing else."""
    await provider.refund()
    await provider.fault("fail-500", times=9)
    assert (await provider.call("DELETE", "/_control/faults")).status == 200
    assert (await provider.refund()).status == 200
    assert len(await provider.effects()) == 2


async def test_a_fault_for_one_effect_among_many(provider: Any) -> None:
    """`containing` picks the request by its body, or a read by its query; others of the same path pass it by."""
    await provider.fault("fail-500", containing="pi_meant")
    await provider.fault("rate-limit", method="GET", containing="pi_meant")
    assert (await provider.refund("a", payment_intent="pi_other")).status == 200
    assert (await provider.refund("b", payment_intent="pi_meant")).status == 500
    assert (await provider.refund("c", payment_intent="pi_meant")).status == 200
    for asked, status in (("pi_other", 200), ("pi_meant", 429), ("pi_meant", 200)):
        assert (await provider.call("GET", "/v1/refunds", params={"payment_intent": asked})).status == status
