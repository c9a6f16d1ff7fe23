"""How many connections there are, in all and from each address, and whether there may be more."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address

from twisted.internet.interfaces import IAddress

from ._limits import Limits

__all__ = ["REFUSALS", "ConnectionQuota", "host_of", "origin_of"]

# Why a connection is not taken, as a word and for people.
REFUSALS = {
    "stopping": "shutting down",
    "full": "too many connections",
    "address": "too many connections from this address",
}


class ConnectionQuota:
    """
    Connections, by where they are from (L{origin_of}).

    @ivar connections: how many there are.
    """

    def __init__(self) -> None:
        self.connections = 0
        self._origins: Counter[str] = Counter()

    def refusal(self, origin: str, limits: Limits) -> str | None:
        """Which of L{REFUSALS} a further connection gets, if any."""
        if self.connections >= limits.max_connections:
            return "full"
        if self._origins[origin] >= limits.max_connections_per_address:
            return "address"
        return None

    def add(self, origin: str) -> None:
        """A connection was taken."""
        self.connections += 1
        self._origins[origin] += 1

    def remove(self, origin: str) -> None:
        """A connection that was taken is gone."""
        self.connections -= 1
        self._origins[origin] -= 1
        if not self._origins[origin]:
            del self._origins[origin]


def origin_of(peer: IAddress) -> str:
    """
    What counts as one address: one of IPv4, or a network of 64 bits of IPv6, of which any host
    has all addresses; or whatever a transport calls its peer.
    """
    host = host_of(peer)
    if ":" not in host:
        return host
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or address.packed[:8].hex())


def host_of(peer: IAddress) -> str:
    """An IP address, or whatever a transport calls its peer."""
    return str(getattr(peer, "host", None) or peer)
