"""The command line. Every command imports what it needs when it runs, so that `rollcall --help` is quick."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core
import typer.main
from typer.exceptions import TyperException

if TYPE_CHECKING:
    from rollcall.settings import Settings

FAILED = 1
WRONG_USE = 2

# Commands that live in modules of their own: name -> module that holds the Typer application `app`.
_SUB_COMMANDS = {
    "api-key": "rollcall.key_commands",
    "batch": "rollcall.batch",
    "dead-letters": "rollcall.dead_letter_commands",
    "doctor": "rollcall.doctor",
    "promote": "rollcall.promote_commands",
    "prune": "rollcall.prune_commands",
    "publish": "rollcall.publish",
    "replay": "rollcall.replay_commands",
    "tail": "rollcall.tail",
    "verify": "rollcall.verify_commands",
}


class _Commands(typer.core.TyperGroup):
    """The commands of this module and, imported when asked for, those of `_SUB_COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands."""
        present = [name for name, module in _SUB_COMMANDS.items() if importlib.util.find_spec(module)]
        return [*super().list_commands(ctx), *present]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None where there is none."""
        module = _SUB_COMMANDS.get(cmd_name)
        if module is None:
            return super().get_command(ctx, cmd_name)
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tells you when a batch is done, exactly once, and who did not answer.",
)

Workers = Annotated[int, typer.Option(min=1, max=64, help="Worker processes; each takes its share of the partitions.")]


def main() -> NoReturn:
    """Entry point: exit code 0, 1 (it failed) or 2 (wrong use), and one line on stderr where it isn't 0."""
    try:
        code = app(prog_name="rollcall", standalone_mode=False)
    except typer.Abort:
        code = FAILED
    except Exception as error:
        if os.environ.get("ROLLCALL_LOG_LEVEL") == "debug" and not isinstance(error, TyperException):
            raise
        sys.stderr.write(f"rollcall: {_one_line(error)}\n")
        code = _exit_code(error)
    sys.exit(code or 0)


@app.callback(invoke_without_command=True)
def _rollcall(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"rollcall {installed('rollcall')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG_USE)


@app.command()
def demo(
    tamper: Annotated[
        bool, typer.Option("--tamper", help="Break a copy of a few files first, to see failures.")
    ] = False,
    workers: Workers = 2,
) -> None:
    """Check every installed Python file against its checksum: a real job, start to finish."""
    _logging(role="demo", level="warning")
    from rollcall.demo import demo as run_demo

    raise typer.Exit(run_demo(tamper=tamper, workers=workers))


@app.command()
def up(
    data_dir: Annotated[
        Path | None, typer.Option(file_okay=False, help="Keep the data here between runs; thrown away without.")
    ] = None,
    workers: Workers = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Say where everything is in one line of JSON.")] = False,
) -> None:
    """Kafka, PostgreSQL and all of Rollcall on this machine, until interrupted."""
    _logging(role="up")
    _warn_of_unknown_variables()
    from rollcall import stack
    from rollcall.interrupting import end_process

    stack.until_interrupted(stack.up(workers=workers, data_dir=data_dir, as_json=as_json))
    end_process(0)


@app.command()
def run(workers: Workers = 2) -> None:
    """All of Rollcall's processes on your own Kafka and PostgreSQL, until interrupted."""
    settings = _settings(role="run")
    from rollcall import stack
    from rollcall.interrupting import end_process

    stack.until_interrupted(stack.run(settings, workers=workers))
    end_process(0)


@app.command()
def worker(
    slot: Annotated[
        str | None,
        typer.Option(
            help="This worker's name, the same after a restart and no other's: a restart then costs no rebalance."
        ),
    ] = None,
) -> None:
    """One worker: reads results, writes them, decides when a batch is done."""
    settings = _settings(role="worker", **({"slot": slot} if slot else {}))
    from rollcall.interrupting import end_process
    from rollcall.processes import run_worker
    from rollcall.reaching import naming

    with naming(settings):
        code = run_worker(settings, slot)
    end_process(code)


@app.command()
def relay() -> None:
    """The relay: publishes what the workers decided, once."""
    settings = _settings(role="relay")
    from rollcall.interrupting import end_process
    from rollcall.processes import run_relay
    from rollcall.reaching import naming

    with naming(settings):
        code = run_relay(settings)
    end_process(code)


@app.command()
def api() -> None:
    """The HTTP API: submit, watch, act."""
    settings = _settings(role="api")
    from rollcall.interrupting import end_process
    from rollcall.processes import run_api
    from rollcall.reaching import naming

    with naming(settings):
        code = run_api(settings)
    end_process(code)


@app.command()
def clock() -> None:
    """The clock: ends batches at their deadlines, computes summaries, raises alerts about time and trims tables."""
    settings = _settings(role="clock")
    from rollcall.interrupting import end_process
    from rollcall.processes import run_clock
    from rollcall.reaching import naming

    with naming(settings):
        code = run_clock(settings)
    end_process(code)


@app.command()
def health(
    ready: Annotated[
        bool, typer.Option("--ready", help="Whether it can do its work, not just whether it lives.")
    ] = False,
) -> None:
    """Ask the process at ROLLCALL_METRICS_PORT of this host how it is; exit code 1 where it isn't well."""
    settings = _settings(role="health")
    from rollcall.probing import probe, url_of
    from rollcall.settings import SettingsError

    if not settings.metrics_port:
        raise SettingsError("ROLLCALL_METRICS_PORT is not set, so there is no telling where to ask")
    probe(url_of(settings.metrics_host, settings.metrics_port, "/readyz" if ready else "/livez"))
    typer.echo("ready" if ready else "alive")


@app.command()
def migrate() -> None:
    """Bring the database schema up to this version."""
    settings = _settings(role="migrate")
    from migrations.run import migrate as run_migrations
    from rollcall.reaching import naming

    with naming(settings, "PostgreSQL"):
        asyncio.run(run_migrations(settings.database_url, settings.database_schema))


def _settings(**context: str) -> Settings:
    from rollcall.logs import configure_logging
    from rollcall.settings import load_settings

    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format, **context)
    if context["role"] != "health":  # asked every few seconds
        _warn_of_unknown_variables()
    return settings


def _warn_of_unknown_variables() -> None:
    import structlog

    from rollcall.settings import unknown_variables

    if unknown := unknown_variables(os.environ):
        structlog.get_logger(__name__).warning(f"no such settings, ignored: {', '.join(unknown)}")


def _logging(*, role: str, level: str | None = None) -> None:
    # For commands that bring their own servers and so need no settings.
    from rollcall.logs import configure_logging
    from rollcall.settings import load_settings

    settings = load_settings(bootstrap_servers="-", database_url="postgresql+asyncpg://-")
    configure_logging(level or settings.log_level, settings.log_format, role=role)


def _one_line(error: Exception) -> str:
    if isinstance(error, TyperException):
        return _wrong_use(error)
    text = str(error).strip() or type(error).__name__
    # An embedded server's error brings the end of its log along, indented below the one line.
    first, *rest = text.splitlines()
    log_tail = [line for line in rest if line.startswith("    ")]
    return "\n".join([first, *log_tail])


def _wrong_use(error: TyperException) -> str:
    message = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "rollcall"
    return f"{message}; see `{command} --help`"


def _exit_code(error: Exception) -> int:
    from rollcall.settings import SettingsError
    from rollcall.supervisor import RoleRefusedError

    if isinstance(error, TyperException):
        return error.exit_code
    return WRONG_USE if isinstance(error, SettingsError | RoleRefusedError) else FAILED
