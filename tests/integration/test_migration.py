"""From a log to a stream, and reading it there, with real servers, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import urllib.request
import uuid

import nats
import pytest
import wire
from conftest import BIN, wait_until
from front_ends import FrontEnd
from nats_cluster import Cluster, Node

from tests.logs import TEN, commit


@pytest.fixture
def cluster(tmp_path):
    folder = tmp_path / "nats"
    folder.mkdir()
    cluster = Cluster([Node(folder, "n1")])
    try:
        cluster.start().create_stream()
        yield cluster
    finally:
        cluster.kill()


def command(*words: object) -> list[str]:
    return [str(BIN / "msglog"), *map(str, words)]


def run(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=60)


def stored(cluster: Cluster) -> int:
    """How many messages the stream has."""
    (node,) = cluster.nodes
    with urllib.request.urlopen(f"http://127.0.0.1:{node.monitor}/jsz", timeout=10) as answer:
        return json.load(answer)["messages"]


def test_cut_over(cluster, server, tmp_path) -> None:
    """
    The steps of the manual: what was rotated away is brought in while the server runs, the rest
    when it has stopped, and clients go on over the stream as if nothing had happened.
    """
    clients = [uuid.uuid4().bytes for _ in range(5)]
    rotated = server.log.with_name("messages.jsonl.1")

    def log(sequence: int) -> None:
        with wire.Connection(server.port) as connection:
            for client in clients:
                connection.log(client, sequence, b"%d" % sequence)

    for sequence in range(1, 21):
        log(sequence)
    server.log.rename(rotated)
    done = run("import", rotated, cluster.url)  # which the server may have open still
    assert "is open in a server" in done.stderr or done.returncode == 0, done.stderr
    server.hang_up()
    wait_until(server.log.exists, "a new log")
    log(21)
    done = run("import", rotated, cluster.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("100 messages of 5 clients in MSGLOG")
    done = run("import", server.log, cluster.url)
    assert done.returncode == 1
    assert "is open in a server: stop that first" in done.stderr
    server.stop()
    done = run("import", "--rotated", server.log, cluster.url)
    assert done.returncode == 0, done.stderr
    assert "105 messages of 5 clients in MSGLOG: 5 put there, 100 there before" in done.stdout

    front_end = FrontEnd(tmp_path / "front", cluster.url)
    try:
        front_end.start()
        with wire.Connection(front_end.port) as connection:
            for client in clients:
                assert connection.terms(client)[0] == 21
                connection.log(client, 20, b"20")
                connection.send(wire.message(client, 21, b"other"))
                assert connection.nack()[0] == 8
                connection.log(client, 22, b"22")
        front_end.stop()
    finally:
        front_end.kill()
    whole = tmp_path / "whole.jsonl"
    assert run("export", cluster.url, whole).returncode == 0
    before = rotated.read_bytes() + server.log.read_bytes()
    assert whole.read_bytes().startswith(before)
    assert whole.read_bytes().count(b"\n") == 110
    assert run("verify", whole).returncode == 0
    done = run("import", "--rotated", server.log, cluster.url)
    assert "5 clients have gone on there already" in done.stdout


def alternating(commits: int) -> bytes:
    """A log of clients who come in turns, so that each message of the stream has few lines."""
    rng = random.Random(1)
    clients = [uuid.UUID(int=rng.getrandbits(128), version=4).bytes for _ in range(20)]
    last, parts = dict.fromkeys(clients, 0), []
    for n in range(commits):
        runs = []
        for client in rng.sample(clients, 4):
            runs.append((client, last[client] + 1, [b"%d" % n] * 3))
            last[client] += 3
        parts.append(commit(TEN + n * 500, *runs))
    return b"".join(parts)


def test_killed(cluster, tmp_path) -> None:
    """An import that is killed again and again: the stream then is the log, byte for byte."""
    log = tmp_path / "messages.jsonl"
    log.write_bytes(alternating(500))
    total, rng, parts = 2000, random.Random(1), set()
    while (before := stored(cluster)) < total and len(parts) < 5:
        until = before + rng.randint(1, total // 16)
        process = subprocess.Popen(command("import", log, cluster.url), stdout=subprocess.DEVNULL)
        try:
            wait_until(
                lambda process=process, until=until: (
                    process.poll() is not None or stored(cluster) >= until
                ),
                "progress",
            )
        finally:
            process.kill()
            process.wait(10)
        parts.add(stored(cluster))
    assert len(parts) > 3
    done = run("import", log, cluster.url)
    assert done.returncode == 0, done.stderr
    whole = tmp_path / "whole.jsonl"
    assert run("export", cluster.url, whole).returncode == 0
    assert whole.read_bytes() == log.read_bytes()
    assert run("verify", whole).returncode == 0


def test_server_killed(cluster, tmp_path) -> None:
    """An import goes on by itself when the NATS server is killed and comes back."""
    log = tmp_path / "messages.jsonl"
    log.write_bytes(alternating(250))
    (node,) = cluster.nodes
    process = subprocess.Popen(
        command("import", log, cluster.url), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        for part in (100, 500):
            wait_until(lambda part=part: stored(cluster) >= part, "progress")
            node.kill()
            node.start()
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 0, said
    assert b"3,000 messages of 20 clients in MSGLOG: 3,000 put there" in said
    whole = tmp_path / "whole.jsonl"
    assert run("export", cluster.url, whole).returncode == 0
    assert run("verify", whole).returncode == 0
    assert whole.read_bytes().count(b"\n") == 3000


def test_refused(cluster, tmp_path) -> None:
    """What cannot be brought in is refused before anything is, with what to do."""
    log, part = tmp_path / "messages.jsonl", tmp_path / "part.jsonl"
    log.write_bytes(alternating(20))
    lines = log.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[24:]))

    def refused(*words: object, status: int = 1) -> str:
        done = run("import", *words)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "msglog stream create nats://" in refused(log, cluster.url, "--stream", "OTHER")
    assert "--partial lets clients begin above 1" in refused(part, cluster.url)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(b"".join(lines).replace(b'"message":"3"', b'"message":"4"', 1))
    assert "the log is not whole" in refused(damaged, cluster.url)
    damaged.write_bytes(b"".join(lines)[:-5])
    assert "ends in the middle of a line" in refused(damaged, cluster.url)
    assert "oldest first" in refused(part, log, cluster.url, status=2)
    assert "the standard input" in refused("-", cluster.url, status=2)
    assert "not nats://" in refused(log, part, status=2)
    assert stored(cluster) == 0
    assert run("import", part, cluster.url, "--partial").returncode == 0


async def _delete_stream(url: str) -> None:
    connection = await nats.connect(url)
    await connection.jetstream().delete_stream("MSGLOG")
    await connection.close()


def test_read(cluster, tmp_path) -> None:
    """
    A stream is read as a file is; tail -f goes on when the server was killed, and ends with an
    error when the stream was made anew.
    """
    log = tmp_path / "messages.jsonl"
    log.write_bytes(alternating(30))
    lines = log.read_bytes().splitlines(keepends=True)
    client = json.loads(lines[-1])["client"]
    assert run("import", log, cluster.url).returncode == 0
    for words in (
        ("cat", "--json"),
        ("cat", "--client", client),
        ("cat", "--since", "2026-11-24T10:00:00.010", "--grep", "2"),
        ("tail",),
        ("tail", "-n", "3", "--json", "-c", client),
    ):
        name, *options = words
        of_file, of_stream = (run(name, where, *options) for where in (log, cluster.url))
        assert of_stream.stdout == of_file.stdout != ""
        assert (of_stream.returncode, of_stream.stderr) == (0, "")
    assert "msglog export" in run("verify", cluster.url).stderr
    for name, *more in (("tail",), ("export", str(tmp_path / "none"))):
        said = run(name, cluster.url, *more, "--stream", "OTHER").stderr
        assert "there is no stream OTHER" in said
    said = run("stream", "check", cluster.url, "--stream", "OTHER").stderr
    assert "msglog stream create makes it" in said

    (node,) = cluster.nodes
    shown = tmp_path / "shown"
    with shown.open("wb") as stdout:
        process = subprocess.Popen(
            command("tail", "-f", "-n", "2", "--json", cluster.url),
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
    try:
        wait_until(lambda: shown.read_bytes() == b"".join(lines[-2:]), "the last two")
        node.kill()
        node.start()
        log.write_bytes(alternating(40))
        assert run("import", log, cluster.url).returncode == 0
        more = log.read_bytes().splitlines(keepends=True)
        expected = b"".join(more[len(lines) - 2 :])
        wait_until(lambda: shown.read_bytes() == expected, "what came")
        asyncio.run(_delete_stream(cluster.url))
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 1
    assert b"the stream MSGLOG is not there any more" in said
    assert b"Traceback" not in said
