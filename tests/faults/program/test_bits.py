"""
A bit that has turned over, at every place of a small log and of its ledger.

What a record says (client, sequence, message) is never accepted as something else: a start is
refused, or keeps aside and says what it cut off, or the record is as it was, or C{msglog verify}
names it.  The server that recovers is the real one but for its reactor, on a disk in memory.
"""

from __future__ import annotations

import collections
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import wire
from conftest import wait_until

from msglog import Limits
from msglog._batch import STORED, NackCode, Verdict
from msglog._checkpoint import Checkpoint
from msglog._errors import RecordError, StartError, StoreFailed
from msglog._records import format_lines, parse_line
from msglog._scan import scan
from msglog._writer import Appending, LogWriter
from msglog.testing import make_batch

from ..memory_disk import LOG, MemoryDisk, State
from .promise import Told, check

CLIENTS = [bytes([n]) * 16 for n in (0x11, 0xEE)]


def write_commits(writer: LogWriter) -> list[tuple[bytes, int, bytes]]:
    """Four commits of two clients, about 1,500 bytes; what they say."""
    said = []
    for number in range(4):
        entries = []
        for client in CLIENTS:
            first = 1 + sum(1 for c, *_ in said if c == client)
            bodies = [
                b"%d of %d" % (n, number) if n else b"\xff\x00" for n in range(1 + number % 2)
            ]
            batch = make_batch(client, first, *bodies)
            entries.append(Appending(batch, format_lines(batch)))
            said += [(client, first + n, body) for n, body in enumerate(bodies)]
        assert set(writer.commit(entries)) == {STORED}
    return said


def flipped(data: bytes, bits: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    """Each with one bit turned over."""
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)


def found_by_verify(data: bytes) -> bool:
    summary = scan(lambda count, at: data[at : at + count], 0, len(data))
    return bool(summary.fault_counts) or summary.unfinished is not None


def content(data: bytes) -> list[tuple[bytes, int, bytes]]:
    """What its good records say."""
    said = []
    for line in data.splitlines(keepends=True):
        try:
            record = parse_line(line)
        except RecordError:
            continue
        said.append((record.client, record.sequence, record.body))
    return said


def test_every_bit_of_the_log() -> None:
    """With its ledger as a clean stop left it, as a kill did, and without one."""
    disk = MemoryDisk()
    writer = LogWriter(LOG, Limits(), disk=disk, checkpoint=disk.checkpoint)
    writer.open()
    said = write_commits(writer)
    killed = disk.look()
    writer.close()
    stopped = disk.look()
    whole = stopped.files["log"]
    assert 1400 < len(whole) < 2000
    ends: collections.Counter[str] = collections.Counter()
    for bit, data in flipped(whole, range(8 * len(whole))):
        verified = found_by_verify(data)
        if not verified:
            assert content(data) == said, f"bit {bit}: verify takes it for something else"
            ends["verify: the time alone, or the same in other letters"] += 1
        for name, ledger in (
            ("stopped", stopped.ledger),
            ("killed", killed.ledger),
            ("no ledger", None),
        ):
            end = recover(State({"log": data}, ledger), data, verified)
            if end == "as it was":
                assert verified or content(data) == said, f"bit {bit}, {name}"
            ends[f"{name}: {end}"] += 1
    print("\n".join(f"{count:6} {end}" for end, count in sorted(ends.items())))
    assert ends["stopped: kept aside"] == 0, "what a ledger knows was cut off"


def recover(state: State, data: bytes, verified: bool) -> str:
    """Start on this; how that ends."""
    disk = MemoryDisk(state)
    writer = LogWriter(LOG, Limits(), disk=disk, checkpoint=disk.checkpoint)
    try:
        recovered = writer.open()
    except StartError as e:
        refused = str(e)
    else:
        refused = ""
    if refused:
        assert disk.look().files["log"] == data, "a log that is damaged was changed"
        assert "byte" in refused or "ledger" in refused, refused
        return "refused"
    left = disk.look().files
    if recovered.kept is not None:
        assert left["log"] + left[recovered.kept.name] == data, "something was dropped"
        assert recovered.torn == len(data) - len(left["log"])
        assert content(left["log"]) == content(data)[: len(content(left["log"]))]
        return "kept aside"
    assert left["log"] == data
    return "as it was"


def ledgers(folder: Path) -> tuple[Path, list[tuple[bytes, int, bytes]]]:
    """A log with its ledger, of a server that was stopped."""
    folder.mkdir()
    writer = LogWriter(folder / "log", Limits())
    writer.open()
    said = write_commits(writer)
    writer.close()
    return folder / "log.ledger", said


def test_bits_of_the_ledger(tmp_path, rounds) -> None:
    """
    It is refused, or clients are who they are, or one is told NOT_STORED and why, or the server
    ends with a line that says why.

    Nothing is logged twice or acknowledged as something else, nobody is told that what is right is
    not (CONFLICT, OUT_OF_ORDER), nothing that is logged is touched, and nothing ends with a
    traceback.

    One bit of each byte that is not zero and of some that are; every bit in the long form.
    """
    ledger, said = ledgers(tmp_path / "base")
    whole = ledger.read_bytes()
    rng = random.Random()
    if rounds > 1:
        bits = list(range(8 * len(whole)))
    else:
        some = [n for n, byte in enumerate(whole) if byte or rng.random() < 0.01]
        bits = [8 * n + rng.randrange(8) for n in some]
    folder = tmp_path / "again"
    folder.mkdir()
    ends: collections.Counter[str] = collections.Counter()
    wrong = []
    for bit, data in flipped(whole, iter(bits)):
        for path in folder.iterdir():
            path.unlink()
        shutil.copy(tmp_path / "base" / "log", folder / "log")
        (folder / "log.ledger").write_bytes(data)
        try:
            ends[live_on(folder / "log", said)] += 1
        except Exception as e:
            wrong.append(f"bit {bit % 8} of byte {bit // 8} of {len(whole)}: {e!r}")
    print(len(bits), dict(ends))
    assert not wrong, "\n".join(wrong)


def quick_checkpoint(path: Path, window: int) -> Checkpoint:
    """A ledger that does not wait for the disk; nobody cuts the power here."""
    checkpoint = Checkpoint(path, window)
    execute = checkpoint._db.execute
    execute("PRAGMA synchronous=OFF")
    return checkpoint


def live_on(log: Path, said: list[tuple[bytes, int, bytes]]) -> str:
    writer = LogWriter(log, Limits(), checkpoint=quick_checkpoint)
    before = log.read_bytes()
    try:
        writer.open()
    except StartError:
        assert log.read_bytes() == before
        return "refused"
    end = "as it was"
    try:
        for client, sequence, body in said:
            batch = make_batch(client, sequence, body)
            (verdict,) = writer.commit([Appending(batch, format_lines(batch))])
            if not_stored(verdict, writer):
                end = "refused to a client"
            batch = make_batch(client, sequence, body + b"?")
            (verdict,) = writer.commit([Appending(batch, format_lines(batch))])
            assert verdict != STORED, "acknowledged as something else"
        for client in CLIENTS:
            last = sum(1 for c, *_ in said if c == client)
            batch = make_batch(client, last + 1, b"next")
            (verdict,) = writer.commit([Appending(batch, format_lines(batch))])
            if not_stored(verdict, writer):
                end = "refused to a client"
        writer.close()
    except StoreFailed:
        end = "fail-stop"
    finally:
        writer._abandon()
    after = log.read_bytes()
    assert after.startswith(before)
    assert not set(content(after[len(before) :])) & set(said), "logged twice"
    assert not found_by_verify(after)
    return end


def not_stored(verdict: Verdict | int | None, writer: LogWriter) -> bool:
    """Whether a client is refused what it may send; then the ledger's damage is the reason."""
    assert isinstance(verdict, Verdict)
    for refusal in verdict.refusals:
        assert refusal.code is NackCode.NOT_STORED, refusal
        assert "ledger" in refusal.reason
        assert writer.ledger_damage is not None
    return bool(verdict.refusals)


def test_real_program(make, rounds) -> None:
    """The same with the real server and C{msglog verify}, at a few places of the log."""
    server, client = make().start(), Told()
    with wire.Connection(server.port) as connection:
        for _ in range(8):
            assert client.send(connection, 1)
    server.stop()
    server.forget()
    whole = server.log.read_bytes()
    end = whole.rindex(b'{"time"', 0, whole.rindex(b'{"time"'))  # before the last two commits
    for bit, data in flipped(whole, iter(random.sample(range(8 * end), 6 * rounds))):
        server.log.write_bytes(data)
        status, words = server.run("verify", str(server.log))
        if status == 0:
            assert content(data) == content(whole), f"bit {bit}"
            continue
        assert "byte" in words
        assert not server.begin()
        assert server.wait() == 1
        assert "is damaged at byte" in server.said()
        assert server.log.read_bytes() == data
    server.log.write_bytes(whole)
    server.forget()
    wait_until(lambda: server.process is None or server.process.poll() is not None, "the end")
    check(server, [client], torn=False)
