"""The last lines of a log, for who looks at it while it is written."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LINES_SHOWN", "last_lines"]

# How many of the last records are shown, and how much of the log is looked at for them: with
# messages of the default length, all of them are there.
LINES_SHOWN = 10
_BYTES = 64 * 1024


def last_lines(path: Path, size: int) -> list[bytes]:
    """
    The last lines of a log, oldest first, as far as they are in its last 64 KiB; of the first one
    there may be only the end.

    @param size: how much of the log there is; what is behind it is not committed yet.
    """
    begin = max(size - _BYTES, 0)
    with path.open("rb") as file:
        file.seek(begin)
        lines = file.read(size - begin).split(b"\n")
    return lines[:-1][-LINES_SHOWN:]
