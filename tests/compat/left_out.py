"""Which of agent-ledger's test functions are not run against ours, and why."""

from collections.abc import Mapping

APPROVAL = "it needs somebody to approve, deny or cancel, which comes with reviews"
INTERNALS = "it fills or breaks private dicts of their MemoryStore, which ours has not: effects are the gateway's"

LEFT_OUT: Mapping[str, str] = {
    "TestApprovalFlow::test_request_approval": APPROVAL,
    "TestApprovalFlow::test_approve_transitions_to_ready": APPROVAL,
    "TestApprovalFlow::test_deny_with_reason": APPROVAL,
    "TestApprovalFlow::test_denied_during_wait_raises_error": APPROVAL,
    "TestApprovalFlow::test_canceled_during_wait_raises_error": APPROVAL,
    "TestApprovalFlow::test_approve_deny_race_only_one_succeeds": APPROVAL,
    "TestApprovalFlow::test_cancel_pending_approval": APPROVAL,
    "TestApprovalFlow::test_run_with_canceled_effect_raises_denied": APPROVAL,
    "TestConcurrency::test_concurrent_ready_claim_only_one_executes": APPROVAL,
    "TestConcurrency::test_concurrent_approval_only_one_executes": APPROVAL,
    "TestConcurrency::test_claim_from_ready_status": APPROVAL,
    "TestHooks::test_on_approval_required_fires_on_fresh_creation": APPROVAL,
    "TestHooks::test_on_approval_required_does_not_fire_on_replay": APPROVAL,
    "TestHooks::test_hook_error_does_not_abort_run": APPROVAL,
    "TestPolicyHook::test_requires_approval_hook_blocks_dangerous_tool": APPROVAL,
    "TestPolicyHook::test_requires_approval_hook_large_amount_requires_approval": APPROVAL,
    "TestPolicyHook::test_requires_approval_hook_with_on_approval_required": APPROVAL,
    "TestConfigMergingPublicAPI::test_approval_timeout_none_allows_indefinite_wait": APPROVAL,
    "TestErrorHandling::test_store_error_wraps_backend_exceptions": INTERNALS,
    "TestErrorHandling::test_store_error_not_double_wrapped": INTERNALS,
    "TestErrorHandling::test_store_error_from_transition": INTERNALS,
}
"""Every other function of theirs must run and pass."""

FUNCTIONS = 100
"""How many test functions their file has."""

ITEMS = 137
"""How many tests those become that are run: most are run with each of both stores."""
