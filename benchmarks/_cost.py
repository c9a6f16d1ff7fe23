"""
C{python -m benchmarks cost}: the instructions that a message costs, compared with those on record.

A time says as much about the machine and what else it does as about the program, so no test can
hold a program to one.  The instructions of a fixed piece of work in one thread hardly vary: three
runs agreed to 0.4 %.  valgrind counts them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import click
from attrs import asdict, frozen

from msglog.cli._console import fail

from ._hot_path import SHAPES, WALKS

__all__ = ["Cost", "command", "compare", "counted"]

# What is on record, by minor version of Python.
FIGURES = Path(__file__).with_name("cost.json")

# Above what runs differ by (0.4 %) and what a rebuilt library may cost, and below what anybody
# would call a slowdown; several small ones in a row are seen by whoever refreshes the figures.
TOLERANCE = 0.03

# Many times what it takes (20 s).
_LONGEST_SECONDS = 600.0

# What is on the hot path and not ours: another version of it may cost more or less.
_LIBRARIES = ("twisted", "orjson", "google-crc32c", "attrs")

_SUMMARY = re.compile(r"^summary: (\d+)$", re.MULTILINE)

_HELP = f"""
Count the instructions that a message costs the server, and compare them with those on record.

Walks a fixed number of messages through the server (sockets, protocol, admission, commit, answers)
in one thread under valgrind, and fails if a message costs over {TOLERANCE:.0%} more instructions
than benchmarks/cost.json says for this minor version of Python. Where another build of it needs
more or fewer for work that has nothing to do with msglog, the figures on record are scaled by that.

Run it with --update when a change is worth what it costs, or has made something cheaper, and
commit the file with that change.

\b
Exit status:
  0    no more than on record; or nothing to compare with, or no valgrind, and it says so
  1    more than on record; or, where CI is set, not counted or not compared
  2    the command line is wrong
"""


@frozen
class Cost:
    """
    What was counted.

    @ivar messages: instructions for a message, by shape.
    @ivar reference: instructions for work that has nothing to do with msglog.
    @ivar libraries: what was installed.
    """

    messages: dict[str, float]
    reference: int
    libraries: dict[str, str]


def counted(totals: Mapping[str, int]) -> Cost:
    """What the totals of all walks mean."""
    return Cost(
        {name: round(totals[name] / shape.counted, 1) for name, shape in SHAPES.items()},
        totals["reference"],
        {name: version(name) for name in _LIBRARIES},
    )


def compare(cost: Cost, record: Cost) -> dict[str, float]:
    """By shape that is on record, how many times as much a message costs as there."""
    scale = cost.reference / record.reference
    return {
        name: cost.messages[name] / (instructions * scale)
        for name, instructions in record.messages.items()
        if name in SHAPES
    }


@click.command("cost", help=_HELP, short_help="Count the instructions that a message costs.")
@click.option("--update", is_flag=True, help="Put what was counted on record.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
def command(update: bool, as_json: bool) -> int:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if shutil.which("valgrind") is None:
        return _not_compared("not counted: valgrind is not installed (Debian: valgrind)")
    cost = counted(_totals())
    records = {name: Cost(**record) for name, record in json.loads(FIGURES.read_text()).items()}
    record = records.get(python)
    ratios = {} if record is None else compare(cost, record)
    if as_json:
        click.echo(json.dumps({"python": python, **asdict(cost), "of_record": ratios}))
    else:
        for name, instructions in cost.messages.items():
            beside = f"  {ratios[name]:7.3f} of what is on record" if name in ratios else ""
            click.echo(f"{name:<22}{instructions:>12,.0f} instructions a message{beside}")
    if update:
        records[python] = cost
        written = {name: asdict(records[name]) for name in sorted(records)}
        FIGURES.write_text(json.dumps(written, indent=2) + "\n")
        return 0
    if record is None:
        return _not_compared(
            f"not compared: {FIGURES.name} has no figures for Python {python}; make them with "
            f"'python -m benchmarks cost --update' from a commit that is as fast as it should be"
        )
    worst = max(ratios, key=lambda name: ratios[name])
    changed = [
        f"{name} {record.libraries.get(name)} -> {now}"
        for name, now in cost.libraries.items()
        if record.libraries.get(name) != now
    ]
    if ratios[worst] > 1 + TOLERANCE:
        fail(
            f"a message costs {ratios[worst] - 1:.1%} more instructions than on record "
            f"({worst}). If that is worth it, run 'python -m benchmarks cost --update' and commit "
            f"{FIGURES.name} with the change"
            + (f". (Other libraries than then: {', '.join(changed)})" if changed else "")
        )
    if min(ratios.values()) < 1 - TOLERANCE:
        click.echo("cheaper than on record: keep that with 'python -m benchmarks cost --update'")
    return 0


def _not_compared(why: str) -> int:
    """Say it; where nobody reads what is said, fail."""
    if os.environ.get("CI"):
        fail(why)
    click.echo(why)
    return 0


def _totals() -> dict[str, int]:
    """Run the hot path under valgrind; the instructions of each walk."""
    with tempfile.TemporaryDirectory(prefix="msglog-cost-") as name:
        folder = Path(name)
        process = subprocess.Popen(
            [
                *("valgrind", "--quiet", "--tool=callgrind", "--dump-before=getppid"),
                f"--callgrind-out-file={folder}/count",
                *(sys.executable, "-m", "benchmarks._hot_path", str(folder)),
            ],
            cwd=FIGURES.parent.parent,
            env={**_kept_environment(), "PYTHONHASHSEED": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=_LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            fail(f"not counted: the hot path took over {_LONGEST_SECONDS:g} s under valgrind")
        if process.returncode or out.split("\n")[:-1] != list(WALKS):
            fail(f"not counted: the hot path ended with status {process.returncode}: {err}{out}")
        # The first count is what came before the first mark; then every walk's, and what was
        # between it and the next.
        return {
            name: _total(folder / f"count.{2 * number + 2}") for number, name in enumerate(WALKS)
        }


def _kept_environment() -> dict[str, str]:
    """What a program needs to run at all: everything else is a chance to differ."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}


def _total(dump: Path) -> int:
    found = _SUMMARY.search(dump.read_text())
    if found is None:
        fail(f"not counted: valgrind's {dump.name} says no sum")
    return int(found[1])
