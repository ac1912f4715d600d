"""The conformance kit against gateways that sin: every check has a gateway that it must not pass."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support import naive_gateway
from tests.support.naive_gateway import Sin
from tests.support.processes import start

from agent_outbox.commands.conformance import EXIT_INCOMPLETE, conformance
from agent_outbox.conformance.run import chosen

READY_SECONDS = 30.0

CAUGHT: Mapping[Sin, tuple[str, ...]] = {
    Sin.FORGETS: ("repeated", "loop", "mail", "keys-forgotten"),
    Sin.RACES: ("at-the-same-moment", "fork", "mail-at-the-same-moment"),
    Sin.KEYS_BY_RUN: ("fork",),
    Sin.KEYS_BY_STEP: ("loop", "mail-lost-reply"),
    Sin.KEYS_BY_INPUT: ("conflict",),
    Sin.REPLAYS_CONFLICTS: ("conflict",),
    Sin.TELLS_VALUES: ("conflict",),
    Sin.NEW_KEY_EACH_TIME: ("lost-reply", "truncated-reply", "error-after-commit", "dropped-before-commit"),
    Sin.IMPATIENT: ("slow-commit", "caller-gone"),
    Sin.GUESSES_FAILURE: ("lost-reply", "error-after-commit", "dropped-before-commit", "mail-dropped", "ticket-lost-reply"),
    Sin.GUESSES_SUCCESS: ("lost-reply", "dropped-before-commit", "mail-dropped", "mail-lost-reply", "ticket-dropped"),
    Sin.NEVER_SENDS_AGAIN: ("lost-reply", "dropped-before-commit"),
    Sin.RESENDS_MAILS: ("mail-lost-reply", "mail-dropped", "mail-error"),
    Sin.NEVER_LOOKS: ("ticket-lost-reply",),
    Sin.TAKES_ERRORS_AS_REFUSALS: ("error-after-commit", "mail-error"),
    Sin.TAKES_LIMITS_AS_REFUSALS: ("rate-limited", "mail-rate-limited"),
    Sin.IGNORES_RETRY_AFTER: ("rate-limited",),
    Sin.TAKES_DECLINES_AS_DOUBTS: ("declined",),
    Sin.NEW_RECEIPT_EACH_TIME: ("repeated", "at-the-same-moment", "loop", "keys-forgotten"),
    Sin.SAYS_NEVER_REPLAYED: ("repeated",),
    Sin.ASKS_AGAIN: ("repeated", "keys-forgotten", "mail"),
    Sin.IGNORES_REQUEST_KEYS: ("request-key",),
    Sin.TAKES_ANYTHING: ("malformed",),
    Sin.REASSURES: ("mail-lost-reply",),
}
"""What each sin must be caught by."""

NEEDS_MORE = ("webhooks",)
"""Checks that the small gateway does not offer what it takes to make."""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The sandbox provider in a process of its own."""
    folder = tmp_path_factory.mktemp("sandbox")
    process = start("outbox_sandbox", "--ready-file", str(folder / "ready.json"), folder=folder)
    try:
        process.wait_for((folder / "ready.json").exists, deadline_seconds=READY_SECONDS)
        yield json.loads((folder / "ready.json").read_text())["url"]
    finally:
        process.end()


def verdicts_of(url: str, sandbox: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the document of the command."""
    told = CliRunner().invoke(
        conformance, ["--target", url, "--key", "obx_any", "--sandbox", sandbox, "--json", *arguments], catch_exceptions=False
    )
    return told.exit_code, json.loads(told.stdout)


def by_verdict(document: Mapping[str, Any], verdict: str) -> set[str]:
    """The names of the checks that came to a verdict."""
    return {each["check"] for each in document["checks"] if each["verdict"] == verdict}


def test_every_check_of_the_gateway_has_a_sin() -> None:
    """No check of gateway-executed effects is without a gateway that it fails; every sin is tried."""
    checks = {each.name for each in chosen([], []) if each.lane in ("refunds", "mails", "tickets")} - set(NEEDS_MORE)
    # What a plain call or a proof of absence comes to, a gateway without any effect at all would get wrong; see below.
    assert checks - {name for names in CAUGHT.values() for name in names} == {"one-call"}
    assert set(CAUGHT) == set(Sin)


@pytest.mark.slow
def test_a_gateway_without_sin_keeps_everything(sandbox: str) -> None:
    """Positive control: the small gateway breaks nothing; what it does not offer is said to be not made, with its own exit code."""
    with naive_gateway.serving(sandbox) as url:
        code, document = verdicts_of(url, sandbox)
    assert {each["check"]: each["seen"] for each in document["checks"] if each["verdict"] == "broken"} == {}
    assert by_verdict(document, "kept") == {name for names in CAUGHT.values() for name in names} | {"one-call"}
    assert (code, document["conforms"]) == (EXIT_INCOMPLETE, False)
    assert all(each["seen"] for each in document["checks"] if each["verdict"] == "not made")


@pytest.mark.parametrize("sin", Sin, ids=lambda sin: sin.name)
def test_a_gateway_that_sins_is_caught(sandbox: str, sin: Sin) -> None:
    """Negative control: each sin breaks each check that is named for it, and the command ends with 1."""
    only = [part for name in CAUGHT[sin] for part in ("--only", name)]
    with naive_gateway.serving(sandbox, sin) as url:
        code, document = verdicts_of(url, sandbox, *only)
    assert by_verdict(document, "broken") == set(CAUGHT[sin]), document["checks"]
    assert (code, document["conforms"], document["broken"]) == (1, False, len(CAUGHT[sin]))
    assert all(each["seen"] for each in document["checks"])


def test_a_gateway_that_reaches_another_provider_is_caught(sandbox: str, tmp_path: Path) -> None:
    """A success without an effect at the provider that counts is no success."""
    ready = tmp_path / "ready.json"
    elsewhere = start("outbox_sandbox", "--ready-file", str(ready), folder=tmp_path)
    try:
        elsewhere.wait_for(ready.exists, deadline_seconds=READY_SECONDS)
        with naive_gateway.serving(json.loads(ready.read_text())["url"]) as url:
            code, document = verdicts_of(url, sandbox, "--only", "one-call")
    finally:
        elsewhere.end()
    assert (code, by_verdict(document, "broken")) == (1, {"one-call"})


def test_wrong_usage_is_said() -> None:
    """A check that there is not, and half of an address, are wrong usage (2)."""
    for arguments in (
        ["--only", "no-such-check"],
        ["--key", "k"],
        ["--target", "http://127.0.0.1:1", "--key", "k", "--webhook", "u"],
    ):
        told = CliRunner(env={"OUTBOX_URL": None, "OUTBOX_KEY": None}).invoke(conformance, arguments)
        assert told.exit_code == 2, told.output


def test_who_does_not_answer_is_unreachable(sandbox: str) -> None:
    """A gateway that does not answer, and a provider that is none, end the command with 3 before any check."""
    dead = "http://127.0.0.1:1"
    assert CliRunner().invoke(conformance, ["--target", dead, "--key", "k", "--sandbox", sandbox]).exit_code == 3
    with naive_gateway.serving(sandbox) as url:
        for provider in (dead, url):
            assert CliRunner().invoke(conformance, ["--target", url, "--key", "k", "--sandbox", provider]).exit_code == 3


def test_the_list_names_every_promise() -> None:
    """`--list` says of each check what it promises and does; names are unique."""
    listed = json.loads(CliRunner().invoke(conformance, ["--list", "--json"]).stdout)
    assert len(listed) == len({each["name"] for each in listed}) >= 40
    assert all(each["promise"].endswith(".") and each["scenario"].endswith(".") for each in listed)
