"""
What a power cut may leave of a disk: every state, from the notes of what was done and synced.

Theory of operation.  At a point between two operations, what was synced is on the disk.  Of the
rest, each of these is independent of all others, and a I{choice} names one alternative of each:

=====================  ==================================================================
names                  each making, renaming and removal since the folder was synced: done
                       or not, in whatever order the directory's blocks reached the disk
the ledger's database  the transaction that was last waited for, or any later one (SQLite
                       makes one of them of whatever a power cut leaves)
length of a file       any that it had since it was synced, any multiple of 512 bytes in
                       between, and some that are none
sector of a file       any content that these 512 bytes had since the file was synced; zeros
                       where the file was shorter (its length reached the disk, they did not)
=====================  ==================================================================

A sync that fails says that the kernel may have given up: no later one writes what was written
before it; what a start reads is then what the disk has, once it has forgotten the rest.

So a write that is not synced may be there, not at all, its first half, any set of its sectors or
pages, or its length alone.  Alternative 0 of everything is "done, as a program last saw it".

This is more than any file system in use does: ext4 and XFS keep the names' changes in order, and
never show a length before its data.  What recovers from all of it needs none of that.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from math import prod

from .memory_disk import EMPTY, LEDGER, Inode, MemoryDisk, Snapshot, State

__all__ = ["SECTOR", "Choice", "PowerCut"]

SECTOR = 512
_PAGE_SECTORS = 8

Choice = tuple[int, ...]


class _File:
    """The alternatives of a file that is not synced."""

    def __init__(self, synced: bytes, later: Sequence[bytes], rng: random.Random) -> None:
        stages = [*reversed(later), synced]
        begin = min(map(_common, later, [synced, *later]))
        self.begin = begin // SECTOR * SECTOR
        self.head = synced[: self.begin]
        end = max(map(len, stages))
        self.sectors: list[list[bytes]] = []
        for at in range(self.begin, end, SECTOR):
            contents = [stage[at : at + SECTOR].ljust(SECTOR, b"\0") for stage in stages]
            self.sectors.append(list(dict.fromkeys(contents)))
        lengths = dict.fromkeys(map(len, stages))
        low, high = min(lengths), max(lengths)
        between = list(range((low // SECTOR + 1) * SECTOR, high, SECTOR))
        if len(between) > 8:
            between = sorted(rng.sample(between, 8))
        odd = [rng.randrange(low, high) for _ in range(3)] if high > low else []
        self.lengths = list(dict.fromkeys([*lengths, *between, *odd]))
        self.dimensions = [len(self.lengths), *map(len, self.sectors)]

    def content(self, choice: Sequence[int]) -> bytes:
        length = self.lengths[choice[0]]
        parts = [sector[n] for sector, n in zip(self.sectors, choice[1:], strict=True)]
        return (self.head + b"".join(parts))[:length]


def _common(one: bytes, other: bytes) -> int:
    """How many bytes at the beginning of both are the same, or that one of them is shorter by."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(n for n in range(length) if one[n] != other[n])


class PowerCut:
    """
    All that a power cut may leave at a point.

    @param disk: what was done.
    @param point: how many of its notes were begun and done.
    @param deletable: whether somebody may have deleted the ledger, too.
    @ivar dimensions: how many alternatives each part of a choice has.
    @ivar size: how many choices there are.
    """

    def __init__(self, disk: MemoryDisk, point: int, deletable: bool = False) -> None:
        # The same for the same point, or a choice would not name the same state twice.
        rng = random.Random(point)
        names: dict[str, Inode] = dict(disk.base)
        self._moves: list[tuple] = []
        has_ledger = disk.ledger_base is not None
        ledgers: list[Snapshot | None] = [disk.ledger_base]
        synced: dict[Inode, bytes] = {}
        later: dict[Inode, list[bytes]] = {}
        clean: set[Inode] = set()  # by the kernel's word, after a sync that failed
        for note in disk.notes[:point]:
            match note:
                case "write", inode, data:
                    stages = later.setdefault(inode, [])
                    now = stages[-1] if stages else synced.get(inode, inode.base)
                    stages.append(now + data)
                case "cut", inode, size:
                    stages = later.setdefault(inode, [])
                    now = stages[-1] if stages else synced.get(inode, inode.base)
                    stages.append(now[:size].ljust(size, b"\0"))
                case "failed sync", inode:
                    clean.add(inode)
                case "forget", inode, data:
                    later.setdefault(inode, []).append(data)
                    clean.discard(inode)
                case "sync", inode if inode not in clean:
                    stages = later.pop(inode, [])
                    if stages:
                        synced[inode] = stages[-1]
                case ("sync folder",):
                    for move in self._moves:
                        has_ledger |= _move(names, move)
                    self._moves = []
                case "commit", snapshot, durable:
                    if durable:
                        ledgers = []
                    ledgers.append(snapshot)
                case ("sync", _):
                    pass  # and so nothing is written
                case _:
                    self._moves.append(note)
                    if note[:2] == ("make", LEDGER):
                        ledgers = [EMPTY]
        self._names = names
        self._has_ledger = has_ledger
        self._ledgers = [*ledgers[::-1], None] if deletable else ledgers[::-1]
        self._synced = synced
        self._files = {
            inode: _File(synced.get(inode, inode.base), s, rng) for inode, s in later.items()
        }
        self.dimensions = [2] * len(self._moves) + [len(self._ledgers)]
        for file in self._files.values():
            self.dimensions += file.dimensions
        self.size = prod(self.dimensions)

    def state(self, choice: Choice) -> State:
        """
        What a choice leaves.

        @raise ValueError: it is a choice of another point, or of other code.
        """
        if len(choice) != len(self.dimensions):
            raise ValueError(f"a choice of {len(choice)} parts, where there are {self.dimensions}")
        names, has_ledger = self._names, self._has_ledger
        at = len(self._moves)
        if at:
            names = dict(names)
            for move, undone in zip(self._moves, choice, strict=False):
                if not undone:
                    has_ledger |= _move(names, move)
        ledger = self._ledgers[choice[at]] if has_ledger else None
        at += 1
        contents = self._synced
        if self._files:
            contents = dict(contents)
            for inode, file in self._files.items():
                end = at + len(file.dimensions)
                contents[inode] = file.content(choice[at:end])
                at = end
        return State(
            {name: contents.get(inode, inode.base) for name, inode in names.items()}, ledger
        )

    def every(self) -> Iterator[Choice]:
        """All choices."""
        return product(*map(range, self.dimensions))

    def small(self) -> Iterator[Choice]:
        """All, and nothing, of what is not synced; and all but, or only, one or two parts."""
        newest = (0,) * len(self.dimensions)
        oldest = tuple(count - 1 for count in self.dimensions)
        for near, far in ((newest, oldest), (oldest, newest)):
            yield near
            for parts in (1, 2):
                for changed in combinations(range(len(near)), parts):
                    choice = list(near)
                    for part in changed:
                        choice[part] = far[part]
                    yield tuple(choice)

    def sample(self, rng: random.Random) -> Choice:
        """Any choice: sectors alone, in whole pages, or as a hole, a beginning or an end."""
        dimensions = self.dimensions
        kind = rng.randrange(6)
        if kind < 2:
            return tuple(int(rng.random() * count) for count in dimensions)
        if kind == 2:
            likely = rng.choice((0.1, 0.3, 0.8, 0.95))
            return tuple(
                0 if rng.random() < likely else int(rng.random() * count) for count in dimensions
            )
        choice = [int(rng.random() * count) for count in dimensions[: len(self._moves) + 1]]
        for file in self._files.values():
            # A length that keeps something of what follows, more often than not.
            length = 0 if rng.random() < 0.6 else int(rng.random() * len(file.lengths))
            sectors = [0] * len(file.sectors)
            begin, end = sorted(rng.choices(range(len(sectors) + 1), k=2))
            if kind == 3:
                first = file.begin // SECTOR
                pages = {(first + n) // _PAGE_SECTORS for n in range(len(sectors))}
                lost = {page for page in sorted(pages) if rng.random() < 0.5}
                chosen = [n for n in range(len(sectors)) if (first + n) // _PAGE_SECTORS in lost]
            elif kind == 4:
                chosen = list(range(begin, end))
            else:
                chosen = [*range(begin), *range(end, len(sectors))]
            for n in chosen:
                sectors[n] = len(file.sectors[n]) - 1
            choice += [length, *sectors]
        return tuple(choice)


def _move(names: dict[str, Inode], note: tuple) -> bool:
    """Change a folder's names; whether the ledger's was made."""
    match note:
        case "make", name, inode:
            if name == LEDGER:
                return True
            names[name] = inode
        case "rename", old, new:
            if old in names:
                names[new] = names.pop(old)
        case "remove", name:
            names.pop(name, None)
    return False
