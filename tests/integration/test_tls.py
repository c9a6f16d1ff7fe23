"""TLS of the real server and the real clients: who is let in, what they may write, what is said."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path

import pytest
import wire
from click.testing import CliRunner
from conftest import Server, free_port, wait_until

import msglog
from msglog import TLS, ClientLimits, NotConnected, SessionFailed, aio
from msglog._authority import init_authority, issue_client, issue_server
from msglog.cli._ca import command as ca

ALICE, BOB = uuid.uuid4(), uuid.uuid4()

# Short, for what is never going to be: a client that is refused tries for as long as it is let.
QUICK = ClientLimits(connect_seconds=2, first_backoff_seconds=0.05, max_backoff_seconds=0.1)


@pytest.fixture(scope="module")
def certs(tmp_path_factory) -> Path:
    """An authority with a server's and clients' certificates; a foreign one; an expired one."""
    folder = tmp_path_factory.mktemp("certs")
    for name in ("ours", "foreign"):
        init_authority(folder / name, 30)
        issue_server(folder / name, ["localhost", "127.0.0.1"], 30)
        issue_client(folder / name, "alice", [ALICE], False, 30)
    issue_client(folder / "ours", "relay", [], True, 30)
    issue_client(folder / "ours", "nobody", [], False, 30)
    issue_client(folder / "ours", "expired", [ALICE], False, 0)
    return folder


def tls(certs: Path, name: str | None, ca: str = "ours", of: str = "ours") -> TLS:
    own = None if name is None else certs / of / f"{name}.pem"
    key = None if name is None else certs / of / f"{name}-key.pem"
    return TLS(ca=certs / ca / "ca.pem", certificate=own, key=key)


class TLSServer:
    """A server that listens with TLS alone, on a port of its own."""

    def __init__(self, server: Server, certs: Path, *options: str, mutual: bool = True) -> None:
        self.server = server
        self.certificate, self.key = (
            server.folder / "server.pem",
            server.folder / "server-key.pem",
        )
        self.use(certs / "ours")
        listen = f"tcp:{server.port}:interface=127.0.0.1"
        files = ["--tls-certificate", str(self.certificate), "--tls-key", str(self.key)]
        if mutual:
            files += ["--tls-client-ca", str(certs / "ours" / "ca.pem")]
        twistd = server.command()[:4]
        server.command = lambda *more: [
            *(*twistd, "--listen-tls", listen, "--log", str(server.log)),
            *(*files, *options, *more),
        ]
        server.start()

    def use(self, folder: Path) -> None:
        """Put another certificate where the server looks for its own."""
        self.certificate.write_bytes((folder / "localhost.pem").read_bytes())
        self.key.write_bytes((folder / "localhost-key.pem").read_bytes())

    @property
    def address(self) -> str:
        return f"localhost:{self.server.port}"


@pytest.fixture
def make(make_server, certs):
    return lambda *options, **more: TLSServer(make_server(), certs, *options, **more)


def send_blocking(address: str, settings: TLS, client: uuid.UUID, timeout: float = 3) -> None:
    with msglog.connect(address, client=client, tls=settings, limits=QUICK, timeout=timeout) as log:
        log.send(b"a message", timeout=timeout)


async def send_asyncio(address: str, settings: TLS, client: uuid.UUID) -> None:
    async with aio.connect(address, client=client, tls=settings, limits=QUICK, timeout=3) as log:
        await asyncio.wait_for(log.send(b"a message"), 5)


TWISTED = """
import sys, uuid
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import react
from msglog import MessageLogClient, TLS, ClientLimits

async def main(reactor, address, client, ca, certificate, key):
    tls = TLS(ca=ca, certificate=certificate, key=key)
    limits = ClientLimits(stop_seconds=0)
    client = MessageLogClient(reactor, address, client=uuid.UUID(client), tls=tls, limits=limits)
    client.startService()
    sent = client.send(b"a message")
    sent.addTimeout(5, reactor)
    try:
        print((await sent).sequence)
    except BaseException as e:
        print(type(e).__name__, e, client.trouble)
    await client.stopService()

react(lambda reactor: ensureDeferred(main(reactor, *sys.argv[1:])))
"""


def send_twisted(address: str, settings: TLS, client: uuid.UUID) -> str:
    files = [str(settings.ca), str(settings.certificate), str(settings.key)]
    command = [sys.executable, "-c", TWISTED, address, str(client), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_client(make, certs: Path) -> None:
    """Each kind of client shows its certificate, checks the server's, and writes."""
    tls_server = make()
    alice = tls(certs, "alice")
    send_blocking(tls_server.address, alice, ALICE)
    asyncio.run(send_asyncio(tls_server.address, alice, ALICE))
    assert send_twisted(tls_server.address, alice, ALICE) == "3\n"
    assert send_twisted(f"127.0.0.1:{tls_server.server.port}", alice, ALICE) == "4\n"
    tls_server.server.stop()
    assert wire.read_logs(tls_server.server.log) == {ALICE.bytes: [b"a message"] * 4}


@pytest.mark.parametrize(
    ("name", "of", "said"),
    [
        (None, "ours", "certificate required"),
        ("expired", "ours", "certificate expired"),
        ("alice", "foreign", "unknown ca"),
    ],
)
def test_certificates_that_will_not_do(make, certs: Path, name, of, said) -> None:
    """Absent, expired, foreign: both sides say so, and nothing is logged."""
    tls_server = make()
    settings = tls(certs, name, of=of)
    with pytest.raises(NotConnected) as caught:
        send_blocking(tls_server.address, settings, ALICE)
    assert said in str(caught.value).lower().replace("_", " ")
    wait_until(lambda: "refused by TLS" in tls_server.server.said(), "the server's word")
    if name is not None:
        assert said in send_twisted(tls_server.address, settings, ALICE)
    tls_server.server.stop()
    assert tls_server.server.log.read_bytes() == b""


def test_another_ones_id(make, certs: Path) -> None:
    """A certificate writes the ids that it names; one that names none writes nothing."""
    tls_server = make()
    for name, client in (("alice", BOB), ("nobody", ALICE)):
        with pytest.raises(SessionFailed) as caught:
            send_blocking(tls_server.address, tls(certs, name), client)
        assert "FORBIDDEN" in str(caught.value)
    assert "FORBIDDEN" in send_twisted(tls_server.address, tls(certs, "alice"), BOB)
    for client in (ALICE, BOB):
        send_blocking(tls_server.address, tls(certs, "relay"), client)
    tls_server.server.stop()
    assert wire.read_logs(tls_server.server.log) == {
        ALICE.bytes: [b"a message"],
        BOB.bytes: [b"a message"],
    }


def test_a_server_that_is_another(make, certs: Path) -> None:
    """A client does not talk to a server of a foreign authority, or of another name."""
    tls_server = make()
    with pytest.raises(NotConnected) as caught:
        send_blocking(tls_server.address, tls(certs, "alice", ca="foreign"), ALICE)
    assert "verify failed" in str(caught.value)
    settings = tls(certs, "alice")
    other = TLS(
        ca=settings.ca,
        certificate=settings.certificate,
        key=settings.key,
        server_name="log.example",
    )
    with pytest.raises(NotConnected) as caught:
        send_blocking(tls_server.address, other, ALICE)
    assert "log.example" in str(caught.value)
    assert "verify failed" in send_twisted(
        tls_server.address, tls(certs, "alice", ca="foreign"), ALICE
    )
    tls_server.server.stop()
    assert tls_server.server.log.read_bytes() == b""


def s_client(port: int, *options: str, data: bytes = b"") -> str:
    """openssl, a client that has nothing to do with us."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-ign_eof", *options]
    done = subprocess.run(command, input=data, capture_output=True, timeout=20)
    return (done.stdout + done.stderr).decode(errors="replace")


def test_openssl(make, certs: Path) -> None:
    """An independent client: TLS 1.3 alone, and no byte of a peer without a certificate counts."""
    tls_server = make("--idle-seconds", "0.5")
    port, ours = tls_server.server.port, certs / "ours"
    message = wire.message(ALICE.bytes, 1, b"from openssl")
    own = ["-cert", str(ours / "alice.pem"), "-key", str(ours / "alice-key.pem")]
    said = s_client(port, "-CAfile", str(ours / "ca.pem"), *own, data=message)
    assert "Verify return code: 0 (ok)" in said
    assert "TLSv1.3" in said
    said = s_client(port, "-CAfile", str(ours / "ca.pem"), data=message)
    assert "certificate required" in said
    said = s_client(port, "-tls1_2", *own, data=message)
    assert "protocol version" in said
    # The same bytes without TLS.
    with socket.create_connection(("127.0.0.1", port), 5) as plain:
        plain.sendall(message * 10)
        try:
            while plain.recv(65536):
                pass
        except ConnectionResetError:
            pass
    tls_server.server.stop()
    assert wire.read_logs(tls_server.server.log) == {ALICE.bytes: [b"from openssl"]}


def test_reload(make, certs: Path, tmp_path: Path) -> None:
    """SIGHUP: new connections get the new certificate, old ones go on, a bad one is not used."""
    tls_server = make()
    server = tls_server.server
    with msglog.connect(tls_server.address, client=ALICE, tls=tls(certs, "alice")) as log:
        log.send(b"before", timeout=5)
        tls_server.key.write_text("nonsense")
        server.hang_up()
        wait_until(lambda: "the certificates are as they were" in server.said(), "the complaint")
        send_blocking(tls_server.address, tls(certs, "relay"), BOB)
        tls_server.use(certs / "foreign")
        server.hang_up()
        wait_until(lambda: "certificates read again" in server.said(), "the reload")
        with pytest.raises(NotConnected):
            send_blocking(tls_server.address, tls(certs, "relay"), BOB)
        send_blocking(tls_server.address, tls(certs, "relay", ca="foreign"), BOB)
        log.send(b"after", timeout=5)
    server.stop()
    logged = wire.read_logs(server.log)
    assert logged[ALICE.bytes] == [b"before", b"after"]
    assert len(logged[BOB.bytes]) == 2


def test_slow_handshakes(make, certs: Path) -> None:
    """Who connects and says nothing, or half a handshake, is gone after the deadline."""
    tls_server = make("--handshake-seconds", "0.5")
    silent = socket.create_connection(("127.0.0.1", tls_server.server.port), 5)
    half = socket.create_connection(("127.0.0.1", tls_server.server.port), 5)
    half.sendall(bytes.fromhex("1603010200010001fc0303"))
    for peer in (silent, half):
        peer.settimeout(10)
        try:
            assert peer.recv(100) == b""
        except ConnectionResetError:
            pass
        peer.close()
    send_blocking(tls_server.address, tls(certs, "alice"), ALICE)


def test_without_client_certificates(make, certs: Path) -> None:
    """Without an authority for clients, TLS encrypts and lets everybody in."""
    tls_server = make(mutual=False)
    send_blocking(tls_server.address, tls(certs, None), BOB)
    tls_server.server.stop()
    assert wire.read_logs(tls_server.server.log) == {BOB.bytes: [b"a message"]}


def test_many_messages(make, certs: Path) -> None:
    """Windows full of messages, both ways; a stop answers what has arrived."""
    tls_server = make()
    with msglog.connect(tls_server.address, client=ALICE, tls=tls(certs, "alice")) as log:
        bodies = [b"%d " % n + b"x" * 200 for n in range(20_000)]
        assert [r.sequence for r in log.send_all(bodies)] == list(range(1, 20_001))
    tls_server.server.stop()
    assert wire.read_logs(tls_server.server.log) == {ALICE.bytes: bodies}


def test_beyond_the_machine(make_server) -> None:
    """To listen there without TLS needs a word, and with it the log says so."""
    server = make_server()
    twistd = server.command()[:4]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*twistd, "--log", str(server.log), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    everywhere = f"tcp:{server.port}:interface=0.0.0.0"
    done = run("--listen", everywhere)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("msglog:")]
    assert "--allow-plain" in line
    assert "Traceback" not in done.stderr
    server.command = lambda *more: [
        *(*twistd, "--log", str(server.log), "--listen", everywhere, "--allow-plain")
    ]
    server.start()
    assert "without TLS" in server.said()


@pytest.mark.parametrize("missing", ["--tls-certificate", "--tls-key", "--tls-client-ca"])
def test_files_that_will_not_do(make_server, certs: Path, missing: str) -> None:
    """A file that is not there, or is none, is one clear line."""
    server = make_server()
    ours = certs / "ours"
    files = {
        "--tls-certificate": ours / "localhost.pem",
        "--tls-key": ours / "localhost-key.pem",
        "--tls-client-ca": ours / "ca.pem",
    }
    nonsense = server.folder / "nonsense.pem"
    nonsense.write_text("nonsense")
    for bad in (nonsense, server.folder / "none.pem"):
        options = [w for o, f in files.items() for w in (o, str(bad if o == missing else f))]
        command = [*server.command()[:4], "--log", str(server.log), "--listen-tls", "tcp:0"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("msglog:")]
        assert bad.name in line


def test_ca_command(tmp_path: Path) -> None:
    """What the command makes is what the library makes, and what is there is not overwritten."""
    folder = str(tmp_path / "ca")
    runner = CliRunner()
    for words in (["init", folder], ["server", folder, "localhost"], ["client", folder, "a"]):
        done = runner.invoke(ca, words)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "ca" / "a-key.pem").stat().st_mode & 0o077 == 0
    context = ssl.create_default_context(cafile=tmp_path / "ca" / "ca.pem")
    context.load_cert_chain(tmp_path / "ca" / "a.pem", tmp_path / "ca" / "a-key.pem")
    done = runner.invoke(ca, ["client", folder, "a"])
    assert done.exit_code == 1
    assert "is there already" in done.output


def handshake(server: TLSServer, certs: Path, chain: Path | None, key: Path | None, **more) -> str:
    """What becomes of a connection: the first byte that is answered, or why there is none."""
    context = ssl.create_default_context(cafile=certs / "ours" / "ca.pem")
    for name, value in more.items():
        setattr(context, name, value)
    if chain is not None:
        context.load_cert_chain(chain, key)
    try:
        with (
            socket.create_connection(("127.0.0.1", server.server.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(wire.message(ALICE.bytes, 1, b"x"))
            answer = secure.recv(100)
            return f"{answer[8]:#04x}" if answer else "closed"
    except OSError as e:
        return str(e)


def test_tricks_with_certificates(make, certs: Path, tmp_path: Path) -> None:
    """Certificates for something else, of a namesake's authority, too many, and an older TLS."""
    tls_server = make()
    ours, foreign = certs / "ours", certs / "foreign"
    own, key = ours / "alice.pem", ours / "alice-key.pem"
    many = tmp_path / "many.pem"
    many.write_bytes(own.read_bytes() + (foreign / "ca.pem").read_bytes() * 400)
    mixed = tmp_path / "mixed.pem"  # a foreign one, with our authority put behind it
    mixed.write_bytes((foreign / "alice.pem").read_bytes() + (ours / "ca.pem").read_bytes())
    garbage = [b"\x16\x03\x01\xff\xff" + bytes(70_000), b"GET / HTTP/1.1\r\n\r\n", bytes(5)]
    for data in garbage:
        with socket.create_connection(("127.0.0.1", tls_server.server.port), timeout=10) as plain:
            plain.sendall(data)
    old = ssl.TLSVersion.TLSv1_2
    said = {
        "a server's": handshake(
            tls_server, certs, ours / "localhost.pem", ours / "localhost-key.pem"
        ),
        "the authority's own": handshake(tls_server, certs, ours / "ca.pem", ours / "ca-key.pem"),
        "a namesake's": handshake(tls_server, certs, mixed, foreign / "alice-key.pem"),
        "a long chain": handshake(tls_server, certs, many, key),
        "an old TLS": handshake(tls_server, certs, own, key, maximum_version=old),
    }
    assert handshake(tls_server, certs, own, key) == "0x06"
    for name, words in {
        "a server's": "unsupported certificate",
        "the authority's own": "unsupported certificate",
        "a namesake's": "unknown ca",
        "a long chain": "",
        "an old TLS": "protocol version",
    }.items():
        assert words in said[name], (name, said)
        assert said[name] not in ("0x06", "0x15"), (name, said)
    tls_server.server.stop()
    assert wire.read_logs(tls_server.server.log) == {ALICE.bytes: [b"x"]}


def openssl_itself(certs: Path, sock: socket.socket):
    """A TLS connection by OpenSSL's own functions, which can do what no client does."""
    try:
        ssl = ctypes.CDLL("libssl.so.3")
    except OSError:
        assert not os.environ.get("CI"), "needs OpenSSL 3"
        pytest.skip("needs OpenSSL 3 (apt install libssl3)")
    for function in (ssl.TLS_client_method, ssl.SSL_CTX_new, ssl.SSL_new):
        function.restype = ctypes.c_void_p
    context = ctypes.c_void_p(ssl.SSL_CTX_new(ctypes.c_void_p(ssl.TLS_client_method())))
    own, key = (str(certs / "ours" / name).encode() for name in ("alice.pem", "alice-key.pem"))
    assert ssl.SSL_CTX_use_certificate_chain_file(context, own) == 1
    assert ssl.SSL_CTX_use_PrivateKey_file(context, key, 1) == 1
    connection = ctypes.c_void_p(ssl.SSL_new(context))
    ssl.SSL_set_fd(connection, sock.fileno())
    assert ssl.SSL_connect(connection) == 1
    return ssl, connection


def test_changes_of_keys(make, certs: Path) -> None:
    """
    A peer may change its TLS keys, but not without an end: each change has an answer, which fills
    the memory if the peer does not read.  And it may not negotiate again.
    """
    http = free_port()
    tls_server = make("--http", f"tcp:{http}:interface=127.0.0.1")
    message = wire.message(ALICE.bytes, 1, b"hello")
    with socket.create_connection(("127.0.0.1", tls_server.server.port), 20) as sock:
        sock.setblocking(True)
        ssl, connection = openssl_itself(certs, sock)
        assert ssl.SSL_renegotiate(connection) == 0

        def change_keys() -> bool:
            ssl.SSL_key_update(connection, 1)  # 1: and the other side is to change its own
            return ssl.SSL_do_handshake(connection) == 1

        assert all(change_keys() for _ in range(500))
        assert ssl.SSL_write(connection, message, len(message)) == len(message)
        answer = ctypes.create_string_buffer(100)
        assert ssl.SSL_read(connection, answer, 100) == 33
        assert answer.raw[8] == wire.ACK
        wait_until(lambda: not change_keys(), "the abort")
    wait_until(lambda: "changed its TLS keys again and again" in tls_server.server.said(), "a word")
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/metrics", timeout=20) as answer:
        assert b'msglog_connections_closed_total{reason="tls"} 1.0\n' in answer.read()
    send_blocking(tls_server.address, tls(certs, "relay"), uuid.uuid4())
    tls_server.server.stop()
