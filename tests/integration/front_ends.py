"""Servers without a log of their own, over a NATS cluster."""

from __future__ import annotations

import sys
from pathlib import Path

from conftest import BIN, Watched


class FrontEnd(Watched):
    """
    A server over a stream.

    @param url: where NATS is.
    @param inside: words before its command that make it run where that address is.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        *options: str,
        address: str = "127.0.0.1",
        inside: tuple[str, ...] = (),
    ) -> None:
        folder.mkdir()
        super().__init__(folder, *options)
        self.url, self.address, self.inside = url, address, inside

    def command(self, *options: str) -> list[str]:
        listen = f"tcp:{self.port}:interface={self.address}"
        return [
            *(*self.inside, *self.program(), "-n", "--pidfile=", "msglog", "--store", self.url),
            *("--listen", listen, *self.options, *options),
        ]

    def program(self) -> list[str]:
        return [str(BIN / "twistd")]


class Unconditional(FrontEnd):
    """The same, but for the condition on which an append is taken: what the tests must notice."""

    PROGRAM = """
import msglog._tails as store
real = store.append_headers
def without(*words):
    headers = real(*words)
    del headers["Nats-Expected-Last-Subject-Sequence"]
    return headers
store.append_headers = without
from twisted.scripts.twistd import run
run()
"""

    def program(self) -> list[str]:
        return [sys.executable, "-c", self.PROGRAM]
