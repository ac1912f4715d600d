"""Scoped keys: what is mistyped is known at once, and what is out of reach is refused."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_domain import scoped_key
from outbox_domain.capability import AGENT_CAPABILITIES, CAPABILITIES, Capability, Role, capabilities, require
from outbox_domain.errors import OutboxError
from outbox_domain.scoped_key import ScopedKey

NOW = datetime(2026, 1, 31, 8, 15, tzinfo=UTC)
KEY_IDS = st.binary(min_size=10, max_size=10)
SECRETS = st.binary(min_size=24, max_size=24)
ENVIRONMENTS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
TEXT, DIGEST = scoped_key.mint("sandbox", bytes(range(10)), bytes(range(24)))
REFUND = ("stripe.refund.create", "stripe", "default", "thread-77", NOW)


def key(**members: Any) -> ScopedKey:
    """An agent's key that reaches everything, but for these members."""
    return replace(
        ScopedKey(
            id=scoped_key.parse(TEXT).key_id,
            organization_id=UUID(int=1),
            organization="demo",
            environment_id=UUID(int=2),
            environment="sandbox",
            project=None,
            project_id=None,
            run=None,
            actor_id=UUID(int=3),
            actor_kind="agent",
            actor_name="refunds",
            actor_chain=("agent:refunds",),
            roles=frozenset(),
            providers=None,
            tools=None,
            expires_at=None,
            secret_digest=DIGEST,
        ),
        **members,
    )


def refusal(held: ScopedKey, *call: Any) -> OutboxError:
    """How a key refuses a call."""
    with pytest.raises(OutboxError) as caught:
        held.allow(*call)
    return caught.value


@given(ENVIRONMENTS, KEY_IDS, SECRETS)
def test_a_minted_key_reads_back(environment: str, key_id: bytes, secret: bytes) -> None:
    """Its parts come back, and the stored digest is that of the secret."""
    text, digest = scoped_key.mint(environment, key_id, secret)
    parsed = scoped_key.parse(text)
    assert (parsed.environment, parsed.key_id, parsed.secret) == (environment, scoped_key.key_id_text(key_id), secret)
    assert digest == scoped_key.digest(parsed.secret)
    assert secret not in digest


@given(KEY_IDS, SECRETS, st.data())
def test_one_wrong_character_is_noticed(key_id: bytes, secret: bytes, data: st.DataObject) -> None:
    """The checksum tells a mistyped key from an unknown one without a look into the database."""
    text, _ = scoped_key.mint("sandbox", key_id, secret)
    position = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([c for c in "0123456789abcdefxyz_-ABC é" if c != text[position]]))
    with pytest.raises(OutboxError) as caught:
        scoped_key.parse(text[:position] + other + text[position + 1 :])
    assert caught.value.code == "invalid-key"


@given(KEY_IDS, SECRETS, st.integers(0, 83))
def test_two_swapped_characters_are_noticed(key_id: bytes, secret: bytes, position: int) -> None:
    """Neighbours that changed places are the commonest slip after a lost end."""
    text, _ = scoped_key.mint("sandbox", key_id, secret)
    position %= len(text) - 1
    swapped = text[:position] + text[position + 1] + text[position] + text[position + 2 :]
    if swapped != text:
        with pytest.raises(OutboxError):
            scoped_key.parse(swapped)


@pytest.mark.parametrize(
    "text", ["", "obx_", TEXT + "\n", f" {TEXT}", TEXT * 2, TEXT.upper(), "obx_" + "a" * 100_000, "ключ", "\ud800"]
)
def test_other_texts_are_no_key(text: str) -> None:
    """They are refused, and the refusal repeats nothing of them."""
    with pytest.raises(OutboxError) as caught:
        scoped_key.parse(text)
    assert caught.value.code == "invalid-key"
    assert TEXT[-20:] not in caught.value.detail + caught.value.message


@pytest.mark.parametrize("environment", ["", "Sandbox", "a_b", "-a", "a" * 64, "é"])
def test_an_environment_that_could_not_be_read_back_gets_no_key(environment: str) -> None:
    """A key is never shown that `parse` would refuse."""
    with pytest.raises(ValueError, match=r"environment|ascii|codec"):
        scoped_key.mint(environment, bytes(10), bytes(24))


@pytest.mark.parametrize(("key_id", "secret"), [(bytes(9), bytes(24)), (bytes(10), bytes(23))])
def test_parts_of_another_length_are_refused(key_id: bytes, secret: bytes) -> None:
    """A short secret would be a weak key."""
    with pytest.raises(ValueError, match="bytes"):
        scoped_key.mint("sandbox", key_id, secret)


def test_only_the_right_secret_verifies() -> None:
    """Another secret, id or environment is an unknown key; revoked and expired ones are told as such."""
    presented = scoped_key.parse(TEXT)
    key().verify(presented, NOW)
    for other, code in (
        (key(secret_digest=bytes(32)), "invalid-key"),
        (key(environment="production"), "invalid-key"),
        (key(id="a" * 16), "invalid-key"),
        (key(revoked=True), "key-revoked"),
        (key(expires_at=NOW), "key-expired"),
        (key(revoked=True, secret_digest=bytes(32)), "invalid-key"),
    ):
        with pytest.raises(OutboxError) as caught:
            other.verify(presented, NOW)
        assert caught.value.code == code


def test_secrets_do_not_print_themselves() -> None:
    """Neither the parsed key nor the row shows what proves it."""
    assert "secret" not in repr(scoped_key.parse(TEXT))
    assert "secret" not in repr(key())


def test_a_key_without_bounds_reaches_everything() -> None:
    """None means any."""
    key().allow(*REFUND)
    key().allow("github.issue.create", "github", None, None, NOW)


@pytest.mark.parametrize(
    ("members", "dimension"),
    [
        ({"providers": frozenset({"github"})}, "tool"),
        ({"providers": frozenset()}, "tool"),
        ({"tools": frozenset({"stripe.refund.list", "github.*"})}, "tool"),
        ({"tools": frozenset()}, "tool"),
        ({"providers": frozenset({"github"}), "tools": frozenset({"stripe.*"})}, "tool"),
        ({"project": "billing"}, "project"),
        ({"run": "thread-78"}, "run"),
        ({"actor_kind": "member", "roles": frozenset({"auditor"})}, "role"),
        ({"actor_kind": "member", "roles": frozenset({"approver", "operator"})}, "role"),
    ],
)
def test_a_narrow_key_refuses_what_is_outside(members: dict[str, Any], dimension: str) -> None:
    """Each dimension bounds on its own; all of them have to fit."""
    error = refusal(key(**members), *REFUND)
    assert (error.code, error.fields["dimension"]) == ("out-of-scope", dimension)
    assert error.message.startswith("NOT DONE. Not allowed: ")


def test_a_key_of_one_run_acts_in_no_other_and_in_none_unnamed() -> None:
    """`run_of` names the run for a call that does not."""
    held = key(run="thread-77")
    held.allow(*REFUND)
    assert refusal(held, "stripe.refund.create", "stripe", None, None, NOW).fields["dimension"] == "run"
    assert held.run_of(None) == "thread-77"
    assert held.run_of("thread-1") == "thread-1"
    assert key().run_of(None) is None


def test_a_key_without_project_acts_in_the_default_one() -> None:
    """It reaches no other project."""
    assert key().acting_project == "default"
    assert key(project="billing").acting_project == "billing"
    assert refusal(key(), "stripe.refund.create", "stripe", "billing", None, NOW).fields["dimension"] == "project"


def test_a_key_ends_at_its_moment() -> None:
    """The moment of expiry itself is too late; a revoked key reaches nothing."""
    key(expires_at=NOW + timedelta(microseconds=1)).allow(*REFUND)
    assert refusal(key(expires_at=NOW), *REFUND).code == "key-expired"
    assert refusal(key(revoked=True), *REFUND).code == "key-revoked"


@pytest.mark.parametrize(
    ("pattern", "tool", "fits"),
    [
        ("*", "stripe.refund.create", True),
        ("stripe.*", "stripe.refund.create", True),
        ("stripe.*", "stripes.refund.create", False),
        ("stripe.refund.create", "stripe.refund.create", True),
        ("stripe.refund", "stripe.refund.create", False),
        ("*.create", "stripe.refund.create", True),
        ("stripe.*.create", "stripe.refund.create", True),
        ("stripe.*.create", "stripe.create", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*a*b*", "xaxbx", True),
        ("*b*a*", "ab", False),
        ("stripe?refund", "stripe.refund", False),
        ("stripe.[r]efund", "stripe.refund", False),
        ("STRIPE.*", "stripe.refund", False),
        ("", "", True),
        ("", "x", False),
    ],
)
def test_globs_know_the_star_and_nothing_else(pattern: str, tool: str, fits: bool) -> None:
    """A star stands for any characters; every other one stands for itself."""
    assert scoped_key.matches(pattern, tool) is fits


@given(st.text("ab.", max_size=8), st.text("ab.*", max_size=8))
def test_globs_agree_with_their_definition(tool: str, pattern: str) -> None:
    """The reader from left to right finds what a search through all splits finds."""

    def fits(pattern: str, tool: str) -> bool:
        if not pattern:
            return not tool
        if pattern[0] == "*":
            return any(fits(pattern[1:], tool[cut:]) for cut in range(len(tool) + 1))
        return tool[:1] == pattern[0] and fits(pattern[1:], tool[1:])

    assert scoped_key.matches(pattern, tool) == fits(pattern, tool)


def test_roles_map_to_capabilities_in_one_table() -> None:
    """Every role is in the table, the owner may do all, and only the owner may dispose of the organization."""
    assert set(CAPABILITIES) == set(Role)
    assert CAPABILITIES[Role.OWNER] == frozenset(Capability)
    holders = [role for role in Role if Capability.MANAGE_ORGANIZATION in CAPABILITIES[role]]
    assert holders == [Role.OWNER]
    assert [role for role in Role if Capability.MANAGE_KEYS in CAPABILITIES[role]] == [Role.OWNER, Role.ADMIN]
    assert all(Capability.READ_OWN in granted for granted in CAPABILITIES.values())


def test_agents_call_and_read_their_own_and_nothing_more() -> None:
    """Roles written beside an agent's name give it nothing."""
    assert frozenset({Capability.CALL_TOOLS, Capability.EXECUTE_EFFECTS, Capability.READ_OWN}) == AGENT_CAPABILITIES
    assert capabilities("agent", ["owner"]) == capabilities("subagent", ["admin"]) == AGENT_CAPABILITIES
    with pytest.raises(OutboxError) as caught:
        require("agent", ["owner"], Capability.MANAGE_KEYS)
    assert caught.value.code == "out-of-scope"


def test_a_member_may_do_what_any_of_the_roles_may() -> None:
    """An unknown role gives nothing, and no role gives nothing."""
    both = capabilities("member", ["approver", "auditor"])
    assert both == CAPABILITIES[Role.APPROVER] | CAPABILITIES[Role.AUDITOR]
    assert capabilities("member", ["emperor"]) == capabilities("member", []) == frozenset()
    require("member", ["admin"], Capability.MANAGE_KEYS)
    key(actor_kind="member", roles=frozenset({"admin"})).require(Capability.RESOLVE)
