"""
A start from one state of the disk, by the real code, and whether every promise was kept.

Checked are: the start succeeds; nothing is changed but a torn end, which is kept aside and said;
each client's last message is one that it sent, and not before one that was promised; other bytes
under a logged sequence are refused, the right ones acknowledged; what was not stored is stored
now, and a next message too; and then the files hold every message once, unaltered, in order, by
the rules of docs/log-format.md, read by a reader that shares no code with the server.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from unittest.mock import patch

from attrs import frozen
from google_crc32c import value as crc32c

from msglog import NackCode, StartError
from msglog._batch import STORED
from msglog._checkpointer import Checkpointer
from msglog._recovery import Recovery
from msglog._space import FreeSpace
from msglog._writer import Appending, Asking, LogWriter

from .histories import Conversation, Mark, Run, Violation, mark_at
from .memory_disk import MemoryDisk, State

__all__ = ["Checker", "Outcome", "Said", "silence", "still_kept"]

_KEYS = [["time", "client", "seq", "crc", kind] for kind in ("message", "base64")]


class Said:
    """In the place of a log: counts what was said as a warning."""

    def __init__(self) -> None:
        self.warnings = 0

    def warn(self, *_: Any, **__: Any) -> None:
        self.warnings += 1

    def info(self, *_: Any, **__: Any) -> None:
        pass

    error = info


@contextmanager
def silence() -> Iterator[Said]:
    """Have what the server says counted: it would say it a million times."""
    said = Said()
    with (
        patch.object(Recovery, "_log", said),
        patch.object(LogWriter, "_log", said),
        patch.object(Checkpointer, "_log", said),
        patch.object(FreeSpace, "_log", said),
    ):
        yield said


@frozen
class Outcome:
    """
    A start that was right.

    @ivar disk: all that it did, and the resends after it.
    @ivar cut: the length of each file that was cut, after that.
    @ivar marks: what was promised and sent from which of its operations on.
    """

    disk: MemoryDisk
    cut: dict[str, int]
    marks: tuple[Mark, ...]

    def mark(self, point: int) -> Mark:
        """What was promised at a point."""
        return mark_at(self.marks, point)


class Checker:
    """
    Checks the states of one history.

    @param said: what L{silence} gives.
    """

    def __init__(self, run: Run, said: Said) -> None:
        self._run = run
        self._said = said
        self._read: set[int] = set()
        self._lines: dict[bytes, tuple[str, bytes, int, bytes]] = {}

    def check(self, mark: Mark, state: State, now: float) -> Outcome:
        """
        Start from a state.

        @param now: the time, seconds since 1970.
        @raise Violation: something was not right.
        """
        disk = MemoryDisk(state)
        warnings = self._said.warnings
        writer = self._run.settings.writer(disk, lambda: now, lambda: 0.0)
        try:
            writer.open()
        except StartError as e:
            raise Violation(f"the server does not start: {e}") from e
        opened = disk.look()
        cut = _cut(state, opened)
        if bool(cut) != (self._said.warnings > warnings):
            raise Violation(f"cut {cut}, and {self._said.warnings - warnings} warnings")
        sent = {client: count + 1 for client, count in mark.sent.items()}
        asked = Mark(len(disk.notes) + 1, mark.promised, sent)
        self.answer(mark, writer)
        self._check_files(opened, disk.look(), sent)
        promised = mark.promised if self._run.settings.sync else sent
        answered = Mark(len(disk.notes), promised, sent)
        return Outcome(disk, cut, (Mark(0, mark.promised, mark.sent), asked, answered))

    def check_damaged(self, state: State, now: float) -> bool:
        """
        Start from a state in which something that was synced is not as it was.

        @return: whether the start was refused.
        @raise Violation: something was cut off that cannot be the torn last commit, or was not
            kept.
        """
        disk = MemoryDisk(state)
        writer = self._run.settings.writer(disk, lambda: now, lambda: 0.0)
        try:
            writer.open()
        except StartError:
            refused = True
        else:
            refused = False
        for name, length in _cut(state, disk.look()).items():
            if not self._run.settings.sync:
                self._check_torn(state.files[name], length)
        return refused

    def _check_torn(self, data: bytes, length: int) -> None:
        """See that what was cut off can be torn, by what docs/log-format.md says of it."""
        before = self._times(data[:length].splitlines(keepends=True)[-1:])
        damaged, *behind = data[length:].splitlines(keepends=True)
        times = self._times(behind)
        if len(times) > 1:
            raise Violation(f"records of {len(times)} times were cut off behind damage")
        if times and before and min(times) < max(before):
            raise Violation("a record of an earlier time was cut off behind damage")
        said = re.match(rb'{"time":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)"', damaged)
        if times and said and said[1].decode() < min(times):
            raise Violation("a record of a later time than the damaged one was cut off")

    def _times(self, lines: list[bytes]) -> set[str]:
        times = set()
        for line in lines:
            try:
                times.add(self._line(line)[0])
            except Violation:
                pass
        return times

    def answer(self, mark: Mark, writer: LogWriter) -> None:
        """Have every client send again, and see what it is told."""
        window = self._run.settings.limits.window
        entries: list[Appending | Asking] = []
        expected: list[tuple[Conversation, str]] = []
        for c in self._run.clients:
            promised, sent = mark.promised[c.client], mark.sent[c.client]
            last = writer.ledger.last(c.client)
            if not promised <= last <= sent:
                raise Violation(
                    f"the last message of {c.client.hex()} is {last}, of {sent} sent and "
                    f"{promised} promised"
                )
            oldest = max(last - window + 1, 1)
            if last:
                # Among what is remembered, every third as it was: an ACK is for exact bytes.
                entries.append(c.forged(max(oldest, last - 2), last))
                expected.append((c, "conflict"))
            if oldest > 1:
                entries.append(c.entry(oldest - 1, oldest - 1))
                expected.append((c, "conflict"))
            entries.append(c.entry(oldest, sent + 1))
            expected.append((c, "stored"))
        results = writer.commit(entries)
        for entry, (c, word), verdict in zip(entries, expected, results, strict=True):
            if word == "stored":
                if verdict != STORED:
                    raise Violation(f"a resend of {c.client.hex()} is refused: {verdict}")
                continue
            assert isinstance(entry, Appending)
            assert not isinstance(verdict, int)
            codes = [refusal.code for refusal in verdict.refusals]
            if codes != [NackCode.CONFLICT] * len(entry.batch):
                raise Violation(f"other bytes of {c.client.hex()} are answered {verdict}")

    def _check_files(self, opened: State, now: State, sent: dict[bytes, int]) -> None:
        """Read the files, if not the very same were read already."""
        old, new = self._in_order(opened.files), self._in_order(now.files)
        key = hash((*old, None, *new, *sent.values()))
        if key not in self._read:
            self._read.add(key)
            self._read_files(old, new, sent)

    def _read_files(self, old: list[bytes], new: list[bytes], sent: dict[bytes, int]) -> None:
        """See that files have every message once, and that nothing before the start changed."""
        keep = self._run.settings.rotation.keep
        every = b"".join(new)
        if keep:
            while old and not every.startswith(b"".join(old)):
                del old[0]
        if not every.startswith(b"".join(old)):
            raise Violation("what was logged before the start is not there after it")
        began = len(b"".join(old))
        bodies = {c.client: c.bodies for c in self._run.clients}
        logged: dict[bytes, int] = {}
        last_time, at = "", 0
        for line in every.splitlines(keepends=True):
            time, client, sequence, body = self._line(line)
            if time < last_time or (time == last_time and at == began):
                raise Violation(f"the time {time} follows {last_time}")
            last_time = time
            at += len(line)
            last = logged.get(client, sequence - 1 if keep else 0)
            if sequence != last + 1:
                raise Violation(f"sequence {sequence} of {client.hex()} follows {last}")
            logged[client] = sequence
            if bodies[client][sequence - 1] != body:
                raise Violation(f"the body of sequence {sequence} is not what was sent")
        if logged != sent:
            raise Violation(f"logged are {logged}, sent were {sent}")

    def _in_order(self, files: dict[str, bytes]) -> list[bytes]:
        """The log and what was rotated away from it, oldest first, as every reader takes them."""
        rotated = [
            data
            for name, data in files.items()
            if name != "log" and ".torn-" not in name and self._begins_with_record(data)
        ]
        return [*sorted(rotated), files["log"]]

    def _begins_with_record(self, data: bytes) -> bool:
        try:
            self._line(data[: data.find(b"\n") + 1])
        except Violation:
            return False
        return True

    def _line(self, line: bytes) -> tuple[str, bytes, int, bytes]:
        found = self._lines.get(line)
        if found is None:
            found = self._lines[line] = read_line(line)
        return found


def read_line(line: bytes) -> tuple[str, bytes, int, bytes]:
    """
    The time, client, sequence and body of a line, by docs/log-format.md.

    @raise Violation: it is no record, or a damaged one.
    """
    try:
        record = json.loads(line)
        if list(record) not in _KEYS or not line.endswith(b"}\n"):
            raise ValueError("its keys are others")
        if "message" in record:
            body = record["message"].encode()
        else:
            body = base64.b64decode(record["base64"], validate=True)
        client = uuid.UUID(record["client"])
        checked = b"\x01" + client.bytes + record["seq"].to_bytes(8, "big") + body
        if record["crc"] != f"{crc32c(checked):08x}" or record["client"] != str(client):
            raise ValueError("its checksum is another")
        datetime.strptime(record["time"], "%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Violation(f"in the log stands {line!r}: {e}") from e
    return record["time"], client.bytes, record["seq"], body


def _cut(before: State, after: State) -> dict[str, int]:
    """What was cut off, all of which must be kept aside; nothing else may be changed."""
    if before.files == after.files:
        return {}
    lengths = {}
    for name, data in before.files.items():
        left = after.files.get(name)
        if left == data:
            continue
        if left is None or not data.startswith(left):
            if left is not None and ".torn-" in name and left.startswith(data):
                continue  # more of it, in the same microsecond
            raise Violation(f"{name} was changed by a start")
        lengths[name] = len(left)
        if not _is_kept(after, name, data[len(left) :]):
            raise Violation(f"{len(data) - len(left)} bytes of {name} were cut off, and not kept")
    for name, data in after.files.items():
        if name not in before.files and ".torn-" not in name and data:
            raise Violation(f"{name} was made by a start")
    return lengths


def _is_kept(state: State, name: str, cut: bytes) -> bool:
    kept = (data for other, data in state.files.items() if other.startswith(f"{name}.torn-"))
    return any(data.endswith(cut) for data in kept)


def still_kept(first: State, cut: dict[str, int], second: State) -> bool:
    """
    Whether what a start has cut off, or was about to, is somewhere after another crash.

    @param first: what that start had found.
    @param cut: to which lengths it cut files.
    """
    for name, length in cut.items():
        data = first.files[name]
        whole = any(content.startswith(data) for content in second.files.values())
        if not whole and not _is_kept(second, name, data[length:]):
            return False
    return True
