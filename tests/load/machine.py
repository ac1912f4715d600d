"""On what a bench ran: the figures mean nothing without it."""

import hashlib
import os
import platform
import subprocess
import time
from pathlib import Path
from statistics import median

from tests.load.side import ROOT

SYNCED_BYTES = 8192
SYNCS = 64


def described(folder: Path) -> dict[str, str]:
    """Size and kind of the machine, and the disk that `folder` lies on."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": f"{cores} x {_processor()}",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "disk": f"{_filesystem(folder)}, fdatasync of {SYNCED_BYTES} bytes {sync_milliseconds(folder):.2f} ms (median of {SYNCS})",
    }


def load_average() -> str:
    """The load averages over 1, 5 and 15 minutes; what else runs takes from what is measured."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def versions_here() -> dict[str, str]:
    """Python, the lock file and the commit that are measured."""
    lock = hashlib.sha256((ROOT / "uv.lock").read_bytes()).hexdigest()[:12]
    asked = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {"commit": commit or "unknown", "uv.lock": f"sha256 {lock}", "Python": platform.python_version()}


def sync_milliseconds(folder: Path) -> float:
    """How long the disk takes to make one page durable: every commit waits for it at least once."""
    path = folder / "fdatasync"
    took = []
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # Written once before, so that the file does not grow while it is measured, as the log of Postgres does not.
        os.write(descriptor, bytes(SYNCED_BYTES * SYNCS))
        os.fsync(descriptor)
        for place in range(SYNCS):
            os.pwrite(descriptor, os.urandom(SYNCED_BYTES), place * SYNCED_BYTES)
            began = time.perf_counter()
            os.fdatasync(descriptor)
            took.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(descriptor)
        path.unlink()
    return median(took)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(folder: Path) -> str:
    """The type of the file system that holds a folder; on a tmpfs nothing is durable."""
    found = ("/", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if folder.resolve().is_relative_to(place) and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1]
