"""--workers: the same promises with several processes, whichever of them is killed."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import uuid
from pathlib import Path

import wire
from conftest import Server, free_port, wait_until
from senders import Sender, running

from msglog._authority import init_authority, issue_server

A, B = uuid.uuid4().bytes, uuid.uuid4().bytes


def children(server: Server) -> list[int]:
    assert server.process is not None
    pid = server.process.pid
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def sockets(pid: int) -> int:
    """How many sockets a process has."""
    links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    return sum(link.startswith("socket:") for link in links)


def answers(server: Server) -> None:
    """See that the server takes connections: a client's message is acknowledged."""
    with wire.Connection(server.port) as connection:
        connection.log(uuid.uuid4().bytes, 1, b"anybody there?")


def read(server: Server, senders: list[Sender]) -> None:
    """See that the log has exactly what was sent, and that everything has its receipt."""
    logged = wire.read_logs(server.log)
    for sender in senders:
        assert sender.error is None, sender.error
        assert len(sender.moments) == len(sender.bodies)
        assert logged[sender.client.bytes] == sender.bodies


def traffic(senders: list[Sender]) -> None:
    """Wait until each of them has had some more answers."""
    reached = [len(sender.moments) for sender in senders]
    wait_until(
        lambda: all(
            s.error or len(s.moments) > n + 5 for s, n in zip(senders, reached, strict=True)
        ),
        "traffic",
        60,
    )


def test_connections_are_shared(make_watched) -> None:
    """Each worker has as many connections; figures are those of all; the end is a good one."""
    server = make_watched("--workers", "2").start()
    answers(server)
    wait_until(lambda: server.metrics()["msglog_connections", ""] == 0, "its end")
    idle = [sockets(pid) for pid in children(server)]
    connections = [wire.Connection(server.port) for _ in range(20)]
    for connection in connections:
        client = uuid.uuid4().bytes
        assert connection.terms(client)[0] == 0
        connection.log(client, 1, b"x")
        assert connection.terms(client)[0] == 1
    more = [sockets(pid) - n for pid, n in zip(children(server), idle, strict=True)]
    assert more == [10, 10]
    wait_until(lambda: server.metrics()["msglog_messages_acked_total", ""] == 21, "the sum")
    assert server.metrics()["msglog_connections", ""] == 20
    assert server.get("/readyz")[0] == 200
    for connection in connections:
        connection.close()
    wait_until(lambda: server.metrics()["msglog_connections", ""] == 0, "the connections' end")
    workers = children(server)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    none = (503, "not ready: no worker process serves\n")
    wait_until(lambda: server.get("/readyz") == none, "that it is not ready")
    wait_until(lambda: server.get("/readyz") == (200, "ready\n"), "that it is again")
    answers(server)
    wait_until(lambda: server.metrics()["msglog_messages_acked_total", ""] == 22, "the sum")
    workers += children(server)
    server.stop()
    assert not any(map(runs, workers))


def test_a_worker_is_killed(make_server) -> None:
    """Its clients come back, nothing is lost or repeated, and another one takes its place."""
    server = make_server("--workers", "2").start()
    senders = [Sender(server.port, 1 if n % 2 else 50) for n in range(6)]
    with running(senders):
        for n in range(1, 4):
            traffic(senders)
            wait_until(lambda: len(children(server)) == 2, "two workers")
            os.kill(children(server)[n % 2], signal.SIGKILL)
            wait_until(lambda n=n: server.said().count(" has ended (") == n, "that it is said")
        traffic(senders)
    server.stop()
    read(server, senders)


def test_a_worker_hangs(make_server) -> None:
    """One that was stopped is no reason for others to wait; when it goes on, so do its clients."""
    server = make_server("--workers", "2").start()
    answers(server)
    wait_until(lambda: len(children(server)) == 2, "two workers")
    hung = children(server)[0]
    os.kill(hung, signal.SIGSTOP)
    connections = [wire.Connection(server.port) for _ in range(8)]
    try:
        for connection in connections:
            connection.send(wire.message(uuid.uuid4().bytes, 1, b"x"))
        connections[0].socket.settimeout(20)
    finally:
        os.kill(hung, signal.SIGCONT)
    for connection in connections:
        assert connection.receive()[0] == wire.ACK
        connection.close()
    server.stop()


def test_the_writer_is_killed(make_server) -> None:
    """The workers end with it, and nothing was acknowledged that is not in the log."""
    server = make_server("--workers", "2").start()
    senders = [Sender(server.port, 1 if n % 2 else 50) for n in range(6)]
    with running(senders):
        for _ in range(2):
            traffic(senders)
            workers = children(server)
            assert len(workers) == 2
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait(30)
            wait_until(lambda workers=workers: not any(map(runs, workers)), "the workers' end")
            server.start()
        traffic(senders)
    server.stop()
    read(server, senders)


def test_a_stop_under_load(make_server) -> None:
    """SIGTERM, to the whole group as systemd sends it, loses no answer; status 0."""
    server = make_server("--workers", "2").start()
    senders = [Sender(server.port, 1 if n % 2 else 50) for n in range(6)]
    with running(senders):
        for _ in range(2):
            traffic(senders)
            os.killpg(server.process.pid, signal.SIGTERM)
            assert server.wait() == 0, server.said()
            assert "Traceback" not in server.said()
            server.start()
        traffic(senders)
    server.stop()
    read(server, senders)


def test_a_start_cut_short(make_server) -> None:
    """A stop while the workers start ends them too."""
    server = make_server("--workers", "3").start()
    wait_until(lambda: len(children(server)) == 3, "three workers")
    workers = children(server)
    server.stop()
    assert not any(map(runs, workers))


def test_bounds_are_for_all(make_server) -> None:
    """Connections of one address count together, whichever worker has them."""
    server = make_server("--workers", "2", "--max-connections-per-address", "3").start()
    connections = [wire.Connection(server.port) for _ in range(3)]
    for connection in connections:
        connection.log(uuid.uuid4().bytes, 1, b"x")
    with wire.Connection(server.port) as refused:
        assert refused.nack()[:3] == (6, 0, "too many connections from this address")
        assert refused.receive() is None
    connections.pop().close()

    def taken() -> bool:
        with wire.Connection(server.port) as another:
            another.send(wire.enquiry(A))
            return another.receive()[0] == wire.TERMS

    wait_until(taken, "a place for another one")
    for connection in connections:
        connection.close()
    server.stop()


def test_unix_socket(make_server) -> None:
    """Connections to a UNIX socket are passed on too."""
    server = make_server("--workers", "1")
    path = server.folder / "socket"
    server.start("--listen", f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        connection.sendall(wire.message(A, 1, b"x"))
        (answer,), _ = wire.split(connection.recv(4096))
        assert (answer[0], answer[3]) == (wire.ACK, 1)
    server.stop()
    assert wire.read_logs(server.log) == {A: [b"x"]}


def test_moved_away(make_server) -> None:
    """SIGHUP after the log was moved: the workers notice nothing of it."""
    server = make_server("--workers", "2").start()
    moved = server.folder / "moved.jsonl"
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"old")
        server.log.rename(moved)
        server.hang_up()
        wait_until(server.log.exists, "a new log")
        connection.log(A, 2, b"new")
    server.stop()
    assert wire.read_logs(moved, server.log) == {A: [b"old", b"new"]}


def test_the_longest_messages(make_server) -> None:
    """A line of six times its message, and longer than any socket holds, is passed on whole."""
    server = make_server("--workers", "2", "--max-message-bytes", "4000000").start()
    body = b"\1" * 4_000_000
    with wire.Connection(server.port, 60) as connection:
        connection.log(A, 1, body)
        connection.log(A, 2, b"short")
    server.stop()
    assert wire.read_logs(server.log) == {A: [body, b"short"]}


def test_certificates_read_again(make_server, tmp_path: Path) -> None:
    """TLS ends in the workers, and after SIGHUP they show the new certificate."""
    for name in ("old", "new"):
        init_authority(tmp_path / name, 30)
        issue_server(tmp_path / name, ["localhost"], 30)
    files = {"localhost.pem": tmp_path / "cert.pem", "localhost-key.pem": tmp_path / "key.pem"}

    def use(name: str) -> None:
        for source, target in files.items():
            target.write_bytes((tmp_path / name / source).read_bytes())

    port = free_port()

    def shown_by(name: str) -> bool:
        context = ssl.create_default_context(cafile=str(tmp_path / name / "ca.pem"))
        try:
            with (
                socket.create_connection(("127.0.0.1", port), 20) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as connection,
            ):
                connection.sendall(wire.enquiry(A))
                return wire.split(connection.recv(4096))[0][0][0] == wire.TERMS
        except ssl.SSLError:
            return False

    use("old")
    certificate, key = map(str, files.values())
    server = make_server("--workers", "2", "--tls-certificate", certificate, "--tls-key", key)
    server.start("--listen-tls", f"tcp:{port}:interface=127.0.0.1")
    assert shown_by("old")
    assert not shown_by("new")
    use("new")
    server.hang_up()
    wait_until(lambda: shown_by("new") and shown_by("new"), "the new certificate, of both")
    assert not shown_by("old")
    server.stop()


def test_what_cannot_be(make_server) -> None:
    """An endpoint whose sockets cannot be passed on is refused at the start, in one line."""
    server = make_server("--workers", "2")
    more = ("--listen", f"haproxy:tcp:{free_port()}:interface=127.0.0.1")
    done = subprocess.run(
        server.command(*more), cwd=server.folder, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("msglog: ")
    assert "--workers cannot pass on" in line
