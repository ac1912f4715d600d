"""What an exception of a handler says of the one request that the handler made.

An exception says nothing unless it proves something: the lists here are short and positive, and whatever is not in them is
`unknown`. They hold for a handler that makes **one** mutating request; a second one that cannot be sent says nothing of the
first. For the same reason a library's own retries count: where an earlier try of it may have been sent, the last one's refusal
proves nothing, unless the library sends the same idempotency key and its provider answers for the key (Stripe).

Classes are known by the package and the name they are published under, so none of the libraries is imported. Sources:
stripe-python (`_error.py`, `_http_client.py`: two retries unless told otherwise), the exceptions page of httpx, requests and
urllib3 (`util/retry.py`), botocore (`exceptions.py`, `ResponseMetadata.RetryAttempts`), openai and anthropic (`_base_client.py`:
two retries, counted in the header `x-stainless-retry-count`).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Outcome = Literal["rejected", "deferred", "unsent", "unknown"]

REJECTED_STATUSES = frozenset({400, 401, 402, 403, 404, 405, 406, 410, 411, 413, 414, 415, 422, 431})
"""HTTP statuses by which a server refuses a request for good. Not 408, 409, 412, 423: they may speak of an effect that exists."""

DEFERRED_STATUSES = frozenset({425, 429})
"""HTTP statuses by which a server refuses to begin."""

SAFE_METHODS = frozenset({"GET", "HEAD"})
"""A mutating request that ends as one of these was redirected: the first server may have done it."""

AWS_DEFERRED = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
AWS_UNKNOWN = frozenset(
    {"IdempotentParameterMismatch", "IdempotentParameterMismatchException", "RequestTimeout", "RequestTimeoutException"}
)
AWS_NOT_SENT = frozenset(
    {
        "NoCredentialsError",
        "NoRegionError",
        "ParamValidationError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "UnknownServiceError",
    }
)

_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class NotSent(Exception):
    """Raised by a handler that knows that it sent nothing."""


class Rejected(Exception):
    """Raised by a handler that knows that the provider refused for good and nothing happened.

    Args:
        reason: in the handler's words.
        code: the provider's error code.
        status: the provider's HTTP status.
        stored: the provider keeps this refusal under the provider key and would give it again; the next effect of the operation
            is given another key then.
    """

    def __init__(self, reason: str = "", *, code: str | None = None, status: int | None = None, stored: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        self.status = status
        self.stored = stored


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What an exception says.

    Attributes:
        outcome: `unsent` nothing left this process; `rejected` refused for good; `deferred` refused before it began; `unknown`
            everything else.
        reason: the exception's class, for the record; never its text, which may hold anything.
        provider_status: the HTTP status, where there was an answer.
        provider_code: the provider's error code, where it is one plain word.
        stored: the provider keeps this refusal under the provider key.
    """

    outcome: Outcome
    reason: str
    provider_status: int | None = None
    provider_code: str | None = None
    stored: bool = False


def classify(error: BaseException, *, single_try: bool = False) -> Classified:
    """What an exception says of the request that a handler made.

    Args:
        error: as the handler raised it. Only its own class counts: what wraps another exception is `unknown`.
        single_try: the caller vouches that the library was told not to retry by itself.

    Returns:
        The outcome; `unknown` unless one of the lists proves another.
    """
    if isinstance(error, NotSent):
        return Classified(outcome="unsent", reason="NotSent")
    if isinstance(error, Rejected):
        return Classified(
            outcome="rejected",
            reason="Rejected",
            provider_status=_whole(error.status),
            provider_code=_code(error.code),
            stored=error.stored,
        )
    for package, names in _lineage(error):
        classifier = _CLASSIFIERS.get(package)
        if classifier is not None:
            outcome, status, code = classifier(error, names, single_try)
            # Stripe keeps a decline under the key that it came with, as the contract of its refunds says.
            stored = package == "stripe" and "CardError" in names
            return Classified(
                outcome=outcome, reason=_reason(error), provider_status=status, provider_code=_code(code), stored=stored
            )
    return Classified(outcome="unknown", reason=_reason(error))


Verdict = tuple[Outcome, "int | None", "str | None"]
Names = frozenset[str]

_UNKNOWN: Verdict = ("unknown", None, None)
_UNSENT: Verdict = ("unsent", None, None)


def _lineage(error: BaseException) -> Iterator[tuple[str, Names]]:
    """Each package that the exception's classes come from, nearest first, with the names of its classes there."""
    named = [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(error).__mro__]
    for package in dict.fromkeys(package for package, _ in named):
        yield package, frozenset(name for of, name in named if of == package)


def _stripe(error: Any, names: Names, single_try: bool) -> Verdict:
    status, code = _whole(getattr(error, "http_status", None)), getattr(error, "code", None)
    if "CardError" in names:
        return "rejected", status, code
    if "InvalidRequestError" in names and status in (400, 404):
        return "rejected", status, code
    if "AuthenticationError" in names and status is None:
        return _UNSENT  # There is no API key to send with.
    if not single_try:
        return "unknown", status, code
    if "APIConnectionError" in names:
        return _UNSENT if _is_unsent(error.__cause__ or error.__context__) else _UNKNOWN
    if "PermissionError" in names and status == 403:
        return "rejected", status, code
    if status in (401, 409, 429) and "IdempotencyError" not in names:
        return "deferred", status, code
    return "unknown", status, code


def _httpx(error: Any, names: Names, single_try: bool) -> Verdict:
    if "InvalidURL" in names:
        return _UNSENT
    try:
        method = error.request.method
    except (AttributeError, RuntimeError):  # It was raised before there was a request.
        method = None
    if "HTTPStatusError" in names:
        redirected = bool(error.response.history) or method in SAFE_METHODS
        return _of_status(error.response.status_code, None, proven=not redirected)
    if names & {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"} and method not in SAFE_METHODS:
        return _UNSENT
    return _UNKNOWN


def _requests(error: Any, names: Names, single_try: bool) -> Verdict:
    response = getattr(error, "response", None)
    if "HTTPError" in names and response is not None:
        retries = getattr(getattr(response, "raw", None), "retries", None)
        method = getattr(getattr(response, "request", None), "method", None)
        again = bool(response.history) or bool(getattr(retries, "history", ())) or method in SAFE_METHODS
        return _of_status(response.status_code, None, proven=not again)
    if "ConnectionError" not in names or "ProxyError" in names:
        return _UNKNOWN
    if getattr(getattr(error, "request", None), "method", None) in SAFE_METHODS:
        return _UNKNOWN
    return _UNSENT if _is_unsent(error) else _UNKNOWN


def _botocore(error: Any, names: Names, single_try: bool) -> Verdict:
    if names & AWS_NOT_SENT:
        return _UNSENT
    if names & {"EndpointConnectionError", "ConnectTimeoutError"}:
        return _UNSENT if single_try else _UNKNOWN
    response = getattr(error, "response", None)
    if "ClientError" not in names or not isinstance(response, Mapping):
        return _UNKNOWN
    metadata = response.get("ResponseMetadata") or {}
    status, code = _whole(metadata.get("HTTPStatusCode")), (response.get("Error") or {}).get("Code")
    proven = single_try or metadata.get("RetryAttempts") == 0
    if code in AWS_UNKNOWN or status is None:
        return "unknown", status, code
    if code in AWS_DEFERRED:
        return ("deferred" if proven else "unknown"), status, code
    return _of_status(status, code, proven=proven)


def _stainless(error: Any, names: Names, single_try: bool) -> Verdict:
    """openai and anthropic, whose clients are made by one generator."""
    request = getattr(error, "request", None)
    headers = getattr(request, "headers", None) or {}
    proven = single_try or headers.get("x-stainless-retry-count") == "0"
    if "APIConnectionError" in names:
        return _UNSENT if proven and _is_unsent(error.__cause__) else _UNKNOWN
    if "APIStatusError" not in names:
        return _UNKNOWN
    return _of_status(error.status_code, getattr(error, "code", None) or getattr(error, "type", None), proven=proven)


def _of_status(status: int, code: str | None, *, proven: bool) -> Verdict:
    """What an HTTP status says of a request that was sent once, if that is proven."""
    if proven and status in REJECTED_STATUSES:
        return "rejected", status, code
    if proven and status in DEFERRED_STATUSES:
        return "deferred", status, code
    return "unknown", status, code


def _is_unsent(error: BaseException | None) -> bool:
    """Whether a transport's exception proves that no byte of the only try was sent."""
    for package, names in () if error is None else _lineage(error):
        if package in ("httpx", "httpx2"):
            return bool(names & {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"})
        if package == "requests":
            return _urllib3_is_unsent(error)
    return False


def _urllib3_is_unsent(error: BaseException | None) -> bool:
    """The same of an exception of requests: the end of urllib3's tries is in it, with its reason and the way it came."""
    last = error.args[0] if error is not None and error.args else None
    if not isinstance(last, BaseException) or type(last).__name__ != "MaxRetryError" or _tries(last) != 1:
        return False
    reason = getattr(last, "reason", None)
    names = {cls.__name__ for cls in type(reason).__mro__}
    if names & {"NewConnectionError", "ConnectTimeoutError"}:
        return True
    # The certificate is looked at before anything is said; other errors of TLS may come later.
    return "SSLError" in names and any(isinstance(part, ssl.SSLCertVerificationError) for part in getattr(reason, "args", ()))


def _tries(error: BaseException) -> int:
    """How many tries urllib3 made: each one but the first is a call of `urlopen` inside the one before."""
    number, step = 0, error.__traceback__
    while step is not None:
        number += step.tb_frame.f_code.co_name == "urlopen"
        step = step.tb_next
    return number


def _reason(error: BaseException) -> str:
    return f"{type(error).__module__.partition('.')[0]}.{type(error).__name__}"[:200]


def _code(code: object) -> str | None:
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_CLASSIFIERS: Mapping[str, Callable[[Any, Names, bool], Verdict]] = MappingProxyType(
    {
        "stripe": _stripe,
        "httpx": _httpx,
        "httpx2": _httpx,
        "requests": _requests,
        "botocore": _botocore,
        "openai": _stainless,
        "anthropic": _stainless,
    }
)
