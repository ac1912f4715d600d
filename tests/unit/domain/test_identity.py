"""The identity of an effect: different effects never share a key, and one effect always has the same one."""

import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from outbox_domain.binding import BoundInput
from outbox_domain.contract import ToolContract
from outbox_domain.errors import OutboxError
from outbox_domain.identity import (
    Identity,
    Scope,
    Secrets,
    conflicting_fields,
    identify,
    marker,
    provider_key,
    template_segments,
)

SECRETS = Secrets(digest_key=bytes(range(32)), provider_key_secret=bytes(range(32, 64)))
OTHER_SECRETS = Secrets(digest_key=bytes(32), provider_key_secret=bytes(32))
LINEAGE = "01890a5d-ac96-774b-bcce-b302099a8057"
# What may stand in a key: no control characters and no lone surrogates; the rest of Unicode, colons and percent signs first.
KEY_TEXT = st.text(
    st.sampled_from(":%25A3{}") | st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=20
)
ONE_TYPE = (st.booleans(), st.integers(-10, 10) | st.floats(-10, 10), KEY_TEXT)
SCALARS = st.booleans() | st.integers(-10, 10) | st.floats(-10, 10) | KEY_TEXT


def contract(identity: Any, **members: Any) -> ToolContract:
    """A contract with this identity and little else."""
    request = {"driver": "http_json", "method": "POST", "url": "/tickets", "deadline": "20s"}
    return ToolContract.from_document(
        {
            "tool": "desk.ticket.create",
            "version": 1,
            "kind": "mutating",
            "class": "A",
            "input": {"type": "object"},
            "identity": identity,
            "request": request,
            **members,
        }
    )


def name(
    tool: ToolContract, value: dict[str, Any], reference: str | None = None, *, run: str | None = None, secrets: Secrets = SECRETS
) -> Identity:
    """The identity of a call."""
    bound = BoundInput(value=value, amount=None, currency=None)
    return identify(tool, bound, reference=reference, occurrence=1, run_lineage_id=run, secrets=secrets)


def refused(tool: ToolContract, value: dict[str, Any], reference: str | None = None) -> OutboxError:
    """The refusal of a call."""
    with pytest.raises(OutboxError) as caught:
        name(tool, value, reference)
    return caught.value


REFUND = contract({"key": "refund:{payment_intent}:{reference}", "scope": "environment"}, declared=["payment_intent", "amount"])
THREE = contract({"key": "three:{a}:{b}:{c}", "scope": "environment"})
MIDDLE = contract({"key": "middle:{a}:{reference}:{b}", "scope": "environment"})


@given(st.tuples(KEY_TEXT, KEY_TEXT, KEY_TEXT), st.tuples(KEY_TEXT, KEY_TEXT, KEY_TEXT))
def test_two_different_tuples_never_share_an_operation_key(mine: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    """The operation key is injective over its segments, colons and percent signs included."""
    keys = [name(THREE, dict(zip("abc", fields, strict=True))).operation_key for fields in (mine, theirs)]
    assert (keys[0] == keys[1]) == (mine == theirs)
    assert keys[0].count(":") == 3


@given(st.text(":%253A", min_size=1, max_size=6), st.text(":%253A", min_size=1, max_size=6), st.text(":%253A", max_size=6))
def test_a_value_cannot_imitate_a_boundary(a: str, b: str, moved: str) -> None:
    """Moving characters from one segment to the next gives another key."""
    assume(moved)
    one = name(THREE, {"a": a + moved, "b": b, "c": "x"}).operation_key
    other = name(THREE, {"a": a, "b": moved + b, "c": "x"}).operation_key
    assert one != other


SPELLINGS = st.lists(st.sampled_from([":", "%3A", "%253A", "%25", "%"]), min_size=1, max_size=2).map("".join)


@given(SPELLINGS, SPELLINGS)
def test_no_spelling_of_a_colon_or_percent_sign_is_taken_for_another(mine: str, theirs: str) -> None:
    """What already looks encoded is encoded again, so that `:` and `%3A` stay two values."""
    one, other = (name(REFUND, {"payment_intent": value}).operation_key for value in (mine, theirs))
    assert (one == other) == (mine == theirs)


@given(KEY_TEXT, KEY_TEXT, st.none() | KEY_TEXT, KEY_TEXT, KEY_TEXT, st.none() | KEY_TEXT)
def test_a_call_without_reference_meets_only_calls_without(
    a: str, b: str, r: str | None, a2: str, b2: str, r2: str | None
) -> None:
    """An absent reference is no empty one, wherever its segment stands."""
    one, other = name(MIDDLE, {"a": a, "b": b}, r).operation_key, name(MIDDLE, {"a": a2, "b": b2}, r2).operation_key
    assert (one == other) == ((a, b, r) == (a2, b2, r2))


@given(st.sampled_from(ONE_TYPE).flatmap(lambda kind: st.tuples(kind, kind, kind, kind)))
def test_scalars_of_one_type_share_a_key_only_when_equal(values: tuple[object, object, object, object]) -> None:
    """Numbers and booleans enter in their canonical form, in which 12 and 12.0 are one number."""
    a, b, a2, b2 = values
    one, other = (name(THREE, {"a": x, "b": y, "c": 1}).operation_key for x, y in ((a, b), (a2, b2)))
    assert (one == other) == ((a, b) == (a2, b2))


@given(st.dictionaries(st.sampled_from("xyz"), SCALARS), st.dictionaries(st.sampled_from("xyz"), SCALARS))
def test_fields_outside_the_template_are_no_part_of_the_key(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The key names the effect; that the rest differs is seen by the digest."""
    one, other = name(REFUND, {"payment_intent": "pi", **mine}), name(REFUND, {"payment_intent": "pi", **theirs})
    assert one.operation_key == other.operation_key == "refund:pi"


@given(st.none() | KEY_TEXT)
def test_an_input_field_called_reference_is_not_the_callers_reference(written: str | None) -> None:
    """A model that writes a field `reference` changes nothing of the key, be the caller's reference there or not."""
    value = {"payment_intent": "pi", "reference": written}
    assert name(REFUND, value).operation_key == "refund:pi"
    assert name(REFUND, value, "case").operation_key == "refund:pi:case"
    only = contract({"key": "ticket:{reference}", "scope": "environment"})
    assert refused(only, value).path == "$.reference"
    assert refused(contract({"key": "ticket:{input.reference}", "scope": "environment"}), {}, "case").path == "$.input.reference"


@pytest.mark.parametrize("value", [{}, {"payment_intent": None}, {"payment_intent": ""}])
def test_a_missing_key_field_is_refused(value: dict[str, Any]) -> None:
    """Absent, null and empty name nothing."""
    error = refused(REFUND, value, "case-1")
    assert (error.code, error.path) == ("missing-key-field", "$.input.payment_intent")


@pytest.mark.parametrize("value", [{"k": 1}, {}, [1], []])
@pytest.mark.parametrize("personal", [[], ["a"]])
def test_an_object_or_array_is_no_key_field(value: object, personal: list[str]) -> None:
    """It is refused, personal or not, naming the field."""
    error = refused(contract({"key": "x:{a}", "scope": "environment"}, personal=personal), {"a": value})
    assert (error.code, error.path) == ("invalid-input", "$.input.a")


@pytest.mark.parametrize("character", ["\x00", "\n", "\x7f", "\x85", "\u2028"])
def test_control_characters_do_not_enter_a_readable_key(character: str) -> None:
    """They break logs and Postgres's text; in a personal field, which is digested, they do no harm."""
    assert refused(THREE, {"a": f"x{character}", "b": "y", "c": "z"}).path == "$.input.a"
    personal = contract({"key": "x:{a}", "scope": "environment"}, personal=["a"])
    assert len(name(personal, {"a": f"x{character}"}).operation_key) == len("x:hmac-sha256-") + 64


def test_an_operation_key_has_at_most_512_characters() -> None:
    """The longest value is named when it has more."""
    assert len(name(REFUND, {"payment_intent": "p" * 505}).operation_key) == 512
    error = refused(REFUND, {"payment_intent": "p" * 300}, ":" * 100)
    assert (error.code, error.path) == ("invalid-input", "$.input.payment_intent")
    assert refused(REFUND, {"payment_intent": "p"}, ":" * 200).path == "$.reference"


@given(KEY_TEXT, KEY_TEXT)
def test_a_personal_key_field_never_appears_readable(mine: str, theirs: str) -> None:
    """It enters as a keyed digest: equal for equal values, other under another organization's key."""
    tool = contract({"key": "customer:{email}", "scope": "environment"}, personal=["email"], declared=["email"])
    # The canary ends in a letter that no hexadecimal digest holds, so that chance never finds it there.
    one, other = name(tool, {"email": f"{mine}@canary"}), name(tool, {"email": f"{theirs}@canary"})
    assert re.fullmatch("customer:hmac-sha256-[0-9a-f]{64}", one.operation_key)
    assert "@canary" not in repr(one)
    assert (one.operation_key == other.operation_key) == (mine == theirs)
    assert one.operation_key != name(tool, {"email": f"{mine}@canary"}, secrets=OTHER_SECRETS).operation_key


def test_what_stands_inside_a_personal_field_is_personal() -> None:
    """A mark on an object reaches all of its members."""
    tool = contract(
        {"key": "customer:{person.email}", "scope": "environment"}, personal=["person"], declared=["person.age", "person.email"]
    )
    identity = name(tool, {"person": {"email": "ada@example.com", "age": 37}})
    assert "ada" not in identity.operation_key
    assert all(str(kept).startswith("hmac-sha256:") for kept in identity.declared.values())


MAIL = contract(
    [
        {"key": "mail:{reference}", "scope": "environment", "presentational": ["subject", "text"]},
        {"digest": "input", "scope": "run", "repeat_after": "24h"},
    ],
    declared=["to"],
    personal=["to"],
)


def test_the_first_rule_whose_fields_are_present_names_the_effect() -> None:
    """A mail with a reference is known by it; without one, by its whole content within the run."""
    mail = {"to": "ada@example.com", "subject": "Hello", "text": "Hi"}
    by_reference = name(MAIL, mail, "order-1")
    assert (by_reference.rule_index, by_reference.operation_key, by_reference.scope) == (0, "mail:order-1", "environment")
    assert by_reference.repeat_after is None
    by_content = name(MAIL, mail, run=LINEAGE)
    assert by_content.rule_index == 1
    assert by_content.operation_key == "hmac-sha256:" + by_content.input_digest.hex()
    assert by_content.scope == f"run:{LINEAGE}"
    assert by_content.repeat_after == timedelta(hours=24)


def test_presentational_fields_count_only_where_they_name_the_effect() -> None:
    """A reworded mail of one order is the same mail; without a reference it is another; a review is bound to every word."""
    mail, reworded = {"to": "a@b.c", "text": "Hi"}, {"to": "a@b.c", "text": "Hello"}
    one, other = name(MAIL, mail, "order-1"), name(MAIL, reworded, "order-1")
    assert one.input_digest == other.input_digest
    assert one.review_digest != other.review_digest
    assert name(MAIL, mail, run=LINEAGE).operation_key != name(MAIL, reworded, run=LINEAGE).operation_key


def test_a_dotted_presentational_field_reaches_into_objects() -> None:
    """Only the named member is left out, and the input itself is untouched."""
    tool = contract({"key": "x:{id}", "scope": "environment"}, presentational=["shown.note", "absent.member"])
    value = {"id": 1, "shown": {"note": "a", "size": 2}}
    assert name(tool, value).input_digest == name(tool, {"id": 1, "shown": {"note": "b", "size": 2}}).input_digest
    assert name(tool, value).input_digest != name(tool, {"id": 1, "shown": {"note": "a", "size": 3}}).input_digest
    assert value == {"id": 1, "shown": {"note": "a", "size": 2}}


def test_run_scope_needs_a_run() -> None:
    """Without one the call is refused before anything else is asked of it."""
    error = refused(MAIL, {"to": "a@b.c"})
    assert (error.code, error.path) == ("run-required", "$.run")
    assert error.message.startswith("NOT SENT. $.run: expected ")


def test_a_contract_without_identity_is_a_fault_of_ours() -> None:
    """It is no refusal of the caller's input."""
    with pytest.raises(ValueError, match="no identity"):
        name(contract([]), {})


@given(st.dictionaries(st.text(max_size=5), SCALARS), st.dictionaries(st.text(max_size=5), SCALARS))
def test_input_digests_are_equal_exactly_for_equal_inputs(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Order is irrelevant, everything else is not; the review digest is never the input digest."""
    tool = contract({"digest": "input", "scope": "run"})
    one, other = name(tool, mine, run=LINEAGE), name(tool, dict(reversed(theirs.items())), run=LINEAGE)
    equal = mine == theirs and all(isinstance(mine[k], bool) == isinstance(theirs[k], bool) for k in mine)
    assert (one.input_digest == other.input_digest) == equal
    assert one.input_digest != one.review_digest
    assert one.input_digest != name(tool, mine, run=LINEAGE, secrets=OTHER_SECRETS).input_digest


def test_declared_fields_keep_measures_in_clear_and_the_rest_as_digests() -> None:
    """Absent and null fields are left out; a personal number is digested too."""
    tool = contract(
        {"digest": "input", "scope": "run"},
        declared=["amount", "express", "note", "items", "age", "gone", "nil"],
        personal=["age"],
    )
    value = {"amount": 1200, "express": False, "note": "hi", "items": [1], "age": 37, "nil": None}
    declared = name(tool, value, run=LINEAGE).declared
    assert list(declared) == ["amount", "express", "note", "items", "age"]
    assert (declared["amount"], declared["express"]) == (1200, False)
    assert all(str(declared[field]).startswith("hmac-sha256:") for field in ("note", "items", "age"))


def test_conflicting_fields_are_told_by_name() -> None:
    """What only one of the two has differs; 12.0 is 12; true is not 1."""
    digest = "hmac-sha256:" + "0" * 64
    assert conflicting_fields({"amount": 12, "intent": digest}, {"intent": digest, "amount": 12.0}) == []
    assert conflicting_fields({"amount": 12, "x": True, "b": 1}, {"amount": 13, "x": 1, "c": 2}) == ["amount", "x", "b", "c"]


@pytest.mark.parametrize(
    "template", ["{a}{b}", "x:{a}-{b}", "x::{a}", ":{a}", "{a}:", "x:{a", "x:a}", "x:{}", "x:{a b}", "50%:{a}", ""]
)
def test_a_template_that_could_mix_two_effects_is_refused(template: str) -> None:
    """Two fields in one segment, empty segments, stray braces and percent signs are faults of the contract."""
    with pytest.raises(ValueError, match="segment"):
        template_segments(template)


def test_fixed_text_may_stand_around_a_field() -> None:
    """It parts nothing and is part of the segment, also of one that is left out."""
    tool = contract({"key": "v2-{order}-eu:case-{reference}", "scope": "environment"})
    assert name(tool, {"order": 17}).operation_key == "v2-17-eu"
    assert name(tool, {"order": 17}, "1").operation_key == "v2-17-eu:case-1"


SCOPE = Scope(organization="demo", project="default", environment="sandbox", connection="stripe", tool="stripe.refund.create")
NAMES = st.text(max_size=8)
EFFECTS = st.fixed_dictionaries(
    {
        "scope": st.builds(Scope, organization=NAMES, project=NAMES, environment=NAMES, connection=NAMES, tool=NAMES),
        "key_scope": st.just("environment") | NAMES.map("run:{}".format),
        "operation_key": NAMES,
        "occurrence": st.integers(1, 3),
    }
)


@given(EFFECTS, EFFECTS, st.integers(0, 3), st.integers(0, 3))
def test_provider_keys_are_equal_exactly_for_the_same_names(mine: Any, theirs: Any, generation: int, other: int) -> None:
    """The provider key changes with every component; the marker with every one but the generation."""
    secret = SECRETS.provider_key_secret
    keys = provider_key(secret, generation=generation, **mine), provider_key(secret, generation=other, **theirs)
    assert (keys[0] == keys[1]) == ((mine, generation) == (theirs, other))
    assert (marker(secret, **mine) == marker(secret, **theirs)) == (mine == theirs)


def test_every_component_alone_changes_provider_key_and_marker() -> None:
    """No name is left out; only the generation leaves the marker as it is."""
    secret = SECRETS.provider_key_secret
    base: dict[str, Any] = {"scope": SCOPE, "key_scope": "environment", "operation_key": "k", "occurrence": 1}
    variants = [
        {**base, "scope": Scope(**{**vars(SCOPE), part: "other"})}
        for part in ("organization", "project", "environment", "connection", "tool")
    ] + [{**base, "key_scope": "run:a"}, {**base, "operation_key": "k2"}, {**base, "occurrence": 2}, base]
    assert len({provider_key(secret, generation=0, **variant) for variant in variants}) == len(variants)
    assert len({marker(secret, **variant) for variant in variants}) == len(variants)
    assert provider_key(secret, generation=0, **base) != provider_key(secret, generation=1, **base)
    assert provider_key(bytes(32), generation=0, **base) != provider_key(secret, generation=0, **base)


@given(EFFECTS, st.integers(0, 3))
def test_keys_shown_to_providers_are_short_plain_words(effect: Any, generation: int) -> None:
    """Sixty-eight characters that every header and metadata field takes, whatever the names hold; the two never meet."""
    key = provider_key(SECRETS.provider_key_secret, generation=generation, **effect)
    planted = marker(SECRETS.provider_key_secret, **effect)
    for text, prefix in ((key, "obx_"), (planted, "obm_")):
        assert text.startswith(prefix)
        assert len(text) == 68
        assert text.isascii()
    assert key[4:] != planted[4:]


def test_secrets_do_not_print_themselves() -> None:
    """A log line of the object shows no key."""
    assert "x01" not in repr(SECRETS)
    assert repr(SECRETS) == "Secrets()"
