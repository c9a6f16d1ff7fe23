"""Frames: whatever a peer sends, and however it arrives."""

from __future__ import annotations

import google_crc32c
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.protocols.basic import Int32StringReceiver
from twisted.trial.unittest import SynchronousTestCase

from msglog import NackCode
from msglog._batch import MAX_SEQUENCE
from msglog._frames import (
    ABSURD_BODY_BYTES,
    Ack,
    Enquiry,
    Fault,
    FrameDecoder,
    Nack,
    Run,
    Terms,
    _encode,
    decode_answers,
    encode_acks,
    encode_enquiry,
    encode_message,
    encode_messages,
    encode_nack,
    encode_terms,
    message_checksum,
)

A, B = bytes(range(16)), bytes(range(16, 32))
NOBODY = bytes(16)
MAX = 64

bodies = st.binary(max_size=MAX)
clients = st.sampled_from([A, B])
sequences = st.integers(1, 5) | st.integers(1, MAX_SEQUENCE)
frames = st.one_of(
    st.builds(encode_message, clients, sequences, bodies),
    st.builds(encode_message, clients, sequences, st.binary(min_size=MAX + 1, max_size=4 * MAX)),
    st.builds(encode_enquiry, clients, st.integers(1, 255)),
    st.builds(_encode, st.integers(0, 255), clients, st.integers(0, 2**64 - 1), bodies),
)


def flatten(events: list) -> list:
    """Events with each run taken apart into its messages: how they are grouped may differ."""
    flat = []
    for event in events:
        if isinstance(event, Run):
            batch = event
            flat.extend(
                (batch.client, batch.first + i, checksum, body, head)
                for i, (checksum, body, head) in enumerate(
                    zip(batch.checksums, batch.bodies, event.heads, strict=True)
                )
            )
        else:
            flat.append(event)
    return flat


def decode(data: bytes, *cuts: int) -> list:
    decoder = FrameDecoder(MAX)
    events, last = [], 0
    for cut in [*sorted(cuts), len(data)]:
        events += decoder.feed(data[last:cut])
        last = cut
    return events


class Strings(Int32StringReceiver):
    MAX_LENGTH = 29 + MAX

    def __init__(self) -> None:
        self.strings: list[bytes] = []

    def stringReceived(self, string: bytes) -> None:
        self.strings.append(string)


class DecoderTest(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.lists(frames, max_size=8), st.lists(st.integers(0, 1000), max_size=10))
    def test_any_pieces(self, parts: list[bytes], cuts: list[int]) -> None:
        """The same bytes give the same events, however they are cut into reads."""
        data = b"".join(parts)
        cuts = [min(cut, len(data)) for cut in cuts]
        self.assertEqual(flatten(decode(data, *cuts)), flatten(decode(data)))

    @settings(deadline=None)
    @given(st.binary(max_size=500))
    @example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    def test_any_bytes(self, data: bytes) -> None:
        """Nothing that a peer sends raises, byte by byte or at once."""
        self.assertEqual(flatten(decode(data, *range(len(data)))), flatten(decode(data)))

    @settings(deadline=None)
    @given(st.lists(st.builds(encode_message, clients, sequences, bodies), max_size=8))
    def test_same_framing_as_twisted(self, parts: list[bytes]) -> None:
        """Its frames are the strings of Twisted's Int32StringReceiver."""
        strings = Strings()
        strings.dataReceived(b"".join(parts))
        messages = flatten(decode(b"".join(parts)))
        self.assertEqual(strings.strings, [head + body for *_, body, head in messages])

    def test_runs(self) -> None:
        """Consecutive messages of one client are one run; anything else begins another."""
        data = b"".join(
            encode_message(client, sequence, b"x")
            for client, sequence in [(A, 1), (A, 2), (B, 1), (B, 2), (B, 4), (B, 4), (A, 5)]
        )
        runs = [(e.client, e.first, len(e.checksums)) for e in decode(data)]
        self.assertEqual(runs, [(A, 1, 2), (B, 1, 2), (B, 4, 1), (B, 4, 1), (A, 5, 1)])

    def test_a_fault_ends_a_run(self) -> None:
        """Events keep the order of what they are about."""
        one, two = encode_message(A, 1, b"x"), encode_message(A, 2, b"y")
        kinds = [type(e) for e in decode(one + encode_enquiry(A) + two)]
        self.assertEqual(kinds, [Run, Enquiry, Run])

    def fault(self, data: bytes) -> Fault:
        """The first fault in data; what follows a malformed frame is not looked at."""
        good = encode_message(A, 1, b"good")
        first, *rest = decode(good + data + good)
        self.assertEqual(flatten([first])[0][3], b"good")
        fault = rest[0]
        self.assertIsInstance(fault, Fault)
        self.assertEqual(decode(data)[0], fault, "alone in its read")
        if fault.code is NackCode.MALFORMED:
            self.assertEqual(len(rest), 1)
        else:
            self.assertEqual(flatten(rest[1:])[0][3], b"good")
        return fault

    def test_malformed(self) -> None:
        """Each way of not being a frame is MALFORMED, with what is known of its sender."""
        for data, client, sequence in [
            (b"GET / HTTP/1.1\r\n\r\n" + bytes(50), NOBODY, 0),
            (bytes.fromhex("16030102000100") + bytes(50), NOBODY, 0),
            (bytes(4), NOBODY, 0),
            (b"\x00\x00\x00\x1c" + bytes(28), NOBODY, 0),
            ((29 + ABSURD_BODY_BYTES + 1).to_bytes(4, "big") + bytes(40), NOBODY, 0),
            (_encode(0x02, A, 7, b""), A, 7),
            (_encode(0x06, A, 7, b""), A, 7),
            (_encode(0x05, A, 7, b"\x01"), A, 7),
            (_encode(0x05, A, 0, b""), A, 0),
            (_encode(0x05, A, 0, b"\x00"), A, 0),
            (_encode(0x05, A, 0, b"\x01\x01"), A, 0),
            (encode_message(A, 0, b"x"), A, 0),
            (encode_message(A, MAX_SEQUENCE + 1, b"x"), A, MAX_SEQUENCE + 1),
            (encode_message(A, 0, bytes(MAX + 1)), A, 0),
            (_encode(0x05, A, 0, bytes(MAX + 1)), A, 0),
            (encode_message(A, MAX_SEQUENCE + 1, bytes(MAX + 1)), A, MAX_SEQUENCE + 1),
        ]:
            fault = self.fault(data)
            self.assertEqual(fault.code, NackCode.MALFORMED, data)
            self.assertEqual((fault.client, fault.sequence), (client, sequence), data)
            self.assertTrue(fault.reason)

    def test_reasons(self) -> None:
        """A reason names what is wrong, with the numbers that a person needs to find it."""
        corrupt = bytearray(encode_message(A, 3, b"body"))
        corrupt[4:8] = b"\x01\x02\x03\x04"
        actual = f"{message_checksum(A, 3, b'body'):08x}"
        for data, words in [
            (bytes(4), "a frame of 0 bytes is shorter than its header (29 bytes)"),
            (
                b"\0\0\0\x1c" + bytes(40),
                "a frame of 28 bytes is shorter than its header (29 bytes)",
            ),
            (
                b"GET / HTTP/1.1\r\n\r\n" + bytes(50),
                "a frame of 1195725856 bytes is no frame of msglog's: is this another protocol?",
            ),
            (
                _encode(0x05, A, 0, bytes(MAX + 1)),
                f"a client's frame of type 0x05 is not {29 + MAX + 1} bytes long",
            ),
            (_encode(0x02, A, 7, b""), "a client's frame has no type 0x02"),
            (_encode(0x05, A, 7, b"\x01"), "an ENQUIRY's sequence is 0, not 7"),
            (
                _encode(0x05, A, 0, b""),
                "an ENQUIRY's body is one byte, the highest version spoken, from 1",
            ),
            (encode_message(A, 0, b"x"), "sequence 0 is not between 1 and 9007199254740991"),
            (
                encode_message(A, MAX_SEQUENCE + 1, bytes(MAX + 1)),
                "sequence 9007199254740992 is not between 1 and 9007199254740991",
            ),
            (encode_message(A, 9, bytes(MAX + 1)), "a body of 65 bytes is over the maximum of 64"),
            (bytes(corrupt), f"the checksum is 01020304, that of the bytes is {actual}"),
        ]:
            self.assertEqual(self.fault(data).reason, words)

    def test_corrupt_is_about_its_frame(self) -> None:
        """The NACK of a damaged frame names client and sequence as they arrived."""
        data = bytearray(encode_message(B, 300, b"body"))
        data[-1] ^= 1
        fault = self.fault(bytes(data))
        self.assertEqual((fault.client, fault.sequence), (B, 300))

    def test_enquiry(self) -> None:
        """An ENQUIRY says who asks and the highest version spoken."""
        for version in (1, 2, 255):
            self.assertEqual(decode(encode_enquiry(B, version)), [Enquiry(B, version)])
        self.assertEqual(decode(encode_enquiry(A)), [Enquiry(A, 1)])

    def test_longest_of_all(self) -> None:
        """16 MiB is a long body, a byte more is no frame; both are known by their first bytes."""
        for length, code in [(1 << 24, NackCode.TOO_LONG), ((1 << 24) + 1, NackCode.MALFORMED)]:
            header = (29 + length).to_bytes(4, "big") + encode_message(A, 1, b"")[4:]
            (fault,) = decode(header)
            self.assertEqual(fault.code, code)
        self.assertEqual(decode((29).to_bytes(4, "big")), [])
        self.assertEqual(decode((29 + (1 << 24)).to_bytes(4, "big")), [])
        for length in (28, 30 + (1 << 24)):
            (fault,) = decode(length.to_bytes(4, "big"))
            self.assertEqual((fault.code, fault.sequence), (NackCode.MALFORMED, 0))
            self.assertEqual(fault.client, NOBODY)

    def test_length_is_judged_after_good_frames(self) -> None:
        """What follows a whole frame in the same read is looked at as if it had come alone."""
        good = encode_message(A, 1, b"x")
        run, fault = decode(good + b"GET ")
        self.assertEqual((run.first, fault.code), (1, NackCode.MALFORMED))
        self.assertEqual([type(e) for e in decode(good + b"\0\0\0")], [Run])

    def test_nothing_follows_a_malformed_frame(self) -> None:
        """Neither in the same read nor in later ones."""
        for bad in (b"GET ", bytes(40), _encode(0x02, A, 7, b"")):
            decoder = FrameDecoder(MAX)
            self.assertEqual(len(decoder.feed(bad)), 1)
            self.assertFalse(decoder.partial)
            self.assertEqual(decoder.feed(encode_message(A, 1, b"x")), [])

    def test_checksums_and_heads(self) -> None:
        """A run has of each message what was on the wire, alone or among others, long or short."""
        frames = [encode_message(A, n, body) for n, body in enumerate([b"a", b"", b"ccc"], 5)]
        for parts in (frames, frames[:1]):
            (run,) = decode(b"".join(parts))
            self.assertEqual(run.heads, [frame[4:33] for frame in parts])
            self.assertEqual(run.bodies, [frame[33:] for frame in parts])
            sums = [int.from_bytes(frame[4:8], "big") for frame in parts]
            self.assertEqual(run.checksums, sums)

    def test_absurd_length_is_said_at_once(self) -> None:
        """Four bytes are enough to know that it is no frame; no more is waited for."""
        (fault,) = decode(b"GET ")
        self.assertEqual(fault.code, NackCode.MALFORMED)

    @settings(deadline=None)
    @given(st.integers(4, 36), st.integers(0, 7))
    def test_corrupt(self, at: int, bit: int) -> None:
        """Any flipped bit after the length is CORRUPT, and the connection goes on."""
        data = bytearray(encode_message(A, 3, b"body"))
        data[at] ^= 1 << bit
        self.assertEqual(self.fault(bytes(data)).code, NackCode.CORRUPT)

    def test_too_long(self) -> None:
        """A body over the maximum is TOO_LONG; one at the maximum is taken."""
        fault = self.fault(encode_message(A, 9, bytes(MAX + 1)))
        self.assertEqual((fault.code, fault.client, fault.sequence), (NackCode.TOO_LONG, A, 9))
        fault = self.fault(encode_message(A, MAX_SEQUENCE, bytes(MAX + 1)))
        self.assertEqual((fault.code, fault.sequence), (NackCode.TOO_LONG, MAX_SEQUENCE))
        (run,) = decode(encode_message(A, MAX_SEQUENCE, bytes(MAX)))
        self.assertEqual(run.first, MAX_SEQUENCE)
        (run,) = decode(encode_message(A, 9, bytes(MAX)))
        self.assertEqual(run.bodies, [bytes(MAX)])

    def test_too_long_is_answered_at_its_header(self) -> None:
        """The refusal does not wait for the body, and the body is not kept."""
        decoder = FrameDecoder(MAX)
        (fault,) = decoder.feed(encode_message(A, 9, bytes(10_000))[:100])
        self.assertEqual(fault.code, NackCode.TOO_LONG)
        self.assertTrue(decoder.partial)
        self.assertEqual(decoder.feed(bytes(9000)), [])
        self.assertEqual(decoder._pieces, [])
        self.assertTrue(decoder.partial)
        self.assertEqual(decoder.feed(bytes(10_033 - 9100)), [])
        self.assertFalse(decoder.partial)
        (run,) = decoder.feed(encode_message(A, 9, b"x"))
        self.assertEqual(run.bodies, [b"x"])

    def test_too_long_in_one_read(self) -> None:
        """A frame that is too long and all there leaves nothing to wait for."""
        decoder = FrameDecoder(MAX)
        (fault,) = decoder.feed(encode_message(A, 9, bytes(MAX + 1)))
        self.assertEqual(fault.code, NackCode.TOO_LONG)
        self.assertFalse(decoder.partial)

    def test_the_last_of_all_among_others(self) -> None:
        """The highest sequence, with the longest body, is taken behind another in one read too."""
        frames = [encode_message(A, MAX_SEQUENCE - 1 + n, bytes(MAX)) for n in range(2)]
        (run,) = decode(b"".join(frames))
        self.assertEqual((run.first, run.bodies), (MAX_SEQUENCE - 1, [bytes(MAX)] * 2))

    def test_partial(self) -> None:
        """A decoder knows whether it is in the middle of a frame."""
        data = encode_message(A, 1, b"body")
        for length in range(len(data) + 1):
            decoder = FrameDecoder(MAX)
            decoder.feed(data[:length])
            self.assertEqual(decoder.partial, 0 < length < len(data))
            self.assertEqual(len(decoder.feed(data[length:])), int(length < len(data)))
            self.assertFalse(decoder.partial)

    def test_one_byte_at_a_time(self) -> None:
        """Several frames in a row, taken or refused, may come in the smallest pieces."""
        parts = [
            encode_message(A, 1, b"one"),
            encode_message(A, 2, bytes(MAX + 1)),
            encode_message(A, 2, b""),
            encode_enquiry(B),
            encode_message(A, 3, b"x" * MAX),
        ]
        data = b"".join(parts)
        events = flatten(decode(data, *range(len(data))))
        self.assertEqual([type(e) for e in events], [tuple, Fault, tuple, Enquiry, tuple])
        self.assertEqual(events, flatten(decode(data)))

    def test_long_frames_are_joined_once(self) -> None:
        """A frame of many pieces is copied once, not at each piece."""
        copied = 0

        class Counting(bytes):
            def __radd__(self, other: bytes) -> bytes:
                nonlocal copied
                copied += 1
                return bytes(other) + bytes(self)

        decoder = FrameDecoder(1 << 20)
        data = encode_message(A, 1, bytes(1 << 20))
        events = []
        for at in range(0, len(data), 1000):
            events += decoder.feed(Counting(data[at : at + 1000]))
        self.assertEqual(len(flatten(events)), 1)
        self.assertLessEqual(copied, 1)


class BytesTest(SynchronousTestCase):
    def test_message(self) -> None:
        """The bytes of a frame are those of docs/protocol.md, made here without our code."""
        checked = b"\x01" + A + (7).to_bytes(8, "big") + b"body"
        checksum = google_crc32c.value(checked)
        frame = (33).to_bytes(4, "big") + checksum.to_bytes(4, "big") + checked
        self.assertEqual(encode_message(A, 7, b"body"), frame)
        self.assertEqual(message_checksum(A, 7, b"body"), checksum)

    def test_many_messages(self) -> None:
        """Many at once are the same bytes as one by one, and the receipts to expect fit."""
        for many in ([b"a", b"", b"ccc"], [b"one"], []):
            data, heads = encode_messages(A, 5, many)
            frames = [encode_message(A, 5 + n, body) for n, body in enumerate(many)]
            self.assertEqual(data, b"".join(frames))
            self.assertEqual(heads, [frame[4:33] for frame in frames])

    def test_acks(self) -> None:
        """An ACK is the message's header with type 0x06, and the length 29."""
        for count in (1, 2, 5):
            heads = [encode_message(A, n, b"x")[4:33] for n in range(1, count + 1)]
            expected = b"".join(
                (29).to_bytes(4, "big") + head[:4] + b"\x06" + head[5:] for head in heads
            )
            self.assertEqual(encode_acks(heads), expected)


class AnswersTest(SynchronousTestCase):
    def test_acks(self) -> None:
        """ACKs echo client, sequence and checksum of each message."""
        data = b"".join(encode_message(A, n, b"%d" % n) for n in range(1, 10))
        (run,) = decode(data)
        acks = [answer for answer, _ in decode_answers(encode_acks(run.heads))]
        self.assertEqual(acks, [Ack(A, n, message_checksum(A, n, b"%d" % n)) for n in range(1, 10)])

    def test_others(self) -> None:
        """NACK and TERMS come out as they went in."""
        data = encode_nack(A, 5, 4, 3, "warum — darum") + encode_terms(B, 7, 1, 256, 1024)
        (nack, _), (terms, end) = decode_answers(data + b"\0\0")
        self.assertEqual(nack, Nack(A, 5, NackCode.OUT_OF_ORDER, 3, "warum — darum"))
        self.assertEqual(terms, Terms(B, 7, 1, 256, 1024))
        self.assertEqual(end, len(data))

    def test_damaged(self) -> None:
        """A damaged answer is an error, not an answer."""
        data = bytearray(encode_nack(A, 5, 4, 3, "x"))
        data[-1] ^= 1
        self.assertRaises(ValueError, list, decode_answers(bytes(data)))
        self.assertRaises(ValueError, list, decode_answers(encode_message(A, 1, b"")))

    def test_in_part(self) -> None:
        """An answer that has not come whole is waited for, however little is missing."""
        ack = encode_acks([encode_message(A, 1, b"x")[4:33]])
        nack = encode_nack(B, 2, 6, 0, "")
        for end in range(len(ack), len(ack) + len(nack)):
            ((first, after),) = decode_answers((ack + nack)[:end])
            self.assertEqual((first.sequence, after), (1, len(ack)))
        (_, (last, _)) = decode_answers(ack + nack)
        self.assertEqual(last, Nack(B, 2, NackCode.UNAVAILABLE, 0, ""))

    def test_no_answers(self) -> None:
        """What cannot be an answer is an error that says what came, and is not waited for."""
        for data, words in [
            ((28).to_bytes(4, "big"), "an answer of 28 bytes is no answer of msglog's"),
            (
                (64 * 1024 + 1).to_bytes(4, "big"),
                "an answer of 65537 bytes is no answer of msglog's",
            ),
            (b"HTTP", "an answer of 1213486160 bytes is no answer of msglog's"),
            (_encode(0x06, A, 1, b"x"), "a server's frame of type 0x06 with 1 body bytes"),
            (_encode(0x15, A, 1, bytes(8)), "a server's frame of type 0x15 with 8 body bytes"),
            (_encode(0x16, A, 1, bytes(8)), "a server's frame of type 0x16 with 8 body bytes"),
            (_encode(0x16, A, 1, bytes(10)), "a server's frame of type 0x16 with 10 body bytes"),
            (_encode(0x01, A, 1, bytes(9)), "a server's frame of type 0x01 with 9 body bytes"),
            (encode_nack(A, 1, 5, 1, "x")[:-1] + b"y", "the checksum of an answer is wrong"),
        ]:
            with self.assertRaises(ValueError) as caught:
                list(decode_answers(data))
            self.assertEqual(str(caught.exception), words)

    def test_longest(self) -> None:
        """An answer may have 64 KiB."""
        self.assertEqual(list(decode_answers((64 * 1024).to_bytes(4, "big"))), [])
        reason = "x" * (64 * 1024 - 29 - 9)
        ((nack, _),) = decode_answers(encode_nack(A, 5, 4, 3, reason))
        self.assertEqual(nack.reason, reason)

    def test_reasons_are_harmless(self) -> None:
        """A reason that is no UTF-8, or would steer a terminal, is made fit to show."""
        data = _encode(0x15, A, 1, b"\x05" + bytes(8) + b"a\x1b[2J\xffz")
        ((nack, _),) = decode_answers(data)
        self.assertNotIn("\x1b", nack.reason)
        self.assertTrue(nack.reason.startswith("a"))
        self.assertTrue(nack.reason.endswith("\ufffdz"), nack.reason)
