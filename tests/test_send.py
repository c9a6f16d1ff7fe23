"""C{msglog send} without a server: what is read, what is handed over, and what is said."""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import NotLogged, Receipt, SessionFailed, SpoolError
from msglog._frames import ABSURD_BODY_BYTES
from msglog._spool import Spool, Step
from msglog.cli import _delivery, _lines, _send, _sending, main
from msglog.cli._lines import Input, split

CLIENT = UUID(int=7)


class Splitting(SynchronousTestCase):
    @given(st.binary(max_size=40), st.lists(st.integers(0, 40)), st.sampled_from([b"\n", b"\0"]))
    def test_any_blocks(self, data: bytes, cuts: list[int], separator: bytes) -> None:
        """However it is cut into blocks, the records are the same, and so are their offsets."""
        data = data.replace(b"\x01", separator)
        edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        blocks = [data[a:b] for a, b in pairwise(edges)]
        found = list(split(blocks, separator, 100))
        bodies = data.split(separator)
        if not bodies[-1]:
            bodies.pop()
        self.assertEqual([body for body, _, _ in found], bodies)
        for body, size, end in found:
            self.assertEqual(size, len(body))
            before = data[: end - 100].removesuffix(separator)
            self.assertEqual(before[len(before) - size :], body)

    def test_endless_line(self) -> None:
        """What no server takes is not kept in memory, and what follows it is whole."""
        block = b"x" * (ABSURD_BODY_BYTES // 4)

        def blocks() -> Iterator[bytes]:
            for _ in range(1000):
                yield block
            yield b"\nnext\n"

        size = 1000 * len(block)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        found = list(split(blocks(), b"\n", 0))
        self.assertEqual(found, [(b"", size, size + 1), (b"next", 4, size + 6)])
        self.assertLess(tracemalloc.get_traced_memory()[1], 2 * ABSURD_BODY_BYTES)


class Files(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.write_bytes(b"one\ntwo\n\nfour")

    def opened(self) -> Input:
        opened = Input(str(self.path), b"\n")
        self.addCleanup(opened.close)
        return opened

    def test_lines(self) -> None:
        """Places are for people, offsets for the spool; the last line needs no newline."""
        found = [(line.place, line.body, line.end) for line in self.opened().lines(self.fail)]
        name = str(self.path)
        expected = [(b"one", 4), (b"two", 8), (b"", 9), (b"four", 13)]
        self.assertEqual(
            found, [(f"{name}:{n}", body, end) for n, (body, end) in enumerate(expected, 1)]
        )

    def test_begin_in_the_middle(self) -> None:
        """Behind a record it begins with the next one, by its right number."""
        opened = self.opened()
        self.assertTrue(opened.begin_at(8))
        found = [(line.place, line.body, line.end) for line in opened.lines(self.fail)]
        self.assertEqual(found[0], (f"{self.path}:3", b"", 9))
        self.assertEqual(found[-1], (f"{self.path}:4", b"four", 13))

    def test_begin_elsewhere(self) -> None:
        """Where no record ends it does not begin: the file is another one by now."""
        self.assertFalse(self.opened().begin_at(6))
        self.assertFalse(self.opened().begin_at(14))
        self.assertTrue(self.opened().begin_at(13))

    def test_key(self) -> None:
        """A file that was renamed or has grown is the same; another one in its place is not."""
        key = self.opened().key
        with self.path.open("ab") as file:
            file.write(b" and more\n")
        self.path = self.path.rename(self.path.with_name("rotated"))
        self.assertEqual(self.opened().key, key)
        self.path.write_bytes(b"another\n")  # with the same inode
        self.assertNotEqual(self.opened().key, key)

    def test_pipe(self) -> None:
        """A pipe has no size and cannot be begun in the middle; to wait for it is to be idle."""
        os.mkfifo(pipe := self.mktemp())
        writing = os.open(pipe, os.O_RDWR)
        opened = Input(pipe, b"\n")
        self.addCleanup(opened.close)
        self.assertEqual((opened.key, opened.size), (None, None))
        self.patch(_lines, "_IDLE_SECONDS", 0)
        idle = iter([lambda: os.write(writing, b"a\nb"), lambda: os.close(writing)])
        found = [line.body for line in opened.lines(lambda: next(idle)())]
        self.assertEqual(found, [b"a", b"b"])


class Client:
    """
    Takes messages as a L{BlockingClient} does, and acknowledges them when it is waited for.

    @ivar answers: what becomes of messages, by body, if they are not acknowledged.
    """

    max_body: int | None = 10
    failure: SessionFailed | None = None
    trouble = ""
    room = 4
    left = 0

    def __init__(self) -> None:
        self.client = CLIENT
        self.answers: dict[bytes, Exception] = {}
        self.logged: list[bytes] = []
        self.marks: dict[str, int | None] = {}
        self.marks_before: dict[str, int] = {}
        self.refused = self.handed_over = 0
        self.waiting: deque[tuple[bytes, Any, Any]] = deque()
        self.closed = False

    def connect(self, servers: Any, **options: Any) -> Client:
        self.options = options
        return self

    @property
    def unsettled(self) -> int:
        return len(self.waiting) + self.left

    def hand_over(
        self, body: bytes, receipt: Any, spooled: Any, timeout: float, marks: Any
    ) -> None:
        if len(self.waiting) >= self.room:
            self.answer(2)
            raise TimeoutError
        if self.failure is not None and receipt is not None:
            raise self.failure
        self.handed_over += 1
        self.waiting.append((body, receipt, spooled))
        self.marks.update(marks or {})

    def answer(self, most: int) -> None:
        self.left = 0
        for _ in range(min(most, len(self.waiting))):
            body, receipt, spooled = self.waiting[0]
            answer: Any = self.answers.get(body, Receipt(CLIENT, len(self.logged) + 1, 0xC0FFEE))
            if isinstance(answer, SessionFailed):
                self.failure = answer
            elif isinstance(answer, SpoolError):
                spooled.set_exception(answer)
            elif isinstance(answer, NotLogged):
                self.refused += 1
            else:
                self.logged.append(body)
            self.waiting.popleft()
            if receipt is not None:
                receipt.set_exception(answer) if isinstance(
                    answer, Exception
                ) else receipt.set_result(answer)

    def flush(self, timeout: float) -> None:
        self.answer(2)
        if self.waiting:
            raise TimeoutError

    def marked(self, key: str) -> int | None:
        return self.marks_before.get(key)

    def close(self, timeout: float) -> None:
        self.closed = True


class Ended(NamedTuple):
    stdout: str
    stderr: str


class SendCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.client = Client()
        self.patch(_send, "BlockingClient", self.client.connect)
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def assert_ends(self, status: int, *said: str, arguments: tuple[str, ...]) -> Ended:
        """Run the command as C{msglog} does."""
        self.patch(sys, "argv", ["msglog", "send", *arguments])
        with CliRunner().isolation() as (stdout, stderr, _):
            ended = self.assertRaises(SystemExit, main)
            result = Ended(stdout.getvalue().decode(), stderr.getvalue().decode())
        self.assertEqual(ended.code, status, result)
        for part in said:
            self.assertIn(part, result.stderr)
        self.assertNotIn("Traceback", result.stderr)
        return result


class Sends(SendCase):
    def test_everything(self) -> None:
        """All lines of all files, in order, byte for byte."""
        a, b = self.file("a", b"1\n\n\xff\x00\r\n"), self.file("b", b"4\n5")
        self.assert_ends(0, "5 messages were acknowledged", str(CLIENT), arguments=(a, b))
        self.assertEqual(self.client.logged, [b"1", b"", b"\xff\x00\r", b"4", b"5"])
        self.assertTrue(self.client.closed)

    def test_null(self) -> None:
        self.assert_ends(0, arguments=("-0", self.file("a", b"1\n2\0003")))
        self.assertEqual(self.client.logged, [b"1\n2", b"3"])

    def test_messages(self) -> None:
        """What is said on the command line; of one message, the receipt."""
        self.assert_ends(0, "sequence 1, crc 00c0ffee", arguments=("-m", "hé"))
        self.assertEqual(self.client.logged, ["hé".encode()])

    def test_receipts(self) -> None:
        """One object a line, in order, and nothing else anywhere."""
        result = self.assert_ends(0, arguments=("--json", self.file("a", b"1\n2\n3\n4\n5\n6\n7\n")))
        self.assertEqual(result.stderr, "")
        found = [orjson.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([each["seq"] for each in found], [1, 2, 3, 4, 5, 6, 7])
        self.assertEqual(found[0], {"client": str(CLIENT), "seq": 1, "crc": "00c0ffee"})

    def test_too_long(self) -> None:
        """It ends before that line, which it names; those before it are acknowledged."""
        file = self.file("a", b"1\n2\n12345678901\n4\n")
        said = f"{file}:3: 11 bytes are too long, the server takes 10; 2 messages were acknowledged"
        self.assert_ends(1, said, f"the last is {file}:2", arguments=(file,))
        self.assertEqual(self.client.logged, [b"1", b"2"])

    def test_skip_too_long(self) -> None:
        """The others are sent, and the end is not a good one all the same."""
        file = self.file("a", b"1\n2\n12345678901\n4\n")
        said = (f"{file}:3: 11 bytes", "1 message was left out; 3 messages were acknowledged")
        self.assert_ends(1, *said, arguments=("--skip-too-long", file))
        self.assertEqual(self.client.logged, [b"1", b"2", b"4"])

    def test_refused(self) -> None:
        """What the server refuses after all is named, and nothing new is begun."""
        self.client.answers[b"2"] = NotLogged("it is too long", False)
        file = self.file("a", b"".join(b"%d\n" % n for n in range(1, 1000)))
        self.patch(_delivery, "_LOOK_SECONDS", 0)
        result = self.assert_ends(1, f"{file}:2: it is too long; ", arguments=(file,))
        self.assertLess(len(self.client.logged), 20)
        self.assertIn(f"{len(self.client.logged)} messages were acknowledged", result.stderr)

    def test_refused_and_skipped(self) -> None:
        self.client.answers[b"2"] = NotLogged("it is too long", False)
        file = self.file("a", b"1\n2\n3\n")
        said = (f"{file}:2: it is too long\n", "1 message was left out; 2 messages were")
        self.assert_ends(1, *said, arguments=("--skip-too-long", file))

    def test_session_fails(self) -> None:
        """What is said is why, how many are logged, and up to where."""
        self.client.answers[b"3"] = SessionFailed("CONFLICT: somebody else", False)
        file = self.file("a", b"1\n2\n3\n4\n5\n6\n7\n8\n")
        said = f"CONFLICT: somebody else; 2 messages were acknowledged, the last is {file}:2"
        self.patch(_delivery, "_LOOK_SECONDS", 0)
        self.assert_ends(1, said, arguments=(file,))

    def test_no_server(self) -> None:
        """It is given up in time, with the reason."""
        self.client.max_body, self.client.trouble = None, "no connection to x:1: refused"
        said = "msglog: no connection to x:1: refused; given up after 0 s without progress; 0"
        self.assert_ends(1, said, arguments=("-t", "0", self.file("a", b"1\n")))

    def test_usage(self) -> None:
        for said, *arguments in (
            ("exclude each other", "-m", "x", self.file("a", b"")),
            ("--new-client is for --spool", "--new-client"),
            ("--timeout", "-t", "-1"),
            ("--client", "--client", "me"),
        ):
            self.assert_ends(2, said, arguments=tuple(arguments))

    def test_servers(self) -> None:
        """What is no address is an error of the command line."""
        self.patch(_send, "BlockingClient", _raising(ValueError("not a server: 'x:y'")))
        self.assert_ends(2, "not a server: 'x:y'", arguments=("-s", "x:y", "-m", "a"))

    def test_files_that_are_none(self) -> None:
        """Nothing is sent if one of them cannot be opened."""
        good = self.file("a", b"1\n")
        self.assert_ends(1, "nope: No such file", arguments=(good, "nope"))
        self.assert_ends(1, "it is a folder", arguments=(good, str(self.folder)))
        self.assertEqual(self.client.handed_over, 0)

    def test_spool_locked(self) -> None:
        self.patch(_send, "BlockingClient", _raising(SpoolError("the spool s is in use")))
        self.assert_ends(
            1, "msglog: the spool s is in use\n", arguments=("--spool", "s", "-m", "a")
        )

    def test_interrupted(self) -> None:
        """Ctrl-C: what is on its way is waited for, and what is acknowledged is said."""
        self.patch(_delivery, "_LOOK_SECONDS", 0)
        file = self.file("a", b"".join(b"%d\n" % n for n in range(1000)))
        take = Client.hand_over

        def hand_over(client: Client, body: bytes, *rest: Any, **others: Any) -> None:
            if body == b"100":
                os.kill(os.getpid(), 2)
            take(client, body, *rest, **others)

        self.patch(Client, "hand_over", hand_over)
        result = self.assert_ends(130, "interrupted: ", arguments=(file,))
        logged = len(self.client.logged)
        self.assertIn(logged, range(100, 110))
        self.assertIn(
            f"interrupted: {logged} messages were acknowledged, the last is {file}:{logged}\n",
            result.stderr,
        )

    def test_page(self) -> None:
        """The page has every option, and the same defaults."""
        page = (Path(__file__).parent.parent / "docs" / "send.md").read_text()
        for option in _send.command.params:
            for name in option.opts:
                if name.startswith("-") and not name.startswith("--tls"):
                    self.assertIn(f"`{name}", page)
        self.assertIn(f"for so long: {_send.TIMEOUT_SECONDS:g}, or", page)

    def test_help(self) -> None:
        said = self.assert_ends(0, arguments=("--help",)).stdout
        for part in ("Examples:", "Exit status:", "130", "--spool", "--new-client"):
            self.assertIn(part, said)


class SendsThroughSpool(SendCase):
    """What differs with a spool."""

    def spooled(self, status: int, *said: str, arguments: tuple[str, ...]) -> Ended:
        spool = str(self.folder / "spool")
        return self.assert_ends(status, *said, arguments=("--spool", spool, *arguments))

    def key(self, file: str) -> str:
        opened = Input(file, b"\n")
        opened.close()
        assert opened.key is not None
        return opened.key

    def test_marks(self) -> None:
        """With each line goes how far its file is read."""
        marks: list[Any] = []
        take = Client.hand_over

        def hand_over(client: Client, *rest: Any, **others: Any) -> None:
            take(client, *rest, **others)
            marks.append(others["marks"])

        self.patch(Client, "hand_over", hand_over)
        a, b = self.file("a", b"1\n2\n"), self.file("b", b"3\n4")
        self.spooled(0, "4 messages", arguments=(a, b))
        a, b = self.key(a), self.key(b)
        self.assertEqual(marks, [{a: 2}, {a: 4}, {b: 2}, {b: 3}])

    def test_going_on(self) -> None:
        """A file that is known goes on where it was, which is said."""
        file = self.file("a", b"1\n2\n3\n")
        self.client.marks_before[self.key(file)] = 4
        self.spooled(0, f"{file}: going on at byte 4", "1 message was", arguments=(file,))
        self.assertEqual(self.client.logged, [b"3"])

    def test_changed(self) -> None:
        """A file that is known but has no line's end there is sent from its start."""
        file = self.file("a", b"1\n2\n3\n")
        self.client.marks_before[self.key(file)] = 3
        self.spooled(0, "it was changed", "3 messages were", arguments=(file,))

    def remembered(self, file: str, answer: Exception | None = None) -> None:
        """See what the spool remembers after a file is sent."""
        key, path = self.key(file), self.folder / "spool"
        spool = Spool(path, lambda: CLIENT)
        spool.do(Step(marks={key: 4, "other": 1}))
        spool.close()
        self.client.marks_before[key] = 4
        if answer is not None:
            self.client.answers[b"3"] = answer
        self.spooled(0 if answer is None else 1, arguments=(file,))
        spool = Spool(path, lambda: CLIENT)
        self.addCleanup(spool.close)
        self.assertEqual(spool.marks.keys(), {"other"} | ({key} if answer else set()))

    def test_all_is_logged(self) -> None:
        """Then the spool forgets the file, so that it could be sent again."""
        self.remembered(self.file("a", b"1\n2\n3\n"))

    def test_nothing_was_left(self) -> None:
        """The same if everything was logged already when an earlier command was killed."""
        self.remembered(self.file("a", b"1\n2\n"))

    def test_not_all_is_logged(self) -> None:
        """Then it still knows the file."""
        self.remembered(self.file("a", b"1\n2\n3\n"), SessionFailed("CONFLICT", False))

    def test_left(self) -> None:
        """What an earlier run left is counted too."""
        self.client.left = 3
        said = "4 messages were acknowledged, 3 of them left in the spool before"
        self.spooled(0, said, arguments=("-m", "x"))

    def test_nobody_waits_for_receipts(self) -> None:
        """So that a line is not in memory once it is in the spool; for --json it is."""
        seen = []
        take = Client.hand_over

        def hand_over(client: Client, body: bytes, receipt: Any, *rest: Any, **others: Any) -> None:
            take(client, body, receipt, *rest, **others)
            seen.append(receipt is not None)

        self.patch(Client, "hand_over", hand_over)
        self.spooled(0, arguments=("-m", "x"))
        self.spooled(0, arguments=("-m", "x", "--json"))
        self.assertEqual(seen, [False, True])

    def test_refused_in_the_spool(self) -> None:
        """What nobody waits for is counted all the same."""
        self.client.answers[b"x"] = NotLogged("too long", False)
        self.spooled(1, "1 message was left out; 1 message was", arguments=("-m", "x", "-m", "y"))

    def test_session_fails_in_the_spool(self) -> None:
        """The client's verdict counts, whatever it says is settled."""
        self.client.answers[b"x"] = SessionFailed("CONFLICT", False)
        self.spooled(1, "CONFLICT; 0 messages were acknowledged", arguments=("-m", "x"))

    def test_full(self) -> None:
        """A spool that takes no more ends it."""
        self.client.answers[b"x"] = SpoolError("cannot write the spool: disk full")
        self.spooled(1, "msglog: cannot write the spool: disk full; ", arguments=("-m", "x"))

    def test_server_away(self) -> None:
        """Lines go into the spool without a server; what they wait for there is said."""
        self.client.max_body, self.client.trouble = None, "no connection"
        self.patch(Client, "answer", lambda client, most: None)
        self.patch(_sending, "STOP_SECONDS", 0)
        said = ("no connection; given up", "0 messages were acknowledged, 2 wait in ")
        self.spooled(1, *said, arguments=("-t", "0", "-m", "a", "-m", "b"))

    def test_new_client(self) -> None:
        """The spool gets a new client id, and keeps what it has."""
        path = self.folder / "spool"
        self.spooled(1, f"there is no spool {path}", arguments=("--new-client", "-m", "x"))
        spool = Spool(path, lambda: CLIENT)
        spool.do(Step(add=[b"a"]))
        spool.close()
        self.spooled(0, arguments=("--new-client", "-m", "x"))
        spool = Spool(path, lambda: CLIENT)
        self.addCleanup(spool.close)
        self.assertNotEqual(spool.client, CLIENT)
        self.assertEqual((spool.first, spool.count), (1, 1))


def _raising(error: Exception) -> Any:
    def connect(*args: Any, **options: Any) -> Any:
        raise error

    return connect
