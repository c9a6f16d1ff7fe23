"""C{msglog import}: a log brought into the stream that servers with C{--store} share."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .._counted import counted
from .._errors import MsglogError, ScanFailed
from .._jetstream import EngineError
from .._logfile import STDIN, LogFile
from .._nats_access import INBOX_PREFIX, NatsAccess
from .._scan import Fault
from .._shards import StreamShard
from .._stream_settings import find_weaknesses
from .._verification import Verification
from ._console import fail, printable, remark
from ._logs import opened, rotated_option, see_to_order, sizes_on_disk, with_predecessors
from ._nats_options import complete_access, nats_access, see_to_nats
from ._number import Number
from ._progress import REFRESH_SECONDS, jobs_option, scanned_with_progress
from ._send_progress import Bar

if TYPE_CHECKING:
    from .._import import Extent, Import

__all__ = ["command"]

# A stream's servers elect a new leader within a quarter of it.
TIMEOUT_SECONDS = 30.0

# What --gather brings together, bytes of the log: a hundred clients fill a message each.
_GATHERED = 8 * 1024 * 1024

_HELP = """
Bring logs into the stream of 'twistd msglog --store', so that their clients go on there.

Every record keeps its bytes, its time and (without --gather) its place: exported, the stream is the
log again. A client then goes on with its next sequence; what it sends again is answered as its own
server would. Run again, after a kill or a power cut too, it goes on where it was: the stream
itself says what is there, and that is compared with the log.

LOGs are given oldest first, plain or compressed (gzip, xz, bzip2), or found by --rotated. They are
checked first, as by 'msglog verify'. A log that a server has open is refused; what was rotated away
from it can be brought in while that runs. A log with shards (--store-shards) takes none yet.

\b
Examples:
  msglog import messages.jsonl nats://n1:4222,n2:4222,n3:4222
  msglog import messages.jsonl.2.gz messages.jsonl.1 nats://n1:4222
  msglog import --rotated /var/lib/msglog/messages.jsonl nats://n1:4222

\b
Exit status:
  0  all records are in the stream
  1  they are not: why is said, and how many were put there; run again to
     go on
  2  the command line is wrong, or files are not given oldest first
  130  Ctrl-C
"""


@click.command("import", help=_HELP, short_help="Bring logs into the stream of --store.")
@click.argument("files", metavar="LOG...", nargs=-1, required=True, type=click.Path(path_type=Path))
@nats_access
@rotated_option
@click.option(
    "-p",
    "--partial",
    is_flag=True,
    help="Older files are gone for good: a client that the stream does not have may begin with any "
    "sequence.",
)
@click.option(
    "-g",
    "--gather",
    is_flag=True,
    help="Bring together what each client has in 8 MiB of the log: far faster where clients take "
    "turns line by line. Each client's order is kept, that of different clients is not.",
)
@jobs_option("How many processes check the logs.")
@click.option(
    "-t",
    "--timeout",
    metavar="SECONDS",
    type=Number(min=0),
    default=TIMEOUT_SECONDS,
    show_default=True,
    help="Give up when nothing went on for so long; inf: never.",
)
def command(
    files: tuple[Path, ...],
    url: NatsAccess,
    stream: str,
    rotated: bool,
    partial: bool,
    gather: bool,
    jobs: int,
    timeout: float,
    **access_files: Path | None,
) -> int:
    see_to_nats()
    access = complete_access(url, **access_files)
    if StreamShard.of_name(stream).count > 1:
        raise click.UsageError(
            f"{stream} is one of a log's shards, and nothing can be brought into those yet: make a "
            f"stream without (msglog stream create), and start its servers without --store-shards"
        )
    if STDIN in files:
        raise click.UsageError("logs are read twice, so the standard input will not do: name files")
    paths = with_predecessors(files, rotated, remark)
    # Twice, since what is compressed can only be read once, in order.
    with opened(paths) as logs, opened(paths) as again:
        _hold(logs, again)
        see_to_order(logs)
        importing: Import | None = None
        try:
            asyncio.run(_see_stream(access, stream))
            clients, ends = _check(logs, jobs)
            with Bar(True, True, "done") as bar:
                run = _Run(access, stream, again, ends, bar)
                importing = run.make(clients, partial, timeout)
                asyncio.run(run.go(importing, _GATHERED if gather else 0))
        except (EngineError, MsglogError, KeyboardInterrupt) as e:
            if importing is not None and importing.stored:
                stored = counted(importing.stored, "message was", "messages were")
                remark(f"{stored} put into {stream}; run again to go on")
            if isinstance(e, KeyboardInterrupt):
                return 130
            fail(f"{access}: {e}" if isinstance(e, EngineError) else str(e))
    click.echo(printable(run.summary(importing)))
    return 0


def _hold(logs: Sequence[LogFile], again: Sequence[LogFile]) -> None:
    """Lock the logs, so that no server takes one meanwhile; refuse what a server has."""
    for log, twin in zip(logs, again, strict=True):
        if log.size is None and log.consumed is None:
            fail(f"{log.path} is a pipe, and logs are read twice: make it a file")
        if not os.path.samestat(os.fstat(log.fileno()), os.fstat(twin.fileno())):
            fail(f"{log.path} was rotated at this moment; run this again")
        try:
            fcntl.flock(log.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(
                f"{log.path} is open in a server: stop that first. What was rotated away from it "
                f"can be brought in before that (see docs/distributed.md, Migration)"
            )


async def _see_stream(access: NatsAccess, stream: str) -> None:
    """Before anything takes time: see that the stream is there and will keep what it gets."""
    from .._import import ImportRefused
    from .._stream_connection import StreamConnection

    async with StreamConnection(access, stream, "msglog import", INBOX_PREFIX) as connection:
        try:
            info = await connection.info()
        except EngineError as e:
            if e.missing:
                raise ImportRefused(
                    f"there is no stream {stream}: msglog stream create {access} --stream {stream}"
                ) from None
            raise
    broken = [
        str(weakness) for weakness in find_weaknesses(info["config"], True) if weakness.breaks
    ]
    if broken:
        raise ImportRefused(f"the stream {stream} cannot keep the log: {'; '.join(broken)}")


def _check(logs: Sequence[LogFile], jobs: int) -> tuple[dict[bytes, Extent], list[int | None]]:
    """
    Check the logs.

    @return: what they have of each client, and how long they are where that is known.
    """
    from .._import import Extent

    ends = [log.size for log in logs]
    first: list[str] = []
    firsts: dict[bytes, int] = {}
    lasts: dict[bytes, int] = {}

    def report(file: int, fault: Fault) -> None:
        if not first:
            first.append(f"{logs[file].path}: byte {fault.offset}: {fault.reason}")

    verification = Verification(True, report)
    try:
        for scanned in scanned_with_progress(logs, sizes_on_disk(logs), jobs):
            verification.add(scanned.file, scanned.summary)
            for client, found in scanned.summary.clients.items():
                firsts.setdefault(client, found.first)
                lasts[client] = found.last
    except ScanFailed as e:
        fail(str(e))
    if verification.faults:
        fail(
            f"the log is not whole, so nothing was brought in: {first[0]} ({verification.faults:,} "
            f"places in all; msglog verify lists them)"
        )
    if verification.unfinished is not None:
        fail(
            f"{logs[verification.unfinished.file].path} ends in the middle of a line: a crash tore "
            f"it. Start its server once more and stop it, which cuts off what was never "
            f"acknowledged; then run this again"
        )
    return {client: Extent(n, lasts[client]) for client, n in firsts.items()}, ends


class _Run:
    """The import itself, and what is told of it."""

    def __init__(
        self,
        access: NatsAccess,
        stream: str,
        logs: Sequence[LogFile],
        ends: Sequence[int | None],
        bar: Bar,
    ) -> None:
        from .._stream_reader import StreamReader

        self._reader = StreamReader(access, stream, "msglog import", INBOX_PREFIX)
        self._stream = stream
        self._logs = logs
        self._ends = ends
        self._sizes = sizes_on_disk(logs)
        self._bar = bar
        self._began = time.monotonic()
        self._clients = 0

    def make(self, clients: dict[bytes, Extent], partial: bool, timeout: float) -> Import:
        from .._import import Import

        self._clients = len(clients)
        return Import(self._reader, self._stream, clients, partial=partial, patience=timeout)

    async def go(self, importing: Import, gathered: int) -> None:
        """Bring everything in."""
        from .._log_runs import log_runs

        shown = 0.0
        async with self._reader as reader:
            info = await reader.info()
            await importing.begin(empty=int(info["state"]["last_seq"]) == 0)
            self._began = time.monotonic()
            for run in log_runs(zip(self._logs, self._ends, strict=True), gathered):
                await importing.put(run)
                if time.monotonic() - shown >= REFRESH_SECONDS:
                    shown = time.monotonic()
                    self._show(importing, run.file, run.read)
            await importing.finish()

    def _show(self, importing: Import, file: int, read: int) -> None:
        share = (sum(self._sizes[:file]) + read) / max(sum(self._sizes), 1)
        done = importing.stored + importing.found
        self._bar.show(self._logs[file].path.name, share, done)

    def summary(self, importing: Import) -> str:
        """What was done, in words."""
        stored, found = importing.stored, importing.found
        seconds = time.monotonic() - self._began
        text = (
            f"{counted(stored + found, 'message')} of {counted(self._clients, 'client')} in "
            f"{self._stream}: {stored:,} put there, {found:,} there before; {seconds:.1f} s"
        )
        if stored and seconds >= 0.1:
            text += f", {(stored + found) / seconds:,.0f} messages a second"
        if importing.carried_on:
            on = counted(importing.carried_on, "client has", "clients have")
            text += f"; {on} gone on there already"
        return text
