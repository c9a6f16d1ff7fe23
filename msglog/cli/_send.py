"""C{msglog send}: lines of files and pipes, as messages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import click
from uuid_utils.compat import uuid7

from .._blocking import BlockingClient
from .._client_tls import TLS
from .._errors import MsglogError
from .._limits import ClientLimits
from .._spool import Spool
from ._console import fail, server_option, tls_options
from ._lines import Input, TextInput
from ._number import Number
from ._send_progress import Bar, Remarks
from ._sending import STOP_SECONDS, Sending, total_size

__all__ = ["command"]

# A server that is restarted is back long before; a person who waits for one that is not has had
# time to read why.
TIMEOUT_SECONDS = 30.0

_HELP = """
Send messages: each line of each FILE, in order.

A message that is acknowledged is on the server's disk. Without FILE (or for -) lines are read from
the standard input. Bytes are sent as they are, without the newline; an empty line is an empty
message, and a last line without a newline is a line.

With --spool, lines go into a file on this machine first, together with how far each FILE was read.
So the same command, run again after a kill, a power cut or a status of 1, goes on where it was, and
every line is logged once. When all of it is acknowledged that is forgotten, and the same FILE would
be sent again. What cannot be read from the middle (a pipe, the standard input) begins anew: do not
give again what the spool has. What an earlier run left there is sent first; with nothing to read
(no FILE, and a terminal or /dev/null to read from) that is all.

A line that is longer than the server takes ends the command before it, or is left out by
--skip-too-long. The server's --max-message-bytes says how long that is.

\b
Examples:
  msglog send access.log
  journalctl -f -o cat | msglog send -s log.example:7514 --timeout inf
  msglog send --spool /var/lib/app/spool access.log.1 access.log
  msglog send --spool /var/lib/app/spool --message 'backup done'
  find / -xdev -newer stamp -print0 | msglog send --null
  msglog send --json orders.jsonl > receipts.jsonl

\b
Exit status:
  0  every message is acknowledged
  1  one is not: no server in time, one was refused or left out, a file
     cannot be read
  2  the command line is wrong
  130  Ctrl-C; what was acknowledged is said
"""


@click.command("send", help=_HELP, short_help="Send lines of files or pipes, as messages.")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path())
@click.option(
    "-m",
    "--message",
    "messages",
    metavar="TEXT",
    multiple=True,
    help="Send this, and no lines; repeat it for more.",
)
@server_option
@tls_options
@click.option(
    "--spool",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Send through this file, which is made if there is none.",
)
@click.option(
    "--client",
    metavar="UUID",
    type=click.UUID,
    help="The client id, if it is not to be a new one; it goes on where it was.",
)
@click.option(
    "--new-client",
    is_flag=True,
    help="Give the spool a new client id, since the server takes no more under the old one. What "
    "was on its way may then be logged under both.",
)
@click.option("-0", "--null", is_flag=True, help="Messages end with a NUL and not a newline.")
@click.option(
    "--skip-too-long",
    is_flag=True,
    help="Leave out what is longer than the server takes, say so, and end with status 1.",
)
@click.option(
    "-t",
    "--timeout",
    metavar="SECONDS",
    type=Number(min=0),
    default=TIMEOUT_SECONDS,
    show_default=True,
    help="Give up when nothing was acknowledged for so long; inf: never.",
)
@click.option("--json", "as_json", is_flag=True, help="Each receipt on stdout, as a JSON object.")
def command(
    files: tuple[str, ...],
    messages: tuple[str, ...],
    servers: tuple[str, ...],
    tls: TLS | None,
    spool: Path | None,
    client: UUID | None,
    new_client: bool,
    null: bool,
    skip_too_long: bool,
    timeout: float,
    as_json: bool,
) -> int:
    if files and messages:
        raise click.UsageError("-m/--message and FILE exclude each other")
    if new_client and (spool is None or client is not None):
        raise click.UsageError("--new-client is for --spool, without --client")
    inputs = _open(files, messages, spool is not None, b"\0" if null else b"\n")
    try:
        if new_client:
            assert spool is not None
            _renew(spool)
        typed = any(each.is_terminal for each in inputs)
        bar = Bar(not typed and not (as_json and os.isatty(1)), total_size(inputs) is not None)
        with Remarks(bar):
            try:
                limits = ClientLimits(stop_seconds=STOP_SECONDS)
                sender = BlockingClient(servers, client=client, spool=spool, tls=tls, limits=limits)
            except ValueError as e:
                raise click.BadParameter(str(e), param_hint="'--server'") from e
            return Sending(sender, bar, inputs, spool, timeout, skip_too_long, as_json).run()
    except MsglogError as e:
        fail(str(e))
    finally:
        for each in inputs:
            each.close()


def _open(
    files: Sequence[str], messages: Sequence[str], spooled: bool, separator: bytes
) -> list[Input | TextInput]:
    if messages:
        return [TextInput([os.fsencode(message) for message in messages])]
    if not files and spooled and os.isatty(0):
        return []  # only what is left in the spool
    opened: list[Input | TextInput] = []
    for path in files or ["-"]:
        try:
            opened.append(Input(path, separator))
        except OSError as e:
            for each in opened:
                each.close()
            fail(f"{path}: {e.strerror}")
    return opened


def _renew(path: Path) -> None:
    if not path.exists():
        fail(f"there is no spool {path}")
    spool = Spool(path, uuid7)
    try:
        spool.renew(uuid7())
    finally:
        spool.close()
