"""Installs uv into a folder of its own, with nothing but a Python 3.11 or newer.

Three ways, in order: a virtual environment with pip; the interpreter's own pip; the wheel from the package index,
its SHA-256 checked (Debian's python3 alone has neither venv nor pip).
"""

# ruff: noqa: S603, S310 - every program and address below is written in this file or comes from the package index.

import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

REQUIREMENT = "uv>=0.9,<1"
INDEX = "https://pypi.org/pypi/uv/json"
WHEEL_BYTES_MAX = 200 * 1024 * 1024


def by_virtual_environment(folder: Path) -> None:
    """Makes `folder` a virtual environment and installs uv there."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", REQUIREMENT], check=True)


def by_pip(folder: Path) -> None:
    """Installs uv below `folder` with the interpreter's own pip."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), REQUIREMENT]
    subprocess.run(command, check=True, capture_output=True)


def wheel_suffix() -> str:
    """The end of the name of the wheel for this machine."""
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "darwin":
        return f"{'arm64' if machine == 'aarch64' else machine}.whl"
    libc = "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    return f"{libc}:{machine}.whl"


def is_for_this_machine(name: str, suffix: str) -> bool:
    """Whether the wheel of that name runs here."""
    if sys.platform == "darwin":
        return "macosx" in name and name.endswith(suffix)
    libc, end = suffix.split(":")
    return libc in name and name.endswith(end)


def by_download(folder: Path) -> None:
    """Fetches the newest wheel, checks its digest and unpacks the two programs into `folder`/bin."""
    with urllib.request.urlopen(INDEX, timeout=60) as answer:
        release = json.load(answer)
    suffix = wheel_suffix()
    wheel = next(file for file in release["urls"] if is_for_this_machine(file["filename"], suffix))
    with urllib.request.urlopen(urllib.parse.urljoin(INDEX, wheel["url"]), timeout=300) as answer:
        body = answer.read(WHEEL_BYTES_MAX + 1)
    if len(body) > WHEEL_BYTES_MAX or hashlib.sha256(body).hexdigest() != wheel["digests"]["sha256"]:
        raise RuntimeError(f"{wheel['filename']} is not the file that the index describes")
    binaries = folder / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as spool:
        spool.write(body)
        with zipfile.ZipFile(spool) as archive:
            for member in archive.namelist():
                if "/scripts/uv" in member:
                    program = binaries / Path(member).name
                    program.write_bytes(archive.read(member))
                    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def main() -> int:
    """Tries each way until one leaves a uv that answers.

    Returns:
        0, or 1 with one sentence per way that failed.
    """
    folder = Path(sys.argv[1])
    failures = []
    print(f"uv is not installed; putting it into {os.path.relpath(folder)}")
    for way in (by_virtual_environment, by_pip, by_download):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            way(folder)
            subprocess.run([str(folder / "bin" / "uv"), "--version"], check=True, capture_output=True)
        except Exception as error:  # Whatever stopped this way, the next one may work; all reasons are printed at the end.
            failures.append(f"{way.__name__}: {error}")
            continue
        return 0
    print("uv could not be installed:", *failures, sep="\n  ", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
