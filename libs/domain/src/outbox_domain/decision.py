"""What is decided about a tool call before its effect is wanted, and by which rule. Pure: the facts come in as arguments.

Policies bring rules of their own; until one matches, these hold (`interfaces.md` section 9): the environment's default, a review
for `occurrence` above 1, a review for a repeat of a digest-keyed tool after its `repeat_after`. The strictest decision wins.
"""

from dataclasses import dataclass
from enum import StrEnum

from outbox_domain import messages
from outbox_domain.errors import OutboxError

ALLOWING_ENVIRONMENTS = frozenset({"sandbox", "development"})
"""Environments in which a call is allowed when no policy matches and nothing else was declared."""


class Decision(StrEnum):
    """What policies say of a tool call, from the loosest to the strictest."""

    ALLOW = "allow"
    ALERT = "alert"
    REVIEW = "review"
    DENY = "deny"


_STRICTNESS = {decision: rank for rank, decision in enumerate(Decision)}


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A decision and the rule it comes from.

    Attributes:
        decision: the strictest of all that matched.
        rule: the name of the rule that said so.
        message: what the rule says of itself, for the model and for people.
    """

    decision: Decision
    rule: str
    message: str

    @property
    def allows(self) -> bool:
        """Whether the effect may be reserved now."""
        return self.decision in (Decision.ALLOW, Decision.ALERT)

    def document(self) -> dict[str, object]:
        """The form that the ledger keeps."""
        return {"decision": self.decision.value, "rule": self.rule}


def decide(*, environment: str, default_decision: str | None, occurrence: int, repeated: bool = False) -> Decided:
    """Decide about a tool call that no policy matches.

    Args:
        environment: the environment's name.
        default_decision: `allow` or `deny` as declared when the environment was made; None where nothing was declared.
        occurrence: which repetition of the same effect the caller wants; 1 is the first.
        repeated: the identity was settled before and its `repeat_after` is over.

    Returns:
        The strictest decision of the rules that apply.
    """
    rules = [_environment_default(environment, default_decision)]
    if occurrence > 1:
        rules.append(
            Decided(decision=Decision.REVIEW, rule="occurrence", message="A deliberate repetition of one effect needs a person.")
        )
    if repeated:
        rules.append(
            Decided(
                decision=Decision.REVIEW,
                rule="repeat-after",
                message="The same input was settled before; a later repetition of it needs a person.",
            )
        )
    return max(rules, key=lambda rule: _STRICTNESS[rule.decision])


def _environment_default(environment: str, default_decision: str | None) -> Decided:
    allows = environment in ALLOWING_ENVIRONMENTS if default_decision is None else default_decision == "allow"
    if allows:
        return Decided(
            decision=Decision.ALLOW, rule="environment-default", message="The environment allows what no policy names."
        )
    return Decided(
        decision=Decision.DENY,
        rule="environment-default",
        message=f"No policy allows this tool in the environment {environment}.",
    )


def allowing_manifest(*, tool: str, connection: str) -> str:
    """The smallest ToolPolicy that would allow a tool on a connection, as YAML (`interfaces.md` section 4).

    Args:
        tool: the tool's name; its form is that of `contract.TOOL_NAME`, so it needs no quoting beyond the quotes.
        connection: the connection's name.
    """
    return (
        "apiVersion: agent-outbox.dev/v1alpha1\n"
        "kind: ToolPolicy\n"
        "metadata:\n"
        f"  name: allow-{tool.replace('.', '-').replace('_', '-')}\n"
        "spec:\n"
        "  mode: Enforce\n"
        "  match:\n"
        f'    tools: ["{tool}"]\n'
        f'    connections: ["{connection}"]\n'
        "  default: Allow\n"
    )


def refusal(decided: Decided, *, tool: str, connection: str) -> OutboxError:
    """The problem that a decision other than an allowing one is answered with.

    Until reviews exist a Review is refused: what a person would have to approve is not done meanwhile.

    Args:
        decided: the decision.
        tool: the tool's name.
        connection: the connection's name.

    Returns:
        `policy-denied` with the manifest that would allow the call, or `review-required`.
    """
    if decided.decision is Decision.DENY:
        return OutboxError(
            "policy-denied",
            f"{decided.message} Apply a policy that allows it; `manifest` is the smallest one.",
            message=messages.policy_denied(decided.message),
            decision=decided.document(),
            manifest=allowing_manifest(tool=tool, connection=connection),
        )
    return OutboxError(
        "review-required",
        f"{decided.message} Reviews are not available, so it is refused.",
        message=messages.review_required(),
        decision=decided.document(),
    )
