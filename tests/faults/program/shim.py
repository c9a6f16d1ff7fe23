"""
What a fault in a server's system calls may be, and the library that makes it.

The library is built from C{shim.c} when it is first wanted, and preloaded into L{the zygote
<tests.faults.program.zygote>}; a server that is forked from there is told its L{Plan}.
"""

from __future__ import annotations

import ctypes
import enum
import os
import subprocess
from pathlib import Path

from attrs import asdict, frozen

__all__ = ["Fate", "Plan", "apply", "build"]

_SOURCE = Path(__file__).with_name("shim.c")

FOREVER = 1 << 60


class Fate(enum.IntEnum):
    """
    What happens at a call.

    The process dies (SIGKILL) before it, in the middle of it (half of what was to be written is;
    of other calls: before), or after it; it fails; or half of what was to be written is, and later
    calls fail.
    """

    NOTHING = 0
    BEFORE = 1
    MIDDLE = 2
    AFTER = 3
    FAIL = 4
    HALF = 5


@frozen
class Plan:
    """
    What happens to a server.

    @ivar call: which system call; C{*}: each that is looked at.
    @ivar file: on which file in the log's folder, C{.}: the folder; C{*}: each.
    @ivar first: the number of the first such call at which it happens, from 1.
    @ivar last: the number of the last one.
    @ivar error: with what a call fails.
    @ivar trace: a file that gets a line for each such call.
    @ivar clock: a file of 8 bytes: by how many seconds the clock is wrong now.
    """

    fate: Fate = Fate.NOTHING
    call: str = "*"
    file: str = "*"
    first: int = 1
    last: int = FOREVER
    error: int = 0
    trace: str = ""
    clock: str = ""

    def packed(self) -> dict[str, object]:
        """As JSON can have it."""
        return asdict(self)


def build(folder: Path) -> Path:
    """Make the library in a folder; it needs a C compiler."""
    library = folder / "shim.so"
    words = ["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl", "-lpthread"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return library


def apply(plan: dict[str, object], folder: str) -> None:
    """From now on it happens in this process, which has the library, to files of a folder."""
    made = Plan(**plan)  # type: ignore[arg-type]
    trace = os.open(made.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if made.trace else -1
    clock = os.open(made.clock, os.O_RDONLY) if made.clock else -1
    numbers = ctypes.c_long(made.first), ctypes.c_long(made.last)
    names = made.call.encode(), made.file.encode()
    ctypes.CDLL(None).fault_plan(
        int(made.fate),
        *names,
        *numbers,
        made.error,
        os.path.realpath(folder).encode(),
        trace,
        clock,
    )
