"""What is decided where no policy matches (`interfaces.md` section 9)."""

import pytest

from outbox_domain.decision import Decision, allowing_manifest, decide, refusal


@pytest.mark.parametrize(
    ("environment", "declared", "expected"),
    [
        ("sandbox", None, Decision.ALLOW),
        ("development", None, Decision.ALLOW),
        ("production", None, Decision.DENY),
        ("sandboxes", None, Decision.DENY),
        ("production", "allow", Decision.ALLOW),
        ("sandbox", "deny", Decision.DENY),
    ],
)
def test_the_environments_default(environment: str, declared: str | None, expected: Decision) -> None:
    """Sandbox and development allow; any other environment does what was declared, and denies where nothing was."""
    decided = decide(environment=environment, default_decision=declared, occurrence=1)
    assert (decided.decision, decided.rule) == (expected, "environment-default")
    assert decided.allows is (expected is Decision.ALLOW)


@pytest.mark.parametrize(("occurrence", "repeated", "rule"), [(2, False, "occurrence"), (1, True, "repeat-after")])
def test_repetitions_need_a_person(occurrence: int, repeated: bool, rule: str) -> None:
    """A deliberate repetition, and one after its time, are Review; where the environment denies, the stricter wins."""
    decided = decide(environment="sandbox", default_decision=None, occurrence=occurrence, repeated=repeated)
    assert (decided.decision, decided.rule, decided.allows) == (Decision.REVIEW, rule, False)
    denied = decide(environment="production", default_decision=None, occurrence=occurrence, repeated=repeated)
    assert denied.decision is Decision.DENY


def test_refusals() -> None:
    """A denial shows the manifest that would allow the call; a review that cannot be asked for is said to be one."""
    denied = refusal(
        decide(environment="production", default_decision=None, occurrence=1), tool="stripe.refund.create", connection="stripe-eu"
    )
    assert denied.code == "policy-denied"
    assert denied.fields["manifest"] == allowing_manifest(tool="stripe.refund.create", connection="stripe-eu")
    assert denied.fields["decision"] == {"decision": "deny", "rule": "environment-default"}
    review = refusal(
        decide(environment="sandbox", default_decision=None, occurrence=2), tool="stripe.refund.create", connection="stripe-eu"
    )
    assert (review.code, review.retry.action) == ("review-required", "ask-human")
    assert review.message.startswith("NOT DONE.")
