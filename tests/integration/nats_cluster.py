"""A NATS cluster for a test: real nats-servers, ended with the test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from conftest import free_port, wait_until

NATS_SERVER = str(Path(sys.executable).parent / "nats-server")


class Node:
    """
    One nats-server.

    @param inside: words before its command that make it run where that address is.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        extra: str = "",
        address: str = "127.0.0.1",
        inside: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.address, self.inside = address, inside
        self.port, self.route, self.monitor = free_port(), free_port(), free_port()
        self.folder = folder / name
        self.folder.mkdir()
        self.extra = extra
        self.process: subprocess.Popen | None = None

    @property
    def server(self) -> str:
        return f"{self.address}:{self.port}"

    def write_config(self, nodes: list[Node]) -> None:
        cluster = ""
        if len(nodes) > 1:
            urls = ", ".join(f"nats://{node.address}:{node.route}" for node in nodes)
            listen = f"{self.address}:{self.route}"
            cluster = f'cluster {{ name: test, listen: "{listen}", routes: [{urls}] }}\n'
        (self.folder / "nats.conf").write_text(
            f'server_name: {self.name}\nlisten: "{self.server}"\n'
            f'http: "{self.address}:{self.monitor}"\n'
            f'jetstream {{ store_dir: "{self.folder}", sync_interval: always }}\n'
            f"{cluster}{self.extra}\n"
        )

    def start(self) -> None:
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [*self.inside, NATS_SERVER, "-c", str(self.folder / "nats.conf")],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(self.listens, f"{self.name} listening", 60)

    def listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "output").read_text()
        with socket.socket() as s:
            return s.connect_ex((self.address, self.port)) == 0

    def ask(self, path: str) -> dict:
        """What its monitoring says."""
        url = f"http://{self.address}:{self.monitor}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)

    def led(self) -> list[dict]:
        """The states of the streams that it leads, by its own word."""
        if self.process is None:
            return []
        try:
            jsz = self.ask("/jsz?streams=true")
        except OSError:
            return []
        return [
            stream
            for account in jsz.get("account_details", ())
            for stream in account.get("stream_detail", ())
            if stream["cluster"].get("leader") == self.name
        ]

    @property
    def store(self) -> Path:
        """Where the files of the only stream's messages are."""
        (store,) = self.stores
        return store

    @property
    def stores(self) -> list[Path]:
        """Where the files of each stream's messages are."""
        streams = self.folder / "jetstream" / "$G" / "streams"
        return [stream / "msgs" for stream in sorted(streams.iterdir())]

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
    """
    So many servers that know each other.

    @param streams: how many streams they will have.
    """

    def __init__(self, nodes: Iterable[Node], streams: int = 1) -> None:
        self.nodes = list(nodes)
        self.streams = streams
        for node in self.nodes:
            node.write_config(self.nodes)

    def start(self) -> Cluster:
        for node in self.nodes:
            node.start()
        return self

    @property
    def url(self) -> str:
        return "nats://" + ",".join(node.server for node in self.nodes)

    def create_stream(self, *options: str) -> None:
        """As an operator does, when the servers know each other."""
        wait_until(self._has_leader, "a leader of the cluster", 60)
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

    def _has_leader(self) -> bool:
        """Whether somebody can make streams: what is asked before is not answered for 10 s."""
        told = [node.ask("/jsz") for node in self.nodes]
        return len(told) == 1 or all(one.get("meta_cluster", {}).get("leader") for one in told)

    @property
    def leader(self) -> Node | None:
        """Who leads a stream, by its own word; of several the one that has stored most."""
        leaders = [
            (stream["state"]["last_seq"], node) for node in self.nodes for stream in node.led()
        ]
        return max(leaders, key=lambda one: one[0])[1] if leaders else None

    def is_current(self) -> bool:
        """Whether all replicas are up to date, as their leader says."""
        led = [stream for node in self.nodes for stream in node.led()]
        others = len(self.nodes) - 1
        return len({stream["name"] for stream in led}) == self.streams and all(
            len(replicas) == others and all(one.get("current") for one in replicas)
            for stream in led
            for replicas in [stream["cluster"].get("replicas", ())]
        )

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()
