"""The model is the product's: its transitions are the domain's, its guards are explained, and each stands in the code that keeps it."""

import ast
import dataclasses
import re
from collections.abc import Mapping

import pytest
from tests.model import authority, checks, dispatch, fork, strategies
from tests.rules.house import ROOT
from tests.rules.test_documents import candidates

from outbox_domain.reservation import TRANSITIONS

PAGE = ROOT / "docs" / "model.md"
TABLES: Mapping[str, tuple[type, tuple[type, ...]]] = {
    "Guards of the path of one effect": (dispatch.Rules, (dispatch.Dispatch,)),
    "Guards of authority": (authority.Rules, (authority.Authority,)),
    "Guards of forks": (fork.Rules, (fork.Fork,)),
    "Guards of strategies": (strategies.Rules, (strategies.Natural, strategies.CancelFirst)),
}
"""The guards that each table explains, and the specifications that have them."""

NOT_BUILT = "not built yet"
CELLS = re.compile(r"(?<!\\)\|")
PLACE = re.compile(r"`([^`]+)`")

Row = tuple[str, str, str, str, str]


def rows(page: str, heading: str) -> list[Row]:
    """The rows of the table below a heading, without its head."""
    section = page.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    found = []
    for line in lines:
        guard, asks, stands_in, says, without = (cell.strip().replace("\\|", "|") for cell in CELLS.split(line)[1:-1])
        found.append((guard.strip("`"), asks, stands_in, says, without))
    return found


def plain(text: str) -> str:
    """A text with every run of white space as one space."""
    return " ".join(text.split())


def source_of(place: str) -> str:
    """What stands at `path` or `path.py::name`: a file's text, or that of one definition.

    Raises:
        AssertionError: there is nothing.
    """
    path, _, name = place.partition("::")
    files = candidates(path)
    assert files, f"{place}: no such file"
    text = files[0].read_text(encoding="utf-8")
    if not name:
        return text
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if name in names or getattr(node, "name", None) == name:
            return ast.get_source_segment(text, node) or ""
    raise AssertionError(f"{place}: nothing of this name")


def misplaced(page: str) -> list[str]:
    """Guards of a page that do not stand where it says."""
    wrong = []
    for heading in TABLES:
        for guard, _, stands_in, says, _ in rows(page, heading):
            if stands_in == NOT_BUILT:
                continue
            [place], [fragment] = PLACE.findall(stands_in), PLACE.findall(says)
            if plain(fragment) not in plain(source_of(place)):
                wrong.append(guard)
    return wrong


def test_the_model_takes_exactly_the_transitions() -> None:
    """The changes of state that the model takes are TRANSITIONS, none more and none less."""
    in_domain = {(str(state), str(following)) for state, states in TRANSITIONS.items() for following in states}
    assert checks.transitions() == in_domain


@pytest.mark.parametrize("heading", TABLES)
def test_every_guard_of_the_model_is_explained(heading: str) -> None:
    """The guards of a table are the fields of its `Rules`, in their order."""
    page = PAGE.read_text(encoding="utf-8")
    assert [row[0] for row in rows(page, heading)] == [guard.name for guard in dataclasses.fields(TABLES[heading][0])]


@pytest.mark.parametrize("heading", TABLES)
def test_every_guard_is_removed_by_a_check_of_the_stated_length(heading: str) -> None:
    """For each guard a check takes it away, by itself or before others, and the shortest way that it finds is the page's."""
    specifications = TABLES[heading][1]
    told = {row[0]: row[4] for row in rows(PAGE.read_text(encoding="utf-8"), heading)}
    found = {}
    for guard in told:
        removing = [
            check
            for check in (*checks.HOLES, *checks.CONTROLS)
            if check.of in specifications and next(iter(check.rules)) == guard
        ]
        alone = [check for check in removing if len(check.rules) == 1] or removing
        found[guard] = f"{min((check.steps or 0 for check in alone), default=0)} steps"
    assert told == found


def test_every_guard_stands_where_the_page_says() -> None:
    """Each guard that is built is found in the code that the page names, in the words that it quotes."""
    assert misplaced(PAGE.read_text(encoding="utf-8")) == []


def test_a_guard_that_left_the_code_is_noticed() -> None:
    """Negative control: a quotation that the code does not contain, a missing definition and a missing row are reported."""
    page = PAGE.read_text(encoding="utf-8")
    assert misplaced(page.replace("`when l.unknown_attempts > 0 then 'in_doubt'`", "`when l.unknown_attempts > 7`")) == [
        "own_attempt_only"
    ]
    with pytest.raises(AssertionError, match="nothing of this name"):
        misplaced(page.replace("`outbox_store/settle.py::SETTLE`", "`outbox_store/settle.py::SETTLED`"))
    heading = "Guards of forks"
    without = re.sub(r"^\| `scope_is_lineage`.*\n", "", page, flags=re.MULTILINE)
    assert [row[0] for row in rows(without, heading)] == ["branch_inherits_open"]
