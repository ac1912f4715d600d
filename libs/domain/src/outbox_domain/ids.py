"""Ids: UUIDv7, made from a time and random bits that are handed in, because this package has no clock and no chance."""

from uuid import UUID

RANDOM_BYTES = 10
"""How many random bytes a UUIDv7 is made from (74 of their 80 bits are used)."""

_MILLISECONDS_MAX = (1 << 48) - 1


def uuid7(milliseconds: int, random: bytes) -> UUID:
    """A UUID that sorts by the time it was made (RFC 9562 section 5.7).

    Args:
        milliseconds: Unix time.
        random: 10 bytes from a cryptographic source.

    Returns:
        A UUID of version 7.

    Raises:
        ValueError: if the time does not fit 48 bits or the random bytes are not ten.
    """
    if not 0 <= milliseconds <= _MILLISECONDS_MAX:
        raise ValueError("the time of a UUIDv7 is a number of 48 bits")
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"a UUIDv7 is made from {RANDOM_BYTES} random bytes")
    bits = int.from_bytes(random, "big")
    random_a = bits >> 68
    random_b = bits & ((1 << 62) - 1)
    return UUID(int=milliseconds << 80 | 0x7 << 76 | random_a << 64 | 0b10 << 62 | random_b)


def milliseconds_of(id: UUID) -> int:
    """The Unix time in milliseconds at which a UUIDv7 was made.

    Raises:
        ValueError: if it is of another version.
    """
    if id.version != 7:
        raise ValueError("only a UUIDv7 tells its time")
    return id.int >> 80
