"""The command line as a test runs it: a process of its own, given nothing of ours but the settings."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path

from rollcall.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str


def environment(settings: Settings) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return {**inherited, "PYTHONPATH": str(ROOT), **settings.environment()}


def argv(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "rollcall", *arguments]


async def start(settings: Settings, *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(*argv(*arguments), stdout=PIPE, stderr=PIPE, env=environment(settings))


async def rollcall(settings: Settings, *arguments: str, timeout_s: float = 60) -> Done:
    """Run a command to its end, its output piped."""
    process = await start(settings, *arguments)
    stdout, stderr = await asyncio.wait_for(process.communicate(), timeout_s)
    assert process.returncode is not None
    return Done(process.returncode, stdout.decode(), stderr.decode())


async def replay_and_promote(settings: Settings, schema: str, *options: str) -> Done:
    """Replay into a schema and promote that, with these options; returns how the promotion ended. Asserts both do."""
    for arguments in (("replay", "--into", schema), ("promote", schema, "--yes", *options)):
        done = await rollcall(settings, *arguments, timeout_s=180)
        assert done.exit_code == 0, done.stderr
    return done
