"""Who asks: a bearer token becomes a scoped key, or 401 (RFC 6750 section 2.1)."""

from datetime import UTC, datetime

from outbox_api.directory import Directory
from outbox_domain import messages
from outbox_domain.errors import OutboxError
from outbox_domain.scoped_key import ScopedKey, parse


async def authenticate(directory: Directory, authorization: str | None) -> ScopedKey:
    """The scoped key that a request presents.

    Args:
        directory: where keys are looked up; what it says is at most a second old.
        authorization: the header `Authorization`.

    Returns:
        The key; it exists, its secret is right, it is not revoked and has not expired.

    Raises:
        OutboxError: `invalid-key`, `key-revoked` or `key-expired`. Nothing of what was presented is repeated.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _invalid("Present a scoped key: `Authorization: Bearer obx_...`.")
    presented = parse(token.strip())
    key = await directory.key(presented.key_id)
    if key is None:
        raise _invalid("There is no such scoped key.")
    key.verify(presented, datetime.now(UTC))
    return key


def _invalid(detail: str) -> OutboxError:
    return OutboxError("invalid-key", detail, message=messages.out_of_scope("the key of this agent is not valid"))
