"""Requests: the bytes of every contract, checked against the provider's own published schema, and what no input can do to them."""

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from openapi_schema_validator import OAS30Validator, OAS31Validator
from tests.support.provider_specs import read_form, request_body, specification, typed

from outbox_domain.binding import bind
from outbox_domain.contract import ToolContract
from outbox_domain.errors import OutboxError
from outbox_providers import catalog
from outbox_providers.driver import WireRequest, build_request
from outbox_providers.templates import expand_body, field_steps, plant

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
KEY = "obx_" + "5" * 64
MARKER = "obx_" + "6" * 64

REFUND = {"payment_intent": "pi_3Nx", "amount": 1200, "reason": "requested_by_customer"}
CUSTOMER = {"email": "A.Berg@Example.org", "name": "Änne Berg & Söhne", "metadata": {"crm": "77", "outbox": "forged"}}
MAIL = {"from": "shop@example.org", "to": "a.berg@example.org", "subject": "Hello", "text": "Dear A.", "html": "<p>Dear A.</p>"}


def shipped(tool: str) -> ToolContract:
    """The shipped contract of a tool."""
    return next(each for each in catalog.shipped() if each.tool == tool)


def changed(tool: str, **members: Any) -> ToolContract:
    """A shipped contract with other members of its request."""
    document = shipped(tool).document()
    return ToolContract.from_document(document | {"request": document["request"] | members})


def built(contract: ToolContract, value: dict[str, Any], **arguments: Any) -> WireRequest:
    """The request of a bound input."""
    bound = bind(contract, value, connection_currency="EUR").value
    defaults: dict[str, Any] = {
        "base_url": "https://provider.example",
        "credential": "sk_test_1",
        "fixed_headers": {},
        "bound": bound,
        "names": {"reference": "case-1", "run": None},
        "provider_key": KEY,
        "marker": MARKER,
    }
    return build_request(contract, **(defaults | arguments))


def headers_of(request: WireRequest) -> dict[str, str]:
    """The headers by lower-case name; each stands once."""
    names = [name.lower() for name, _ in request.headers]
    assert len(set(names)) == len(names)
    return {name.lower(): value for name, value in request.headers}


# Against the published schemas.


@pytest.mark.parametrize(("tool", "path", "value"), [
    ("stripe.refund.create", "/v1/refunds", REFUND),
    ("stripe.refund.create", "/v1/refunds", {"payment_intent": "pi_1", "amount": 1}),
    ("stripe.customer.create", "/v1/customers", CUSTOMER),
    ("stripe.customer.create", "/v1/customers", {"email": "a@b.example"}),
])  # fmt: skip
def test_a_form_fits_stripes_published_schema(tool: str, path: str, value: dict[str, Any]) -> None:
    """Our bytes, read back into nested JSON, fit the closed request body of the pinned version and today's parameter names."""
    document = specification("stripe.json")
    schema = request_body(document, path, FORM)
    request = built(shipped(tool), value)
    body = typed(read_form(request.body), schema)
    assert list(OAS30Validator(schema).iter_errors(body)) == []
    assert set(body) <= set(specification("stripe-params.json")["operations"][f"POST {path}"]["params"])
    assert (request.method, request.url) == ("POST", f"https://provider.example{path}")
    assert headers_of(request)["stripe-version"] == document["info"]["version"]
    # The control: the schema is closed and typed, so the check can fail.
    assert list(OAS30Validator(schema).iter_errors(body | {"memo": "x"})) != []
    assert list(OAS30Validator(schema).iter_errors(body | {"metadata": {"outbox": 1}})) != []


def test_stripes_lookups_use_published_parameters() -> None:
    """The filters of the lookups exist in the pinned version, and for refunds in today's."""
    document = specification("stripe.json")
    for tool, path in (("stripe.refund.create", "/v1/refunds"), ("stripe.customer.create", "/v1/customers")):
        lookup = shipped(tool).lookup
        assert lookup is not None
        asked = urlsplit(lookup.url)
        assert asked.path == path
        names = {name for name, _ in parse_qsl(asked.query)}
        assert names
        assert names <= {each["name"] for each in document["paths"][path]["get"]["parameters"]}
    assert "payment_intent" in specification("stripe-params.json")["operations"]["GET /v1/refunds"]["params"]


@pytest.mark.parametrize("left_out", [(), ("html",), ("text",)])
def test_a_mail_fits_sendgrids_published_schema(left_out: tuple[str, ...]) -> None:
    """The flat input becomes personalizations and content; what is absent leaves nothing behind."""
    schema = request_body(specification("sendgrid.json"), "/v3/mail/send", JSON)
    value = {name: member for name, member in MAIL.items() if name not in left_out}
    body = json.loads(built(shipped("sendgrid.mail.send"), value).body)
    assert list(OAS31Validator(schema).iter_errors(body)) == []
    assert [part["type"] for part in body["content"]] == [
        kind for name, kind in (("text", "text/plain"), ("html", "text/html")) if name not in left_out
    ]
    assert list(OAS31Validator(schema).iter_errors({**body, "personalizations": [{}]})) != []
    assert list(OAS31Validator(schema).iter_errors({**body, "subject": ""})) != []


# The exact bytes.


def test_the_bytes_of_a_refund() -> None:
    """One fixed body and header list: a resend of the same attempt is byte for byte the same request."""
    request = built(shipped("stripe.refund.create"), REFUND)
    assert request.body == (
        b"amount=1200&metadata%5Boutbox%5D=" + MARKER.encode() + b"&payment_intent=pi_3Nx&reason=requested_by_customer"
    )
    assert request.headers == (
        ("Accept", "application/json"),
        ("Stripe-Version", "2023-08-16"),
        ("Content-Type", FORM),
        ("Authorization", "Bearer sk_test_1"),
        ("Idempotency-Key", KEY),
    )
    assert built(shipped("stripe.refund.create"), dict(reversed(REFUND.items()))) == request


def test_the_bytes_of_a_mail() -> None:
    """The marker stands in the personalization, where the provider takes it as a custom argument; no key header exists."""
    request = built(shipped("sendgrid.mail.send"), MAIL, provider_key=None)
    assert json.loads(request.body) == {
        "personalizations": [{"to": [{"email": "a.berg@example.org"}], "custom_args": {"outbox": MARKER}}],
        "from": {"email": "shop@example.org"},
        "subject": "Hello",
        "content": [{"type": "text/plain", "value": "Dear A."}, {"type": "text/html", "value": "<p>Dear A.</p>"}],
    }
    assert set(headers_of(request)) == {"accept", "content-type", "authorization"}


def test_the_bytes_of_the_sandbox_tools() -> None:
    """Echo sends whatever object it was given, and nothing planted; a ticket carries its marker."""
    echo = built(shipped("sandbox.echo"), {"b": [1, {"c": None}], "a": "ü"}, marker=None)
    assert echo.body == '{"a":"ü","b":[1,{"c":null}]}'.encode()
    assert headers_of(echo)["idempotency-key"] == KEY
    ticket = built(shipped("sandbox.ticket.create"), {"title": "T", "body": "B"}, provider_key=None)
    assert json.loads(ticket.body) == {"title": "T", "body": "B", "marker": MARKER}


# What is ours is ours.


def test_our_marker_overrides_the_models() -> None:
    """A model that supplies the marker's field changes nothing; its other metadata stays."""
    body = read_form(built(shipped("stripe.customer.create"), CUSTOMER).body)
    assert body["metadata"] == {"crm": "77", "outbox": MARKER}


def test_our_key_overrides_the_models_and_the_connections() -> None:
    """The key header is ours whatever the connection fixes, in any case of its name; a key field is ours whatever the input says."""
    request = built(
        shipped("stripe.refund.create"), REFUND, fixed_headers={"idempotency-key": "forged", "Stripe-Account": "acct_1"}
    )
    assert headers_of(request)["idempotency-key"] == KEY
    assert headers_of(request)["stripe-account"] == "acct_1"
    field = changed("sandbox.echo", provider_key={"field": "request.key"})
    assert json.loads(built(field, {"request": {"key": "forged", "x": 1}}).body) == {"request": {"key": KEY, "x": 1}}
    assert json.loads(built(field, {"request": "forged"}).body) == {"request": {"key": KEY}}


def test_the_contracts_headers_win_over_the_connections() -> None:
    """The pinned API version is what the outcome table was written for."""
    request = built(shipped("stripe.refund.create"), REFUND, fixed_headers={"stripe-version": "2030-01-01"})
    assert headers_of(request)["stripe-version"] == "2023-08-16"


def test_planting_leaves_the_bound_input_alone() -> None:
    """The caller's input is digested and stored; the request is a copy."""
    bound = {"email": "a@b.example", "metadata": {"outbox": "theirs"}}
    built(shipped("stripe.customer.create"), CUSTOMER, bound=bound)
    assert bound == {"email": "a@b.example", "metadata": {"outbox": "theirs"}}
    template = shipped("sendgrid.mail.send").request.body
    before = json.dumps(template)
    built(shipped("sendgrid.mail.send"), MAIL)
    assert json.dumps(template) == before


def test_without_its_key_or_marker_nothing_is_built() -> None:
    """A class A request without its key would be another promise; a lookup without a marker would find nothing."""
    for empty in (None, ""):
        with pytest.raises(ValueError, match="without its provider key"):
            built(shipped("stripe.refund.create"), REFUND, provider_key=empty)
        with pytest.raises(ValueError, match="without its marker"):
            built(shipped("stripe.refund.create"), REFUND, marker=empty)


def test_how_a_credential_travels() -> None:
    """As a bearer token, bare in a header of its own, or not at all."""
    own = changed("sandbox.echo", credential={"header": "X-Api-Key"})
    assert headers_of(built(own, {}, credential="k"))["x-api-key"] == "k"
    assert "authorization" not in headers_of(built(own, {}, credential="k"))
    assert "authorization" not in headers_of(built(changed("sandbox.echo", credential="none"), {}, credential="k"))
    assert "authorization" not in headers_of(built(shipped("sandbox.echo"), {}, credential=None))


def test_a_request_does_not_print_its_secrets() -> None:
    """Credentials, bodies and addresses with personal values are not in the printed form."""
    printed = repr(built(shipped("stripe.customer.create"), CUSTOMER))
    assert not [secret for secret in ("sk_test_1", "Berg", "berg", KEY) if secret in printed]


# Addresses.


@pytest.mark.parametrize("base", ["https://provider.example", "https://provider.example/", "http://127.0.0.1:8080/stripe/"])
def test_a_path_joins_the_base(base: str) -> None:
    """A base URL may have a path; one slash stands between."""
    assert built(shipped("stripe.refund.create"), REFUND, base_url=base).url == base.rstrip("/") + "/v1/refunds"


@pytest.mark.parametrize(
    "base",
    [
        "",
        "provider.example",
        "ftp://provider.example",
        "https://",
        "https://user:pw@provider.example",
        "https://p.example?x=1",
        "https://p.example#x",
        "https://p.example/ x",
        "https://p.example\\@evil.example",
        "https://p.example/\r\nX: 1",
        "file:///etc",
    ],
)
def test_a_base_that_is_none_is_refused(base: str) -> None:
    """Nothing is sent to an address that two parsers could read differently."""
    with pytest.raises(ValueError, match="base URL"):
        built(shipped("stripe.refund.create"), REFUND, base_url=base)


ADDRESSED = {
    "url": "/v1/things/{input.id}/parts?name={input.name}&by={reference}",
    "driver": "http_json",
    "method": "POST",
}


def addressed(**value: Any) -> WireRequest:
    """A request whose address carries two fields of the input and the reference."""
    document = shipped("sandbox.echo").document()
    contract = ToolContract.from_document(document | {"request": document["request"] | ADDRESSED})
    return built(contract, {"id": "1", "name": "n"} | value, names={"reference": "case 1/ä"})


def test_values_are_percent_encoded_into_an_address() -> None:
    """Every reserved character stays inside its segment or parameter; what the address carries is not sent twice."""
    request = addressed(id="a/b?c#d%2e&e=f:ü", name="x&by=other", rest=1)
    assert request.url == (
        "https://provider.example/v1/things/a%2Fb%3Fc%23d%252e%26e%3Df%3A%C3%BC/parts?name=x%26by%3Dother&by=case%201%2F%C3%A4"
    )
    assert json.loads(request.body) == {"rest": 1}
    assert addressed(id=7, name=True).url == "https://provider.example/v1/things/7/parts?name=true&by=case%201%2F%C3%A4"


@pytest.mark.parametrize("value", ["..", ".", "", "a\r\nHost: evil.example", "a\x00", "\x7f", None, [], {"a": 1}, ["x"]])
def test_values_that_climb_or_break_an_address_are_refused(value: Any) -> None:
    """No segment becomes `.` or `..`, none is empty, none holds a control character or a container."""
    with pytest.raises(OutboxError) as caught:
        addressed(id=value)
    assert caught.value.code == "invalid-input"
    assert caught.value.path in ("$.input", "$.input.id")


def test_an_absent_value_of_an_address_is_refused() -> None:
    """An address with a hole could be another address."""
    document = shipped("sandbox.echo").document()
    contract = ToolContract.from_document(document | {"request": document["request"] | ADDRESSED})
    for value, names in (({"id": "1"}, {"reference": "r"}), ({"id": "1", "name": "n"}, {"reference": None})):
        with pytest.raises(OutboxError):
            built(contract, value, names=names)


@pytest.mark.parametrize("url", ["//evil.example/v1", "v1", "@evil.example/", ".evil.example/", "\\\\evil.example", ""])
def test_a_template_cannot_leave_its_host(url: str) -> None:
    """Even a contract that no linter saw reaches only its connection's host."""
    with pytest.raises(ValueError, match="slash"):
        built(changed("sandbox.echo", url=url), {})


# Headers.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "1\r\nX-B: 2"),
        ("X-A", "1\nX-B: 2"),
        ("X-A", "a\x00b"),
        ("X-A", ""),
        ("X-A", " padded"),
        ("X-A", "ü"),
        ("X-A: 1\r\nX-B", "2"),
        ("", "1"),
        ("X A", "1"),
        ("Host", "evil.example"),
        ("content-length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("Authorization", "Bearer other"),
    ],
)
def test_a_fixed_header_cannot_frame_another_request(name: str, value: str) -> None:
    """Line breaks, odd names and the headers that frame or authenticate a request are refused, without repeating them."""
    with pytest.raises(OutboxError) as caught:
        built(shipped("stripe.refund.create"), REFUND, fixed_headers={name: value})
    assert (caught.value.code, caught.value.path) == ("invalid-input", "$.connection")
    assert "evil" not in caught.value.detail


@pytest.mark.parametrize("credential", ["sk\r\nX-B: 1", "sk\n", "sk\x00", "süß"])
def test_a_credential_cannot_break_a_header(credential: str) -> None:
    """A credential read with its line break is refused and not repeated."""
    with pytest.raises(OutboxError) as caught:
        built(shipped("stripe.refund.create"), REFUND, credential=credential)
    assert credential not in caught.value.detail


# Body templates.


def test_templates_keep_types_and_drop_what_is_absent() -> None:
    """A whole placeholder keeps its JSON type, null included; one in a text becomes text; an absent one takes its member along."""
    bound = {"n": 1, "t": True, "l": [1, {"x": None}], "z": None, "s": "{input.n}", "o": {"p": "deep"}}
    template = {
        "number": "{input.n}",
        "truth": "{input.t}",
        "list": "{input.l}",
        "null": "{input.z}",
        "literal": "{input.s}",
        "deep": "{input.o.p}",
        "text": "n={input.n}, s={input.s}, r={reference}",
        "gone": "{input.missing}",
        "gone-text": "x {input.missing} y",
        "gone-deep": "{input.n.x}",
        "items": ["{input.missing}", "{input.n}", {"$when": "input.missing", "a": 1}, {"$when": "input.z", "b": 2}],
        "plain": [1, None, {"braces": "{not a name} {}"}],
    }
    assert expand_body(template, bound, {"reference": "r-1", "run": None}) == {
        "number": 1,
        "truth": True,
        "list": [1, {"x": None}],
        "null": None,
        "literal": "{input.n}",
        "deep": "deep",
        "text": "n=1, s={input.n}, r=r-1",
        "items": [1, {"b": 2}],
        "plain": [1, None, {"braces": "{not a name} {}"}],
    }


def test_a_container_inside_a_text_is_refused() -> None:
    """A list written into a sentence would be Python's spelling of it."""
    for value in ([1], {"a": 1}, True, None):
        with pytest.raises(OutboxError):
            expand_body("x {input.v}", {"v": value}, {})


def test_an_input_is_never_read_as_a_template() -> None:
    """A text of the input that looks like a placeholder reaches the provider as it is."""
    mail = MAIL | {"subject": "{marker} {input.to}", "text": "{input.html}"}
    body = json.loads(built(shipped("sendgrid.mail.send"), mail).body)
    assert body["subject"] == "{marker} {input.to}"
    assert body["content"][0]["value"] == "{input.html}"


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("marker", ("marker",)),
        ("metadata[outbox]", ("metadata", "outbox")),
        ("custom_args.outbox", ("custom_args", "outbox")),
        ("personalizations[0].custom_args.outbox", ("personalizations", "0", "custom_args", "outbox")),
        ("a[b][c].d", ("a", "b", "c", "d")),
    ],
)
def test_a_fields_path_has_two_spellings(path: str, steps: tuple[str, ...]) -> None:
    """Brackets as in a form, dots as in JSON, mixed as one likes."""
    assert field_steps(path) == steps


@pytest.mark.parametrize("path", ["", ".a", "a..b", "a.", "a[", "a[]", "a]b", "[a]", "a[b", "a[[b]]"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    """A path with a hole would plant somewhere else."""
    with pytest.raises(ValueError, match="field"):
        field_steps(path)


def test_planting_replaces_what_stands_in_the_way() -> None:
    """A plain value where the path needs an object gives way; an item that is not there is an error of the contract."""
    body: dict[str, Any] = {"metadata": "x", "list": [{"a": 1}, 2]}
    plant(body, "metadata[outbox]", "m")
    plant(body, "list[0].outbox", "m")
    assert body == {"metadata": {"outbox": "m"}, "list": [{"a": 1, "outbox": "m"}, 2]}
    for path in ("list[2].x", "list[1].x", "list[0]", "list[x].y"):
        with pytest.raises(ValueError, match="list"):
            plant(body, path, "m")
