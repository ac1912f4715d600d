"""What an organization keeps sealed, and the keys it is sealed with.

The API and the worker never talk to each other: what one seals the other opens. So the form of every sealed text, and the name
it is bound to, is written here once. Source: design section 9 (privacy), `interfaces.md` sections 1 and 10.

Each plaintext is JSON; each is bound to `purpose:organization:name`, so that a text moved to another row, or kept for another
purpose, does not open.
"""

import hmac
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Self, TypeVar
from uuid import UUID

import msgspec

from outbox_domain.identity import Secrets
from outbox_runtime.sealing import SealBroken, WrappingKey, new_data_key, open_sealed, seal

DATA_KEY = "data-key"
DIGEST_KEY = "digest-key"
PROVIDER_KEY_SECRET = "provider-key-secret"  # noqa: S105 - the name of a purpose


class StoredInput(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a tool call from its reservation until its settlement.

    Attributes:
        input: the bound input.
        context: what the caller declared to reviewers; never sent to the provider.
        names: names that a request's URL or body may use beside the input: `reference` and `run`, where given.
    """

    input: dict[str, Any]
    context: dict[str, Any] | None = None
    names: dict[str, str] = msgspec.field(default_factory=dict)


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The final answer to one HTTP request, as it was sent.

    Attributes:
        status: the HTTP status.
        headers: names and values that belong to the answer itself.
        body: the bytes of the body.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class WrappedKeys:
    """An organization's three keys as its row keeps them."""

    data_key: bytes
    digest_key: bytes
    provider_key_secret: bytes


Body = TypeVar("Body")


def _associated(organization_id: UUID, purpose: str) -> bytes:
    return f"{organization_id}:{purpose}".encode()


def new_organization_keys(wrapping_key: WrappingKey, organization_id: UUID) -> WrappedKeys:
    """Three fresh keys for a new organization, wrapped and bound to it."""
    data_key, digest_key, provider_key_secret = (
        wrapping_key.wrap(new_data_key(), _associated(organization_id, purpose))
        for purpose in (DATA_KEY, DIGEST_KEY, PROVIDER_KEY_SECRET)
    )
    return WrappedKeys(data_key=data_key, digest_key=digest_key, provider_key_secret=provider_key_secret)


@dataclass(frozen=True, kw_only=True)
class Vault:
    """The unwrapped keys of one organization, and everything that is sealed with them. It never prints a key."""

    organization_id: UUID
    secrets: Secrets = field(repr=False)
    data_key: bytes = field(repr=False)

    @classmethod
    def open(
        cls,
        wrapping_key: WrappingKey,
        organization_id: UUID,
        *,
        data_key_wrapped: bytes,
        digest_key_wrapped: bytes,
        provider_key_secret_wrapped: bytes,
    ) -> Self:
        """Unwrap an organization's keys.

        Raises:
            SealBroken: they were wrapped by another wrapping key or belong to another organization.
        """
        return cls(
            organization_id=organization_id,
            data_key=wrapping_key.unwrap(data_key_wrapped, _associated(organization_id, DATA_KEY)),
            secrets=Secrets(
                digest_key=wrapping_key.unwrap(digest_key_wrapped, _associated(organization_id, DIGEST_KEY)),
                provider_key_secret=wrapping_key.unwrap(
                    provider_key_secret_wrapped, _associated(organization_id, PROVIDER_KEY_SECRET)
                ),
            ),
        )

    def seal_input(self, reservation_id: UUID, stored: StoredInput) -> bytes:
        """Seal a bound input with its context and names."""
        return self._seal("input", reservation_id, stored)

    def open_input(self, reservation_id: UUID, sealed: bytes) -> StoredInput:
        """Open what `seal_input` sealed.

        Raises:
            SealBroken: it belongs to another reservation or was changed.
        """
        return self._open("input", reservation_id, sealed, StoredInput)

    def seal_result(self, reservation_id: UUID, result: Any) -> bytes:
        """Seal what lives as long as the receipt: the projection of an answer, or whatever JSON value a client settled."""
        return self._seal("result", reservation_id, result)

    def open_result(self, reservation_id: UUID, sealed: bytes) -> Any:
        """Open what `seal_result` sealed.

        Raises:
            SealBroken: it belongs to another reservation or was changed.
        """
        result: Any = self._open("result", reservation_id, sealed, Any)
        return result

    def seal_failure(self, reservation_id: UUID, failure: dict[str, Any]) -> bytes:
        """Seal the provider's own words about a refusal (`provider_status`, `provider_code`, `provider_message`)."""
        return self._seal("failure", reservation_id, failure)

    def open_failure(self, reservation_id: UUID, sealed: bytes) -> dict[str, Any]:
        """Open what `seal_failure` sealed.

        Raises:
            SealBroken: it belongs to another reservation or was changed.
        """
        return self._open("failure", reservation_id, sealed, dict[str, Any])

    def seal_webhook_secret(self, connection_id: UUID, secret: str) -> bytes:
        """Seal what a connection's webhooks are signed with."""
        return self._seal("webhook-secret", connection_id, secret)

    def open_webhook_secret(self, connection_id: UUID, sealed: bytes) -> str:
        """Open what `seal_webhook_secret` sealed.

        Raises:
            SealBroken: it belongs to another connection or was changed.
        """
        return self._open("webhook-secret", connection_id, sealed, str)

    def seal_answer(self, request: str, answer: StoredAnswer) -> bytes:
        """Seal the final answer to a request; `request` names whose it is (environment, actor, method, path, request key)."""
        return self._seal("answer", request, answer)

    def open_answer(self, request: str, sealed: bytes) -> StoredAnswer:
        """Open what `seal_answer` sealed.

        Raises:
            SealBroken: it belongs to another request or was changed.
        """
        return self._open("answer", request, sealed, StoredAnswer)

    def digest(self, purpose: str, *parts: bytes) -> bytes:
        """A keyed digest (HMAC-SHA-256 under the digest key) of parts that no two different lists of parts share.

        Args:
            purpose: tells digests of one use apart from those of another.
            parts: any bytes; their lengths enter the digest.

        Returns:
            32 bytes.
        """
        mac = hmac.new(self.secrets.digest_key, b"agent-outbox " + purpose.encode() + b"\x00", sha256)
        for part in parts:
            mac.update(len(part).to_bytes(8, "big"))
            mac.update(part)
        return mac.digest()

    def _seal(self, purpose: str, name: object, body: object) -> bytes:
        return seal(self.data_key, msgspec.json.encode(body), self._bound_to(purpose, name))

    def _open(self, purpose: str, name: object, sealed: bytes, form: type[Body]) -> Body:
        plaintext = open_sealed(self.data_key, sealed, self._bound_to(purpose, name))
        try:
            return msgspec.json.decode(plaintext, type=form)
        except msgspec.DecodeError:
            raise SealBroken(f"the sealed {purpose} opens but has another form") from None

    def _bound_to(self, purpose: str, name: object) -> bytes:
        return f"{purpose}:{self.organization_id}:{name}".encode()
