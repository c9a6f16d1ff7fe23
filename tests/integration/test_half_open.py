"""
A link that goes down under connections: nobody is told, and both sides find out by themselves.

Server and peers are in network namespaces of their own, with a cable (veth) between them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import wire
from conftest import wait_until

HERE = Path(__file__).parent

# Twenty connections that have said something and wait, and a client; each line that comes in is
# one more step.
PEERS = """
import socket, sys, uuid
import wire, msglog
address = "10.78.0.1", int(sys.argv[1])
peers = [socket.create_connection(address, 10) for _ in range(20)]
for peer in peers:
    peer.sendall(wire.message(uuid.uuid4().bytes, 1, b"idle"))
    assert peer.recv(100)
limits = msglog.ClientLimits(answer_seconds=2, connect_seconds=2, max_backoff_seconds=0.2)
with msglog.connect("%s:%d" % address, limits=limits) as client:
    client.send(b"before")
    print("connected", flush=True)
    input()
    receipt = client.submit(b"while the link is down")
    print("sent", flush=True)
    input()
    receipt.result(30)
    print("acknowledged", flush=True)
"""


def ip(inside: tuple[str, ...], words: str) -> None:
    command = [*inside, "ip", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


def sockets(pid: int) -> int:
    """How many a process has open."""
    return sum(
        os.readlink(each).startswith("socket:") for each in Path(f"/proc/{pid}/fd").iterdir()
    )


@contextmanager
def namespace() -> Iterator[tuple[str, ...]]:
    """A network namespace: the words before a command that make it run there."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    net = Path(f"/proc/{holder.pid}/ns/net")
    try:
        wait_until(
            lambda: net.readlink() != Path("/proc/self/ns/net").readlink(), "a network namespace"
        )
        yield "nsenter", f"--net={net}"
    finally:
        holder.kill()
        holder.wait(20)


def test_link_down(make_server) -> None:
    """
    The server frees the connections in the time that --keepalive-seconds and
    --user-timeout-seconds say, and the client its own when no answer comes; when the link is up
    again, what was sent meanwhile is logged, once.
    """
    lacks = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if lacks or os.geteuid():
        assert not os.environ.get("CI"), f"needs root, and {lacks}"
        pytest.skip("needs root, and iproute2 and util-linux")
    server = make_server("--keepalive-seconds", "1", "--user-timeout-seconds", "2", "--allow-plain")
    listen = f"tcp:{server.port}:interface=10.78.0.1"
    server.options = (*server.options, "--listen", listen)
    with namespace() as ours, namespace() as theirs:
        pid = theirs[1].split("/")[2]
        ip(ours, f"link add eth0 type veth peer name eth0 netns {pid}")
        for inside, number in ((ours, 1), (theirs, 2)):
            ip(inside, "link set lo up")
            ip(inside, f"addr add 10.78.0.{number}/24 dev eth0")
            ip(inside, "link set eth0 up")
        server.start(under=ours)
        before = sockets(server.process.pid)
        with subprocess.Popen(
            [*theirs, sys.executable, "-c", PEERS, str(server.port)],
            env={**os.environ, "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as peers:
            assert peers.stdin is not None
            assert peers.stdout is not None

            def step(said: str) -> None:
                assert peers.stdout.readline() == f"{said}\n"

            def go_on() -> None:
                peers.stdin.write("\n")
                peers.stdin.flush()

            try:
                step("connected")
                assert sockets(server.process.pid) == before + 21
                ip(theirs, "link set eth0 down")
                down = time.monotonic()
                go_on()
                step("sent")
                wait_until(lambda: sockets(server.process.pid) == before, "the end of all")
                took = time.monotonic() - down
                assert took > 1, "it cannot have known"
                ip(theirs, "link set eth0 up")
                go_on()
                step("acknowledged")
                assert peers.wait(30) == 0
            finally:
                peers.kill()
        server.stop()
    bodies = list(wire.read_logs(server.log).values())
    assert bodies.count([b"idle"]) == 20
    assert [b"before", b"while the link is down"] in bodies
