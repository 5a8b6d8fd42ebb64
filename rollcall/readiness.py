"""How a role tells the process that started it: ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

READY_FILE = "ROLLCALL_READY_FILE"


def announce() -> None:
    """Say that this process is ready, once; does nothing where nobody asks (any more)."""
    if name := os.environ.pop(READY_FILE, None):
        # Who asked has long got an answer where this is not the first start: then the file's folder is gone.
        with contextlib.suppress(FileNotFoundError):
            Path(name).write_text(f"{os.getpid()}\n")


async def announced(ready_file: Path) -> None:
    """Wait until the process that was given this file has announced itself."""
    while not ready_file.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.05)
