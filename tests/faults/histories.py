"""
What happened before the crash: the real writer on a disk in memory, a history for each number.

Each kind of history is a function that drives a L{Run}; the numbers of messages, their lengths
and their clients come from a random generator with a seed, so a history can be had again by its
kind and its seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field, frozen

from msglog import Limits, NackCode, StoreFailed
from msglog._batch import STORED, Batch
from msglog._records import format_lines
from msglog._rotation_rule import RotationRule
from msglog._writer import Appending, Asking, LogWriter
from msglog.testing import make_batch

from .memory_disk import FOLDER, LOG, Killed, MemoryDisk

__all__ = [
    "HISTORIES",
    "Conversation",
    "Mark",
    "Run",
    "Settings",
    "Violation",
    "history",
    "mark_at",
]


class Violation(AssertionError):
    """A promise was broken."""


@frozen(kw_only=True)
class Settings:
    """
    How the server of a history is run.

    @ivar deletable: whether nothing is lost if somebody deletes the ledger.
    """

    limits: Limits = field(factory=lambda: Limits(min_free_bytes=0))
    sync: float = 0.0
    rotation: RotationRule = field(factory=RotationRule)
    deletable: bool = True

    def writer(
        self, disk: MemoryDisk, clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> LogWriter:
        return LogWriter(
            LOG,
            self.limits,
            self.sync,
            rotation=self.rotation,
            disk=disk,
            checkpoint=disk.checkpoint,
            clock=clock,
            monotonic=monotonic,
        )


@define(eq=False)
class Conversation:
    """
    What one client has to say, made up as it is wanted.

    @ivar bodies: its messages, from sequence 1 on.
    @ivar sent: how many of them were ever given to the writer.
    @ivar acked: how many of these were acknowledged.
    @ivar promised: how many of these a power cut must leave.
    """

    client: bytes
    body: Callable[[], bytes]
    bodies: list[bytes] = field(factory=list)
    sent: int = 0
    acked: int = 0
    promised: int = 0
    _entries: dict[tuple[int, int], Appending] = field(factory=dict)

    def entry(self, first: int, last: int) -> Appending:
        """Messages as the store hands them to the writer."""
        found = self._entries.get((first, last))
        if found is None:
            while len(self.bodies) < last:
                self.bodies.append(self.body())
            batch = make_batch(self.client, first, *self.bodies[first - 1 : last])
            found = self._entries[first, last] = Appending(batch, format_lines(batch))
        return found

    def forged(self, first: int, last: int) -> Appending:
        """The same sequences with other bytes."""
        found = self._entries.get((-first, -last))
        if found is None:
            right = self.entry(first, last).batch
            checksums = [checksum ^ 1 for checksum in right.checksums]
            batch = Batch(self.client, first, checksums, right.bodies)
            found = self._entries[-first, -last] = Appending(batch, format_lines(batch))
        return found


@frozen
class Mark:
    """From a number of notes on: what each client was promised, and what it has sent."""

    point: int
    promised: dict[bytes, int]
    sent: dict[bytes, int]


def mark_at(marks: Sequence[Mark], point: int) -> Mark:
    """The mark that holds at a point: the last of those with the highest number up to it."""
    return next(mark for mark in reversed(marks) if mark.point <= point)


class Run:
    """
    A server's life, and what its clients know of it.

    @param body: makes a message.
    @ivar later: how many seconds after the crash it is, by the clock, when the next start is.
    @ivar first: the points before this one are those of another history.
    """

    def __init__(
        self, rng: random.Random, settings: Settings, clients: int, body: Callable[[], bytes]
    ) -> None:
        self.rng = rng
        self.settings = settings
        self.disk = MemoryDisk()
        self.now = 1_790_000_000.0 + rng.randrange(10**8)
        self.elapsed = 0.0
        self.first = 0
        self.marks: list[Mark] = []
        self._late: list[tuple[float, Conversation, int]] = []
        self.clients: list[Conversation] = [
            Conversation(rng.randbytes(16), body) for _ in range(clients)
        ]
        # When the machine is started again, by its clock: later, at once, or it was set back.
        self.later = rng.choice((3600.0, 0.0, -86400.0))
        self._mark()

    def _mark(self) -> None:
        self.marks.append(
            Mark(
                len(self.disk.notes),
                {c.client: c.promised for c in self.clients},
                {c.client: c.sent for c in self.clients},
            )
        )

    def mark(self, point: int) -> Mark:
        """What was promised at a point."""
        return mark_at(self.marks, point)

    def start(self) -> None:
        """Start the server; what it acknowledged must be there."""
        self.writer = self.settings.writer(self.disk, lambda: self.now, lambda: self.elapsed)
        self.writer.open()
        for c in self.clients:
            (last,) = self.writer.commit([Asking(c.client)])
            assert isinstance(last, int)
            if not c.acked <= last <= c.sent:
                raise Violation(
                    f"after a kill the last sequence is {last}, of {c.sent} sent and {c.acked} "
                    f"acknowledged"
                )

    def stop(self) -> None:
        """Stop the server in peace."""
        self.writer.close()
        for c in self.clients:
            c.promised = c.acked
        self._mark()

    def pass_time(self) -> None:
        """Time passes; now and then the clock is set back."""
        step = self.rng.choice((0.0, 0.001, 0.5, 3.0))
        self.elapsed += step
        self.now += self.rng.choice((step, step, step, -step))

    def tick(self) -> None:
        """What the store has done between commits."""
        while self.writer.tick():
            pass
        self._grow_old()

    def _grow_old(self) -> None:
        """With C{--sync SECONDS}: what was acknowledged as long ago is promised."""
        while self._late and self.elapsed - self._late[0][0] >= self.settings.sync:
            _, c, last = self._late.pop(0)
            c.promised = max(c.promised, last)
        self._mark()

    def commit(self, *counts: int, again: int = 0) -> bool:
        """
        New messages of some clients in one commit: as many of each.

        @param again: how many that were acknowledged are sent again before these.
        @return: whether they were stored.
        """
        self.pass_time()
        some = zip(self.rng.sample(self.clients, len(counts)), counts, strict=True)
        return self._commit([(c, max(c.acked + 1 - again, 1), c.acked + n) for c, n in some])

    def resend(self) -> None:
        """Every client sends all again that it has no answer to, and some more."""
        window = self.settings.limits.window
        self._commit(
            [(c, max(c.acked - 2, c.sent - window + 1, 1), c.sent) for c in self.clients if c.sent]
        )

    def _commit(self, ranges: list[tuple[Conversation, int, int]]) -> bool:
        entries: list[Appending | Asking] = []
        for c, first, last in ranges:
            entries.append(c.entry(first, last))
            c.sent = max(c.sent, last)
        self._mark()
        results = self.writer.commit(entries)
        stored = True
        for (c, _, last), verdict in zip(ranges, results, strict=True):
            if verdict == STORED:
                c.acked = last
                self._late.append((self.elapsed, c, last))
            else:
                stored = False
                assert not isinstance(verdict, int)
                if {refusal.code for refusal in verdict.refusals} != {NackCode.NOT_STORED}:
                    raise Violation(f"a message is refused: {verdict}")
        self._grow_old()
        if self.writer.behind:
            self.tick()
        return stored

    def move_away(self, name: str) -> None:
        """Somebody else renames the log."""
        self.disk.rename(LOG, FOLDER / name)


Kind = Callable[[random.Random], tuple[Run, Callable[[Run], None]]]


def _tiny(rng: random.Random) -> Callable[[], bytes]:
    return lambda: rng.randbytes(3).hex().encode()[: rng.randrange(7)]


def _mixed(rng: random.Random) -> Callable[[], bytes]:
    def body() -> bytes:
        size = rng.choice((0, 20, 200, 400, 700))
        if rng.random() < 0.2:
            return rng.randbytes(size // 2)
        return (rng.choice(("x", "é", '"', "\n", "\u2028")) * size).encode()[:size] + b"."

    return body


def _large(rng: random.Random) -> Callable[[], bytes]:
    return lambda: rng.randbytes(rng.randrange(300, 1500)).hex().encode()


def _limits(**values: Any) -> Limits:
    return Limits(min_free_bytes=0, **values)


def one_client(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """A first start, then commits of one client's middling messages."""

    def drive(run: Run) -> None:
        run.start()
        for _ in range(rng.randrange(1, 4)):
            run.commit(rng.randrange(1, 8))

    return Run(rng, Settings(), 1, _mixed(rng)), drive


def many_clients(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """Commits of several clients, with resends of what was acknowledged."""

    def drive(run: Run) -> None:
        run.start()
        for _ in range(rng.randrange(2, 5)):
            counts = [rng.randrange(1, 5) for _ in range(rng.randrange(1, 5))]
            run.commit(*counts, again=rng.randrange(3))

    return Run(rng, Settings(), 4, _mixed(rng)), drive


def tiny_messages(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """Several records in each sector."""

    def drive(run: Run) -> None:
        run.start()
        for _ in range(3):
            run.commit(rng.randrange(1, 9), rng.randrange(1, 9))

    return Run(rng, Settings(), 2, _tiny(rng)), drive


def large_messages(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """Records over several sectors, commits over several pages."""

    def drive(run: Run) -> None:
        run.start()
        for _ in range(2):
            run.commit(rng.randrange(1, 5), rng.randrange(1, 4))

    return Run(rng, Settings(), 2, _large(rng)), drive


def checkpoints(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """The ledger is brought up to date between commits, and at two stops in peace."""

    def drive(run: Run) -> None:
        for _ in range(2):
            run.start()
            for _ in range(rng.randrange(1, 3)):
                run.commit(rng.randrange(1, 5), rng.randrange(1, 5))
            run.stop()
        run.start()
        run.commit(rng.randrange(1, 7))

    return Run(rng, Settings(limits=_limits(checkpoint_bytes=1000)), 3, _mixed(rng)), drive


def forgetful_ledger(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """More clients than the ledger has in memory, a window of a few messages."""
    limits = _limits(window=4)
    # Less than may be chosen, for a few clients to fill it.
    object.__setattr__(limits, "ledger_memory", 2500)

    def drive(run: Run) -> None:
        run.start()
        for _ in range(rng.randrange(3, 6)):
            run.commit(*[rng.randrange(1, 4) for _ in range(rng.randrange(2, 6))], again=1)

    return Run(rng, Settings(limits=limits), 8, _tiny(rng)), drive


def rotation_by_size(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """The server goes on in a new file of its own accord, and may delete old ones."""
    keep = rng.choice((0, 0, 1))

    def drive(run: Run) -> None:
        run.start()
        for _ in range(rng.randrange(2, 6)):
            run.commit(rng.randrange(1, 5), rng.randrange(1, 5))
            run.tick()

    rule = RotationRule(max_bytes=1500, keep=keep)
    return Run(rng, Settings(rotation=rule, deletable=not keep), 3, _mixed(rng)), drive


def rotation_by_rename(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """The log is renamed under the server, with SIGHUP or without, and while there is none."""

    def drive(run: Run) -> None:
        run.start()
        for number in range(1, 4):
            run.commit(rng.randrange(1, 5), rng.randrange(1, 5))
            if rng.random() < 0.3:
                run.stop()
                run.start()
            if rng.random() < 0.7:
                run.move_away(f"log.{number}")
                if rng.random() < 0.5:
                    run.writer.reopen()
        run.commit(rng.randrange(1, 5))

    return Run(rng, Settings(), 3, _mixed(rng)), drive


def full_disk(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """A write finds no room for all of it and is taken back; then there is room again."""

    def drive(run: Run) -> None:
        run.start()
        run.commit(rng.randrange(1, 4), rng.randrange(1, 4))
        for _ in range(rng.randrange(1, 3)):
            run.disk.room = rng.randrange(3000)
            run.commit(rng.randrange(5, 8), rng.randrange(3, 5))
            run.disk.room = None
            run.commit(rng.randrange(1, 6))

    return Run(rng, Settings(), 2, _mixed(rng)), drive


def lazy_sync(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """C{--sync SECONDS}: several commits are not on the disk yet when they are acknowledged."""

    def drive(run: Run) -> None:
        run.start()
        for number in range(rng.randrange(3, 8)):
            run.commit(rng.randrange(1, 4), rng.randrange(1, 4))
            if rng.random() < 0.2:
                run.move_away(f"log.{number}")
            for _ in range(rng.randrange(4)):
                run.elapsed += 0.5
                run.now += 0.5
                run.tick()

    limits = _limits(checkpoint_bytes=rng.choice((1500, 1 << 20)))
    settings = Settings(limits=limits, sync=2.0, deletable=False)
    return Run(rng, settings, 3, _mixed(rng)), drive


def failing_sync(rng: random.Random) -> tuple[Run, Callable[[Run], None]]:
    """A sync fails, the server ends and is started again, and the next syncs say all is well."""

    def drive(run: Run) -> None:
        run.start()
        for _ in range(rng.randrange(3)):
            run.commit(rng.randrange(1, 4), rng.randrange(1, 4))
        run.disk.failing = True
        try:
            run.commit(rng.randrange(1, 5), rng.randrange(1, 5))
        except StoreFailed:
            pass
        else:
            raise Violation("a sync failed, and the server goes on")
        run.disk.failing = False
        run.disk.kill()
        run.start()
        run.resend()
        run.commit(rng.randrange(1, 4))

    return Run(rng, Settings(), 2, _mixed(rng)), drive


HISTORIES = {
    kind.__name__: kind
    for kind in (
        one_client,
        many_clients,
        tiny_messages,
        large_messages,
        checkpoints,
        forgetful_ledger,
        rotation_by_size,
        rotation_by_rename,
        full_disk,
        lazy_sync,
        failing_sync,
    )
}


def history(kind: str, seed: int, kill: int | None = None, half: bool = False) -> Run:
    """
    A history, the same for the same arguments.

    @param kill: the process is killed when it begins the operation of this number, and started
        again; every client sends again.
    @param half: whether it is killed in the middle of that operation.
    """
    run, drive = HISTORIES[kind](random.Random(f"{kind} {seed}"))
    if kill is None:
        drive(run)
        return run
    run.disk.die_at, run.disk.die_half = kill, half
    try:
        drive(run)
    except Killed:
        pass
    else:
        raise AssertionError(f"the history has no operation {kill}")
    run.disk.kill()
    run.disk.die_at, run.disk.room, run.disk.failing = -1, None, False
    run.first = len(run.disk.notes)
    if kind == "rotation_by_rename" and LOG.name in run.disk.folder and run.rng.random() < 0.5:
        run.move_away("log.dead")
    run.pass_time()
    run.start()
    run.resend()
    run.commit(1)
    return run
