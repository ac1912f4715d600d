"""`Prefer`: how long a caller waits, and what is echoed (RFC 7240)."""

import pytest

from outbox_api.preferences import read_prefer


@pytest.mark.parametrize(
    ("header", "seconds", "applied"),
    [
        (None, 25.0, None),
        ("", 25.0, None),
        ("wait=3", 3, "wait=3"),
        ("wait=0", 0, "wait=0"),
        ("WAIT=3", 3, "wait=3"),
        ('wait="3"', 3, "wait=3"),
        ("wait = 3 ; foo", 3, "wait=3"),
        ("wait=600", 60, "wait=60"),
        ("wait=3, wait=5", 3, "wait=3"),
        ("respond-async", 0, "respond-async"),
        ("respond-async, wait=10", 10, "wait=10, respond-async"),
        ("handling=lenient, wait=4", 4, "wait=4"),
        ("wait=-1", 25.0, None),
        ("wait=1.5", 25.0, None),
        ("wait=soon", 25.0, None),
        ("wait", 25.0, None),
        ("wait=\u0663", 25.0, None),
        ("wait=99999999999999999999", 25.0, None),
    ],
)
def test_prefer(header: str | None, seconds: float, applied: str | None) -> None:
    """What is understood is applied and echoed, within the limit; what is not is ignored."""
    found = read_prefer(header, default_seconds=25.0, seconds_max=60.0)
    assert (found.seconds, found.applied) == (seconds, applied)
