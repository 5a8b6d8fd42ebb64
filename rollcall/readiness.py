"""How a role tells the process that started it: ready."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

READY_FILE = "ROLLCALL_READY_FILE"


def announce() -> None:
    """Say that this process is ready; does nothing where nobody asked (no `ROLLCALL_READY_FILE`)."""
    if name := os.environ.get(READY_FILE):
        Path(name).write_text(f"{os.getpid()}\n")


async def announced(ready_file: Path) -> None:
    """Wait until the process that was given this file has announced itself."""
    while not ready_file.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.05)
