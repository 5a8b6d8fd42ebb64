"""What has to clean up after itself does, whoever ends it and when."""

import asyncio

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
