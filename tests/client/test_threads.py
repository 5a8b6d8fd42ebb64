"""A process ends though a thread hangs in the handle of a job, in whatever way it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

import pytest

from tests.harness.commands import Done

HANGING = """
import signal
import sys
import time
from threading import Event, Thread
from rollcall_client.jobs import logs, threads

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with it ignored
logs.to_stderr()
threads.HUNG_AFTER_S = {patience_s}
begun = Event()

def handle(wait):
    begun.set()
    wait()

with threads.ends_without_the_hung():
    Thread(target=threads.handled, args=(handle, {handling})).start()
    begun.wait()
    {ending}
print("ended as usual")
"""


async def a_process(ending: str, handling: str = "Event().wait", patience_s: float = 0.1) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HANGING.format(ending=ending, handling=handling, patience_s=patience_s)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> Done:
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Done(process.returncode, stdout.decode(), stderr.decode())


@pytest.mark.parametrize(
    ("ending", "exit_code", "says"),
    [
        ("pass", 0, "ending without them"),
        ("sys.exit(3)", 3, "ending without them"),
        ("raise ValueError('no items')", 1, "ValueError: no items"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
        ("sys.stdout.close()", 0, "ending without them"),
    ],
)
async def test_a_process_ends_as_its_work_does_without_what_hangs(ending: str, exit_code: int, says: str) -> None:
    done = await ended(await a_process(ending))
    assert done.exit_code == exit_code
    assert says in done.stderr


async def test_what_merely_runs_is_given_time_to_end_where_the_work_was_interrupted() -> None:
    handling = "lambda: (time.sleep(0.5), print('handled', flush=True))"
    done = await ended(await a_process("raise KeyboardInterrupt", handling=handling, patience_s=30))
    assert done.stdout == "handled\n"
    assert "ending without them" not in done.stderr


async def test_the_wait_for_what_hangs_can_be_interrupted() -> None:
    process = await a_process("print('waiting', flush=True)", patience_s=600)
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 60)
    ending = asyncio.create_task(ended(process))
    while not ending.done():  # the first may come while the work still ends, and not yet be of the wait
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        await asyncio.wait({ending}, timeout=2)
    assert "ending without them" in (await ending).stderr
