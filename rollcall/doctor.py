"""`rollcall doctor`: looks at everything an installation stands on, and says what is wrong and what to do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rollcall.checkup.check import Check

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help='Print one JSON object: {"ok", "checks": [{"what", "level", "finding"}]}.')
    ] = False,
) -> None:
    """Check topics, permissions, schema, positions and processes; change nothing.

    Each line is ok, a note, or wrong, and then says what to do. Exit code 1 where anything is wrong.
    """
    from dataclasses import asdict

    from rollcall.checkup.everything import everything
    from rollcall.logs import configure_logging
    from rollcall.rendering import note, print_json
    from rollcall.settings import load_settings

    settings = load_settings()
    configure_logging("error", settings.log_format, role="doctor")
    checks = asyncio.run(everything(settings))
    wrong = sum(check.level == "wrong" for check in checks)
    if as_json:
        print_json({"ok": not wrong, "checks": [asdict(check) for check in checks]})
    else:
        _show(checks)
        note("nothing is wrong" if not wrong else f"wrong: {wrong}")
    if wrong:
        raise typer.Exit(1)


def _show(checks: list[Check]) -> None:
    from rollcall.rendering import ColumnStyle, print_table

    print_table(
        [ColumnStyle(""), ColumnStyle("what", "folded"), ColumnStyle("finding", "folded")],
        [(check.level, check.what, check.finding) for check in checks],
    )
