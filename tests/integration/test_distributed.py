"""
Servers over one NATS cluster: whatever is killed, what was acknowledged is there once, in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import wire
from conftest import BIN, wait_until
from front_ends import FrontEnd, Unconditional
from stream_files import examine

from tests.faults.cluster_faults import KINDS
from tests.faults.record import body_of

ROOT = Path(__file__).parents[2]


# The fault suite in short: what CI has time for.
SHORT = (
    ("leader-kills", 3),
    ("double-kills", 1),
    ("front-kills", 1),
    ("leader-cuts", 1),
)


def test_faults(tmp_path) -> None:
    """
    Leaders killed, the quorum lost, a leader cut off from the others, a server killed: nothing
    that was acknowledged is lost, repeated or out of order.
    """
    counts = dict.fromkeys((kind.option for kind in KINDS), 0) | dict(SHORT)
    report = tmp_path / "report"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.cluster", "--report", str(report)),
            *("--folder", str(tmp_path), "--fronts", "2", "--hoppers", "6", "--own", "3"),
            *("--away-seconds", "6", "8"),
            *(f"--{option}={count}" for option, count in counts.items()),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    if os.environ.get("CI") and os.geteuid() == 0:
        assert "not installed" not in done.stdout
    numbers = json.loads(report.read_text())
    assert sum(numbers["faults"].values()) >= 5
    assert numbers["stored"] > 500


@pytest.mark.parametrize(("kind", "repeats"), [(FrontEnd, 0), (Unconditional, 1)])
def test_condition(make_cluster, make_front_end, kind, repeats) -> None:
    """
    A client that was elsewhere meanwhile sends again what is stored: it is stored once.  The
    control: without the condition it is stored twice, and the reader of the files sees that.
    """
    cluster = make_cluster(1)
    cluster.create_stream()
    here, there = (make_front_end(cluster.url, kind=kind) for _ in range(2))
    client = uuid.uuid4().bytes
    with wire.Connection(here.port) as one, wire.Connection(there.port) as other:
        one.log(client, 1, body_of(client, 1))
        other.log(client, 1, body_of(client, 1))
        other.log(client, 2, body_of(client, 2))
        one.log(client, 2, body_of(client, 2))  # whose last word is that 1 is the last
    cluster.stop()
    found = examine(cluster.nodes[0].store, body_of, [client])
    assert (found.messages, found.repeats) == (2 + repeats, repeats)
    assert (found.gaps, found.others, found.different, found.stored) == (0, 0, 0, {client: 2})


def test_contract(make_cluster, tmp_path) -> None:
    """The contract of a store, on a real server, on both kinds of reactor."""
    cluster = make_cluster(1)
    for reactor in ("default", "asyncio"):
        done = subprocess.run(
            [str(BIN / "trial"), f"--reactor={reactor}", "contract_on_nats"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parent),
                "MSGLOG_TEST_NATS": cluster.url,
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "PASSED" in done.stdout


def test_engine_away(make_cluster, make_front_end) -> None:
    """
    A server starts without its engine and says why it is not ready; clients are told UNAVAILABLE;
    when the engine comes, and when it comes back, everything goes on by itself.
    """
    cluster = make_cluster(1)
    cluster.create_stream()
    cluster.kill()
    (node,) = cluster.nodes
    front_end = make_front_end(cluster.url, "--store-wait-seconds", "1", "--stalled-seconds", "0.5")
    client = uuid.uuid4().bytes
    wait_until(lambda: front_end.get("/readyz")[0] == 503, "not being ready")
    wait_until(lambda: "Connection was refused" in front_end.get("/readyz")[1], "a reason")
    with wire.Connection(front_end.port) as connection:
        connection.send(wire.message(client, 1, b"a"))
        code, _, reason, *_ = connection.nack()
        assert code == 6, reason
        assert "not connected" in reason, reason
        assert "127.0.0.1" not in reason, reason  # where the servers are, clients need not know
    for sequence in (1, 2):
        node.start()
        wait_until(lambda: front_end.get("/readyz")[0] == 200, "being ready")
        with wire.Connection(front_end.port) as connection:
            connection.log(client, sequence, b"%d" % sequence)
            assert connection.terms(client)[0] == sequence
        node.kill()
    front_end.stop()


def test_full(make_cluster, make_front_end) -> None:
    """A full stream refuses and removes nothing; with room again, it goes on."""
    cluster = make_cluster(1)
    cluster.create_stream("--max-bytes", "5000")
    front_end = make_front_end(cluster.url)
    client = uuid.uuid4().bytes
    stored = 0
    with wire.Connection(front_end.port) as connection:
        for sequence in range(1, 50):
            connection.send(wire.message(client, sequence, bytes(100)))
            answer = connection.receive()
            if answer[0] == wire.NACK:
                assert answer[4][0] == 5
                break
            stored = sequence
        assert 0 < stored < 49
        wait_until(lambda: front_end.get("/readyz")[0] == 503, "not being ready")
        asyncio.run(_raise_limit(cluster.url))
        connection.log(client, stored + 1, bytes(100))
        connection.log(client, stored, bytes(100))
    front_end.stop()
    cluster.stop()
    found = examine(cluster.nodes[0].store, lambda *_: bytes(100), [client])
    assert (found.messages, found.different, found.stored) == (stored + 1, 0, {client: stored + 1})


async def _raise_limit(url: str) -> None:
    import nats

    connection = await nats.connect(url)
    stream = connection.jetstream()
    info = await stream.stream_info("MSGLOG")
    await stream.update_stream(info.config.evolve(max_bytes=-1))
    await connection.close()


def test_starts_refused(make_cluster, tmp_path) -> None:
    """A start error says what to do: no stream, and no right to it."""
    cluster = make_cluster(1, "authorization { user: me, password: secret }")
    for url, words in (
        (cluster.url.replace("//", "//me:secret@"), "msglog stream create nats://127.0.0.1"),
        (cluster.url.replace("//", "//me:wrong@"), "does not let this server in"),
    ):
        front_end = FrontEnd(tmp_path / words.replace("/", ""), url)
        done = subprocess.run(
            front_end.command(),
            cwd=front_end.folder,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 1, done.stdout
        assert words in done.stderr
        assert "secret" not in done.stderr


def test_stream_commands(make_cluster) -> None:
    """The operator makes a stream, and is told what weakens it."""
    cluster = make_cluster(1)
    command = [str(BIN / "msglog"), "stream"]

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)

    assert run("check", cluster.url).returncode == 1
    made = run("create", cluster.url, "--replicas", "1")
    assert made.returncode == 0, made.stderr
    assert run("create", cluster.url, "--replicas", "1").returncode == 0  # it is there, just so
    checked = run("check", cluster.url)
    assert checked.returncode == 1
    first, second = checked.stdout.splitlines()
    assert first.startswith("sync_interval: not known here")
    assert second.startswith("num_replicas: 1")
    monitor = f"http://127.0.0.1:{cluster.nodes[0].monitor}"
    (line,) = run("check", cluster.url, "--monitor", monitor).stdout.splitlines()
    assert line.startswith("num_replicas: 1")
    assert run("create", "http://x").returncode == 2


def test_shards(make_cluster, make_front_end, tmp_path) -> None:
    """
    Clients are spread over streams, each with its own; no other number of them can be made or
    used; and what each holds is a log of its own.
    """
    cluster = make_cluster(1)
    cluster.create_stream("--shards", "2")
    command = [str(BIN / "msglog"), "stream"]

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)

    for other in ("1", "3"):
        refused = run("create", cluster.url, "--replicas", "1", "--shards", other)
        assert refused.returncode == 1
        assert "another number of shards" in refused.stderr
    monitor = f"http://127.0.0.1:{cluster.nodes[0].monitor}"
    checked = run("check", cluster.url, "--shards", "2", "--monitor", monitor).stdout.splitlines()
    assert [line.split(": ")[:2] for line in checked] == [
        ["MSGLOG-1of2", "num_replicas"],
        ["MSGLOG-2of2", "num_replicas"],
    ]
    into = [cluster.url, "--stream", "MSGLOG-1of2"]
    refused = subprocess.run(
        [str(BIN / "msglog"), "import", "some.jsonl", *into],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 2
    assert "MSGLOG-1of2 is one of a log's shards" in refused.stderr
    clients = [uuid.uuid4() for _ in range(12)]
    for _ in range(2):  # the second one has it all from the streams
        front_end = make_front_end(cluster.url, "--store-shards", "2")
        with wire.Connection(front_end.port) as connection:
            for client in clients:
                connection.log(client.bytes, 1, b"a")
                connection.log(client.bytes, 2, b"b")
                assert connection.terms(client.bytes)[0] == 2
        assert front_end.get("/readyz")[0] == 200
    lost = FrontEnd(tmp_path / "lost", cluster.url)
    done = subprocess.run(
        lost.command(), cwd=lost.folder, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "there is no stream MSGLOG: " in done.stderr
    found = []
    for shard in ("1of2", "2of2"):
        log = tmp_path / shard
        name = ["--stream", f"MSGLOG-{shard}"]
        subprocess.run(
            [str(BIN / "msglog"), "export", cluster.url, str(log), *name],
            check=True,
            capture_output=True,
            timeout=60,
        )
        assert subprocess.run([str(BIN / "msglog"), "verify", str(log)], timeout=60).returncode == 0
        found.append({json.loads(line)["client"] for line in log.read_text().splitlines()})
        assert len(log.read_text().splitlines()) == 2 * len(found[-1])
    merged = tmp_path / "merged"
    with merged.open("wb") as output:
        subprocess.run(
            ["sort", "-m", "-s", "-t,", "-k1,1", tmp_path / "1of2", tmp_path / "2of2"],
            env={**os.environ, "LC_ALL": "C"},
            stdout=output,
            check=True,
            timeout=30,
        )
    assert subprocess.run([str(BIN / "msglog"), "verify", str(merged)], timeout=60).returncode == 0
    assert not found[0] & found[1]
    assert found[0] | found[1] == set(map(str, clients))


SECURED = """
tls {{ cert_file: "{certs}/127.0.0.1.pem", key_file: "{certs}/127.0.0.1-key.pem",
       ca_file: "{certs}/ca.pem", verify: true }}
authorization {{ users: [
    {{ user: admin, password: admin }}
    {{ user: front, password: "f:r@nt", permissions: {{
        publish: [ "msglog.*", "$JS.API.STREAM.MSG.GET.MSGLOG", "$JS.API.STREAM.INFO.MSGLOG" ]
        subscribe: "_INBOX_msglog.>" }} }}
] }}
"""


def test_secured(make_cluster, make_front_end, tmp_path) -> None:
    """TLS with certificates on both sides, and a user that may do no more than it must."""
    certs = tmp_path / "certs"
    for words in (("init",), ("server", "127.0.0.1"), ("client", "front", "--relay")):
        name, *rest = words
        subprocess.run(
            [str(BIN / "msglog"), "ca", name, str(certs), *rest],
            check=True,
            capture_output=True,
            timeout=60,
        )
    files = {"ca": "ca.pem", "certificate": "front.pem", "key": "front-key.pem"}
    cluster = make_cluster(1, SECURED.format(certs=certs))
    tls = [word for part, file in files.items() for word in (f"--tls-{part}", str(certs / file))]
    admin = cluster.url.replace("//", "//admin:admin@")
    create = [str(BIN / "msglog"), "stream", "create", admin, "--replicas", "1"]
    assert subprocess.run([*create], capture_output=True, timeout=60).returncode == 1
    done = subprocess.run([*create, *tls], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    password = tmp_path / "password"
    password.write_text("f:r@nt\n")
    options = [word.replace("--tls", "--store-tls") for word in tls]
    options += ["--store-user", "front", "--store-password-file", str(password)]
    front_end = make_front_end(cluster.url, *options)
    client = uuid.uuid4().bytes
    with wire.Connection(front_end.port) as connection:
        connection.log(client, 1, b"a")
        connection.log(client, 2, b"b")
        connection.log(client, 1, b"a")
        assert connection.terms(client)[0] == 2
    assert front_end.get("/readyz")[0] == 200
    front_end.stop()
    assert "ermission" not in front_end.said()


def test_readers_account(make_cluster, make_front_end, tmp_path) -> None:
    """The page's accounts: a reader reads, and has no answer sent where it changes anything."""
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    (accounts,) = re.findall(r"^```\n(accounts \{\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    cluster = make_cluster(1, accounts.replace("…", "secret"))
    admin, front, reader = (
        cluster.url.replace("//", f"//{user}:secret@") for user in ("admin", "front", "reader")
    )
    done = _msglog("stream", "create", admin, "--replicas", "1")
    assert done.returncode == 0, done.stderr
    front_end = make_front_end(front)
    password = tmp_path / "password"
    password.write_text("secret\n")
    rights = (reader.replace(":secret", ""), "--password-file", str(password), "--api", "logs.api")
    client = uuid.uuid4()
    with wire.Connection(front_end.port) as connection:
        connection.log(client.bytes, 1, b"a")
        asyncio.run(_misdirect(reader, f"msglog.{client}"))
        connection.log(client.bytes, 2, b"b")
    shown = _msglog("tail", "--raw", *rights)
    assert (shown.returncode, shown.stdout) == (0, "a\nb\n"), shown.stderr
    asyncio.run(_write_by_hand(admin))
    with wire.Connection(front_end.port) as connection:
        connection.log(client.bytes, 3, b"c")
    shown = _msglog("cat", "--raw", *rights)
    assert (shown.returncode, shown.stdout) == (1, "a\nb\nc\n"), shown.stderr
    assert "message 3 of the stream is not msglog's" in shown.stderr
    front_end.stop()


def _msglog(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / "msglog"), *words], capture_output=True, text=True, timeout=60)


async def _misdirect(reader: str, subject: str) -> None:
    """Questions whose answers are to change the stream; and one that is answered after them."""
    import nats

    connection = await nats.connect(reader)
    for question, body in (
        ("logs.api.DIRECT.GET.MSGLOG", b'{"seq":99}'),  # an answer without a body
        ("logs.api.DIRECT.GET.MSGLOG", b'{"seq":1}'),
        ("logs.api.STREAM.INFO.MSGLOG", b""),
    ):
        for answer in (subject, "$JS.API.STREAM.DELETE.MSGLOG", "$JS.API.STREAM.PURGE.MSGLOG"):
            await connection.publish(question, body, reply=answer)
        await connection.request(question, body, timeout=20)
    await connection.close()


async def _write_by_hand(admin: str) -> None:
    """A message that looks like the end of what is read."""
    import nats

    connection = await nats.connect(admin)
    headers = {"Status": "204", "Nats-Sequence": "1"}
    await connection.jetstream().publish("msglog.hand", b"by hand", headers=headers)
    await connection.close()


async def _fill(url: str, messages: int) -> None:
    """Messages as front-ends write them, with times of two clocks."""
    import nats

    from msglog._jetstream import append_headers
    from msglog._records import format_fragments, format_time, opening
    from msglog._shards import StreamShard
    from msglog.testing import make_batch

    connection = await nats.connect(url)
    stream = connection.jetstream()
    clients = [uuid.uuid4().bytes for _ in range(5)]
    last = dict.fromkeys(clients, (0, 0))
    for number in range(messages):
        client = clients[number % 5]
        previous, count = last[client]
        time_ = 10**15 + 1000 * number - 10**6 * (number % 2)
        head = opening(format_time(time_), client)
        batch = make_batch(client, count + 1, *[b"%d" % number * 30] * 4)
        acked = await stream.publish(
            StreamShard("MSGLOG").subject_of(client),
            head + head.join(format_fragments(batch)),
            headers=append_headers("MSGLOG", previous, count + 1, count + 4),
        )
        last[client] = acked.seq, count + 4
    await connection.close()


def test_export_killed(make_cluster, tmp_path) -> None:
    """An export that is killed again and again ends byte for byte as one that was not."""
    cluster = make_cluster(1)
    cluster.create_stream()
    asyncio.run(_fill(cluster.url, 4000))

    def command(name: str) -> list[str]:
        return [str(BIN / "msglog"), "export", cluster.url, str(tmp_path / name)]

    whole = subprocess.run(command("whole"), capture_output=True, text=True, timeout=60)
    assert whole.returncode == 0, whole.stderr
    data = (tmp_path / "whole").read_bytes()
    assert data.count(b"\n") == 16_000
    rng, path, parts = random.Random(1), tmp_path / "killed", set()
    for _ in range(12):
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL)
        seen = path.stat().st_size if path.exists() else -1
        while process.poll() is None:
            if path.exists() and path.stat().st_size > seen:
                time.sleep(rng.random() * 0.005)
                break
        process.kill()
        process.wait(10)
        parts.add(path.stat().st_size)
    assert len(parts) > 3  # it was killed on the way, and not only before and after
    done = subprocess.run(command("killed"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == data
    checked = subprocess.run(
        [str(BIN / "msglog"), "verify", str(path)], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
