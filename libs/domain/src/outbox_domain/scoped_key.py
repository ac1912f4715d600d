"""Scoped keys: the credential an actor presents, and what it reaches.

A key reads `obx_<environment>_<id>_<secret><checksum>`:

* environment: lower-case letters, digits and hyphens, so that the underscores part the rest;
* id: 10 bytes in lower-case base32 (RFC 4648 section 6), 16 characters; public, it names the row;
* secret: 24 random bytes, 48 hexadecimal digits;
* checksum: CRC-32 over everything before it, 8 hexadecimal digits. It tells a damaged or mistyped key from an unknown one without
  a look into the database, and lets a scanner of leaked secrets be sure of what it found. It protects nothing.

Only the digest of the secret is stored. The secret has 192 random bits, so a plain (domain-separated) SHA-256 cannot be guessed
back.
"""

import base64
import hashlib
import hmac
import re
import zlib
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from outbox_domain import messages
from outbox_domain.capability import ActorKind, Capability, capabilities, require
from outbox_domain.errors import OutboxError

KEY_ID_BYTES = 10
"""The length of a key's id before it is written as text."""

SECRET_BYTES = 24
"""The length of a key's secret."""

DEFAULT_PROJECT = "default"
"""The project in which a key without project acts."""

_KEY = re.compile(
    r"obx_(?P<environment>[a-z0-9][a-z0-9-]{0,62})_(?P<id>[a-z2-7]{16})_(?P<secret>[0-9a-f]{48})(?P<checksum>[0-9a-f]{8})"
)
_KEY_CHARACTERS_MAX = 160
_DIGEST_DOMAIN = b"agent-outbox/scoped-key/v1\n"


@dataclass(frozen=True, kw_only=True)
class ParsedKey:
    """A key whose form and checksum are right; nothing is known yet of whether it exists.

    Attributes:
        environment: the environment it names.
        key_id: 16 characters, the id of its row.
        secret: 24 bytes; never printed.
    """

    environment: str
    key_id: str
    secret: bytes = field(repr=False)


def key_id_text(key_id: bytes) -> str:
    """The text form of a key's id.

    Args:
        key_id: 10 bytes.

    Returns:
        16 lower-case characters.

    Raises:
        ValueError: for another length.
    """
    if len(key_id) != KEY_ID_BYTES:
        raise ValueError(f"a key's id has {KEY_ID_BYTES} bytes")
    return base64.b32encode(key_id).decode().lower()


def mint(environment: str, key_id: bytes, secret: bytes) -> tuple[str, bytes]:
    """Writes a new key.

    Args:
        environment: the environment's name.
        key_id: 10 random bytes.
        secret: 24 bytes from a cryptographic source.

    Returns:
        The key, shown once, and the digest that is stored (32 bytes).

    Raises:
        ValueError: if a part has another length, or the environment's name could not be read back.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a key's secret has {SECRET_BYTES} bytes")
    body = f"obx_{environment}_{key_id_text(key_id)}_{secret.hex()}"
    text = body + _checksum(body)
    if _KEY.fullmatch(text) is None:
        raise ValueError("an environment is named in lower-case letters, digits and hyphens, at most 63 of them")
    return text, digest(secret)


def parse(text: str) -> ParsedKey:
    """Reads a key as an actor presents it.

    Args:
        text: what stands after `Bearer `.

    Returns:
        Its parts.

    Raises:
        OutboxError: `invalid-key` if it has another form or the checksum is wrong. The message repeats nothing of it.
    """
    found = _KEY.fullmatch(text) if len(text) <= _KEY_CHARACTERS_MAX else None
    if found is None:
        raise _invalid("This is not a scoped key: expected obx_<environment>_<id>_<secret>.")
    if _checksum(text[: found.start("checksum")]) != found["checksum"]:
        raise _invalid("The scoped key is damaged: its checksum does not fit. Copy it again.")
    return ParsedKey(environment=found["environment"], key_id=found["id"], secret=bytes.fromhex(found["secret"]))


def digest(secret: bytes) -> bytes:
    """What is stored of a secret: SHA-256 over `agent-outbox/scoped-key/v1`, LF and its 24 bytes."""
    return hashlib.sha256(_DIGEST_DOMAIN + secret).digest()


@dataclass(frozen=True, kw_only=True)
class ScopedKey:
    """A key as its row says, with everything a request needs to know of who asks.

    Attributes:
        id: the 16 characters in the key.
        organization_id: the tenant; `organization` is its name.
        environment_id: the only environment it reaches; `environment` is its name.
        project: the only project it acts in; None means the project `default`.
        run: the caller's name of the only run it acts in; None means any.
        actor_id: who holds it.
        actor_kind: member, agent or subagent.
        actor_chain: from the first to the acting one (`agent:refunds`).
        roles: the member's roles; empty for agents.
        providers: the providers it reaches; None means any.
        tools: globs of the tools it reaches (`stripe.refund.*`); None means any.
        expires_at: when it ends; None means never.
        secret_digest: 32 bytes.
        revoked: it was taken back.
    """

    id: str
    organization_id: UUID
    organization: str
    environment_id: UUID
    environment: str
    project: str | None
    project_id: UUID | None
    run: str | None
    actor_id: UUID
    actor_kind: ActorKind
    actor_name: str
    actor_chain: tuple[str, ...]
    roles: frozenset[str]
    providers: frozenset[str] | None
    tools: frozenset[str] | None
    expires_at: datetime | None
    secret_digest: bytes = field(repr=False)
    revoked: bool = False

    @property
    def acting_project(self) -> str:
        """The project this key acts in."""
        return self.project if self.project is not None else DEFAULT_PROJECT

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What its actor may do."""
        return capabilities(self.actor_kind, self.roles)

    def verify(self, presented: ParsedKey, now: datetime) -> None:
        """Whether this is the key that was presented, and still one. The comparison takes the same time for every wrong secret.

        Raises:
            OutboxError: `invalid-key` (wrong secret or environment), `key-revoked`, `key-expired`.
        """
        same = hmac.compare_digest(digest(presented.secret), self.secret_digest)
        if not same or presented.key_id != self.id or presented.environment != self.environment:
            raise _invalid("There is no such scoped key.")
        self._alive(now)

    def reaches(self, tool: str, provider: str) -> bool:
        """Whether a tool is inside the key's providers and tools."""
        if self.providers is not None and provider not in self.providers:
            return False
        return self.tools is None or any(matches(pattern, tool) for pattern in self.tools)

    def run_of(self, run: str | None) -> str | None:
        """The run a call acts in: what it names, else the only run the key acts in, else none."""
        return run if run is not None else self.run

    def require(self, capability: Capability) -> None:
        """Refuses when its actor lacks a capability.

        Raises:
            OutboxError: `out-of-scope`.
        """
        require(self.actor_kind, self.roles, capability)

    def allow(self, tool: str, provider: str, project: str | None, run: str | None, now: datetime) -> None:
        """Whether this key may make this call.

        Args:
            tool: the tool's name.
            provider: the tool's provider.
            project: the project the call acts in; None means the key's own.
            run: the caller's name of the run (see `run_of`); None means none, which a key bound to a run does not reach.
            now: the time.

        Raises:
            OutboxError: `key-revoked`, `key-expired`, or `out-of-scope` with the dimension that is too narrow.
        """
        self._alive(now)
        if Capability.CALL_TOOLS not in self.capabilities:
            raise _out_of_scope("role", "this key may not call tools")
        if not self.reaches(tool, provider):
            raise _out_of_scope("tool", "this key does not reach the tool")
        if project is not None and project != self.acting_project:
            raise _out_of_scope("project", "this key does not reach the project")
        if self.run is not None and run != self.run:
            raise _out_of_scope("run", "this key acts in one run only, which is another")

    def _alive(self, now: datetime) -> None:
        if self.revoked:
            raise OutboxError(
                "key-revoked", "This scoped key was revoked.", message=messages.out_of_scope("this key was revoked")
            )
        if self.expires_at is not None and now >= self.expires_at:
            raise OutboxError(
                "key-expired", "This scoped key has expired.", message=messages.out_of_scope("this key has expired")
            )


def matches(pattern: str, tool: str) -> bool:
    """Whether a glob fits a tool's name: `*` stands for any characters, dots too; nothing else has a meaning.

    It reads the name once from left to right, so that no pattern can make it slow.
    """
    first, *others = pattern.split("*")
    if not others:
        return pattern == tool
    if not tool.startswith(first):
        return False
    *middle, last = others
    position = len(first)
    for part in middle:
        found = tool.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return tool.endswith(last) and len(tool) - len(last) >= position


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _invalid(detail: str) -> OutboxError:
    return OutboxError("invalid-key", detail, message=messages.out_of_scope("the key of this agent is not valid"))


def _out_of_scope(dimension: str, reason: str) -> OutboxError:
    return OutboxError(
        "out-of-scope", f"{reason[0].upper()}{reason[1:]}.", message=messages.out_of_scope(reason), dimension=dimension
    )
