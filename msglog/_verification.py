"""
Whether logs are whole, and what is in them: the summaries of their stretches put together.  No I/O.

What is held is a number or three for each client, and nothing for a record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from operator import attrgetter

from attrs import define, frozen

from ._records import client_text
from ._scan import Fault, FaultKind, Summary, sequence_fault, time_fault

__all__ = ["ClientTotal", "Statistics", "Unfinished", "Verification"]

# How many spans of time are counted apart, before two neighbours become one.  Far more than a
# terminal has columns, so that the chart does not show where they were joined.
_SPANS = 8192

_SECOND = 1_000_000


@frozen(slots=True)
class Unfinished:
    """
    A last line without newline.

    @ivar file: the index of the file.
    @ivar offset: where it begins.
    @ivar size: its bytes.
    """

    file: int
    offset: int
    size: int


class Verification:
    """
    Everything that log-format.md promises of a log and a reader can see.

    Each client's records must be 1, 2, 3… through all files; no time may be before the one before.

    @param partial: whether a client may begin anywhere, since older files are not at hand.
    @param report: called with the index of a file and each fault as it is found, in order.  After
        L{MAX_FAULTS<msglog._scan.MAX_FAULTS>} in one stretch the others are only counted.
    @ivar counts: the faults of each kind.
    @ivar beginnings: the faults at a client's first record in a file, by file: what a file that
        is missing before this one looks like.
    """

    def __init__(self, partial: bool, report: Callable[[int, Fault], None]) -> None:
        self._partial = partial
        self._report = report
        self._last: dict[bytes, int] = {}
        self._file = -1
        self._seen: set[bytes] = set()  # clients that have a record in the current file
        self._end: Unfinished | None = None
        self.records = 0
        self.commits = 0
        self.first_time = 0
        self.last_time = 0
        self.counts: Counter[FaultKind] = Counter()
        self.beginnings: Counter[int] = Counter()

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return len(self._last)

    @property
    def unfinished(self) -> Unfinished | None:
        """The last line of the last file, if it has no newline."""
        return self._end

    @property
    def faults(self) -> int:
        """How many faults were found."""
        return self.counts.total()

    def add(self, file: int, summary: Summary) -> None:
        """Go on with the next stretch."""
        if self._end is not None:
            reason = f"its last line has no end, after {self._end.size} bytes, but is not the last"
            self._found(self._end.file, [Fault(self._end.offset, FaultKind.DAMAGED, reason)])
            self.counts[FaultKind.DAMAGED] += 1
            self._end = None
        if file != self._file:
            self._file = file
            self._seen.clear()
        seams = self._seams(file, summary)
        self.counts += summary.fault_counts
        for fault in seams:
            self.counts[fault.kind] += 1
        self._found(file, sorted([*summary.faults, *seams], key=attrgetter("offset")))
        self.records += summary.records
        if summary.commits:
            self.commits += summary.commits - (summary.first_time == self.last_time)
            self.first_time = self.first_time or summary.first_time
            self.last_time = summary.last_time
        if summary.unfinished is not None:
            size = summary.end - summary.unfinished
            self._end = Unfinished(file, summary.unfinished, size)

    def _found(self, file: int, faults: list[Fault]) -> None:
        for fault in faults:
            self._report(file, fault)

    def _seams(self, file: int, summary: Summary) -> list[Fault]:
        """What is wrong between this stretch and those before it."""
        faults = []
        if summary.commits and summary.first_time < self.last_time:
            reason = time_fault(summary.first_time, self.last_time)
            faults.append(Fault(summary.first_offset, FaultKind.TIME, reason))
        last = self._last
        for client, run in summary.clients.items():
            before = last.get(client)
            if before is None:
                if run.first != 1 and not self._partial:
                    reason = f"client {client_text(client)} begins with sequence {run.first}, not 1"
                    faults.append(Fault(run.offset, FaultKind.BEGINNING, reason))
            elif run.first != before + 1:
                reason = sequence_fault(client, run.first, before)
                faults.append(Fault(run.offset, FaultKind.SEQUENCE, reason))
                if client not in self._seen and run.first > before:
                    self.beginnings[file] += 1
            last[client] = run.last
        if file:  # before the first file there is none whose successor could be missing
            self._seen.update(summary.clients)
        return faults


@define(slots=True, eq=False)
class ClientTotal:
    """What one client has in the logs: records, and bytes of their lines."""

    records: int = 0
    size: int = 0


class Statistics:
    """
    What is in logs.

    @ivar clients: by their 16 bytes.
    @ivar spans: the records by time: of each span, its number since 1970.
    @ivar span_seconds: how long a span is.
    """

    def __init__(self) -> None:
        self.records = 0
        self.commits = 0
        self.size = 0
        self.first_time = 0
        self.last_time = 0
        self.clients: dict[bytes, ClientTotal] = {}
        self.spans: Counter[int] = Counter()
        self.span_seconds = 1
        self.counts: Counter[FaultKind] = Counter()

    def add(self, summary: Summary) -> None:
        """Count another stretch, later than those before."""
        self.records += summary.records
        self.size += summary.end - summary.begin
        self.counts += summary.fault_counts
        if summary.commits:
            self.commits += summary.commits - (summary.first_time == self.last_time)
            self.first_time = self.first_time or summary.first_time
            self.last_time = summary.last_time
        clients = self.clients
        for client, run in summary.clients.items():
            total = clients.get(client)
            if total is None:
                total = clients[client] = ClientTotal()
            total.records += run.records
            total.size += run.size
        for second, records in summary.seconds.items():
            self.spans[second // self.span_seconds] += records
        while len(self.spans) > _SPANS:
            self._join_spans()

    def _join_spans(self) -> None:
        self.span_seconds *= 2
        joined: Counter[int] = Counter()
        for span, records in self.spans.items():
            joined[span // 2] += records
        self.spans = joined

    @property
    def seconds(self) -> float:
        """From the first record to the last."""
        return (self.last_time - self.first_time) / _SECOND

    def busiest(self, count: int) -> list[tuple[bytes, ClientTotal]]:
        """The clients with the most records."""
        return sorted(
            self.clients.items(), key=lambda item: (-item[1].records, -item[1].size, item[0])
        )[:count]
