"""C{python -m benchmarks}: the commands, each imported when it is asked for."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

try:
    import click
except ImportError:
    sys.exit("python -m benchmarks needs more than the server: pip install -e '.[test]'")

# By name, in the order in which a person meets them: the module.
_COMMANDS = {
    "all": "_all",
    "compare": "_compare",
    "latency": "_latency",
    "growth": "_growth",
    "generator": "_generator",
    "cost": "_cost",
    "page": "_page",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"benchmarks.{_COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def _benchmarks() -> Any:
    """Measure msglog on this machine: beside other systems, as it grows, and what it costs."""


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command, and end the process with its status."""
    # So that what was started is ended, whoever ends this: also where Ctrl-C was ignored before, as
    # in a shell's background, and by what asks processes to end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end)
    try:
        status = _benchmarks.main(prog_name="python -m benchmarks", standalone_mode=False)
    except click.exceptions.Abort:
        status = 130
    except click.ClickException as e:
        e.show()
        status = e.exit_code
    sys.exit(status)


if __name__ == "__main__":
    main()
