"""The documents' code runs as it stands there, but for where Kafka is."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
import textwrap
from pathlib import Path

import pytest
from rollcall_client import Rollcall
from rollcall_client.jobs.command import _parser

from tests.client.test_reruns import environment
from tests.harness.product import Product

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "client.md", ROOT / "client" / "README.md", ROOT / "README.md"]


def blocks(language: str) -> list[tuple[str, str]]:
    """Name and text of each block of code."""
    return [
        (f"{page.parent.name}-{page.stem}-{number}", textwrap.dedent(block))
        for page in PAGES
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL), 1)
    ]


PROGRAMS = [pytest.param(block, id=name) for name, block in blocks("python")]


def test_no_page_with_python_is_left_out() -> None:
    pages = [ROOT / "README.md", *(ROOT / "client").glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert {page for page in pages if "```python" in page.read_text()} == set(PAGES)
    assert len(PROGRAMS) >= 6


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_program_of_the_documents_runs(product: Product, rc: Rollcall, tmp_path: Path, program: str) -> None:
    settings = product.settings
    # Listeners find something.
    batch = await rc.open(total_items=0)
    await batch.wait(timeout=60)
    ours = program.replace("localhost:9092", settings.bootstrap_servers)
    ours = re.sub(r"(\bRollcall\([^)]+)\)", rf'\1, topic_prefix="{settings.topic_prefix}")', ours)
    ours = ours.replace('"rollcall.events"', f'"{product.topics.events}"')
    (tmp_path / "program.py").write_text(ours)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "program.py"),
        cwd=tmp_path,
        env=environment(product),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, stderr.decode()
    if "import-42" in program:
        event = await rc.wait("import-42", timeout=60)
        assert (event.outcome, event.failed_item_ids) == ("completed_with_errors", ["b"])


def test_the_documents_commands_are_ones_that_rollcall_job_takes() -> None:
    lines = [line for _, block in blocks("sh") for line in block.splitlines() if line.startswith("rollcall-job")]
    assert len(lines) >= 3
    for line in lines:
        assert _parser().parse_args(shlex.split(line, comments=True)[1:]).command in ("run", "listen")
