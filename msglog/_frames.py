"""
Frames of wire protocol version 1, without I/O.  docs/protocol.md is the normative page.

::

    0        4          8      9            25         33
    | length | checksum | type | client id  | sequence | body …
    | u32    | u32      | u8   | 16 bytes   | u64      | length - 29 bytes

All integers are big-endian; C{length} counts what follows it.  The checksum is the CRC-32C of
every payload byte after itself.

The server's side of reading is L{FrameDecoder}: it turns a connection's bytes into events.  What a
peer may get wrong comes out as an event too (L{Fault}), in its place among the messages, and never
as an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct

from attrs import define, frozen
from google_crc32c import value as crc32c

from ._batch import MAX_SEQUENCE, Batch, NackCode
from ._printable import printable

__all__ = [
    "ABSURD_BODY_BYTES",
    "ACK",
    "ENQUIRY",
    "FRAME_BYTES",
    "HEADER_BYTES",
    "MAX_ANSWER_BYTES",
    "MESSAGE",
    "NACK",
    "PREFIX_BYTES",
    "PROTOCOL_VERSION",
    "TERMS",
    "Ack",
    "Enquiry",
    "Fault",
    "FrameDecoder",
    "Nack",
    "Run",
    "Terms",
    "decode_answers",
    "encode_acks",
    "encode_enquiry",
    "encode_message",
    "encode_messages",
    "encode_nack",
    "encode_terms",
    "message_checksum",
]

PROTOCOL_VERSION = 1

MESSAGE = 0x01
ENQUIRY = 0x05
ACK = 0x06
NACK = 0x15
TERMS = 0x16

PREFIX_BYTES = 4  # the length
HEADER_BYTES = 29  # checksum, type, client id, sequence
FRAME_BYTES = PREFIX_BYTES + HEADER_BYTES  # a frame without its body

# No server may be configured to take longer bodies, so a longer length is not a long message but
# garbage: the first four bytes of any text protocol, or of TLS, read as a length are above it.
ABSURD_BODY_BYTES = 16 * 1024 * 1024

# A NACK with its reason is a few hundred bytes; what says it is longer is no answer, and nobody
# should wait for the rest of it.
MAX_ANSWER_BYTES = 64 * 1024

_PREFIX = Struct(">II")  # length, checksum
_FRAME = Struct(">IIB16sQ")
_CHECKED = Struct(">B16sQ")
_NACK = Struct(">BQ")
_TERMS = Struct(">BII")
_ACK_LENGTH = HEADER_BYTES.to_bytes(4, "big")
_NOBODY = bytes(16)


@define(slots=True, eq=False)
class Run(Batch):
    """
    Event: a batch of messages that arrived whole, well-formed and in sequence.

    @ivar heads: for each, the 29 bytes of its header as they arrived; its receipt is made of them.
    """

    heads: list[bytes]


@frozen(slots=True)
class Enquiry:
    """Event: a client asks for its last durable sequence and for the server's terms."""

    client: bytes
    version: int


@frozen(slots=True)
class Fault:
    """
    Event: the peer sent what cannot be taken.

    @ivar code: the NACK to answer with; after MALFORMED the connection is of no more use.
    @ivar client: the client id as in the frame; zeros where there was none.
    @ivar sequence: the sequence as in the frame; 0 where there was none.
    @ivar reason: for a person to read.
    """

    code: NackCode
    client: bytes
    sequence: int
    reason: str


Event = Run | Enquiry | Fault


class FrameDecoder:
    """
    One connection's bytes, turned into events as they come.

    The decoder is in one of four states, and C{_state} is the function that takes the next bytes:

    - between frames, or with less than a header of one in hand (C{_parse});
    - inside a frame that is longer than what has come (C{_gather}): the pieces are kept as a list
      and joined once, so that a long frame costs its length and not its square;
    - inside a frame that is too long (C{_discard}): its bytes are counted and dropped;
    - past a malformed frame (C{_ignore}): nothing that follows can be trusted to be a frame.

    @param max_body: the longest body to take, in bytes.
    @ivar partial: whether a frame has begun to arrive and is not complete.
    """

    __slots__ = ("_max_length", "_missing", "_pieces", "_state", "partial")

    def __init__(self, max_body: int) -> None:
        self._max_length = HEADER_BYTES + max_body
        self._pieces: list[bytes] = []
        self._missing = 0
        self.partial = False
        # Functions, not bound methods: those would tie each connection into a reference cycle.
        self._state: Callable[[FrameDecoder, bytes], list[Event]] = FrameDecoder._parse

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes of the connection; return what they completed, in order."""
        return self._state(self, data)

    def _parse(self, data: bytes) -> list[Event]:
        if self._pieces:
            data = self._pieces.pop() + data
        self.partial = False
        unpack, crc, max_length = _FRAME.unpack_from, crc32c, self._max_length
        if FRAME_BYTES <= len(data) <= PREFIX_BYTES + max_length:
            # One whole message, as of a client that waits for each answer: in two thirds of the
            # time that the loop below takes for it.
            length, checksum, kind, client, sequence = unpack(data)
            if (
                PREFIX_BYTES + length == len(data)
                and kind == MESSAGE
                and 0 < sequence <= MAX_SEQUENCE
                and checksum == crc(data[8:])
            ):
                body, head = data[FRAME_BYTES:], data[PREFIX_BYTES:FRAME_BYTES]
                return [Run(client, sequence, [checksum], [body], [head])]
        events: list[Event] = []
        run_client: bytes | None = None
        following = 0
        checksums: list[int] = []
        bodies: list[bytes] = []
        heads: list[bytes] = []
        at, have = 0, len(data)
        while have - at >= FRAME_BYTES:
            length, checksum, kind, client, sequence = unpack(data, at)
            end = at + PREFIX_BYTES + length
            if (
                end <= have
                and kind == MESSAGE
                and HEADER_BYTES <= length <= max_length
                and 0 < sequence <= MAX_SEQUENCE
                and checksum == crc(data[at + 8 : end])
            ):
                if sequence != following or client != run_client:
                    run_client, following = client, sequence
                    checksums, bodies, heads = [], [], []
                    events.append(Run(client, sequence, checksums, bodies, heads))
                checksums.append(checksum)
                bodies.append(data[at + FRAME_BYTES : end])
                heads.append(data[at + 4 : at + FRAME_BYTES])
                following += 1
                at = end
                continue
            # Everything below is rare: the end of what has come, an enquiry, or a fault.
            fault = _bad_shape(length, kind, client, sequence, max_length)
            if fault is None:
                if end > have:
                    self._pieces.append(data[at:])
                    self._missing = end - have
                    self.partial = True
                    self._state = FrameDecoder._gather
                    return events
                event = _judge(data[at:end], checksum, kind, client, sequence)
                at = end
            elif fault.code is NackCode.TOO_LONG:
                event = fault
                if end > have:
                    self._missing = end - have
                    self.partial = True
                    self._state = FrameDecoder._discard
                    return [*events, event]
                at = end
            else:
                event = fault
            events.append(event)
            run_client, following = None, 0
            if isinstance(event, Fault) and event.code is NackCode.MALFORMED:
                self._state = FrameDecoder._ignore
                return events
        if have - at >= PREFIX_BYTES:
            length = int.from_bytes(data[at : at + PREFIX_BYTES], "big")
            if not HEADER_BYTES <= length <= HEADER_BYTES + ABSURD_BODY_BYTES:
                # Do not wait for the rest of something that is no frame.
                events.append(_bad_length(length, _NOBODY, 0))
                self._state = FrameDecoder._ignore
                return events
        if at < have:
            self._pieces.append(data[at:])
            self.partial = True
        return events

    def _gather(self, data: bytes) -> list[Event]:
        self._pieces.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return []
        whole = b"".join(self._pieces)
        self._pieces.clear()
        self._state = FrameDecoder._parse
        return self._parse(whole)

    def _discard(self, data: bytes) -> list[Event]:
        self._missing -= len(data)
        if self._missing > 0:
            return []
        rest = data[len(data) + self._missing :]
        self._state = FrameDecoder._parse
        return self._parse(rest)

    def _ignore(self, data: bytes) -> list[Event]:
        return []


def _bad_length(length: int, client: bytes, sequence: int) -> Fault:
    reason = (
        f"a frame of {length} bytes is shorter than its header ({HEADER_BYTES} bytes)"
        if length < HEADER_BYTES
        else f"a frame of {length} bytes is no frame of msglog's: is this another protocol?"
    )
    return Fault(NackCode.MALFORMED, client, sequence, reason)


def _bad_shape(
    length: int, kind: int, client: bytes, sequence: int, max_length: int
) -> Fault | None:
    """What can be said against a frame by its header alone."""
    if length < HEADER_BYTES or length > HEADER_BYTES + ABSURD_BODY_BYTES:
        # What stands where a header should be is not a client id.
        return _bad_length(length, _NOBODY, 0)
    if length <= max_length:
        return None
    if kind != MESSAGE:
        reason = f"a client's frame of type {kind:#04x} is not {length} bytes long"
        return Fault(NackCode.MALFORMED, client, sequence, reason)
    if not 0 < sequence <= MAX_SEQUENCE:
        return _bad_sequence(client, sequence)
    return Fault(
        NackCode.TOO_LONG,
        client,
        sequence,
        f"a body of {length - HEADER_BYTES} bytes is over the maximum of "
        f"{max_length - HEADER_BYTES}",
    )


def _bad_sequence(client: bytes, sequence: int) -> Fault:
    return Fault(
        NackCode.MALFORMED,
        client,
        sequence,
        f"sequence {sequence} is not between 1 and {MAX_SEQUENCE}",
    )


def _judge(frame: bytes, checksum: int, kind: int, client: bytes, sequence: int) -> Event:
    """
    A whole frame of a good length that is not a good message.

    The checksum is judged first: in a damaged frame any field may be the damaged one.
    """
    actual = crc32c(frame[8:])
    if checksum != actual:
        return Fault(
            NackCode.CORRUPT,
            client,
            sequence,
            f"the checksum is {checksum:08x}, that of the bytes is {actual:08x}",
        )
    if kind == MESSAGE:
        return _bad_sequence(client, sequence)
    if kind != ENQUIRY:
        reason = f"a client's frame has no type {kind:#04x}"
    elif sequence != 0:
        reason = f"an ENQUIRY's sequence is 0, not {sequence}"
    elif len(frame) != FRAME_BYTES + 1 or frame[-1] == 0:
        reason = "an ENQUIRY's body is one byte, the highest version spoken, from 1"
    else:
        return Enquiry(client, frame[-1])
    return Fault(NackCode.MALFORMED, client, sequence, reason)


def message_checksum(client: bytes, sequence: int, body: bytes) -> int:
    """The checksum that a MESSAGE frame with this content carries."""
    checksum: int = crc32c(_CHECKED.pack(MESSAGE, client, sequence) + body)
    return checksum


def _encode(kind: int, client: bytes, sequence: int, body: bytes) -> bytes:
    checked = _CHECKED.pack(kind, client, sequence) + body
    return _PREFIX.pack(len(checked) + 4, crc32c(checked)) + checked


def encode_message(client: bytes, sequence: int, body: bytes) -> bytes:
    """A MESSAGE frame, length included."""
    return _encode(MESSAGE, client, sequence, body)


def encode_messages(client: bytes, first: int, bodies: list[bytes]) -> tuple[bytes, list[bytes]]:
    """
    The MESSAGE frames of consecutive messages, one after the other, and the header of each, of
    which L{encode_acks} makes the receipts to expect (0.9 µs a message).
    """
    prefix, pack, crc = _PREFIX.pack, _CHECKED.pack, crc32c
    parts: list[bytes] = []
    heads: list[bytes] = []
    for sequence, body in enumerate(bodies, first):
        checked = pack(MESSAGE, client, sequence)
        checksum = crc(checked + body)
        head = prefix(HEADER_BYTES + len(body), checksum)
        parts += (head, checked, body)
        heads.append(head[4:] + checked)
    return b"".join(parts), heads


def encode_enquiry(client: bytes, version: int = PROTOCOL_VERSION) -> bytes:
    """An ENQUIRY frame, length included."""
    return _encode(ENQUIRY, client, 0, bytes([version]))


def encode_acks(heads: list[bytes]) -> bytes:
    """
    The ACK frames for messages with these headers, one after the other.

    An ACK is the message's own header with another type, checksum included (which makes it the
    one frame whose checksum is not of its own bytes), so the types are replaced by one strided
    assignment: 0.02 µs an ACK, against 0.17 µs for packing each.
    """
    if len(heads) == 1:  # 0.3 µs, not 0.7
        (head,) = heads
        return b"%b%b\x06%b" % (_ACK_LENGTH, head[:4], head[5:])
    acks = bytearray(_ACK_LENGTH + _ACK_LENGTH.join(heads))
    acks[8::FRAME_BYTES] = b"\x06" * len(heads)
    return bytes(acks)


def encode_nack(client: bytes, sequence: int, code: int, expected: int, reason: str) -> bytes:
    """A NACK frame, length included."""
    return _encode(NACK, client, sequence, _NACK.pack(code, expected) + reason.encode())


def encode_terms(client: bytes, durable: int, version: int, max_body: int, window: int) -> bytes:
    """A TERMS frame, length included."""
    return _encode(TERMS, client, durable, _TERMS.pack(version, max_body, window))


@frozen(slots=True)
class Ack:
    """A server's answer: this message is durable; C{checksum} is the message's own."""

    client: bytes
    sequence: int
    checksum: int


@frozen(slots=True)
class Nack:
    """A server's answer: this message is not stored."""

    client: bytes
    sequence: int
    code: NackCode
    expected: int
    reason: str


@frozen(slots=True)
class Terms:
    """A server's answer to an ENQUIRY: the client's last durable sequence and the limits."""

    client: bytes
    durable: int
    version: int
    max_body: int
    window: int


def decode_answers(data: bytes) -> Iterator[tuple[Ack | Nack | Terms, int]]:
    """
    Every whole answer at the front of what a server sent, each with the offset after it.

    @raise ValueError: what is there is not an answer of this protocol.
    """
    at = 0
    while len(data) - at >= PREFIX_BYTES:
        length = int.from_bytes(data[at : at + PREFIX_BYTES], "big")
        if not HEADER_BYTES <= length <= MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of {length} bytes is no answer of msglog's")
        end = at + PREFIX_BYTES + length
        if end > len(data):
            return
        _, checksum, kind, client, sequence = _FRAME.unpack_from(data, at)
        body = data[at + FRAME_BYTES : end]
        if kind != ACK and crc32c(data[at + 8 : end]) != checksum:
            raise ValueError("the checksum of an answer is wrong")
        answer: Ack | Nack | Terms
        if kind == ACK and not body:
            answer = Ack(client, sequence, checksum)
        elif kind == NACK and len(body) >= _NACK.size:
            code, expected = _NACK.unpack_from(body)
            # It goes into logs and onto terminals.
            reason = printable(body[_NACK.size :].decode(errors="replace"))
            answer = Nack(client, sequence, NackCode(code), expected, reason)
        elif kind == TERMS and len(body) == _TERMS.size:
            answer = Terms(client, sequence, *_TERMS.unpack(body))
        else:
            raise ValueError(f"a server's frame of type {kind:#04x} with {len(body)} body bytes")
        at = end
        yield answer, at
