"""Canonical bytes and the keyed digests over them.

Canonical bytes are RFC 8785 (JSON Canonicalization Scheme). A keyed digest is

    HMAC-SHA-256(key, "agent-outbox/" + purpose + "/v1" + LF + canonical bytes)

The first line separates the purposes, so that a digest of one kind never equals one of another, and carries the version: a
change of form is a new version beside the old one, never another meaning of it. Plain hashes would not do: amounts and addresses
can be guessed, and destroying the organization's key is erasure that breaks no proof (design section 5, point 2). Test vectors
with a published key: `docs/vectors/`.
"""

import hashlib
import hmac
from enum import StrEnum

import rfc8785

VERSION = 1
"""The version of every form in this module."""

DIGEST_BYTES = 32
"""The length of a digest."""

_TEXT_PREFIX = "hmac-sha256:"


class Purpose(StrEnum):
    """What a keyed digest stands for; its domain."""

    INPUT = "input-digest"
    REVIEW = "review-digest"
    DECLARED_FIELD = "declared-field"
    PERSONAL_KEY_FIELD = "personal-key-field"
    PROVIDER_KEY = "provider-key"
    MARKER = "marker"


def canonical(value: object) -> bytes:
    """The RFC 8785 form of a JSON value.

    Args:
        value: None, bool, int, float, str, list, tuple, or dict with text as names; nested no deeper than `json_text.DEPTH_MAX`.

    Returns:
        UTF-8 bytes; equal for equal values whatever the order of members, different for different ones.

    Raises:
        ValueError: for what JSON cannot carry exactly (integers beyond +-(2^53 - 1), NaN, infinities, lone surrogates, other
            types). What came through `json_text.parse` and `binding.bind` never meets it.
    """
    return rfc8785.dumps(value)  # type: ignore[arg-type]  # The library checks the types itself.


def domain_separated(purpose: str, content: bytes, *, version: int = VERSION) -> bytes:
    """The bytes that are digested or sealed: one line that says what they are, then the canonical bytes.

    Args:
        purpose: the kind, in lower-case words joined by hyphens; it holds no line break.
        content: canonical bytes.
        version: the version of the form.

    Returns:
        `agent-outbox/<purpose>/v<version>`, LF, content.
    """
    return b"agent-outbox/%s/v%d\n%s" % (purpose.encode(), version, content)


def keyed_digest(key: bytes, purpose: Purpose, content: bytes) -> bytes:
    """The keyed digest of canonical bytes.

    Args:
        key: the organization's digest key or provider-key secret; at least 32 random bytes.
        purpose: what the digest stands for.
        content: canonical bytes.

    Returns:
        32 bytes.
    """
    return hmac.digest(key, domain_separated(purpose, content), hashlib.sha256)


def digest_text(digest: bytes) -> str:
    """The text form of a keyed digest: `hmac-sha256:` and lower-case hexadecimal."""
    return _TEXT_PREFIX + digest.hex()


def read_digest_text(text: str) -> bytes:
    """The digest that `digest_text` wrote.

    Raises:
        ValueError: if the text is anything else.
    """
    digest = bytes.fromhex(text.removeprefix(_TEXT_PREFIX))
    if len(digest) != DIGEST_BYTES or digest_text(digest) != text:
        raise ValueError("a digest is written hmac-sha256: and 64 lower-case hexadecimal digits")
    return digest
