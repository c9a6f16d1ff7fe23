"""
How long clients wait when the leader of the stream is killed, leaves in good order, or hangs.

    python -m tests.faults.leader_changes [TIMES]

runs a cluster to try (C{msglog cluster}) with a few clients that send one message after the other
through two front-ends, does that to the leader so many times (20) each, and prints the longest time
between two ACKs of one client that each cost.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

from conftest import BIN, wait_until
from ports import free_ports

import msglog

CLIENTS = 4

# Until the clients have so many ACKs more, it goes on for each of them.
GOES_ON = 20


class Client(threading.Thread):
    """Sends one message after the other, and notes when each is acknowledged."""

    def __init__(self, servers: list[str]) -> None:
        super().__init__(daemon=True)
        self.servers = servers
        self.moments: list[float] = []
        self.ended = threading.Event()

    def run(self) -> None:
        with msglog.connect(",".join(self.servers), timeout=120) as log:
            while not self.ended.is_set():
                log.send(b"%d" % len(self.moments))
                self.moments.append(time.monotonic())
                time.sleep(0.002)  # the machine is to be busy, not full

    def longest_wait(self, since: float) -> float:
        """Between two ACKs, the second of which came later than this."""
        return max(b - a for a, b in pairwise(self.moments) if b > since)


def main(times: int) -> None:
    port = free_ports(13)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(BIN / "msglog"), "cluster", "--dir", f"{folder}/cluster"]
        with Path(folder, "output").open("wb") as output:
            cluster = subprocess.Popen([*command, "--port", str(port)], stdout=output)
        try:
            wait_until(
                lambda: subprocess.run([*command, "status"], capture_output=True).returncode == 0,
                "a cluster",
                60,
            )
            measure(command, [f"127.0.0.1:{port}", f"127.0.0.1:{port + 2}"], times)
        finally:
            cluster.terminate()
            cluster.wait(30)


def measure(command: list[str], servers: list[str], times: int) -> None:
    clients = [Client(servers[n % 2 :] + servers[: n % 2]) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    for verb, undo in (("kill", "start"), ("stop", "start"), ("pause", "resume")):
        waits = []
        for _ in range(times):
            go_on(clients)
            began = time.monotonic()
            subprocess.run([*command, verb, "leader"], check=True, stdout=subprocess.DEVNULL)
            go_on(clients)
            waits.append(max(client.longest_wait(began) for client in clients))
            print(f"{verb} leader: {waits[-1]:.2f} s; load {os.getloadavg()[0]:.1f}", flush=True)
            subprocess.run([*command, undo], check=True, stdout=subprocess.DEVNULL)
        print(
            f"{verb} leader, {times} times: median {statistics.median(waits):.2f} s, "
            f"least {min(waits):.2f} s, worst {max(waits):.2f} s"
        )
    for client in clients:
        client.ended.set()
    for client in clients:
        client.join(30)


def go_on(clients: list[Client]) -> None:
    before = [len(client.moments) for client in clients]
    wait_until(
        lambda: all(
            len(client.moments) > count + GOES_ON
            for client, count in zip(clients, before, strict=True)
        ),
        "ACKs for all",
        60,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 20)
