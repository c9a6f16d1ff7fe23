"""
Restarts that nobody notices: the socket outlives the server, and what was on its way arrives.

Ten restarts here; C{RESTARTS=100 pytest -s tests/integration/test_restarts.py} makes a
hundred and prints what docs/operations.md says about them.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import time

import pytest
import wire
from activator import EXEC, Activator
from conftest import BIN, free_port, wait_until
from senders import Prober, Sender, running

import msglog

RESTARTS = int(os.environ.get("RESTARTS", "10"))
CLIENTS = 8

# What no silence is longer than.  A start is mostly Python's imports, a third of a second of one
# processor, and takes longer with neighbours: the long test needs a machine to itself.
WORST_SECONDS = 1.0 if RESTARTS >= 100 else 5.0


@pytest.fixture
def activator(tmp_path):
    activator = Activator(tmp_path, "--idle-seconds", "30")
    yield activator
    activator.close()


def test_restarts_under_load(activator) -> None:
    """No connection refused, nothing lost or repeated, no client without an answer for long."""
    activator.start()
    senders = [Sender(activator.port, 1 if n % 2 else 50) for n in range(CLIENTS)]
    prober = Prober(activator.port)
    silences = []
    with running([*senders, prober]):
        for _ in range(RESTARTS):
            with socket.create_connection(("127.0.0.1", activator.port)):  # never says anything
                reached = [len(s.moments) for s in senders]
                wait_until(
                    lambda r=reached: all(
                        s.error or len(s.moments) > n + 20 for s, n in zip(senders, r, strict=True)
                    ),
                    "traffic",
                )
                begun = time.monotonic()
                activator.restart()
                for sender in senders:
                    wait_until(
                        lambda s=sender, b=begun: s.error or s.moments[-1] > b + 0.05, "an answer"
                    )
                time.sleep(0.05)
                silences += [
                    max(
                        b - a
                        for a, b in zip(s.moments, s.moments[1:], strict=False)
                        if b >= begun - 0.1
                    )
                    for s in senders
                ]
    activator.stop()
    assert [s.error for s in senders] == [None] * CLIENTS
    assert prober.refused == []
    assert prober.made > RESTARTS
    logged = wire.read_logs(activator.log)
    assert logged == {s.client.bytes: s.bodies for s in senders}
    print(
        f"\n{RESTARTS} restarts, {sum(map(len, logged.values()))} messages, {prober.made} further "
        f"connections: longest silence of a client, median {statistics.median(silences):.3f} s, "
        f"worst {max(silences):.3f} s; a stop {statistics.median(activator.stops):.3f} s, worst "
        f"{max(activator.stops):.3f} s"
    )
    assert max(silences) < WORST_SECONDS
    assert statistics.median(activator.stops) < 1, "a stop waits for a peer that says nothing"
    assert "Traceback" not in activator.output.read_text()


def test_unix_socket_is_left_alone(tmp_path) -> None:
    """Its file keeps its mode, is there after the server's end, and still takes peers."""
    path = tmp_path / "socket"
    activator = Activator(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen()
        activator.socket.close()
        activator.socket = listening
        activator.domain = "UNIX"
        try:
            for sequence in range(1, 4):
                activator.start()
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
                    client.settimeout(15)
                    client.sendall(wire.message(bytes(15) + b"x", sequence, b"x"))
                    assert client.recv(1000)[8] == wire.ACK
                activator.stop()
                assert path.stat().st_mode & 0o777 == 0o600
        finally:
            activator.close()


def said_at_the_start(*options: str, under: tuple[str, ...] = (), **kwargs) -> str:
    command = [*under, str(BIN / "twistd"), "-n", "--pidfile=", "msglog", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, **kwargs)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def test_without_a_socket(tmp_path) -> None:
    """What was forgotten is said."""
    said = said_at_the_start("--listen", "systemd:domain=INET:name=messages", cwd=tmp_path)
    assert "LISTEN_FDS" in said
    assert "--listen systemd:domain=INET:name=messages" in said


@pytest.mark.skipif(
    not shutil.which("systemd-socket-activate") and not os.environ.get("CI"),
    reason="needs systemd-socket-activate",
)
def test_systemd_socket_activate(tmp_path) -> None:
    """systemd's own tool starts it when the first client comes, which waits in the queue."""
    port = free_port()
    log = tmp_path / "messages.jsonl"
    activate = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=messages"]
    twistd = [str(BIN / "twistd"), "-n", "--pidfile=", "msglog", "--log", str(log)]
    listen = ["--listen", "systemd:domain=INET:name=messages"]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [*activate, *twistd, *listen], cwd=tmp_path, stdout=output, stderr=output
        )
    try:

        def listens() -> bool:
            with open("/proc/net/tcp") as lines:
                return any(f":{port:04X} " in line.split(" 0A ")[0] for line in lines)

        wait_until(listens, "listening")
        with msglog.connect(f"127.0.0.1:{port}") as client:
            client.send(b"first")
        process.terminate()
        assert process.wait(30) == 0, (tmp_path / "output").read_text()
    finally:
        process.kill()
        process.wait(30)
    assert list(wire.read_logs(log).values()) == [[b"first"]]
    wrong = ("--listen", "systemd:domain=INET:name=other")
    with socket.create_server(("127.0.0.1", 0)) as passed:
        environ = os.environ | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "messages"}
        said = said_at_the_start(*wrong, under=EXEC, stdin=passed, cwd=tmp_path, env=environ)
    assert "'messages'" in said
