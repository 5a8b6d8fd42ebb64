"""The supervisor: what dies comes back, what is stopped stays away, and nothing outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from rollcall.children import Child, describe_exit, outlived_by_nobody
from rollcall.supervisor import Role, RoleRefusedError, Supervisor, restart_delay_s
from tests.harness.waiting import eventually

ROOT = Path(__file__).parents[1]
SLEEPING = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def python(program: str, name: str = "worker") -> Role:
    return Role(name, [sys.executable, "-c", program], dict(os.environ))


async def test_a_killed_role_is_started_again_and_its_death_is_one_log_line() -> None:
    async with Supervisor() as supervisor:
        role = python(SLEEPING)
        await supervisor.keep(role)
        assert role.child is not None
        first = role.child.pid
        with capture_logs() as lines:
            os.kill(first, signal.SIGKILL)
            await eventually(lambda: supervisor.processes() and supervisor.processes()[0]["pid"] != first)
    assert [line["event"] for line in lines] == [f"worker (pid {first}) died: signal SIGKILL"]


async def test_a_role_that_keeps_dying_is_started_ever_more_rarely(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    program = f"open({str(starts)!r}, 'a').write('x'); raise SystemExit(1)"
    with capture_logs() as lines:
        async with Supervisor() as supervisor:
            await supervisor.keep(python(program))
            await eventually(lambda: starts.exists() and len(starts.read_text()) >= 4)
    delays = [line["restart_in_s"] for line in lines]
    assert delays[:3] == [0.1, 0.2, 0.4]


def test_the_delay_before_a_restart_doubles_up_to_thirty_seconds() -> None:
    assert [restart_delay_s(failures) for failures in (1, 2, 3, 9, 10, 1_000_000)] == [0.1, 0.2, 0.4, 25.6, 30, 30]


async def test_leaving_the_supervisor_stops_everything_and_starts_nothing_again() -> None:
    async with Supervisor() as supervisor:
        for name in ("relay", "worker", "worker"):
            await supervisor.keep(python(SLEEPING, name))
        running = supervisor.processes()
        assert [process["role"] for process in running] == ["relay", "worker", "worker"]
    assert not any(psutil.pid_exists(int(process["pid"])) for process in running)
    assert supervisor.processes() == []


async def test_a_role_that_says_it_cannot_run_at_all_ends_the_wait_for_readiness() -> None:
    async with Supervisor() as supervisor:
        await supervisor.keep(python("raise SystemExit(2)"))
        with pytest.raises(RoleRefusedError, match="worker cannot run"):
            await supervisor.unless_refused(asyncio.Event().wait())


async def test_a_role_deaf_to_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = await Child.spawn([sys.executable, "-c", DEAF], name="deaf", log=log)
    await eventually(lambda: log.exists() and "deaf" in log.read_text())
    assert await child.stop(0.2) == -signal.SIGKILL


async def test_an_interrupted_stop_leaves_no_child_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = await Child.spawn([sys.executable, "-c", DEAF], name="deaf", log=log)
    await eventually(lambda: log.exists() and "deaf" in log.read_text())
    stopping = asyncio.create_task(child.stop(600))
    await asyncio.sleep(0)
    stopping.cancel()
    assert await child.wait() == -signal.SIGKILL


async def test_children_start_only_from_the_main_thread() -> None:
    def spawn() -> None:
        asyncio.run(Child.spawn(["true"], name="true"))

    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(spawn)


@pytest.mark.parametrize("with_setpriv", [True, False])
async def test_no_role_outlives_a_killed_supervisor(with_setpriv: bool, tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import asyncio, shutil, sys
        from rollcall.supervisor import Role, Supervisor

        async def main() -> None:
            if not {with_setpriv}:
                shutil.which = lambda name: None
            async with Supervisor() as supervisor:
                await supervisor.keep(Role("worker", [sys.executable, "-c", {SLEEPING!r}], {{}}))
                print(supervisor.processes()[0]["pid"], flush=True)
                await asyncio.sleep(600)

        asyncio.run(main())
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", program), stdout=subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    role = psutil.Process(int(await asyncio.wait_for(parent.stdout.readline(), 30)))
    await eventually(lambda: role.cmdline() == [sys.executable, "-c", SLEEPING])
    parent.kill()
    await parent.wait()
    await eventually(lambda: not role.is_running() or role.status() == psutil.STATUS_ZOMBIE)


def test_the_command_line_ends_with_the_programs_own() -> None:
    command = outlived_by_nobody(["prog", "--option"], death_signal=signal.SIGINT, unprivileged=False)
    assert command[-2:] == ["prog", "--option"]


def test_an_exit_is_described_by_its_code_or_its_signal() -> None:
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-signal.SIGTERM) == "signal SIGTERM"


async def test_a_condition_that_never_holds_fails_with_what_was_seen() -> None:
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"seven: not true within 0.1 s; it last returned 0"):
        await eventually(lambda: 0, 0.1, message="seven")
    assert time.monotonic() - started < 5
