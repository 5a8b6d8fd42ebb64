"""docs/cli.md is what the commands say of themselves."""

from pathlib import Path

from rollcall.reference import document

REFERENCE = Path(__file__).parent.parent / "docs" / "cli.md"


def test_the_reference_of_commands_is_current() -> None:
    assert REFERENCE.read_text() == document(), "run: .venv/bin/python -m rollcall.reference docs/cli.md"
