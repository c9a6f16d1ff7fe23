"""
A million states of the disk after a crash; and whether the disk in memory is like a real one.

Functions, not a test case of trial's: once is enough for a CI that runs both.
"""

from __future__ import annotations

import random
import re
from array import array
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from msglog._checkpoint import Checkpoint, ICheckpoint
from msglog._disk import Disk, IDisk
from msglog._ledger import ClientState
from msglog._writer import LogWriter

from .crash_checker import Checker, silence
from .crash_states import Tally, main, search
from .histories import HISTORIES, Run, history
from .memory_disk import FOLDER, LEDGER, MemoryDisk, Snapshot, State
from .power_cut import SECTOR, PowerCut

SEED = 20261125
STATES = 1_000_000


def test_a_million_states() -> None:
    """Whatever a crash leaves: no promise is broken."""
    tally = Tally()
    for unit in search(STATES, SEED):
        tally.add(unit)
    print(tally.told())
    assert tally.failure is None, "{1}\nhave it again with --replay '{0}'".format(*tally.failure)
    assert tally.total >= STATES
    assert len(tally.states) == 3
    assert 0 < tally.refused < tally.damaged


def test_command(capsys) -> None:
    """It says how much was looked at, and where to go on."""
    assert main(["--states", "1000", "--seed", "5", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "distinct states" in said
    assert re.search(r"go on with --seed 5 --start [1-9]", said)


class Quick(Disk):
    """No waiting: what is on the disk and what is not is not looked at here."""

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


@pytest.mark.parametrize("kind", HISTORIES)
def test_as_on_a_real_disk(tmp_path, kind) -> None:
    """From the same states, real files and a real SQLite come to the same, byte for byte."""
    rng = random.Random(kind)
    run = history(kind, 3)
    with silence() as said:
        checker = Checker(run, said)
        points = range(1, len(run.disk.notes) + 1)
        for number in range(12):
            point = rng.choice(points)
            cut = PowerCut(run.disk, point, run.settings.deletable)
            state, mark = cut.state(cut.sample(rng)), run.mark(point)
            now = run.now + run.later
            memory = checker.check(mark, state, now).disk
            folder = tmp_path / str(number)
            folder.mkdir()
            put(state, folder, run)
            writer = LogWriter(
                folder / "log",
                run.settings.limits,
                run.settings.sync,
                rotation=run.settings.rotation,
                disk=Quick(),
                clock=lambda now=now: now,
                monotonic=lambda: 0.0,
            )
            writer.open()
            checker.answer(mark, writer)
            assert writer._checkpointer is not None
            known = writer._checkpointer._checkpoint
            assert memory.ledger is not None
            assert known.coverage() == memory.ledger.coverage
            for client, (last, checksums) in memory.ledger.rows.items():
                row = known.load(client)
                assert row is not None
                assert (row.last, row.checksums.tobytes()[-len(checksums) :]) == (last, checksums)
            writer._abandon()
            files = {p.name: p.read_bytes() for p in folder.iterdir() if LEDGER not in p.name}
            assert files == memory.look().files


def put(state: State, folder: Path, run: Run) -> None:
    """Make real files of a state."""
    for name, data in state.files.items():
        (folder / name).write_bytes(data)
    if state.ledger is None:
        return
    checkpoint = Checkpoint(folder / LEDGER, run.settings.limits.window)
    if state.ledger.coverage is not None:
        rows = {
            client: ClientState(last, array("I", checksums))
            for client, (last, checksums) in state.ledger.rows.items()
        }
        for _ in checkpoint.write(rows, state.ledger.coverage, {}, durable=False):
            pass
    checkpoint.close()


def test_interfaces() -> None:
    """What the writer may ask of a disk, both can."""
    disk = MemoryDisk()
    assert verifyObject(IDisk, disk)
    assert verifyObject(IDisk, Disk())
    assert verifyObject(ICheckpoint, disk.checkpoint(FOLDER / LEDGER, 4))


def states(disk: MemoryDisk) -> list[dict[str, bytes]]:
    cut = PowerCut(disk, len(disk.notes))
    return [cut.state(choice).files for choice in cut.every()]


def test_what_a_power_cut_leaves() -> None:
    """Synced: that. Not synced: any sectors, any length of these, the names or not."""
    disk = MemoryDisk()
    fd = disk.open(FOLDER / "log")
    assert {bool(files) for files in states(disk)} == {False, True}
    disk.sync_folder(FOLDER)
    disk.write(fd, b"s" * 100)
    disk.sync(fd)
    assert states(disk) == [{"log": b"s" * 100}]
    disk.write(fd, b"n" * 1000)
    found = {files["log"] for files in states(disk)}
    whole = b"s" * 100 + b"n" * 1000
    assert all(data.startswith(b"s" * 100) for data in found)
    for data in (
        whole,
        whole[:100],
        whole[:512],
        whole[:100] + bytes(1000),
        whole[:512] + bytes(512) + whole[1024:],
        whole[:100] + bytes(412) + whole[512:],
    ):
        assert data in found
    disk.sync(fd)
    assert [files["log"] for files in states(disk)] == [whole]
    disk.cut(fd, SECTOR)
    disk.write(fd, b"m" * 300)
    found = {files["log"] for files in states(disk)}
    # The cut, the write after it, and what was there before, in every sector on its own.
    assert {whole, whole[:512], whole[:512] + b"m" * 300, whole[:812]} < found
    assert whole[:512] + b"m" * 300 + bytes(212) + whole[1024:] in found


def test_names_and_ledgers() -> None:
    """A rename is done or not; the ledger is the last that was waited for, or a later one."""
    disk = MemoryDisk(State({"log": b"old"}, None))
    disk.checkpoint(FOLDER / LEDGER, 4)
    empty = disk.ledger
    first, second = (Snapshot(None, {bytes(16): (n, b"")}) for n in (1, 2))
    disk.commit(first, durable=False)
    disk.sync_folder(FOLDER)
    disk.rename(FOLDER / "log", FOLDER / "log.1")
    disk.take_name(FOLDER / "log")
    assert {tuple(files.items()) for files in states(disk)} == {
        (("log", b"old"),),
        (("log.1", b"old"),),
        (("log", b""),),
        (("log.1", b"old"), ("log", b"")),
    }

    def ledgers() -> set[int]:
        cut = PowerCut(disk, len(disk.notes))
        return {id(cut.state(choice).ledger) for choice in cut.every()}

    assert ledgers() == {id(empty), id(first)}
    disk.commit(second, durable=True)
    assert ledgers() == {id(second)}
