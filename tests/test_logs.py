"""What reaches the one stream of log lines."""

import logging

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, GroupCoordinatorNotAvailableError

from rollcall.logs import configure_logging


def test_a_coordinator_that_is_waited_for_is_no_error_and_one_that_refuses_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, log = logging.getLogger(), logging.getLogger("aiokafka.consumer.group_coordinator")
    monkeypatch.setattr(root, "handlers", root.handlers)
    monkeypatch.setattr(log, "filters", [])
    level = root.level
    try:
        configure_logging()
        log.error("Group Coordinator Request failed: %s", GroupCoordinatorNotAvailableError())
        log.error("Group Coordinator Request failed: %s", GroupAuthorizationFailedError("rollcall.workers"))
    finally:
        root.setLevel(level)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "GroupAuthorizationFailed" in lines[0]
