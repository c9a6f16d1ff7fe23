"""C{msglog tail}: the end of a log, and what comes."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import click
from attrs import evolve, frozen

from .._errors import LogUnreadable, RecordError
from .._following import Follower
from .._logfile import STDIN, LogFile, open_log, predecessors
from .._nats_access import NatsAccess
from .._seeking import last_offset, offset_of_time
from .._torn import said_time
from ._console import fail
from ._display import Display, display_options
from ._logs import DEFAULT_LOG
from ._moments import MOMENT_HELP
from ._nats_options import complete_access, reading_options
from ._selection import Selection, selection_options
from ._stdout import wait_while_read
from ._stream_lines import LogOrStream, see_no_stream, show_stream

__all__ = ["command"]

# How many records are shown if nothing is said: as tail(1).
DEFAULT_COUNT = 10

# How often a followed log is looked at, seconds: at once for a person, and a look costs two calls
# of the system, 10 µs.
POLL_SECONDS = 0.1

_HELP = f"""
Print the last records of a log, and with -f those that come.

FILE is messages.jsonl if it is not named. If it has too few records, those before come from the
files that were rotated away from it and lie beside it, compressed or not. With -f, rotation is
followed: the old file to its end, then the new one. A log that is not there is waited for. A line
is printed when it is whole.

What is followed may be a few milliseconds from being durable; what was acknowledged is.

FILE may be nats://HOST:PORT[,HOST:PORT...], the stream of servers with --store: it is read from
whichever server has it, and -f goes on when one dies.

-n counts the records that --client, --grep, --since and --until let through. With --since and
without -n, all of them are printed.

{MOMENT_HELP}

\b
Examples:
  msglog tail
  msglog tail -f -n 0 /var/lib/msglog/messages.jsonl
  msglog tail -n 100 --client 61728394a5b6
  msglog tail -f --since 15m --grep refused
  msglog tail -f --json | jq -r .message
  msglog tail -f nats://n1:4222,n2:4222,n3:4222

\b
Exit status:
  0  it was printed
  1  something is damaged or cannot be read; what could be was printed
  2  the command line is wrong
  130  Ctrl-C, which is how -f ends
"""


@click.command("tail", help=_HELP, short_help="Print the last records of a log; follow it.")
@click.argument("file", type=LogOrStream(), default=DEFAULT_LOG)
@click.option(
    "-n",
    "--lines",
    "count",
    metavar="N",
    type=click.IntRange(min=0),
    help=f"How many records.  [default: {DEFAULT_COUNT}; with --since: all]",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@selection_options
@display_options
@reading_options
def command(
    file: Path | NatsAccess,
    count: int | None,
    follow: bool,
    selection: Selection,
    display: Display,
    stream: str,
    api: str,
    **access_files: Path | None,
) -> int:
    if file == STDIN:
        fail("the standard input has no end to begin at; use: msglog cat - | tail")
    if follow and selection.until is not None:
        raise click.UsageError("--until and --follow exclude each other")
    if count is None and selection.since is None:
        count = DEFAULT_COUNT
    if isinstance(file, NatsAccess):
        access = evolve(complete_access(file, **access_files), api=api)
        return show_stream(access, stream, count, selection, display, follow=follow)
    see_no_stream(stream, api, **access_files)
    follower = Follower(file, display.remarks.say)
    try:
        with closing(follower):
            _print_last(file, count, selection, display, follower if follow else None)
            display.flush()
            while follow:
                _print_new(follower, selection, display)
                if not wait_while_read(POLL_SECONDS):
                    break
    except LogUnreadable as e:
        fail(str(e))
    except KeyboardInterrupt:
        display.flush()
        return 130
    display.remarks.summary()
    return 1 if display.remarks.damaged else 0


@frozen(slots=True)
class _Part:
    """
    A file, open, and from where on it is wanted.

    @ivar missing: how many records must come from older files; L{None}: all that there are.
    """

    log: LogFile
    offset: int
    missing: int | None


def _print_last(
    file: Path, count: int | None, selection: Selection, display: Display, follower: Follower | None
) -> None:
    """Print the last records; those of the log itself are left to the follower, if there is one."""
    with ExitStack() as stack:
        parts: list[_Part] = []
        missing = count
        if file.exists():
            part = _last_part(file, count, selection)
            stack.callback(part.log.close)
            missing = part.missing
            if follower is None:
                parts.append(part)
            elif part.log.size is None:
                fail(f"{file} is compressed, so nothing more comes; leave --follow out")
            else:
                follower.start(open_log(file), part.offset)
        older = predecessors(file, display.remarks.say) if missing != 0 else []
        if not older and not file.exists() and follower is None:
            fail(f"cannot open {file}: there is no such file; name the log, or -f waits for it")
        while missing != 0 and older:
            part = _last_part(older.pop(), missing, selection)
            stack.callback(part.log.close)
            missing = part.missing
            parts.append(part)
        for part in reversed(parts):
            lines = part.log.lines(part.offset)
            for line, record in selection.shown(part.log.path, lines, display.remarks):
                display.write(line, record)


def _last_part(path: Path, count: int | None, selection: Selection) -> _Part:
    """
    Open a file and find where the last of its records begin.

    @param count: how many; L{None}: all since the selection's time.
    """
    log = open_log(path)
    if log.size is None and log.consumed is None:
        fail(f"{path} is a pipe and has no end to begin at; use: msglog cat {path} | tail")
    since, floor = selection.since, 0
    earlier = True  # whether older files may have something
    if since is not None:
        first = said_time(log.first_line())
        earlier = first is None or first > since
        if log.size is not None:
            floor = offset_of_time(log, since)
    if count is None:
        return _Part(log, floor, None if earlier else 0)
    if count == 0:
        return _Part(log, log.size or 0, 0)

    def wanted(line: bytes) -> bool:
        try:
            return selection.everything or selection.record_of(line) is not None
        except RecordError:
            return False

    offset, found = last_offset(log, count, wanted, floor)
    if log.size is None:  # read to its end by now
        log.close()
        log = open_log(path)
    return _Part(log, offset, count - found if earlier else 0)


def _print_new(follower: Follower, selection: Selection, display: Display) -> None:
    before = display.count
    for path, offset, line in follower.poll():
        for shown, record in selection.shown(path, [(offset, line)], display.remarks):
            display.write(shown, record)
    if display.count != before:
        display.flush()
