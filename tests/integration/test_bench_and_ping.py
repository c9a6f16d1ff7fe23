"""C{msglog bench} and C{msglog ping} against the real server, run as a user runs them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest
from conftest import BIN, Server, free_port, wait_until
from wire import read_logs


def msglog(server: Server | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    port = server.port if server else free_port()
    return subprocess.run(
        [str(BIN / "msglog"), *arguments, "--server", f"127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        timeout=60,
    )


def bench(server: Server, *arguments: str) -> dict:
    """The figures of a run that went well."""
    done = msglog(server, "bench", "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def in_terminal(server: Server, width: int, *arguments: str) -> tuple[set[str], list[str]]:
    """Every line that a terminal ever showed, and what it shows at the end."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        # Not execv: a library of pytest's (readline) puts COLUMNS behind Python's back.
        environment = {**os.environ, "TERM": "xterm-256color"}
        environment.pop("COLUMNS", None)
        command = str(BIN / "msglog")
        to = f"127.0.0.1:{server.port}"
        os.execve(command, [command, *arguments, "--server", to], environment)
    screen = pyte.Screen(width, 50)
    stream = pyte.ByteStream(screen)
    shown = set()
    with open(terminal, "rb", buffering=0) as output:
        try:
            while data := output.read(4096):
                stream.feed(data)
                shown.update(screen.display)
        except OSError:  # EIO: nobody has the other side open any more
            pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, screen.display
    return shown, [line for line in screen.display if line.strip()]


@pytest.fixture
def silent() -> Iterator[Server]:
    """What accepts connections and says nothing; it has a server's C{port}."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        it = object.__new__(Server)
        it.port = listening.getsockname()[1]
        yield it


class TestBench:
    def test_exactly_what_is_logged(self, server: Server) -> None:
        """What the bench counts is what the log has: so many clients, messages, and bytes."""
        found = bench(server, "--messages", "5003", "-c", "7", "-w", "50", "--size", "100")
        assert found["acknowledged"] == 5003
        assert found["rate"] == pytest.approx(5003 / found["seconds"])
        server.stop()
        clients = read_logs(server.log)
        assert len(clients) == 7
        assert sum(map(len, clients.values())) == 5003
        bodies = {body for bodies in clients.values() for body in bodies}
        assert {len(body) for body in bodies} == {100}
        assert all(body.startswith(b"msglog bench") for body in bodies)

    def test_processes(self, server: Server) -> None:
        """Several processes share connections and messages, and their figures are one."""
        found = bench(server, "--messages", "3001", "-c", "5", "--processes", "2")
        assert (found["processes"], found["acknowledged"]) == (2, 3001)
        server.stop()
        clients = read_logs(server.log)
        assert len(clients) == 5
        assert sum(map(len, clients.values())) == 3001

    def test_seconds(self, server: Server) -> None:
        """For so long after the warm-up, and what was sent in it is not in the figures."""
        found = bench(server, "--seconds", "0.5", "--warm-up", "0.3", "-c", "4", "-w", "8")
        assert 0.5 <= found["seconds"] < 1
        slots = found["acknowledged_over_time"]["slots"]
        assert sum(slots) == pytest.approx(found["rate"] * found["seconds"])
        in_flight = 4 * 8
        assert 0 <= found["acknowledged"] - sum(slots) <= in_flight
        server.stop()
        logged = sum(map(len, read_logs(server.log).values()))
        assert logged > found["acknowledged"] + in_flight

    def test_rate(self, server: Server) -> None:
        """Messages come at a rate; more than the server takes are not passed over in silence."""
        found = bench(server, "--rate", "500", "--messages", "400", "-c", "3", "--window", "8")
        assert found["asked_rate"] == 500
        assert found["acknowledged"] == 400
        assert 0.4 < found["seconds"] < 4
        assert found["late_ms"]["p50"] <= found["latency_ms"]["p50"]
        done = msglog(
            server, "bench", "--rate", "5e6", "--window", "1", "-t", "0.2", "--warm-up", "0"
        )
        assert done.returncode == 0
        assert "did not keep up" in done.stderr
        assert "5,000,000 messages/s come" in done.stdout
        server.stop()

    def test_wide_window_and_long_bodies(self, make_server) -> None:
        """Longer than what the kernel takes at once."""
        server = make_server("--max-message-bytes", "1000000", "--window", "64").start()
        found = bench(server, "--messages", "40", "-c", "2", "-w", "64", "--size", "1000000")
        assert found["acknowledged"] == 40

    def test_text_and_chart(self, server: Server, tmp_path: Path) -> None:
        """Into a file goes plain text; the chart is written."""
        done = msglog(server, "bench", "--messages", "1000", "--plot", "chart.svg")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.isascii()
        assert "100 connections, window 100, 256-byte bodies, 1 process" in done.stdout
        assert "p99.9" in done.stdout
        assert "<svg" in Path("chart.svg").read_text()

    def test_nobody_reads(self, server: Server) -> None:
        """A reader that has read enough is no error, and neither is one that never did."""
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [BIN / "msglog", "bench", "--messages", "10", "-s", f"127.0.0.1:{server.port}"],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, b"")

    def test_ctrl_c(self, server: Server) -> None:
        """It prints what was measured so far, and the status says that it was not to the end."""
        process = subprocess.Popen(
            [
                *(str(BIN / "msglog"), "bench", "--json", "--seconds", "600", "--warm-up", "0"),
                *("--server", f"127.0.0.1:{server.port}", "--processes", "2"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_until(lambda: server.log.stat().st_size > 1_000_000, "load")
        # From a terminal it reaches every process of the group.
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (130, "msglog: ended by Ctrl-C\n")
        found = json.loads(out)
        assert 0 < found["seconds"] < 60
        server.stop()
        assert sum(map(len, read_logs(server.log).values())) == found["acknowledged"]

    @pytest.mark.parametrize("width", [80, 200])
    def test_terminal(self, server: Server, width: int) -> None:
        """A bar while it lasts, which is gone when the figures come; they fit, in one line each."""
        shown, left = in_terminal(server, width, "bench", "--seconds", "1", "--warm-up", "0")
        assert any("measuring" in line and "messages/s" in line for line in shown)
        assert not any("measuring" in line for line in left)
        heads = [line.split()[0] for line in left[:4]]
        assert heads == ["server", "load", "rate", "receipts"]
        assert any("█" * (width // 3) in line for line in left)

    def test_server_stops(self, server: Server) -> None:
        """One line says what happened, after what was measured."""
        done = {}

        def run() -> None:
            done["bench"] = msglog(server, "bench", "--seconds", "600", "--warm-up", "0")

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: server.log.stat().st_size > 1_000_000, "load")
        server.stop()
        thread.join(30)
        assert done["bench"].returncode == 1
        assert "messages/s" in done["bench"].stdout
        (line,) = done["bench"].stderr.splitlines()
        assert line.startswith("msglog: ")
        assert "unanswered" in line or "UNAVAILABLE" in line

    def test_full_disk(self, make_server) -> None:
        """Refusals are counted by their code, and the first one's reason is said."""
        server = make_server().start()
        assert server.process is not None
        limits = (2_000_000, resource.RLIM_INFINITY)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
        done = msglog(server, "bench", "--json", "--seconds", "60", "--warm-up", "0")
        assert done.returncode == 1, done.stderr
        assert "NOT_STORED" in done.stderr
        assert done.stderr.count("\n") == 1
        assert json.loads(done.stdout)["refused"]["NOT_STORED"] > 0

    def test_too_many_connections(self, make_server) -> None:
        server = make_server("--max-connections", "3").start()
        done = msglog(server, "bench", "--messages", "10", "-c", "10")
        assert done.returncode == 1
        assert done.stdout == ""
        assert "the server refused a connection: UNAVAILABLE" in done.stderr

    def test_terms(self, server: Server) -> None:
        """What the server does not take is known before anything is sent."""
        done = msglog(server, "bench", "--size", "257")
        assert (done.returncode, done.stdout) == (1, "")
        assert "use --size 256" in done.stderr
        done = msglog(server, "bench", "--window", "1025")
        assert (done.returncode, done.stdout) == (1, "")
        assert "use --window 1024" in done.stderr
        assert server.log.read_bytes() == b""

    def test_no_server(self) -> None:
        done = msglog(None, "bench")
        assert (done.returncode, done.stdout) == (1, "")
        assert "connection refused: no server listens there" in done.stderr


class TestPing:
    def test_terms(self, make_server) -> None:
        server = make_server("--max-message-bytes", "300", "--window", "50").start()
        done = msglog(server, "ping", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert (found["version"], found["longest_body"], found["window"]) == (1, 300, 50)
        assert 0 < found["round_trip_ms"] < 10_000
        assert 0 < found["connect_ms"] < 10_000

    def test_count(self, server: Server) -> None:
        """Several times, and the sum of it; nothing is logged."""
        done = msglog(server, "ping", "--count", "3", "--interval", "0.01")
        lines = done.stdout.splitlines()
        assert len(lines) == 4
        assert lines[3].startswith("3 of 3 answered: ")
        assert done.returncode == 0
        assert server.log.read_bytes() == b""

    def test_quiet(self, server: Server) -> None:
        done = msglog(server, "ping", "-q")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_no_server(self) -> None:
        done = msglog(None, "ping")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.endswith("connection refused: no server listens there\n")
        done = msglog(None, "ping", "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "")

    def test_silent(self, silent: Server) -> None:
        """What accepts and does not answer is not healthy, and does not make ping hang."""
        done = msglog(silent, "ping", "--timeout", "0.2")
        assert done.returncode == 1
        assert "no answer within 0.2 s" in done.stderr

    def test_back_again(self, make_server) -> None:
        """A server that was restarted is connected to anew."""
        server = make_server().start()
        process = subprocess.Popen(
            [
                *(str(BIN / "msglog"), "ping", "--json", "--count", "0", "--interval", "0.02"),
                *("--server", f"127.0.0.1:{server.port}"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert "round_trip_ms" in process.stdout.readline()
            server.stop()
            while "refused" not in process.stdout.readline():
                pass
            server.start()
            while "round_trip_ms" not in process.stdout.readline():
                pass
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert process.returncode == 130

    @pytest.mark.parametrize("package", ["click", "google_crc32c"])
    def test_ctrl_c_while_it_loads(self, tmp_path: Path, package: str) -> None:
        """Whatever it still loads, it ends with 130 and without a word."""
        (tmp_path / f"{package}.py").write_text(
            "import time\nprint('loading', flush=True)\ntime.sleep(60)\n"
        )
        with subprocess.Popen(
            [str(BIN / "msglog"), "ping"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (130, "")
