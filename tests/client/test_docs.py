"""The documents' code runs as it stands there, but for where Kafka is."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from functools import partial
from pathlib import Path
from types import CodeType, SimpleNamespace

import pytest
import rollcall_client
from rollcall_client import sync

from tests.harness.product import Product

ROOT = Path(__file__).parents[2]
BLOCKS = [
    pytest.param(textwrap.dedent(block), id=f"{page.stem}-{number}")
    for page in (ROOT / "docs" / "client.md", ROOT / "client" / "README.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1)
]


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("block", BLOCKS)
async def test_a_block_of_the_documents_runs(product: Product, rc: rollcall_client.Rollcall, block: str) -> None:
    settings = product.settings
    here = settings.bootstrap_servers
    in_place = block.replace('"localhost:9092"', f'"{here}", topic_prefix="{settings.topic_prefix}"')
    in_place = in_place.replace("from rollcall_client import Rollcall\n", "")
    batch = await rc.open(total_items=0)
    await batch.wait(timeout=60)
    names = {"rc": rc, "Rollcall": rollcall_client.Rollcall, "__name__": "docs"}
    names["rollcall_client"] = SimpleNamespace(sync=sync)
    code: CodeType = compile(in_place, "docs", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        await asyncio.wait_for(eval(code, names), 120)
    else:
        await asyncio.wait_for(asyncio.to_thread(partial(exec, code, names)), 120)
