"""How a cluster to try is shown: a table that stays up to date in a terminal, else lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .._cluster.running import Row
from ._console import printable, terminal

__all__ = ["View", "table"]


def table(rows: Sequence[Row], servers: str) -> Table:
    """What runs where, and what clients connect to."""
    made = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, caption_justify="left", caption_style=""
    )
    for heading in ("", "pid", "address", "state", "to look at"):
        made.add_column(heading, overflow="fold", no_wrap=heading != "state", header_style="dim")
    for row in rows:
        colour = "green" if row.good else "red" if row.pid is None else "yellow"
        made.add_row(
            Text(row.name, style="bold"),
            "-" if row.pid is None else str(row.pid),
            row.address,
            Text(printable(row.state), style=colour),
            row.page,
        )
    made.caption = f"clients connect to {servers}"
    return made


class View:
    """
    While entered, stdout shows what is said and, if it is a terminal, below that the table.

    @param servers: what clients connect to.
    """

    def __init__(self, servers: str) -> None:
        self._servers = servers
        console = terminal(sys.stdout)
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line with the time, which stays."""
        self.write(f"{time.strftime('%H:%M:%S')} {text}")

    def write(self, text: str) -> None:
        """Lines that stay."""
        for line in text.split("\n"):
            if self._live is not None:
                self._live.console.print(printable(line), soft_wrap=True)
            else:
                click.echo(printable(line))
        sys.stdout.flush()

    def show(self, rows: Sequence[Row]) -> None:
        """Bring the table up to date."""
        if self._live is not None:
            self._live.update(table(rows, self._servers), refresh=True)
