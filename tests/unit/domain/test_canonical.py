"""Canonical bytes: one form per value, and digests whose purposes never meet."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_domain import canonical, json_text

EXACT = json_text.EXACT_INTEGER_MAX
# Doubles stay below 2^53 here: beyond, RFC 8785 writes digits that a strict reader refuses as an integer.
EXACT_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-EXACT, max_value=EXACT)
    | st.floats(min_value=-float(EXACT), max_value=float(EXACT))
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


def same(a: object, b: object) -> bool:
    """Whether two values are one JSON value: numbers by value, but true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return (type(a) is type(b) and a == b) or (isinstance(a, int | float) and isinstance(b, int | float) and a == b)


def shuffled(value: object, chance: random.Random) -> object:
    """The same value with the members of every object in another order."""
    if isinstance(value, dict):
        names = list(value)
        chance.shuffle(names)
        return {name: shuffled(value[name], chance) for name in names}
    if isinstance(value, list):
        return [shuffled(item, chance) for item in value]
    return value


@given(EXACT_JSON)
def test_canonical_bytes_read_back_as_the_value(value: object) -> None:
    """A strict reader reads the canonical bytes, and finds what was written."""
    assert same(json_text.parse(canonical.canonical(value)), value)


@given(EXACT_JSON)
def test_canonicalisation_is_idempotent(value: object) -> None:
    """The canonical bytes of what the canonical bytes say are the canonical bytes."""
    once = canonical.canonical(value)
    assert canonical.canonical(json_text.parse(once)) == once


@given(st.recursive(st.floats(allow_nan=False, allow_infinity=False), lambda children: st.lists(children, max_size=4)))
def test_every_double_keeps_its_value(value: object) -> None:
    """Doubles of any magnitude survive the canonical form in a reader of doubles."""
    assert json.loads(canonical.canonical(value), parse_int=float) == value


@given(EXACT_JSON, st.randoms(use_true_random=False))
def test_the_order_of_members_is_irrelevant(value: object, chance: random.Random) -> None:
    """However the members of an object were ordered, its bytes are the same."""
    assert canonical.canonical(shuffled(value, chance)) == canonical.canonical(value)


@given(EXACT_JSON, EXACT_JSON)
def test_distinct_values_have_distinct_bytes(a: object, b: object) -> None:
    """Equal bytes mean one value, and one value has equal bytes."""
    assert (canonical.canonical(a) == canonical.canonical(b)) == same(a, b)


@given(EXACT_JSON, EXACT_JSON)
def test_a_changed_member_changes_the_bytes(a: object, b: object) -> None:
    """The same object with one other member has other bytes."""
    mine, theirs = canonical.canonical({"k": a, "rest": [1]}), canonical.canonical({"k": b, "rest": [1]})
    assert (mine == theirs) == same(a, b)


@given(EXACT_JSON)
def test_white_space_and_escapes_are_irrelevant(value: object) -> None:
    """Two spellings of one value have the same bytes."""
    spaced = json.dumps(value, indent=3, ensure_ascii=True).encode()
    dense = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    assert canonical.canonical(json_text.parse(spaced)) == canonical.canonical(json_text.parse(dense))


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), [-float("inf")], 2**53, {"a": -(2**53)}, "\ud800", {"\udc00": 1}, {1: 2}, b"bytes", {1, 2}],
    ids=repr,
)
def test_what_json_cannot_carry_has_no_canonical_bytes(value: object) -> None:
    """It is refused with a ValueError rather than rounded or replaced."""
    with pytest.raises(ValueError):  # noqa: PT011  The library's message is not ours to fix.
        canonical.canonical(value)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=50))
def test_no_two_purposes_share_a_digest(key: bytes, content: bytes) -> None:
    """The same content under the same key has another digest for every purpose."""
    digests = {canonical.keyed_digest(key, purpose, content) for purpose in canonical.Purpose}
    assert len(digests) == len(canonical.Purpose)
    assert all(len(digest) == canonical.DIGEST_BYTES for digest in digests)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.binary(max_size=50))
def test_another_key_gives_another_digest(one: bytes, other: bytes, content: bytes) -> None:
    """Two organizations never share a digest."""
    same_digest = canonical.keyed_digest(one, canonical.Purpose.INPUT, content) == canonical.keyed_digest(
        other, canonical.Purpose.INPUT, content
    )
    assert same_digest == (one == other)


def test_versions_and_purposes_are_separated_by_a_line() -> None:
    """The first line says what the bytes are; no content can pretend to be another purpose's."""
    assert canonical.domain_separated("marker", b"{}") == b"agent-outbox/marker/v1\n{}"
    assert canonical.domain_separated("marker", b"{}", version=2) == b"agent-outbox/marker/v2\n{}"
    assert all("\n" not in purpose and "/" not in purpose for purpose in canonical.Purpose)


@given(st.binary(min_size=32, max_size=32))
def test_digest_text_reads_back(digest: bytes) -> None:
    """The text form of a digest is one to one."""
    assert canonical.read_digest_text(canonical.digest_text(digest)) == digest


@pytest.mark.parametrize(
    "text",
    ["", "00" * 32, "sha256:" + "00" * 32, "hmac-sha256:" + "00" * 31, "hmac-sha256:" + "AA" * 32, "hmac-sha256: " + "00" * 32],
)
def test_other_texts_are_no_digest(text: str) -> None:
    """Upper case, blanks, other prefixes and lengths are refused."""
    with pytest.raises(ValueError, match="hexadecimal"):
        canonical.read_digest_text(text)
