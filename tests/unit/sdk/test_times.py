"""Times are read as the server writes them, on every Python that the client runs on."""

import datetime as datetimes
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from agent_outbox import times
from agent_outbox.errors import UnexpectedAnswerError
from agent_outbox.receipt import Members

AS_PYTHON_3_10 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}(\d{3})?)?(\+\d\d:\d\d)?")


class Strict(datetimes.datetime):
    """Reads no more than `datetime` of Python 3.10 does."""

    @classmethod
    def fromisoformat(cls, text: str, /) -> "Strict":
        """Fails where Python 3.10 does."""
        if AS_PYTHON_3_10.fullmatch(text) is None:
            raise ValueError(text)
        return super().fromisoformat(text)


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [
        ("2026-01-31T08:15:00Z", 0),
        ("2026-01-31T08:15:00+00:00", 0),
        ("2026-01-31T08:15:00", 0),
        ("2026-01-31T08:15:00.9+00:00", 900_000),
        ("2026-01-31T08:15:00.99805+00:00", 998_050),
        ("2026-01-31T08:15:00.998Z", 998_000),
        ("2026-01-31T08:15:00.998051Z", 998_051),
        ("2026-01-31T08:15:00.998051999Z", 998_051),
    ],
)
def test_a_time_is_read_whatever_its_fraction(monkeypatch: pytest.MonkeyPatch, text: str, microsecond: int) -> None:
    """Python 3.10 reads the fractions that Postgres writes, which leaves zeros at the end out, and the Z of RFC 3339."""
    monkeypatch.setattr(times, "datetime", Strict)
    assert times.read(text) == datetime(2026, 1, 31, 8, 15, 0, microsecond, tzinfo=UTC)


def test_an_offset_is_kept() -> None:
    """A time with another offset is that moment."""
    assert times.read("2026-01-31T09:15:00.5+01:00") == datetime(
        2026, 1, 31, 9, 15, 0, 500_000, tzinfo=timezone(timedelta(hours=1))
    )


@pytest.mark.parametrize("text", ["", "now", "2026-01-31T08:15:00.", "2026-13-31T08:15:00Z"])
def test_an_answer_with_no_time_is_not_believed(text: str) -> None:
    """What stands in a time's place and is none makes the answer an unexpected one."""
    with pytest.raises(UnexpectedAnswerError):
        Members({"at": text}, "answer").moment("at")
