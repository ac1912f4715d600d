"""The HTTP status of every problem, and which exception becomes which problem. Status is decided in this file alone.

Source: design section 10, `interfaces.md` section 1, RFC 9457 (problem details), RFC 9110 section 15.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import structlog

from outbox_domain import messages
from outbox_domain.errors import PROBLEMS, OutboxError, Retry
from outbox_runtime.postgres import AWAY

log = structlog.stdlib.get_logger("outbox.api")

UNAVAILABLE_AFTER_SECONDS = 2.0
"""When to try again while Postgres is away: a restart or a failover takes seconds."""

STATUS: Mapping[str, int] = MappingProxyType(
    {
        "malformed-body": 400,
        "too-large": 413,
        "too-deep": 400,
        "unsupported-media-type": 415,
        "invalid-input": 422,
        "invalid-request": 422,
        "missing-key-field": 422,
        "run-required": 422,
        "unknown-tool": 404,
        "unknown-connection": 404,
        "not-found": 404,
        "method-not-allowed": 405,
        "not-enforced": 422,
        "invalid-key": 401,
        "key-expired": 401,
        "key-revoked": 401,
        "invalid-signature": 400,
        "out-of-scope": 403,
        "policy-denied": 403,
        "review-required": 403,
        "review-denied": 403,
        "quota-exceeded": 429,
        "stopped": 403,
        "conflict": 422,
        "provider-refused": 422,
        "in-doubt": 409,
        "contradiction": 409,
        "not-in-doubt": 409,
        "not-contradicted": 409,
        "operation-open": 409,
        "object-busy": 409,
        "occurrence-open": 409,
        "run-blocked": 409,
        "absence-too-early": 409,
        "recovery-due": 409,
        "count-differs": 409,
        "voided": 409,
        "provider-unreachable": 503,
        "failed": 409,
        "time-limit-required": 422,
        "not-client-executed": 409,
        "attempt-unknown": 409,
        "attempt-closed": 409,
        "lease-lost": 409,
        "outcome-differs": 409,
        "not-withdrawable": 409,
        "not-probed": 409,
        "request-key-reused": 422,
        "request-in-progress": 409,
        "unavailable": 503,
        "rate-limited": 429,
        "internal": 500,
    }
)
"""The HTTP status of each problem of `outbox_domain.errors.PROBLEMS`."""

DECISIONS = frozenset({"policy-denied", "review-required", "review-denied", "stopped"})
"""Problems of status 403 that are a decision about the call, not about the key: a request key keeps them."""


OPEN_ANSWERS = frozenset({"attempt-open", "probe-first", "renewed"})
"""Answers of status 201 that are not final: whoever sends the same request again must not be handed a lease that is over."""


def status_of(code: str) -> int:
    """The HTTP status of a problem."""
    return STATUS[code]


def is_final(status: int, code: str) -> bool:
    """Whether a request key keeps this answer (design 5.7): 200, 201, 422, and 403 of a decision."""
    return (status in (200, 201, 422) and code not in OPEN_ANSWERS) or (status == 403 and code in DECISIONS)


def unavailable(*, possibly_reserved: bool = False) -> OutboxError:
    """Postgres is away.

    Args:
        possibly_reserved: the reservation was sent to Postgres and no answer came. Nothing was sent to the provider by now, but
            it may be later, so the text must not say that nothing was.
    """
    retry = Retry(action="same-request", after_seconds=UNAVAILABLE_AFTER_SECONDS)
    if possibly_reserved:
        return OutboxError(
            "unavailable",
            "The ledger went away while the call was recorded. The same call joins what may have been recorded.",
            message=messages.running(UNAVAILABLE_AFTER_SECONDS),
            retry=retry,
        )
    return OutboxError(
        "unavailable",
        "The ledger is out of reach. Nothing was recorded and nothing was sent.",
        message=messages.unavailable(UNAVAILABLE_AFTER_SECONDS),
        retry=retry,
    )


def from_exception(error: BaseException) -> OutboxError:
    """The problem that an exception is answered with; what nobody expected is logged and becomes `internal`."""
    if isinstance(error, OutboxError):
        return error
    if isinstance(error, AWAY):
        log.warning("postgres-away", error=type(error).__name__)
        return unavailable()
    log.error("unexpected-error", error=type(error).__name__, exc_info=error)
    return OutboxError(
        "internal",
        "Something unexpected happened. The same request may be made again: it joins what was recorded and sends nothing twice.",
        message=messages.running(UNAVAILABLE_AFTER_SECONDS),
        retry=Retry(action="same-request", after_seconds=UNAVAILABLE_AFTER_SECONDS),
    )


def problem_members(error: OutboxError) -> dict[str, object]:
    """The members of RFC 9457, and those that this occurrence adds."""
    members: dict[str, object] = {
        "type": error.problem.type,
        "title": error.problem.title,
        "status": status_of(error.code),
        "detail": error.detail,
        "code": error.code,
    }
    if error.path is not None:
        members["path"] = error.path
    return members | error.fields


def headers_of(error: OutboxError) -> list[tuple[str, str]]:
    """The headers that belong to a problem: when to come again, and how to authenticate."""
    headers = []
    if error.retry.after_seconds is not None:
        headers.append(("Retry-After", str(max(1, math.ceil(error.retry.after_seconds)))))
    if status_of(error.code) == 401:
        headers.append(("WWW-Authenticate", 'Bearer realm="agent-outbox"'))
    return headers


assert STATUS.keys() == PROBLEMS.keys(), "every problem has exactly one status"
