"""twistd msglog as its operator meets it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import uuid
from pathlib import Path

import pytest
import wire
from conftest import BIN, Server, free_port, wait_until

A, B = uuid.uuid4().bytes, uuid.uuid4().bytes


def run(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to end by itself."""
    return subprocess.run(
        server.command(*options), cwd=server.folder, capture_output=True, text=True, timeout=30
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("msglog: ")
    return line


def test_taken_port(server: Server, make_server) -> None:
    other = make_server()
    other.log = server.folder / "other.jsonl"
    other.port = server.port
    assert "Address already in use" in one_line(run(other))


def test_locked_log(server: Server) -> None:
    server_port, server.port = server.port, free_port()
    assert "in use by another server" in one_line(run(server))
    server.port = server_port
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"still there")


def test_unusable_folder(make_server) -> None:
    server = make_server()
    server.log = server.folder / "none" / "messages.jsonl"
    line = one_line(run(server))
    assert "No such file or directory; its folder must be there" in line
    server.log = server.folder
    assert "it is a folder, and must be a file" in one_line(run(server))


def test_damaged_log(make_server) -> None:
    server = make_server().start()
    with wire.Connection(server.port) as connection:
        for sequence in range(1, 6):
            connection.log(A, sequence, b"x")
    server.stop()
    data = bytearray(server.log.read_bytes())
    data[100] ^= 1
    server.log.write_bytes(data)
    server.log.with_name("messages.jsonl.ledger").unlink()
    line = one_line(run(server))
    assert "damaged at byte 0" in line
    assert server.log.read_bytes() == data


def test_daemon(make_server) -> None:
    """It works as a daemon, and a daemon that cannot start says so to whoever started it."""
    server = make_server()
    pid, out = server.folder / "twistd.pid", server.folder / "twistd.log"
    listen = f"tcp:{server.port}:interface=127.0.0.1"
    twistd = [str(BIN / "twistd"), "--pidfile", str(pid), "--logfile", str(out), "msglog"]
    command = [*twistd, "--listen", listen, "--log", "messages.jsonl"]

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=server.folder, capture_output=True, text=True, timeout=30
        )

    try:
        assert start().returncode == 0
        number = int(pid.read_text())
        wait_until(lambda: "listening on" in out.read_text(), "listening")
        with wire.Connection(server.port) as connection:
            connection.log(A, 1, b"a")
        os.kill(number, 15)
        wait_until(lambda: not pid.exists(), "the end")
    finally:
        if pid.exists():
            os.kill(int(pid.read_text()), 9)
    assert wire.read_logs(server.log) == {A: [b"a"]}
    assert server.log.stat().st_mode & 0o007 == 0
    # And now one that cannot: its log is a folder.
    command[-1] = "."
    done = start()
    assert done.returncode == 1
    assert "An error has occurred" in done.stderr
    assert "Traceback" not in done.stderr
    assert not pid.exists()


def test_twist(make_server) -> None:
    """The newer runner, twist, works as well."""
    server = make_server()
    command = [str(BIN / "twist"), "msglog", *server.command()[4:]]
    server.command = lambda *options: command
    server.start()
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"a")
    server.stop()
    assert wire.read_logs(server.log) == {A: [b"a"]}


def test_stop_answers_what_has_arrived(server: Server) -> None:
    """After SIGTERM every message has its answer, ACK or UNAVAILABLE, and ACK is kept."""
    connections = [wire.Connection(server.port) for _ in range(20)]
    clients = [uuid.uuid4().bytes for _ in connections]
    for connection, client in zip(connections, clients, strict=True):
        assert connection.terms(client)[0] == 0  # accepted
    for connection, client in zip(connections, clients, strict=True):
        connection.send(b"".join(wire.message(client, n, b"x" * 200) for n in range(1, 501)))
    server.process.terminate()
    acked = {}
    for connection, client in zip(connections, clients, strict=True):
        answers = []
        while (answer := connection.receive()) is not None:
            answers.append(answer)
        kinds = [answer[0] for answer in answers]
        assert kinds == sorted(kinds), "an ACK after a NACK"
        assert all(a[4][0] == 6 for a in answers if a[0] == wire.NACK)
        acked[client] = kinds.count(wire.ACK)
    assert server.wait() == 0
    assert "Traceback" not in server.said()
    logged = wire.read_logs(server.log)
    assert {c: n for c, n in acked.items() if n} == {c: len(b) for c, b in logged.items()}


def test_interrupted_twice(server: Server) -> None:
    """Ctrl-C is a stop in order like SIGTERM, also for who presses it again and again."""
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"a")
        server.process.send_signal(signal.SIGINT)
        for _ in range(20):
            server.process.send_signal(signal.SIGINT)
            assert server.process.poll() in (None, 0)
    assert server.wait() == 0
    assert "Traceback" not in server.said()
    assert "the log is closed" in server.said()


def test_background_job(make_server) -> None:
    """Where a shell has Ctrl-C ignored, which is meant for another program, it still is."""
    server = make_server().start(under=("sh", "-c", "trap '' INT; exec \"$@\"", "sh"))
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"a")
        server.process.send_signal(signal.SIGINT)
        connection.log(A, 2, b"b")
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (ignored,) = re.findall(r"SigIgn:\s*(\w+)", status)
    assert int(ignored, 16) >> (signal.SIGINT - 1) & 1


def test_restart_reads_nothing_again(server: Server) -> None:
    """After a clean stop the ledger has everything."""
    with wire.Connection(server.port) as connection:
        for sequence in range(1, 4):
            connection.log(A, sequence, b"%d" % sequence)
    server.stop()
    server.start()
    assert "of which 0 records (0 bytes)" in server.said().rpartition("writing ")[2]
    with wire.Connection(server.port) as connection:
        assert connection.terms(A) == (3, 1, 256, 1024)
        connection.log(A, 3, b"3")
        connection.log(A, 4, b"4")
        connection.send(wire.message(A, 4, b"other"))
        code, expected, *_ = connection.nack()
        assert (code, expected) == (8, 5)
    server.stop()
    assert len(wire.read_logs(server.log)[A]) == 4


def test_lazy_sync(make_server) -> None:
    """--sync SECONDS acknowledges, says at the start what that costs, and restarts well."""
    server = make_server("--sync", "0.2").start()
    assert "power cut may lose" in server.said()
    with wire.Connection(server.port) as connection:
        for sequence in range(1, 100):
            connection.log(A, sequence, b"x")
    server.kill()
    server.start()
    with wire.Connection(server.port) as connection:
        assert connection.terms(A)[0] == 99
    server.stop()


def test_help_and_version(tmp_path) -> None:
    for options, expected in ((["--help"], "--max-message-bytes"), (["--version"], "msglog 0")):
        done = subprocess.run(
            [str(BIN / "twistd"), "msglog", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0
        assert expected in done.stdout


@pytest.mark.parametrize(
    "options", [["--listen", "x:1"], ["--sync", "soon"], ["--window", "-1"], ["surplus"]]
)
def test_usage_errors(make_server, options) -> None:
    done = run(make_server(), *options)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert options[0] in (done.stdout + done.stderr) or options == ["surplus"]
    said = (done.stdout + done.stderr).splitlines()
    assert len(said) < 6, "what is wrong is not at the end of all options"
    assert "'twistd msglog --help' lists the options." in said
