"""
The long run over a NATS cluster: is anything lost, repeated or reordered, whatever fails?

::

    python -m tests.faults.cluster          # the long one: about an hour
    python -m tests.faults.cluster --help   # how often each fault is made, how many clients

Three nats-servers and several servers of msglog, each in a network of its own; clients of all kinds
that send all the time; and faults, one after the other, in an order that the seed decides.  At the
end all is mended, the clients finish, and every replica is read from its disk, by a reader that
shares nothing with msglog or NATS: each acknowledged message must be there once, in order, as it
was sent, and all replicas must be the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from conftest import BIN, wait_until
from front_ends import FrontEnd, Unconditional
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from stream_files import Found, differing, examine, read_lines, read_stored

from msglog._shards import shards_of

from .cluster_faults import KINDS, Faults, Kind, Site
from .load import Load
from .networks import Loopback, Namespaces, enter
from .record import body_of

# Until every client has an ACK again when all is mended, or the run has failed: it is minutes, for
# the machine may be busy, and clients wait for up to 10 s between two attempts.
_AGAIN_SECONDS = 180.0

_EXPORT_SECONDS = 1800.0

_COLUMNS = ("what", "times", "longest wait of a client, s", "median of these, s")


class Stuck(Exception):
    """All is mended, and nothing goes on."""


class Run:
    """
    One run.

    @param arguments: see L{parse}.
    """

    def __init__(self, arguments: argparse.Namespace, console: Console, folder: Path) -> None:
        self.arguments = arguments
        self.console = console
        self.network = Namespaces() if arguments.cut else Loopback()
        kind = Unconditional if arguments.without_condition else FrontEnd
        self.site = Site(folder, self.network, arguments.fronts, kind, arguments.shards)
        self.rng = random.Random(arguments.seed)
        addresses = [(front.address, front.port) for front in self.site.fronts]
        self.load = Load(addresses, arguments.hoppers, arguments.own, arguments.seed)
        self.waits: dict[Kind, list[float]] = {}
        self.wrong: list[str] = []
        self.began = time.monotonic()
        self.exports = {
            shard.name: folder / f"{shard.name}.jsonl"
            for shard in shards_of("MSGLOG", arguments.shards)
        }

    # --- faults ----------------------------------------------------------------------------

    def schedule(self) -> list[Kind]:
        """What is to be done, in its order."""
        planned = []
        for kind in KINDS:
            count = getattr(self.arguments, kind.option.replace("-", "_"))
            if not kind.cuts or self.network.can_cut:
                planned += [kind] * count
        self.rng.shuffle(planned)
        return planned

    def fail_and_mend(self) -> None:
        """All faults, one after the other."""
        planned = self.schedule()
        faults = Faults(self.site, self.rng, self.arguments.away_seconds)
        with _progress(self.console, len(planned)) as done:
            self.load.start()
            self._goes_on()
            for number, kind in enumerate(planned, 1):
                if time.monotonic() - self.began > 60 * self.arguments.minutes:
                    break
                self.load.worst_wait()
                self._make(kind, faults)
                self._goes_on()
                wait = self.load.worst_wait()
                self.waits.setdefault(kind, []).append(wait)
                if self.rng.random() < 0.5:
                    self._until(self.site.cluster.is_current, "replicas that are up to date")
                self.console.print(
                    f"{time.monotonic() - self.began:6.0f} s  {number:3}/{len(planned)}  "
                    f"{kind.text} ({faults.did}): {wait:.1f} s; {self.load.acked:,} acknowledged",
                    highlight=False,
                )
                done(f"{self.load.acked:,} acknowledged, {self._set_back()} set back")
            if self.arguments.seconds:
                time.sleep(self.arguments.seconds)

    def _make(self, kind: Kind, faults: Faults) -> None:
        try:
            kind.make(faults)
        except AssertionError as e:  # a server that does not start or end as it should
            raise Stuck(f"{kind.text} ({faults.did}): {e}") from None

    def _until(self, condition, what: str) -> None:
        try:
            wait_until(condition, what, _AGAIN_SECONDS)
        except AssertionError as e:
            raise Stuck(str(e)) from None

    def _goes_on(self) -> None:
        """Until every client has had something acknowledged since."""
        before = {id(record): record.acked for record in self.load.sending()}

        def going() -> bool:
            if self.load.failure is not None:
                raise self.load.failure
            records = self.load.sending()
            return len(records) == self.arguments.hoppers + self.arguments.own and all(
                record.acked > before.get(id(record), 0) for record in records
            )

        self._until(going, "an ACK for every client")

    def _set_back(self) -> int:
        return sum(record.set_back for record in self.load.records())

    # --- the end ---------------------------------------------------------------------------

    def finish(self) -> None:
        """All clients have what they wait for, and all servers have ended in good order."""
        self.site.mend()
        if not self.load.finish(_AGAIN_SECONDS):
            raise Stuck(f"clients have no receipts {_AGAIN_SECONDS:g} s after all was mended")
        for record in self.load.records():
            self.wrong += record.wrong
        self._until(self.site.cluster.is_current, "replicas that are up to date")
        for front in self.site.fronts:
            try:
                front.stop()
            except AssertionError as e:
                self.wrong.append(f"a front-end did not end as it should: {e}")
        for stream, path in self.exports.items():
            self._export(stream, path)
        self.site.cluster.stop()

    def _export(self, stream: str, path: Path) -> None:
        url = self.site.cluster.url
        for words in (("export", url, path, "--stream", stream), ("verify", path)):
            done = subprocess.run(
                [str(BIN / "msglog"), *map(str, words)],
                capture_output=True,
                text=True,
                timeout=_EXPORT_SECONDS,
            )
            if done.returncode != 0:
                self.wrong.append(f"msglog {words[0]}: {done.stdout}{done.stderr}")

    def examine(self) -> Found:
        """What is on the disks."""
        replicas = [node.stores for node in self.site.cluster.nodes]
        for folders in zip(*replicas, strict=True):
            self.wrong += differing(list(folders))
        first, *more = replicas[0]
        records = {record.id: record for record in self.load.records()}
        found = examine(first, body_of, records, *more)
        for one, many in (("repeats", "repeated"), ("gaps", "missing"), ("others", "not ours")):
            if getattr(found, one):
                self.wrong.append(f"{getattr(found, one)} {many}")
        if found.different:
            self.wrong.append(f"{found.different} are not what was sent")
        for record in records.values():
            if found.stored[record.id] > record.sent:
                self.wrong.append(f"{found.stored[record.id]} of {record.sent} are stored")
        if self.lost(found):
            self.wrong.append(f"{self.lost(found)} acknowledged messages are lost")
        if not self.arguments.without_condition:
            for folder in replicas[0]:
                self._compare_export(folder, self.exports[folder.parent.name])
        return found

    def lost(self, found: Found) -> int:
        """How many acknowledged messages are not there."""
        return sum(max(record.acked - found.stored[record.id], 0) for record in self.load.records())

    def _compare_export(self, folder: Path, export: Path) -> None:
        """The export has the lines of the replica, in their order; only times may differ."""
        behind_time = len('{"time":"2026-11-25T00:00:00.000000Z"')
        with export.open("rb") as lines:
            for *_, line in read_lines(read_stored(folder)):
                if next(lines, b"")[behind_time:-1] != line[behind_time:]:
                    self.wrong.append(f"the export differs at {line!r}")
                    return
            if next(lines, b""):
                self.wrong.append("the export has more than the stream")

    # --- the report ------------------------------------------------------------------------

    def report(self, found: Found) -> dict[str, object]:
        """Everything in numbers."""
        records = list(self.load.records())
        refused = sum((Counter(hopper.refused) for hopper in self.load.hoppers), Counter())
        return {
            "seed": self.arguments.seed,
            "seconds": round(time.monotonic() - self.began),
            "clients": self.arguments.hoppers + self.arguments.own,
            "client ids": len(records),
            "faults": {kind.text: len(waits) for kind, waits in self.waits.items()},
            "longest wait of a client, s": round(
                max((max(waits) for waits in self.waits.values()), default=0.0), 1
            ),
            "messages sent": sum(record.sent for record in records),
            "receipts": sum(record.receipts for record in records),
            "acknowledged": sum(record.acked for record in records),
            "stored": found.messages,
            "stored as messages of the stream": found.batches,
            "refused NOT_STORED, UNAVAILABLE": [refused[5], refused[6]],
            "set back (TERMS, OUT_OF_ORDER)": self._set_back(),
            "lost": self.lost(found),
            "repeated": found.repeats,
            "gaps": found.gaps,
            "never sent, or other bytes": found.others + found.different,
            "wrong": self.wrong,
        }

    def print(self, report: dict[str, object]) -> None:
        """The same, for people."""
        table = Table(*_COLUMNS)
        for kind in KINDS:
            waits = self.waits.get(kind)
            if waits:
                longest, middle = max(waits), statistics.median(waits)
                table.add_row(kind.text, str(len(waits)), f"{longest:.1f}", f"{middle:.1f}")
        self.console.print(table)
        numbers = Table("what", "how many", show_header=False)
        for name, value in report.items():
            if isinstance(value, int | float):
                numbers.add_row(name, f"{value:,}")
        self.console.print(numbers)
        for text in self.wrong:
            self.console.print(f"WRONG: {text[:2000]}", highlight=False)


@contextmanager
def _progress(console: Console, total: int):
    """How far it is, on a terminal; called with a few words after each fault."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, said="")
        yield lambda said: progress.update(task, advance=1, said=said)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.cluster",
        description="Servers over a NATS cluster: is anything lost, repeated or reordered, "
        "whatever fails?",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for kind in KINDS:
        parser.add_argument(
            f"--{kind.option}", type=int, default=kind.count, metavar="N", help=kind.text
        )
    parser.add_argument(
        "--away-seconds",
        type=float,
        nargs=2,
        # Longer than an election (4 to 9 s), and than a leader takes to notice that it leads
        # nobody any more (10 s).
        default=(10.0, 16.0),
        metavar=("FROM", "TO"),
        help="how long servers are stopped and networks are cut",
    )
    parser.add_argument("--shards", type=int, default=1, help="streams that share the clients")
    parser.add_argument("--fronts", type=int, default=3, help="servers of msglog")
    parser.add_argument("--hoppers", type=int, default=20, help="clients that cut and resend")
    parser.add_argument("--own", type=int, default=12, help="msglog's own clients")
    parser.add_argument("--seconds", type=float, default=0, help="to go on after the last fault")
    parser.add_argument("--minutes", type=float, default=600, help="begin no fault after these")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--folder", type=Path, help="for servers' files; deleted if not given")
    parser.add_argument("--report", type=Path, help="a file for all numbers, JSON")
    parser.add_argument(
        "--without-condition",
        action="store_true",
        help="the control: appends have no condition, and the run must find repeats and end with 1",
    )
    parser.add_argument("--loopback", action="store_true", help="no networks that can be cut")
    return parser.parse_args()


def main() -> int:
    """Run it; 0 if all is as it should be."""
    arguments = parse()
    console = Console(soft_wrap=True)
    logging.disable(logging.WARNING)  # clients who wait say so each time
    why = "--loopback" if arguments.loopback else enter("tests.faults.cluster")
    arguments.cut = not why
    if why:
        console.print(f"on loopback, and no network is cut: {why}", highlight=False)
    console.print(f"seed {arguments.seed}", highlight=False)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    run = Run(arguments, console, folder)
    try:
        run.site.start()
        try:
            run.fail_and_mend()
        except KeyboardInterrupt:
            console.print("ending early")
        run.finish()
        found = run.examine()
    except Stuck as e:
        console.print(f"FAILED: {e}\n{folder} has the servers' files and words")
        return 1
    finally:
        run.site.kill()
        run.network.close()
    report = run.report(found)
    run.print(report)
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(report, indent=1) + "\n")
    if run.wrong:
        console.print(f"{folder} has the servers' files and words")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
