"""What is said to JetStream and what its answers mean; what a stream must be; where one is."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import orjson
from twisted.trial.unittest import SynchronousTestCase

from msglog import StartError
from msglog._jetstream import (
    AppendOutcome,
    EngineError,
    Reply,
    StreamDamaged,
    append_headers,
    read_append,
    read_info,
    read_stored,
)
from msglog._nats_access import TLSFiles, parse_nats
from msglog._records import format_fragments, format_time, opening
from msglog._shards import StreamShard
from msglog._stream_settings import find_weaknesses, stream_config
from msglog.testing import make_batch

A = bytes(range(16))
SUBJECT = StreamShard("MSGLOG").subject_of(A)
TIME = format_time(10**15)


def json(**fields) -> Reply:
    return Reply(orjson.dumps(fields))


def error(code: int, number: int) -> Reply:
    return json(error={"code": code, "err_code": number, "description": "no"})


class AppendOutcomes(SynchronousTestCase):
    def outcome(self, reply: Reply):
        result = read_append(reply, "MSGLOG", 41)
        return result.outcome, result.answered

    def test_stored(self) -> None:
        """Only the right stream's word, with a sequence above the expected one."""
        result = read_append(json(stream="MSGLOG", seq=42), "MSGLOG", 41)
        self.assertEqual((result.outcome, result.sequence), (AppendOutcome.STORED, 42))

    def test_table(self) -> None:
        """Everything else that is not certain is unknown."""
        unknown, no_room = AppendOutcome.UNKNOWN, AppendOutcome.NO_ROOM
        for reply, expected in (
            (json(stream="MSGLOG", seq=41), (unknown, True)),
            (json(stream="OTHER", seq=42), (unknown, True)),
            (json(stream="MSGLOG", seq=42, duplicate=True), (unknown, True)),
            (json(stream="MSGLOG", seq="42"), (unknown, True)),
            (json(stream="MSGLOG"), (unknown, True)),
            (Reply(b"[]"), (unknown, True)),
            (Reply(b"no JSON"), (unknown, True)),
            (Reply(None, "no answer"), (unknown, False)),
            (error(400, 10071), (unknown, True)),  # wrong last sequence
            (error(400, 10164), (unknown, True)),  # another append is under way
            (error(400, 10060), (unknown, True)),  # another stream
            (error(503, 10008), (unknown, False)),  # the cluster cannot answer
            (error(503, 99999), (unknown, False)),
            (error(503, 10077), (no_room, True)),  # the stream is full
            (error(500, 10047), (no_room, True)),  # the server is
            (error(400, 10002), (no_room, True)),  # the account is
        ):
            self.assertEqual(self.outcome(reply), expected, reply)


class Reading(SynchronousTestCase):
    def message(self, **changes) -> Reply:
        batch = make_batch(A, 5, b"e", b"f")
        head = opening(TIME, A)
        headers = {**append_headers("MSGLOG", 6, 5, 6), **changes.pop("headers", {})}
        lines = head + head.join(format_fragments(batch)) + changes.pop("unended", b"")
        block = "NATS/1.0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
        message = {
            "subject": SUBJECT,
            "seq": 9,
            "hdrs": b64encode(block.encode()).decode(),
            "data": b64encode(lines).decode(),
            **changes,
        }
        return json(message=message)

    def test_message(self) -> None:
        """A batch is read back as it was written."""
        stored = read_stored(self.message(), A, SUBJECT)
        self.assertEqual(
            (stored.sequence, stored.previous, stored.first, stored.last), (9, 6, 5, 6)
        )
        self.assertEqual(stored.checksums, make_batch(A, 5, b"e", b"f").checksums)

    def test_none(self) -> None:
        """There may be none; that it cannot be said is something else."""
        self.assertIsNone(read_stored(error(404, 10037), A, SUBJECT))
        for reply in (error(503, 10008), Reply(None, "no answer"), Reply(b"x"), Reply(b"[]")):
            self.assertRaises(EngineError, read_stored, reply, A, SUBJECT)

    def test_damaged(self) -> None:
        """What no front-end has written is not taken for anything."""
        forged = b64encode(b'{"time":"x"}\n').decode()
        for changes in (
            {"data": forged},
            {"data": ""},
            {"headers": {"Msglog-Range": "5-7"}},
            {"headers": {"Msglog-Range": "x"}},
            {"headers": {"Msglog-Range": f"5-{10**12}"}},  # and is not counted out
            {"unended": b"x"},
            {"headers": {"Msglog-Previous": "9"}},
            {"headers": {"Msglog-Previous": "0"}},
            {"subject": StreamShard("MSGLOG").subject_of(bytes(16))},
        ):
            self.assertRaises(StreamDamaged, read_stored, self.message(**changes), A, SUBJECT)
        self.assertRaises(StreamDamaged, read_stored, self.message(), bytes(16), SUBJECT)

    def test_info(self) -> None:
        """A stream that is not there is told from an engine that cannot say."""
        self.assertEqual(read_info(json(config={})), {"config": {}})
        for reply, missing in ((error(404, 10059), True), (error(503, 10008), False)):
            with self.assertRaises(EngineError) as caught:
                read_info(reply)
            self.assertEqual(caught.exception.missing, missing)


class Settings(SynchronousTestCase):
    def found(self, sync_always: bool | None = True, **changes) -> list[tuple[str, bool]]:
        config = {**stream_config("MSGLOG"), **changes}
        return [(w.setting, w.breaks) for w in find_weaknesses(config, sync_always)]

    def test_as_it_should_be(self) -> None:
        """What C{msglog stream create} makes has no weakness."""
        self.assertEqual(self.found(), [])

    def test_order(self) -> None:
        """What syncs and how many replicas come first."""
        self.assertEqual(
            self.found(None, num_replicas=1, deny_purge=False),
            [("sync_interval", False), ("num_replicas", False), ("deny_purge", False)],
        )
        self.assertEqual(self.found(False)[0], ("sync_interval", False))

    def test_each(self) -> None:
        """Each setting that weakens the promise is named, and whether it breaks it."""
        for changes, breaks in (
            ({"storage": "memory"}, True),
            ({"subjects": ["other"]}, True),
            ({"retention": "workqueue"}, True),
            ({"max_age": 10**9}, True),
            ({"max_msgs_per_subject": 100}, True),
            ({"discard": "old"}, False),
            ({"no_ack": True}, True),
            ({"sealed": True}, True),
            ({"republish": {"src": ">"}}, False),
            ({"persist_mode": "async"}, False),
            ({"deny_delete": False}, False),
            ({"allow_rollup_hdrs": True}, False),
            ({"allow_msg_ttl": True}, False),
            ({"num_replicas": 2}, False),
            ({"num_replicas": 4}, False),
        ):
            (name,) = changes
            ((setting, broken),) = self.found(**changes)
            self.assertIn(name, setting)
            self.assertEqual(broken, breaks, name)
        self.assertEqual(self.found(discard="old", max_bytes=1000), [("discard", True)])
        self.assertEqual(self.found(max_bytes=1000), [])


class Where(SynchronousTestCase):
    def test_urls(self) -> None:
        """Servers, and who this is to them."""
        plain = parse_nats("nats://a,b:5222,[::1]:6222")
        self.assertEqual(plain.servers, ("a:4222", "b:5222", "[::1]:6222"))
        user = parse_nats("nats://me:p%40ss@a")
        self.assertEqual((user.user, user.password), ("me", "p@ss"))
        self.assertEqual(parse_nats("nats://secret@a").token, "secret")
        self.assertIsNotNone(parse_nats("tls://a").tls)

    def test_secrets_are_not_shown(self) -> None:
        """Neither what it is called nor an error repeats a password."""
        self.assertEqual(str(parse_nats("nats://me:pass@a,b")), "nats://a:4222,b:4222")
        with self.assertRaises(ValueError) as caught:
            parse_nats("nats://me:pass@a:port")
        self.assertNotIn("pass", str(caught.exception))

    def test_bad(self) -> None:
        """What is no URL of servers."""
        for url in ("a:4222", "http://a", "nats://", "nats://a,", "nats://[::1", "nats://a:0"):
            self.assertRaises(ValueError, parse_nats, url)

    def test_files(self) -> None:
        """A file that cannot be read is an error of the start that names it."""
        path = Path(self.mktemp())
        access = parse_nats("nats://a")
        for files in (TLSFiles(path), TLSFiles(None, path, path)):
            with self.assertRaises(StartError) as caught:
                access.with_tls(files).options()
            self.assertIn(str(path), str(caught.exception))
