"""Rotation under load, by the server itself and by logrotate: nothing is lost or repeated by it."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import wire
from conftest import BIN, Server, wait_until
from senders import Sender, running

DEPLOY = Path(__file__).parent.parent.parent / "deploy"


def bodies(senders: list[Sender]) -> dict[bytes, list[bytes]]:
    """What must be in the log when all that was sent has its receipt."""
    assert [s.error for s in senders] == [None] * len(senders)
    return {s.client.bytes: s.bodies for s in senders}


def verify(log: Path) -> dict:
    """What C{msglog verify} says of a log and its rotated files."""
    done = subprocess.run(
        [str(BIN / "msglog"), "verify", "--json", "--rotated", str(log)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def rotated(log: Path) -> list[Path]:
    """The files that were rotated away, oldest first by their names."""
    return sorted(p for p in log.parent.glob(f"{log.name}[.-][0-9]*") if p.stat().st_size)


@contextmanager
def followed(log: Path, output: Path) -> Iterator[None]:
    """A reader goes along; all that it printed is what the files have."""
    with output.open("wb") as file:
        tail = subprocess.Popen(
            [str(BIN / "msglog"), "tail", "-f", "-n", "0", "--json", str(log)],
            stdout=file,
            stderr=subprocess.PIPE,
        )
    try:
        assert tail.stderr is not None
        yield
        expected = b"".join(path.read_bytes() for path in [*rotated(log), log])
        wait_until(lambda: output.stat().st_size >= len(expected), "the reader's last line")
        assert output.read_bytes() == expected
    finally:
        tail.kill()
        tail.communicate(timeout=30)


def test_kills_and_rotation(make_server, tmp_path) -> None:
    """kill -9 again and again, while the server rotates all the time and a reader goes along."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    rng = random.Random(seed)
    server = make_server("--rotate", "64KiB", "--checkpoint-bytes", "100000").start()
    senders = [Sender(server.port, 1 if n % 2 else 50) for n in range(6)]
    with followed(server.log, tmp_path / "tail"):
        time.sleep(0.5)
        with running(senders):
            for _ in range(12):
                before = len(rotated(server.log))
                wait_until(lambda b=before: len(rotated(server.log)) > b + 2, "rotation")
                time.sleep(rng.random() / 20)
                server.kill()
                server.start()
        server.stop()
    files = rotated(server.log)
    assert len(files) >= 36
    assert all(path.stat().st_size >= 65536 for path in files)
    assert wire.read_logs(*files, server.log) == bodies(senders)
    verify(server.log)
    # The ledger had all of it: it is the same as one that is made from the files.
    kept = [server.log.with_name("messages.jsonl.ledger"), server.log.with_name("ledger.kept")]
    kept[0].rename(kept[1])
    server.start()
    for sender in senders:
        with wire.Connection(server.port) as connection:
            assert connection.terms(sender.client.bytes)[0] == len(sender.bodies)
    server.stop()


def test_keep(make_server) -> None:
    """Old files go, and their clients are remembered."""
    server = make_server("--rotate", "64KiB", "--rotate-keep", "2").start()
    senders = [Sender(server.port, 50)]
    with running(senders):
        wait_until(lambda: "deleted" in server.said(), "a deletion")
        wait_until(lambda: server.said().count("rotated") > 6, "rotation")
    with wire.Connection(server.port) as connection:
        assert connection.terms(senders[0].client.bytes)[0] == len(senders[0].bodies)
    server.stop()
    assert len(rotated(server.log)) == 2


def test_folder_that_takes_no_new_file(make_server) -> None:
    """
    A rotation that cannot be done is said once, and the log goes on.  (The folder cannot be made
    unwritable for root; what is in the way here is a file under each name that could be next.)
    """
    server = make_server("--rotate", "64KiB").start()
    senders = [Sender(server.port, 50)]
    chattr = shutil.which("chattr")
    if chattr is None or subprocess.run([chattr, "+a", server.folder], check=False).returncode:
        server.stop()
        pytest.skip("needs a file system with chattr +a")
    try:
        with running(senders):
            wait_until(lambda: "could not be rotated" in server.said(), "a failed rotation")
            size = server.log.stat().st_size
            wait_until(lambda: server.log.stat().st_size > size + 100_000, "more messages")
    finally:
        subprocess.run([chattr, "-a", server.folder], check=True)
    server.stop()
    assert server.said().count("could not be rotated") == 1
    assert [path.name for path in rotated(server.log)] == []
    assert wire.read_logs(server.log) == bodies(senders)


def logrotate_config(server: Server, folder: Path) -> Path:
    """The shipped configuration, for a server that is not systemd's, and whose user we are."""
    text = (DEPLOY / "logrotate.conf").read_text()
    for shipped, ours in [
        (r"/var/lib/msglog/messages\.jsonl", str(server.log)),
        (r" +su msglog msglog\n", ""),
        (r"systemctl kill --signal=HUP .*", f"kill -HUP {server.process.pid}"),
    ]:
        text, count = re.subn(shipped, ours, text)
        assert count == 1, shipped
    config = folder / "logrotate.conf"
    config.write_text(text)
    config.chmod(0o644)
    return config


@pytest.mark.skipif(
    not shutil.which("logrotate") and not os.environ.get("CI"), reason="needs logrotate"
)
def test_logrotate(make_server, tmp_path) -> None:
    """logrotate, with the shipped configuration, six times under load."""
    server = make_server().start()
    server.folder.chmod(0o750)
    config = logrotate_config(server, tmp_path)
    state = tmp_path / "state"
    senders = [Sender(server.port, 1 if n % 2 else 50) for n in range(6)]
    with running(senders):
        for n in range(6):
            wait_until(lambda: server.log.exists() and server.log.stat().st_size > 20_000, "load")
            done = subprocess.run(
                ["logrotate", "--force", "--state", str(state), str(config)],
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert (done.returncode, done.stderr) == (0, ""), done
            wait_until(server.log.exists, "a new log")
            wait_until(lambda n=n: len(rotated(server.log)) == n + 1, "a rotated file")
            time.sleep(1.05)  # its names have seconds
    server.stop()
    files = rotated(server.log)
    assert [path.suffix == ".gz" for path in files] == [True] * 5 + [False]
    said = verify(server.log)
    expected = bodies(senders)
    assert said["records"] == sum(map(len, expected.values()))
    for path in files[:-1]:
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert wire.read_logs(*rotated(server.log), server.log) == expected
    assert "Traceback" not in server.said()
