"""What has to clean up after itself does, whoever ends it and when."""

import asyncio
import signal
import sys
from itertools import permutations

import pytest

from rollcall.interrupting import to_its_end

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_what_cleans_up_is_not_cut_off_where_the_signal_comes_in_its_midst() -> None:
    begun, may_end, done = asyncio.Event(), asyncio.Event(), False

    async def clean_up() -> None:
        nonlocal done
        begun.set()
        await may_end.wait()
        done = True

    task = asyncio.create_task(to_its_end(clean_up()))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


CLEANS_UP_FOR_LONG = """
import asyncio, signal
from rollcall.interrupting import run

async def main():
    try:
        print("begun", flush=True)
        await asyncio.sleep(60)
    finally:
        print("cleaning up", flush=True)
        await asyncio.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
run(main())
"""


@pytest.mark.parametrize(("first", "second"), list(permutations((signal.SIGINT, signal.SIGTERM))))
async def test_a_second_signal_ends_the_cleaning_up_also_where_it_is_another(
    first: signal.Signals, second: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLEANS_UP_FOR_LONG, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    for said, signum in ((b"begun\n", first), (b"cleaning up\n", second)):
        assert await asyncio.wait_for(process.stdout.readline(), 30) == said
        process.send_signal(signum)
    assert await asyncio.wait_for(process.wait(), 30) == -second
