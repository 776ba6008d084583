"""Where a figure was measured: the machine, the file system under its data, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

# File systems that keep everything in memory: fsync costs nothing there and means nothing.
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def machine(directory: Path) -> str:
    """Return the machine in one line; `directory` is where the benchmark keeps its data."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = (
        f"{_processor()} x {os.cpu_count()}",
        f"{memory_gib:.0f} GiB",
        f"Linux {platform.release()}" if platform.system() == "Linux" else platform.platform(),
        file_system(directory),
        f"Python {platform.python_version()}",
    )
    return ", ".join(parts)


def file_system(directory: Path) -> str:
    """Return the type of the file system that holds `directory`, "unknown" where that cannot be told."""
    device = directory.stat().st_dev
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    except FileNotFoundError:
        return "unknown"
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == number:
            return kind.split()[0]
    return "unknown"


def keeps_nothing(directory: Path) -> bool:
    """Return whether what is written below `directory` is gone after a power cut whatever fsync says."""
    return file_system(directory) in _IN_MEMORY


def commit() -> str:
    """Return the short commit hash, with "+" when files differ from it; "unknown" outside a repository."""
    here = Path(__file__).parent
    try:
        name = _git(here, "rev-parse", "--short", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}+" if changed else name


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except FileNotFoundError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()
