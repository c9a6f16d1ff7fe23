"""Who a front-end is to a real NATS server: what is shown is read again, and never said."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import uuid
from pathlib import Path

import wire
from conftest import BIN, free_port, wait_until
from front_ends import FrontEnd
from nats_accounts import Operator
from nats_cluster import Cluster, Node

from msglog._authority import init_authority, issue_client, issue_server


def create(url: str, *options: str) -> None:
    command = [str(BIN / "msglog"), "stream", "create", url, "--replicas", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def reload(node: Node, cluster: Cluster, extra: str) -> None:
    """The server goes on with another configuration, and closes whom it no longer knows."""
    node.extra = extra
    node.write_config(cluster.nodes)
    node.send(signal.SIGHUP)


def reconnects(front_end: FrontEnd) -> float:
    return front_end.metrics()["msglog_stream_reconnects_total", ""]


def is_ready(front_end: FrontEnd) -> bool:
    return front_end.get("/readyz")[0] == 200


def log_one(front_end: FrontEnd) -> None:
    with wire.Connection(front_end.port) as connection:
        connection.log(uuid.uuid4().bytes, 1, b"x")


def words_of(front_end: FrontEnd) -> str:
    """All that others may see: the log, the page, metrics, health, and the process list."""
    assert front_end.process is not None
    pages = [front_end.get(path)[1] for path in ("/metrics", "/readyz")]
    proc = Path(f"/proc/{front_end.process.pid}")
    return "\n".join([front_end.said(), *pages, (proc / "cmdline").read_text()])


def start_error(folder: Path, url: str, *options: str) -> str:
    """The only line that a server says that cannot start."""
    front_end = FrontEnd(folder, url, *options)
    done = subprocess.run(
        front_end.command(), cwd=folder, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stdout + done.stderr
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def test_credentials(make_cluster, make_front_end, tmp_path) -> None:
    """
    A credentials file is shown; when its user is revoked, the file that took its place is; one that
    is none is said by its name, and mended by putting one there.
    """
    operator = Operator()
    path = tmp_path / "front.creds"
    first, seed = operator.write_credentials(path)
    cluster = make_cluster(1, operator.config())
    (node,) = cluster.nodes
    create(cluster.url, "--credentials", str(path))
    options = ("--store-credentials", str(path), "--stalled-seconds", "0.5")
    front_end = make_front_end(cluster.url, *options)
    log_one(front_end)

    _, other_seed = operator.write_credentials(path)
    operator.revoke(first)
    reload(node, cluster, operator.config())
    wait_until(lambda: reconnects(front_end) >= 1, "another connection")
    wait_until(lambda: is_ready(front_end), "being ready")
    log_one(front_end)

    # It is emptied, which a SIGHUP finds out; and then the connection is lost.
    path.write_text("")
    front_end.hang_up()
    wait_until(lambda: "the next connection to NATS needs it" in front_end.said(), "the error")
    node.stop()
    node.start()
    wait_until(lambda: f"{path} is no credentials file" in front_end.get("/readyz")[1], "why not")
    words = words_of(front_end)
    _, last_seed = operator.write_credentials(path)
    wait_until(lambda: is_ready(front_end), "being ready")
    log_one(front_end)
    words += words_of(front_end)
    front_end.stop()
    for secret in (seed, other_seed, last_seed, "eyJ0"):
        assert secret not in words
    assert "Traceback" not in front_end.said()


def test_bad_credentials(make_cluster, tmp_path) -> None:
    """What cannot be used is an error of the start that names it, for server and command alike."""
    operator = Operator()
    cluster = make_cluster(1, operator.config())
    stranger = tmp_path / "stranger.creds"
    _, seed = Operator().write_credentials(stranger)
    empty = tmp_path / "empty.creds"
    empty.write_text("")
    none = f"{empty} is no credentials file: it has no NATS user JWT and nkey seed"
    for number, (path, words) in enumerate(
        ((empty, none), (stranger, "does not let this server in"))
    ):
        option = ("--store-credentials", str(path))
        line = start_error(tmp_path / f"start{number}", cluster.url, *option)
        assert words in line
        assert seed not in line
    command = [str(BIN / "msglog"), "stream", "check", cluster.url, "--credentials", str(empty)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (1, f"msglog: {none}\n")


def test_token(make_cluster, make_front_end, tmp_path) -> None:
    """A token from a file, and the one that takes its place."""
    path = tmp_path / "token"
    path.write_text("first-t0ken\n")
    cluster = make_cluster(1, 'authorization { token: "first-t0ken" }')
    (node,) = cluster.nodes
    create(cluster.url.replace("//", "//first-t0ken@"))
    options = ("--store-token-file", str(path), "--stalled-seconds", "0.5")
    front_end = make_front_end(cluster.url, *options)
    log_one(front_end)
    path.write_text("other-t0ken\n")
    reload(node, cluster, 'authorization { token: "other-t0ken" }')
    wait_until(lambda: reconnects(front_end) >= 1, "another connection")
    wait_until(lambda: is_ready(front_end), "being ready")
    log_one(front_end)
    assert "t0ken" not in words_of(front_end)
    front_end.stop()
    path.write_text("wrong-t0ken\n")
    line = start_error(tmp_path / "wrong", cluster.url, *options)
    assert "does not let this server in" in line
    assert "t0ken" not in line


TLS = """
tls {{ cert_file: "{certs}/127.0.0.1.pem", key_file: "{certs}/127.0.0.1-key.pem",
       ca_file: "{certs}/ca.pem", verify: true }}
"""


def make_certificates(folder: Path) -> None:
    init_authority(folder, 30)
    issue_server(folder, ["127.0.0.1"], 30)
    issue_client(folder, "front", [], True, 30)


def test_certificates_replaced(make_cluster, make_front_end, tmp_path) -> None:
    """The authority and every certificate are replaced, and the next connection has them."""
    make_certificates(tmp_path / "first")
    make_certificates(tmp_path / "other")
    certs = tmp_path / "certs"
    certs.symlink_to("first")
    files = {"ca": "ca.pem", "certificate": "front.pem", "key": "front-key.pem"}
    tls = [word for part, file in files.items() for word in (f"--tls-{part}", str(certs / file))]
    cluster = make_cluster(1, TLS.format(certs=certs))
    (node,) = cluster.nodes
    create(cluster.url, *tls)
    front_end = make_front_end(cluster.url, *[word.replace("--tls", "--store-tls") for word in tls])
    log_one(front_end)
    certs.unlink()
    certs.symlink_to("other")
    node.stop()
    node.start()
    wait_until(lambda: reconnects(front_end) >= 1, "another connection")
    log_one(front_end)
    front_end.stop()


def test_tls_is_not_left_out(tmp_path) -> None:
    """Where TLS is wanted, who says that there is none is shown no password."""
    heard: list[bytes] = []
    info = b'INFO {"server_id":"x","version":"2.15.1","headers":true,"auth_required":true}\r\n'

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listening.accept()
            except OSError:
                return
            with accepted:
                accepted.settimeout(10)
                accepted.sendall(info)
                heard.append(accepted.recv(4096))

    with socket.create_server(("127.0.0.1", free_port())) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        url = f"tls://me:s3cret@127.0.0.1:{listening.getsockname()[1]}"
        command = [str(BIN / "msglog"), "stream", "check", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert "the server asks for no TLS" in done.stderr
        assert "s3cret" not in done.stderr
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(20)
    assert heard
    assert set(heard) == {b""}
