"""What is done to a cluster and to the servers over it while clients send."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from attrs import frozen
from conftest import wait_until
from front_ends import FrontEnd
from nats_cluster import Cluster, Node

from .networks import Loopback, Namespaces, Place


class Site:
    """
    Three nats-servers, and front-ends over their stream, or over several.

    @param kind: of the front-ends.
    @param shards: over how many streams the clients are spread.
    """

    def __init__(
        self,
        folder: Path,
        network: Loopback | Namespaces,
        fronts: int,
        kind: type[FrontEnd],
        shards: int = 1,
    ) -> None:
        self.network = network
        places = [network.place() for _ in range(3)]
        nodes = (
            Node(folder, f"n{number}", address=place.address, inside=place.inside)
            for number, place in enumerate(places, 1)
        )
        self.cluster = Cluster(nodes, shards)
        self.fronts: list[FrontEnd] = []
        for number in range(fronts):
            place = network.place()
            self.fronts.append(
                kind(
                    folder / f"front{number}",
                    self.cluster.url,
                    "--allow-plain",  # nobody else is in this network
                    *("--store-shards", str(shards)),
                    address=place.address,
                    inside=place.inside,
                )
            )

    def start(self) -> None:
        self.cluster.start()
        self.cluster.create_stream("--shards", str(self.cluster.streams))
        for front in self.fronts:
            front.start()

    def leader(self) -> Node:
        """Who leads the stream, when somebody does."""
        wait_until(lambda: self.cluster.leader is not None, "a leader", 60)
        leader = self.cluster.leader
        return leader if leader is not None else self.leader()

    def mend(self) -> None:
        """Everything runs, and nothing is cut, in the middle of whichever fault this is."""
        self.network.heal()
        for node in self.cluster.nodes:
            if node.process is None:
                node.start()
            node.send(signal.SIGCONT)
        for front in self.fronts:
            assert front.process is not None
            if front.process.poll() is not None:
                front.start()
            front.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        for front in self.fronts:
            front.kill()
        self.cluster.kill()


def place_of(one: Node | FrontEnd) -> Place:
    return Place(one.address, one.inside)


class Faults:
    """
    Each method makes one fault and mends it.

    @param away: how long servers are stopped and networks cut, from and to, seconds.
    @ivar did: what was done, in words, as far as chance decided it.
    """

    def __init__(self, site: Site, rng: random.Random, away: tuple[float, float]) -> None:
        self.site = site
        self.rng = rng
        self.away = away
        self.did = ""

    # --- kills -----------------------------------------------------------------------------

    def kill_leader(self) -> None:
        leader = self.site.leader()
        leader.kill()
        self.did = leader.name
        if self.rng.random() < 0.2:
            self.kill_front()
            self.did = f"{leader.name}, and front-end {self.did}"
        time.sleep(self.rng.choice((0.0, 1.0, 6.0)) * self.rng.random())
        leader.start()

    def kill_two(self) -> None:
        leader = self.site.leader()
        other = self.rng.choice(self._others(leader))
        both = [leader, other]
        self.rng.shuffle(both)
        self.did = f"{both[0].name}, {both[1].name}"
        both[0].kill()
        time.sleep(self.rng.choice((0.0, 2.0)) * self.rng.random())
        both[1].kill()
        time.sleep(self.rng.uniform(1, 8))
        self.rng.shuffle(both)
        both[0].start()
        time.sleep(self.rng.random())
        both[1].start()

    def kill_front(self) -> None:
        front = self._front()
        front.kill()
        time.sleep(self.rng.random() * 2)
        front.start()

    def end_front(self) -> None:
        front = self._front()
        front.stop()
        time.sleep(self.rng.random() * 2)
        front.start()

    # --- stops -----------------------------------------------------------------------------

    def stop_leader(self) -> None:
        leader = self.site.leader()
        self.did = leader.name
        leader.send(signal.SIGSTOP)
        self._away()
        leader.send(signal.SIGCONT)

    def stop_front(self) -> None:
        front = self._front()
        assert front.process is not None
        front.process.send_signal(signal.SIGSTOP)
        self._away()
        front.process.send_signal(signal.SIGCONT)

    # --- cuts ------------------------------------------------------------------------------

    def cut_leader(self) -> None:
        leader = self.site.leader()
        self.did = leader.name
        self._cut_between([leader], self._others(leader))
        self._heal()

    def cut_leader_from_fronts(self) -> None:
        leader = self.site.leader()
        self.did = leader.name
        self._cut_between([leader], self.site.fronts)
        self._heal()

    def cut_one_way(self) -> None:
        leader = self.site.leader()
        others = self._others(leader)
        if self.rng.random() < 0.5:
            self.did = f"{leader.name} hears nobody"
            self._cut(others, leader)
        else:
            self.did = f"nobody hears {leader.name}"
            for other in others:
                self._cut([leader], other)
        self._heal()

    def cut_pair(self) -> None:
        leader = self.site.leader()
        other = self.rng.choice(self._others(leader))
        self.did = f"{leader.name}, {other.name}"
        self._cut_between([leader], [other])
        self._heal()

    def cut_follower(self) -> None:
        follower = self.rng.choice(self._others(self.site.leader()))
        self.did = follower.name
        self._cut_between([follower], self._others(follower))
        self._heal()

    def cut_all(self) -> None:
        self.did = "all three"
        for node in self.site.cluster.nodes:
            self._cut(self._others(node), node)
        self._heal()

    def cut_and_kill(self) -> None:
        leader = self.site.leader()
        follower, third = self.rng.sample(self._others(leader), 2)
        cut, killed = self.rng.choice(
            ((follower, leader), (leader, follower), (follower, third), (leader, leader))
        )
        self.did = f"{cut.name} cut off, {killed.name} killed"
        self._cut_between([cut], self._others(cut))
        time.sleep(self.rng.random() * 6)
        killed.kill()
        if self.rng.random() < 0.5:
            self._heal()
            killed.start()
        else:
            killed.start()
            self._heal()

    # --- what these have in common -----------------------------------------------------------

    def _others(self, node: Node) -> list[Node]:
        return [other for other in self.site.cluster.nodes if other is not node]

    def _front(self) -> FrontEnd:
        front = self.rng.choice(self.site.fronts)
        self.did = str(self.site.fronts.index(front) + 1)
        return front

    def _away(self) -> None:
        time.sleep(self.rng.uniform(*self.away))

    def _cut(self, sources: Iterable[Node | FrontEnd], target: Node | FrontEnd) -> None:
        self.site.network.cut([place_of(source) for source in sources], place_of(target))

    def _cut_between(
        self, some: Iterable[Node | FrontEnd], others: Iterable[Node | FrontEnd]
    ) -> None:
        for one in some:
            for other in others:
                self._cut([one], other)
                self._cut([other], one)

    def _heal(self) -> None:
        self._away()
        self.site.network.heal()


@frozen
class Kind:
    """
    A kind of fault.

    @ivar option: the option that says how often, without dashes.
    @ivar text: what it is.
    @ivar count: how often, if not told.
    @ivar cuts: whether networks must be cut for it.
    """

    option: str
    text: str
    count: int
    make: Callable[[Faults], None]
    cuts: bool = False


KINDS = (
    Kind("leader-kills", "leader killed (-9)", 100, Faults.kill_leader),
    Kind("double-kills", "leader and another killed", 20, Faults.kill_two),
    Kind("leader-stops", "leader stopped (SIGSTOP)", 10, Faults.stop_leader),
    Kind("front-kills", "front-end killed (-9)", 20, Faults.kill_front),
    Kind("front-ends", "front-end ended (SIGTERM)", 20, Faults.end_front),
    Kind("front-stops", "front-end stopped (SIGSTOP)", 6, Faults.stop_front),
    Kind("leader-cuts", "leader cut off from the others", 12, Faults.cut_leader, True),
    Kind("front-cuts", "leader cut off from front-ends", 5, Faults.cut_leader_from_fronts, True),
    Kind("one-way-cuts", "leader cut off one way", 10, Faults.cut_one_way, True),
    Kind("pair-cuts", "leader cut off from one", 5, Faults.cut_pair, True),
    Kind("follower-cuts", "follower cut off", 5, Faults.cut_follower, True),
    Kind("full-cuts", "all cut off from each other", 5, Faults.cut_all, True),
    Kind("cuts-and-kills", "one cut off, and one killed", 12, Faults.cut_and_kill, True),
)
