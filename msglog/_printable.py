"""Text of strangers, for logs and terminals."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """Text without what could steer a terminal: each such character as an escape, C{\\x1b}."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
