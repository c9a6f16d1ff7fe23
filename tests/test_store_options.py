"""The options of C{--store}."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from msglog import StartError, tap

from .test_tap import parse


class StoreOptionsTest(SynchronousTestCase):
    def test_no_store(self) -> None:
        """Without it there is a file."""
        self.assertIsNone(parse()["access"])

    def test_all_of_it(self) -> None:
        """Where, who, and how it is encrypted; files are meant from the folder of the start."""
        secret = Path(self.mktemp())
        secret.write_text("p@ss:word\n")
        options = parse(
            *("--store", "nats://a,b:5222", "--store-stream", "AUDIT"),
            *("--store-user", "me", "--store-password-file", str(secret)),
            *("--store-tls-ca", "ca.pem", "--store-credentials", "me.creds"),
        )
        access = options["access"]
        self.assertEqual(str(access), "tls://a:4222,b:5222")
        self.assertEqual(access.user, "me")
        self.assertEqual(evolve(access, credentials=None).login("")["pass"], "p@ss:word")
        self.assertEqual(access.tls.authority, Path("ca.pem").absolute())
        self.assertEqual(access.credentials, Path("me.creds").absolute())
        self.assertEqual(options["store-stream"], "AUDIT")

    def test_secrets_of_the_url(self) -> None:
        """Those of the URL count if no option says otherwise."""
        self.assertEqual(parse("--store", "nats://me:pass@a")["access"].password, "pass")
        token = Path(self.mktemp())
        token.write_text("token")
        access = parse("--store", "nats://a", "--store-token-file", str(token))["access"]
        self.assertEqual(access.login(""), {"auth_token": "token"})

    def test_bad_secrets(self) -> None:
        """A file that has no secret, or more than that, is named, and not what is in it."""
        path = Path(self.mktemp()).absolute()
        for data, words in (
            (None, f"--store-token-file: cannot read {path}: No such file"),
            (b"\n", f"{path} is empty"),
            (b"s3cret\nmore\n", f"{path} has several lines"),
            (b"s3cret\xff", f"cannot read {path}: it is no text"),
        ):
            if data is not None:
                path.write_bytes(data)
            with self.assertRaises(UsageError) as caught:
                parse("--store", "nats://a", "--store-token-file", str(path))
            self.assertIn(words, str(caught.exception))
            self.assertNotIn("s3cret", str(caught.exception))

    def test_read_again(self) -> None:
        """What is in the file when a connection is made counts, and not what was there before."""
        path = Path(self.mktemp())
        path.write_text("first\n")
        user = ("--store-user", "me", "--store-password-file", str(path))
        access = parse("--store", "nats://a", *user)["access"]
        path.write_text("other\n")
        self.assertEqual(access.login(""), {"user": "me", "pass": "other"})
        path.write_text("")
        with self.assertRaises(StartError):
            access.login("")

    def test_bad_words(self) -> None:
        """What cannot be meant is a usage error that names the option, and no secret."""
        store = ("--store", "nats://me:secret@a")
        for words, named in (
            (("--store", "http://secret@a"), "--store: not nats://"),
            (("--store", "nats://me:secret@a:x"), "--store: 'x' is not a port"),
            ((*store, "--log", "other"), "--log is about a log file"),
            ((*store, "--sync", "1"), "--sync is about"),
            ((*store, "--rotate", "daily"), "--rotate is about"),
            ((*store, "--store-stream", "a.b"), "--store-stream a.b"),
            ((*store, "--store-stream", ""), "--store-stream"),
            ((*store, "--max-message-bytes", "200000"), "--max-message-bytes 200000"),
            ((*store, "--store-user", "me"), "--store-user and --store-password-file"),
            ((*store, "--store-tls-key", "k"), "--store-tls-certificate and --store-tls-key"),
            ((*store, "--store-token-file", "/nowhere/token"), "--store-token-file"),
        ):
            with self.assertRaises(UsageError, msg=words) as caught:
                parse(*words)
            self.assertIn(named, str(caught.exception))
            self.assertNotIn("secret", str(caught.exception))

    def test_makes_it(self) -> None:
        """The service that they describe has that store, and has connected to nothing yet."""
        self.patch(tap.sys, "excepthook", None)
        self.patch(tap.sys, "setswitchinterval", lambda seconds: None)
        self.patch(tap.signal, "signal", lambda *_: None)
        service = tap.makeService(parse("--store", "nats://a", "--store-stream", "AUDIT"))
        self.assertEqual(service.store.title, "nats://a:4222 stream AUDIT")
