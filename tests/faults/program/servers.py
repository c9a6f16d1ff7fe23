"""Servers that are forked from the zygote, with a plan of faults each."""

from __future__ import annotations

import time
from pathlib import Path

from conftest import BIN, Server

from .shim import Plan
from .zygote import Child, Zygote

__all__ = ["Program"]


class Program(Server):
    """
    The real server, started as often as one likes.

    @ivar plan: what happens to the next life.
    @ivar limits: of the next life, by C{RLIMIT_} number.
    """

    def __init__(self, zygote: Zygote, folder: Path, *options: str) -> None:
        super().__init__(folder, *options)
        self._zygote = zygote
        self.plan = Plan()
        self.limits: dict[int, int] = {}

    def _spawn(self, command: list[str]) -> Child:  # type: ignore[override]
        plan = None if self.plan == Plan() else self.plan.packed()
        return self._zygote.start(
            command, self.folder, self.output, plan, self.log.parent, self.limits
        )

    def begin(self, *options: str) -> bool:
        """Start it; whether it serves, and has not ended before."""
        begun = self._starts()
        self.process = self._spawn(self.command(*options))
        deadline = time.monotonic() + 60
        while self._starts() <= begun:
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.002)
        return True

    def run(self, *words: str) -> tuple[int, str]:
        """Run C{msglog}; its status, and what it says."""
        output = self.folder / "command"
        output.unlink(missing_ok=True)
        command = [str(BIN / "msglog"), *words]
        status = self._zygote.start(command, self.folder, output).wait(120)
        return status, output.read_text() if output.exists() else ""

    @property
    def ledger(self) -> Path:
        return self.log.with_name(f"{self.log.name}.ledger")

    def forget(self) -> None:
        """Take the ledger away."""
        for path in self.log.parent.glob(f"{self.log.name}.ledger*"):
            path.unlink()

    def files(self) -> list[Path]:
        """The log, after the files that were rotated away from it, oldest first."""
        rotated = self.log.parent.glob(f"{self.log.name}[.-][0-9]*")
        named = [path for path in rotated if path.stat().st_size]
        return [*sorted(named, key=_first_time), *([self.log] if self.log.exists() else [])]


def _first_time(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline()[:40]
