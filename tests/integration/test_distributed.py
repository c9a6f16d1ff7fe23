"""
Servers over one NATS cluster: whatever is killed, what was acknowledged is there once, in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path

import pytest
import wire
from conftest import BIN, Watched, wait_until
from hoppers import Hopper, find_wrong, read_stream
from nats_cluster import Cluster, Node

import msglog

HOPPERS = 6


class FrontEnd(Watched):
    """A server without a log of its own."""

    def __init__(self, folder: Path, url: str, *options: str) -> None:
        folder.mkdir()
        super().__init__(folder, *options)
        self.url = url

    def command(self, *options: str) -> list[str]:
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        return [
            *(str(BIN / "twistd"), "-n", "--pidfile=", "msglog", "--store", self.url),
            *("--listen", listen, *self.options, *options),
        ]


class Unconditional(FrontEnd):
    """The same, but for the condition on which an append is taken: what the tests must notice."""

    PROGRAM = """
import msglog._nats_store as store
real = store.append_headers
def without(*words):
    headers = real(*words)
    del headers["Nats-Expected-Last-Subject-Sequence"]
    return headers
store.append_headers = without
from twisted.scripts.twistd import run
run()
"""

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-c", self.PROGRAM, *super().command(*options)[1:]]


@pytest.fixture
def make_cluster(tmp_path):
    clusters = []

    def make(size: int, extra: str = "") -> Cluster:
        folder = tmp_path / f"nats{len(clusters)}"
        folder.mkdir()
        cluster = Cluster(folder, size, extra)
        clusters.append(cluster)
        return cluster.start()

    yield make
    for cluster in clusters:
        cluster.kill()


@pytest.fixture
def make_front_end(tmp_path):
    made = []

    def make(url: str, *options: str, kind: type[FrontEnd] = FrontEnd) -> FrontEnd:
        front_end = kind(tmp_path / f"front{len(made)}", url, *options)
        made.append(front_end)
        return front_end.start()

    yield make
    for front_end in made:
        front_end.kill()


class Own(threading.Thread):
    """One of msglog's own clients, which knows both servers."""

    def __init__(self, servers: str) -> None:
        super().__init__()
        self.servers = servers
        self.id = uuid.uuid4()
        self.bodies: list[bytes] = []
        self.acked = 0
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with msglog.connect(self.servers, client=self.id, timeout=30) as log:
                while not self.ended.is_set():
                    first = len(self.bodies)
                    bodies = [b"own %d" % n for n in range(first, first + 25)]
                    self.bodies += bodies
                    for receipt in log.send_all(bodies):
                        assert receipt.sequence == self.acked + 1
                        self.acked += 1
                    time.sleep(0.01)
        except BaseException as e:
            self.error = e


class Load:
    """Hoppers and own clients, in threads of their own, while C{with} lasts."""

    def __init__(self, front_ends: list[FrontEnd], own: int = 2) -> None:
        seed = int.from_bytes(os.urandom(4), "big")
        print(f"seed {seed}")
        ports = [front_end.port for front_end in front_ends]
        self.hoppers = [Hopper(ports, seed + n) for n in range(HOPPERS)]
        servers = [f"127.0.0.1:{port}" for port in ports]
        self.own = [Own(",".join(servers[n % 2 :] + servers[: n % 2])) for n in range(own)]
        self._ended = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        async def hop() -> None:
            await asyncio.gather(*(hopper.run(self._ended) for hopper in self.hoppers))

        self._loop.run_until_complete(hop())

    def __enter__(self) -> Load:
        self._thread.start()
        for own in self.own:
            own.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        for own in self.own:
            own.ended.set()
        self._thread.join(60)
        for own in self.own:
            own.join(60)
        self._loop.close()

    @property
    def acked(self) -> int:
        return sum(client.acked for client in (*self.hoppers, *self.own))

    def goes_on(self, seconds: float = 40.0) -> float:
        """Until every client has had something acknowledged since; how long the first took."""
        began = time.monotonic()
        before = [(client, client.acked) for client in (*self.hoppers, *self.own)]
        wait_until(lambda: any(c.acked > acked for c, acked in before), "an ACK", seconds)
        first = time.monotonic() - began
        wait_until(lambda: all(c.acked > acked for c, acked in before), "an ACK for all", seconds)
        return first

    def check(self, url: str) -> tuple[int, list[str]]:
        """How many messages the stream has, and everything that is wrong."""
        wrong = [text for hopper in self.hoppers for text in hopper.wrong]
        wrong += [f"own client: {own.error!r}" for own in self.own if own.error is not None]
        lines = asyncio.run(read_stream(url))
        bodies = {hopper.id: hopper.bodies for hopper in self.hoppers}
        bodies |= {own.id.bytes: own.bodies for own in self.own}
        wrong += find_wrong(lines, bodies)
        counts: dict[str, int] = {}
        for line in lines:
            counts[line["client"]] = counts.get(line["client"], 0) + 1
        for client in self.hoppers:
            stored = counts.get(str(uuid.UUID(bytes=client.id)), 0)
            if stored < client.acked:
                wrong.append(f"{client.acked} were acknowledged, {stored} are stored")
        for own in self.own:
            if counts.get(str(own.id), 0) < own.acked:
                wrong.append("acknowledged messages of an own client are missing")
        return len(lines), wrong


def ask(node: Node, path: str) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.monitor}{path}", timeout=5) as answer:
        return json.load(answer)


def find_leader(cluster: Cluster) -> Node | None:
    """The node that leads the stream, by its own word."""
    for node in cluster.nodes:
        if node.process is None:
            continue
        try:
            jsz = ask(node, "/jsz?streams=true")
        except OSError:
            continue
        for account in jsz.get("account_details", ()):
            for stream in account.get("stream_detail", ()):
                if stream["cluster"].get("leader") == node.name:
                    return node
    return None


def leader_of(cluster: Cluster) -> Node:
    wait_until(lambda: find_leader(cluster) is not None, "a leader", 30)
    leader = find_leader(cluster)
    assert leader is not None
    return leader


def is_current(cluster: Cluster) -> bool:
    leader = find_leader(cluster)
    if leader is None:
        return False
    jsz = ask(leader, "/jsz?streams=true")
    (stream,) = jsz["account_details"][0]["stream_detail"]
    replicas = stream["cluster"].get("replicas", ())
    return len(replicas) == 2 and all(one.get("current") for one in replicas)


def test_leader_killed(make_cluster, make_front_end) -> None:
    """
    The stream's leader is killed (-9) again and again under load, and stopped (SIGSTOP) once, and
    a server of msglog is killed: nothing that was acknowledged is lost, repeated or out of order.
    """
    cluster = make_cluster(3)
    cluster.create_stream()
    front_ends = [make_front_end(cluster.url) for _ in range(2)]
    began = time.monotonic()
    with Load(front_ends) as load:
        load.goes_on()
        for turn in range(3):
            leader = leader_of(cluster)
            leader.kill()
            print(f"leader {leader.name} killed; ACKs after {load.goes_on():.1f} s")
            leader.start()
            if turn == 0:
                front_ends[0].kill()
                front_ends[0].start()
            wait_until(lambda: is_current(cluster), "replicas that are up to date", 40)
        leader = leader_of(cluster)
        leader.send(signal.SIGSTOP)
        print(f"leader {leader.name} stopped; ACKs after {load.goes_on():.1f} s")
        leader.send(signal.SIGCONT)
        load.goes_on()
    stored, wrong = load.check(cluster.url)
    refused = [hopper.refused for hopper in load.hoppers]
    print(
        f"{stored} stored, {load.acked} acknowledged, {time.monotonic() - began:.0f} s, {refused}"
    )
    assert wrong == []
    assert stored > 500
    for front_end in front_ends:
        front_end.stop()


def test_without_the_condition(make_cluster, make_front_end) -> None:
    """
    The control: without the expected sequence, the same load finds repeats, with nothing killed.
    So the tests would see them.
    """
    quick = ("--store-wait-seconds", "1")
    for _ in range(6):  # chance decides when two front-ends have the same client at once
        cluster = make_cluster(1)
        cluster.create_stream()
        front_ends = [make_front_end(cluster.url, *quick, kind=Unconditional) for _ in range(2)]
        with Load(front_ends, own=0) as load:
            time.sleep(4)
        stored, wrong = load.check(cluster.url)
        assert stored > 0
        if any("stands behind" in text for text in wrong):
            return
    raise AssertionError("no repeat was seen")


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
    assert "Connect call failed" in front_end.get("/readyz")[1]
    with wire.Connection(front_end.port) as connection:
        connection.send(wire.message(client, 1, b"a"))
        code, _, reason, *_ = connection.nack()
        assert code == 6, reason
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
    lines = asyncio.run(read_stream(cluster.url))
    assert [line["seq"] for line in lines] == list(range(1, stored + 2))


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


async def _fill(url: str, messages: int) -> None:
    """Messages as front-ends write them, with times of two clocks."""
    import nats

    from msglog._jetstream import append_headers, subject_of
    from msglog._records import format_fragments, format_time, opening
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
            subject_of(client),
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
