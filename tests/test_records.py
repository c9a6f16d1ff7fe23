"""Records: any message becomes one harmless line and comes back as it was."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import RecordError
from msglog._batch import MAX_SEQUENCE
from msglog._records import (
    Record,
    format_fragments,
    format_line,
    format_time,
    opening,
    parse_line,
    parse_time,
)
from msglog.testing import make_batch

A = bytes(range(16))
NOW = 1_795_000_000_123_456

texts = st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
nasty = st.sampled_from(
    [
        *("\n", "\r", "\0", "\x1b[2J", "\x7f", "\x85", "\x9b31m", "\u2028", "\u2029", '"', "\\"),
        *('"}\n{"time":"', "é", "€", "\U0001f600", "\u00a0"),
    ]
)
bodies = st.one_of(
    st.binary(max_size=60),
    texts,
    st.lists(nasty, max_size=10).map(lambda parts: "".join(parts).encode()),
)


def record_of(body: bytes, sequence: int = 1, time: int = NOW) -> Record:
    batch = make_batch(A, sequence, body)
    return Record(time, A, sequence, batch.checksums[0], body)


class LinesTest(SynchronousTestCase):
    @settings(deadline=None)
    @given(bodies, st.integers(1, MAX_SEQUENCE), st.integers(0, 253402300799999999))
    @example(b"", 1, 0)
    @example(bytes(range(256)), MAX_SEQUENCE, NOW)
    def test_round_trip(self, body: bytes, sequence: int, time: int) -> None:
        """Any message comes back exactly."""
        record = record_of(body, sequence, time)
        self.assertEqual(parse_line(format_line(record)), record)

    @settings(deadline=None)
    @given(st.lists(bodies, min_size=1, max_size=10))
    def test_n_records_are_n_lines(self, many: list[bytes]) -> None:
        """However lines are counted, and in batches of any size."""
        prefix = opening(format_time(NOW), A)
        data = prefix + prefix.join(format_fragments(make_batch(A, 1, *many)))
        self.assertEqual(data.count(b"\n"), len(many))
        self.assertEqual(len(data.splitlines()), len(many))
        self.assertEqual(len(data.decode().splitlines()), len(many))
        self.assertEqual([parse_line(line).body for line in data.splitlines()], many)

    @settings(deadline=None)
    @given(bodies)
    def test_nothing_harmful(self, body: bytes) -> None:
        """No raw control character, and none that some reader takes for the end of a line."""
        text = format_line(record_of(body)).decode().removesuffix("\n")
        harmful = [c for c in text if unicodedata.category(c) in {"Cc", "Zl", "Zp"}]
        self.assertEqual(harmful, [])

    @settings(deadline=None)
    @given(bodies)
    def test_any_json_reader(self, body: bytes) -> None:
        """The keys stand in the documented order, and text is text exactly where it is UTF-8."""
        fields = json.loads(format_line(record_of(body)))
        try:
            text = body.decode()
        except UnicodeDecodeError:
            self.assertEqual(list(fields), ["time", "client", "seq", "crc", "base64"])
        else:
            self.assertEqual(list(fields), ["time", "client", "seq", "crc", "message"])
            self.assertEqual(fields["message"], text)

    @settings(deadline=None)
    @given(bodies, st.data())
    def test_damage(self, body: bytes, data: st.DataObject) -> None:
        """A line with one byte changed is no record, or the same one."""
        record = record_of(body)
        line = bytearray(format_line(record)[:-1])
        at = data.draw(st.integers(0, len(line) - 1))
        line[at] = data.draw(st.integers(0, 255))
        try:
            parsed = parse_line(bytes(line))
        except RecordError:
            return
        # The time is the server's and not under the client's checksum.
        self.assertEqual(
            (parsed.client, parsed.sequence, parsed.checksum, parsed.body),
            (record.client, record.sequence, record.checksum, record.body),
        )

    def test_cut_lines(self) -> None:
        """A line that lacks its end is no record."""
        line = format_line(record_of(b"hello"))[:-1]
        for length in range(len(line)):
            self.assertRaises(RecordError, parse_line, line[:length])

    def test_not_records(self) -> None:
        """JSON that is something else is no record."""
        good = json.loads(format_line(record_of(b"hello")))
        for change in (
            {"seq": "1"},
            {"seq": 0},
            {"seq": True},
            {"seq": 1.0},
            {"seq": MAX_SEQUENCE + 1},
            {"client": "no"},
            {"client": None},
            {"client": good["client"].upper()},
            {"crc": "0"},
            {"crc": 7},
            {"time": 7},
            {"time": "2026-11-24"},
            {"message": None},
            {"message": 7},
            {"more": 1},
        ):
            line = json.dumps({**good, **change}).encode()
            if line != json.dumps(good).encode():
                self.assertRaises(RecordError, parse_line, line)
        for line in (b"", b"[]", b"7", b"null", b"{}", b'"x"', bytes(100)):
            self.assertRaises(RecordError, parse_line, line)


class TimeTest(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.integers(0, 253402300799999999))
    def test_round_trip(self, time: int) -> None:
        """Every microsecond until the year 9999."""
        self.assertEqual(parse_time(format_time(time).decode()), time)

    @given(st.integers(0, 253402300799999998))
    def test_sorts(self, time: int) -> None:
        """Times sort as text, so that a reader can bisect."""
        self.assertLess(format_time(time), format_time(time + 1))
