"""Status and meaning of problems: the table of `interfaces.md` section 1."""

import pytest

from outbox_api.errors import DECISIONS, STATUS, from_exception, headers_of, is_final, problem_members, unavailable
from outbox_domain.errors import PROBLEMS, OutboxError, Retry


def test_every_problem_has_one_status() -> None:
    """Each code of the registry has a status, and each is a client's or a server's error."""
    assert STATUS.keys() == PROBLEMS.keys()
    assert all(400 <= status < 600 for status in STATUS.values())
    assert {STATUS[code] for code in DECISIONS} == {403}


@pytest.mark.parametrize(
    ("status", "code", "kept"),
    [
        (200, "succeeded", True),
        (201, "created", True),
        (422, "conflict", True),
        (422, "provider-refused", True),
        (403, "policy-denied", True),
        (403, "review-required", True),
        (403, "out-of-scope", False),
        (202, "not-final", False),
        (400, "malformed-body", False),
        (401, "invalid-key", False),
        (404, "unknown-tool", False),
        (409, "in-doubt", False),
        (409, "voided", False),
        (413, "too-large", False),
        (429, "quota-exceeded", False),
        (500, "internal", False),
        (503, "unavailable", False),
    ],
)
def test_what_a_request_key_keeps(status: int, code: str, kept: bool) -> None:
    """Only final answers: 200, 201, 422, and 403 of a decision (design 5.7)."""
    assert is_final(status, code) is kept


def test_postgres_away_never_claims_too_much() -> None:
    """Nothing was sent, where nothing was recorded; else the text says neither that it was nor that it was not."""
    for error in (ConnectionRefusedError(), TimeoutError(), unavailable()):
        problem = from_exception(error)
        assert problem.code == "unavailable"
        assert problem.message.startswith("NOT SENT.")
    assert unavailable(possibly_reserved=True).message.startswith("Not finished.")
    assert ("Retry-After", "2") in headers_of(unavailable())


def test_the_unexpected_tells_nothing_of_itself() -> None:
    """An exception that nobody expected becomes `internal`; its own text is in no member."""
    problem = from_exception(ValueError("secret detail"))
    assert problem.code == "internal"
    assert "secret" not in str(problem_members(problem)) + problem.message


def test_fields_of_an_occurrence_are_members() -> None:
    """What one occurrence adds stands beside the members of RFC 9457; a wait is told in whole seconds."""
    retry = Retry(action="wait", after_seconds=0.2)
    error = OutboxError("conflict", "detail", path="$.input", retry=retry, fields=["amount"])
    members = problem_members(error)
    assert (members["status"], members["path"], members["fields"]) == (422, "$.input", ["amount"])
    assert headers_of(error) == [("Retry-After", "1")]
