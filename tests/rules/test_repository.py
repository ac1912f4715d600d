"""What must not lie in the repository: paths of a development machine, secrets, unfinished work."""

import re
from collections.abc import Mapping

import pytest
from tests.rules.house import ROOT, tracked_files

PATTERNS: Mapping[str, re.Pattern[str]] = {
    "path of a home folder": re.compile(r"(?<![\w.])/(?:home|Users)/(?!user\b|nobody\b)[a-z][\w.-]+/"),
    "path of root's home": re.compile(r"(?<![\w.])/root/[\w.]"),
    "path of a workplace": re.compile(r"(?<![\w./-])/(?:work|workspace|workspaces|builds)/[a-z]"),
    "Stripe live key": re.compile(r"[sr]k_live_[A-Za-z0-9]{16,}"),
    "AWS access key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}"),
    "Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
    "SendGrid key": re.compile(r"\bSG\.[\w-]{20,}\.[\w-]{40,}"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{20,}"),
    "scoped key": re.compile(r"\bobx_[a-z0-9-]+_[A-Za-z0-9]{16}_[A-Za-z0-9]{30,}"),
}
"""What no tracked file may contain."""

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|#.*\bfor now\b")
"""Words that promise work instead of doing it."""

NOT_READ = frozenset({".png", ".ico", ".woff2", ".lock"})


PUBLISHED = ROOT / "docs" / "vectors"
"""Vectors are made of keys that are published and open nothing."""


def findings(text: str) -> list[str]:
    """What of `PATTERNS` the text contains."""
    return [name for name, pattern in PATTERNS.items() if pattern.search(text)]


def test_no_file_carries_a_machine_or_a_secret() -> None:
    """No tracked file contains an absolute path of a development machine or something that looks like a live secret."""
    found = {}
    for path in tracked_files():
        if path.suffix not in NOT_READ:
            allowed = {"scoped key"} if path.is_relative_to(PUBLISHED) else set()
            if names := set(findings(path.read_text(encoding="utf-8", errors="replace"))) - allowed:
                found[str(path.relative_to(ROOT))] = names
    assert found == {}


@pytest.mark.parametrize(
    "planted",
    [
        "/home/" + "alice/outbox/main.py",
        "open('/root/" + ".ssh/id')",
        " /workspace" + "/main/libs",
        "sk_" + "live_51HabcdEFGH1234567890abcd",
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "ghp_" + "a" * 36,
        "xoxb-" + "1" * 24,
        "SG." + "a" * 22 + "." + "b" * 43,
        "obx_" + "production_abcdefgh23456777_" + "0" * 56,
        "-----BEGIN " + "PRIVATE KEY-----\nMC4CAQAwBQYDK2VuBCIEIKj",
    ],
)
def test_a_planted_secret_or_path_is_found(planted: str) -> None:
    """Negative control: each kind of finding is recognised."""
    assert len(findings(planted)) == 1


@pytest.mark.parametrize(
    "harmless", ["/usr/lib/postgresql/15", "sk_live_x", "https://example.org/home/page/", "framework/main", "docs/work/page"]
)
def test_ordinary_text_is_no_finding(harmless: str) -> None:
    """Paths of an operating system and names that only resemble a secret are left alone."""
    assert findings(harmless) == []


def test_nothing_is_left_for_later() -> None:
    """No Python, SQL or shell file promises work instead of doing it."""
    this_file = ROOT / "tests" / "rules" / "test_repository.py"
    read = [path for path in tracked_files() if path.suffix in (".py", ".sql", ".sh") and path != this_file]
    found = [str(path.relative_to(ROOT)) for path in read if UNFINISHED.search(path.read_text(encoding="utf-8"))]
    assert found == []
