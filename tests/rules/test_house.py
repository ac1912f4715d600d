"""The shape of the house: who imports whom, what files are called, and that each says what it is for."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.rules.house import ROOT, modules

FORBIDDEN_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "core", "manager", "managers", "misc"})
"""Names that say nothing about what is inside."""


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter over the sources below `folder`, with the contracts of its pyproject.toml."""
    sources = [str(path) for path in [*folder.glob("libs/*/src"), *folder.glob("services/*/src")]]
    return subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--config", str(folder / "pyproject.toml")],
        cwd=folder,
        env={"PYTHONPATH": ":".join(sources), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def copy_sources(target: Path) -> Path:
    """A copy of all sources and contracts in which a violation can be planted."""
    shutil.copy(ROOT / "pyproject.toml", target / "pyproject.toml")
    for source in [*ROOT.glob("libs/*/src"), *ROOT.glob("services/*/src")]:
        shutil.copytree(source, target / source.relative_to(ROOT), ignore=shutil.ignore_patterns("__pycache__"))
    return target


def test_nobody_imports_past_the_import_rule() -> None:
    """The import contracts of pyproject.toml hold."""
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("libs/domain/src/outbox_domain", "import outbox_store"),
        ("libs/store/src/outbox_store", "import outbox_runtime"),
        ("services/api/src/outbox_api", "import outbox_worker"),
        ("libs/sdk/src/agent_outbox", "import outbox_domain"),
        ("libs/sandbox/src/outbox_sandbox", "import outbox_providers"),
    ],
)
def test_a_planted_import_breaks_the_rule(tmp_path: Path, place: str, line: str) -> None:
    """Negative control: import-linter refuses an import that goes up, sideways or into a package that stands apart."""
    folder = copy_sources(tmp_path)
    (folder / place / "planted.py").write_text(f'"""Planted."""\n\n{line}\n', encoding="utf-8")
    done = lint_imports(folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "planted" in done.stdout


def test_no_root_folder_is_a_package() -> None:
    """No root folder, no member's folder and no folder of tests has an `__init__.py`: it would shadow other packages.

    What the compatibility tests put in another package's place is a package on purpose, on no path but that of their own process.
    """
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    found = [folder / "__init__.py" for folder in folders]
    found += [path / "__init__.py" for folder in folders if folder.name in ("libs", "services") for path in folder.iterdir()]
    shim = ROOT / "tests" / "compat" / "shim"
    found += [path for path in (ROOT / "tests").rglob("__init__.py") if not path.is_relative_to(shim)]
    assert [path for path in found if path.exists()] == []


def test_every_file_is_named_after_what_it_holds() -> None:
    """No module or folder is called utils, helpers, common, core or manager."""
    parts = {part: module.path for module in modules() for part in module.name.split(".")}
    parts |= {path.stem: path for path in (ROOT / "tests").rglob("*.py")}
    assert {name: path for name, path in parts.items() if name in FORBIDDEN_NAMES} == {}


def test_every_module_says_what_it_is_for() -> None:
    """Every module of every member, and every test module, starts with a docstring."""
    trees = {module.path: module.tree for module in modules()}
    trees |= {path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py")}
    assert [str(path.relative_to(ROOT)) for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and methods of public classes without a docstring.

    An overload and a method marked `@override` have theirs elsewhere.
    """
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if _is_silent(node):
            yield node.name
        if isinstance(node, ast.ClassDef):
            members = [member for member in node.body if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)]
            yield from (
                f"{node.name}.{member.name}" for member in members if not member.name.startswith("_") and _is_silent(member)
            )


def _is_silent(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    marks = {mark.attr if isinstance(mark, ast.Attribute) else getattr(mark, "id", "") for mark in node.decorator_list}
    return not ast.get_docstring(node) and not marks & {"overload", "override", "setter"}


def test_every_public_function_of_a_library_is_documented() -> None:
    """Every public function, class and method of the members below `libs/` has a docstring."""
    libraries = [module for module in modules() if module.path.is_relative_to(ROOT / "libs")]
    assert [f"{module.name}.{name}" for module in libraries for name in undocumented(module.tree)] == []


def test_a_planted_undocumented_function_is_found() -> None:
    """Negative control: a public function or method without a docstring is reported, a private one is not."""
    source = "def f(): ...\nclass A:\n    '''A.'''\n    def g(self): ...\n    def _h(self): ...\ndef _i(): ...\n"
    assert list(undocumented(ast.parse(source))) == ["f", "A.g"]


def test_every_test_states_the_fact_it_holds() -> None:
    """Every test function has a docstring."""
    silent = [
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert silent == []
