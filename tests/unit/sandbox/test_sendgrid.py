"""The sandbox as SendGrid: an empty 202, errors by field, and nothing that would tell a repeated mail from a new one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator

MAIL: dict[str, Any] = {
    "personalizations": [{"to": [{"email": "a@example.org"}], "custom_args": {"outbox": "m1"}}],
    "from": {"email": "desk@example.org", "name": "Desk"},
    "subject": "Your refund",
    "content": [{"type": "text/plain", "value": "It is on its way."}],
}


async def send(provider: Any, mail: Any, **options: Any) -> Any:
    """One mail send."""
    return await provider.call("POST", "/v3/mail/send", json=mail, **options)


async def test_a_mail_is_accepted_with_an_empty_body(provider: Any) -> None:
    """202, no body, the receipt in X-Message-Id, and the whole mail kept with its marker."""
    reply = await send(provider, MAIL)
    assert (reply.status, reply.body) == (202, b"")
    [effect] = await provider.effects("/v3/mail/send")
    assert effect["id"] == reply.headers["X-Message-Id"]
    assert (effect["fields"], effect["subject"], effect["marker"]) == (MAIL, "Your refund", "m1")


async def test_the_same_mail_twice_is_two_mails(provider: Any) -> None:
    """No idempotency: two equal sends are two effects with two message ids."""
    first, second = await send(provider, MAIL), await send(provider, MAIL)
    assert first.headers["X-Message-Id"] != second.headers["X-Message-Id"]
    assert len(await provider.effects()) == 2


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The mail with the member at `path` set to `value`, or left out where `value` is Ellipsis."""
    mail = copy.deepcopy(MAIL)
    holder: Any = mail
    for step in path[:-1]:
        holder = holder[step]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return mail


@pytest.mark.parametrize(
    ("mail", "field"),
    [
        (changed(("personalizations",), ...), "personalizations"),
        (changed(("personalizations",), []), "personalizations"),
        (changed(("personalizations", 0), 7), "personalizations.0"),
        (changed(("personalizations", 0, "to"), ...), "personalizations.0.to"),
        (changed(("personalizations", 0, "to", 0, "email"), "nobody"), "personalizations.0.to.0.email"),
        (changed(("personalizations", 0, "outbox"), "m"), "personalizations.0.outbox"),
        (changed(("personalizations", 0, "custom_args"), {"a": 1}), "personalizations.0.custom_args"),
        (changed(("from",), ...), "from"),
        (changed(("from", "email"), ""), "from.email"),
        (changed(("subject",), ...), "subject"),
        (changed(("content",), []), "content"),
        (changed(("content", 0, "value"), ""), "content.0.value"),
        (changed(("content", 0), "text"), "content.0.type"),
        (changed(("to",), "x"), "to"),
        (changed(("personalizations", 0, "custom_args"), {"a": "x" * 10_001}), "custom_args"),
    ],
)
async def test_wrong_mails_are_refused_by_field(provider: Any, mail: Any, field: str) -> None:
    """A mail with a wrong, missing or unknown member: 400 naming the field, and nothing sent."""
    reply = await send(provider, mail)
    assert reply.status == 400
    assert reply.json["errors"][0]["field"] == field
    assert await provider.effects() == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000])
async def test_bodies_that_are_no_object_are_refused(provider: Any, body: bytes) -> None:
    """Not JSON, or not an object: 400."""
    assert (await provider.call("POST", "/v3/mail/send", content=body)).status == 400


async def test_credential_and_paths(provider: Any) -> None:
    """401 without a usable key, 405 for a read of the send path, 404 beside it; every error in the provider's shape."""
    for authorization in ("", "Bearer SG.x_expired"):
        assert (await send(provider, MAIL, headers={"Authorization": authorization})).status == 401
    for method, path, status in (("GET", "/v3/mail/send", 405), ("GET", "/v3/mail/x", 404), ("POST", "/v3/mail/batch", 404)):
        reply = await provider.call(method, path, json={})
        assert (reply.status, len(reply.json["errors"])) == (status, 1)


async def test_faults_answer_in_the_providers_shape(provider: Any) -> None:
    """A failure, a rate limit and a loss after commit come as SendGrid's, and nothing is stored."""
    for fault, status in (("fail-500", 500), ("rate-limit", 429), ("commit-then-500", 500)):
        await provider.fault(fault, "/v3/mail/send")
        reply = await send(provider, MAIL)
        assert (reply.status, list(reply.json)) == (status, ["errors"])
    assert len(await provider.effects()) == 1


async def test_mail_and_errors_have_the_published_shapes(provider: Any, specs_dir: Path) -> None:
    """The mail these tests send and the errors the sandbox answers validate against SendGrid's published schemas."""
    document = json.loads((specs_dir / "sendgrid.json").read_text())
    body = document["components"]["requestBodies"]["mail_PostMailSend"]["content"]["application/json"]["schema"]
    error = {"$ref": "#/components/schemas/mail_ErrorResponse"}
    # An error without a field has `field: null`, as the provider's own; the document allows it by a word of OpenAPI 3.0.
    refused = (await send(provider, changed(("from", "email"), "x"))).json
    for schema, value in ((body, MAIL), (error, refused)):
        problems = OAS31Validator({**schema, "components": document["components"]}).iter_errors(value)
        assert not [problem.message for problem in problems]
    for name in body["properties"]:
        reply = await send(provider, {name: MAIL.get(name, "x")})
        assert all("not allowed" not in each["message"] for each in reply.json["errors"]), name
