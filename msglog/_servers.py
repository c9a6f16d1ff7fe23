"""Where servers are, and when to try them again.  No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import uniform

from ._limits import ClientLimits

__all__ = ["DEFAULT_PORT", "Address", "Backoff", "address_text", "parse_servers"]

DEFAULT_PORT = 7514

Address = tuple[str, int]


def parse_servers(servers: str | Iterable[str]) -> list[Address]:
    """
    Addresses of servers, in the order in which they are tried.

    @param servers: C{"host"}, C{"host:port"}, C{"[::1]:port"}, several of them with commas
        between, or an iterable of such.
    @raise ValueError: one is none, or there is none at all.
    """
    texts = [servers] if isinstance(servers, str) else servers
    found = [_parse(text.strip()) for several in texts for text in several.split(",")]
    if not found:
        raise ValueError("no server is named: HOST:PORT")
    return found


def address_text(address: Address) -> str:
    """An address as people write it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse(text: str) -> Address:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        good = bracket and (not port or port.startswith(":"))
        port = port[1:]
    elif text.count(":") > 1:
        host, port, good = text, "", True  # a bare IPv6 address
    else:
        host, _, port = text.partition(":")
        good = True
    try:
        host.encode("idna")
    except UnicodeError:  # a label is empty or too long
        good = False
    if not (good and host and (not port or (port.isdecimal() and 0 < int(port) < 65536))):
        raise ValueError(f"not a server: {text!r}; name it as HOST:PORT, or [IPV6]:PORT")
    return host, int(port) if port else DEFAULT_PORT


class Backoff:
    """
    How long to wait between attempts: longer each time, and not as long as everybody else.

    @param limits: of which the two for back-off are used.
    @param jitter: a factor for each wait.
    """

    def __init__(
        self, limits: ClientLimits, jitter: Callable[[], float] = lambda: uniform(0.5, 1.0)
    ) -> None:
        # Not above: who only wants to know where a server is should not wait for Twisted.
        from twisted.application.internet import backoffPolicy

        self._policy = backoffPolicy(
            limits.first_backoff_seconds, limits.max_backoff_seconds, 2.0, lambda: 0.0
        )
        self._jitter = jitter
        self._attempt = 0

    def failed(self) -> float:
        """An attempt has failed: the seconds until the next one."""
        seconds: float = self._policy(self._attempt) * self._jitter()
        self._attempt += 1
        return seconds

    def succeeded(self) -> None:
        """There was progress: the next failure is the first again."""
        self._attempt = 0
