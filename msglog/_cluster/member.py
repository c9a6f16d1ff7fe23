"""One process of a cluster to try: started, signalled, and seen to end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

__all__ = ["Member", "fetch", "fetch_json"]

# For a process on this machine to say how it is; one that takes longer is stopped, or as good as.
_ANSWER_SECONDS = 2.0

# Without the proxies that the environment may name: everything is on this machine.
_HTTP = build_opener(ProxyHandler({}))

_ATTACHED = Path(__file__).with_name("attached.py")

# Of the end of what a process said, bytes that are looked at for why it ended.
_LAST_BYTES = 4096


class Member:
    """
    @param command: how it is started.
    @param folder: where it runs, and what it says is kept (in C{output}).
    @param leave: the signal that asks it to end in good order.
    @ivar leaving: whether it was asked to.
    """

    def __init__(self, command: list[str], folder: Path, leave: signal.Signals) -> None:
        self._command = command
        self._folder = folder
        self._leave = leave
        self._process: subprocess.Popen[bytes] | None = None
        self.leaving = False

    @property
    def output(self) -> Path:
        """What it says."""
        return self._folder / "output"

    @property
    def pid(self) -> int | None:
        """Of the process, if it runs."""
        return self._process.pid if self._process is not None and self.alive else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def paused(self) -> bool:
        """Whether it is stopped by a signal, whoever sent it."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(errors="replace")
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    @property
    def ended(self) -> str:
        """How it ended, if it did."""
        status = None if self._process is None else self._process.poll()
        if status is None:
            return ""
        if status < 0:
            return f"killed (signal {-status})"
        return f"ended (status {status})"

    def start(self) -> None:
        """
        Start the process: in a session of its own, so that Ctrl-C does not reach it, and to be
        killed when this one is gone.  For the main thread alone: with the thread that started
        it, not the process, it would be killed.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.leaving = False
        # What it is told is its command line alone, and not what is meant for clients.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MSGLOG_")}
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", str(_ATTACHED), str(os.getpid()), *self._command],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def leave(self) -> None:
        """Ask it to end in good order."""
        self.leaving = True
        self.send(self._leave)

    def last_words(self) -> str:
        """The last line of what it said."""
        try:
            lines = self.output.read_bytes()[-_LAST_BYTES:].decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


async def fetch(url: str) -> tuple[int, str] | None:
    """Status and body of an answer, or nothing if there is none in time."""

    def get() -> tuple[int, str] | None:
        try:
            with _HTTP.open(url, timeout=_ANSWER_SECONDS) as answer:
                return int(answer.status), answer.read().decode()
        except HTTPError as e:
            with e:
                return e.code, e.read().decode(errors="replace")
        except (URLError, OSError, ValueError):
            return None

    return await asyncio.to_thread(get)


async def fetch_json(url: str) -> Any:
    """What an answer says, or nothing if there is none in time."""
    answer = await fetch(url)
    if answer is None or answer[0] != 200:
        return None
    try:
        return json.loads(answer[1])
    except ValueError:
        return None
