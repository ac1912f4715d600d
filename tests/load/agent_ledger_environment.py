"""The environment of the other side: agent-ledger from PyPI with its Postgres extra, installed once by uv and kept in the user's cache."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tests.load.side import ROOT

REQUIREMENTS = ("agent-ledger[postgres]==0.2.1", "uvloop")
"""Its own extra brings psycopg with its C speed-ups and the pool; uvloop because our side runs on it too."""


def python_of_agent_ledger() -> Path:
    """The interpreter of the environment, which is made when it is not there yet.

    Raises:
        SystemExit: it cannot be installed (no network, for instance).
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wanted = "\n".join((platform.python_version(), *REQUIREMENTS))
    folder = cache / "agent-outbox" / f"bench-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if python.exists():
        return python
    draft = folder.with_name(f".{folder.name}-{os.getpid()}")
    uv = str(ROOT / ".ci" / "uv")
    try:
        subprocess.run([uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, str(draft)], cwd=ROOT, check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(draft / "bin" / "python"), *REQUIREMENTS]
        subprocess.run(install, cwd=ROOT, check=True)
        draft.rename(folder)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"agent-ledger could not be installed: {' '.join(map(str, error.cmd))}") from None
    except OSError:
        # Another bench was quicker.
        if not python.exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return python
