"""
Files beside a log that were rotated away from it: which they are, and in which order.

Rotation is a rename, and by which rule is the operator's business: C{messages.jsonl.1},
C{messages.jsonl-20261124}.  So a file is taken for one if its name begins with the log's and its
first line is a record; and the time of that record says where it belongs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from attrs import frozen

from ._errors import RecordError
from ._torn import read_record

__all__ = ["RotatedFile", "rotated_files"]

# What msglog itself keeps beside a log: no rotated files.
_OURS = (".ledger", ".torn-")

# What a rotation adds to a log's name, be it msglog's own or logrotate's.
_DATED = re.compile(r"[.-][0-9][0-9TZ.:_-]*\Z")


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

    def is_dated(self, log: Path) -> bool:
        """
        Whether its name is the log's and a number or a date.  Then it is this log's, and not that
        of another one whose name begins alike.
        """
        return _DATED.match(self.path.name.removeprefix(log.name)) is not None


def rotated_files(
    log: Path,
    beside: Iterable[Path],
    first_line: Callable[[Path], bytes],
    passed_over: Callable[[Path], None],
) -> list[RotatedFile]:
    """
    What was rotated away from a log, oldest first.

    @param beside: the files whose names begin with the log's.
    @param first_line: reads the first line of a file.
    @param passed_over: called with each file whose first line is no record.
    """
    found = []
    for path in beside:
        if path.name.removeprefix(log.name).startswith(_OURS):
            continue
        line = first_line(path)
        try:
            record = read_record(line)
        except RecordError:
            passed_over(path)
            continue
        found.append(RotatedFile(record.time, path, line))
    return sorted(found, key=lambda file: (file.time, file.path))
