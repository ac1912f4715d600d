"""The client's table of problems is the gateway's: it may not import the registry, so this compares the two."""

from typing import get_args

from agent_outbox import errors
from outbox_domain.errors import PROBLEMS, RetryAction

CODES = list(PROBLEMS)


def test_the_client_knows_every_problem_and_no_other() -> None:
    """Codes, titles and default actions of `agent_outbox.errors.ERRORS` = those of `outbox_domain.errors.PROBLEMS`."""
    mine = {code: (error.title, error.action) for code, error in errors.ERRORS.items()}
    assert mine == {code: (problem.title, problem.action) for code, problem in PROBLEMS.items()}


def test_the_client_knows_every_action() -> None:
    """The actions after a problem are the same six words."""
    assert frozenset(get_args(RetryAction)) == errors.RETRY_ACTIONS


def test_every_exception_is_named_after_its_code() -> None:
    """`invalid-input` is `InvalidInputError`, so that whoever knows a code can write the name."""
    named = {code: "".join(word.capitalize() for word in code.split("-")) + "Error" for code in CODES}
    assert {code: error.__name__ for code, error in errors.ERRORS.items()} == named


def test_results_are_made_of_problems_that_exist() -> None:
    """Every code that `call` returns as a result is one of the registry's, and none is both a refusal and a doubt."""
    assert PROBLEMS.keys() >= errors.REFUSALS | errors.DOUBTS
    assert not errors.REFUSALS & errors.DOUBTS
