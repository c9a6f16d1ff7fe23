"""C{msglog cat}: logs, readable."""

from __future__ import annotations

from pathlib import Path

import click
from attrs import evolve

from .._errors import LogUnreadable
from .._logfile import LogFile
from .._nats_access import NatsAccess
from .._seeking import offset_of_time
from ._display import Display, display_options
from ._logs import opened, rotated_option, with_predecessors
from ._moments import MOMENT_HELP, moment_text
from ._nats_options import complete_access, reading_options
from ._selection import Selection, selection_options
from ._stream_lines import LogOrStream, see_no_stream, show_stream

__all__ = ["command"]

_HELP = f"""
Print logs readably: a line for each record, with its time, the end of its client's id, its
sequence, and the message.

FILE is a log, a rotated one, compressed or not (gzip, xz, bzip2), or - for the standard input;
messages.jsonl if none is named. Several are printed one after the other. It may also be
nats://HOST:PORT[,HOST:PORT...], the stream of servers with --store, alone.

What is no printable character appears as an escape (\\n, \\x1b, \\u202e): no message can steer
the terminal. A damaged line is remarked on with its offset and left out.

--since finds its place in a plain file by bisection, at once in a log of any size.

{MOMENT_HELP}

\b
Examples:
  msglog cat /var/lib/msglog/messages.jsonl | less
  msglog cat --since 10:00 --until 10:15
  msglog cat --rotated --client 61728394a5b6 messages.jsonl
  msglog cat --grep refused --json | jq -r .client | sort | uniq -c
  msglog cat --raw --null messages.jsonl.1.gz | xargs -0 -n1 echo
  zstdcat messages.jsonl.7.zst | msglog cat -

\b
Exit status:
  0  everything was read
  1  something is damaged or cannot be read; what could be was printed
  2  the command line is wrong
  130  Ctrl-C
"""


@click.command("cat", help=_HELP, short_help="Print logs readably.")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=LogOrStream())
@rotated_option
@selection_options
@display_options
@reading_options
def command(
    files: tuple[Path | NatsAccess, ...],
    rotated: bool,
    selection: Selection,
    display: Display,
    stream: str,
    api: str,
    **access_files: Path | None,
) -> int:
    remarks = display.remarks
    logs_named = [file for file in files if isinstance(file, Path)]
    streams = [file for file in files if isinstance(file, NatsAccess)]
    if streams:
        if len(files) > 1 or rotated:
            raise click.UsageError("a stream is read alone, without --rotated")
        access = evolve(complete_access(streams[0], **access_files), api=api)
        return show_stream(access, stream, None, selection, display)
    see_no_stream(stream, api, **access_files)
    with opened(with_predecessors(logs_named, rotated, remarks.say)) as logs:
        for log in selection.files_within(logs):
            try:
                _print(log, selection, display)
            except LogUnreadable as e:
                remarks.unreadable(str(e))
    display.flush()
    remarks.summary()
    since, until = selection.since, selection.until
    if not display.count and (since is not None or until is not None):
        since_text = f" from {moment_text(since)} on" if since is not None else ""
        until_text = f" before {moment_text(until)}" if until is not None else ""
        remarks.say(f"nothing found{since_text}{until_text}")
    return 1 if remarks.damaged else 0


def _print(log: LogFile, selection: Selection, display: Display) -> None:
    offset, end = 0, None
    if log.size is not None:
        if selection.since is not None:
            offset = offset_of_time(log, selection.since)
        if selection.until is not None:
            end = offset_of_time(log, selection.until)
    lines = log.lines(offset, end)
    for line, record in selection.shown(log.path, lines, display.remarks):
        display.write(line, record)
