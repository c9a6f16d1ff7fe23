"""
Where the servers of a fault run are, and networks between them that can be cut.

In L{Namespaces} each server has a network namespace of its own, with a cable (veth) to one bridge.
A cut is a rule in the receiver's namespace (nft) that drops what comes from an address: so each
direction can be cut alone, and nobody is told, as when a switch dies.  All of it is inside of
namespaces of this process (L{enter}), and gone when that has ended, whatever ended it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

_INSIDE = "MSGLOG_TEST_INSIDE"
_TOOLS = ("unshare", "nsenter", "ip", "nft")

_RULES = """
table inet cuts {
    set from { type ipv4_addr; }
    chain input { type filter hook input priority 0; ip saddr @from drop; }
}
"""


@frozen
class Place:
    """
    Where a server runs.

    @ivar inside: the words before a command that make it run there.
    """

    address: str = "127.0.0.1"
    inside: tuple[str, ...] = ()


def enter(module: str) -> str:
    """
    Start this program again in namespaces of its own; L{what_lacks} says whether it can be.

    @param module: the module that is the program.
    @return: why it was not done; empty if this is it, inside.
    """
    if os.environ.get(_INSIDE):
        return ""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)}: not installed (apt install iproute2 nftables util-linux)"
    # With its own process ids, so that nothing that it has started outlives it.
    alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        alone += ["--map-root-user"]
    if subprocess.run([*alone, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        return "this user may make no network namespaces: run it as root"
    python = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execvpe(alone[0], [*alone, *python], {**os.environ, _INSIDE: "1"})


class Loopback:
    """All on one address, and nothing between them that could be cut."""

    can_cut = False

    def place(self) -> Place:
        """Room for one more server."""
        return Place()

    def cut(self, sources: Iterable[Place], target: Place) -> None:
        """Impossible."""
        raise NotImplementedError

    def heal(self) -> None:
        """Nothing is cut."""

    def close(self) -> None:
        """Nothing is to be taken away."""


class Namespaces:
    """A bridge, and a namespace with a cable to it for each server."""

    can_cut = True

    def __init__(self) -> None:
        self._holders: list[subprocess.Popen[bytes]] = []
        self._cut: set[Place] = set()
        for words in (
            "link set lo up",
            "link add bridge0 type bridge",
            "addr add 10.77.0.254/24 dev bridge0",
            "link set bridge0 up",
        ):
            _run("ip", *words.split())

    def place(self) -> Place:
        """Room for one more server."""
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self._holders.append(holder)
        number, pid = len(self._holders), holder.pid
        net = Path(f"/proc/{pid}/ns/net")
        deadline = time.monotonic() + 20
        while net.readlink() == Path("/proc/self/ns/net").readlink():
            assert time.monotonic() < deadline, "no network namespace was made"
            time.sleep(0.005)
        place = Place(f"10.77.0.{number}", ("nsenter", f"--net={net}"))
        cable = f"cable{number}"
        _run("ip", *f"link add {cable} type veth peer name eth0 netns {pid}".split())
        _run("ip", *f"link set {cable} master bridge0 up".split())
        for words in (
            "link set lo up",
            f"addr add {place.address}/24 dev eth0",
            "link set eth0 up",
        ):
            _run(*place.inside, "ip", *words.split())
        _run(*place.inside, "nft", "-f", "-", said=_RULES)
        return place

    def cut(self, sources: Iterable[Place], target: Place) -> None:
        """From now on nothing arrives from these."""
        addresses = ", ".join(source.address for source in sources)
        _run(*target.inside, "nft", "add", "element", "inet", "cuts", "from", f"{{ {addresses} }}")
        self._cut.add(target)

    def heal(self) -> None:
        """Everything arrives again."""
        for target in self._cut:
            _run(*target.inside, "nft", "flush", "set", "inet", "cuts", "from")
        self._cut.clear()

    def close(self) -> None:
        """Take all of it away."""
        for holder in self._holders:
            holder.kill()
            holder.wait(20)


def _run(*words: str, said: str = "") -> None:
    done = subprocess.run(words, input=said, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
