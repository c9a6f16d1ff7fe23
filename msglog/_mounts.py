"""What a folder's files are kept on: the file system, what its kind promises, and the devices."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

__all__ = ["Device", "Mount", "devices_of", "mount_of"]

_MOUNTS = Path("/proc/self/mountinfo")
_SYS = Path("/sys")

_MEMORY = frozenset({"tmpfs", "ramfs", "rootfs", "devtmpfs"})
_NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "beegfs", "gpfs"),
        *("glusterfs", "orangefs", "pvfs2", "coda", "ncpfs"),
    }
)
_HOSTS = frozenset({"9p", "virtiofs", "vboxsf", "hgfs", "prl_fs", "drvfs"})

# Options of mounts with which a sync does not wait for the disk, by what they leave out.
_NO_BARRIERS = frozenset({"nobarrier", "barrier=0"})
_NO_SYNC = "volatile"  # of overlay


@frozen
class Mount:
    """
    Where a folder's file system is mounted.

    @ivar point: the folder that it is mounted on.
    @ivar kind: as the kernel names it.
    @ivar source: what is mounted: a device, a server's folder, or only a word.
    @ivar options: of the mount and of the file system.
    @ivar device: the number of its device, C{major:minor}.
    """

    point: str
    kind: str
    source: str
    options: frozenset[str]
    device: str

    @property
    def doubt(self) -> str | None:
        """What there is against keeping a log here, after "it is"; L{None}: nothing is known."""
        kind = self.kind
        if kind in _MEMORY:
            return f"on {kind}, which is memory: when the machine stops, all messages are lost"
        if kind == "overlay" and _NO_SYNC in self.options:
            return "on overlay mounted 'volatile', which syncs nothing: a power cut loses messages"
        if without := sorted(self.options & _NO_BARRIERS):
            return (
                f"on {kind} mounted '{without[0]}', so that a sync does not wait for the disk's "
                f"cache: a power cut can lose acknowledged messages"
            )
        if kind in _NETWORK:
            return (
                f"on {kind}, a network file system: whether what is synced is on a disk, and "
                f"whether a second server is kept out, is up to another machine"
            )
        if kind in _HOSTS:
            return (
                f"on {kind}, a folder of the host's: whether what is synced is on a disk is up to "
                f"the host"
            )
        if kind == "fuse" or kind.startswith(("fuse.", "fuseblk")):
            return (
                f"on {kind}, a file system that is a program (FUSE): whether what is synced is on "
                f"a disk is up to that program"
            )
        return None


def mount_of(folder: Path, mounts: Path = _MOUNTS) -> Mount | None:
    """
    The mount that a folder is on; L{None} where the system does not say.

    @param mounts: in the format of C{/proc/self/mountinfo}.
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    found = None
    folder = folder.resolve()
    for line in lines:
        # 36 35 98:0 /root /point rw,noatime shared:1 … - ext4 /dev/sda1 rw,errors=continue
        first, _, last = line.partition(" - ")
        _, _, device, _, point, options, *_ = map(_unescaped, first.split(" "))
        kind, source, of_system, *_ = map(_unescaped, last.split(" "))
        # The later one of two at the same place hides the other.
        longest = found is None or len(point) >= len(found.point)
        if longest and folder.is_relative_to(point):
            all_options = frozenset([*options.split(","), *of_system.split(",")])
            found = Mount(point, kind, source, all_options, device)
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


@frozen
class Device:
    """
    A disk, or what passes for one.

    @ivar name: the kernel's.
    @ivar write_back: whether it may hold what was written in a cache that forgets, so that a sync
        has to ask it to write that out; L{None} if that is not known.
    @ivar file: the file that a loop device is made of.
    """

    name: str
    write_back: bool | None
    file: str | None


def devices_of(mount: Mount, sys: Path = _SYS) -> tuple[Device, ...]:
    """The devices at the bottom of a mount: none, if it is on none or that is not known."""
    number = mount.device
    if number.startswith("0:"):  # that of a file system of several devices (btrfs)
        try:
            device = os.stat(mount.source).st_rdev
        except (OSError, ValueError):
            return ()
        number = f"{os.major(device)}:{os.minor(device)}"
    folder = sys / "dev" / "block" / number
    return tuple(_bottom(folder.resolve())) if folder.exists() else ()


def _bottom(folder: Path) -> Iterator[Device]:
    if not (folder / "queue").exists() and (folder.parent / "queue").exists():
        folder = folder.parent  # a partition: the disk has it
    below = sorted((folder / "slaves").iterdir()) if (folder / "slaves").exists() else []
    for one in below:
        yield from _bottom(one.resolve())
    if not below:
        cache = _read(folder / "queue" / "write_cache")
        yield Device(
            folder.name,
            None if cache is None else cache == "write back",
            _read(folder / "loop" / "backing_file"),
        )


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
