"""C{python -m benchmarks all}: everything that docs/benchmarks.md has."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click

from ._runs import say
from ._systems import SYSTEMS

__all__ = ["command"]

# What is run, and about how many seconds it takes where a sync takes 0.2 ms and nothing else runs.
_STEPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("compare",), 630),
    (("generator",), 40),
    (("latency",), 90),
    (("growth", "connections"), 150),
    (("growth", "sizes"), 50),
    (("growth", "log"), 45),
    (("growth", "clients"), 100),
    (("growth", "workers"), 60),
)

# The same for a moment: fewer values, and nothing is kept.
_QUICK_VALUES = {
    "connections": "1,100",
    "sizes": "0,256,65536",
    "log": "0,1",
    "clients": "1,10000",
    "workers": "0,2",
}
_QUICK_SECONDS = 15.0


@click.command("all", short_help="Everything that docs/benchmarks.md has.")
@click.option("--quick", is_flag=True, help="A moment of everything; keep nothing.")
@click.option(
    "--folder",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="On the disk to measure.  [default: where temporary files go]",
)
@click.option("--server-options", metavar="WORDS", default="", help="More for twistd msglog.")
def command(quick: bool, folder: Path | None, server_options: str) -> int:
    """
    Measure everything, keep it, and make docs/benchmarks.md and its charts of it.

    It takes some twenty minutes on two cores; the machine should have nothing else to do. What
    fails or is not installed does not keep the rest from being measured.
    """
    left = sum(_QUICK_SECONDS if quick else seconds for _, seconds in _STEPS)
    missing = sorted({s.package for s in SYSTEMS.values() if not s.installed})
    say(
        f"about {left / 60:.0f} min" + (f"; not installed: {', '.join(missing)}" if missing else "")
    )
    failed = []
    for step, seconds in _STEPS:
        say(f"\n== {' '.join(step)} (about {left / 60:.0f} min left)")
        began = time.monotonic()
        how = ["--quick"] if quick else ["--keep"]
        if folder is not None:
            how.append(f"--folder={folder}")
        if quick and step[-1] in _QUICK_VALUES:
            how.append(f"--values={_QUICK_VALUES[step[-1]]}")
        # Each in a process of its own: drawing leaves threads behind, and a load forks.
        if server_options and step != ("generator",):  # which has no msglog in it
            how.append(f"--server-options={server_options}")
        done = subprocess.run([sys.executable, "-m", "benchmarks", *step, *how])
        if done.returncode:
            failed.append(" ".join(step))
        left -= _QUICK_SECONDS if quick else seconds
        say(f"== {' '.join(step)} took {time.monotonic() - began:.0f} s")
    for name in failed:
        say(f"failed: {name}")
    return 1 if failed else 0
