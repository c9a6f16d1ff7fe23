"""C{msglog probe}: what a disk's trial finds, and what that means."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from unittest import mock

from attrs import evolve
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from msglog._disk import Disk
from msglog._disk_trial import Syncs
from msglog._disk_verdict import Findings, Grade, remarks_on, verdict_of
from msglog._mounts import Device, Mount, devices_of, mount_of
from msglog.cli import _probe
from msglog.cli._probe import probe
from msglog.testing import FaultyDisk

EXT4 = Mount("/", "ext4", "/dev/sda1", frozenset({"rw"}), "8:1")

GOOD = Findings(
    folder=Path("/log"),
    mount=EXT4,
    devices=(),
    free=1 << 40,
    size=1 << 41,
    syncs=(Syncs(400, 1000, 1e-3, 4e-3, 2e-2), Syncs(4096, 1000, 1e-3, 4e-3, 2e-2)),
    excludes=True,
    renames=True,
    reserves=True,
)


class VerdictTest(SynchronousTestCase):
    def judged(self, **changes: object) -> tuple[bool, list[tuple[Grade, str]]]:
        remarks = remarks_on(evolve(GOOD, **changes))
        return verdict_of(remarks)[0], [(remark.grade, remark.text) for remark in remarks]

    def one(self, fit: bool, grade: Grade, words: str, **changes: object) -> None:
        found, remarks = self.judged(**changes)
        self.assertEqual([remark[0] for remark in remarks], [grade], remarks)
        self.assertIn(words, remarks[0][1])
        self.assertEqual(found, fit)

    def mounted(self, kind: str, *options: str) -> Mount:
        return evolve(EXT4, kind=kind, options=frozenset(options))

    def test_good(self) -> None:
        """Nothing to say of a disk as it should be."""
        self.assertEqual(self.judged(), (True, []))

    def test_file_systems(self) -> None:
        """Those that keep nothing, or leave it to others, are no place for a log."""
        for kind, words in (
            ("tmpfs", "memory"),
            ("ramfs", "memory"),
            ("nfs4", "another machine"),
            ("cifs", "another machine"),
            ("9p", "the host"),
            ("fuse.sshfs", "that program"),
        ):
            self.one(False, Grade.DANGER, words, mount=self.mounted(kind))
        self.one(False, Grade.DANGER, "'barrier=0'", mount=self.mounted("ext4", "rw", "barrier=0"))
        self.one(False, Grade.DANGER, "'nobarrier'", mount=self.mounted("xfs", "nobarrier"))
        self.one(False, Grade.DANGER, "volatile", mount=self.mounted("overlay", "volatile"))
        self.one(True, Grade.CAUTION, "volume", mount=self.mounted("overlay"))
        self.one(True, Grade.NOTE, "does not say", mount=None)

    def test_devices(self) -> None:
        """Caches are told; a file that plays a disk is a reason to look further."""
        self.one(True, Grade.NOTE, "sda has a write cache", devices=(Device("sda", True, None),))
        self.one(True, Grade.NOTE, "write through", devices=(Device("sda", False, None),))
        loop = Device("loop0", True, "/images/a.img")
        self.one(True, Grade.CAUTION, "/images/a.img", devices=(loop,))
        self.assertEqual(self.judged(devices=(Device("sda", None, None),)), (True, []))

    def test_syncs(self) -> None:
        """Quicker than a device is dangerous, slow is only slow."""
        quick = (evolve(GOOD.syncs[0], p50=19e-6), GOOD.syncs[1])
        self.one(False, Grade.DANGER, "take 19.0 µs", syncs=quick)
        self.assertEqual(self.judged(syncs=(evolve(GOOD.syncs[0], p50=20e-6),)), (True, []))
        slow = (GOOD.syncs[0], evolve(GOOD.syncs[1], p99=0.051))
        self.one(True, Grade.CAUTION, "(of 4,096 bytes) takes more than 51 ms", syncs=slow)
        stalled = (GOOD.syncs[0], evolve(GOOD.syncs[1], worst=1.25))
        self.one(True, Grade.CAUTION, "took 1.2 s", syncs=stalled)

    def test_calls(self) -> None:
        """A lock or a rename that does not work is dangerous; no room set aside is not."""
        self.one(False, Grade.DANGER, "does not keep another process out", excludes=False)
        self.one(False, Grade.DANGER, "No locks available", excludes="No locks available")
        self.one(False, Grade.DANGER, "does not follow", renames=False)
        self.one(False, Grade.DANGER, "Invalid argument", renames="Invalid argument")
        self.one(True, Grade.NOTE, "set aside", reserves=False)

    def test_space(self) -> None:
        """Too little room is said."""
        self.one(True, Grade.CAUTION, "--min-free-bytes", free=(1 << 30) - 1)

    def test_weight(self) -> None:
        """What weighs most comes first, and decides."""
        fit, remarks = self.judged(reserves=False, free=0, excludes=False)
        self.assertEqual([grade for grade, _ in remarks], list(Grade))
        self.assertFalse(fit)


class MountsTest(SynchronousTestCase):
    def mounts(self, *lines: str) -> Path:
        path = Path(self.mktemp())
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def test_longest_and_last(self) -> None:
        """The innermost mount is the one, of several at one place the last; names are unescaped."""
        folder = Path(self.mktemp()).resolve() / "a b"
        (folder / "log").mkdir(parents=True)
        name = str(folder).replace(" ", "\\040")
        mounts = self.mounts(
            "1 0 8:1 / / rw,noatime shared:1 - ext4 /dev/sda1 rw,barrier=0",
            f"2 1 0:5 / {name} rw - nfs4 server:/a rw",
            f"3 1 0:6 / {name} rw - tmpfs tmpfs rw,size=1m",
            f"4 1 0:7 / {name}x rw - ramfs ramfs rw",
        )
        found = mount_of(folder / "log", mounts)
        assert found is not None
        self.assertEqual((found.point, found.kind), (str(folder), "tmpfs"))
        above = mount_of(folder.parent, mounts)
        assert above is not None
        self.assertEqual(above.options, {"rw", "noatime", "barrier=0"})

    def test_not_known(self) -> None:
        """A system without that list is no failure."""
        self.assertIsNone(mount_of(Path(), Path(self.mktemp())))

    def test_devices(self) -> None:
        """The disk below a partition, and those below what is put together of several."""
        sys = Path(self.mktemp()).resolve()
        for disk, cache in (("sda", "write back"), ("sdb", "write through")):
            queue = sys / "devices" / disk / "queue"
            queue.mkdir(parents=True)
            (queue / "write_cache").write_text(f"{cache}\n")
            (queue.parent / f"{disk}1").mkdir()
        slaves = sys / "devices" / "dm-0" / "slaves"
        slaves.mkdir(parents=True)
        (slaves.parent / "queue").mkdir()
        for part in ("sda/sda1", "sdb/sdb1"):
            (slaves / Path(part).name).symlink_to(sys / "devices" / part)
        numbers = sys / "dev" / "block"
        numbers.mkdir(parents=True)
        (numbers / "8:1").symlink_to(sys / "devices" / "sda" / "sda1")
        (numbers / "253:0").symlink_to(sys / "devices" / "dm-0")
        sda, sdb = Device("sda", True, None), Device("sdb", False, None)
        self.assertEqual(devices_of(EXT4, sys), (sda,))
        self.assertEqual(devices_of(evolve(EXT4, device="253:0"), sys), (sda, sdb))
        self.assertEqual(devices_of(evolve(EXT4, device="9:9"), sys), ())


class Told(FaultyDisk):
    """A disk whose syncs take as long as they are told to."""

    def __init__(self, *taken: float) -> None:
        super().__init__()
        self.now = 0.0
        self.taken = list(taken)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.now += self.taken[len(self.calls) % len(self.taken)]

    def seconds(self) -> float:
        return self.now


class ProbeTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()

    def probe(self, disk: Told) -> Findings:
        return probe(self.folder, 4.0, disk, disk.seconds)

    def test_measured(self) -> None:
        """Each size for its time, by the clock; what is written stays within its bounds."""
        disk = Told(0.01)
        found = self.probe(disk)
        self.assertEqual([syncs.size for syncs in found.syncs], [400, 4096, 65536, 1 << 20])
        for syncs in found.syncs:
            self.assertGreaterEqual(syncs.count, 90)
            self.assertAlmostEqual(syncs.worst, 0.01)
        self.assertEqual((found.excludes, found.renames), (True, True))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_slow(self) -> None:
        """However slow it is, there are three of each."""
        found = self.probe(Told(30.0))
        self.assertEqual([syncs.count for syncs in found.syncs], [3] * 4)

    def test_lock_lets_in(self) -> None:
        """A lock that everybody gets is found out."""
        disk = Told(0.1)
        disk.lock = lambda fd: True  # type: ignore[method-assign]
        self.assertIs(self.probe(disk).excludes, False)

    def test_calls_fail(self) -> None:
        """What a file system does not have is said in its words, and the rest is measured."""
        disk = Told(0.1)
        disk.errors = {"rename": errno.EINVAL}
        disk.lock = mock.Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))  # type: ignore[method-assign]
        disk.reserve = mock.Mock(side_effect=OSError(errno.EPERM, "Not permitted"))  # type: ignore[method-assign]
        found = self.probe(disk)
        self.assertEqual(found.reserves, "Not permitted")
        self.assertEqual(len(found.syncs), 4)
        self.assertEqual(found.excludes, "No locks available")
        self.assertIn("Invalid argument", str(found.renames))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_full(self) -> None:
        """A disk that is full is told in one line, and nothing stays there."""
        disk = Told(0.1)
        disk.room = 1000
        self.patch(_probe, "Disk", lambda: disk)
        result = CliRunner().invoke(_probe.command, [str(self.folder)])
        self.assertEqual(result.exit_code, 1)
        self.assertIn("cannot try the disk", result.output)
        self.assertIn("No space left", result.output)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_json(self) -> None:
        """One object with everything; its status is whether it is fit."""
        self.patch(_probe, "probe", lambda *_: evolve(GOOD, excludes=False))
        result = CliRunner().invoke(_probe.command, ["--json"], standalone_mode=False)
        self.assertEqual(result.return_value, 1)
        told = json.loads(result.output)
        self.assertEqual((told["fit"], told["remarks"][0]["grade"]), (False, "danger"))
        self.assertEqual(told["syncs"][0]["p99_ms"], 4.0)

    def test_real_reservation(self) -> None:
        """Room that is set aside is seen; a file stays empty."""
        disk = Disk()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            before = os.fstat(file.fileno()).st_blocks
            disk.reserve(file.fileno(), 0, 1 << 20)
            worked = os.fstat(file.fileno()).st_blocks > before
        self.assertIs(self.probe(Told(0.5)).reserves, worked)
