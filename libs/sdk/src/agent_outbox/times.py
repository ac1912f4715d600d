"""Times as the server writes them; durations as people read them on a terminal."""

from __future__ import annotations

import re
from datetime import datetime, timezone

_FRACTION = re.compile(r"\.([0-9]{1,6})[0-9]*")


def read(text: str) -> datetime:
    """A time as the server writes it; without a zone it is UTC.

    Args:
        text: RFC 3339. Python 3.10 knows neither its Z nor a fraction of other than three or six digits, and Postgres leaves out
            zeros at the end.

    Raises:
        ValueError: it is none.
    """
    written = _FRACTION.sub(lambda found: f".{found[1]:0<6}", text.replace("Z", "+00:00"), count=1)
    moment = datetime.fromisoformat(written)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def duration(seconds: float) -> str:
    """A duration in the unit that suits it: `340 ms`, `2.5 s`, `12 min`, `3 h`, `5 d`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if unit == "s" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def ago(text: str) -> str:
    """How long ago a time was."""
    return f"{duration(max(0.0, -_from_now(text)))} ago"


def until(text: str) -> str:
    """When a time will be: `in 12 s`, or `now` where it has come."""
    seconds = _from_now(text)
    return f"in {duration(seconds)}" if seconds > 0 else "now"


def _from_now(text: str) -> float:
    return (read(text) - datetime.now(timezone.utc)).total_seconds()
