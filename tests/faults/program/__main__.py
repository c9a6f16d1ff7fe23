"""
The suite of faults by hand: for as many rounds as wanted, with progress.

    python -m tests.faults.program [--rounds N] [GROUP ...]
    python -m tests.faults.program crowd

A group is a module: every_call, signals, disks, files, bits, peers.  With more than one round,
every system call and every bit has its turn, and what is left to chance is done so many times.
C{crowd} prints what idle and slow connections cost honest clients.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def main() -> int:
    groups = sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.faults.program")
    parser.add_argument("groups", nargs="*", metavar="GROUP", default=[])
    parser.add_argument("--rounds", type=int, default=5, help="5 unless told; 1 is what CI does")
    options = parser.parse_args()
    unknown = set(options.groups) - {*groups, "crowd"}
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such group; there are {', '.join(groups)}, crowd")
    if options.groups == ["crowd"]:
        return crowd()
    os.environ["FAULT_ROUNDS"] = str(options.rounds)
    paths = [str(HERE / f"test_{group}.py") for group in options.groups or groups]
    return int(pytest.main(["-v", "-s", "--durations=10", "-p", "no:cacheprovider", *paths]))


def crowd() -> int:
    from . import shim
    from .conftest import ROOT
    from .servers import Program
    from .test_peers import crowd_options, measure
    from .zygote import Zygote

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as name:
        zygote = Zygote(shim.build(Path(name)), ROOT)
        server = Program(zygote, Path(name), *crowd_options())
        server.limits = {resource.RLIMIT_NOFILE: hard}
        server.start()
        try:
            for idle, slow in ((0, 500), (1000, 500), (5000, 0), (5000, 500)):
                alone, beside = measure(server, idle, slow, 7, 1000)
                print(
                    f"{idle} idle, {slow} slow: p99 {beside * 1e3:.2f} ms, without "
                    f"{alone * 1e3:.2f} ms: {beside / alone:.2f} times",
                    flush=True,
                )
        finally:
            server.kill()
            zygote.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
