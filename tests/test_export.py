"""A stream written into one file: what it goes on from, and what it refuses to go on from."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from msglog import parse_line
from msglog._export import Export, ExportError
from msglog._records import format_fragments, format_time, opening
from msglog.testing import make_batch

A, B = bytes(range(16)), bytes(range(16, 32))


def message(client: bytes, first: int, time: int, *bodies: bytes) -> bytes:
    head = opening(format_time(time), client)
    return head + head.join(format_fragments(make_batch(client, first, *bodies)))


ONE, TWO, THREE = message(A, 1, 10, b"a", b"b"), message(B, 1, 20, b"x"), message(A, 3, 30, b"c")


class ExportTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.state = self.path.with_name(f"{self.path.name}.export")

    def export(self, created: str = "then", stream: str = "MSGLOG") -> Export:
        export = Export(self.path, stream, created)
        self.addCleanup(lambda: os.close(export._fd) if export._fd >= 0 else None)
        return export

    def close(self, export: Export) -> None:
        export.close()
        export._fd = -1

    def refused(self, **which) -> str:
        before = self.path.read_bytes() if self.path.exists() else None
        with self.assertRaises(ExportError) as caught:
            self.export(**which)
        self.assertEqual(self.path.read_bytes() if self.path.exists() else None, before)
        return str(caught.exception)

    def test_goes_on(self) -> None:
        """It writes what it is given, and the next time goes on behind that."""
        export = self.export()
        self.assertEqual(export.append([(1, ONE), (2, TWO)]), 3)
        self.close(export)
        export = self.export()
        self.assertEqual(export.position.sequence, 2)
        export.append([(3, THREE)])
        self.assertEqual(self.path.read_bytes(), ONE + TWO + THREE)

    def test_killed(self) -> None:
        """What a kill left behind what is counted is cut off, and written again."""
        export = self.export()
        export.append([(1, ONE)])
        self.close(export)
        with self.path.open("ab") as file:
            file.write(TWO[:20])
        export = self.export()
        export.append([(2, TWO)])
        self.assertEqual(self.path.read_bytes(), ONE + TWO)

    def test_killed_at_first(self) -> None:
        """An empty file without its position is a beginning."""
        self.path.touch()
        self.export().append([(1, ONE)])
        self.assertEqual(self.path.read_bytes(), ONE)

    def test_synced_before_counted(self) -> None:
        """The position is replaced when the lines are on the disk, and synced before it is."""
        export = self.export()
        done = []
        for name in ("fdatasync", "fsync"):
            real = getattr(os, name)
            self.patch(os, name, lambda fd, n=name, real=real: (done.append(n), real(fd)))
        keep = export._keep
        self.patch(export, "_keep", lambda position: (done.append("keep"), keep(position)))
        export.append([(1, ONE)])
        self.assertEqual(done, ["fdatasync", "keep", "fsync", "fsync"])

    def test_times_rise(self) -> None:
        """A message whose time is not later gets one that is; its records stay good."""
        export = self.export()
        export.append([(1, TWO), (2, ONE), (3, message(B, 2, 20, b"y"))])
        self.close(export)
        self.export().append([(4, THREE)])
        records = [parse_line(line) for line in self.path.read_bytes().splitlines(keepends=True)]
        self.assertEqual(
            [(r.time, r.client, r.sequence, r.body) for r in records],
            [
                (20, B, 1, b"x"),
                (21, A, 1, b"a"),
                (21, A, 2, b"b"),
                (22, B, 2, b"y"),
                (30, A, 3, b"c"),
            ],
        )

    def test_gap(self) -> None:
        """A message that is missing ends it; those before it are kept."""
        export = self.export()
        with self.assertRaises(ExportError) as caught:
            export.append([(1, ONE), (3, THREE)])
        self.assertIn("message 2 of the stream is missing", str(caught.exception))
        self.assertEqual(self.path.read_bytes(), ONE)
        self.assertEqual(export.position.sequence, 1)

    def test_not_a_message(self) -> None:
        """So does one that msglog has not written."""
        export = self.export()
        for data in (b"", b"hello\n", ONE.replace(b'"a"', b'"A"'), ONE[:-1]):
            self.assertRaises(ExportError, export.append, [(1, data)])
        self.assertEqual(self.path.read_bytes(), b"")

    def test_another_stream(self) -> None:
        """A stream of another name, or made again, does not go on in this file."""
        export = self.export()
        export.append([(1, ONE)])
        self.close(export)
        self.assertIn("another file", self.refused(created="later"))
        self.assertIn("another file", self.refused(stream="OTHER"))

    def test_cut(self) -> None:
        """Nor does a file that was cut."""
        export = self.export()
        export.append([(1, ONE)])
        self.close(export)
        os.truncate(self.path, 5)
        self.assertIn("somebody has cut it", self.refused())

    def test_no_export(self) -> None:
        """Nor one that is something else, or whose position is none."""
        self.path.write_bytes(ONE)
        self.assertIn("is no export", self.refused())
        for text in ("", "[]", '{"stream":"MSGLOG"}'):
            self.state.write_text(text)
            self.assertIn("does not say how far", self.refused())

    def test_in_use(self) -> None:
        """Two do not write one file."""
        self.export()
        self.assertIn("in use", self.refused())
