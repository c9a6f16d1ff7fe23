"""What a cluster to try consists of: names, ports, folders, configurations, commands.  No I/O."""

from __future__ import annotations

import json
from pathlib import Path

from attrs import frozen

__all__ = ["DEFAULT_PORT", "PORTS", "FrontEnd", "Layout", "Node"]

# Beside 7514 and 7515, which a server of the tutorial may have.
DEFAULT_PORT = 7520

# Three nodes are the fewest that survive the loss of one; two front-ends, of one.
_NODES, _FRONT_ENDS = 3, 2
_PORTS_OF_A_NODE, _PORTS_OF_A_FRONT_END = 3, 2

# How many ports in a row a cluster takes.
PORTS = _NODES * _PORTS_OF_A_NODE + _FRONT_ENDS * _PORTS_OF_A_FRONT_END

_LOOPBACK = "127.0.0.1"


@frozen(slots=True)
class Node:
    """
    One nats-server.

    @ivar port: for front-ends and other clients of NATS.
    @ivar route: for the other nodes.
    @ivar monitor: for HTTP, where it says how it is.
    """

    name: str
    folder: Path
    port: int
    route: int
    monitor: int

    @property
    def address(self) -> str:
        """Where clients of NATS connect."""
        return f"{_LOOPBACK}:{self.port}"

    @property
    def page(self) -> str:
        """Its monitoring address."""
        return f"http://{_LOOPBACK}:{self.monitor}"

    @property
    def ports(self) -> tuple[int, ...]:
        return self.port, self.route, self.monitor

    def configuration(self, nodes: tuple[Node, ...]) -> str:
        """Its configuration file, among these nodes."""
        routes = ", ".join(f'"nats://{_LOOPBACK}:{node.route}"' for node in nodes)
        # JSON's strings are NATS's too, so any folder's name will do.
        store = json.dumps(str(self.folder), ensure_ascii=False)
        return f"""\
# Written by 'msglog cluster' at each start.
server_name: {self.name}
listen: "{self.address}"
http: "{_LOOPBACK}:{self.monitor}"
jetstream {{
    store_dir: {store}
    sync_interval: always
}}
cluster {{
    name: msglog-cluster
    listen: "{_LOOPBACK}:{self.route}"
    routes: [{routes}]
}}
# A server that is asked to leave hands over what it leads at once; then it waits so long before it
# closes connections (10 s by default).
lame_duck_grace_period: "1s"
lame_duck_duration: "30s"
"""


@frozen(slots=True)
class FrontEnd:
    """
    One C{twistd msglog}.

    @ivar port: for messages.
    @ivar http: for the status page, health and metrics.
    """

    name: str
    folder: Path
    port: int
    http: int

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"{_LOOPBACK}:{self.port}"

    @property
    def page(self) -> str:
        """Its status page."""
        return f"http://{_LOOPBACK}:{self.http}/"

    @property
    def ports(self) -> tuple[int, ...]:
        return self.port, self.http

    def command(self, twistd: str, url: str) -> list[str]:
        """How it is started."""
        return [
            *(twistd, "-n", "--pidfile=", "msglog", "--store", url),
            *("--listen", f"tcp:{self.port}:interface={_LOOPBACK}"),
            *("--http", f"tcp:{self.http}:interface={_LOOPBACK}"),
        ]


@frozen(slots=True)
class Layout:
    """
    All of a cluster.

    @ivar folder: what is kept, absolute.
    """

    folder: Path
    nodes: tuple[Node, ...]
    front_ends: tuple[FrontEnd, ...]

    @classmethod
    def of(cls, folder: Path, first_port: int) -> Layout:
        """A cluster in this folder, on L{PORTS} ports from this one on."""
        folder = folder.absolute()
        port = first_port
        front_ends, nodes = [], []
        for number in range(1, _FRONT_ENDS + 1):
            name = f"front{number}"
            front_ends.append(FrontEnd(name, folder / name, port, port + 1))
            port += _PORTS_OF_A_FRONT_END
        for number in range(1, _NODES + 1):
            name = f"n{number}"
            nodes.append(Node(name, folder / name, port, port + 1, port + 2))
            port += _PORTS_OF_A_NODE
        return cls(folder, tuple(nodes), tuple(front_ends))

    @property
    def members(self) -> tuple[Node | FrontEnd, ...]:
        """All of them, in the order in which they are shown."""
        return *self.front_ends, *self.nodes

    @property
    def url(self) -> str:
        """For C{--store} and C{msglog stream}."""
        return "nats://" + ",".join(node.address for node in self.nodes)

    @property
    def servers(self) -> str:
        """What clients connect to."""
        return ",".join(front_end.address for front_end in self.front_ends)

    @property
    def ports(self) -> dict[int, str]:
        """Who has each port."""
        return {port: member.name for member in self.members for port in member.ports}
