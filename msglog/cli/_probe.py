"""C{msglog probe}: is this disk one to keep a log on?"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import orjson
from attrs import asdict

from .._disk import Disk, IDisk
from .._disk_trial import SIZES, DiskTrial, Syncs
from .._disk_verdict import Findings, Grade, Remark, remarks_on, verdict_of
from .._mounts import devices_of, mount_of
from ._console import fail, printable, terminal
from ._number import Number
from ._progress import REFRESH_SECONDS

__all__ = ["command", "probe"]

# For all sizes together: some hundred syncs of each on a slow disk.
DEFAULT_SECONDS = 8.0

_HELP = """
Try the disk of FOLDER (this one if none is named) the way a log uses it, and say what that means.

Lines of several sizes are appended, and each is synced; the table says how long that takes. A sync
that is quicker than any device is no sync, so that a power cut would lose what is acknowledged. And
it is seen what file system this is, whether its lock keeps a second server out, whether files can
be renamed and folders synced, whether room can be set aside, and how much there is.

Up to 17 MiB are written at a time, in a hidden folder of its own that is deleted at the end,
after Ctrl-C too. What a disk does when power is cut no program can see: a device that says
"written" too early, but not too quickly, is not found.

\b
Examples:
  msglog probe /var/lib/msglog
  msglog probe --seconds 60 /var/lib/msglog
  msglog probe --json | jq .fit

\b
Exit status:
  0  a log can be kept there (it may be slow: that is said)
  1  it should not be: what is acknowledged may be lost; or it could
     not be tried
  2  the command line is wrong
  130  Ctrl-C
"""


@click.command("probe", help=_HELP, short_help="Try a disk: can a log be kept there?")
@click.argument(
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
)
@click.option(
    "-t",
    "--seconds",
    type=Number(min=0.1, max=86400),
    default=DEFAULT_SECONDS,
    show_default=True,
    help="How long to measure, all sizes together.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end.")
def command(folder: Path, seconds: float, as_json: bool) -> int:
    with _ended_in_order():
        try:
            found = probe(folder.resolve(), seconds, Disk())
        except OSError as e:
            fail(f"cannot try the disk of {folder}: {e.strerror or e}")
    remarks = remarks_on(found)
    fit, verdict = verdict_of(remarks)
    if as_json:
        click.echo(orjson.dumps(_as_json(found, remarks, fit, verdict), option=orjson.OPT_INDENT_2))
    else:
        _say(found, remarks, verdict)
    return 0 if fit else 1


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Signals that end the process do so by way of all C{finally}: nothing is left behind."""

    def end(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # once is enough, and the cleaning up is quick
        sys.exit(128 + number)

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def probe(
    folder: Path,
    seconds: float,
    disk: IDisk,
    now: Callable[[], float] = time.perf_counter,
) -> Findings:
    """
    Try a folder's disk.

    @raise OSError: it cannot be written to.
    """
    mount = mount_of(folder)
    free, size = disk.space(folder)
    with DiskTrial(folder, disk, now) as trial:
        excludes = _tried(trial.excludes)
        renames = _tried(trial.renames)
        reserves = _tried(trial.reserves)
        return Findings(
            folder=folder,
            mount=mount,
            devices=devices_of(mount) if mount is not None else (),
            free=free,
            size=size,
            syncs=tuple(_measured(trial, seconds)),
            excludes=excludes,
            renames=renames,
            reserves=reserves,
        )


def _tried(call: Callable[[], bool]) -> bool | str:
    try:
        return call()
    except OSError as e:
        return e.strerror or str(e)


def _measured(trial: DiskTrial, seconds: float) -> Iterator[Syncs]:
    # Not above: 20 ms that a look at the help need not wait for.
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = terminal()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        auto_refresh=False,  # a thread would be in the way of what is measured
        disable=not console.is_terminal,
    )
    began = time.monotonic()
    refreshed = began

    def tick() -> None:
        nonlocal refreshed
        if time.monotonic() - refreshed >= REFRESH_SECONDS:
            refreshed = time.monotonic()
            progress.update(task, completed=refreshed - began)
            progress.refresh()

    with progress:
        task = progress.add_task("", total=seconds)
        for size in SIZES:
            progress.update(task, description=f"append {size:,} bytes, sync")
            yield trial.measure(size, seconds / len(SIZES), tick)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f}"


def _say(found: Findings, remarks: tuple[Remark, ...], verdict: str) -> None:
    from rich.table import Table

    mount = found.mount
    place = "" if mount is None else f": {mount.kind} on {mount.source}, mounted at {mount.point}"
    click.echo(printable(f"{found.folder}{place}"))
    click.echo(f"{found.free:,} of {found.size:,} bytes are free")
    table = Table("append and sync", box=None, pad_edge=False)
    for title in ("times", "p50 ms", "p99 ms", "worst ms"):
        table.add_column(title, justify="right")
    for syncs in found.syncs:
        times = (_ms(value) for value in (syncs.p50, syncs.p99, syncs.worst))
        table.add_row(f"{syncs.size:,} bytes", f"{syncs.count:,}", *times)
    sys.stdout.flush()
    terminal(sys.stdout).print(table)
    for remark in remarks:
        mark = "" if remark.grade is Grade.NOTE else f"{remark.grade.value.upper()}: "
        click.echo(printable(f"{mark}{remark.text}"))
    click.echo(verdict)


def _as_json(
    found: Findings, remarks: tuple[Remark, ...], fit: bool, verdict: str
) -> dict[str, object]:
    mount = found.mount
    return {
        "folder": str(found.folder),
        "fit": fit,
        "verdict": verdict,
        "remarks": [{"grade": remark.grade.value, "text": remark.text} for remark in remarks],
        "file_system": mount
        and {
            "kind": mount.kind,
            "source": mount.source,
            "mounted_at": mount.point,
            "options": sorted(mount.options),
        },
        "devices": [asdict(device) for device in found.devices],
        "free": found.free,
        "size": found.size,
        "syncs": [
            {
                "bytes": syncs.size,
                "count": syncs.count,
                "p50_ms": round(syncs.p50 * 1e3, 4),
                "p99_ms": round(syncs.p99 * 1e3, 4),
                "worst_ms": round(syncs.worst * 1e3, 4),
            }
            for syncs in found.syncs
        ],
        "lock_excludes": found.excludes,
        "rename_and_folder_sync": found.renames,
        "reserve": found.reserves,
    }
