"""
Files beside a log that were rotated away from it: which they are, and in which order.

Rotation is a rename, and by which rule is the operator's business: C{messages.jsonl.1},
C{messages.jsonl-20261124}.  So a file is taken for one if its name begins with the log's and its
first line is a record; and the time of that record says where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from ._errors import RecordError
from ._records import MAX_LINE_BYTES
from ._torn import read_record

__all__ = ["RotatedFile", "first_line_of", "rotated_files"]

# What msglog itself keeps beside a log: no rotated files.
_OURS = (".ledger", ".torn-")


@frozen(slots=True)
class RotatedFile:
    """
    A file that was rotated away.

    @ivar time: the time of its first record, microseconds since 1970-01-01 UTC.
    @ivar path: where it is.
    @ivar first: its first line.
    """

    time: int
    path: Path
    first: bytes


def first_line_of(path: Path) -> bytes:
    """The first line of a file as it is on the disk; at most as long as a record can be."""
    with path.open("rb") as file:
        return file.readline(MAX_LINE_BYTES)


def rotated_files(
    log: Path, first_line: Callable[[Path], bytes], passed_over: Callable[[Path], None]
) -> list[RotatedFile]:
    """
    What was rotated away from a log, oldest first.

    @param first_line: reads the first line of a file.
    @param passed_over: called with each file whose first line is no record.
    """
    found = []
    for path in _files_beside(log):
        line = first_line(path)
        try:
            record = read_record(line)
        except RecordError:
            passed_over(path)
            continue
        found.append(RotatedFile(record.time, path, line))
    return sorted(found, key=lambda file: (file.time, file.path))


def _files_beside(log: Path) -> list[Path]:
    """Files that may have been rotated away from a log, by their names."""
    return [
        path
        for path in log.parent.glob(f"{_escape_glob(log.name)}?*")
        if not path.name.removeprefix(log.name).startswith(_OURS) and path.is_file()
    ]


def _escape_glob(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
