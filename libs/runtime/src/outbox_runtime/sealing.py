"""How secrets and bodies are sealed: data keys under the wrapping key, bodies under data keys, credentials to the worker.

Every sealed text begins with one byte that names its form, so that a later form can be told apart. `associated` binds a sealed
text to the row it belongs to: moved to another row it does not open. Source: design section 9 (privacy).

Forms (all AES-256-GCM, NIST SP 800-38D):

* wrapped key: `0x01 || key id (8) || salt (16) || nonce (12) || ciphertext`; the key id tells which wrapping key to open it with
  after a rotation.
* sealed body: `0x02 || salt (16) || nonce (12) || ciphertext`.
* sealed to a public key: `0x03 || HPKE encapsulated key || ciphertext` (RFC 9180, base mode, X25519, HKDF-SHA256, AES-256-GCM).

Each message is encrypted under its own key, derived by HKDF-SHA256 (RFC 5869) from the long-lived key and a random salt. With the
long-lived key alone a random 96-bit nonce would be safe for 2^32 messages only (SP 800-38D section 8.3), which one busy
organization reaches within days.
"""

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
SALT_BYTES = 16
NONCE_BYTES = 12
TAG_BYTES = 16
KEY_ID_BYTES = 8
PUBLIC_KEY_BYTES = 32

_FORM_WRAPPED = b"\x01"
_FORM_SEALED = b"\x02"
_FORM_SEALED_TO = b"\x03"
_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class SealBroken(Exception):
    """The sealed text does not open: another key, another row, or it was changed."""


class WrongKey(ValueError):
    """The text is not a key of the expected kind."""


def _message_key(key: bytes, salt: bytes, purpose: bytes) -> AESGCM:
    derived = HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=b"agent-outbox " + purpose).derive(key)
    return AESGCM(derived)


def _encrypt(key: bytes, purpose: bytes, plaintext: bytes, associated: bytes) -> bytes:
    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    return salt + nonce + _message_key(key, salt, purpose).encrypt(nonce, plaintext, associated)


def _decrypt(key: bytes, purpose: bytes, body: bytes, associated: bytes) -> bytes:
    if len(body) < SALT_BYTES + NONCE_BYTES + TAG_BYTES:
        raise SealBroken("the sealed text is too short to be one")
    salt, nonce = body[:SALT_BYTES], body[SALT_BYTES : SALT_BYTES + NONCE_BYTES]
    try:
        return _message_key(key, salt, purpose).decrypt(nonce, body[SALT_BYTES + NONCE_BYTES :], associated)
    except InvalidTag:
        raise SealBroken("the sealed text does not open with this key for this row") from None


def new_data_key() -> bytes:
    """A fresh data key of 32 random bytes."""
    return os.urandom(KEY_BYTES)


@dataclass(frozen=True)
class WrappingKey:
    """The key that the customer manages; it wraps the data keys of organizations and nothing else."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise WrongKey(f"a wrapping key is {KEY_BYTES} bytes, this one is {len(self.key)}")

    @classmethod
    def from_base64(cls, text: str) -> Self:
        """Read a wrapping key from standard or URL-safe base64, padded or not.

        Raises:
            WrongKey: it is not base64 of exactly 32 bytes.
        """
        compact = text.strip().replace("-", "+").replace("_", "/").rstrip("=")
        try:
            key = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise WrongKey("a wrapping key is 32 bytes in base64") from None
        return cls(key)

    @classmethod
    def generate(cls) -> Self:
        """A fresh random wrapping key."""
        return cls(os.urandom(KEY_BYTES))

    def to_base64(self) -> str:
        """The text form that `from_base64` reads."""
        return base64.b64encode(self.key).decode()

    @property
    def id(self) -> bytes:
        """Eight bytes that tell this key from others and say nothing about it."""
        return hashlib.sha256(b"agent-outbox wrapping key id" + self.key).digest()[:KEY_ID_BYTES]

    def wrap(self, key: bytes, associated: bytes) -> bytes:
        """Wrap a data key.

        Args:
            key: the key to wrap, any length.
            associated: what it belongs to, for example the organization's id and the purpose.

        Returns:
            The wrapped key, safe to store.
        """
        return _FORM_WRAPPED + self.id + _encrypt(self.key, b"wrap", key, associated)

    def unwrap(self, wrapped: bytes, associated: bytes) -> bytes:
        """Give back the key that `wrap` was given.

        Raises:
            SealBroken: it was wrapped by another wrapping key, for something else, or was changed.
        """
        if wrapped[:1] != _FORM_WRAPPED:
            raise SealBroken("this is not a wrapped key")
        if wrapped[1 : 1 + KEY_ID_BYTES] != self.id:
            raise SealBroken("the key was wrapped by another wrapping key")
        return _decrypt(self.key, b"wrap", wrapped[1 + KEY_ID_BYTES :], associated)


def seal(data_key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Seal a body under an organization's data key.

    Args:
        data_key: 32 bytes, unwrapped.
        plaintext: the body; its length stays visible.
        associated: what it belongs to, for example the organization's and the reservation's id.

    Returns:
        The sealed body: 45 bytes longer than the plaintext.
    """
    return _FORM_SEALED + _encrypt(data_key, b"seal", plaintext, associated)


def open_sealed(data_key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Open what `seal` sealed.

    Raises:
        SealBroken: another data key, another row, or it was changed.
    """
    if sealed[:1] != _FORM_SEALED:
        raise SealBroken("this is not a sealed body")
    return _decrypt(data_key, b"seal", sealed[1:], associated)


def seal_to(public_key: X25519PublicKey, plaintext: bytes, info: bytes) -> bytes:
    """Seal a credential so that only the holder of the private key can read it.

    Args:
        public_key: the worker's.
        plaintext: the credential.
        info: what it belongs to; bound to the sealed text (HPKE `info`, RFC 9180 section 5.1).
    """
    return _FORM_SEALED_TO + _SUITE.encrypt(plaintext, public_key, info)


def open_with(private_key: X25519PrivateKey, sealed: bytes, info: bytes) -> bytes:
    """Open what `seal_to` sealed.

    Raises:
        SealBroken: sealed to another key, for something else, or changed.
    """
    if sealed[:1] != _FORM_SEALED_TO:
        raise SealBroken("this is not a text sealed to a public key")
    try:
        return _SUITE.decrypt(sealed[1:], private_key, info)
    except (InvalidTag, ValueError):
        raise SealBroken("the sealed text does not open with this private key for this row") from None


def generate_private_key() -> X25519PrivateKey:
    """A fresh private key for workers."""
    return X25519PrivateKey.generate()


def read_private_key(pem: bytes) -> X25519PrivateKey:
    """Read the worker's private key from an unencrypted PKCS #8 PEM.

    Raises:
        WrongKey: it is not a PEM, or the key is not X25519.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise WrongKey("the worker's private key is an unencrypted X25519 key in PEM") from None
    if not isinstance(key, X25519PrivateKey):
        raise WrongKey("the worker's private key is an unencrypted X25519 key in PEM, this one is of another kind")
    return key


def write_private_key(key: X25519PrivateKey) -> bytes:
    """The PEM that `read_private_key` reads."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def read_public_key(text: bytes) -> X25519PublicKey:
    """Read a worker's public key from PEM or from its 32 raw bytes.

    Raises:
        WrongKey: it is neither.
    """
    if len(text) == PUBLIC_KEY_BYTES:
        return X25519PublicKey.from_public_bytes(text)
    try:
        key = serialization.load_pem_public_key(text)
    except ValueError:
        raise WrongKey("a worker's public key is an X25519 key in PEM or its 32 bytes") from None
    if not isinstance(key, X25519PublicKey):
        raise WrongKey("a worker's public key is an X25519 key, this one is of another kind")
    return key


def write_public_key(key: X25519PublicKey) -> bytes:
    """The PEM that `read_public_key` reads."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
