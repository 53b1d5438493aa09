"""Writes docs/cli.md from the commands themselves: `python -m indexer.cli_reference > docs/cli.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

from indexer.cli import app

HEADER = """# The command line

Generated from the commands by `python -m indexer.cli_reference > docs/cli.md`; a test fails when it is stale.

`indexer --version` prints the version and the index format; `python -m indexer` is the same program.

Results go to the standard output, progress and messages to the standard error. Progress is a bar on a terminal and one
line every ten seconds anywhere else. Exit codes: 0 done (for `verify` and `check`: sound), 1 failed, damaged or
unsound, 2 wrong usage, 130 stopped by Ctrl-C.
"""


def reference() -> str:
    """Write the reference of every command.

    Returns:
        Markdown.
    """
    group: Any = get_command(app)  # click's objects, whichever click typer was built with
    return "\n".join([HEADER, *(_section(name, command) for name, command in group.commands.items())])


def _section(name: str, command: Any) -> str:
    hints = get_type_hints(command.callback)
    prose, _, example = (command.help or "").partition("Example:")
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(["indexer", name, *(_metavar(argument, hints) for argument in arguments), "[OPTIONS]"])
    lines = [f"## indexer {name}", "", " ".join(prose.split()), "", f"    {usage}", ""]
    if example:
        lines += [f"Example: `{' '.join(example.split())}`", ""]
    lines += [f"- `{_metavar(argument, hints)}`: {argument.help}" for argument in arguments]
    lines += ["", "| option | what it does | default |", "|---|---|---|"]
    lines += [_row(option, hints) for option in options]
    return "\n".join(lines) + "\n"


def _metavar(parameter: Any, hints: dict[str, Any]) -> str:
    hint = hints[parameter.name]
    kind = next((kind for kind in (int, float, Path) if kind in (hint, *get_args(hint))), str)
    return str(parameter.metavar or {int: "N", float: "X", Path: "PATH", str: "TEXT"}[kind])


def _row(option: Any, hints: dict[str, Any]) -> str:
    names = " / ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if not option.is_flag:
        names += f" {_metavar(option, hints)}"
    said = (option.help or "").replace("|", "\\|")
    return f"| {names} | {said} | {'required' if option.required else _default(option)} |"


def _default(option: Any) -> str:
    value = option.default
    if option.is_flag:
        chosen = option.opts if value else option.secondary_opts
        return f"`{chosen[0]}`" if chosen and value is not None else ""
    return "" if value in (None, (), []) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
