"""The one registry of problems: what can go wrong for a caller and what the caller's agent may do next.

HTTP status is decided in `outbox_api.errors` alone. Source: design section 10, `interfaces.md` section 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn

from outbox_domain import messages

RetryAction = Literal["none", "same-request", "wait", "change-input", "ask-human", "never"]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """What the agent may do next.

    Attributes:
        action: one of the six words of `interfaces.md` section 1.
        after_seconds: how long to wait before it, where that applies.
        url: where to ask, where that applies.
    """

    action: RetryAction
    after_seconds: float | None = None
    url: str | None = None

    def document(self) -> dict[str, object]:
        """The JSON form; absent members are left out."""
        members = {"action": self.action, "after_seconds": self.after_seconds, "url": self.url}
        return {name: value for name, value in members.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A kind of problem: its stable code, its title and what to do next unless the occurrence knows better."""

    code: str
    title: str
    action: RetryAction

    @property
    def type(self) -> str:
        """The URI that identifies the kind (RFC 9457 section 3.1.1)."""
        return f"https://agent-outbox.dev/problems/{self.code}"


_REGISTRY: tuple[tuple[str, str, RetryAction], ...] = (
    # The request itself.
    ("malformed-body", "The body is not JSON that can be carried exactly", "change-input"),
    ("too-large", "The body is larger than allowed", "change-input"),
    ("too-deep", "The body is nested deeper than allowed", "change-input"),
    ("unsupported-media-type", "The body must be application/json", "change-input"),
    ("invalid-input", "The input does not fit the tool's schema", "change-input"),
    ("invalid-request", "The request is not as this endpoint expects it", "change-input"),
    ("missing-key-field", "A field that names the effect is missing", "change-input"),
    ("run-required", "This tool needs a run", "change-input"),
    ("unknown-tool", "There is no such tool", "change-input"),
    ("unknown-connection", "There is no such connection", "change-input"),
    ("not-found", "There is nothing under this name", "never"),
    ("method-not-allowed", "This address does not answer to this method", "never"),
    ("not-enforced", "This restriction is not enforced yet and is therefore refused", "change-input"),
    # The caller.
    ("invalid-key", "The scoped key is missing, unknown or damaged", "never"),
    ("key-expired", "The scoped key has expired", "never"),
    ("key-revoked", "The scoped key was revoked", "never"),
    ("out-of-scope", "The scoped key does not reach this", "never"),
    ("invalid-signature", "The webhook is not signed as its connection signs, or too long ago", "never"),
    # The decision.
    ("policy-denied", "Not allowed by policy", "never"),
    ("review-required", "A person would have to approve this", "ask-human"),
    ("review-denied", "A person refused this", "never"),
    ("quota-exceeded", "A limit is used up", "wait"),
    ("stopped", "Stopped by a switch", "never"),
    # The effect.
    ("conflict", "The same operation with other values", "change-input"),
    ("provider-refused", "The provider refused it", "change-input"),
    ("in-doubt", "It was sent and nobody knows yet whether it happened", "wait"),
    ("contradiction", "Proof of an effect contradicts what was settled", "ask-human"),
    ("not-in-doubt", "There is no doubt that could be answered", "never"),
    ("not-contradicted", "There is no contradiction that could be closed", "never"),
    ("operation-open", "Another reservation of the same operation is not finished", "wait"),
    ("object-busy", "Another operation on the same object is not finished", "wait"),
    ("occurrence-open", "An earlier occurrence of the same operation is not finished", "wait"),
    ("run-blocked", "An effect of this run is in doubt, and nothing new is begun in it until that is over", "wait"),
    ("absence-too-early", "That it did not happen does not count yet", "wait"),
    ("recovery-due", "Automatic recovery has not ended yet", "wait"),
    ("count-differs", "There are not as many as expected", "change-input"),
    ("voided", "Withdrawn before it was sent", "same-request"),
    ("provider-unreachable", "The provider could not be reached; nothing was sent", "same-request"),
    ("failed", "Closed without an effect", "same-request"),
    # The effect that a client carries out itself.
    ("time-limit-required", "Without a time limit only class A is carried out by a client", "change-input"),
    ("not-client-executed", "A worker carries this out", "never"),
    ("attempt-unknown", "There is no such attempt of this caller's", "never"),
    ("attempt-closed", "The attempt was closed before; what was said of it is kept as evidence", "never"),
    ("lease-lost", "The attempt is not this caller's any more", "never"),
    ("outcome-differs", "The attempt was settled with another outcome", "ask-human"),
    ("not-withdrawable", "It is under way or in doubt and cannot be withdrawn", "wait"),
    ("not-probed", "There is no doubt that this caller may look into", "never"),
    # The request key.
    ("request-key-reused", "This Idempotency-Key was used for another request", "change-input"),
    ("request-in-progress", "The same request is being answered at this moment", "wait"),
    # Ourselves.
    ("unavailable", "The ledger is out of reach; nothing was sent", "same-request"),
    ("rate-limited", "Too many requests", "wait"),
    ("internal", "Something unexpected happened on our side", "same-request"),
)

PROBLEMS: Mapping[str, Problem] = MappingProxyType(
    {code: Problem(code=code, title=title, action=action) for code, title, action in _REGISTRY}
)
"""Every problem by its code."""


class OutboxError(Exception):
    """A problem as one caller met it.

    Args:
        code: a code of `PROBLEMS`.
        detail: what is wrong and what to change, for a developer.
        message: what the model reads; `detail` when left out.
        path: the JSON path of the offending value (`$.input.amount`), where there is one.
        retry: what may be done next; the problem's own action when left out.
        fields: further members of the problem document.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        message: str | None = None,
        path: str | None = None,
        retry: Retry | None = None,
        **fields: object,
    ) -> None:
        super().__init__(detail)
        self.problem = PROBLEMS[code]
        self.detail = detail
        self.message = message if message is not None else detail
        self.path = path
        self.retry = retry if retry is not None else Retry(action=self.problem.action)
        self.fields = fields

    @property
    def code(self) -> str:
        """The stable code of the problem."""
        return self.problem.code


def invalid(path: str, expected: str, *, code: str = "invalid-input") -> OutboxError:
    """The problem of a value that is not as expected.

    Args:
        path: the JSON path of the value.
        expected: what it should be; never the value.
        code: the problem's.
    """
    return OutboxError(code, f"{path}: expected {expected}.", message=messages.invalid_input(path, expected), path=path)


def refuse(path: str, expected: str) -> NoReturn:
    """Refuse an input for one of its values."""
    raise invalid(path, expected)
