"""C{msglog verify}: whether logs are whole."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import orjson

from .._counted import counted
from .._errors import ScanFailed
from .._logfile import LogFile
from .._records import format_time
from .._scan import Fault, FaultKind
from .._verification import Verification
from ._console import fail, printable, remark
from ._logs import (
    logs_argument,
    opened,
    rotated_option,
    see_to_order,
    sizes_on_disk,
    with_predecessors,
)
from ._progress import jobs_option, scanned_with_progress

__all__ = ["command"]

# How many faults are listed if nothing is said; the others are counted.  After more than this
# nobody reads on, and a file that is no log has millions.
DEFAULT_SHOWN = 100

_HELP = """
Check logs: that nothing in them is damaged, missing, there twice, or out of order.

Every record is checked against its checksum; every client's sequences must be 1, 2, 3 … with no
gap, through all files; no time may be before the one before it (the records of a commit have the
same time). A log whose older files were rotated away is checked together with them: name them
oldest first, or use --rotated. Where they are not at hand any more, --partial lets every client
begin anywhere.

Times are not under the checksum, so a wrong time that is still in order is not found. Nor is
what is missing at the very end: no file can say that.

FILE is a log, a rotated one, compressed or not (gzip, xz, bzip2), or - for the standard input;
messages.jsonl if none is named. A log may be checked while the server writes it. Its last line may
then lack its end, or after a crash; that is said and is no damage.

\b
Examples:
  msglog verify
  msglog verify --rotated /var/lib/msglog/messages.jsonl
  msglog verify messages.jsonl.2.gz messages.jsonl.1 messages.jsonl
  msglog verify --partial messages.jsonl.1
  msglog verify --json --rotated | jq .faults
  ssh log.example cat messages.jsonl | msglog verify -

\b
Exit status:
  0  all is as it should be
  1  it is not: each place is listed with its offset, up to --show; or a
     file cannot be read
  2  the command line is wrong, or files are not given oldest first
  130  Ctrl-C
"""


@click.command("verify", help=_HELP, short_help="Check that nothing is damaged or missing.")
@logs_argument
@rotated_option
@click.option(
    "-p",
    "--partial",
    is_flag=True,
    help="Older files are not at hand: a client's first record may have any sequence.",
)
@click.option(
    "--show",
    metavar="N",
    type=click.IntRange(min=0),
    default=DEFAULT_SHOWN,
    show_default=True,
    help="How many faults to list; all are counted.",
)
@jobs_option("How many processes check.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end.")
def command(
    files: tuple[Path, ...],
    rotated: bool,
    partial: bool,
    show: int,
    jobs: int,
    as_json: bool,
) -> int:
    paths = with_predecessors(files, rotated, remark)
    with opened(paths) as logs:
        see_to_order(logs)
        report = _Report(logs, show, as_json)
        verification = Verification(partial, report.fault)
        began = time.monotonic()
        try:
            for scanned in scanned_with_progress(logs, sizes_on_disk(logs), jobs):
                verification.add(scanned.file, scanned.summary)
        except ScanFailed as e:
            fail(str(e))
        seconds = time.monotonic() - began
    report.finish(verification, seconds, rotated)
    return 1 if verification.faults else 0


class _Report:
    """What is printed: faults as they come, and a summary."""

    def __init__(self, logs: Sequence[LogFile], show: int, as_json: bool) -> None:
        self._names = [str(log.path) for log in logs]
        self._show = show
        self._as_json = as_json
        self._faults: list[dict[str, object]] = []
        self._shown = 0

    def fault(self, file: int, fault: Fault) -> None:
        """Print a fault, or keep it for the JSON object."""
        if self._shown >= self._show:
            return
        self._shown += 1
        name = self._names[file]
        if self._as_json:
            self._faults.append(
                {
                    "file": name,
                    "offset": fault.offset,
                    "kind": fault.kind.value,
                    "reason": fault.reason,
                }
            )
        else:
            click.echo(printable(f"{name}: byte {fault.offset}: {fault.reason}"))
            sys.stdout.flush()

    def finish(self, verification: Verification, seconds: float, rotated: bool) -> None:
        """Print the summary."""
        if self._as_json:
            self._print_json(verification, seconds)
            return
        hidden = verification.faults - self._shown
        if hidden:
            click.echo(f"and {hidden:,} more, not listed")
        for line in self._summary(verification, seconds):
            click.echo(printable(line))
        for line in self._advice(verification, rotated):
            remark(line)

    def _summary(self, verification: Verification, seconds: float) -> list[str]:
        v = verification
        rate = f"{seconds:.1f} s"
        if seconds >= 0.1:
            rate += f", {v.records / seconds:,.0f} records a second"
        files = "" if len(self._names) == 1 else f" in {len(self._names)} files"
        lines = [
            f"{counted(v.records, 'record')}, {counted(v.commits, 'commit')}, "
            f"{counted(v.clients, 'client')}{files}; {rate}"
        ]
        if v.records:
            first, last = (format_time(t).decode() for t in (v.first_time, v.last_time))
            lines.append(f"from {first} to {last}")
        if v.unfinished is not None:
            lines.append(
                f"{self._names[v.unfinished.file]} ends in the middle of a line, "
                f"{v.unfinished.size:,} bytes from byte {v.unfinished.offset} on: it is being "
                f"written, or a crash tore it, and then the server's next start judges it"
            )
        if not v.faults:
            lines.append("whole: nothing is damaged, missing or out of order")
        else:
            counts = ", ".join(f"{v.counts[k]:,} {_NAMES[k]}" for k in FaultKind if v.counts[k])
            lines.append(f"NOT whole: {counts}")
        return lines

    def _advice(self, verification: Verification, rotated: bool) -> list[str]:
        advice = []
        if verification.counts[FaultKind.BEGINNING]:
            with_older = "" if rotated else "; --rotated reads those that lie beside it"
            advice.append(
                f"clients that begin above 1 have their first records in older files{with_older}; "
                f"where these are gone, use --partial"
            )
        for file, count in sorted(verification.beginnings.items()):
            advice.append(
                f"records of {counted(count, 'client')} are missing just before "
                f"{self._names[file]}: is there a file "
                f"between it and {self._names[file - 1]}?"
            )
        return advice

    def _print_json(self, verification: Verification, seconds: float) -> None:
        v = verification
        unfinished = v.unfinished
        summary = {
            "whole": not v.faults,
            "files": self._names,
            "records": v.records,
            "commits": v.commits,
            "clients": v.clients,
            "first": format_time(v.first_time).decode() if v.records else None,
            "last": format_time(v.last_time).decode() if v.records else None,
            "counts": {kind.value: v.counts[kind] for kind in FaultKind},
            "faults": self._faults,
            "unfinished": unfinished
            and {
                "file": self._names[unfinished.file],
                "offset": unfinished.offset,
                "size": unfinished.size,
            },
            "seconds": round(seconds, 3),
        }
        click.echo(orjson.dumps(summary, option=orjson.OPT_INDENT_2))


_NAMES = {
    FaultKind.DAMAGED: "damaged",
    FaultKind.SEQUENCE: "out of sequence",
    FaultKind.BEGINNING: "not begun with 1",
    FaultKind.TIME: "going back in time",
    FaultKind.UNREADABLE: "unreadable",
}
