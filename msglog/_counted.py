"""Numbers of things, in words for people."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: int, one: str, many: str = "") -> str:
    """
    So many of something.

    @param one: what one of them is called, and what it does.
    @param many: what another number of them is called; with an C{s} more if not given.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
