"""A real server for each test: twistd as a user runs it, on loopback, ended with the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

BIN = Path(sys.executable).parent

# Who runs the tests may run them where Ctrl-C is ignored (a shell's background job), and what is
# ignored stays so in every program that is started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def wait_until(condition, what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.005)


class Server:
    """One log, and the twistd that serves it, if it runs."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.log = folder / "messages.jsonl"
        self.port = free_port()
        self.options = options
        self.process: subprocess.Popen | None = None
        self.output = folder / "output"

    def command(self, *options: str) -> list[str]:
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        return [
            *(str(BIN / "twistd"), "-n", "--pidfile=", "msglog"),
            *("--listen", listen, "--log", str(self.log), *self.options, *options),
        ]

    def start(self, *options: str, under: tuple[str, ...] = ()) -> Server:
        begun = self._starts()
        self.process = self._spawn([*under, *self.command(*options)])
        wait_until(lambda: self._serves(begun), "listening", 60)
        return self

    def _spawn(self, command: list[str]) -> subprocess.Popen:
        with self.output.open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _starts(self) -> int:
        return self.said().count("listening on ") if self.output.exists() else 0

    def _serves(self, begun: int) -> bool:
        """Whether it says so: it takes connections before it has recovered the log."""
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()
        return self._starts() > begun

    def said(self) -> str:
        return self.output.read_text()

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(30)

    def kill(self) -> None:
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait(30)

    def stop(self) -> None:
        """SIGTERM, and status 0."""
        assert self.process is not None
        self.process.terminate()
        status = self.wait()
        assert status == 0, self.said()
        assert "Traceback" not in self.said(), self.said()

    def hang_up(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)


class Watched(Server):
    """A server with --http."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.http = free_port()
        address = f"tcp:{self.http}:interface=127.0.0.1"
        super().__init__(folder, "--http", address, *options)

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def metrics(self) -> dict[tuple[str, str], float]:
        """Each sample's value by its name and the value of its first label, if it has one."""
        status, text = self.get("/metrics")
        assert status == 200
        return {
            (sample.name, next(iter(sample.labels.values()), "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def _made(kind, folder):
    """Make servers of a kind, and end them with the test."""
    servers = []

    def make(*options: str):
        server = kind(folder, *options)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def make_server(tmp_path):
    yield from _made(Server, tmp_path)


@pytest.fixture
def server(make_server) -> Server:
    return make_server().start()


@pytest.fixture
def make_watched(tmp_path):
    yield from _made(Watched, tmp_path)


@pytest.fixture
def watched(make_watched) -> Watched:
    return make_watched().start()


@pytest.fixture
def make_cluster(tmp_path):
    from nats_cluster import Cluster, Node  # here, for they need what is above

    clusters = []

    def make(size: int, extra: str = "") -> Cluster:
        folder = tmp_path / f"nats{len(clusters)}"
        folder.mkdir()
        cluster = Cluster(Node(folder, f"n{i}", extra) for i in range(1, size + 1))
        clusters.append(cluster)
        return cluster.start()

    yield make
    for cluster in clusters:
        cluster.kill()


@pytest.fixture
def make_front_end(tmp_path):
    from front_ends import FrontEnd

    made = []

    def make(url: str, *options: str, kind: type[FrontEnd] = FrontEnd) -> FrontEnd:
        front_end = kind(tmp_path / f"front{len(made)}", url, *options)
        made.append(front_end)
        return front_end.start()

    yield make
    for front_end in made:
        front_end.kill()
