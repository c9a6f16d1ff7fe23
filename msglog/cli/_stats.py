"""C{msglog stats}: what is in logs."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import get_terminal_size

import click
import orjson

from .._counted import counted
from .._errors import ScanFailed
from .._records import client_text, format_time
from .._scan import FaultKind
from .._verification import Statistics
from ._console import fail, remark
from ._logs import logs_argument, opened, rotated_option, sizes_on_disk, with_predecessors
from ._progress import jobs_option, scanned_with_progress
from ._rate_chart import rate_chart

__all__ = ["command"]

# How many of the busiest clients are listed if nothing is said.
DEFAULT_TOP = 10

_HELP = """
Say what is in logs: records, bytes, clients, the rate over time, the busiest clients.

FILE is a log, a rotated one, compressed or not (gzip, xz, bzip2), or - for the standard input;
messages.jsonl if none is named. Several are counted together; name them oldest first.

Bytes are those of the log's lines. Times are UTC.

\b
Examples:
  msglog stats
  msglog stats --rotated --top 3 /var/lib/msglog/messages.jsonl
  msglog stats --json | jq '.busiest[0]'

\b
Exit status:
  0  everything was counted
  1  some lines are damaged and were not counted, or a file cannot be read
  2  the command line is wrong
  130  Ctrl-C
"""


@click.command("stats", help=_HELP, short_help="Count records, clients, and the rate over time.")
@logs_argument
@rotated_option
@click.option(
    "-t",
    "--top",
    metavar="N",
    type=click.IntRange(min=0),
    default=DEFAULT_TOP,
    show_default=True,
    help="How many of the busiest clients to list.",
)
@jobs_option("How many processes count.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(files: tuple[Path, ...], rotated: bool, top: int, jobs: int, as_json: bool) -> int:
    statistics = Statistics()
    with opened(with_predecessors(files, rotated, remark)) as logs:
        try:
            for scanned in scanned_with_progress(logs, sizes_on_disk(logs), jobs):
                statistics.add(scanned.summary)
        except ScanFailed as e:
            fail(str(e))
    if as_json:
        click.echo(orjson.dumps(_as_json(statistics, top), option=orjson.OPT_INDENT_2))
    else:
        for line in _readable(statistics, top):
            click.echo(line)
    damaged = statistics.counts[FaultKind.DAMAGED] + statistics.counts[FaultKind.UNREADABLE]
    if damaged:
        remark(f"not counted, since damaged: {damaged:,}; msglog verify lists each place")
    return 1 if damaged else 0


def _readable(statistics: Statistics, top: int) -> list[str]:
    s = statistics
    lines = [
        f"records  {s.records:,} in {counted(s.commits, 'commit')}",
        f"bytes    {_bytes(s.size)}",
        f"clients  {len(s.clients):,}",
    ]
    if not s.records:
        return lines
    lines.append(f"from     {format_time(s.first_time).decode()}")
    lines.append(f"to       {format_time(s.last_time).decode()}, {_duration(s.seconds)}")
    if s.seconds:
        lines.append(f"rate     {_number(s.records / s.seconds)} records a second on average")
    encoding = (sys.stdout.encoding or "utf-8").lower()
    chart, seconds = rate_chart(
        s.spans, s.span_seconds, get_terminal_size().columns, encoding.startswith("utf")
    )
    lines += ["", f"records a second; a column is {_duration(seconds)}", *chart]
    if top:
        lines += ["", *_busiest(s, top)]
    return lines


def _busiest(statistics: Statistics, top: int) -> list[str]:
    rows = [("busiest clients", "records", "", "bytes")]
    for client, total in statistics.busiest(top):
        share = f"{total.records / statistics.records:.1%}"
        rows.append((client_text(client), f"{total.records:,}", share, _bytes(total.size)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{name:<{widths[0]}}  {records:>{widths[1]}}  {share:>{widths[2]}}  {size:>{widths[3]}}"
        for name, records, share, size in rows
    ]


def _as_json(statistics: Statistics, top: int) -> dict[str, object]:
    s = statistics
    return {
        "records": s.records,
        "commits": s.commits,
        "bytes": s.size,
        "clients": len(s.clients),
        "first": format_time(s.first_time).decode() if s.records else None,
        "last": format_time(s.last_time).decode() if s.records else None,
        "seconds": s.seconds,
        "damaged": s.counts[FaultKind.DAMAGED] + s.counts[FaultKind.UNREADABLE],
        "rate": {
            "span_seconds": s.span_seconds,
            "spans": [
                {
                    "time": format_time(span * s.span_seconds * 1_000_000).decode(),
                    "records": records,
                }
                for span, records in sorted(s.spans.items())
            ],
        },
        "busiest": [
            {"client": client_text(client), "records": total.records, "bytes": total.size}
            for client, total in s.busiest(top)
        ],
    }


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return counted(round(size), "byte") if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def _duration(seconds: float) -> str:
    """The two largest units that there are."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    parts: list[str] = []
    left = round(seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(filter(None, parts))
