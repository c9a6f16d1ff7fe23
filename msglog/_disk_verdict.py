"""What a disk's trial means for a log on it, in words."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from attrs import frozen

from ._disk_trial import Syncs
from ._limits import Limits
from ._mounts import Device, Mount

__all__ = ["Findings", "Grade", "Remark", "remarks_on", "verdict_of"]

# Quicker than this no append and its sync is on any device: the quickest, in a memory of their own
# that outlives power, take some 10 µs alone, and a file system as much again.
TOO_QUICK_SECONDS = 20e-6

# One in a hundred takes longer: clients notice.
SLOW_P99_SECONDS = 0.05

# One took longer: so long nobody got an answer.
SLOW_WORST_SECONDS = 1.0


class Grade(Enum):
    """How much a remark weighs."""

    DANGER = "danger"  # an ACK from here may not be what it promises
    CAUTION = "caution"  # something that one should know, and may want to change
    NOTE = "note"


@frozen
class Remark:
    """Something that follows from what was found."""

    grade: Grade
    text: str


@frozen(kw_only=True)
class Findings:
    """
    What was found.

    @ivar folder: whose disk it is.
    @ivar mount: where it is mounted; L{None}: not known.
    @ivar devices: below it, as far as that is known.
    @ivar free: bytes that this user may still write.
    @ivar size: bytes that the disk has.
    @ivar syncs: by size, in rising order.
    @ivar excludes: whether the lock keeps a second server out, or why it cannot be taken.
    @ivar renames: whether a rotation works, or why it does not.
    @ivar reserves: whether room can be set aside, or why it cannot.
    """

    folder: Path
    mount: Mount | None
    devices: tuple[Device, ...]
    free: int
    size: int
    syncs: tuple[Syncs, ...]
    excludes: bool | str
    renames: bool | str
    reserves: bool | str


def remarks_on(found: Findings) -> tuple[Remark, ...]:
    """All that there is to say, what weighs most first."""
    order = list(Grade)
    remarks = [*_of_mount(found), *_of_calls(found), *_of_syncs(found), *_of_space(found)]
    return tuple(sorted(remarks, key=lambda remark: order.index(remark.grade)))


def verdict_of(remarks: tuple[Remark, ...]) -> tuple[bool, str]:
    """Whether a log may be kept there, and that in words."""
    grades = {remark.grade for remark in remarks}
    if Grade.DANGER in grades:
        return False, "not fit for a log: what is acknowledged here may be lost, or not be taken"
    if Grade.CAUTION in grades:
        return True, "fit for a log, with what is said above"
    return True, "fit for a log"


def _of_mount(found: Findings) -> Iterator[Remark]:
    mount = found.mount
    if mount is None:
        yield Remark(Grade.NOTE, "the system does not say what file system this is")
        return
    if mount.doubt is not None:
        yield Remark(Grade.DANGER, f"{found.folder} is {mount.doubt}")
    elif mount.kind == "overlay":
        yield Remark(
            Grade.CAUTION,
            "this is overlay, most likely a container's own layer, which is deleted with the "
            "container: keep the log in a volume",
        )
    for device in found.devices:
        if device.file is not None:
            yield Remark(
                Grade.CAUTION,
                f"{device.name} is a file, {device.file}: try the disk of that, too",
            )
        elif device.write_back:
            yield Remark(
                Grade.NOTE,
                f"{device.name} has a write cache, which each sync has written out; that it does "
                f"so when asked is its own word",
            )
        elif device.write_back is False:
            yield Remark(
                Grade.NOTE,
                f"{device.name} is taken to have no write cache that forgets (write through), so "
                f"it is not asked to write one out: right if it has none, or one with power-loss "
                f"protection",
            )


def _of_calls(found: Findings) -> Iterator[Remark]:
    if found.excludes is not True:
        why = "it does not keep another process out" if not found.excludes else found.excludes
        yield Remark(
            Grade.DANGER,
            f"the lock (flock) does not work: {why}; two servers could write into one log",
        )
    if found.renames is not True:
        why = "the name does not follow" if not found.renames else found.renames
        yield Remark(Grade.DANGER, f"renaming and syncing the folder does not work: {why}")
    if found.reserves is not True:
        why = "" if not found.reserves else f" ({found.reserves})"
        yield Remark(
            Grade.NOTE,
            f"room cannot be set aside (fallocate){why}: small commits take longer than they "
            f"might, nothing else",
        )


def _of_syncs(found: Findings) -> Iterator[Remark]:
    smallest = found.syncs[0]
    if smallest.p50 < TOO_QUICK_SECONDS:
        yield Remark(
            Grade.DANGER,
            f"an append of {smallest.size} bytes and its sync take {smallest.p50 * 1e6:.1f} µs, "
            f"less than any device can need ({TOO_QUICK_SECONDS * 1e6:.0f} µs): nothing is "
            f"written to one (memory, a host that ignores syncs, libeatmydata?)",
        )
    slow = max(found.syncs, key=lambda syncs: syncs.p99)
    if slow.p99 > SLOW_P99_SECONDS:
        yield Remark(
            Grade.CAUTION,
            f"one sync in a hundred (of {slow.size:,} bytes) takes more than "
            f"{slow.p99 * 1e3:,.0f} ms: so long do the clients of that commit wait, and all that "
            f"arrives meanwhile",
        )
    worst = max(found.syncs, key=lambda syncs: syncs.worst)
    if worst.worst > SLOW_WORST_SECONDS:
        yield Remark(
            Grade.CAUTION,
            f"the slowest sync (of {worst.size:,} bytes) took {worst.worst:.1f} s: so long nobody "
            f"gets an answer; nothing is lost, and from --stalled-seconds "
            f"({Limits().stalled_seconds:g}) on /readyz says no",
        )


def _of_space(found: Findings) -> Iterator[Remark]:
    least = Limits().min_free_bytes
    if found.free < least:
        yield Remark(
            Grade.CAUTION,
            f"{found.free:,} bytes are free, fewer than --min-free-bytes ({least:,}): when there "
            f"are none, messages are refused",
        )
