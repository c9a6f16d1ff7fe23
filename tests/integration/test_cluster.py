"""
A cluster to try (C{msglog cluster}): every command of its tutorial, in order, as they stand; only
the ports are others.  And that nothing of it stays behind, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pyte
import pytest
from conftest import BIN, wait_until
from ports import free_ports

PAGE = Path(__file__).parents[2] / "docs" / "cluster-tutorial.md"
STEPS = re.findall(r"<!-- run(.*?) -->\n```sh\n(.*?)```\n", PAGE.read_text(), re.S)
FIRST, PORTS = 7520, 13

# The page says 80 columns by what it shows.
COLUMNS, LINES = 80, 40


class Terminal:
    """C{msglog cluster} in a terminal, and what that shows."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self.data = b""
        child, self._terminal = pty.fork()
        if not child:
            os.chdir(folder)
            size = {"COLUMNS": str(COLUMNS), "LINES": str(LINES), "TERM": "xterm-256color"}
            words = [str(BIN / "msglog"), "cluster", *options]
            os.execve(words[0], words, {**os.environ, **size})
        self.pid = child
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        while select.select([self._terminal], [], [], 120)[0]:
            try:
                data = os.read(self._terminal, 65536)
            except OSError:  # it has ended
                return
            self.data += data
            self._stream.feed(data)

    def shows(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for line in self.screen.display)

    def press_ctrl_c(self) -> int:
        os.write(self._terminal, b"\x03")
        return self.end()

    def end(self) -> int:
        """Wait for its end, and what its status was."""
        _, status = os.waitpid(self.pid, 0)
        self._reading.join(10)
        os.close(self._terminal)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def start(tmp_path: Path):
    """Start clusters; their first port is one that is free."""
    port = free_ports(PORTS)
    started: list[Terminal] = []

    def make() -> Terminal:
        terminal = Terminal(tmp_path, "--port", str(port))
        started.append(terminal)
        wait_until(lambda: terminal.shows("^clients connect to"), terminal.data.decode(), 90)
        return terminal

    yield make, port
    for terminal in started:
        if terminal.pid:
            os.kill(terminal.pid, signal.SIGKILL)
            terminal.end()


def pids(folder: Path) -> list[int]:
    """Of all members, by the cluster's own word."""
    words = [str(BIN / "msglog"), "cluster", "status", "--json"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return [row["pid"] for row in json.loads(done.stdout)["rows"]]


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # dead, and nobody has asked how it ended


def get_ready(port: int) -> str:
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=20) as answer:
            return answer.read().decode()
    except HTTPError as e:
        return e.read().decode()


class Shell:
    """Runs the page's steps as a person does: one after the other, with what was exported."""

    def __init__(self, folder: Path, first_port: int) -> None:
        self._folder = folder
        self._shift = first_port - FIRST
        self._exports = ""

    def run(self, step: str, status: int) -> str:
        step = re.sub(r"\b75[23]\d\b", lambda port: str(int(port[0]) + self._shift), step)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._exports + step],
            cwd=self._folder,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == status, (step, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        self._exports += "".join(re.findall(r"^export .*\n", step, re.M))
        return done.stdout


def test_every_step(start, tmp_path: Path) -> None:
    """
    The tutorial does what it says; the terminal shows it; and what was logged outlives the cluster,
    of which a kill leaves nothing behind, and Ctrl-C neither.
    """
    make, port = start
    kinds = [kind.strip(", ") for kind, _ in STEPS]
    assert kinds.count("") >= 8
    assert sum("background" in kind for kind in kinds) == 1
    shell = Shell(tmp_path, port)
    for kind, step in STEPS:
        if "background" in kind:
            assert step.strip() == "msglog cluster"
            terminal = make()
            assert terminal.shows(rf"^n\d +\d+ +127.0.0.1:{port + 4} "), terminal.screen.display
            assert terminal.shows("leads the stream")
            continue
        out = shell.run(step, 1 if "status 1" in kind else 0)
        if "kill n1 n2" in step:
            assert terminal.shows(r"^n1 +- .*killed \(signal 9\)"), terminal.screen.display
            wait_until(lambda: get_ready(port + 1).startswith("not ready: "), "no readiness")
        elif "verify" in step:
            assert out.rstrip().endswith("\n1"), out
    members = pids(tmp_path)
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.end() == -signal.SIGKILL
    wait_until(lambda: all(map(is_gone, members)), "the end of all")
    terminal = make()
    members = pids(tmp_path)
    out = shell.run(STEPS[-1][1], 0)  # the same messages, and not one more
    assert "0 messages more" in out, out
    another = subprocess.run(
        [str(BIN / "msglog"), "cluster"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (another.returncode, another.stdout) == (1, "")
    assert "a cluster runs in msglog-cluster already" in another.stderr
    assert terminal.press_ctrl_c() == 130
    assert all(map(is_gone, members))


def test_ports_taken(tmp_path: Path) -> None:
    """It is said which port, for whom, and what to do; nothing was started."""
    first = free_ports(PORTS)
    with socket.create_server(("127.0.0.1", first + 4)):
        done = subprocess.run(
            [str(BIN / "msglog"), "cluster", "--port", str(first)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"taken: {first + 4} (for n1); " in done.stderr
    assert "--port" in done.stderr
