"""Writes docs/cli.md from the commands themselves: ``python -m rollcall.reference docs/cli.md``."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main

from rollcall.cli import app

_HEAD = """\
# Commands

Written by `python -m rollcall.reference docs/cli.md`; a test holds that it is current.

What to reach and how is set in the environment ([README](../README.md), settings). Answers go to stdout, remarks to
stderr; where a command takes `--json`, it prints one JSON object. Exit codes: 0, 1 (it went wrong, or the answer is no)
and 2 (wrong use). What goes wrong is one line on stderr that says what to do.

Every change to a batch (`batch cancel`, `abort`, `finalize`, `reopen`, `retry`) is a record on the stream like those of
the upstream services: it is applied in its turn, kept in the log, and found again by a replay.
"""


def document() -> str:
    """The reference as Markdown."""
    group: Any = typer.main.get_command(app)
    lines = [_HEAD]
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if (commands := getattr(command, "commands", None)) is None:
            lines += _command(f"rollcall {name}", command)
        else:
            for each, sub_command in commands.items():
                lines += _command(f"rollcall {name} {each}", sub_command)
    return "\n".join(lines)


def _command(path: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if not _is_option(each)]
    options = [each for each in command.params if _is_option(each) and not each.hidden]
    usage = " ".join([path, *(_argument(each) for each in arguments), *(["[OPTIONS]"] if options else [])])
    yield f"## {usage}\n"
    yield f"{command.help.strip()}\n"
    if arguments or options:
        yield "| | |\n|---|---|"
        for each in [*arguments, *options]:
            name = ", ".join(f"`{each}`" for each in _names(each))
            yield f"| {name} | {_described(each)} |"
        yield ""


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _argument(parameter: Any) -> str:
    shown = parameter.metavar or parameter.name.upper()
    return shown if parameter.required else f"[{shown}]"


def _names(parameter: Any) -> list[str]:
    if not _is_option(parameter):
        return [_argument(parameter)]
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    return [f"{name}{value}" for name in (*parameter.opts, *parameter.secondary_opts)]


def _described(parameter: Any) -> str:
    text = [" ".join((parameter.help or "").split())]
    if choices := _choices(parameter.type_descriptor.annotation):
        text.append(f"One of {', '.join(f'`{choice}`' for choice in choices)}.")
    if parameter.required:
        text.append("Required." if _is_option(parameter) else "")
    elif parameter.show_default and parameter.default not in (None, False, ()):
        text.append("The default." if parameter.is_flag else f"Default: `{parameter.default}`.")
    return " ".join(filter(None, text)).replace("|", "\\|")


def _choices(annotation: Any) -> tuple[str, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
