"""What a stream must be for an ACK to keep its meaning, and what a given one lacks.  No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from ._shards import StreamShard

__all__ = ["Weakness", "find_weaknesses", "stream_config"]

_SYNC_HINT = "set 'sync_interval: always' in the jetstream block of every server, and restart it"


@frozen(slots=True)
class Weakness:
    """
    A setting that weakens the promise.

    @ivar setting: its name.
    @ivar reason: what it costs, and what to set instead.
    @ivar breaks: whether the store cannot work like that at all, or what is acknowledged would be
        removed in the normal course of things; not only by an accident.
    """

    setting: str
    reason: str
    breaks: bool = False

    def __str__(self) -> str:
        return f"{self.setting}: {self.reason}"


def stream_config(name: str, replicas: int = 3, max_bytes: int = -1) -> dict[str, Any]:
    """The configuration of a stream that keeps the promise."""
    return {
        "name": name,
        "description": "msglog: one message is one batch of a client's messages",
        "subjects": list(StreamShard.of_name(name).subjects),
        "storage": "file",
        "num_replicas": replicas,
        "retention": "limits",
        # A full stream refuses what is new; the default, "old", removes what is acknowledged.
        "discard": "new",
        "max_bytes": max_bytes,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "max_consumers": -1,
        "deny_delete": True,
        "deny_purge": True,
        "allow_rollup_hdrs": False,
        # Readers fetch in batches from any replica; the store itself never does.
        "allow_direct": True,
    }


def find_weaknesses(
    config: Mapping[str, Any], sync_always: bool | None = None
) -> Iterator[Weakness]:
    """
    Every setting of a stream that weakens the promise, the worst first.

    @param sync_always: whether every server syncs before it acknowledges; L{None} if that is not
        known, for a stream's configuration does not say.
    """
    if sync_always is None:
        yield Weakness(
            "sync_interval",
            "not known here; by default servers sync every 2 minutes, and a power cut of several "
            f"of them may lose what was acknowledged: {_SYNC_HINT}",
        )
    elif not sync_always:
        yield Weakness(
            "sync_interval",
            "not 'always': a power cut, of several servers or of one at the wrong moment, may lose "
            f"what was acknowledged: {_SYNC_HINT}",
        )
    replicas = int(config.get("num_replicas", 1))
    if replicas < 3:
        yield Weakness(
            "num_replicas",
            f"{replicas}: one server that is lost takes acknowledged messages with it, and none is "
            f"taken while it is away; 3 survive that",
        )
    elif replicas % 2 == 0:
        yield Weakness("num_replicas", f"{replicas} survive no more failures than {replicas - 1}")
    yield from _of_config(config)


def _of_config(config: Mapping[str, Any]) -> Iterator[Weakness]:
    if config.get("storage") != "file":
        yield Weakness("storage", "not 'file': nothing is on any disk", breaks=True)
    for subject in StreamShard.of_name(str(config.get("name", ""))).subjects:
        if subject not in config.get("subjects", ()):
            yield Weakness("subjects", f"without {subject}: nothing is taken", breaks=True)
    if config.get("retention", "limits") != "limits":
        yield Weakness(
            "retention", "not 'limits': what a consumer has read is removed", breaks=True
        )
    unlimited = (
        ("max_age", 10**9, " s", "what is older is removed"),  # nanoseconds
        ("max_msgs_per_subject", 1, "", "a client's older messages are removed"),
    )
    for setting, unit, unit_name, what in unlimited:
        limit = config.get(setting) or 0
        if limit > 0:
            said = f"{limit / unit:.9g}{unit_name}"
            yield Weakness(setting, f"{said}: {what}; take the limit away", breaks=True)
    bounded = [s for s in ("max_bytes", "max_msgs") if (config.get(s) or -1) > 0]
    if config.get("discard") != "new":
        yield Weakness(
            "discard",
            "not 'new': "
            + (f"at {bounded[0]} " if bounded else "with a limit ")
            + "the oldest messages would be removed",
            breaks=bool(bounded),
        )
    if config.get("no_ack"):
        yield Weakness("no_ack", "nothing is ever acknowledged", breaks=True)
    if config.get("sealed"):
        yield Weakness("sealed", "nothing is taken any more", breaks=True)
    if config.get("subject_transform") or config.get("republish"):
        yield Weakness("subject_transform, republish", "messages may get another subject")
    if config.get("persist_mode") == "async":
        yield Weakness("persist_mode", "'async': acknowledged before it is written")
    for setting, what in (("deny_delete", "deleted"), ("deny_purge", "purged")):
        if not config.get(setting):
            yield Weakness(setting, f"off: whoever may use the API can have messages {what}")
    if config.get("allow_rollup_hdrs"):
        yield Weakness("allow_rollup_hdrs", "on: one message's header can remove all before it")
    if config.get("allow_msg_ttl"):
        yield Weakness("allow_msg_ttl", "on: a message's header can have it removed after a while")
