"""Times and durations as people read them on a terminal."""

from __future__ import annotations

from datetime import datetime, timezone


def read(text: str) -> datetime:
    """A time as the server writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


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
