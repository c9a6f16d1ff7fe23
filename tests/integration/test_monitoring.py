"""Metrics, health and systemd's notifications of a real server, under load and in trouble."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import wire
from conftest import Server, Watched, free_port, wait_until

from msglog._authority import init_authority, issue_server

DOCS = Path(__file__).parent.parent.parent / "docs"
A = uuid.uuid4().bytes


def send_all(port: int, count: int, window: int) -> None:
    """One client's messages, some at a time."""
    client = uuid.uuid4().bytes
    with wire.Connection(port) as connection:
        for first in range(1, count + 1, window):
            last = min(first + window, count + 1)
            frames = [wire.message(client, n, b"x" * (n % 200)) for n in range(first, last)]
            connection.send(b"".join(frames))
            for _ in frames:
                assert connection.receive()[0] == wire.ACK


def test_metrics_agree_with_the_log(watched: Watched) -> None:
    """Scraped during load, counters only grow; after it, they say what is in the log."""
    senders = [
        threading.Thread(target=send_all, args=(watched.port, 2000, window))
        for window in (1, 7, 100, 500)
    ]
    for sender in senders:
        sender.start()
    seen = []
    while any(sender.is_alive() for sender in senders):
        metrics = watched.metrics()
        acked = metrics["msglog_messages_acked_total", ""]
        timed = metrics["msglog_ack_seconds_count", ""]
        assert timed == metrics["msglog_ack_seconds_bucket", "+Inf"] <= acked
        assert metrics["msglog_connections", ""] <= 5
        seen.append(acked)
    for sender in senders:
        sender.join()
    assert seen == sorted(seen)
    metrics = watched.metrics()
    logged = wire.read_logs(watched.log)
    records = sum(map(len, logged.values()))
    size = watched.log.stat().st_size
    assert records == 8000
    for name, value in (
        ("msglog_messages_acked_total", records),
        ("msglog_records_written_total", records),
        ("msglog_ack_seconds_count", records),
        ("msglog_batch_messages_sum", records),
        ("msglog_commit_messages_sum", records),
        ("msglog_log_written_bytes_total", size),
        ("msglog_log_size_bytes", size),
        ("msglog_commit_bytes_sum", size),
        ("msglog_connections_accepted_total", len(senders)),
        ("msglog_ready", 1),
    ):
        assert metrics[name, ""] == value, name
    assert metrics["msglog_disk_free_bytes", ""] > 0
    assert metrics["process_open_fds", ""] > 5


def test_every_metric_is_scraped(watched: Watched) -> None:
    """What the manual has is what a scrape has, as plain text and as OpenMetrics, and packed."""
    with wire.Connection(watched.port) as connection:
        connection.log(A, 1, b"x")
    text = watched.get("/metrics")[1]
    rows = re.findall(r"^\| `(msglog_[a-z_]+)", (DOCS / "monitoring.md").read_text(), re.M)
    assert len(rows) > 30
    for name in rows:
        assert f"# TYPE {name} " in text, name
    status, text = watched.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert (status, text.endswith("# EOF\n")) == (200, True)
    connection = http.client.HTTPConnection("127.0.0.1", watched.http)
    connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
    assert connection.getresponse().headers["Content-Encoding"] == "gzip"
    connection.close()


def test_verdicts(watched: Watched) -> None:
    """Refusals are counted by their code, and resends are not records."""
    with wire.Connection(watched.port) as connection:
        connection.log(A, 1, b"a")
        connection.log(A, 1, b"a")
        for data, code in (
            (wire.message(A, 5, b"x"), 4),
            (wire.message(A, 1, b"other"), 8),
            (wire.message(A, 2, b"x" * 300), 3),
        ):
            connection.send(data)
            assert connection.nack()[0] == code
        connection.send(b"GET / HTTP/1.1\r\n\r\n")
        assert connection.nack()[0] == 1
    metrics = watched.metrics()
    refused = {code: n for (name, code), n in metrics.items() if "messages_refused" in name and n}
    assert refused == {"OUT_OF_ORDER": 1, "CONFLICT": 1, "TOO_LONG": 1, "MALFORMED": 1}
    assert metrics["msglog_messages_acked_total", ""] == 2
    assert metrics["msglog_records_written_total", ""] == 1
    assert metrics["msglog_connections_closed_total", "malformed"] == 1


def test_full_disk(watched: Watched) -> None:
    """Without room it is not ready but alive, and ready again with the next commit."""
    assert watched.get("/readyz") == (200, "ready\n")
    with wire.Connection(watched.port) as connection:
        connection.log(A, 1, b"a")
        size = watched.log.stat().st_size
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(watched.process.pid, resource.RLIMIT_FSIZE, (size + 10, unlimited))
        connection.send(wire.message(A, 2, b"b"))
        assert connection.nack()[0] == 5
        status, text = watched.get("/readyz")
        assert (status, text) == (503, "not ready: the last commit found no room on the disk\n")
        assert watched.get("/livez")[0] == 200
        metrics = watched.metrics()
        assert metrics["msglog_ready", ""] == 0
        assert metrics["msglog_commits_without_room_total", ""] == 1
        resource.prlimit(watched.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        connection.log(A, 2, b"b")
        assert watched.get("/readyz")[0] == 200


def test_low_disk(make_watched) -> None:
    """Little free space is said in the log, in /readyz and in the metrics, and is no refusal."""
    watched = make_watched("--min-free-bytes", str(1 << 50)).start()
    warning = re.compile("FreeSpace#warn. .* fewer than --min-free-bytes")
    wait_until(lambda: warning.search(watched.said()), "the warning")
    status, text = watched.get("/readyz", Accept="application/json")
    assert status == 200
    assert "bytes are free" in json.loads(text)["warnings"][0]
    metrics = watched.metrics()
    assert metrics["msglog_disk_low_total", ""] == 1
    assert metrics["msglog_disk_free_bytes", ""] < metrics["msglog_disk_free_limit_bytes", ""]


def needs(tool: str) -> None:
    if shutil.which(tool) is None:
        assert not os.environ.get("CI"), f"{tool} is not installed"
        pytest.skip(f"needs {tool}")


def under_strace(server: Server, *inject: str) -> None:
    needs("strace")
    real = [sys.executable, *server.command()]
    server.command = lambda *options: real
    of_the_log = ("-P", str(server.log))
    server.start(under=("strace", "-f", "-qq", "-o", "/dev/null", *of_the_log, "-e", *inject))


def test_stalled_disk(make_watched) -> None:
    """A commit that hangs makes it not ready while it lasts, and everything else goes on."""
    watched = make_watched("--stalled-seconds", "0.5")
    under_strace(watched, "inject=fdatasync:delay_enter=4000000:when=2")
    with wire.Connection(watched.port) as connection:
        connection.log(A, 1, b"a")
        connection.send(wire.message(A, 2, b"b"))
        wait_until(lambda: watched.get("/readyz")[0] == 503, "not being ready")
        assert "has not answered" in watched.get("/readyz")[1]
        assert watched.get("/livez") == (200, "live\n")
        metrics = watched.metrics()
        assert 0.5 <= metrics["msglog_disk_busy_seconds", ""] < 4.5
        assert metrics["msglog_ready", ""] == 0
        assert connection.receive()[0] == wire.ACK
        assert watched.get("/readyz")[0] == 200


def test_stop_is_seen(make_watched) -> None:
    """While a stop waits for a disk, probes are still answered: alive, and not ready."""
    watched = make_watched()
    under_strace(watched, "inject=fdatasync:delay_enter=3000000:when=2")
    with wire.Connection(watched.port) as connection:
        connection.log(A, 1, b"a")
        connection.send(wire.message(A, 2, b"b"))
        wait_until(lambda: watched.metrics()["msglog_disk_busy_seconds", ""] > 0, "a commit")
        subprocess.run(["pkill", "-TERM", "-P", str(watched.process.pid)], check=True)
        wait_until(lambda: watched.get("/readyz")[0] == 503, "not being ready")
        assert watched.get("/readyz")[1] == "not ready: no connections are accepted\n"
        assert watched.get("/livez")[0] == 200
        assert connection.receive()[0] == wire.ACK
    assert watched.wait() == 0, watched.said()
    assert "Traceback" not in watched.said()


def start_error(server: Server) -> str:
    done = subprocess.run(
        server.command(), cwd=server.folder, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("msglog: ")
    return line


def test_only_for_this_machine(make_watched) -> None:
    """Beyond loopback it listens only if told so explicitly."""
    server = make_watched()
    server.options = ("--http", f"tcp:{server.http}")
    assert "--http-anyone" in start_error(server)
    server.options += ("--http-anyone",)
    server.start()
    assert server.get("/readyz")[0] == 200
    server.stop()


def test_certificate(make_watched) -> None:
    """When the server's certificate expires is a metric and a fact, and soon is a warning."""
    watched = make_watched()
    init_authority(watched.folder / "ca", 30)
    issue_server(watched.folder / "ca", ["localhost"], 3)
    names = ("certificate", "localhost.pem"), ("key", "localhost-key.pem")
    for option, name in names:
        watched.options += (f"--tls-{option}", str(watched.folder / "ca" / name))
    watched.options += ("--listen-tls", f"tcp:{free_port()}:interface=127.0.0.1")
    watched.start()
    expires = watched.metrics()["msglog_certificate_expiry_timestamp_seconds", ""]
    assert 2 * 86400 < expires - time.time() < 4 * 86400
    assert "warning: the server's certificate expires on 20" in watched.get("/readyz")[1]


def test_taken_port(make_server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        line = start_error(make_server("--http", address))
    assert "cannot listen on --http" in line
    assert line.endswith("Address already in use")
    assert "Couldn't" not in line, "said twice"


def test_without_the_extra(make_server) -> None:
    """Without prometheus-client, one line says what to install; without --http nobody needs it."""
    server = make_server("--http", "tcp:0:interface=127.0.0.1")
    hidden = server.folder / "prometheus_client.py"
    hidden.write_text("raise ImportError('No module named prometheus_client')\n")
    twistd, *rest = server.command()
    command = ["env", f"PYTHONPATH={server.folder}", twistd, *rest]
    server.command = lambda *options: command
    assert "pip install 'msglog[http]'" in start_error(server)
    at = command.index("--http")
    del command[at : at + 2]
    server.start()
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"x")
    server.stop()


def test_unix_socket(make_server) -> None:
    """--http works on a socket in the file system."""
    path = f"{os.getcwd()}/http"
    server = make_server("--http", f"unix:{path}").start()
    wait_until(lambda: os.path.exists(path), "the socket")
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        s.connect(path)
        s.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert b" 200 OK\r\n" in s.recv(65536)
    server.stop()


class Systemd:
    """What systemd's side of a notification socket receives."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        self._socket.settimeout(20)

    def hear(self, wanted: str) -> str:
        """Wait for an assignment; the whole message that has it."""
        heard = []
        while True:
            try:
                heard.append(self._socket.recv(4096).decode())
            except TimeoutError:
                raise AssertionError(f"{wanted} was not heard but {heard}") from None
            if wanted in heard[-1]:
                return heard[-1]

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd(make_server, kind) -> None:
    """Ready, alive, reloading and stopping, as systemd hears it."""
    server = make_server()
    address = f"{server.folder}/notify" if kind == "path" else f"@msglog-{uuid.uuid4()}"
    systemd = Systemd(address)
    plain = server.command()
    variables = [f"NOTIFY_SOCKET={address}", "WATCHDOG_USEC=1000000"]
    server.command = lambda *options: ["env", *variables, *plain]
    server.start()
    systemd.hear("STATUS=recovering")
    systemd.hear("READY=1")
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"x")
    systemd.hear("STATUS=ready")
    systemd.hear("WATCHDOG=1")
    systemd.hear("WATCHDOG=1")
    server.log.rename(server.folder / "messages.jsonl-1")
    server.hang_up()
    assert "\nMONOTONIC_USEC=" in systemd.hear("RELOADING=1")
    systemd.hear("READY=1")
    assert server.log.exists(), "ready before the reload was done"
    server.process.send_signal(signal.SIGTERM)
    systemd.hear("STOPPING=1")
    assert server.wait() == 0, server.said()
    assert "Traceback" not in server.said()
    systemd.close()


def test_systemd_is_gone(make_server) -> None:
    """A socket where nobody listens costs a line of the log and nothing else."""
    server = make_server()
    plain = server.command()
    server.command = lambda *options: ["env", f"NOTIFY_SOCKET={server.folder}/none", *plain]
    server.start()
    with wire.Connection(server.port) as connection:
        connection.log(A, 1, b"x")
    assert "systemd was not told" in server.said()
    server.stop()
