"""
What docs/protocol.md and docs/log-format.md promise, told a second time and shortly.

The model sees the bytes that the server's sockets read and write, and the bytes of the log that are
durable.  From these alone it says which answers are right.  It shares no code with msglog but the
CRC's library.

What the server decides, it decides at some moment between the arrival of a message and its answer.
So the model notes a client's last durable sequence at both, and a judgement must be right for some
value between the two; where nobody else writes for that client, they are the same or the message's
own.
"""

from __future__ import annotations

import base64
import json
import struct
import uuid
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from attrs import Factory, define
from google_crc32c import value as crc32c

__all__ = ["CONFLICT", "Connection", "Model", "message", "read_log"]

MALFORMED, CORRUPT, TOO_LONG, OUT_OF_ORDER, NOT_STORED, UNAVAILABLE, FORBIDDEN, CONFLICT = range(
    1, 9
)
_NAMES = (
    "",
    "MALFORMED",
    "CORRUPT",
    "TOO_LONG",
    "OUT_OF_ORDER",
    "NOT_STORED",
    "UNAVAILABLE",
    "FORBIDDEN",
    "CONFLICT",
)
_MESSAGE, _ENQUIRY, ACK, NACK, _TERMS = 0x01, 0x05, 0x06, 0x15, 0x16
_HEADER = struct.Struct(">IIB16sQ")
_LONGEST = 16 << 20
_HIGHEST = 2**53 - 1
_READ = 64 << 10  # what the server reads at a time, at most
_NOBODY = bytes(16)


def message(client: bytes, sequence: int, body: bytes, kind: int = _MESSAGE) -> bytes:
    """A frame of a client's."""
    checked = struct.pack(">B16sQ", kind, client, sequence) + body
    return struct.pack(">II", len(checked) + 4, crc32c(checked)) + checked


def checksum(client: bytes, sequence: int, body: bytes) -> int:
    result: int = crc32c(struct.pack(">B16sQ", _MESSAGE, client, sequence) + body)
    return result


def read_log(data: bytes) -> list[tuple[str, bytes, int, int, bytes]]:
    """The records at the front of a log: time, client, sequence, checksum, body."""
    records = []
    for line in data.split(b"\n")[:-1]:
        try:
            fields = json.loads(line)
            if list(fields)[:4] != ["time", "client", "seq", "crc"] or len(fields) != 5:
                break
            text = fields.get("message")
            body = base64.b64decode(fields["base64"]) if text is None else text.encode()
            client = uuid.UUID(fields["client"]).bytes
            crc = int(fields["crc"], 16)
        except (ValueError, KeyError, TypeError):
            break
        if checksum(client, fields["seq"], body) != crc:
            break
        records.append((fields["time"], client, fields["seq"], crc, body))
    return records


@define(eq=False)
class _Owed:
    """
    A frame that must be answered.

    @ivar code: the NACK that is its only answer; 0 if that depends.
    @ivar last: the client's last durable sequence when it arrived.
    @ivar faults: how often the disk had failed when it arrived.
    @ivar late: whether it arrived when the server may have been about to close the connection.
    """

    kind: int
    client: bytes
    sequence: int
    crc: int
    size: int
    code: int
    last: int
    faults: int
    late: bool


class Connection:
    """
    One connection as the server's socket sees it.

    @param left: whether the peer has gone, and so does not mind what is not answered.
    @param clogged: whether answers wait for the peer to read.
    @param full: whether there were too many connections when it was accepted.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        left: Callable[[], bool],
        clogged: Callable[[], bool],
        *,
        full: bool,
        stopping: bool,
    ) -> None:
        self._model = model
        self.name = name
        self._left = left
        self._clogged = clogged
        self._turned_away = full or stopping
        self._in = bytearray()
        self._out = bytearray()
        self._owed: deque[_Owed] = deque()
        self._passing = 0  # bytes still to come of a body that is too long
        self._over = False  # nothing that comes is answered any more
        self._shut = False
        self._acked: dict[bytes, int] = {}
        self.held = 0  # bytes of messages without an answer

    # --- what the server read --------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """The server has read bytes."""
        model = self._model
        if self.held > model.most_unanswered and not (
            model.stopping or self._over or self._shut or self._clogged()
        ):
            model.violate(f"{self.name} is read with {self.held} bytes unanswered")
        if self._over or self._shut:
            return
        self._in += data
        while not self._over and self._frame():
            pass

    def _frame(self) -> bool:
        """Take one frame off the front of what came; whether there was one."""
        data = self._in
        if self._passing:
            gone = min(self._passing, len(data))
            self._passing -= gone
            del data[:gone]
            return not self._passing and bool(data)
        if len(data) < 4:
            return False
        length = int.from_bytes(data[:4], "big")
        if not 29 <= length <= 29 + _LONGEST:
            self._owe(0, _NOBODY, 0, 0, 0, MALFORMED)
            return False
        if len(data) < 33:
            return False
        _, crc, kind, client, sequence = _HEADER.unpack_from(data)
        size = length - 29
        if size > self._model.max_body:
            if kind != _MESSAGE or not 0 < sequence <= _HIGHEST:
                self._owe(kind, client, sequence, crc, 0, MALFORMED)
                return False
            self._owe(kind, client, sequence, crc, 0, TOO_LONG)
            self._passing = size
            del data[:33]
            return True
        if len(data) < 4 + length:
            return False
        frame = bytes(data[: 4 + length])
        del data[: 4 + length]
        code = 0
        if crc32c(frame[8:]) != crc:
            code = CORRUPT
        elif kind == _MESSAGE:
            if not 0 < sequence <= _HIGHEST:
                code = MALFORMED
            elif client in self._model.forbidden:
                code = FORBIDDEN
            else:
                self._model.offered.setdefault((client, sequence), set()).add(crc)
        elif kind == _ENQUIRY and sequence == 0 and size == 1 and frame[33]:
            pass
        else:
            code = MALFORMED
        self._owe(kind, client, sequence, crc, size + 33, code)
        return not self._over

    def _owe(self, kind: int, client: bytes, sequence: int, crc: int, size: int, code: int) -> None:
        model = self._model
        last, faults, late = model.last(client), model.faults(), model.stopping or model.idle
        self._owed.append(_Owed(kind, client, sequence, crc, size, code, last, faults, late))
        self.held += size
        if code == MALFORMED:
            self._over = True

    # --- what the server wrote -------------------------------------------------------------

    def sent(self, data: bytes) -> None:
        """The server has written bytes."""
        if self._shut:
            self._model.violate(f"{self.name} is written to after its end")
        out = self._out
        out += data
        while len(out) >= 4:
            length = int.from_bytes(out[:4], "big")
            if length < 29:
                self._model.violate(f"{self.name}: an answer of {length} bytes")
            if len(out) < 4 + length:
                return
            frame = bytes(out[: 4 + length])
            del out[: 4 + length]
            self._answer(frame)

    def _answer(self, frame: bytes) -> None:
        model = self._model
        _, crc, kind, client, sequence = _HEADER.unpack_from(frame)
        body = frame[33:]
        code = expected = 0
        if kind == NACK:
            code, expected = struct.unpack_from(">BQ", body)
            body[9:].decode()
        if kind != ACK and crc32c(frame[8:]) != crc:
            model.violate(f"{self.name}: the checksum of an answer is wrong")
        if not self._owed:
            if self._turned_away and (code, client, sequence) == (UNAVAILABLE, _NOBODY, 0):
                self._over = True
                return
            model.violate(f"{self.name}: an answer to nothing: {frame.hex()}")
        owed = self._owed.popleft()
        self.held -= owed.size
        what = f"{self.name}: message {owed.sequence} of {owed.client.hex()[:8]}"
        if client != owed.client or (sequence != owed.sequence and kind != _TERMS):
            model.violate(f"{what} is answered with {sequence} of {client.hex()[:8]}")
        if kind == _TERMS:
            self._terms(owed, what, sequence, body)
        elif kind == ACK:
            if owed.kind != _MESSAGE or owed.code:
                model.violate(f"{what}: an ACK where NACK {owed.code} is right")
            model.answers["ACK"] += 1
            if crc != owed.crc:
                model.violate(f"{what}: its ACK's checksum is {crc:08x} and not {owed.crc:08x}")
            model.acked(what, client, sequence, crc)
            if sequence <= owed.last - model.window:
                model.violate(f"{what} is ACKed, but older than the window")
            self._acked[client] = max(self._acked.get(client, 0), sequence)
        elif kind == NACK:
            self._nack(owed, what, code, expected, body)
        else:
            model.violate(f"{what}: an answer of type {kind}")

    def _terms(self, owed: _Owed, what: str, durable: int, body: bytes) -> None:
        model = self._model
        if owed.kind != _ENQUIRY or owed.code:
            model.violate(f"{what} is answered with TERMS")
        now = model.last(owed.client)
        least = max(owed.last, self._acked.get(owed.client, 0))
        if not least <= durable <= now:
            model.violate(f"{what}: TERMS say {durable}, where {least} to {now} is right")
        terms = struct.unpack(">BII", body)
        if terms != (1, model.max_body, model.window):
            model.violate(f"{what}: TERMS of {terms}")
        model.answers["TERMS"] += 1

    def _nack(self, owed: _Owed, what: str, code: int, expected: int, body: bytes) -> None:
        model = self._model
        model.answers[_NAMES[code]] += 1
        if owed.code and not (owed.code == FORBIDDEN and code in (UNAVAILABLE,)):
            if code != owed.code or expected:
                model.violate(f"{what}: NACK {code} ({expected}) where {owed.code} (0) is right")
            return
        last, now = owed.last, model.last(owed.client)
        if code == UNAVAILABLE:
            if not (model.stopping or model.failed()):
                model.violate(f"{what}: UNAVAILABLE while the server serves")
            return
        if owed.kind == _ENQUIRY:
            model.violate(f"{what}: an ENQUIRY is answered NACK {code}")
        known = model.logged(owed.client, owed.sequence)
        if code == NOT_STORED:
            full = model.scarce and body[9:].endswith(b"until it is written to its file")
            if model.faults() == owed.faults and not model.failed() and not full:
                model.violate(f"{what}: NOT_STORED, but the disk is well")
            if not (model.failed() or last <= expected - 1 <= now):
                model.violate(f"{what}: NOT_STORED expects {expected}, the last is {last} to {now}")
            if owed.sequence <= last and not model.failed():
                model.violate(f"{what}: NOT_STORED, but it is in the log, or a conflict")
        elif code == OUT_OF_ORDER:
            if not last <= expected - 1 <= now or expected >= owed.sequence:
                model.violate(
                    f"{what}: OUT_OF_ORDER expects {expected}, the last is {last} to {now}"
                )
        elif code == CONFLICT:
            if owed.sequence > now:
                model.violate(f"{what}: CONFLICT, but the last is {now}")
            if known == owed.crc and owed.sequence > now - model.window:
                model.violate(f"{what}: CONFLICT, but these bytes are logged")
            if not last <= expected - 1 <= now:
                model.violate(f"{what}: CONFLICT expects {expected}, the last is {last} to {now}")
        else:
            model.violate(f"{what}: NACK {code}")

    # --- the end ---------------------------------------------------------------------------

    def ended(self, reset: bool) -> None:
        """The server has closed its half."""
        self._shut = True
        self._model.forget(self)
        if reset or self._left():
            return
        if self._owed and not (owed := self._owed[0]).late:
            self._model.violate(
                f"{self.name} is closed, and {owed.sequence} of {owed.client.hex()[:8]} is not "
                f"answered"
            )
        if self._out:
            self._model.violate(f"{self.name} is closed in the middle of an answer")


@define(eq=False)
class _File:
    """
    What is known of a file of the log.

    @ivar records: of each record, where it ends, its client, its sequence and its time.
    """

    records: list[tuple[int, bytes, int, str]] = Factory(list)


class Model:
    """
    @param window: the server's.
    @param max_body: the longest body that it takes.
    @param most_unanswered: C{--max-unanswered-bytes}.
    @param forbidden: client ids that may not write.
    @param violate: called with what is wrong; raises.
    @param faults: how often the disk has failed.
    @param failed: whether the server has said that it must end because of its disk.
    @ivar stopping: whether the server is being stopped.
    @ivar scarce: whether one commit may have more clients than the ledger's memory has room for,
        which then refuses some.
    @ivar idle: whether the server's clock was set forward so far that it may take peers for idle.
    @ivar answers: how many of each kind the server gave.
    @ivar offered: checksums of the messages that reached the server, by client and sequence.
    """

    def __init__(
        self,
        window: int,
        max_body: int,
        most_unanswered: int,
        forbidden: set[bytes],
        violate: Callable[[str], Any],
        faults: Callable[[], int],
        failed: Callable[[], bool],
    ) -> None:
        self.window = window
        self.max_body = max_body
        self.most_unanswered = most_unanswered
        self.forbidden = forbidden
        self.violate = violate
        self.faults = faults
        self.failed = failed
        self.stopping = False
        self.scarce = False
        self.idle = False
        self.offered: dict[tuple[bytes, int], set[int]] = {}
        self.connections: dict[Connection, None] = {}
        self.answers: Counter[str] = Counter()
        self._durable: dict[bytes, list[int]] = {}  # checksums, from sequence 1
        self._acked: dict[bytes, dict[int, int]] = {}
        self._files: dict[int, _File] = {}
        self._last_time = ""
        self.bodies: dict[bytes, list[bytes]] = {}

    # --- the log ---------------------------------------------------------------------------

    def last(self, client: bytes) -> int:
        """A client's last durable sequence."""
        return len(self._durable.get(client, ()))

    def logged(self, client: bytes, sequence: int) -> int | None:
        """The checksum under a sequence."""
        known = self._durable.get(client, ())
        return known[sequence - 1] if 0 < sequence <= len(known) else None

    def clients(self) -> dict[bytes, int]:
        """Every client in the log, with its last sequence."""
        return {client: len(known) for client, known in self._durable.items() if known}

    def file_changed(self, number: int, content: bytes) -> None:
        """What is durable of a file of the log is not as it was."""
        file = self._files.setdefault(number, _File())
        while file.records and file.records[-1][0] > len(content):
            self._undo(*file.records.pop()[1:3])
            self._last_time = max(
                (f.records[-1][3] for f in self._files.values() if f.records), default=""
            )
        at = file.records[-1][0] if file.records else 0
        rest = content[at:]
        for record, line in zip(read_log(rest), rest.split(b"\n"), strict=False):
            at += len(line) + 1
            file.records.append((at, *record[1:3], record[0]))
            self._record(*record)

    def _record(self, time: str, client: bytes, sequence: int, crc: int, body: bytes) -> None:
        what = f"sequence {sequence} of {client.hex()[:8]}"
        known = self._durable.setdefault(client, [])
        if sequence != len(known) + 1:
            self.violate(f"{what} is logged behind {len(known)}")
        if crc not in self.offered.get((client, sequence), ()):
            self.violate(f"{what} is logged, and nobody has sent it")
        if time < self._last_time:
            self.violate(f"{what} is logged with a time before the record before it")
        self._last_time = time
        known.append(crc)
        self.bodies.setdefault(client, []).append(body)

    def _undo(self, client: bytes, sequence: int) -> None:
        if sequence in self._acked.get(client, {}):
            self.violate(
                f"sequence {sequence} of {client.hex()[:8]} is ACKed and gone from the log"
            )
        if len(self._durable[client]) != sequence:
            self.violate(f"sequence {sequence} of {client.hex()[:8]} is gone from the log's middle")
        self._durable[client].pop()
        self.bodies[client].pop()

    def power_cut(self, files: list[tuple[int, bytes]]) -> None:
        """Every file of the log has what the disk has."""
        self._durable, self.bodies, self._files, self._last_time = {}, {}, {}, ""
        first = {number: read_log(content.partition(b"\n")[0] + b"\n") for number, content in files}
        for number, content in sorted(files, key=lambda file: (first[file[0]], file[0])):
            self.file_changed(number, content)
        self.see_acked()

    def see_acked(self) -> None:
        """Everything that was ACKed is in the log."""
        for client, acked in self._acked.items():
            for sequence, crc in acked.items():
                if self.logged(client, sequence) != crc:
                    self.violate(f"sequence {sequence} of {client.hex()[:8]} is ACKed and lost")

    # --- answers ---------------------------------------------------------------------------

    def acked(self, what: str, client: bytes, sequence: int, crc: int) -> None:
        """A receipt was given."""
        logged = self.logged(client, sequence)
        if logged is None:
            self.violate(f"{what} is ACKed before it is durable")
        if logged != crc:
            self.violate(f"{what} is ACKed, and logged with other bytes")
        self._acked.setdefault(client, {})[sequence] = crc

    def accepted(
        self, name: str, left: Callable[[], bool], clogged: Callable[[], bool], *, full: bool
    ) -> Connection:
        """The server has accepted a connection."""
        connection = Connection(self, name, left, clogged, full=full, stopping=self.stopping)
        self.connections[connection] = None
        return connection

    def forget(self, connection: Connection) -> None:
        """A connection is at its end."""
        self.connections.pop(connection, None)

    def server_died(self) -> None:
        """Nothing is owed by a process that has ended."""
        self.connections = {}
        self.stopping = False
