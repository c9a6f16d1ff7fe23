"""The real server against a slow disk, and peers that do what they should not."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import wire
from conftest import BIN, Server, wait_until

A, B = uuid.uuid4().bytes, uuid.uuid4().bytes


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_stalled_disk_bounds_memory(make_server) -> None:
    """A sender without pause against a disk that hardly moves does not fill the memory."""
    limit = 16 * 1024 * 1024
    server = make_server("--max-undurable-bytes", str(limit), "--max-commit-bytes", "1000000")
    real = [sys.executable, *server.command()]
    server.command = lambda *options: real
    stall = "inject=fdatasync:delay_enter=3000000:when=2+"
    of = ("-P", str(server.log))
    server.start(under=("strace", "-f", "-qq", "-o", "/dev/null", *of, "-e", stall))
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"it works")
    children = subprocess.run(
        ["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True
    )
    status = f"/proc/{int(children.stdout.split()[0])}/status"

    def resident() -> int:
        with open(status) as lines:
            (line,) = [line for line in lines if line.startswith("VmRSS")]
        return int(line.split()[1]) * 1024

    before = resident()
    senders = []
    client = uuid.uuid4().bytes
    data = b"".join(wire.message(client, n, b"x" * 256) for n in range(1, 50_000))
    for _ in range(40):
        connection = wire.Connection(server.port)
        connection.socket.settimeout(0.2)
        sent = 0
        try:
            while sent < len(data):
                sent += connection.socket.send(data[sent:])
        except TimeoutError:
            pass
        assert sent < len(data), "the server read on"
        senders.append(connection)
    grown = resident() - before
    print(f"grown by {grown} bytes")
    # It did hold messages, and not more than its bound, two copies of a commit, and connections.
    assert limit // 4 < grown < limit + 4 * 1024 * 1024
    for connection in senders:
        connection.close()


def test_garbage(server: Server) -> None:
    """Other protocols are told MALFORMED and see a proper end, not a reset; no traceback."""
    for garbage in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000,
        b"\x16\x03\x01\x02\x00" * 99,
    ):
        with wire.Connection(server.port) as connection:
            connection.send(garbage)
            assert connection.nack()[0] == 1
            assert connection.receive() is None
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"fine")
    server.stop()


def test_half_close(server: Server) -> None:
    """A client may close its half after its last message and gets every answer."""
    with wire.Connection(server.port) as connection:
        connection.send(b"".join(wire.message(A, n, b"x") for n in range(1, 5001)))
        connection.socket.shutdown(socket.SHUT_WR)
        for sequence in range(1, 5001):
            answer = connection.receive()
            assert answer[0] == wire.ACK
            assert answer[3] == sequence
        assert connection.receive() is None


def test_partial_frame(make_server) -> None:
    """A peer that stops in the middle of a frame is aborted."""
    server = make_server("--frame-seconds", "0.5").start()
    with wire.Connection(server.port) as connection:
        connection.send(wire.message(A, 1, b"x" * 100)[:40])
        with pytest.raises(ConnectionResetError):
            connection.receive()
    wait_until(lambda: "in the middle of a frame" in server.said(), "a line about it")


def test_too_many_connections(make_server) -> None:
    server = make_server("--max-connections", "2").start()
    with wire.Connection(server.port) as first, wire.Connection(server.port) as second:
        first.log(A, 1, b"a")

        def served() -> bool:
            # The connection that found the server listening may not be gone yet.
            second.send(wire.message(B, 1, b"b"))
            return second.receive()[0] == wire.ACK or second.reconnect()

        wait_until(served, "the second connection")
        with wire.Connection(server.port) as third:
            assert third.nack()[0] == 6
            assert third.receive() is None
        first.log(A, 2, b"a")


def test_too_long(server: Server) -> None:
    """A body over the maximum is refused while it arrives; the connection goes on."""
    with wire.Connection(server.port) as connection:
        connection.send(wire.message(A, 1, b"x" * 5_000_000) + wire.message(A, 1, b"short"))
        assert connection.nack()[0] == 3
        assert connection.receive()[0] == wire.ACK
    server.stop()
    assert wire.read_logs(server.log) == {A: [b"short"]}


def test_socket_options(server: Server) -> None:
    """Dead peers are found by the kernel: keepalive and user timeout are set."""
    if not shutil.which("ss"):
        pytest.skip("needs ss")
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"a")
        shown = subprocess.run(
            ["ss", "-tno", "state", "established", "sport", "=", str(server.port)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "timer:(keepalive" in shown.stdout


def test_example_client(make_server) -> None:
    """The example in the README does what the README says."""
    source = Path(__file__).parents[2] / "examples" / "send.py"
    server = make_server().start()
    script = server.folder / "send.py"
    script.write_text(source.read_text().replace("7514", str(server.port)))
    done = subprocess.run(
        [sys.executable, str(script), "hello", "wörld"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ACK", "ACK"]
    (bodies,) = wire.read_logs(server.log).values()
    assert bodies == [b"hello", "wörld".encode()]


def test_example_application(make_server) -> None:
    """The embedding example runs, logs its own events, and serves."""
    source = Path(__file__).parents[2] / "examples" / "embedded.tac"
    server = make_server()
    script = server.folder / "embedded.tac"
    script.write_text(source.read_text().replace("7514", str(server.port)))
    server.command = lambda *options: [
        *(str(BIN / "twistd"), "-n", "--pidfile=", "--python", str(script), "--no_save")
    ]
    server.start()
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"from outside")
    wait_until(lambda: "durable: 2" in server.said(), "two counts")
    server.process.terminate()
    server.wait()
    assert "Traceback" not in server.said()
    logged = wire.read_logs(server.log)
    assert logged.pop(A) == [b"from outside"]
    (own,) = logged.values()
    assert own[:2] == [b'{"count":1}', b'{"count":2}']


def test_all_come_back_at_once(server: Server) -> None:
    """Hundreds that connect in the same moment are all served, none after a second try."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        # The kernel takes them while the server cannot; without room it would let them wait.
        connections = [wire.Connection(server.port, timeout=0.9) for _ in range(500)]
    finally:
        server.process.send_signal(signal.SIGCONT)
    for connection in connections:
        connection.socket.settimeout(15)
        connection.log(uuid.uuid4().bytes, 1, b"back")
        connection.close()
