"""
An event of a program's log as the body of one message: a JSON object, cut to what the server takes.
No I/O.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import orjson

from ._limits import Limits
from ._records import format_time

__all__ = ["DEFAULT_MAX_BODY", "encode", "event_time"]

# Until the server has said how long a body it takes, that is what a server takes that nobody has
# configured: what is longer would be refused, and lost.
DEFAULT_MAX_BODY = Limits().max_message_bytes

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z

# What is cut of an event that is too long, and in which order: a key, and the share of the longest
# body that it keeps for the moment.  What the event says is worth more than where it was said, and
# an exception's last line more than its first.
_CUTS = (
    ("stack", 0.0),
    ("exception", 0.25),
    ("fields", 0.0),
    ("message", 0.25),
    ("exception", 0.0),
    ("where", 0.0),
    ("task", 0.0),
    ("thread", 0.0),
    ("process", 0.0),
    ("message", 0.0),
    ("logger", 0.0),
    ("time", 0.0),
    ("level", 0.0),
)

# The share of a text that was cut which is from its end.
_TAIL = {"exception": 0.8, "stack": 0.8}

# Bytes of JSON below which a text that was cut says nothing, and is left out.
_LEAST_TEXT = 16


def event_time(seconds: float) -> str:
    """When an event was, as a record of the log has its time."""
    return format_time(round(seconds * 1_000_000)).decode()


def encode(event: dict[str, Any], longest: int) -> bytes | None:
    """
    An event as JSON.

    What JSON does not have becomes text.  An event that is too long gets a key C{cut} with the
    number of bytes that it would have, and loses of its texts what must be lost.

    @param event: C{fields} is a dict of whatever the program gave; the other values are text or
        numbers.
    @param longest: how many bytes it may have.
    @return: L{None} if nothing of it fits.
    """
    try:
        body = _dumps(event)
    except (TypeError, ValueError, RecursionError):
        event = {
            key: _harmless_fields(value) if key == "fields" else _harmless(value)
            for key, value in event.items()
        }
        body = _dumps(event)
    return body if len(body) <= longest else _cut(event, len(body), longest)


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, _substitute, _OPTIONS)


def _substitute(value: Any) -> Any:
    """What stands for a value that JSON does not have."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, AbstractSet):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    return _text(value)


def _text(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # whatever a repr of the program's does, its event is logged
        text = object.__repr__(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _harmless_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {_text(key): _harmless(value) for key, value in fields.items()}


def _harmless(value: Any) -> Any:
    """A value if it can be encoded, or else text."""
    try:
        return orjson.Fragment(_dumps(value))
    except (TypeError, ValueError, RecursionError):
        return _text(value)


# --- cutting -----------------------------------------------------------------------------------


def _cut(event: dict[str, Any], full: int, longest: int) -> bytes | None:
    event = {**event, "cut": full}
    body = _dumps(event)
    for key, share in _CUTS:
        if len(body) <= longest:
            return body
        if key in event:
            _cut_key(event, key, len(body) - longest, int(longest * share))
            body = _dumps(event)
    return body if len(body) <= longest else None


def _cut_key(event: dict[str, Any], key: str, excess: int, least: int) -> None:
    """Make one value shorter by so many bytes, but not shorter than C{least}."""
    value = event[key]
    if isinstance(value, dict):
        event[key] = value = dict(value)
        for size, name in sorted(((_size(v), k) for k, v in value.items()), reverse=True):
            if excess <= 0:
                break
            del value[name]
            excess -= size
        if not value:
            del event[key]
        return
    if isinstance(value, orjson.Fragment):
        value = orjson.loads(_dumps(value))
    target = max(_size(value) - excess, least)
    if isinstance(value, str) and (target >= _LEAST_TEXT or key == "message"):
        event[key] = _shortened(value, target, _TAIL.get(key, 0.0))
    else:
        del event[key]


def _size(value: Any) -> int:
    return len(_dumps(value))


def _shortened(text: str, size: int, tail: float) -> str:
    """The most of a text whose JSON has so many bytes, with C{…} for what is left out."""
    if _size(text) <= size:
        return text
    least, most = 0, max(min(len(text) - 1, size), 0)
    while least < most:
        kept = (least + most + 1) // 2
        if _size(_without_middle(text, kept, tail)) <= size:
            least = kept
        else:
            most = kept - 1
    return _without_middle(text, least, tail) if least else ""


def _without_middle(text: str, kept: int, tail: float) -> str:
    end = int(kept * tail)
    return f"{text[: kept - end]}…{text[len(text) - end :]}"
