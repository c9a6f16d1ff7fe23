"""
What happens in a simulation: its settings, and a list of events with their moments.

A recipe is made from a seed, and can be written down as JSON, made smaller, and run again.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from attrs import Factory, asdict, define, frozen

__all__ = ["Event", "Recipe", "Settings", "make_recipe"]


@frozen(kw_only=True)
class Settings:
    """
    @ivar window: the server's.
    @ivar max_body: its longest body.
    @ivar max_unanswered: its C{max_unanswered_bytes}, and so on.
    @ivar ledger_memory: bytes; far fewer than an operator may say, so that few clients fill it.
    @ivar checkpoint_bytes: of the log.
    @ivar rotate_bytes: when the server rotates; 0: never.
    @ivar lazy: C{--sync}, seconds.
    @ivar wrapped: whether connections are wrapped, as TLS wraps them.
    @ivar clients: how each of msglog's own clients keeps its messages: C{spool} or C{memory}.
    @ivar latency: of the network, seconds.
    @ivar splitting: how often bytes come in pieces.
    @ivar capacities: of a connection's buffers, bytes.
    @ivar disk_seconds: how long the writer's work takes.
    """

    window: int = 8
    max_body: int = 64
    max_unanswered: int = 1 << 20
    max_undurable: int = 128 << 20
    max_unread: int = 256 << 10
    max_connections: int = 100
    in_place: int = 1 << 20
    ledger_memory: int = 1 << 20
    checkpoint_bytes: int = 1 << 20
    rotate_bytes: int = 0
    lazy: float = 0.0
    wrapped: bool = False
    clients: tuple[str, ...] = ("spool", "memory")
    client_window: int = 8
    latency: float = 0.001
    splitting: float = 0.2
    capacities: tuple[int, ...] = (65536,)
    disk_seconds: float = 0.001


@define
class Event:
    """
    @ivar at: seconds after the begin.
    @ivar kind: which, see C{Simulation}.
    @ivar how: its details.
    """

    at: float
    kind: str
    how: dict[str, Any] = Factory(dict)

    def __str__(self) -> str:
        details = " ".join(f"{key}={value}" for key, value in self.how.items())
        return f"{self.at:9.3f}  {self.kind} {details}".rstrip()


@define
class Recipe:
    """
    @ivar seed: of everything that the events do not say.
    """

    seed: int
    settings: Settings
    events: list[Event]

    def to_json(self) -> str:
        """One line, for C{--recipe}."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """What L{to_json} wrote."""
        fields = json.loads(text)
        settings = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in fields["settings"].items()
        }
        events = [Event(**event) for event in fields["events"]]
        return cls(fields["seed"], Settings(**settings), events)

    def __str__(self) -> str:
        default = asdict(Settings())
        changed = {k: v for k, v in asdict(self.settings).items() if v != default[k]}
        return "\n".join([f"seed {self.seed}, settings {changed}", *map(str, self.events)])


def make_settings(rng: Random) -> Settings:
    window = rng.choice([1, 2, 4, 8, 70, 150])
    small = rng.random() < 0.4
    return Settings(
        window=window,
        max_body=rng.choice([30, 300]) if rng.random() < 0.3 else 64,
        max_unanswered=rng.choice([1, 3000, 20000]) if small else 1 << 20,
        max_undurable=rng.choice([1, 3000, 20000]) if rng.random() < 0.3 else 128 << 20,
        max_unread=rng.choice([100, 2000]) if rng.random() < 0.3 else 256 << 10,
        max_connections=rng.choice([5, 7]) if rng.random() < 0.1 else 100,
        in_place=rng.choice([0, 300, 64 << 10, 1 << 20]),
        ledger_memory=rng.choice([8_000, 16_000]) if rng.random() < 0.5 else 1 << 20,
        checkpoint_bytes=rng.choice([1, 500, 4000]) if rng.random() < 0.5 else 1 << 20,
        rotate_bytes=rng.choice([1, 1500, 6000]) if rng.random() < 0.3 else 0,
        lazy=rng.choice([0.2, 2.0]) if rng.random() < 0.1 else 0.0,
        wrapped=rng.random() < 0.15,
        clients=tuple(rng.choice(["spool", "memory"]) for _ in range(rng.choice([1, 1, 2, 3]))),
        client_window=rng.choice([1, 3, 8, 1024]),
        latency=rng.choice([0.0001, 0.001, 0.02, 0.3]),
        splitting=rng.choice([0.0, 0.2, 0.8]),
        capacities=tuple(rng.sample([40, 300, 2000, 65536], rng.choice([1, 2]))),
        disk_seconds=rng.choice([0.0001, 0.001, 0.02]),
    )


def make_events(rng: Random, settings: Settings) -> list[Event]:
    events = []
    length = rng.choice([2.0, 10.0, 60.0])
    clients = len(settings.clients)
    kinds = rng.sample(_FAULTS, rng.randrange(1, 8))
    if settings.lazy:
        # Then a power cut, or a sync that fails, may cost what was acknowledged.
        kinds = [kind for kind in kinds if kind not in ("power", "sync_error")] or ["kill"]
    for client in range(clients):
        for _ in range(rng.randrange(1, 6)):
            how = {"client": client, "count": rng.choice([1, 2, 10, 30])}
            events.append(Event(rng.random() * length, "send", how))
    for number in range(rng.randrange(1, 12)):
        how = {"number": number, "chance": rng.randrange(1 << 30)}
        events.append(Event(rng.random() * length, "peer", how))
    for _ in range(rng.randrange(2, 16)):
        kind = rng.choice(kinds)
        events.append(Event(rng.random() * length, kind, _details(rng, kind, clients)))
    if settings.ledger_memory < 1 << 20:
        for _ in range(3):
            events.append(Event(rng.random() * length, "crowd", _details(rng, "crowd", clients)))
    events.sort(key=lambda event: event.at)
    for event in events:
        event.at = round(event.at, 3)
    return events


_FAULTS = (
    "kill",
    "power",
    *("die",) * 4,  # what is torn is torn in a commit
    "stop",
    "full",
    "sync_error",
    "write_error",
    "open_error",
    "slow_disk",
    "rotate",
    "reopen",
    "clock",
    "cut",
    "vanish",
    "stall",
    "pause",
    "kill_client",
    "stop_client",
    "restore_client",
    "clone",
    "crowd",
    "lose_ledger",
)


def _details(rng: Random, kind: str, clients: int) -> dict[str, Any]:
    client = rng.randrange(clients)
    if kind in ("kill", "power"):
        return {"away": rng.choice([0.01, 0.5, 5.0]), "rotate": rng.random() < 0.4}
    if kind == "lose_ledger":
        return {"away": 0.5}
    if kind == "die":
        return {"calls": rng.randrange(12), "power": rng.random() < 0.5, "away": 0.5}
    if kind == "stop":
        return {"away": rng.choice([0.01, 0.5])}
    if kind == "full":
        return {"room": rng.choice([0, 1, 100, 1000]), "seconds": rng.choice([0.05, 1.0, 8.0])}
    if kind in ("sync_error", "write_error"):
        return {"code": rng.choice(["EIO", "ENOSPC"])}
    if kind == "open_error":
        call = rng.choice(["open", "rename", "take_name", "remove", "cut", "reserve"])
        return {"call": call, "code": rng.choice(["ENOSPC", "EMFILE", "EIO", "EACCES"])}
    if kind == "slow_disk":
        return {"each": rng.choice([0.5, 6.0]), "seconds": rng.choice([1.0, 20.0])}
    if kind == "clock":
        return {"by": rng.choice([-3600.0, -20.0, -1.0, -0.001, 0.5, 20.0, 3600.0, 86400.0])}
    if kind in ("cut", "vanish"):
        return {"which": rng.randrange(100)}
    if kind == "stall":
        return {
            "which": rng.randrange(100),
            "up": rng.choice([0.0, 1.0, 40.0]),
            "down": rng.choice([0.0, 1.0, 40.0, 100.0]),
        }
    if kind == "pause":
        return {"seconds": rng.choice([0.1, 3.0, 40.0]), "server": rng.random() < 0.7}
    if kind in ("kill_client", "stop_client", "restore_client"):
        return {"client": client, "away": rng.choice([0.0, 0.2, 3.0])}
    if kind == "clone":
        return {"client": client, "count": rng.choice([1, 5, 20])}
    if kind == "crowd":
        return {"count": rng.choice([20, 40]), "chance": rng.randrange(1 << 30)}
    return {}


def make_recipe(seed: int) -> Recipe:
    """The recipe of a seed."""
    rng = Random(f"recipe {seed}")
    settings = make_settings(rng)
    return Recipe(seed, settings, make_events(rng, settings))
