"""
The C{msglog} command: sends to a server, and reads and checks its logs.

Each subcommand is a module of this package that has a C{command}, imported when it is asked for: a
C{ping} should not wait for what C{bench} draws its charts with.  A C{command} returns the exit
status, or nothing for 0.

Exit status: 0, it was done; 1, it was not, or what was checked is not as it should be; 2, the
command line is wrong; 130, Ctrl-C.  Each subcommand's help says what that means for it.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from typing import Any

import click

from .._command import interruptible
from ._stdout import wait_while_read

__all__ = ["main"]

# In the order in which a person meets them.
_COMMANDS = (
    *("ping", "send", "tail", "cat", "verify", "stats", "probe", "bench", "ca"),
    *("stream", "import", "export", "cluster"),
)


class _Commands(click.Group):
    """The subcommands, imported late."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}._{cmd_name}")
        interruptible()
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; that nobody reads its output any more is no failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # before click sees it, which would end with status 1
            if wait_while_read(0):
                raise  # it was another pipe, or a connection
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="msglog", message="msglog %(version)s")
def _msglog() -> None:
    """Send messages to a msglog server, and read and check its logs."""


def main() -> None:
    """Run the command, and end the process with its status."""
    if sys.stdout is None or sys.stderr is None:
        # Closed by whoever started it: the next file that is opened would take the place.
        sys.exit("msglog: stdout or stderr is closed; lead it to /dev/null if nobody reads it")
    try:
        status = _msglog.main(prog_name="msglog", standalone_mode=False)
        sys.stdout.flush()
    except OSError as e:  # what a subcommand expects it says itself
        what = f"go on with {e.filename}" if e.filename else "write the output"
        with suppress(OSError):  # it may have been stderr itself
            click.echo(f"Error: cannot {what}: {e.strerror or e}", err=True)
        # What is still to be written would fail once more at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except click.exceptions.Abort:  # Ctrl-C where a subcommand has nothing to say about it
        status = 130
    except click.ClickException as e:
        with suppress(OSError):
            e.show()
        status = e.exit_code
    sys.exit(status)
