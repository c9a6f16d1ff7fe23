"""
The real program, forty times a second: it is forked from a process that has imported all of it.

A start of C{twistd} is mostly Python's imports (0.3 s), too long for a kill at each of hundreds of
system calls.  The zygote imports what they import, but no reactor; then it forks a child for each
program that it is told to run, which goes on as C{twistd} or C{msglog} does from its first line
on, with its own arguments, folder, output, limits and faults.

L{Zygote} is the side of who wants that.  They talk through a socket in lines of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from . import shim

__all__ = ["Child", "Zygote"]


class Child:
    """A program that was started; as much of C{subprocess.Popen} as tests use."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote = zygote
        self.pid = pid

    def poll(self) -> int | None:
        """Its status if it has ended; negative: the signal that ended it."""
        return self._zygote.status(self.pid, 0)

    def wait(self, timeout: float) -> int:
        """Its status; an error if it does not end in time (seconds)."""
        deadline = time.monotonic() + timeout
        while (status := self._zygote.status(self.pid, 0.5)) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended, and that has not been said yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """
    @param library: what is preloaded (L{shim<tests.faults.program.shim>}).
    @param root: the folder from which C{tests} can be imported.
    """

    def __init__(self, library: Path, root: Path) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(120)
        self._statuses: dict[int, int] = {}
        self._pids: list[int] = []
        self._rest = b""
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(theirs.fileno())],
                cwd=root,
                env=os.environ | {"LD_PRELOAD": str(library)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(
        self,
        words: list[str],
        folder: Path,
        output: Path,
        plan: dict[str, object] | None = None,
        watched: Path | None = None,
        limits: dict[int, int] | None = None,
    ) -> Child:
        """
        Run C{twistd} or C{msglog}.

        @param words: the command, its path included.
        @param folder: where it runs.
        @param output: what it says is added to this file.
        @param plan: a L{Plan<tests.faults.program.shim.Plan>}, packed.
        @param watched: the folder whose files the plan is about.
        @param limits: by C{RLIMIT_} number.
        """
        wanted = {
            "words": words,
            "folder": str(folder),
            "output": str(output),
            "plan": plan,
            "watched": str(watched or folder),
            "limits": list((limits or {}).items()),
        }
        self._socket.sendall(json.dumps(wanted).encode() + b"\n")
        while not self._pids:
            self._take()
        return Child(self, self._pids.pop())

    def status(self, pid: int, seconds: float) -> int | None:
        """The status of a child, if it has ended or ends within some seconds."""
        while pid not in self._statuses:
            self._socket.settimeout(seconds or 0.000001)
            try:
                self._take()
            except TimeoutError:
                return None
            finally:
                self._socket.settimeout(120)
        return self._statuses[pid]

    def _take(self) -> None:
        data = self._socket.recv(65536)
        assert data, "the zygote died"
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "status" in said:
                self._statuses[said["pid"]] = said["status"]
            else:
                self._pids.append(said["pid"])

    def close(self) -> None:
        """End it; what it has started is for who had it started to end."""
        self._socket.close()
        self._process.wait(30)


def _import_everything() -> None:
    """What C{twistd msglog} and C{msglog verify} import, but for the reactor."""
    from importlib import import_module

    from twisted.application.service import IServiceMaker
    from twisted.plugin import getPlugins

    for name in (
        *("twisted.application.reactors", "twisted.scripts.twistd"),
        *("msglog.tap", "msglog._web", "msglog._command", "msglog.cli._verify"),
    ):
        import_module(name)
    list(getPlugins(IServiceMaker))
    assert "twisted.internet.reactor" not in sys.modules


def _live() -> dict | None:
    """Serve until the other side is gone; a child returns with what it is to do."""
    import gc
    import selectors

    control = socket.socket(fileno=int(sys.argv[1]))
    _import_everything()
    gc.collect()
    gc.freeze()
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    children: dict[int, int] = {}  # by the descriptors that say when they end
    rest = b""
    while True:
        for key, _ in selector.select():
            if key.fd != control.fileno():
                selector.unregister(key.fd)
                os.close(key.fd)
                pid, status = os.waitpid(children.pop(key.fd), 0)
                said = {"pid": pid, "status": os.waitstatus_to_exitcode(status)}
                control.sendall(json.dumps(said).encode() + b"\n")
                continue
            data = control.recv(65536)
            if not data:
                return None
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    control.close()
                    for fd in children:
                        os.close(fd)
                    return json.loads(line)
                fd = os.pidfd_open(pid)
                children[fd] = pid
                selector.register(fd, selectors.EVENT_READ)
                control.sendall(json.dumps({"pid": pid}).encode() + b"\n")


def _become(wanted: dict) -> None:
    os.setsid()
    os.chdir(wanted["folder"])
    output = os.open(wanted["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(nothing)
    os.close(output)
    for number, value in wanted["limits"]:
        resource.setrlimit(number, (value, value))
    sys.argv = wanted["words"]
    if wanted["plan"] is not None:
        shim.apply(wanted["plan"], wanted["watched"])
    if os.path.basename(sys.argv[0]) == "twistd":
        from twisted.scripts.twistd import run
    else:
        from msglog._command import main as run
    sys.exit(run())


if __name__ == "__main__":
    _wanted = _live()
    if _wanted is not None:
        _become(_wanted)
