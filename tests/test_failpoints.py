"""Failpoints: a process kills itself where it was told to, and a name that is none is refused."""

import os
import signal
import subprocess
import sys

import pytest

from store.failpoints import RELAY, VARIABLE, WORKER, UnknownFailpointError, armed

REACH = "from store.failpoints import reach; {}; print('alive')"


def run(setting: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REACH.format(code)],
        env={**os.environ, VARIABLE: setting},
        capture_output=True,
        text=True,
    )


def test_a_process_kills_itself_at_its_failpoint() -> None:
    assert run("cas.after", "reach('cas.before'); reach('cas.after')").returncode == -signal.SIGKILL


def test_with_a_number_it_kills_itself_when_it_gets_there_for_that_time() -> None:
    assert run("send.after:3", "reach('send.after'); reach('send.after')").stdout == "alive\n"
    assert run("send.after:3", "reach('send.after'); " * 3 + "0").returncode == -signal.SIGKILL


def test_where_it_is_to_stop_it_goes_on_when_it_is_told_to() -> None:
    stopped = subprocess.Popen(
        [sys.executable, "-c", REACH.format("reach('cas.after')")],
        env={**os.environ, VARIABLE: "cas.after:1:stop"},
        stdout=subprocess.PIPE,
        text=True,
    )
    _, status = os.waitpid(stopped.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    stopped.send_signal(signal.SIGCONT)
    assert stopped.communicate()[0] == "alive\n"


@pytest.mark.parametrize("setting", ["cas.during", "cas", "cas.after:0", "cas.after:x", "cas.after:1:pause", ":1"])
def test_what_is_no_failpoint_is_refused(setting: str) -> None:
    with pytest.raises(UnknownFailpointError, match="is no failpoint"):
        armed(setting)


def test_a_role_with_an_unknown_failpoint_ends_with_code_2_and_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "rollcall", "worker"],
        env={
            **os.environ,
            VARIABLE: "cas.during",
            "ROLLCALL_BOOTSTRAP_SERVERS": "127.0.0.1:1",
            "ROLLCALL_DATABASE_URL": "postgresql+asyncpg://nobody@127.0.0.1:1/none",
        },
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "cas.during is no failpoint" in ended.stderr


def test_all_names_can_be_told_apart() -> None:
    assert len(set(WORKER + RELAY)) == len(WORKER) + len(RELAY) == 23
