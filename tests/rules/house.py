"""What the rule tests read: the source files of the house, as modules and as syntax trees."""

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CLIENT_AND_SANDBOX = frozenset({"agent_outbox", "outbox_sandbox"})
"""The packages that stand apart: they import none of the server's members."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """One Python file of a member.

    Attributes:
        name: as Python imports it, `outbox_worker.transport`.
        path: where it lies.
        tree: its syntax tree.
    """

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The member's package, `outbox_worker`."""
        return self.name.partition(".")[0]


def module_name(path: Path, source: Path) -> str:
    """The dotted name of the file at `path` below the folder `source`."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> Iterator[Module]:
    """Every module of every member, in the order of their paths."""
    for source in sorted([*ROOT.glob("libs/*/src"), *ROOT.glob("services/*/src"), *ROOT.glob("operator/src")]):
        for path in sorted(source.rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            yield Module(name=module_name(path, source), path=path, tree=tree)


def tracked_files() -> list[Path]:
    """Every file that git tracks and that still exists."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def defined_names(path: Path) -> set[str]:
    """Functions, classes, methods (`Class.method`) and constants that the Python file at `path` defines."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
            members = [member for member in node.body if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)]
            names.update(f"{node.name}.{member.name}" for member in members)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names
