"""C{msglog send} against the real server, run as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pyte
import pytest
import wire
from conftest import BIN, Server, wait_until

LINES = 40_000


def command(server: Server, *arguments: str | Path) -> list[str]:
    address = f"127.0.0.1:{server.port}"
    return [str(BIN / "msglog"), "send", "--server", address, *map(str, arguments)]


def send(
    server: Server, *arguments: str | Path, given: bytes | None = None, status: int = 0
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        command(server, *arguments),
        input=given or b"",
        cwd=server.folder,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr, done.stderr
    return done


def logged(server: Server) -> list[bytes]:
    """All messages, of one client or several, each client's in order and without gaps."""
    server.stop()
    return [body for bodies in wire.read_logs(server.log).values() for body in bodies]


@pytest.fixture
def lines(tmp_path: Path) -> list[bytes]:
    """What is in the file C{lines}."""
    made = [b"%d of a log, with some text to it" % n for n in range(LINES)]
    (tmp_path / "lines").write_bytes(b"\n".join(made))
    return made


class TestSend:
    def test_files_and_pipe(self, server: Server, lines: list[bytes]) -> None:
        """Any bytes, in order, each once, and their receipts."""
        odd = [b"", b"\xff\x00", "é\r".encode(), b"last"]
        done = send(server, "--json", "lines", "-", given=b"\n".join(odd))
        assert done.stderr == b""
        receipts = [json.loads(line) for line in done.stdout.splitlines()]
        assert [receipt["seq"] for receipt in receipts] == list(range(1, LINES + 5))
        assert logged(server) == lines + odd
        records = [json.loads(line) for line in server.log.read_bytes().splitlines()]
        assert [record["crc"] for record in records] == [receipt["crc"] for receipt in receipts]

    def test_pipe_that_stays_open(self, server: Server) -> None:
        """Lines are sent, and their receipts printed, when they come."""
        with subprocess.Popen(
            command(server, "--json"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as sending:
            assert sending.stdin is not None
            assert sending.stdout is not None
            for number in range(1, 4):
                sending.stdin.write(b"line\n")
                sending.stdin.flush()
                assert json.loads(sending.stdout.readline())["seq"] == number
            sending.stdin.close()
            assert sending.wait(20) == 0

    def test_too_long(self, server: Server) -> None:
        """Never half of a line, never without a word, and those before it are logged."""
        given = b"a\n" + b"x" * 257 + b"\nb\n"
        done = send(server, given=given, status=1)
        assert b"standard input:2: 257 bytes are too long, the server takes 256" in done.stderr
        send(server, "--skip-too-long", given=given, status=1)
        assert logged(server) == [b"a", b"a", b"b"]

    def test_known_client(self, server: Server) -> None:
        """A client id that is kept goes on with its next sequence."""
        client = "019ac1f2-7b3c-7d4e-8f50-61728394a5b6"
        for expected in (1, 2):
            done = send(server, "--client", client, "-m", "x")
            assert f"client {client}, sequence {expected}, crc ".encode() in done.stderr

    def test_server_killed(self, server: Server, lines: list[bytes]) -> None:
        """A server that dies and comes back is no reason to stop, and nothing is there twice."""
        with subprocess.Popen(
            command(server, "lines"), cwd=server.folder, stderr=subprocess.PIPE
        ) as sending:
            for _ in range(2):
                size = server.log.stat().st_size if server.log.exists() else 0
                wait_until(lambda size=size: server.log.stat().st_size > size, "progress")
                server.kill()
                server.start()
            assert sending.stderr is not None
            said = sending.stderr.read()
            assert sending.wait(60) == 0, said
        assert logged(server) == lines

    def test_ctrl_c(self, server: Server, lines: list[bytes]) -> None:
        """What it says is acknowledged is what is logged."""
        with subprocess.Popen(
            command(server, "-"),
            cwd=server.folder,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as sending:
            assert sending.stdin is not None
            assert sending.stderr is not None
            sending.stdin.write(b"\n".join(lines))  # and it stays open
            sending.stdin.flush()
            wait_until(lambda: server.log.exists() and server.log.stat().st_size > 0, "progress")
            sending.send_signal(signal.SIGINT)
            said = sending.stderr.read().decode()
            assert sending.wait(20) == 130
        found = logged(server)
        assert found == lines[: len(found)]
        count = f"{len(found):,} messages were acknowledged"
        assert said == f"msglog: interrupted: {count}, the last is standard input:{len(found)}\n"

    def test_nobody_reads(self, server: Server, lines: list[bytes]) -> None:
        """Receipts that nobody reads end it, with the word that not all was sent."""
        both = f"{' '.join(command(server, '--json', 'lines'))} | head -n 1"
        done = subprocess.run(
            ["bash", "-c", both], cwd=server.folder, capture_output=True, timeout=60
        )
        assert json.loads(done.stdout)["seq"] == 1
        assert b"nobody reads the receipts any more" in done.stderr

    def test_output_that_cannot_be_written(self, server: Server) -> None:
        """Receipts are a result, and what cannot be written of them is said; a remark is none."""
        for options, where, status, said in (
            ("--json", ">/dev/full", 1, "cannot write the receipts: No space left on device; 1 me"),
            ("", ">/dev/full", 0, "1 message was acknowledged"),
            ("", "2>/dev/full", 0, ""),
        ):
            line = f"{' '.join(command(server, '-m', 'x', options))} {where}"
            done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
            assert done.returncode == status, line
            assert said in done.stderr
            assert len(done.stderr.splitlines()) == bool(said)
        assert logged(server) == [b"x"] * 3


class TestSpool:
    def test_killed(self, server: Server, lines: list[bytes]) -> None:
        """However often it is killed, run again it goes on: every line once, in order."""
        arguments = command(server, "--spool", "spool", "lines")
        interrupted = 0
        for attempt in range(200):
            with subprocess.Popen(
                arguments, cwd=server.folder, stderr=subprocess.PIPE, start_new_session=True
            ) as sending:
                try:
                    # Some die while they read, some while they wait for the last receipts.
                    sending.wait(0.35 + 0.07 * attempt)
                except subprocess.TimeoutExpired:
                    os.killpg(sending.pid, signal.SIGKILL)
                    interrupted += 1
                assert sending.stderr is not None
                said = sending.stderr.read()
                # Killed when it had said that all is done, it was done: the file is new again.
                # So it was if it was killed before it said so, and the next one found no more.
                if b"messages/s" in said or b"nothing to send" in said:
                    break
                assert sending.wait() == -signal.SIGKILL, said
        assert interrupted >= 2
        assert logged(server) == lines

    def test_killed_once_it_is_spooled(self, server: Server, lines: list[bytes]) -> None:
        """Without its server it spools; the same again sends that, and then the file is new."""
        server.kill()
        done = send(server, "--spool", "spool", "--timeout", "1", "lines", status=1)
        assert f"{LINES:,} wait in spool; the same command goes on".encode() in done.stderr
        server.start()
        done = send(server, "--spool", "spool", "lines")
        assert f"{LINES:,} of them left in the spool before".encode() in done.stderr
        send(server, "--spool", "spool", "lines")
        assert logged(server) == lines + lines

    def test_drained(self, server: Server) -> None:
        """Without anything to read, what is in the spool is sent, and that is all."""
        server.kill()
        send(server, "--spool", "spool", "--timeout", "0", "-m", "a", "-m", "b", status=1)
        server.start()
        send(server, "--spool", "spool")
        assert logged(server) == [b"a", b"b"]

    def test_several_files(self, server: Server, lines: list[bytes]) -> None:
        """A kill in the second file leaves the first one remembered."""
        (server.folder / "more").write_bytes(b"".join(b"more %d\n" % n for n in range(LINES)))
        (server.folder / "first").write_bytes(b"first\n")
        arguments = command(server, "--spool", "spool", "first", "lines", "more")
        with subprocess.Popen(arguments, cwd=server.folder, start_new_session=True) as sending:
            wait_until(lambda: server.log.exists() and server.log.stat().st_size > 0, "progress")
            os.killpg(sending.pid, signal.SIGKILL)
        done = send(server, "--spool", "spool", "first", "lines", "more")
        assert b"first: going on at byte 6" in done.stderr
        found = logged(server)
        assert found == [b"first", *lines, *(b"more %d" % n for n in range(LINES))]

    def test_conflict(self, server: Server) -> None:
        """A log that was lost is said, the spool keeps what it has, and a new id helps."""
        send(server, "--spool", "spool", "-m", "one")
        server.stop()
        for file in server.folder.glob("messages.jsonl*"):
            file.unlink()
        server.start()
        done = send(server, "--spool", "spool", "-m", "two", status=1)
        assert b"take a new client id" in done.stderr
        send(server, "--spool", "spool", "--new-client")
        assert logged(server) == [b"two"]

    def test_in_use(self, server: Server) -> None:
        with subprocess.Popen(
            command(server, "--spool", "spool", "--json"),
            cwd=server.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as sending:
            assert sending.stdin is not None
            assert sending.stdout is not None
            sending.stdin.write(b"x\n")
            sending.stdin.flush()
            sending.stdout.readline()
            done = send(server, "--spool", "spool", "-m", "y", status=1)
            assert done.stderr == b"msglog: the spool spool is in use by another process\n"
            sending.stdin.close()
            assert sending.wait(20) == 0


class TestErrors:
    def test_no_server(self, make_server) -> None:
        server = make_server()
        begun = time.monotonic()
        done = send(server, "--timeout", "0.5", "-m", "x", status=1)
        assert time.monotonic() - begun < 10
        assert b"Connection refused; given up" in done.stderr
        assert b"Errno" not in done.stderr
        assert done.stderr.splitlines()[-1].endswith(b"0 messages were acknowledged")

    def test_name(self) -> None:
        command = [BIN / "msglog", "send", "-s", "no.such.invalid:1", "-t", "1", "-m", "x"]
        done = subprocess.run(command, capture_output=True, timeout=30)
        assert done.returncode == 1
        assert b"no.such.invalid" in done.stderr.splitlines()[-1]


class TestTerminal:
    @pytest.mark.parametrize("columns", [80, 200])
    def test_bar(self, server: Server, lines: list[bytes], columns: int) -> None:
        """A bar on one line while it lasts, and nothing left of it at the end."""
        (server.folder / "lines").write_bytes(b"\n".join(lines * 3))
        screen = pyte.Screen(columns, 10)
        stream = pyte.ByteStream(screen)
        child, terminal = pty.fork()
        if not child:
            os.chdir(server.folder)
            size = {"COLUMNS": str(columns), "LINES": "10", "TERM": "xterm-256color"}
            arguments = command(server, "lines")
            os.execve(arguments[0], arguments, {**os.environ, **size})
        seen = set()
        while select.select([terminal], [], [], 60)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # it has ended
                break
            stream.feed(data)
            shown = [line.rstrip() for line in screen.display if line.strip()]
            assert len(shown) <= 2, shown
            seen.update(line for line in shown if line.startswith("lines  "))
        assert os.waitpid(child, 0)[1] == 0
        assert any(line.endswith(("0:00:00", "0:00:01", "0:00:02")) for line in seen), seen
        shown = [line.rstrip() for line in screen.display if line.strip()]
        assert shown[0].startswith(f"msglog: {3 * LINES:,} messages were acknowledged: "), shown
        assert shown[1].startswith("msglog: client ")
        assert len(shown) == 2
