"""A NATS cluster for a test: real nats-servers on loopback, ended with the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from conftest import free_port, wait_until

NATS_SERVER = str(Path(sys.executable).parent / "nats-server")


class Node:
    """One nats-server."""

    def __init__(self, folder: Path, name: str, extra: str) -> None:
        self.name = name
        self.port, self.route, self.monitor = free_port(), free_port(), free_port()
        self.folder = folder / name
        self.folder.mkdir()
        self.extra = extra
        self.process: subprocess.Popen | None = None

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.port}"

    def write_config(self, routes: list[int]) -> None:
        cluster = ""
        if len(routes) > 1:
            urls = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
            cluster = (
                f'cluster {{ name: test, listen: "127.0.0.1:{self.route}", routes: [{urls}] }}\n'
            )
        (self.folder / "nats.conf").write_text(
            f'server_name: {self.name}\nlisten: "127.0.0.1:{self.port}"\n'
            f'http: "127.0.0.1:{self.monitor}"\n'
            f'jetstream {{ store_dir: "{self.folder}", sync_interval: always }}\n'
            f"{cluster}{self.extra}\n"
        )

    def start(self) -> None:
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [NATS_SERVER, "-c", str(self.folder / "nats.conf")],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(self.listens, f"{self.name} listening")

    def listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "output").read_text()
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def send(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.process = None


class Cluster:
    """So many servers that know each other."""

    def __init__(self, folder: Path, size: int, extra: str = "") -> None:
        self.nodes = [Node(folder, f"n{i}", extra) for i in range(1, size + 1)]
        for node in self.nodes:
            node.write_config([other.route for other in self.nodes])

    def start(self) -> Cluster:
        for node in self.nodes:
            node.start()
        return self

    @property
    def url(self) -> str:
        return "nats://" + ",".join(node.server for node in self.nodes)

    def create_stream(self, *options: str) -> None:
        """As an operator does; the cluster may not have agreed on a leader yet."""
        command = [str(Path(sys.executable).parent / "msglog"), "stream", "create", self.url]
        replicas = str(len(self.nodes))

        def created() -> bool:
            done = subprocess.run(
                [*command, "--replicas", replicas, *options],
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.said = done.stdout + done.stderr
            return done.returncode == 0

        try:
            wait_until(created, "a stream", 60)
        except AssertionError as e:
            raise AssertionError(f"{e}: {self.said}") from None

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()
