"""What goes over the wire and what is read from it: plain values, no sockets.

Credentials, bodies and foreign text are kept out of every printed form, because these values pass near logs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from outbox_domain.reservation import Outcome

Headers = tuple[tuple[str, str], ...]


def header(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """The first value of a header, whatever the case of its name (RFC 9110 section 5.1); None where it is absent."""
    wanted = name.lower()
    return next((value for each, value in headers if each.lower() == wanted), None)


@dataclass(frozen=True, kw_only=True)
class WireRequest:
    """One HTTP request, complete but for what the transport adds (Host, Content-Length, traceparent).

    Attributes:
        method: the HTTP method.
        url: the absolute URL; its origin is the connection's.
        headers: name and value in a fixed order; each name once.
        body: the bytes; empty for methods without a body.
    """

    method: str
    url: str = field(repr=False)
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class WireAnswer:
    """One complete HTTP answer.

    Attributes:
        status: the status code.
        headers: as they came.
        body: the bytes as they came, transfer coding removed.
    """

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What the provider said when it did not succeed.

    Attributes:
        provider_status: the HTTP status.
        provider_code: the provider's short code, only where it looks like one (letters, digits, `_`, `.`, `-`, at most 64).
        provider_message: foreign text, at most 500 characters; it never enters a message to a model.
    """

    provider_status: int | None
    provider_code: str | None
    provider_message: str | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an answer means under a contract.

    Attributes:
        outcome: what the attempt came to.
        stored: the provider keeps this refusal under the provider key.
        retry_after_seconds: when to try again at the earliest, counted from the answer; None where nothing was said.
        external_reference: the provider's name of the effect; present exactly when the outcome is succeeded.
        provider_request_id: the provider's name of the request.
        result: the contract's projection; None unless succeeded.
        amount_reported: the minor units the provider says it moved, where the contract moves money.
        currency_reported: the currency it says, in capitals.
        failure: what it said when it did not succeed.
        conflict: it says that the identity is taken already; what is there must be read back.
        stored_failure: a failure that the provider merely replayed from its store; it proves nothing of this attempt.
        replayed: the provider says that it gave an answer it had stored, whatever that is.
    """

    outcome: Outcome
    stored: bool
    retry_after_seconds: float | None
    external_reference: str | None
    provider_request_id: str | None
    result: dict[str, Any] | None = field(repr=False)
    amount_reported: int | None
    currency_reported: str | None
    failure: Failure | None
    stored_failure: bool
    replayed: bool = False
    conflict: bool = False
