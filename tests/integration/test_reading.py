"""C{msglog tail}, C{cat}, C{verify} and C{stats} as they are used: pipes, terminals, Ctrl-C."""

from __future__ import annotations

import fcntl
import gzip
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte
import pytest
import wire
from conftest import BIN, Server, wait_until

from tests.logs import TEN, A, B, commit, minutes

MSGLOG = str(BIN / "msglog")


def msglog(*args: object, **more: object) -> subprocess.CompletedProcess[str]:
    command = [MSGLOG, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


def in_terminal(width: int, *args: object) -> list[str]:
    """What a terminal shows at the end, with its lines as wide as it is."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 60, width, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color"}
        environment.pop("COLUMNS", None)
        environment.pop("NO_COLOR", None)
        os.execve(MSGLOG, [MSGLOG, *map(str, args)], environment)
    screen = pyte.Screen(width, 60)
    stream = pyte.ByteStream(screen)
    with open(terminal, "rb", buffering=0) as output:
        try:
            while data := output.read(4096):
                stream.feed(data)
        except OSError:  # EIO: nobody has the other side open any more
            pass
    os.waitpid(pid, 0)
    return [line.rstrip() for line in screen.display if line.strip()]


class Following:
    """A C{tail -f}, and what it has said so far."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self.process = process
        self._folder = folder

    def shown(self) -> str:
        return (self._folder / "shown").read_text()

    def said(self) -> str:
        return (self._folder / "said").read_text()

    def bodies(self) -> list[str]:
        return [line.split(" ")[-1] for line in self.shown().splitlines()]

    def end(self, how: int) -> int:
        self.process.send_signal(how)
        return self.process.wait(20)


@contextmanager
def following(folder: Path, *args: object) -> Iterator[Following]:
    with (folder / "shown").open("wb") as shown, (folder / "said").open("wb") as said:
        command = [MSGLOG, "tail", "-f", *map(str, args)]
        process = subprocess.Popen(command, stdout=shown, stderr=said)
    try:
        yield Following(process, folder)
    finally:
        process.kill()
        process.wait()


def numbers(first: int, last: int) -> list[str]:
    return [str(n) for n in range(first, last + 1)]


class TestFollow:
    def test_server_that_rotates(self, server: Server) -> None:
        """Every message of a real server, through rotations, in order."""
        with (
            following(server.folder, server.log) as tail,
            wire.Connection(server.port) as client,
        ):
            for number in range(1, 61):
                client.log(A, number, b"%d" % number)
                if number == 1:
                    wait_until(lambda: tail.bodies() == ["1"], "the first message")
                if number % 20 == 0:
                    server.log.rename(server.folder / f"messages.jsonl.{number}")
                    server.hang_up()
            wait_until(lambda: tail.bodies()[-1:] == ["60"], "the last message")
            assert tail.bodies() == numbers(1, 60)
            assert tail.end(signal.SIGINT) == 130
            assert "Traceback" not in tail.said()

    def test_waits_and_goes_on(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        with following(tmp_path, log) as tail:
            wait_until(lambda: "is not there; waiting for it" in tail.said(), "a remark")
            log.write_bytes(minutes(20)[:-5])
            wait_until(lambda: tail.bodies() == numbers(1, 19), "whole lines")
            with log.open("ab") as file:
                file.write(minutes(20)[-5:])
            wait_until(lambda: tail.bodies() == numbers(1, 20), "the rest")
            assert tail.end(signal.SIGINT) == 130
            assert tail.said().count("\n") == 2

    def test_last_ones_of_rotated(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_bytes(minutes(3, first=11))
        (tmp_path / "log.1.gz").write_bytes(gzip.compress(minutes(10)))
        with following(tmp_path, "-n", 5, log) as tail:
            wait_until(lambda: tail.bodies() == numbers(9, 13), "the last ones")
            with log.open("ab") as file:
                file.write(minutes(1, first=14))
            wait_until(lambda: tail.bodies() == numbers(9, 14), "the next one")

    def test_reader_that_ends(self, tmp_path: Path) -> None:
        """C{tail -f | head} ends with head, though nothing more is logged."""
        (tmp_path / "log").write_bytes(minutes(5))
        done = subprocess.run(
            f"{MSGLOG} tail -f log | head -n 1",
            cwd=tmp_path,
            shell=True,
            timeout=20,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_idle_costs_little(self, tmp_path: Path) -> None:
        """It does not spin."""
        (tmp_path / "log").write_bytes(minutes(5))
        with following(tmp_path, tmp_path / "log") as tail:
            wait_until(lambda: len(tail.bodies()) == 5, "the log")
            stat = Path(f"/proc/{tail.process.pid}/stat")
            before = sum(map(int, stat.read_text().split()[13:15]))
            time.sleep(2)
            ticks = sum(map(int, stat.read_text().split()[13:15])) - before
            assert ticks / os.sysconf("SC_CLK_TCK") < 0.1


class TestPipes:
    def test_head(self, tmp_path: Path) -> None:
        """A reader that has read enough is no error."""
        (tmp_path / "log").write_bytes(minutes(20_000))
        for command in ("cat log", "cat --json log", "tail -n 20000 log"):
            done = subprocess.run(
                f"{MSGLOG} {command} | head -n 1; echo ${{PIPESTATUS[0]}}",
                shell=True,
                executable="/bin/bash",
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert done.stderr == ""
            assert done.stdout.splitlines()[-1] == "0"

    def test_standard_input(self, tmp_path: Path) -> None:
        data = minutes(300)
        for content in (data, gzip.compress(data)):
            for command in ("cat", "verify", "stats"):
                done = subprocess.run(
                    [MSGLOG, command, "-"], input=content, capture_output=True, timeout=30
                )
                assert (done.returncode, done.stderr) == (0, b"")
                expected = {"cat": b" 300 300\n", "verify": b"300 records", "stats": b"s  300 in"}
                assert expected[command] in done.stdout
        done = subprocess.run(
            [MSGLOG, "tail", "-"], input=data, capture_output=True, timeout=30, cwd=tmp_path
        )
        assert done.returncode == 1
        assert b"msglog cat - | tail" in done.stderr

    @pytest.mark.parametrize("command", ["cat", "tail", "verify", "stats", "verify --json"])
    def test_output_that_cannot_be_written(self, tmp_path: Path, command: str) -> None:
        """A full disk, or no output at all, is said in one line, and is no success."""
        (tmp_path / "log").write_bytes(minutes(300))
        for where, reason in ((">/dev/full", "No space left"), (">&-", "stdout or stderr is clo")):
            done = subprocess.run(
                f"{MSGLOG} {command} log {where}",
                shell=True,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert done.returncode == 1
            assert len(done.stderr.splitlines()) == 1
            assert reason in done.stderr

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_bytes(commit(TEN, (A, 1, [b"a\xff", b"b\xfe"])))
        found = subprocess.run(
            [MSGLOG, "cat", "--raw", "--grep", b"\xfe", tmp_path / "log"],
            capture_output=True,
            timeout=30,
        )
        assert found.stdout.strip() == b"b\xfe"

    def test_plain_in_a_file(self, tmp_path: Path) -> None:
        """No colours and no bar where there is no terminal."""
        (tmp_path / "log").write_bytes(minutes(9))
        for command in ("cat", "tail", "verify", "stats"):
            done = msglog(command, tmp_path / "log")
            assert "\x1b" not in done.stdout + done.stderr
            assert done.stderr == ""

    def test_locale_without_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_bytes(commit(TEN, (A, 1, ["é".encode()])))
        environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        environment["PYTHONIOENCODING"] = "ascii"
        assert msglog("cat", tmp_path / "log", env=environment).stdout.endswith("1 \\xe9\n")
        done = msglog("stats", tmp_path / "log", env=environment)
        assert (done.returncode, done.stderr) == (0, "")


class TestTerminal:
    @pytest.mark.parametrize("width", [80, 200])
    def test_nothing_is_cut(self, tmp_path: Path, width: int) -> None:
        log = tmp_path / "log"
        log.write_bytes(commit(TEN, (A, 1, [b"x" * 300 + b"END\x1b[2J"]), (B, 1, [b"second"])))
        shown = in_terminal(width, "cat", log)
        text = "".join(line.ljust(width) for line in shown)
        assert "x" * 300 + "END\\x1b[2J" in text
        assert "2026-11-24T10:00:00.000000Z aaaaaaaaaaaa 1 x" in text
        assert shown[-1].endswith("bbbbbbbbbbbb 1 second")

    @pytest.mark.parametrize("width", [80, 200])
    def test_stats_fit(self, tmp_path: Path, width: int) -> None:
        (tmp_path / "log").write_bytes(minutes(600))
        shown = in_terminal(width, "stats", tmp_path / "log")
        assert any("█" in line for line in shown)
        assert shown[-1].endswith("KiB")
        assert not any(
            line.startswith(" ") and "┤" not in line and ":" not in line for line in shown
        )

    def test_verify(self, tmp_path: Path) -> None:
        """The bar is gone at the end."""
        (tmp_path / "log").write_bytes(minutes(600))
        shown = in_terminal(80, "verify", tmp_path / "log")
        assert len(shown) == 3
        assert shown[-1] == "whole: nothing is damaged, missing or out of order"


def processes_of(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


class TestInterrupted:
    @pytest.fixture
    def scan(self, tmp_path: Path) -> Iterator[subprocess.Popen]:
        """A verify in the middle of its work, in a process group of its own."""
        part = minutes(2000)
        with (tmp_path / "log").open("wb") as log:
            for _ in range(500):
                log.write(part)
        process = subprocess.Popen(
            [MSGLOG, "verify", "--jobs", "3", "log"],
            cwd=tmp_path,
            stdout=-1,
            stderr=-1,
            text=True,
            start_new_session=True,
        )
        wait_until(lambda: len(processes_of(process.pid)) == 4, "the start of all processes")
        yield process
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)

    def test_ctrl_c(self, scan: subprocess.Popen) -> None:
        """Ctrl-C reaches all processes; they end, and nothing is said but that."""
        os.killpg(scan.pid, signal.SIGINT)
        _, said = scan.communicate(timeout=20)
        assert scan.returncode == 130
        assert said.strip() == ""
        assert processes_of(scan.pid) == []

    def test_killed(self, scan: subprocess.Popen) -> None:
        """When the process that asks is killed, those that scan end by themselves."""
        scan.kill()
        scan.wait()
        wait_until(lambda: not processes_of(scan.pid), "the end of all processes")

    def test_one_is_killed(self, scan: subprocess.Popen) -> None:
        """When one that scans is killed, that is said, and no result is made up."""
        os.kill(max(processes_of(scan.pid)), signal.SIGKILL)
        shown, said = scan.communicate(timeout=30)
        assert scan.returncode == 1
        assert "whole" not in shown
        assert "was killed" in said.splitlines()[-1]
        assert "Traceback" not in said
