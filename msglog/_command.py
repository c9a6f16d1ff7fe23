"""The entry point of the C{msglog} command, which needs more than the server does."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the C{msglog} command, or say what it lacks."""
    try:
        import click
        import rich  # noqa: F401 - to see whether it is there
    except ImportError:
        sys.exit("msglog: the command needs more than the server: pip install 'msglog[cli]'")
    del click
    from .cli import main

    main()
