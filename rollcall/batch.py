"""`rollcall batch ...`: all its commands."""

import typer

from rollcall import batch_actions, batch_commands

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Ask about batches (status, items, who is missing and why), and end, reopen or retry them.",
    epilog='With --json every command prints one JSON object; "next", where not null, is what --after takes.',
)
app.add_typer(batch_commands.app)
app.add_typer(batch_actions.app)
