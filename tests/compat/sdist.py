"""agent-ledger's source distribution: downloaded by its hash, kept in the user's cache, and read without being installed."""

import ast
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.rules.house import ROOT

NAME = "agent_ledger-0.2.1"
SHA256 = "cbed9821d4da8da113eed4bd5fe4b29e35c1192811c18a79c19016665d7802dd"


def downloaded() -> Path:
    """The archive, with the one content it may have.

    Raises:
        SystemExit: it cannot be downloaded, or is another.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-outbox"
    kept = cache / f"{NAME}.tar.gz"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as draft:
            requirement = Path(draft) / "requirements.txt"
            requirement.write_text(f"agent-ledger==0.2.1 --hash=sha256:{SHA256}\n")
            options = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--requirement", str(requirement)]
            pip = [str(ROOT / ".ci" / "uv"), "tool", "run", "--quiet", "pip", "download", "--quiet", *options, "--dest", draft]
            if subprocess.run(pip, cwd=ROOT, check=False).returncode != 0:
                raise SystemExit(f"{NAME} could not be downloaded.")
            shutil.move(Path(draft) / f"{NAME}.tar.gz", kept)
    if hashlib.sha256(kept.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{kept} is not the archive that was published; delete it.")
    return kept


def member(name: str) -> bytes:
    """One file of the archive, as it is."""
    with tarfile.open(downloaded()) as archive:
        found = archive.extractfile(f"{NAME}/{name}")
        assert found is not None, name
        return found.read()


def constant(name: str, of: str) -> str:
    """A text that one of its modules assigns at its top level."""
    for node in ast.parse(member(name)).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == [of]:
            value: str = ast.literal_eval(node.value)
            return value
    raise LookupError(f"{name} has no {of}")


def exported(name: str = "agent_ledger/__init__.py") -> set[str]:
    """The names in its `__all__`."""
    for node in ast.parse(member(name)).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["__all__"]:
            return set(ast.literal_eval(node.value))
    raise LookupError(f"{name} has no __all__")


def functions() -> set[str]:
    """The functions of its test file, as `Class::function`."""
    found: set[str] = set()
    for node in ast.parse(member("tests/test_ledger.py")).body:
        if isinstance(node, ast.ClassDef):
            methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}::{one.name}" for one in methods if one.name.startswith("test")}
    return found
