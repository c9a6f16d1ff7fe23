"""The files in deploy/ as far as they can be tried without a running systemd."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import wire
from activator import EXEC
from conftest import BIN, wait_until

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
SERVICE, SOCKET = DEPLOY / "msglog.service", DEPLOY / "msglog.socket"

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze") and not os.environ.get("CI"),
    reason="needs systemd-analyze",
)


def settings(unit: Path) -> dict[str, list[str]]:
    """What a unit says, each key with its values in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def analyze(*words: str) -> str:
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


@pytest.fixture
def units(tmp_path) -> Path:
    """The units with the program where it is here."""
    for unit in (SERVICE, SOCKET):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/msglog/bin", str(BIN)))
    return tmp_path


@needs_systemd
def test_units_are_understood(units) -> None:
    said = analyze("verify", str(units / SERVICE.name), str(units / SOCKET.name))
    assert "msglog" not in said, said


@needs_systemd
def test_hardening(units) -> None:
    said = analyze("security", "--offline=true", "--no-pager", str(units / SERVICE.name))
    (level,) = re.findall(r"exposure level for msglog.service: ([\d.]+)", said)
    assert float(level) < 2


class Unit:
    """The service as systemd would start it, but for its user and its folders."""

    def __init__(self, folder: Path) -> None:
        service = settings(SERVICE)
        self.log = folder / "messages.jsonl"
        self.folder = folder
        self.output = folder / "output"
        (command,) = service["ExecStart"]
        self.command = shlex.split(command.replace("/opt/msglog/bin", str(BIN)))
        self.environ = {
            name: value.replace("/var/lib/msglog", str(folder))
            for name, _, value in (line.partition("=") for line in service["Environment"])
        }
        (name,) = settings(SOCKET)["FileDescriptorName"]
        self.environ |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": name, "PATH": os.environ["PATH"]}
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(folder / "notify"))
        self.notified.settimeout(20)
        self.environ["NOTIFY_SOCKET"] = str(folder / "notify")

    def start(self, *under: str) -> subprocess.Popen:
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [*under, *EXEC, *self.command],
                cwd=self.folder,
                stdin=self.socket,
                stdout=output,
                stderr=output,
                env=self.environ,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """As C{Type=notify} does."""
        while b"READY=1" not in self.notified.recv(10_000):
            pass

    def log_some(self) -> None:
        with wire.Connection(self.socket.getsockname()[1]) as connection:
            client = os.urandom(16)
            for sequence in range(1, 20):
                connection.log(client, sequence, b"x")

    def close(self) -> None:
        self.socket.close()
        self.notified.close()


@pytest.fixture
def unit(tmp_path):
    unit = Unit(tmp_path)
    yield unit
    unit.close()


def test_the_unit_starts_the_server(unit) -> None:
    """Its command and environment are right; reload and stop do what it says."""
    process = unit.start()
    try:
        unit.wait_ready()
        unit.log_some()
        unit.log.rename(unit.folder / "messages.jsonl.1")
        (reload,) = settings(SERVICE)["ExecReload"]
        subprocess.run(
            shlex.split(reload.replace("$MAINPID", str(process.pid))), check=True, timeout=10
        )
        wait_until(unit.log.exists, "a new log")
        unit.log_some()
        process.terminate()
        assert process.wait(30) == 0, unit.output.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
    assert len(wire.read_logs(unit.folder / "messages.jsonl.1", unit.log)) == 2
    assert "Traceback" not in unit.output.read_text()


def allowed_calls() -> set[str]:
    """The system calls that the unit's filters leave."""
    allowed: set[str] = set()
    for line in settings(SERVICE)["SystemCallFilter"]:
        for name in line.removeprefix("~").split():
            listed = expand(name)
            allowed = allowed - listed if line.startswith("~") else allowed | listed
    return allowed


def expand(name: str) -> set[str]:
    """The calls of a set of systemd's, with those of the sets in it."""
    if not name.startswith("@"):
        return {name}
    calls: set[str] = set()
    for line in analyze("syscall-filter", "--no-pager", name).splitlines()[1:]:
        word = line.strip()
        if word and not word.startswith("#"):
            calls |= expand(word)
    return calls


@needs_systemd
@pytest.mark.skipif(not shutil.which("strace") and not os.environ.get("CI"), reason="needs strace")
def test_system_calls_are_allowed(unit) -> None:
    """A start, messages, rotation, a restart into recovery, and a stop need no call but those."""
    used: set[str] = set()
    # strace wants the interpreter itself and not what starts it.
    unit.command[:1] = [sys.executable, unit.command[0]]
    unit.environ |= {"MSGLOG_ROTATE": "64KiB", "MSGLOG_ROTATE_KEEP": "1"}
    for number, end in enumerate((signal.SIGKILL, signal.SIGTERM)):
        trace = unit.folder / f"trace{number}"
        process = unit.start("strace", "-f", "-qq", "-o", str(trace))
        try:
            unit.wait_ready()
            for _ in range(60):
                unit.log_some()
            (server,) = children(process.pid)
            os.kill(server, end)
            process.wait(30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)
        used |= set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.M))
    assert "rename" in used
    if os.getuid() == 0:
        used.discard("fchown")  # by which SQLite, run by root, gives files their folder's owner
    assert used - allowed_calls() == set()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
