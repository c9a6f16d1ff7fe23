"""
The HTTP side of a server: read-only, self-contained, and not for strangers.

What answers here runs in the reactor of the messages, so nothing may take long or hold much: a
request's body is not kept, connections are counted, and only GET and HEAD are known.

A page in a browser may reach this port although nobody else can: by a name that its owner lets
lead to 127.0.0.1 (I{DNS rebinding}) it could read everything here.  Such a request says that name
in its Host header, so only addresses, C{localhost} and names that were given are answered.
"""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import re
from collections.abc import Callable, Collection
from importlib.resources import files
from typing import Any

import orjson
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.http import NOT_ALLOWED, NOT_FOUND, OK, SERVICE_UNAVAILABLE
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from ._health import Health

__all__ = ["BoundedSite", "Page", "Probe", "answers_to", "make_site", "say"]

_MISDIRECTED = 421  # of RFC 9110
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@]+)(?::[0-9]+)?")

# How long a connection may say nothing, or keep its request unfinished.
_IDLE_SECONDS = 30

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def answers_to(host: str, names: Collection[str]) -> bool:
    """
    Whether a request with this Host header is answered.

    @param names: lower-case names besides addresses and C{localhost}.
    """
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].lower().rstrip(".")
    if name == "localhost" or name in names:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def say(request: Request, code: int, text: str) -> bytes:
    """A short answer for people."""
    # Twisted does not know the name of 421.
    request.setResponseCode(code, b"Misdirected Request" if code == _MISDIRECTED else None)
    request.setHeader("Content-Type", "text/plain; charset=utf-8")
    return f"{text}\n".encode()


class _StatusRequest(Request):
    """A request that is refused before it costs anything, or answered with the right headers."""

    def gotLength(self, length: int | None) -> None:
        """No body is kept, however long it says it is."""
        self.content = io.BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Drop a piece of a body."""

    def process(self) -> None:
        """Answer, if the method and the name are right."""
        for name, value in _HEADERS.items():
            self.setHeader(name, value)
        channel: Any = self.channel
        channel.transport.answering = True
        hosts = self.requestHeaders.getRawHeaders(b"host", [])
        # (A text is asked for in bytes: what is no UTF-8 would be a traceback in the log.)
        if not all(answers_to(host.decode("latin-1"), channel.site.names) for host in hosts):
            self.write(
                say(
                    self,
                    _MISDIRECTED,
                    "this server does not answer to that name: use its address, or give the name "
                    "with --http-host",
                )
            )
            self.finish()
        elif self.method not in (b"GET", b"HEAD"):
            self.setHeader("Allow", "GET, HEAD")
            self.write(say(self, NOT_ALLOWED, "everything here can only be read"))
            self.finish()
        else:
            super().process()

    def finish(self) -> None:
        """The answer is written; whether it is read is the peer's affair."""
        transport = getattr(self.channel, "transport", None)
        if transport is not None:
            transport.answering = False
        super().finish()

    def render(self, resrc: Resource) -> None:
        """Answer, without saying which version of Twisted this is."""
        self.setHeader("Server", "msglog")
        super().render(resrc)


class _Root(Resource):
    def getChild(self, path: bytes, request: Request) -> Resource:
        return _Nothing()


class _Nothing(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return say(request, NOT_FOUND, "there are /, /metrics, /livez and /readyz")


class Probe(Resource):
    """
    C{/livez} or C{/readyz}: 200 or 503, and why; as JSON to who asks for that.

    @param judge: how the server is.
    @param reasons: what counts against it here.
    @param yes: the word if nothing does.
    """

    isLeaf = True

    def __init__(
        self,
        judge: Callable[[], Health],
        reasons: Callable[[Health], tuple[str, ...]],
        yes: str,
    ) -> None:
        super().__init__()
        self._judge = judge
        self._reasons = reasons
        self._yes = yes

    def render_GET(self, request: Request) -> bytes:
        """Answer a prober."""
        health = self._judge()
        reasons = self._reasons(health)
        code = SERVICE_UNAVAILABLE if reasons else OK
        if b"application/json" in (request.getHeader(b"accept") or b""):
            request.setResponseCode(code)
            request.setHeader("Content-Type", "application/json")
            answer = {"ok": not reasons, "reasons": reasons, "warnings": health.warnings}
            return orjson.dumps(answer) + b"\n"
        lines = [*(f"not {self._yes}: {reason}" for reason in reasons)] or [self._yes]
        return say(request, code, "\n".join([*lines, *(f"warning: {w}" for w in health.warnings)]))


class Page(Resource):
    """
    The status page: one file, whose own style and script are all that a browser may use.

    (They are allowed by their hashes, so what somebody gets into the page besides does nothing.)
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self._html = files("msglog").joinpath("status.html").read_bytes()
        self._policy = (
            f"{_HEADERS['Content-Security-Policy']}; connect-src 'self'; img-src data:; "
            f"style-src {self._hash(b'style')}; script-src {self._hash(b'script')}"
        )

    def _hash(self, element: bytes) -> str:
        pattern = rb"<%s>(.*?)</%s>" % (element, element)
        (content,) = re.findall(pattern, self._html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"

    def render_GET(self, request: Request) -> bytes:
        """Send it."""
        request.setHeader("Content-Type", "text/html; charset=utf-8")
        request.setHeader("Content-Security-Policy", self._policy)
        return self._html


class BoundedSite(Site):
    """
    A site whose requests cost little.

    @ivar names: what it may be called in a Host header besides an address and C{localhost}.
    """

    displayTracebacks = False
    noisy = False

    def __init__(self, reactor: IReactorTime, resource: Resource, names: Collection[str]) -> None:
        super().__init__(
            resource, requestFactory=_StatusRequest, timeout=_IDLE_SECONDS, reactor=reactor
        )
        self.names = frozenset(name.lower() for name in names)

    def log(self, request: Any) -> None:
        """Nothing: a scrape every few seconds would be most of the server's own log."""


class _Connection(ProtocolWrapper):
    """@ivar answering: whether a whole request is being answered, as a watcher's always is."""

    answering = False


class _Bounded(WrappingFactory):
    """
    Has a number of connections at most.  One more takes the place of the oldest that asks nothing:
    otherwise some peers that drip their requests could keep everybody's health checks out.
    """

    noisy = False
    protocol = _Connection

    def __init__(self, site: Site, most: int) -> None:
        super().__init__(site)
        self._most = most

    def buildProtocol(self, addr: IAddress) -> ProtocolWrapper | None:  # type: ignore[override]
        if len(self.protocols) >= self._most:
            connections: Any = self.protocols
            idle = next((each for each in connections if not each.answering), None)
            if idle is None:
                return None
            idle.abortConnection()
        return super().buildProtocol(addr)


def make_site(
    reactor: IReactorTime,
    resources: dict[bytes, Resource],
    names: Collection[str],
    connections: int,
) -> WrappingFactory:
    """
    What is listened with.

    @param reactor: for time.
    @param resources: by their path without the slash; C{b""} is the page.
    @param names: see L{BoundedSite}.
    @param connections: how many there may be at a time.
    """
    root = _Root()
    for path, resource in resources.items():
        root.putChild(path, resource)
    return _Bounded(BoundedSite(reactor, root, names), connections)
