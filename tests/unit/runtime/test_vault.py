"""What an organization keeps sealed opens for its own row and purpose alone."""

from uuid import UUID, uuid4

import pytest

from outbox_runtime.sealing import SealBroken, WrappingKey
from outbox_runtime.vault import StoredAnswer, StoredInput, Vault, new_organization_keys


def vault_of(wrapping_key: WrappingKey, organization_id: UUID) -> Vault:
    """A new organization's vault."""
    keys = new_organization_keys(wrapping_key, organization_id)
    return Vault.open(
        wrapping_key,
        organization_id,
        data_key_wrapped=keys.data_key,
        digest_key_wrapped=keys.digest_key,
        provider_key_secret_wrapped=keys.provider_key_secret,
    )


def test_what_is_sealed_opens_again() -> None:
    """Inputs, results, failures and answers come back as they were, and stand readable nowhere."""
    vault, reservation_id = vault_of(WrappingKey.generate(), uuid4()), uuid4()
    stored = StoredInput(input={"a": [1, 2.5, "\u0000", None]}, context={"b": 1}, names={"reference": "case-1"})
    assert vault.open_input(reservation_id, vault.seal_input(reservation_id, stored)) == stored
    assert vault.open_result(reservation_id, vault.seal_result(reservation_id, {"id": "re_1"})) == {"id": "re_1"}
    words = {"provider_message": "canary"}
    sealed = vault.seal_failure(reservation_id, words)
    assert vault.open_failure(reservation_id, sealed) == words
    assert b"canary" not in sealed
    answer = StoredAnswer(status=200, headers=[("location", "/x")], body=b"\x00\xff")
    assert vault.open_answer("mine", vault.seal_answer("mine", answer)) == answer
    assert "digest_key" not in repr(vault)


def test_it_opens_nowhere_else() -> None:
    """Another row, another purpose, another organization, another wrapping key: it does not open."""
    wrapping_key, organization_id, reservation_id = WrappingKey.generate(), uuid4(), uuid4()
    vault = vault_of(wrapping_key, organization_id)
    sealed = vault.seal_result(reservation_id, {"id": "re_1"})
    with pytest.raises(SealBroken):
        vault.open_result(uuid4(), sealed)
    with pytest.raises(SealBroken):
        vault.open_failure(reservation_id, sealed)
    other = Vault(organization_id=uuid4(), secrets=vault.secrets, data_key=vault.data_key)
    with pytest.raises(SealBroken):
        other.open_result(reservation_id, sealed)
    keys = new_organization_keys(wrapping_key, organization_id)
    for key, of in ((WrappingKey.generate(), organization_id), (wrapping_key, uuid4())):
        with pytest.raises(SealBroken):
            Vault.open(
                key,
                of,
                data_key_wrapped=keys.data_key,
                digest_key_wrapped=keys.digest_key,
                provider_key_secret_wrapped=keys.provider_key_secret,
            )


def test_digests_do_not_run_together() -> None:
    """Different lists of parts, purposes and organizations have different digests; the same ones the same."""
    vault = vault_of(WrappingKey.generate(), uuid4())
    assert vault.digest("request", b"a", b"b") == vault.digest("request", b"a", b"b")
    assert len({vault.digest("request", *parts) for parts in ((b"ab",), (b"a", b"b"), (b"", b"ab"), (b"ab", b""))}) == 4
    assert vault.digest("request", b"a") != vault.digest("refusal", b"a")
    assert vault.digest("request", b"a") != vault_of(WrappingKey.generate(), uuid4()).digest("request", b"a")
