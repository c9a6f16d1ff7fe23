"""
All of a cluster to try while it runs: who is there, who leads, and what somebody asks of it.

Nothing is started again by itself: to see what goes on without it is what such a cluster is for.
How each member is, is never remembered but looked at, so that it does not matter whether somebody
asked this for a kill or the shell.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from attrs import asdict, field, frozen

from .._nats_access import DEFAULT_STREAM, parse_nats
from .._nats_admin import StreamError, make_stream
from .._stream_settings import stream_config
from .layout import FrontEnd, Layout, Node
from .member import Member, fetch, fetch_json
from .needs import ClusterError, Programs

__all__ = ["VERBS", "Cluster", "Row", "Seen"]

# For all to run and the stream to be there; under load it takes a tenth of it.
_START_SECONDS = 60.0

# For what was started again to be up to date or ready, before its state is told as it is.
_READY_SECONDS = 30.0

# For one that leaves in good order; a node takes 5 s, a front-end without a stream 10.
_LEAVE_SECONDS = 20.0

# At the end, for front-ends and then nodes to leave before they are killed.
_END_SECONDS = 5.0

# Between two looks at something that is waited for.
_LOOK_SECONDS = 0.2

VERBS = ("status", "kill", "stop", "pause", "resume", "start")


@frozen
class Row:
    """
    How a member is.

    @ivar address: where clients connect.
    @ivar pid: L{None} if it does not run.
    @ivar page: its status page, or the monitoring address.
    @ivar state: in words.
    @ivar good: whether it works as it should.
    """

    name: str
    address: str
    pid: int | None
    page: str
    state: str
    good: bool


@frozen
class Seen:
    """
    What the members said at a look.

    @ivar nodes: each one's C{/jsz}, by its name; nothing for one that does not answer.
    @ivar front_ends: each one's C{/readyz}, in the same way.
    """

    nodes: dict[str, Any] = field(factory=dict)
    front_ends: dict[str, tuple[int, str] | None] = field(factory=dict)

    @property
    def leader(self) -> str | None:
        """
        The node that leads the stream, by its own word and that of a majority.  One that has just
        come, or come back, may believe it alone.
        """
        named = Counter(_stream_of(says).get("leader") for says in self.nodes.values())
        for name, count in named.items():
            itself = name and _stream_of(self.nodes.get(name)).get("leader") == name
            if itself and count > len(self.nodes) // 2:
                return str(name)
        return None


class Cluster:
    """
    @param say: is told what happens, in one line each.
    """

    def __init__(self, layout: Layout, programs: Programs, say: Callable[[str], None]) -> None:
        self.layout = layout
        self._say = say
        self._places = {place.name: place for place in layout.members}
        self._members: dict[str, Member] = {}
        for node in layout.nodes:
            command = [programs.nats_server, "-c", str(node.folder / "nats.conf")]
            self._members[node.name] = Member(command, node.folder, signal.SIGUSR2)
        for front_end in layout.front_ends:
            command = front_end.command(programs.twistd, layout.url)
            self._members[front_end.name] = Member(command, front_end.folder, signal.SIGTERM)
        self._seen = Seen()
        self._told: dict[str, str] = {}

    # --- from the start to the end ---------------------------------------------------------

    async def start(self) -> None:
        """
        Start all of it, and make the stream.

        @raise ClusterError: that is not possible.
        """
        deadline = time.monotonic() + _START_SECONDS
        for node in self.layout.nodes:
            node.folder.mkdir(mode=0o700, exist_ok=True)
            (node.folder / "nats.conf").write_text(node.configuration(self.layout.nodes))
            self._members[node.name].start()
        await self._make_stream(deadline)
        for front_end in self.layout.front_ends:
            self._members[front_end.name].start()
        while not all(row.good for row in self.rows()):
            self._expect_alive(self._members)
            if time.monotonic() > deadline:
                bad = ", ".join(f"{row.name}: {row.state}" for row in self.rows() if not row.good)
                raise ClusterError(f"not all works after {_START_SECONDS:g} s ({bad})")
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look()

    async def _make_stream(self, deadline: float) -> None:
        access = parse_nats(self.layout.url)
        config = stream_config(DEFAULT_STREAM, len(self.layout.nodes))
        error: object = "the nodes do not agree on who leads them"
        while True:
            self._expect_alive(self._members)
            try:
                if await self._nodes_agree():  # before, nobody would answer
                    await make_stream(access, config)
                    return
            except StreamError as e:
                error = e
            if time.monotonic() > deadline:
                raise ClusterError(f"no stream after {_START_SECONDS:g} s: {error}")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _nodes_agree(self) -> bool:
        """Whether all nodes name the same one that leads them."""
        said = await asyncio.gather(*(fetch_json(f"{node.page}/jsz") for node in self.layout.nodes))
        leaders = {((says or {}).get("meta_cluster") or {}).get("leader") for says in said}
        return len(leaders) == 1 and leaders != {None} and leaders != {""}

    def _expect_alive(self, names: Iterable[str]) -> None:
        for name in names:
            member = self._members[name]
            if member.ended:
                raise ClusterError(
                    f"{name} did not start: {member.ended}: {member.last_words()} (all of what it "
                    f"said is in {member.output})"
                )

    async def end(self) -> None:
        """End all of it, in good order where that is possible in time."""
        for places in (self.layout.front_ends, self.layout.nodes):
            members = [self._members[place.name] for place in places]
            for member in members:
                # One that is paused would never hear of it.
                member.send(signal.SIGKILL if member.paused else signal.SIGTERM)
            deadline = time.monotonic() + _END_SECONDS
            while any(member.alive for member in members) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """End what still runs, at once."""
        for member in self._members.values():
            member.send(signal.SIGKILL)

    # --- looking ---------------------------------------------------------------------------

    async def look(self) -> None:
        """See how all are, and say what has changed."""
        nodes, front_ends = self.layout.nodes, self.layout.front_ends
        said = await asyncio.gather(
            *(self._ask(node, fetch_json, f"{node.page}/jsz?streams=true") for node in nodes),
            *(self._ask(front_end, fetch, f"{front_end.page}readyz") for front_end in front_ends),
        )
        self._seen = Seen(
            {node.name: said[i] for i, node in enumerate(nodes)},
            {front_end.name: said[len(nodes) + i] for i, front_end in enumerate(front_ends)},
        )
        for row in self.rows():
            # Not the figures and reasons behind it, which change all the time.
            word = re.split(r"[:;0-9]", row.state)[0]
            if self._told.get(row.name) != word:
                self._told[row.name] = word
                self._say(f"{row.name} {row.state}")

    async def _ask(self, place: Node | FrontEnd, how: Callable[[str], Any], url: str) -> Any:
        member = self._members[place.name]
        return await how(url) if member.alive and not member.paused else None

    def rows(self) -> list[Row]:
        """How each was at the last look."""
        return [self._row(place) for place in self._places.values()]

    def _row(self, place: Node | FrontEnd) -> Row:
        member = self._members[place.name]
        state, good = self._state(place, member)
        return Row(place.name, place.address, member.pid, place.page, state, good)

    def _state(self, place: Node | FrontEnd, member: Member) -> tuple[str, bool]:
        """Of a member, in words, and whether it is as it should be."""
        if not member.alive:
            return member.ended or "not started", False
        if member.paused:
            return "paused", False
        if member.leaving:
            return "leaving", False
        if isinstance(place, Node):
            return self._state_of_node(place.name)
        answer = self._seen.front_ends.get(place.name)
        if answer is None:
            return "does not answer yet", False
        status, text = answer
        return text.partition("\n")[0], status == 200  # warnings are in the nodes' own rows

    def _state_of_node(self, name: str) -> tuple[str, bool]:
        if self._seen.nodes.get(name) is None:
            return "does not answer yet", False
        leader = self._seen.leader
        if leader is None:
            return "waits for a leader", False
        if leader == name:
            return "leads the stream", True
        for replica in _stream_of(self._seen.nodes[leader]).get("replicas") or ():
            if replica["name"] == name:
                if replica.get("current"):
                    return "follows", True
                return f"catches up: {replica.get('lag', 0)} behind", False
        return "catches up", False

    # --- what somebody asks for ------------------------------------------------------------

    async def do(self, verb: str, names: list[str]) -> dict[str, Any]:
        """
        Do what L{VERBS} say to members by their names, or to C{leader} and C{follower}.

        @return: what was done, in lines, and how all are now.
        @raise ClusterError: it cannot be done, and nothing was, or not in time.
        """
        if verb not in VERBS:
            raise ClusterError(f"{verb} is not one of {', '.join(VERBS)}")
        await self.look()
        if verb in ("start", "resume") and not names:
            dead = verb == "start"
            names = [n for n, m in self._members.items() if (not m.alive if dead else m.paused)]
            if not names:
                raise ClusterError(f"nothing is {'dead' if dead else 'paused'}")
        chosen = list(dict.fromkeys(self._name(name) for name in names))
        for name in chosen:
            self._check(verb, name, self._members[name])
        said = []
        for name in chosen:
            member = self._members[name]
            pid, state = member.pid, self._word(name)
            self._apply(verb, member)
            said.append(f"{name} (pid {pid}, {state})" if pid else f"{name} (pid {member.pid})")
        await self._settle(verb, chosen)
        if verb == "start":
            self._expect_alive(chosen)
        return {
            "said": said,
            "rows": [asdict(row) for row in self.rows()],
            "url": self.layout.url,
            "servers": self.layout.servers,
        }

    def _name(self, name: str) -> str:
        leader = self._seen.leader
        if name in self._members:
            return name
        if name == "leader":
            if leader is None:
                raise ClusterError("no node leads the stream just now: name one of the table")
            return leader
        if name == "follower":
            for row in self.rows():
                if row.state == "follows":
                    return row.name
            raise ClusterError("no node follows just now: name one of the table")
        raise ClusterError(
            f"there is no {name}: name {', '.join(self._members)}, leader or follower"
        )

    def _word(self, name: str) -> str:
        return self._state(self._places[name], self._members[name])[0]

    def _check(self, verb: str, name: str, member: Member) -> None:
        if verb == "start":
            if member.alive:
                raise ClusterError(f"{name} runs already")
            return
        if not member.alive:
            raise ClusterError(f"{name} does not run: 'msglog cluster start {name}' starts it")
        if verb in ("stop", "pause") and member.paused:
            raise ClusterError(f"{name} is paused: 'msglog cluster resume {name}' has it go on")
        if verb == "resume" and not member.paused:
            raise ClusterError(f"{name} is not paused")

    def _apply(self, verb: str, member: Member) -> None:
        match verb:
            case "kill":
                member.send(signal.SIGKILL)
            case "stop":
                member.leave()
            case "pause":
                member.send(signal.SIGSTOP)
            case "resume":
                member.send(signal.SIGCONT)
            case "start":
                member.start()

    async def _settle(self, verb: str, names: list[str]) -> None:
        """Wait until what was asked for is so, or is not to be expected any more."""
        seconds = _LEAVE_SECONDS if verb in ("kill", "stop") else _READY_SECONDS
        deadline = time.monotonic() + seconds
        while not all(self._is_so(verb, row) for row in self.rows() if row.name in names):
            if time.monotonic() > deadline:
                states = ", ".join(f"{name}: {self._word(name)}" for name in names)
                raise ClusterError(f"after {seconds:g} s: {states}")
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look()
        await self.look()

    def _is_so(self, verb: str, row: Row) -> bool:
        """Whether what was asked of a member is so; what died meanwhile is not waited for."""
        match verb:
            case "kill" | "stop":
                return row.pid is None
            case "pause":
                return row.state == "paused" or row.pid is None
            case _:
                return row.good or row.pid is None


def _stream_of(says: Any) -> dict[str, Any]:
    """What a node says of the stream's leader and replicas; nothing if it does not know it."""
    for account in (says or {}).get("account_details") or ():
        for stream in account.get("stream_detail") or ():
            if stream.get("name") == DEFAULT_STREAM:
                cluster: dict[str, Any] = stream.get("cluster") or {}
                return cluster
    return {}
