"""Bodies that are not what they should be: 4xx that names the path, before any row is written."""

import json
from collections.abc import AsyncIterator

import httpx2
from tests.support.api import Scene, problem_of, refund, until


def deep(levels: int) -> bytes:
    """A call whose whole body has this many levels of nesting; the body and its input are two of them."""
    inner = "[" * (levels - 2) + "]" * (levels - 2)
    return b'{"tool": "sandbox.echo", "input": {"x": ' + inner.encode() + b'}, "run": "r"}'


BAD = [
    (b"", 400, "malformed-body", "$"),
    (b"{", 400, "malformed-body", "$"),
    (b"\xff\xfe", 400, "malformed-body", "$"),
    (b'{"tool": "sandbox.echo", "input": {"amount": NaN}}', 400, "malformed-body", "$.input.amount"),
    (b'{"tool": "sandbox.echo", "input": {"amount": -Infinity}}', 400, "malformed-body", "$.input.amount"),
    (b'{"tool": "sandbox.echo", "input": {"a": 1, "a": 2}}', 400, "malformed-body", "$.input.a"),
    (b'{"tool": "sandbox.echo", "input": {"a": 9007199254740993}}', 400, "malformed-body", "$.input.a"),
    (b'{"tool": "sandbox.echo", "input": {"a": "\\ud800"}}', 400, "malformed-body", "$.input.a"),
    (deep(65), 400, "too-deep", None),
    (b'{"tool": "sandbox.echo", "input": {"a": "' + b"x" * (1 << 20) + b'"}}', 413, "too-large", "$"),
    (b'"text"', 422, "invalid-input", "$"),
    (b"[]", 422, "invalid-input", "$"),
    (b"null", 422, "invalid-input", "$"),
    (b'{"tool": 1, "input": {}}', 422, "invalid-input", "$.tool"),
    (b'{"tool": "sandbox.echo", "input": []}', 422, "invalid-input", "$.input"),
    (b'{"tool": "sandbox.echo", "input": {}, "Input": {}}', 422, "invalid-input", "$.Input"),
    (b'{"tool": "sandbox.echo", "input": {}, "occurrence": 1.5}', 422, "invalid-input", "$.occurrence"),
    (b'{"tool": "sandbox.echo", "input": {}, "occurrence": true}', 422, "invalid-input", "$.occurrence"),
    (b'{"tool": "sandbox.echo", "input": {}, "context": "x"}', 422, "invalid-input", "$.context"),
    (b'{"tool": "a\\u0000b", "input": {}}', 422, "invalid-input", "$.tool"),
]
"""Body, status, code, and the path that is named (None: some path)."""


async def test_a_bad_body_names_its_path(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """Each kind of bad body is refused with its path, and nothing is reserved."""
    for body, status, code, path in BAD:
        response = await agent.post("/v1/tool-calls", content=body, headers={"Content-Type": "application/json"})
        problem = problem_of(response, status, code)
        assert problem["path"].startswith("$"), body[:80]
        assert path is None or problem["path"] == path
        assert problem["message"].startswith("NOT SENT. $")
    assert await scene.count("reservations") == await scene.count("ledger_entries") == await scene.count("runs") == 0


async def test_the_limits_themselves_are_allowed(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A body of 64 levels and one of just under a mebibyte pass; one byte at a time from the caller changes nothing."""
    response = await agent.post("/v1/tool-calls", content=deep(64), headers={"Prefer": "respond-async"})
    assert response.status_code == 202, response.text
    filler = (1 << 20) - len(json.dumps({"tool": "sandbox.echo", "input": {"a": ""}, "run": "r"}))
    large = json.dumps({"tool": "sandbox.echo", "input": {"a": "x" * filler}, "run": "r"}).encode()
    assert len(large) == 1 << 20
    response = await agent.post("/v1/tool-calls", content=large, headers={"Prefer": "respond-async"})
    assert response.status_code == 202, response.text
    assert await scene.count("reservations") == 2


async def test_a_body_without_a_length_is_limited_too(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """A chunked body is counted as it comes: 413 once it is over the limit."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * (1 << 16)

    try:
        response = await agent.post("/v1/tool-calls", content=chunks(), headers={"Content-Type": "application/json"})
    except httpx2.WriteError:
        # The server answered and closed before everything was written, which it may.
        return
    problem_of(response, 413, "too-large")
    assert await scene.count("reservations") == 0


async def test_other_media_types_are_refused(agent: httpx2.AsyncClient) -> None:
    """A form, and a compressed body, are 415 with the header that is wrong."""
    form = await agent.post("/v1/tool-calls", data={"tool": "sandbox.echo"})
    assert problem_of(form, 415, "unsupported-media-type")["path"] == "Content-Type"
    packed = await agent.post(
        "/v1/tool-calls", content=b"x", headers={"Content-Encoding": "gzip", "Content-Type": "application/json"}
    )
    assert problem_of(packed, 415, "unsupported-media-type")["path"] == "Content-Encoding"
    plain = await agent.post("/v1/tool-calls", content=json.dumps(refund()).encode(), headers={"Prefer": "respond-async"})
    assert plain.status_code == 202


async def test_characters_that_postgres_cannot_hold(agent: httpx2.AsyncClient, scene: Scene) -> None:
    """U+0000 in a value that names the effect is refused; in one that does not it is sealed like anything else."""
    named = await agent.post("/v1/tool-calls", json=refund("pi_\u0000"))
    assert problem_of(named, 422, "invalid-input")["path"] == "$.input.payment_intent"
    call = {"tool": "sandbox.echo", "input": {"text": "a\u0000b", "\u0000": 1}, "run": "r", "context": {"x": "\u0000"}}
    assert (await agent.post("/v1/tool-calls", json=call, headers={"Prefer": "respond-async"})).status_code == 202
    assert await scene.count("reservations") == 1

    async def written() -> bool:
        return await scene.count("tool_calls") == 2

    await until(written)
