"""Choices that bytes make: so that what is fuzzed is reached behind its checksums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Choices", "mutated", "pieces"]

_T = TypeVar("_T")


class Choices:
    """
    @param data: what decides; behind its end every number is 0.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def number(self, below: int) -> int:
        """A number from 0 on."""
        size = max((below - 1).bit_length() + 7, 8) // 8
        return int.from_bytes(self.take(size), "big") % below

    def one_of(self, things: Sequence[_T]) -> _T:
        return things[self.number(len(things))]

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def some(self, most: int) -> bytes:
        """Some bytes."""
        return self.take(self.number(most + 1))

    def rest(self) -> bytes:
        return self.take(len(self._data))


def mutated(choices: Choices, data: bytes) -> bytes:
    """Data with up to seven changes."""
    changed = bytearray(data)
    for _ in range(choices.number(8)):
        at = choices.number(len(changed) + 1)
        what = choices.number(5)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << choices.number(8)
        elif what == 1:
            changed[at : at + choices.number(64)] = choices.some(16)
        elif what == 2:
            del changed[at:]
        elif what == 3:
            changed[at:at] = changed[: choices.number(300)]
        elif what == 4:
            length = choices.number(600)
            changed[at : at + length] = bytes(min(length, len(changed) - at))
    return bytes(changed)


def pieces(choices: Choices, data: bytes) -> list[bytes]:
    """Data cut somewhere."""
    cuts = sorted(choices.number(len(data) + 1) for _ in range(choices.number(6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
