"""`rollcall-job listen`: runs and retries that are asked for over HTTP are taken up, and come to their end."""

from __future__ import annotations

import asyncio
import sysconfig
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from rollcall_client import Rollcall

from tests.client.test_reruns import done_items, environment
from tests.harness.product import Product

ROLLCALL_JOB = str(Path(sysconfig.get_path("scripts")) / "rollcall-job")


@asynccontextmanager
async def listening(product: Product, api_url: str, log: Path, group: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(ROLLCALL_JOB, "listen", "tests.client.sample_jobs", "--group", group),
        env={**environment(product, api_url), "RECORDED_LOG": str(log)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_a_requested_run_and_a_requested_retry_are_taken_up(
    asking: Rollcall, product: Product, api_url: str, tmp_path: Path
) -> None:
    log, group = tmp_path / "log", f"listeners-{uuid.uuid4().hex[:6]}"
    params = {"count": "30", "log": str(log), "fail": "0003,0004"}
    async with httpx.AsyncClient(base_url=f"{api_url}/api", timeout=30) as http:
        asked = await http.post("/jobs/recorded/runs", json={"params": params})
        assert asked.status_code == 202, asked.text
        assert (await http.post("/jobs/somebody-elses/runs")).status_code == 202
        async with listening(product, api_url, log, group):
            event = await asking.wait(asked.json()["run_id"], timeout=90)
            assert (event.outcome, event.failed_item_ids) == ("completed_with_errors", ["0003", "0004"])
            assert event.metadata is not None
            assert event.metadata["job"] == "recorded"
            runs = (await http.get("/jobs/recorded/runs")).json()["runs"]
            assert event.batch_id in [each["batch_id"] for each in runs]
        retried = await http.post(f"/batches/{event.batch_id}/retry", json={})
        assert retried.status_code in (201, 202), retried.text
        # Another listener of the group: the run is not done again, the retry is.
        async with listening(product, api_url, log, group):
            again = await asking.wait(retried.json()["batch_id"], timeout=90)
    assert (again.outcome, again.item_counts.succeeded, again.retry_of) == ("completed", 2, event.batch_id)
    assert set(done_items(log).values()) == {1}
    assert len(done_items(log)) == 30
