"""The tables of docs/commands.md: every command and option, with the help that the command itself prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from briton.cli import app
from tools.docs.sections import table


def sections() -> dict[str, str]:
    """The commands in their order, each with its options."""
    return {"commands": "\n".join(_commands(typer.main.get_command(app), "briton"))}


def _commands(command: Any, path: str) -> Iterator[str]:
    """typer has brought click along under different names: what is used here both have."""
    children: dict[str, Any] = getattr(command, "commands", {})
    rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows:
        yield f"### `{path}`\n\n{_help(command)}\n\n{table(('option', 'what it is'), rows)}"
    for name, child in children.items():
        yield from _commands(child, f"{path} {name}")


def _help(command: Any) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in str(command.help or "").split("\n\n"))


def _row(parameter: Any) -> tuple[str, str]:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`", str(parameter.help or "")
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    has_default = isinstance(parameter.default, (str, int, Path)) and not parameter.is_flag
    note = " Required." if parameter.required else f" Default: `{parameter.default}`." if has_default else ""
    return f"`{', '.join(parameter.opts)}{value}`", f"{parameter.help or ''}{note}"
