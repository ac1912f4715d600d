"""The product as a user installs it: wheels of every member in an environment of their own, built once per session."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = ROOT / ".ci" / "uv"
MEMBERS_MIN = 9
INSTALL_SECONDS = 600.0
CLIENT_PYTHON = "3.10"
"""The oldest Python that the client promises to run on (`requires-python` of its member)."""


def uv(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs uv from the cache alone; who has never downloaded a package before gets it from the registry."""
    command = [str(part) for part in (UV, *arguments)]
    offline = subprocess.run([*command, "--offline"], cwd=ROOT, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if offline.returncode == 0:
        return offline
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=INSTALL_SECONDS)


def succeed(done: subprocess.CompletedProcess[str]) -> None:
    """Fails with the output of a command that failed."""
    assert done.returncode == 0, done.stdout + done.stderr


def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment into which nothing but the wheels and what they need was installed.

    The processes of one session share it: the first to ask builds it, the others wait for that.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "wheels"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _build(folder)
            (folder / "complete").touch()
    return folder / "environment" / "bin"


def _build(folder: Path) -> None:
    succeed(uv("build", "--quiet", "--all-packages", "--wheel", "--out-dir", folder / "dist"))
    wheels = sorted((folder / "dist").glob("*.whl"))
    assert len(wheels) >= MEMBERS_MIN
    # The versions of the lock, so that this tests our wheels and not what was released this morning.
    selection = ("--package", "agent-outbox", "--extra", "local", "--no-dev", "--no-emit-workspace")
    succeed(uv("export", "--quiet", "--locked", "--no-hashes", *selection, "--output-file", folder / "requirements.txt"))
    succeed(uv("venv", "--quiet", "--python", sys.executable, folder / "environment"))
    python = folder / "environment" / "bin" / "python"
    succeed(uv("pip", "install", "--quiet", "--python", python, "-r", folder / "requirements.txt"))
    succeed(uv("pip", "install", "--quiet", "--python", python, "--no-deps", "--no-index", *wheels))


def client_environment(dist: Path, folder: Path) -> Path | None:
    """The Python of a new environment of the oldest version that the client supports, with the client's wheel alone.

    Args:
        dist: where `installed` has put the wheels.
        folder: of the environment.

    Returns:
        None where this machine has no such Python.
    """
    # Of several versions that pyenv keeps, its variable names one; others do not read it.
    environment = {**os.environ, "PYENV_VERSION": CLIENT_PYTHON}
    asked = [f"python{CLIENT_PYTHON}", "-c", "import sys; print(sys.executable)"]
    try:
        found = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    succeed(uv("venv", "--quiet", "--python", found, folder))
    python = folder / "bin" / "python"
    [wheel] = dist.glob("agent_outbox-*.whl")
    succeed(uv("pip", "install", "--quiet", "--python", python, f"{wheel}[relay,agent-ledger]"))
    return python
