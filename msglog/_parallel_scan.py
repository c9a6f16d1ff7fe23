"""
Scanning stretches of logs in several processes, with the results in order.

A pipe to each process, one stretch at a time: so none can wait for the other, a process that dies
is noticed, and when this one dies they end.  No threads, so that forking is safe.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from attrs import frozen

from ._errors import LogUnreadable, ScanFailed
from ._logfile import LogFile
from ._records import MAX_LINE_BYTES
from ._scan import FaultKind, Summary, scan

__all__ = ["Scanned", "scan_files", "usable_processors"]

# What a process checks at a time, bytes: 20,000 records of 256 bytes or 30 ms of work, against
# which handing it over and putting summaries together cost little; small enough that the progress
# moves and that summaries of a million clients do not pile up.
STRETCH_BYTES = 8 * 1024 * 1024

# How many stretches may be ready before one whose turn is earlier, for each process.  Their
# summaries are all that is held.
_AHEAD = 4


@frozen(slots=True)
class _Stretch:
    """
    What a process is asked to scan: a part of a file, or bytes that were read already.

    @ivar file: the index of the file.
    @ivar failure: why the file cannot be read from here on; empty if it can.
    """

    file: int
    begin: int
    end: int
    data: bytes | None = None
    failure: str = ""


@frozen(slots=True)
class Scanned:
    """
    A stretch's result.

    @ivar file: the index of the file.
    @ivar consumed: how much of the file on the disk was read when this was handed over, or
        L{None} for a pipe.
    """

    file: int
    summary: Summary
    consumed: int | None


def usable_processors() -> int:
    """How many processes can work at a time."""
    return len(os.sched_getaffinity(0))


def scan_files(files: Sequence[LogFile], processes: int) -> Generator[Scanned, None, None]:
    """
    The summaries of all stretches of files, in order.

    Where a file cannot be read any further is a fault in a summary.

    @raise ScanFailed: a process was killed.
    """
    sizes = [file.size for file in files]
    if all(size is not None for size in sizes) and sum(map(_known, sizes)) <= STRETCH_BYTES:
        processes = 1  # starting one costs as much
    if processes == 1:
        for stretch, consumed in _stretches(files):
            yield Scanned(stretch.file, _scan(files, stretch), consumed)
        return
    workers = [_Worker(files) for _ in range(processes)]
    for worker in workers:
        worker.start(workers)
    try:
        yield from _scan_in(workers, _stretches(files))
    finally:
        for worker in workers:
            worker.stop()


def _known(size: int | None) -> int:
    return size or 0


def _scan_in(
    workers: list[_Worker], stretches: Iterator[tuple[_Stretch, int | None]]
) -> Iterator[Scanned]:
    idle = list(workers)
    busy: dict[_Worker, int] = {}
    handed: dict[int, tuple[int, int | None]] = {}
    done: dict[int, Summary] = {}
    following = 0  # the number of the stretch whose result comes next

    def collect() -> None:
        ready = wait([worker.connection for worker in busy])
        for worker in [worker for worker in busy if worker.connection in ready]:
            done[busy.pop(worker)] = worker.result()
            idle.append(worker)

    def results() -> Iterator[Scanned]:
        nonlocal following
        while following in done:
            file, consumed = handed.pop(following)
            yield Scanned(file, done.pop(following), consumed)
            following += 1

    for number, (stretch, consumed) in enumerate(stretches):
        while not idle or number - following > _AHEAD * len(workers):
            collect()
            yield from results()
        worker = idle.pop()
        worker.ask(stretch)
        busy[worker] = number
        handed[number] = stretch.file, consumed
    while busy:
        collect()
        yield from results()


def _scan(files: Sequence[LogFile], stretch: _Stretch) -> Summary:
    data, begin = stretch.data, stretch.begin
    failure = stretch.failure
    if not failure:
        try:
            if data is None:
                return scan(files[stretch.file].read, begin, stretch.end)
            return scan(lambda count, at: data[at - begin : at - begin + count], begin, stretch.end)
        except LogUnreadable as e:
            failure = str(e)
    summary = Summary(begin, stretch.end)
    summary.add_fault(begin, FaultKind.UNREADABLE, failure)
    return summary


class _Worker:
    """A process that scans one stretch after the other."""

    def __init__(self, files: Sequence[LogFile]) -> None:
        context = multiprocessing.get_context("fork")  # the files are open already
        self.connection, self._other = context.Pipe()
        self._files = files
        self._context = context
        self._process: BaseProcess

    def start(self, all_of_them: list[_Worker]) -> None:
        """
        Fork.

        @param all_of_them: the workers whose ends of pipes the new process must not hold.
        """
        self._process = self._context.Process(target=self._run, args=(all_of_them,), daemon=True)
        # Ctrl-C is for the process that asks, from the new one's first instruction on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._other.close()

    def _run(self, all_of_them: list[_Worker]) -> None:
        for worker in all_of_them:
            worker.connection.close()
            if worker is not self and not worker._other.closed:
                worker._other.close()
        # Nothing here has cycles; looking for them takes a quarter of the time if there are many
        # clients.
        gc.disable()
        try:
            while True:
                self._other.send(_scan(self._files, self._other.recv()))
        except (EOFError, OSError):  # nobody asks any more
            pass

    def ask(self, stretch: _Stretch) -> None:
        """Have a stretch scanned."""
        try:
            self.connection.send(stretch)
        except OSError:
            raise self._died() from None

    def result(self) -> Summary:
        """What became of it."""
        try:
            summary: Summary = self.connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        return summary

    def _died(self) -> ScanFailed:
        return ScanFailed(
            "a process that was scanning was killed, perhaps because memory ran out; try again "
            "with --jobs 1"
        )

    def stop(self) -> None:
        """Have the process end."""
        self.connection.close()
        self._process.join()


def _stretches(files: Sequence[LogFile]) -> Iterator[tuple[_Stretch, int | None]]:
    """All files in stretches of whole lines, each with how much of its file was read."""
    for index, file in enumerate(files):
        size = file.size
        stretches = (
            _stretches_of_stream(index, file)
            if size is None
            else _stretches_of_plain(index, file, size)
        )
        end = 0
        try:
            for stretch in stretches:
                yield stretch, stretch.end if size is not None else file.consumed
                end = stretch.end
        except LogUnreadable as e:
            yield _Stretch(index, end, end, failure=str(e)), None


def _stretches_of_plain(index: int, file: LogFile, size: int) -> Iterator[_Stretch]:
    begin = 0
    while begin < size:
        end = _line_end(file, min(begin + STRETCH_BYTES, size), size)
        yield _Stretch(index, begin, end)
        begin = end


def _line_end(file: LogFile, offset: int, size: int) -> int:
    """Where the line ends that the byte before an offset belongs to."""
    offset -= 1
    while offset < size and (block := file.read(min(64 * 1024, size - offset), offset)):
        end = block.find(b"\n")
        if end >= 0:
            return offset + end + 1
        offset += len(block)
    return size


def _stretches_of_stream(index: int, file: LogFile) -> Iterator[_Stretch]:
    begin, size = 0, STRETCH_BYTES
    while data := file.read(size, begin):
        cut = data.rfind(b"\n") + 1
        if not cut:
            if len(data) == size and size <= MAX_LINE_BYTES:
                size *= 2
                continue
            cut = len(data)
        yield _Stretch(index, begin, begin + cut, data[:cut])
        begin += cut
        size = STRETCH_BYTES
