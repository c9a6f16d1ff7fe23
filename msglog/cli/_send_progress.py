"""How far C{msglog send} is: a bar on stderr if that is a terminal, and remarks."""

from __future__ import annotations

import logging
import time

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ._console import printable, remark, terminal

__all__ = ["Bar", "Remarks"]

# Characters of the bar itself, and of what stands beside it: the name, the count, the rate, the
# time that is left, and the ^C that a terminal echoes.
_NARROWEST, _WIDEST = 10, 60
_OTHER_COLUMNS = 66
_NAME = 16

# Seconds over which the rate is taken: it can be read, and is of now.
_RATE_SECONDS = 1.0


class Bar:
    """
    @param wanted: whether to show it, if stderr is a terminal.
    @param known: whether it is known how much there is to send.
    @param done: what is done to messages.
    """

    def __init__(self, wanted: bool, known: bool, done: str = "sent") -> None:
        console = terminal()
        self._shown = wanted and console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(max(_NARROWEST, min(console.width - _OTHER_COLUMNS, _WIDEST))),
            TextColumn("{task.fields[count]:>13}"),
            TextColumn("{task.fields[rate]:>18}"),
            *([TimeRemainingColumn()] if known else []),
            console=console,
            transient=True,
        )
        total = 1.0 if known else None
        self._task = self._progress.add_task("", total=total, count="", rate="")
        self._done = done
        self._since, self._before, self._rate = time.monotonic(), 0, ""

    def __enter__(self) -> Bar:
        if self._shown:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._progress.stop()

    def show(self, name: str, share: float, acknowledged: int) -> None:
        """
        Show how far it is.

        @param name: what is being read.
        @param share: of all there is, what is acknowledged.
        """
        if not self._shown:
            return
        now = time.monotonic()
        if now - self._since >= _RATE_SECONDS:
            rate = (acknowledged - self._before) / (now - self._since)
            self._since, self._before = now, acknowledged
            self._rate = f"{rate:,.0f} messages/s"
        self._progress.update(
            self._task,
            description=printable(name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"),
            completed=share,
            count=f"{acknowledged:,} {self._done}",
            rate=self._rate,
        )

    def say(self, text: str) -> None:
        """Remarks, a line each, above the bar if there is one."""
        for line in text.split("\n"):
            if self._shown:
                self._progress.console.print(f"msglog: {printable(line)}", soft_wrap=True)
            else:
                remark(line)


class Remarks(logging.Handler):
    """
    While entered, what the client says about its work goes to stderr as a remark.

    What ends the command is left out: it has the last line.
    """

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar
        self._log = logging.getLogger("msglog.client")

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.CRITICAL:
            self._bar.say(record.getMessage())

    def __enter__(self) -> Remarks:
        self._before = self._log.level, self._log.propagate
        self._log.level, self._log.propagate = logging.INFO, False
        self._log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.level, self._log.propagate = self._before
