"""What is sealed opens for its owner, for its row, and for nobody else."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from outbox_runtime import sealing
from outbox_runtime.sealing import SealBroken, WrappingKey, WrongKey


@given(st.binary(max_size=4096), st.binary(max_size=64))
def test_a_sealed_body_opens_with_its_key_for_its_row(body: bytes, associated: bytes) -> None:
    """Sealing and opening give back the same bytes, and the overhead is 45 bytes."""
    key = sealing.new_data_key()
    sealed = sealing.seal(key, body, associated)
    assert sealing.open_sealed(key, sealed, associated) == body
    assert len(sealed) == len(body) + 45


def test_the_same_body_never_seals_to_the_same_text() -> None:
    """Salt and nonce are fresh for each message: equal bodies cannot be told to be equal."""
    key = sealing.new_data_key()
    assert len({sealing.seal(key, b"body", b"row") for _ in range(50)}) == 50


@pytest.mark.parametrize("index", [0, 1, 17, 30, -1])
def test_a_changed_text_does_not_open(index: int) -> None:
    """One bit changed anywhere (form, salt, nonce, ciphertext, tag): it does not open."""
    key = sealing.new_data_key()
    sealed = bytearray(sealing.seal(key, b"a body", b"row"))
    sealed[index] ^= 1
    with pytest.raises(SealBroken):
        sealing.open_sealed(key, bytes(sealed), b"row")


@pytest.mark.parametrize("text", [b"", b"\x02", b"\x02" + b"x" * 43])
def test_a_short_text_does_not_open(text: bytes) -> None:
    """What is too short to be sealed is refused in the same words, not by an IndexError."""
    with pytest.raises(SealBroken):
        sealing.open_sealed(sealing.new_data_key(), text, b"")


def test_a_text_moved_to_another_row_does_not_open() -> None:
    """The row is bound to the text: swapped rows do not open."""
    key = sealing.new_data_key()
    with pytest.raises(SealBroken):
        sealing.open_sealed(key, sealing.seal(key, b"body", b"row 1"), b"row 2")
    with pytest.raises(SealBroken):
        sealing.open_sealed(sealing.new_data_key(), sealing.seal(key, b"body", b"row 1"), b"row 1")


def test_a_wrapped_key_opens_only_under_its_wrapping_key_and_purpose() -> None:
    """Another wrapping key is told apart by its id; another purpose does not open."""
    wrapping, other = WrappingKey.generate(), WrappingKey.generate()
    key = sealing.new_data_key()
    wrapped = wrapping.wrap(key, b"organization 1:data-key")
    assert wrapping.unwrap(wrapped, b"organization 1:data-key") == key
    assert key not in wrapped
    with pytest.raises(SealBroken, match="another wrapping key"):
        other.unwrap(wrapped, b"organization 1:data-key")
    with pytest.raises(SealBroken):
        wrapping.unwrap(wrapped, b"organization 1:digest-key")
    with pytest.raises(SealBroken, match="not a wrapped key"):
        wrapping.unwrap(b"\x02" + wrapped[1:], b"organization 1:data-key")


def test_a_wrapping_key_is_read_from_any_base64() -> None:
    """Standard, URL-safe, unpadded and with a newline at its end: the same key."""
    key = WrappingKey(b"\xfb\xff" * 16)
    text = key.to_base64()
    for form in (text, text.rstrip("="), text.replace("+", "-").replace("/", "_"), text + "\n"):
        assert WrappingKey.from_base64(form) == key
    assert "fb" not in repr(key)
    assert key.key.hex() not in repr(key)


@pytest.mark.parametrize("text", ["", "not base64!", "AAAA", "A" * 100])
def test_a_wrong_wrapping_key_is_refused(text: str) -> None:
    """Not base64, or not 32 bytes: one sentence, without the text."""
    with pytest.raises(WrongKey, match="32 bytes"):
        WrappingKey.from_base64(text)


def test_a_credential_opens_only_with_the_private_key_and_for_its_connection() -> None:
    """Sealed to the worker's public key: the worker opens it, for that connection only."""
    private, other = sealing.generate_private_key(), sealing.generate_private_key()
    sealed = sealing.seal_to(private.public_key(), b"sk_test_x", b"credential:o:c")
    assert sealing.open_with(private, sealed, b"credential:o:c") == b"sk_test_x"
    for key, text, info in (
        (other, sealed, b"credential:o:c"),
        (private, sealed, b"credential:o:d"),
        (private, sealed[:-1], b"credential:o:c"),
        (private, sealed[:20], b"credential:o:c"),
        (private, b"", b"credential:o:c"),
        (private, b"\x02" + sealed[1:], b"credential:o:c"),
    ):
        with pytest.raises(SealBroken):
            sealing.open_with(key, text, info)


def test_keys_survive_their_text_forms() -> None:
    """PEM of the private key, PEM and raw bytes of the public key are read back as the same keys."""
    private = sealing.generate_private_key()
    assert sealing.read_private_key(sealing.write_private_key(private)).private_bytes_raw() == private.private_bytes_raw()
    public = private.public_key()
    for text in (sealing.write_public_key(public), public.public_bytes_raw()):
        assert sealing.read_public_key(text).public_bytes_raw() == public.public_bytes_raw()


def test_a_key_of_another_kind_is_refused() -> None:
    """An Ed25519 key signs; it cannot be sealed to. Garbage is refused in the same way."""
    wrong = Ed25519PrivateKey.generate()
    pem = wrong.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(WrongKey):
        sealing.read_private_key(pem)
    with pytest.raises(WrongKey):
        sealing.read_private_key(b"garbage")
    public = wrong.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(WrongKey):
        sealing.read_public_key(public)
    with pytest.raises(WrongKey):
        sealing.read_public_key(b"garbage")
