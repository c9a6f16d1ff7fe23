"""
The help of C{twistd msglog} in groups, each of which fits on a screen.

C{usage.Options} sorts all options into one list.  Here each has its group; one that is in none is
shown last, so that nothing is ever hidden.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any

from twisted.python import usage

__all__ = ["GroupedOptions"]


class GroupedOptions(usage.Options):
    """
    @cvar groups: each group's heading and the names of its options.
    """

    groups: Sequence[tuple[str, Sequence[str]]] = ()
    longdesc = ""
    _wrong = False

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """See C{usage.Options}."""
        try:
            super().parseOptions(options)
        except usage.UsageError:
            self._wrong = True
            raise

    def getUsage(self, width: int | None = None) -> str:
        """The help text; where an option is wrong, so that C{twistd} says that too, only a hint."""
        if self._wrong:
            return "'twistd msglog --help' lists the options.\n"
        width = width or int(os.environ.get("COLUMNS", "80"))
        left = [name.rstrip("=") for name in self.longOpt]
        parts = []
        for heading, names in self.groups:
            listed = [name for name in names if name in left]
            parts.append(self._group(heading, listed, width))
            left = [name for name in left if name not in names]
        if left:
            parts.append(self._group("Others", sorted(left), width))
        parts.append("\n".join(textwrap.wrap(self.longdesc, width)) + "\n")
        return "\n".join(parts)

    def _group(self, heading: str, names: Sequence[str], width: int) -> str:
        chunks = usage.docMakeChunks([self._described(name) for name in names], width)
        return f"{heading}:\n{''.join(chunks)}"

    def _described(self, name: str) -> dict[str, Any]:
        return {
            "long": name,
            "short": None,
            "doc": self.docs[name],
            "optType": "parameter" if f"{name}=" in self.longOpt else "flag",
            "default": self.defaults.get(name),
        }
