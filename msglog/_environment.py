"""
Options from the environment: C{MSGLOG_MAX_CONNECTIONS=500} is C{--max-connections 500}.

What the command line says comes first.  An error names what the operator wrote: the variable, if
the value is from there.
"""

from __future__ import annotations

import difflib
import getopt
import os
import sys
from collections.abc import Mapping, Sequence

from twisted.python import usage

__all__ = ["EnvironmentOptions"]

_PREFIX = "MSGLOG_"

# How like an option's a name is that can only be a typing error.  (Other programs have variables of
# this prefix, as the msglog command has.)
_ALIKE = 0.8

_YES, _NO = frozenset({"yes", "true", "1"}), frozenset({"no", "false", "0"})


class EnvironmentOptions(usage.Options):
    """
    Options of which each may be given by an environment variable instead.

    @cvar repeatable: names of the options that may be given more than once; in their variables,
        white space stands between the values.
    @ivar on_command_line: the options that are not from the environment, nor defaults.
    """

    repeatable: Sequence[str] = ()
    on_command_line: frozenset[str] = frozenset()

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Take a command line, and the environment for what it does not say.

        @raise usage.UsageError: an option or a variable is wrong.
        """
        words = list(sys.argv[1:] if options is None else options)
        try:
            given, _ = getopt.getopt(words, self.shortOpt, self.longOpt)
        except getopt.error:
            given = []  # which the real parser says
        named = {name.lstrip("-") for name, _ in given}
        self.on_command_line = frozenset(named)
        variables: dict[str, str] = {}
        if not named & {"help", "version"}:
            variables = self._variables(os.environ)
        from_environment: list[str] = []
        for option, variable in variables.items():
            if option not in named:
                from_environment += self._words(option, variable, os.environ[variable])
        try:
            super().parseOptions([*from_environment, *words])
        except usage.UsageError as e:
            text = str(e)
            for option, variable in variables.items():
                if option not in named:
                    text = text.replace(f"--{option} ", f"{variable} ")
            raise usage.UsageError(text) from None

    def _variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Which options have a variable that is set to something."""
        known = {name.rstrip("=") for name in self.longOpt} - {"help", "version"}
        variables = {}
        for variable in sorted(environ):
            if not variable.startswith(_PREFIX) or not environ[variable]:
                continue
            option = variable.removeprefix(_PREFIX).lower().replace("_", "-")
            if option in known:
                variables[option] = variable
            elif close := difflib.get_close_matches(option, known, 1, _ALIKE):
                raise usage.UsageError(
                    f"{variable}: there is no option --{option}; do you mean "
                    f"{variable_of(close[0])}?"
                )
        return variables

    def _words(self, option: str, variable: str, value: str) -> list[str]:
        """What stands on a command line that says the same."""
        if f"{option}=" in self.longOpt:
            values = value.split() if option in self.repeatable else [value]
            return [f"--{option}={one}" for one in values]
        if value.lower() in _YES:
            return [f"--{option}"]
        if value.lower() in _NO:
            return []
        raise usage.UsageError(f"{variable} {value}: 'yes' or 'no'")


def variable_of(option: str) -> str:
    """The variable of an option."""
    return _PREFIX + option.upper().replace("-", "_")
