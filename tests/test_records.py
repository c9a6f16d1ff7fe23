"""Records: any message becomes one harmless line and comes back as it was."""

from __future__ import annotations

import json
import unicodedata
from uuid import UUID

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import RecordError
from msglog._batch import MAX_SEQUENCE
from msglog._records import (
    MAX_LINE_BYTES,
    UNTIMED,
    Record,
    client_text,
    format_fragments,
    format_line,
    format_lines,
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
            {"client": good["client"] + "00"},
            {"client": good["client"][:-2]},
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
        self.assertEqual(parse_line(json.dumps(good).encode()).body, b"hello")
        for line in (b"", b"[]", b"7", b"null", b"{}", b'"x"', bytes(100)):
            self.assertRaises(RecordError, parse_line, line)

    def test_bytes(self) -> None:
        """A line is to the byte as docs/log-format.md says, alone and in batches."""
        texts = [b"hi", b"\xff\x00", 'é€\u2028\x7f\x85"\\\n'.encode(), b""]
        batch = make_batch(A, 41, *texts)
        start = b'{"time":"2026-11-18T11:06:40.123456Z","client":"'
        start += b'00010203-0405-0607-0809-0a0b0c0d0e0f","seq":'
        ends = [
            b'"message":"hi"}',
            b'"base64":"/wA="}',
            '"message":"é€\\u2028\\u007f\\u0085\\"\\\\\\n"}'.encode(),
            b'"message":""}',
        ]
        lines = [
            start + b'%d,"crc":"%08x",' % (41 + n, batch.checksums[n]) + end + b"\n"
            for n, end in enumerate(ends)
        ]
        records = [Record(NOW, A, 41 + n, batch.checksums[n], body) for n, body in enumerate(texts)]
        self.assertEqual([format_line(record) for record in records], lines)
        time = format_time(NOW)
        self.assertEqual(format_lines(batch).replace(UNTIMED, time), b"".join(lines))
        for n, body in enumerate(texts):
            one = format_lines(make_batch(A, 41 + n, body))
            self.assertEqual(one.replace(UNTIMED, time), lines[n])
        self.assertEqual(format_lines(make_batch(A, 1, b"a", b"b")).count(UNTIMED), 2)
        self.assertEqual(parse_line(lines[0].rstrip(b"\n")), records[0])

    def test_client_text(self) -> None:
        """A client id is written as a UUID is."""
        self.assertEqual(client_text(A), str(UUID(bytes=A)))

    def test_small_checksums(self) -> None:
        """A checksum has eight digits, however small it is."""
        line = format_line(Record(NOW, A, 1, 0xAB, b"x"))
        self.assertIn(b',"crc":"000000ab",', line)
        self.assertIn(b',"crc":"000000ab",', format_line(Record(NOW, A, 1, 0xAB, b"\xff")))

    def test_errors_say_why(self) -> None:
        """What is wrong with a line is said in words, and where it can be with the value."""
        good = json.loads(format_line(record_of(b"hello")))
        for change, words in [
            ({"seq": 0}, "seq 0 is not between 1 and 9007199254740991$"),
            ({"seq": True}, "seq True is not between"),
            ({"more": 1}, "a field is of a wrong shape, or there is one too many$"),
            ({"crc": "123456789"}, "a field is of a wrong shape"),
            ({"crc": "zzzzzzzz"}, "the checksum is not that of the content"),
            ({"time": "2026-11-24"}, "not a record: ValueError not a time: '2026-11-24'"),
            ({"message": 7}, "not a record: AttributeError"),
            ({"message": "other"}, "the checksum is not that of the content$"),
        ]:
            with self.assertRaises(RecordError) as caught:
                parse_line(json.dumps({**good, **change}).encode())
            self.assertRegex(str(caught.exception), "^" + words)
        with self.assertRaises(RecordError) as caught:
            parse_line(b"{")
        self.assertTrue(str(caught.exception).startswith("not JSON: "))
        with self.assertRaises(RecordError) as caught:
            parse_line(b"[]")
        self.assertTrue(str(caught.exception).startswith("not a record: TypeError"))
        raw = format_line(record_of(b"a\x7fb")).replace(b"\\u007f", b"\x7f")
        with self.assertRaises(RecordError) as caught:
            parse_line(raw)
        words = "a control character stands in it that is not escaped"
        self.assertEqual(str(caught.exception), words)

    def test_keys_stand_once(self) -> None:
        """A line with a key twice is no record: readers differ in which value they take."""
        for body in (b"hello", b'"" \\"', b"\xff"):
            line = format_line(record_of(body)).decode()
            fields = json.loads(line)
            content = list(fields)[-1]
            for key in fields:
                # Before the others and after them; the same value, and another one.
                for value in (fields[key], 7, "x"):
                    extra = f"{json.dumps(key)}:{json.dumps(value)}"
                    first = "{" + f"{extra},{line[1:]}"
                    last = line[:-2] + f",{extra}" + "}\n"
                    for twice in (first, last, first.replace('\\"', "\\u0022")):
                        self.assertRaises(RecordError, parse_line, twice.encode())
            # What another program may have written: quotes escaped in the other way.
            other = line.replace('\\"', "\\u0022").replace('","', '", "').encode()
            self.assertEqual(parse_line(other).body, body, content)

    def test_base64_is_strict(self) -> None:
        """Bytes that a lenient decoder passes over are no record: there is one way to write it."""
        line = format_line(record_of(b"\xff\xfe"))
        self.assertEqual(parse_line(line).body, b"\xff\xfe")
        self.assertRaises(RecordError, parse_line, line.replace(b"//4=", b"//4=="))
        self.assertRaises(RecordError, parse_line, line.replace(b"//4=", b"/ /4="))

    def test_longest(self) -> None:
        """The bound for a line is that of the longest body, each byte escaped as six."""
        record = record_of(bytes(1 << 24), MAX_SEQUENCE)
        self.assertLessEqual(len(format_line(record)), MAX_LINE_BYTES)


class TimeTest(SynchronousTestCase):
    def test_forms(self) -> None:
        """Only the one form is a time, each sign of it in its place."""
        good = "2026-11-18T11:06:40.123456Z"
        self.assertEqual(parse_time(good), NOW)
        self.assertEqual(format_time(NOW), good.encode())
        self.assertEqual(format_time(0), b"1970-01-01T00:00:00.000000Z")
        for bad in (
            good[:-1],
            good + "Z",
            good[:-1] + "z",
            good.replace("T", " "),
            good.replace(".", ","),
            good.replace("-11-", "-13-"),
            "2026-11-18T11:06:40.12345+Z",
            "2026-11-18T11:06:40+01:00:0",
        ):
            with self.assertRaises(ValueError, msg=bad) as caught:
                parse_time(bad)
            if "-13-" not in bad and "+Z" not in bad:
                self.assertEqual(str(caught.exception), f"not a time: {bad!r}")

    def test_years_have_four_digits(self) -> None:
        """The first years too, so that times sort as text."""
        self.assertEqual(format_time(-62135596800000000), b"0001-01-01T00:00:00.000000Z")

    @settings(deadline=None)
    @given(st.integers(0, 253402300799999999))
    def test_round_trip(self, time: int) -> None:
        """Every microsecond until the year 9999."""
        self.assertEqual(parse_time(format_time(time).decode()), time)

    @given(st.integers(0, 253402300799999998))
    def test_sorts(self, time: int) -> None:
        """Times sort as text, so that a reader can bisect."""
        self.assertLess(format_time(time), format_time(time + 1))
