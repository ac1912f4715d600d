"""The documents are true where a machine can tell: links, names of functions and tests, the Makefile's help."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.rules.house import ROOT, defined_names, module_name, tracked_files
from tests.support.pages import READ, RUN, SHOWN, blocks, documented

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
REFERENCE = re.compile(r"`([\w./-]+\.py)::([\w.]+)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
DECISION_SECTIONS = ("Context", "Decision", "Consequences")
DESIGN_SECTIONS = ("Invariants", "Guards", "Known gaps")


def pages() -> list[Path]:
    """Every Markdown page of the repository."""
    return [path for path in tracked_files() if path.suffix == ".md"]


def anchors(text: str) -> set[str]:
    """The anchors that the headings of a page get on GitHub."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Links in the text of a page that lead nowhere inside the repository; addresses on the web are not asked."""
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_relative_to(ROOT) or (path and not file.exists()):
            yield target
        elif anchor and file.suffix == ".md":
            headings = text if file == page else file.read_text(encoding="utf-8")
            if anchor not in anchors(headings):
                yield target


def candidates(path: str) -> list[Path]:
    """Files that a reference can mean: a path from the root, or `outbox_worker/execute.py` inside a member."""
    return [
        file for file in [ROOT / path, *ROOT.glob(f"libs/*/src/{path}"), *ROOT.glob(f"services/*/src/{path}")] if file.is_file()
    ]


def broken_references(text: str) -> Iterator[str]:
    """References of the form `file.py::name` to what does not exist."""
    for path, name in REFERENCE.findall(text):
        if not any(name in defined_names(file) for file in candidates(path)):
            yield f"{path}::{name}"


def test_every_link_resolves() -> None:
    """Every relative link of every page leads to a file that exists, and to a heading of it."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages()}
    broken = {str(page.relative_to(ROOT)): list(broken_links(page, text)) for page, text in texts.items()}
    assert {page: links for page, links in broken.items() if links} == {}


def test_every_named_function_and_test_exists() -> None:
    """Every `file.py::name` that a page mentions is defined there."""
    broken = {str(page.relative_to(ROOT)): list(broken_references(page.read_text(encoding="utf-8"))) for page in pages()}
    assert {page: names for page, names in broken.items() if names} == {}


def test_planted_errors_of_a_page_are_found() -> None:
    """Negative control: a link to nowhere, to a missing heading and a reference to a missing function are reported."""
    text = "# One\n[a](nowhere.md) [b](#two) [c](#one) [d](glossary.md#no-such)\n`outbox_domain/reservation.py::Nothing`\n"
    assert list(broken_links(ROOT / "docs" / "planted.md", text)) == ["nowhere.md", "#two", "glossary.md#no-such"]
    assert list(broken_references(text)) == ["outbox_domain/reservation.py::Nothing"]


def table_below(page: Path, heading: str) -> list[list[str]]:
    """The cells of the rows of the first table below a heading, without its head."""
    section = page.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip().strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_every_place_to_change_exists() -> None:
    """Each row of "Where do I change ...?" names at least one file, as a link that resolves."""
    page = ROOT / "docs" / "architecture.md"
    rows = table_below(page, "Where do I change ...?")
    assert len(rows) >= 10
    for wish, place in rows:
        links = LINK.findall(place)
        assert links, wish
        assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_threat_names_its_test_or_says_that_there_is_none() -> None:
    """Each row of the table of threats has a guard and names a test, or the words "no test yet"."""
    for threat, guard, test in table_below(ROOT / "docs" / "threat-model.md", "Threats"):
        assert guard, threat
        assert REFERENCE.search(test) or test == "no test yet", threat


def test_the_architecture_names_every_member() -> None:
    """docs/architecture.md names every package of the workspace."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in [*ROOT.glob("libs/*/src/*/__init__.py"), *ROOT.glob("services/*/src/*/__init__.py")]}
    assert packages
    assert {package for package in packages if f"`{package}`" not in text} == set()


def test_decisions_are_numbered_titled_and_listed() -> None:
    """ADRs are numbered without a gap, have their sections, and docs/adr/README.md lists each with its title."""
    folder = ROOT / "docs" / "adr"
    files = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert [int(path.name[:4]) for path in files] == list(range(1, len(files) + 1))
    index = (folder / "README.md").read_text(encoding="utf-8")
    for path in files:
        text = path.read_text(encoding="utf-8")
        title = text.splitlines()[0].removeprefix("# ")
        assert f"[{title}]({path.name})" in index, path.name
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert [heading for heading in DECISION_SECTIONS if heading not in headings] == [], path.name
        design = [heading for heading in DESIGN_SECTIONS if heading in headings]
        assert design in ([], list(DESIGN_SECTIONS)), path.name


@pytest.mark.parametrize("name", ["architecture.md", "lifecycle.md", "threat-model.md"])
def test_a_design_page_ends_with_what_holds_it(name: str) -> None:
    """Design pages end with Invariants, Guards and Known gaps."""
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(headings[-3:]) == DESIGN_SECTIONS


def test_help_lists_every_target() -> None:
    """`make help` prints every target of the Makefile, each with a sentence, and every target is phony."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    phony = set(re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)[0].split())
    done = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, check=True, capture_output=True, text=True)
    listed = {match[0] for match in re.findall(r"^\s+make ([a-z-]+)\s+(\S.+\.)$", done.stdout, re.MULTILINE)}
    assert targets == phony == listed
    assert {"demo", "up", "test", "lint", "bench", "build"} <= listed


def test_the_readme_names_only_targets_that_exist() -> None:
    """Each `make x` of a page is a target of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    named = {name for page in pages() for name in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert named - targets == set()


def test_names_of_modules_come_from_paths() -> None:
    """A file's dotted name is its path below the source folder."""
    source = ROOT / "libs" / "domain" / "src"
    assert module_name(source / "outbox_domain" / "__init__.py", source) == "outbox_domain"
    assert module_name(source / "outbox_domain" / "errors.py", source) == "outbox_domain.errors"


def test_every_block_says_its_language() -> None:
    """Every fenced block names a language of which is known whether it is run, read or only shown."""
    found = [block for page in documented() for block in blocks(page)]
    fences = sum(len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in documented())
    assert fences == 2 * len(found)
    assert [
        f"{block.page}:{block.line} {block.language!r}" for block in found if block.language not in (*RUN, *READ, *SHOWN)
    ] == []


def test_every_promise_names_its_assumptions_and_its_tests() -> None:
    """Each row of docs/guarantees.md names at least one test and only assumptions that the page states."""
    page = ROOT / "docs" / "guarantees.md"
    stated = {row[0] for row in table_below(page, "Assumptions")}
    assert len(stated) >= 10
    promises = table_below(page, "Promises")
    assert len(promises) >= 20
    for promise, _, rests_on, held_by in promises:
        assert REFERENCE.search(held_by), promise
        assert set(re.findall(r"\b[A-Z]\d\b", rests_on)) <= stated, promise
