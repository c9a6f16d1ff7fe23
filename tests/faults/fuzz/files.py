"""Targets that are read from the disk: lines, logs, ledgers, spools."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from click.testing import CliRunner

from msglog import Limits, NackCode
from msglog._batch import STORED, Verdict
from msglog._disk import Disk
from msglog._errors import RecordError, SpoolError, StartError, StoreFailed
from msglog._records import Record, format_line, format_lines, parse_line
from msglog._scan import FaultKind, scan
from msglog._spool import Spool, Step
from msglog._writer import Appending, LogWriter
from msglog.cli import _cat, _stats, _tail, _verify
from msglog.testing import make_batch

from .choices import Choices, mutated

__all__ = ["ledger", "line", "log", "spool"]

_IDS = [bytes([n]) * 16 for n in range(3)]
_BODIES = [b"", b"hello", b"\xff\0", "é\u2028\x85 ’".encode(), b'"\\\x1b[0m', b"x" * 200]


class _Quick(Disk):
    """No waiting for the disk."""

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


@contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="msglog-fuzz-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def line(data: bytes) -> None:
    """
    A line: it is a record whose content is that of its checksum, and one that a reader as in
    docs/log-format.md reads too, or it is refused; and C{scan} is of the same opinion.
    """
    choices = Choices(data)
    body, client = choices.one_of(_BODIES), choices.one_of(_IDS)
    sequence = 1 + choices.number(99)
    checksum = make_batch(client, sequence, body).checksums[0]
    text = format_line(Record(10**15 + choices.number(9), client, sequence, checksum, body))
    assert parse_line(text).body == body
    if choices.number(4) == 0:
        text = b""
    changed = mutated(choices, text[:-1]) + choices.rest()
    text = changed.replace(b"\n", b"") + b"\n"
    summary = scan(lambda count, at: text[at : at + count], 0, len(text))
    damaged = summary.fault_counts[FaultKind.DAMAGED]
    try:
        record = parse_line(text)
    except RecordError:
        assert damaged == 1, text
        return
    assert not damaged, (text, summary.faults)
    assert summary.records == 1
    fields = json.loads(text)
    assert len(json.loads(text, object_pairs_hook=list)) == len(fields) == 5
    assert set(fields) in ({"time", "client", "seq", "crc", "message"},) or "base64" in fields
    assert fields["crc"] == f"{record.checksum:08x}"
    assert UUID(fields["client"]).bytes == record.client
    again = parse_line(format_line(record))
    assert again == record
    assert make_batch(record.client, record.sequence, record.body).checksums == [record.checksum]
    assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in text.decode()[:-1] if c != "\t")


def _written(choices: Choices, folder: Path) -> tuple[list[int], bytes]:
    """A log of some commits: where each ends, and all of it."""
    writer = LogWriter(folder / "log", Limits(), disk=_Quick(), clock=lambda: 1e9)
    writer.open()
    ends, following = [0], dict.fromkeys(_IDS, 1)
    for _ in range(1 + choices.number(5)):
        client = choices.one_of(_IDS)
        bodies = [choices.one_of(_BODIES) for _ in range(1 + choices.number(4))]
        batch = make_batch(client, following[client], *bodies)
        following[client] += len(bodies)
        assert writer.commit([Appending(batch, format_lines(batch))]) == [STORED]
        ends.append(writer.size)
    if choices.number(2):
        writer.close()
    else:
        writer._abandon()
    return ends, (folder / "log").read_bytes()[: ends[-1]]


def _serve(folder: Path) -> bool:
    """Start on a log, if it lets itself be started on, and write one message more."""
    writer = LogWriter(folder / "log", Limits(), disk=_Quick(), clock=lambda: 2e9)
    try:
        writer.open()
    except StartError:
        return False
    batch = make_batch(b"honest".ljust(16), 1, b"x")
    try:
        (verdict,) = writer.commit([Appending(batch, format_lines(batch))])
    except StoreFailed:
        writer._abandon()
        return True
    if verdict != STORED:
        # What says that a client is new may be damaged: then it is refused, and that is said.
        assert isinstance(verdict, Verdict)
        assert [refusal.code for refusal in verdict.refusals] == [NackCode.NOT_STORED]
        assert writer.ledger_damage is not None
    else:
        last = (folder / "log").read_bytes()[: writer.size].splitlines()[-1]
        assert parse_line(last).body == b"x"
    writer._abandon()
    return True


def log(data: bytes) -> None:
    """
    A log with damage, and what reads it: a start keeps all but the last commit, or refuses;
    commands say what is wrong, and fail in no other way.
    """
    choices = Choices(data)
    with _folder() as folder:
        ends, whole = _written(choices, folder)
        if choices.number(2):
            for extra in folder.glob("log.ledger*"):
                extra.unlink()
        keep = choices.one_of(ends)
        changed = whole[:keep] + mutated(choices, whole[keep:])
        (folder / "log").write_bytes(changed)
        for arguments in (
            (_verify.command, "--jobs", "1"),
            (_stats.command, "--json"),
            (_cat.command, "--json"),
            (_cat.command, "--since", "2001-09-09T01:46:40.000002Z"),
            (_tail.command, "-n", "3"),
        ):
            command, *options = arguments
            result = CliRunner().invoke(command, [*options, str(folder / "log")])
            assert result.exception is None or isinstance(result.exception, SystemExit), options
            shown = result.stdout_bytes.decode(errors="replace") + result.stderr
            assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in shown if c not in "\n\t"), (
                shown
            )
        if _serve(folder):
            now = (folder / "log").read_bytes()
            before = max((end for end in ends[:-1] if changed[:end] == whole[:end]), default=0)
            assert now[:before] == whole[:before], "what was acknowledged is gone"
        else:
            assert (folder / "log").read_bytes() == changed, "a start that refused changed the log"


def ledger(data: bytes) -> None:
    """A ledger with damage: a start takes it or refuses it, and the log is as it was."""
    choices = Choices(data)
    with _folder() as folder:
        ends, whole = _written(choices, folder)
        path = folder / "log.ledger"
        if choices.number(2):
            _change_rows(choices, path, ("meta", "clients", "blocks"))
        else:
            path.write_bytes(mutated(choices, path.read_bytes()))
        _serve(folder)
        assert (folder / "log").read_bytes()[: ends[-1]] == whole


_ROW_VALUES = [None, 0, -1, 1, 64, 2**53, -(2**63), 2**63 - 1, 1.5, "x", b"", b"abc", bytes(16)]


def _change_rows(choices: Choices, path: Path, tables: tuple[str, ...]) -> None:
    """Change what stands in a database that is whole."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        for _ in range(1 + choices.number(3)):
            table = choices.one_of(tables)
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            value = choices.one_of(_ROW_VALUES)
            count = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            if not count:
                continue
            key = columns[0]
            keys = [row[0] for row in db.execute(f"SELECT {key} FROM {table} ORDER BY 1")]
            command = f"UPDATE OR IGNORE {table} SET {choices.one_of(columns)} = ? WHERE {key} = ?"
            try:
                db.execute(command, (value, choices.one_of(keys)))
            except sqlite3.IntegrityError:
                pass
    except sqlite3.DatabaseError:
        pass
    finally:
        db.close()


def spool(data: bytes) -> None:
    """A spool with damage: it is used or refused."""
    choices = Choices(data)
    with _folder() as folder:
        path = folder / "spool"
        made = Spool(path, lambda: UUID(bytes=_IDS[0]))
        made.do(Step(add=[choices.one_of(_BODIES) for _ in range(choices.number(5))]))
        made.do(Step(marks={"a": 1}))
        made.close()
        if choices.number(2):
            _change_rows(choices, path, ("meta", "messages", "marks"))
        else:
            path.write_bytes(mutated(choices, path.read_bytes()))
        try:
            again = Spool(path, lambda: UUID(bytes=_IDS[1]))
        except SpoolError:
            return
        step = again.do(Step(read=10))
        assert all(isinstance(body, bytes) for _, body in step.rows)
        again.do(Step(add=[b"one more"], settled=1, through=1))
        again.close()
