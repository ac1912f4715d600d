"""The doors of a driver: contract and input to a request, answer to a reading. Pure; the worker's transport opens the socket.

`build_request` and `read_answer`, `build_lookup` and `read_lookup` are all that a worker needs of a provider; which wire protocol
is spoken stands in the contract.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from outbox_domain.contract import CredentialHeader, LookupRule, ToolContract, placeholders
from outbox_providers import http_form, http_json, reading
from outbox_providers.lookup import Finding, read_lookup
from outbox_providers.templates import ABSENT, expand_body, expand_url, plant, refuse
from outbox_providers.wire import Failure, Headers, Reading, WireAnswer, WireRequest

__all__ = [
    "Failure",
    "Finding",
    "Reading",
    "WireAnswer",
    "WireRequest",
    "build_lookup",
    "build_request",
    "read_answer",
    "read_lookup",
]

RESERVED_HEADERS = frozenset(
    {
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that the driver or the transport alone may set; fixed, they could frame another request or another identity."""

_ENCODERS: Mapping[str, tuple[str, Callable[[dict[str, Any]], bytes]]] = {
    "http_form": (http_form.CONTENT_TYPE, http_form.encode),
    "http_json": (http_json.CONTENT_TYPE, http_json.encode),
}
_METHODS_WITHOUT_BODY = frozenset({"GET", "DELETE"})
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,4094}[\x21-\x7e])?")


def build_request(
    contract: ToolContract,
    *,
    base_url: str,
    credential: str | None,
    fixed_headers: Mapping[str, str],
    bound: Mapping[str, Any],
    names: Mapping[str, str | None],
    provider_key: str | None,
    marker: str | None,
) -> WireRequest:
    """Writes the one request of an attempt. The same arguments give the same bytes.

    Args:
        contract: the pinned contract of the reservation.
        base_url: the connection's base URL (scheme, host, optional port and path).
        credential: the connection's credential; None sends none.
        fixed_headers: the connection's own headers. What the contract pins wins over them.
        bound: the bound input.
        names: what templates may name besides the input (`reference`, `run`); None or missing is absent.
        provider_key: our idempotency key for the provider; it overrides whatever the input says in its place.
        marker: the marker for look-ups; likewise.

    Returns:
        The request.

    Raises:
        OutboxError: `invalid-input` with a path, where the input, the credential or a header cannot be written safely.
        ValueError: where the contract wants a provider key or a marker and none was given, or the base URL is none. Nothing may
            be sent then: a request of class A without its key would be a different promise.
    """
    rule = contract.request
    if rule.provider_key is not None and not provider_key:
        raise ValueError(f"{contract.tool} cannot be sent without its provider key")
    if rule.marker is not None and not marker:
        raise ValueError(f"{contract.tool} cannot be sent without its marker")
    all_names = {**names, "marker": marker, "provider_key": provider_key}
    url = _joined(base_url, expand_url(rule.url, bound, all_names))
    if rule.driver == "client":
        raise ValueError(f"{contract.tool} is carried out by its caller; nothing is sent for it")
    content_type, encode = _ENCODERS[rule.driver]
    body = b""
    if rule.method not in _METHODS_WITHOUT_BODY:
        members = _body(contract, bound, all_names)
        if rule.marker is not None and marker:
            plant(members, rule.marker.field, marker)
        if rule.provider_key is not None and rule.provider_key.field is not None and provider_key:
            plant(members, rule.provider_key.field, provider_key)
        body = encode(members)
    headers = _headers(contract, credential, fixed_headers, provider_key, content_type if body or rule.method == "POST" else None)
    return WireRequest(method=rule.method, url=url, headers=headers, body=body)


def build_lookup(
    contract: ToolContract,
    rule: LookupRule,
    *,
    base_url: str,
    credential: str | None,
    fixed_headers: Mapping[str, str],
    bound: Mapping[str, Any],
    names: Mapping[str, str | None],
    marker: str | None,
    provider_key: str | None = None,
) -> WireRequest:
    """Writes the read that asks a provider for an effect, or calls one off. It carries no idempotency key of ours.

    Args:
        contract: the pinned contract of the reservation.
        rule: its look-up.
        base_url, credential, fixed_headers: the connection's, as in `build_request`.
        bound: the bound input.
        names: what templates may name besides the input.
        marker: what was planted.
        provider_key: the identity that we chose, for a contract that asks for it.

    Returns:
        The request. Its address may carry what is personal.

    Raises:
        OutboxError: `invalid-input`, where the address or a header cannot be written safely.
        ValueError: the base URL is none.
    """
    all_names = {**names, "marker": marker, "provider_key": provider_key}
    url = _joined(base_url, expand_url(rule.url, bound, all_names))
    content_type, encode = _ENCODERS[contract.request.driver]
    filled = None if rule.body is None else expand_body(rule.body, bound, all_names)
    body = encode(filled) if isinstance(filled, dict) else b""
    headers = _headers(contract, credential, fixed_headers, None, content_type if body else None)
    return WireRequest(method=rule.method, url=url, headers=headers, body=body)


def read_answer(contract: ToolContract, answer: WireAnswer) -> Reading:
    """Says what an answer means under a contract; see `outbox_providers.reading.read`."""
    return reading.read(contract, answer)


def _body(contract: ToolContract, bound: Mapping[str, Any], names: Mapping[str, str | None]) -> dict[str, Any]:
    """The body: the contract's template, else the input without what the address already carries."""
    if contract.request.body is not None:
        filled = expand_body(contract.request.body, bound, names)
        return filled if filled is not ABSENT else {}
    in_address = {name.removeprefix("input.") for name in placeholders(contract.request.url)}
    # Expanding a template of whole placeholders copies the containers, so that planting never writes into the caller's input.
    return {name: _copied(value) for name, value in bound.items() if name not in in_address}


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def _joined(base_url: str, path: str) -> str:
    """The absolute URL; its origin is the base URL's, whatever the template and the input say."""
    base = urlsplit(base_url)
    if base.scheme not in ("http", "https") or not base.hostname or base.query or base.fragment or "@" in base.netloc:
        raise ValueError("a connection's base URL is http or https, a host, and at most a port and a path")
    if re.search(r"[\x00-\x20\x7f\\]", base_url):
        raise ValueError("a connection's base URL holds no spaces, backslashes or control characters")
    if not path.startswith("/") or path.startswith("//"):
        raise ValueError("a contract's URL begins with one slash")
    url = base_url.rstrip("/") + path
    built = urlsplit(url)
    if (built.scheme, built.netloc) != (base.scheme, base.netloc):
        raise ValueError("a contract's URL stays at its connection's host")
    return url


def _headers(
    contract: ToolContract,
    credential: str | None,
    fixed_headers: Mapping[str, str],
    provider_key: str | None,
    content_type: str | None,
) -> Headers:
    rule = contract.request
    written: dict[str, tuple[str, str]] = {"accept": ("Accept", "application/json")}
    for name, value in (*fixed_headers.items(), *rule.headers.items()):
        if not _HEADER_NAME.fullmatch(name) or name.lower() in RESERVED_HEADERS:
            refuse("$.connection", "fixed headers that a connection or contract may set")
        written[name.lower()] = (name, value)
    if content_type is not None:
        written["content-type"] = ("Content-Type", content_type)
    if credential is not None and rule.credential == "bearer":
        written["authorization"] = ("Authorization", f"Bearer {credential}")
    elif credential is not None and isinstance(rule.credential, CredentialHeader):
        written[rule.credential.header.lower()] = (rule.credential.header, credential)
    if rule.provider_key is not None and rule.provider_key.header is not None and provider_key:
        written[rule.provider_key.header.lower()] = (rule.provider_key.header, provider_key)
    for _, value in written.values():
        if not _HEADER_VALUE.fullmatch(value):
            refuse("$.connection", "headers and a credential of printable ASCII, without line breaks")
    return tuple(written.values())
