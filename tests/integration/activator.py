"""What systemd does for a socket unit: holds a listening socket, and starts servers on it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from conftest import BIN

# Passed sockets begin with descriptor 3, and the process id that is told has to be the server's
# own: exec keeps the shell's.
EXEC = ("/bin/sh", "-c", 'exec 3<&0 </dev/null; export LISTEN_PID=$$; exec "$@"', "sh")


class Activator:
    """
    @ivar port: what the socket listens on.
    @ivar stops: how many seconds each server took to end.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.log = folder / "messages.jsonl"
        self.options = options
        self.output = folder / "output"
        self.process: subprocess.Popen | None = None
        self.stops: list[float] = []
        self.domain = "INET"
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self.socket.getsockname()[1]

    def start(self) -> None:
        twistd = [str(BIN / "twistd"), "-n", "--pidfile=", "msglog"]
        words = ["--listen", f"systemd:domain={self.domain}:name=messages", "--log", str(self.log)]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*EXEC, *twistd, *words, *self.options],
                cwd=self.folder,
                stdin=self.socket,
                stdout=output,
                stderr=output,
                env=os.environ | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "messages"},
                start_new_session=True,
            )

    def stop(self) -> None:
        """SIGTERM, and status 0."""
        assert self.process is not None
        began = time.monotonic()
        self.process.terminate()
        status = self.process.wait(30)
        self.stops.append(time.monotonic() - began)
        assert status == 0, self.output.read_text()

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
        self.socket.close()
