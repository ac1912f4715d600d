"""What can go wrong, as exceptions: one for every problem of the gateway, and those that arise on this side of it.

`ERRORS` mirrors the gateway's registry of problems (codes, titles and what may be done next); a test compares the two. A problem
that says something about the wanted effect is not raised by `call`: it comes back as `Refused` or `InDoubt`, and its exception
stands in `error` there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

RetryAction = Literal["none", "same-request", "wait", "change-input", "ask-human", "never"]

RETRY_ACTIONS: frozenset[str] = frozenset(get_args(RetryAction))

ASK_AGAIN_SECONDS = 2.0
"""When to try again where nobody said when."""

_NOT_SENT = "NOT SENT. Try the same call in {seconds} s; that is safe."
_NOT_FINISHED = "Not finished. Ask again in {seconds} s with the same arguments; that joins this one and starts nothing new."


@dataclass(frozen=True, kw_only=True)
class Retry:
    """What may be done next.

    Attributes:
        action: `none` nothing is left to do; `same-request` the same call is safe; `wait` ask later; `change-input` this call
            will never do; `ask-human` only a person can go on; `never` do not try.
        after_seconds: how long to wait before it, where that applies.
        url: where to ask, where that applies; a path at the gateway.
    """

    action: RetryAction
    after_seconds: float | None = None
    url: str | None = None


class OutboxError(Exception):
    """A problem, as one caller met it.

    Args:
        detail: what is wrong and what to change, for a developer.
        message: the text for the model; the detail when left out.
        code: the stable code; the class's own when left out.
        status: the HTTP status it came with; None where it arose on this side.
        path: the JSON path of the offending value (`$.input.amount`), where there is one.
        retry: what may be done next; the class's own action when left out.
        document: the whole problem document.
        possibly_recorded: an earlier try of the same call may have reached the gateway, so that nobody may say that nothing
            was done. The same call joins it.
    """

    code: str = "problem"
    title: ClassVar[str] = "A problem"
    action: ClassVar[RetryAction] = "never"

    def __init__(
        self,
        detail: str = "",
        *,
        message: str | None = None,
        code: str | None = None,
        status: int | None = None,
        path: str | None = None,
        retry: Retry | None = None,
        document: Mapping[str, Any] | None = None,
        possibly_recorded: bool = False,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.message = message if message is not None else self.detail
        if code is not None:
            self.code = code
        self.status = status
        self.path = path
        self.retry = retry if retry is not None else Retry(action=self.action)
        self.document: Mapping[str, Any] = document if document is not None else {}
        self.possibly_recorded = possibly_recorded

    def __init_subclass__(cls) -> None:
        """A class's title is its docstring's first sentence."""
        if cls.__doc__:
            cls.title = cls.__doc__.splitlines()[0].rstrip(".")

    def as_tool_message(self) -> str:
        """The text for the model; the first words carry the fact.

        Returns:
            What the gateway said; but where an earlier try of this call may have been recorded, that it is not finished, because
            nothing else is known to be true.
        """
        if not self.possibly_recorded:
            return self.message
        return _NOT_FINISHED.format(seconds=_whole_seconds(self.retry.after_seconds))


# The request itself.


class MalformedBodyError(OutboxError):
    """The body is not JSON that can be carried exactly."""

    code = "malformed-body"
    action = "change-input"


class TooLargeError(OutboxError):
    """The body is larger than allowed."""

    code = "too-large"
    action = "change-input"


class TooDeepError(OutboxError):
    """The body is nested deeper than allowed."""

    code = "too-deep"
    action = "change-input"


class UnsupportedMediaTypeError(OutboxError):
    """The body must be application/json."""

    code = "unsupported-media-type"
    action = "change-input"


class InvalidInputError(OutboxError):
    """The input does not fit the tool's schema."""

    code = "invalid-input"
    action = "change-input"


class InvalidRequestError(OutboxError):
    """The request is not as this endpoint expects it."""

    code = "invalid-request"
    action = "change-input"


class MissingKeyFieldError(OutboxError):
    """A field that names the effect is missing."""

    code = "missing-key-field"
    action = "change-input"


class RunRequiredError(OutboxError):
    """This tool needs a run."""

    code = "run-required"
    action = "change-input"


class UnknownToolError(OutboxError):
    """There is no such tool."""

    code = "unknown-tool"
    action = "change-input"


class UnknownConnectionError(OutboxError):
    """There is no such connection."""

    code = "unknown-connection"
    action = "change-input"


class NotFoundError(OutboxError):
    """There is nothing under this name."""

    code = "not-found"
    action = "never"


class MethodNotAllowedError(OutboxError):
    """This address does not answer to this method."""

    code = "method-not-allowed"
    action = "never"


class NotEnforcedError(OutboxError):
    """This restriction is not enforced yet and is therefore refused."""

    code = "not-enforced"
    action = "change-input"


# The caller.


class InvalidKeyError(OutboxError):
    """The scoped key is missing, unknown or damaged."""

    code = "invalid-key"
    action = "never"


class KeyExpiredError(OutboxError):
    """The scoped key has expired."""

    code = "key-expired"
    action = "never"


class KeyRevokedError(OutboxError):
    """The scoped key was revoked."""

    code = "key-revoked"
    action = "never"


class OutOfScopeError(OutboxError):
    """The scoped key does not reach this."""

    code = "out-of-scope"
    action = "never"


class InvalidSignatureError(OutboxError):
    """The webhook is not signed as its connection signs, or too long ago."""

    code = "invalid-signature"
    action = "never"


# The decision.


class PolicyDeniedError(OutboxError):
    """Not allowed by policy."""

    code = "policy-denied"
    action = "never"


class ReviewRequiredError(OutboxError):
    """A person would have to approve this."""

    code = "review-required"
    action = "ask-human"


class ReviewDeniedError(OutboxError):
    """A person refused this."""

    code = "review-denied"
    action = "never"


class QuotaExceededError(OutboxError):
    """A limit is used up."""

    code = "quota-exceeded"
    action = "wait"


class StoppedError(OutboxError):
    """Stopped by a switch."""

    code = "stopped"
    action = "never"


# The effect.


class ConflictError(OutboxError):
    """The same operation with other values."""

    code = "conflict"
    action = "change-input"


class ProviderRefusedError(OutboxError):
    """The provider refused it."""

    code = "provider-refused"
    action = "change-input"


class InDoubtError(OutboxError):
    """It was sent and nobody knows yet whether it happened."""

    code = "in-doubt"
    action = "wait"


class ContradictionError(OutboxError):
    """Proof of an effect contradicts what was settled."""

    code = "contradiction"
    action = "ask-human"


class ObjectBusyError(OutboxError):
    """Another operation on the same object is not finished."""

    code = "object-busy"
    action = "wait"


class OccurrenceOpenError(OutboxError):
    """An earlier occurrence of the same operation is not finished."""

    code = "occurrence-open"
    action = "wait"


class RunBlockedError(OutboxError):
    """An effect of this run is in doubt, and nothing new is begun in it until that is over."""

    code = "run-blocked"
    action = "wait"


class NotInDoubtError(OutboxError):
    """There is no doubt that could be answered."""

    code = "not-in-doubt"
    action = "never"


class NotContradictedError(OutboxError):
    """There is no contradiction that could be closed."""

    code = "not-contradicted"
    action = "never"


class OperationOpenError(OutboxError):
    """Another reservation of the same operation is not finished."""

    code = "operation-open"
    action = "wait"


class AbsenceTooEarlyError(OutboxError):
    """That it did not happen does not count yet."""

    code = "absence-too-early"
    action = "wait"


class RecoveryDueError(OutboxError):
    """Automatic recovery has not ended yet."""

    code = "recovery-due"
    action = "wait"


class CountDiffersError(OutboxError):
    """There are not as many as expected."""

    code = "count-differs"
    action = "change-input"


class VoidedError(OutboxError):
    """Withdrawn before it was sent."""

    code = "voided"
    action = "same-request"


class ProviderUnreachableError(OutboxError):
    """The provider could not be reached; nothing was sent."""

    code = "provider-unreachable"
    action = "same-request"


class FailedError(OutboxError):
    """Closed without an effect."""

    code = "failed"
    action = "same-request"


# The effect that a client carries out itself.


class TimeLimitRequiredError(OutboxError):
    """Without a time limit only class A is carried out by a client."""

    code = "time-limit-required"
    action = "change-input"


class NotClientExecutedError(OutboxError):
    """A worker carries this out."""

    code = "not-client-executed"
    action = "never"


class AttemptUnknownError(OutboxError):
    """There is no such attempt of this caller's."""

    code = "attempt-unknown"
    action = "never"


class AttemptClosedError(OutboxError):
    """The attempt was closed before; what was said of it is kept as evidence."""

    code = "attempt-closed"
    action = "never"


class LeaseLostError(OutboxError):
    """The attempt is not this caller's any more."""

    code = "lease-lost"
    action = "never"


class OutcomeDiffersError(OutboxError):
    """The attempt was settled with another outcome."""

    code = "outcome-differs"
    action = "ask-human"


class NotWithdrawableError(OutboxError):
    """It is under way or in doubt and cannot be withdrawn."""

    code = "not-withdrawable"
    action = "wait"


class NotProbedError(OutboxError):
    """There is no doubt that this caller may look into."""

    code = "not-probed"
    action = "never"


# The request key.


class RequestKeyReusedError(OutboxError):
    """This Idempotency-Key was used for another request."""

    code = "request-key-reused"
    action = "change-input"


class RequestInProgressError(OutboxError):
    """The same request is being answered at this moment."""

    code = "request-in-progress"
    action = "wait"


# The gateway.


class UnavailableError(OutboxError):
    """The ledger is out of reach; nothing was sent."""

    code = "unavailable"
    action = "same-request"


class RateLimitedError(OutboxError):
    """Too many requests."""

    code = "rate-limited"
    action = "wait"


class InternalError(OutboxError):
    """Something unexpected happened on our side."""

    code = "internal"
    action = "same-request"


ERRORS: Mapping[str, type[OutboxError]] = MappingProxyType(
    {
        error.code: error
        for error in (
            MalformedBodyError,
            TooLargeError,
            TooDeepError,
            UnsupportedMediaTypeError,
            InvalidInputError,
            InvalidRequestError,
            MissingKeyFieldError,
            RunRequiredError,
            UnknownToolError,
            UnknownConnectionError,
            NotFoundError,
            MethodNotAllowedError,
            NotEnforcedError,
            InvalidKeyError,
            KeyExpiredError,
            KeyRevokedError,
            OutOfScopeError,
            InvalidSignatureError,
            PolicyDeniedError,
            ReviewRequiredError,
            ReviewDeniedError,
            QuotaExceededError,
            StoppedError,
            ConflictError,
            ProviderRefusedError,
            InDoubtError,
            ContradictionError,
            ObjectBusyError,
            OccurrenceOpenError,
            RunBlockedError,
            NotInDoubtError,
            NotContradictedError,
            OperationOpenError,
            AbsenceTooEarlyError,
            RecoveryDueError,
            CountDiffersError,
            VoidedError,
            ProviderUnreachableError,
            FailedError,
            TimeLimitRequiredError,
            NotClientExecutedError,
            AttemptUnknownError,
            AttemptClosedError,
            LeaseLostError,
            OutcomeDiffersError,
            NotWithdrawableError,
            NotProbedError,
            RequestKeyReusedError,
            RequestInProgressError,
            UnavailableError,
            RateLimitedError,
            InternalError,
        )
    }
)
"""The exception of each problem of the gateway, by its code."""

REFUSALS: frozenset[str] = frozenset(
    {
        "too-large",
        "too-deep",
        "invalid-input",
        "missing-key-field",
        "run-required",
        "unknown-tool",
        "unknown-connection",
        "out-of-scope",
        "policy-denied",
        "review-required",
        "review-denied",
        "quota-exceeded",
        "stopped",
        "conflict",
        "object-busy",
        "occurrence-open",
        "run-blocked",
        "provider-refused",
        "voided",
        "provider-unreachable",
        "failed",
    }
)
"""Problems that say of the wanted effect that it did not happen by this call: `call` returns them as `Refused`."""

DOUBTS: frozenset[str] = frozenset({"in-doubt", "contradiction"})
"""Problems that say that nobody knows: `call` returns them as `InDoubt`."""


# On this side of the gateway.


class SettingsError(OutboxError, ValueError):
    """A setting of the client cannot be used."""

    code = "settings"
    action = "change-input"


class NotAToolCallError(OutboxError, TypeError):
    """The object is not one tool call in a shape that its provider publishes."""

    code = "not-a-tool-call"
    action = "change-input"


class MalformedArgumentsError(InvalidInputError):
    """The arguments are not JSON that can be carried exactly; nothing was sent."""


class UnreachableError(OutboxError):
    """The gateway gave no answer."""

    code = "unreachable"
    action = "same-request"


class UnexpectedAnswerError(OutboxError):
    """What answered is not Agent Outbox, or a version that this client does not know."""

    code = "unexpected-answer"
    action = "never"


class BadHandlerError(OutboxError, TypeError):
    """The handler or probe cannot be called with an effect; nothing was reserved."""

    code = "bad-handler"
    action = "change-input"


class SpoolFullError(OutboxError):
    """Too much waits to be delivered to the gateway; nothing new is begun."""

    code = "spool-full"
    action = "wait"


class NotFinishedError(OutboxError):
    """The call has no end yet."""

    code = "not-finished"
    action = "wait"


def malformed(path: str, expected: str) -> MalformedArgumentsError:
    """Arguments that cannot be sent as they are.

    Args:
        path: where the offending value stands (`$.input.amount`).
        expected: what should have stood there, never what did.
    """
    told = f"{path}: expected {expected}."
    return MalformedArgumentsError(told, message=f"NOT SENT. {told}", path=path)


def unreachable(reason: str, *, possibly_recorded: bool, after_seconds: float | None = None) -> UnreachableError:
    """No answer came.

    Args:
        reason: what happened instead.
        possibly_recorded: the request may have reached the gateway.
        after_seconds: when to try again, where that was said.
    """
    return UnreachableError(
        f"The gateway gave no answer: {reason}.",
        message=_NOT_SENT.format(seconds=_whole_seconds(after_seconds)),
        retry=Retry(action="same-request", after_seconds=after_seconds),
        possibly_recorded=possibly_recorded,
    )


def unexpected(what: str, *, status: int | None = None) -> UnexpectedAnswerError:
    """The answer is not one of Agent Outbox's. Whatever gave it may have passed the request on.

    Args:
        what: is wrong with it.
        status: the HTTP status.
    """
    return UnexpectedAnswerError(f"This is not an answer of Agent Outbox: {what}.", status=status, possibly_recorded=True)


def _whole_seconds(seconds: float | None) -> int:
    return max(1, math.ceil(ASK_AGAIN_SECONDS if seconds is None else seconds))
