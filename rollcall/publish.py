"""`rollcall publish FILE|-`: events as lines of JSON onto the stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def publish(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|-",
            help="A file of events, one JSON object a line; - is stdin.",
            callback=lambda file: _existing(file),
            show_default=False,
        ),
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Only check every line; needs neither Kafka nor PostgreSQL.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Publish the good lines although others are bad.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")] = False,
) -> None:
    """Publish events to the stream: a file's only once all its lines are good, stdin's as they come.

    Every line is checked as it will be when it is read; a bad one is named with its field, and makes the exit code 1.
    Publishing the same lines again does no harm. As JSON: {"good", "bad", "published", "problems": [{"line", "reason",
    "message"}]}.
    """
    from rollcall.event_lines import check_only, publish_all
    from rollcall.logs import configure_logging
    from rollcall.settings import load_settings

    if check:
        configure_logging("warning", role="publish")
        bad = check_only(file, as_json=as_json)
    else:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format, role="publish")
        bad = publish_all(file, settings, skip_bad=skip_bad, as_json=as_json)
    if bad:
        raise typer.Exit(1)


def _existing(file: Path) -> Path:
    if str(file) != "-" and not file.exists():
        raise typer.BadParameter(f"there is no file {file}")
    if file.is_dir():
        raise typer.BadParameter(f"{file} is a directory")
    return file
