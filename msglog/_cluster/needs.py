"""What a cluster to try needs, or why that cannot be had: programs, a folder of its own, ports."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from attrs import frozen

from .._errors import MsglogError
from .layout import PORTS, Layout

__all__ = ["ClusterError", "Programs", "check_ports", "claim_folder", "find_programs"]

_OLDEST = (2, 12)  # what front-ends do not warn of

_HINT = "pip install 'msglog[cluster]'"

# Its presence says that a folder is a cluster's, its lock that the cluster runs.
_MARK = "cluster.lock"


class ClusterError(MsglogError):
    """Something of a cluster to try cannot be done; the text says why, and what to do."""


@frozen(slots=True)
class Programs:
    """The paths of the programs that make a cluster."""

    nats_server: str
    twistd: str


def find_programs() -> Programs:
    """
    Find the programs: those of this installation first, then those of the PATH.

    @raise ClusterError: one is missing, or too old.
    """
    missing = [name for name in ("nats", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ClusterError(f"a cluster needs what is not installed ({missing[0]}): {_HINT}")
    twistd = _find("twistd")
    if twistd is None:
        raise ClusterError("there is no twistd beside this command nor on the PATH")
    nats_server = _find("nats-server")
    if nats_server is None:
        raise ClusterError(
            f"there is no nats-server beside this command nor on the PATH: {_HINT} brings one"
        )
    said = _ask_version(nats_server)
    version = re.search(r"v(\d+)\.(\d+)", said)
    if version is None:
        raise ClusterError(f"{nats_server} does not say its version, but {said!r}: {_HINT}")
    if (int(version[1]), int(version[2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ClusterError(f"{nats_server} is {said}, older than {oldest}: {_HINT} brings a newer")
    return Programs(nats_server, twistd)


def _find(name: str) -> str | None:
    folders = [str(Path(sys.argv[0]).absolute().parent), str(Path(sys.executable).parent)]
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


def _ask_version(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ClusterError(f"{program} cannot be run: {e}") from None
    return (done.stdout + done.stderr).strip()


def claim_folder(folder: Path) -> IO[bytes]:
    """
    Make the folder, if it is not there, and take it for this process.

    @return: the claim, which lasts until it is closed or the process ends.
    @raise ClusterError: another cluster has it, or it is something else.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = {path.name for path in folder.iterdir()}
        if found and _MARK not in found:
            raise ClusterError(
                f"{folder} is not empty, and no cluster of msglog's: name another folder (--dir)"
            )
        claim = (folder / _MARK).open("ab")
    except FileExistsError:
        raise ClusterError(f"{folder} is no folder: name another (--dir)") from None
    except OSError as e:
        raise ClusterError(f"cannot use {folder}: {e.strerror}") from None
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        claim.close()
        raise ClusterError(
            f"a cluster runs in {folder} already: 'msglog cluster status' shows it; another one "
            f"needs another folder (--dir) and other ports (--port)"
        ) from None
    return claim


def check_ports(layout: Layout) -> None:
    """
    See whether nobody listens where the cluster will.

    @raise ClusterError: somebody does.
    """
    taken = [f"{port} (for {name})" for port, name in layout.ports.items() if not _is_free(port)]
    if taken:
        raise ClusterError(
            f"ports of 127.0.0.1 that are taken: {', '.join(taken)}; end who has them, or name the "
            f"first of {PORTS} others in a row (--port)"
        )


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As all that will listen there do: connections that ended a minute ago are no obstacle.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as e:
            if e.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True
