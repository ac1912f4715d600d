"""The code blocks of the documentation's pages.

A block is run by `tests/e2e/test_pages.py` as its language says. One that cannot be run says so to whoever reads the source of
the page: `<!-- not run: why -->` on the line before it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.rules.house import ROOT

FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)

RUN = ("python", "sh")
READ = ("json", "yaml", "toml", "sql")
SHOWN = ("text", "mermaid", "diff")
"""Languages of blocks that are run, that must at least be readable, and that are only looked at."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file, from the repository's root.
        line: where it begins.
        reason: why it is not run, where it says so.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    source = page.read_text(encoding="utf-8")
    return [
        Block(
            page=str(page.relative_to(ROOT)),
            line=source.count("\n", 0, found.start()) + 1,
            language=found["language"],
            text=found["text"],
            reason=found["reason"],
        )
        for found in FENCE.finditer(source)
    ]


def documented() -> list[Path]:
    """README.md and the pages below docs, but the decisions, which show no code to be used."""
    return [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "adr")]
