"""
Every state that a power cut may leave the disk in, one after the other, recovered from.

What was synced is there.  Of what was written since, any set of 512-byte sectors may be there and
the others zero, and the file may have any length up to the new one.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from msglog import Limits
from msglog._batch import STORED
from msglog._disk import Disk
from msglog._records import format_lines, parse_line
from msglog._writer import Appending, Asking, LogWriter
from msglog.testing import make_batch

SECTOR = 512
CLIENTS = [bytes([n]) * 16 for n in range(3)]


class Quick(Disk):
    """No waiting for the disk: the states are made by hand."""

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class CrashStates(SynchronousTestCase):
    def history(self, rng: random.Random, folder: Path) -> tuple[int, list]:
        """
        A log of some commits of which the last is not synced: the synced length, and what was
        acknowledged; the ledger is as it was when the server began.
        """
        writer = LogWriter(folder / "log", Limits(), disk=Quick())
        writer.open()
        logged: list[tuple[bytes, int, bytes]] = []
        acked = size = 0
        for _ in range(rng.randrange(2, 6)):
            acked, size = len(logged), (folder / "log").stat().st_size
            entries = []
            for client in rng.sample(CLIENTS, rng.randrange(1, 4)):
                first = 1 + sum(1 for c, *_ in logged if c == client)
                bodies = [rng.randbytes(rng.randrange(120)) for _ in range(rng.randrange(1, 5))]
                batch = make_batch(client, first, *bodies)
                entries.append(Appending(batch, format_lines(batch)))
                logged += [(client, first + i, body) for i, body in enumerate(bodies)]
            self.assertEqual(set(writer.commit(entries)), {STORED})
        for extra in ("log.ledger", "log.ledger-wal"):
            shutil.copy(folder / extra, folder / f"kept-{extra}")
        writer._abandon()
        for extra in ("log.ledger", "log.ledger-wal"):
            (folder / f"kept-{extra}").rename(folder / extra)
        return size, logged[:acked], logged[acked:]

    def states(self, rng: random.Random, data: bytes, synced: int):
        """What the file may be after the power cut."""
        yield data
        yield data[:synced]
        for _ in range(3):
            yield data[: rng.randrange(synced, len(data) + 1)]
        begin = synced // SECTOR
        sectors = range(begin, (len(data) + SECTOR - 1) // SECTOR)
        for _ in range(12):
            state = bytearray(data)
            for sector in sectors:
                if rng.random() < rng.choice([0.2, 0.5, 0.8]):
                    at, end = max(sector * SECTOR, synced), min((sector + 1) * SECTOR, len(data))
                    state[at:end] = bytes(end - at)
            length = rng.choice([len(data), rng.randrange(synced, len(data) + 1)])
            yield bytes(state[:length])

    def test_every_state(self) -> None:
        """What was acknowledged is there, once, in order; what was not can be sent again."""
        rng = random.Random(20261124)
        recovered = 0
        for _ in range(60):
            folder = Path(self.mktemp())
            folder.mkdir()
            synced, acked, unacked = self.history(rng, folder)
            data = (folder / "log").read_bytes()
            for number, state in enumerate(self.states(rng, data, synced)):
                again = Path(self.mktemp())
                shutil.copytree(folder, again)
                (again / "log").write_bytes(state)
                if number % 2:
                    (again / "log.ledger").unlink()
                    (again / "log.ledger-wal").unlink()
                self.recover(again, state, acked, unacked)
                shutil.rmtree(again)
                recovered += 1
            shutil.rmtree(folder)
        self.assertGreater(recovered, 900)

    def recover(self, folder: Path, state: bytes, acked: list, unacked: list) -> None:
        writer = LogWriter(folder / "log", Limits(), disk=Quick())
        kept = writer.open().kept
        left = (folder / "log").read_bytes()
        self.assertEqual(left + (kept.read_bytes() if kept else b""), state)
        for client, sequence, body in [*acked, *unacked]:
            batch = make_batch(client, sequence, body)
            self.assertEqual(writer.commit([Appending(batch, format_lines(batch))]), [STORED])
        every = [*acked, *unacked]
        lasts = [sum(1 for c, *_ in every if c == client) for client in CLIENTS]
        self.assertEqual(writer.commit([Asking(client) for client in CLIENTS]), lasts)
        writer.close()
        records = [parse_line(line) for line in (folder / "log").read_bytes().splitlines()]
        self.assertEqual([(r.client, r.sequence, r.body) for r in records], every)
        times = [r.time for r in records]
        self.assertEqual(times, sorted(times))
