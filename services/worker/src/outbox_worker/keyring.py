"""The keys of organizations and the credentials of connections, opened here and kept nowhere but in memory."""

from dataclasses import dataclass
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from outbox_domain.contract import ToolContract
from outbox_domain.wire_names import marker_of, provider_key_of
from outbox_runtime.postgres import Pool, acquire
from outbox_runtime.sealing import WrappingKey, open_with
from outbox_runtime.vault import StoredInput, Vault
from outbox_store import organizations
from outbox_store.claim import Claimed
from outbox_store.lookups import Lookup


def credential_info(organization_id: UUID, connection_id: UUID) -> bytes:
    """What a sealed credential is bound to, so that it opens for its own connection alone."""
    return f"credential:{organization_id}:{connection_id}".encode()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a provider is shown of an attempt, the same when it is sent and when it is looked up."""

    stored: StoredInput
    provider_key: str | None
    marker: str | None


class Keyring:
    """Opens what is sealed for the worker."""

    def __init__(self, pool: Pool, wrapping_key: WrappingKey, private_key: X25519PrivateKey) -> None:
        """Reads wrapped keys from `pool`; the private key opens credentials."""
        self._pool = pool
        self._wrapping_key = wrapping_key
        self._private_key = private_key
        self._vaults: dict[UUID, Vault] = {}

    async def of(self, organization_id: UUID) -> Vault:
        """The organization's keys.

        Raises:
            LookupError: there is no such organization.
            SealBroken: the wrapping key does not open them.
        """
        vault = self._vaults.get(organization_id)
        if vault is None:
            async with acquire(self._pool) as connection:
                organization = await organizations.by_id(connection, organization_id)
            if organization is None:
                raise LookupError("the organization is gone")
            vault = self._vaults[organization_id] = Vault.open(
                self._wrapping_key,
                organization_id,
                data_key_wrapped=organization.data_key_wrapped,
                digest_key_wrapped=organization.digest_key_wrapped,
                provider_key_secret_wrapped=organization.provider_key_secret_wrapped,
            )
        return vault

    async def shown(self, row: Claimed | Lookup, contract: ToolContract, *, attempt_number: int) -> Shown:
        """What a row's attempt shows its provider, as far as the contract names a place for it.

        Raises:
            LookupError: the sealed input or the organization is gone.
            SealBroken: one of them does not open.
        """
        vault = await self.of(row.organization_id)
        if row.sealed_input is None:
            raise LookupError("the sealed input is gone")
        secret, request = vault.secrets.provider_key_secret, contract.request
        of_attempt = attempt_number if contract.marks_attempts else None
        return Shown(
            stored=vault.open_input(row.reservation_id, row.sealed_input),
            provider_key=provider_key_of(row, secret, row.generation) if request.provider_key else None,
            marker=marker_of(row, secret, of_attempt) if request.marker else None,
        )

    def credential(self, organization_id: UUID, connection_id: UUID, sealed: bytes | None) -> str | None:
        """The credential of a connection; None where it has none.

        Raises:
            SealBroken: it was sealed to another key or for another connection.
        """
        if sealed is None:
            return None
        return open_with(self._private_key, sealed, credential_info(organization_id, connection_id)).decode()
