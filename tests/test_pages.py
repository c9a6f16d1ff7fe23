"""The two normative pages say what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from msglog import ClientLimits, NackCode, parse_line
from msglog._frames import (
    FrameDecoder,
    crc32c,
    encode_acks,
    encode_enquiry,
    encode_message,
    encode_nack,
    encode_terms,
)
from msglog._limits import limits_table
from msglog._records import format_line

DOCS = Path(__file__).parent.parent / "docs"
CLIENT = UUID("019ac1f2-7b3c-7d4e-8f50-61728394a5b6")


def examples(page: str) -> dict[str, str]:
    """What stands in the code blocks that are marked as examples, by their marks."""
    found = re.findall(
        r"<!-- example: (.*?) -->\n```\w*\n(.*?)```\n", (DOCS / page).read_text(), re.S
    )
    assert found
    return dict(found)


class ProtocolPage(SynchronousTestCase):
    def test_hex_examples(self) -> None:
        """Every type's bytes are those that the code makes."""
        client = CLIENT.bytes
        hello, empty = encode_message(client, 1, b"hello"), encode_message(client, 2, b"")
        (run,) = FrameDecoder(256).feed(hello)
        expected = {
            "message 1 hello": hello,
            "message 2": empty,
            "ack 1 hello": encode_acks(run.heads),
            'nack 5 OUT_OF_ORDER 3 "expected sequence 3"': encode_nack(
                client, 5, NackCode.OUT_OF_ORDER, 3, "expected sequence 3"
            ),
            "enquiry 1": encode_enquiry(client),
            "terms 2 1 256 1024": encode_terms(client, 2, 1, 256, 1024),
        }
        shown = {name: bytes.fromhex(text) for name, text in examples("protocol.md").items()}
        self.assertEqual(shown, expected)

    def test_codes(self) -> None:
        """The table has each NACK code, by its number and name."""
        rows = re.findall(r"^\| (\d) \| ([A-Z_]+) \|", (DOCS / "protocol.md").read_text(), re.M)
        self.assertEqual(
            {name: int(number) for number, name in rows}, dict(NackCode.__members__.items())
        )

    def test_checksum(self) -> None:
        """The check value that the page gives for CRC-32C."""
        self.assertIn("0xE3069283", (DOCS / "protocol.md").read_text())
        self.assertEqual(crc32c(b"123456789"), 0xE3069283)


class FormatPage(SynchronousTestCase):
    def setUp(self) -> None:
        self.examples = examples("log-format.md")
        self.lines = self.examples["records"].encode().splitlines(keepends=True)

    def test_records(self) -> None:
        """Every line shown is a good record, written as the code writes it."""
        bodies = []
        for line in self.lines:
            record = parse_line(line)
            self.assertEqual(format_line(record), line)
            bodies.append(record.body)
        self.assertEqual(bodies, [b"hello", "tab\t and \u2028 and é".encode(), b"\xff\x00", b""])

    def test_reader(self) -> None:
        """The reader shown reads the records shown, and sees damage."""
        names: dict = {}
        exec(self.examples["reader"], names)
        self.assertEqual(
            [body for *_, body in names["read"](self.lines)],
            [parse_line(line).body for line in self.lines],
        )
        damaged = self.lines[0].replace(b"hello", b"hellO")
        self.assertRaises(ValueError, list, names["read"]([damaged]))


class ClientsPage(SynchronousTestCase):
    def test_limits(self) -> None:
        """The clients' page gives each limit as the code has it."""
        text = (DOCS / "clients.md").read_text()
        for name, default, unit, meaning, reason in limits_table(ClientLimits):
            self.assertIn(f"| `{name}` | `{default}` | {unit} | {meaning} | {reason} |", text)
