"""The machine that something was measured on, in words; and what it may lack for it."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

__all__ = ["describe", "not_a_disk"]

_SYNCS = 100


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def _file_system(folder: Path) -> str:
    """The kind of the file system that a folder is on, as the kernel names it."""
    found, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, named, *_ = line.split()
        # The later one of two at the same place hides the other.
        if folder.resolve().is_relative_to(where) and len(where) >= len(found):
            found, kind = where, named
    return kind


def not_a_disk(folder: Path) -> str | None:
    """The kind of file system a folder is on, if what is synced there goes to no disk."""
    kind = _file_system(folder)
    return kind if kind in ("tmpfs", "ramfs") else None


def _sync_ms(folder: Path) -> float:
    """How long a small append and its C{fdatasync} take: the median of a hundred."""
    taken = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            os.write(file.fileno(), b"x" * 400)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e3


def describe(folder: Path) -> dict[str, object]:
    """
    @param folder: where the logs are written.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "file_system": _file_system(folder),
        "sync_ms": round(_sync_ms(folder), 3),
        "load_before": round(os.getloadavg()[0], 2),
    }
