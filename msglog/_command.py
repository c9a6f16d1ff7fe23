"""The entry point of the C{msglog} command, which needs more than the server does."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["interruptible", "main"]


def _end_at_once(number: int, frame: object) -> None:
    os._exit(128 + number)


def interruptible() -> None:
    """What runs from here on may have something to do before Ctrl-C ends it."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Run the C{msglog} command, or say what it lacks."""
    # To load a subcommand takes half a second on a slow machine, in which Ctrl-C would be a
    # traceback through somebody's imports.  (In a shell's background it is ignored, and stays so.)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    try:
        import click
        import rich  # noqa: F401 - to see whether it is there
    except ImportError:
        sys.exit("msglog: the command needs more than the server: pip install 'msglog[cli]'")
    del click
    from .cli import main

    main()
