"""One line of a check-up."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Check:
    """What was looked at and what was found: ok, worth knowing (``note``), or wrong; then with what to do."""

    what: str
    level: Level
    finding: str


def ok(what: str, finding: str) -> Check:
    """All is as it should be."""
    return Check(what, "ok", finding)


def noted(what: str, finding: str) -> Check:
    """It works, but somebody should know."""
    return Check(what, "note", finding)


def wrong(what: str, finding: str) -> Check:
    """It does not work."""
    return Check(what, "wrong", finding)
