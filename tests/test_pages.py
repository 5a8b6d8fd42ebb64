"""The pages: what they say without JavaScript, and in a real browser that they live."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from api.models import Batch, Lag
from api.pages import showing
from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from tests.harness.api import ServedApi, serving
from tests.harness.product import running
from tests.harness.stored import stored_rows
from tests.harness.topics import produce

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCREENSHOTS = os.environ.get("ROLLCALL_SCREENSHOTS")
EVIL = '<script>document.title = "owned"</script>'
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class _Message:
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


async def send(settings: Settings, *events: dict[str, Any]) -> None:
    messages = [_Message(event["batch_id"].encode(), json.dumps(event).encode()) for event in events]
    await produce(settings.bootstrap_servers, Topics(settings.topic_prefix).events, messages)


def results(batch_id: str, ids: Sequence[str], status: str = "succeeded", **fields: Any) -> list[dict[str, Any]]:
    return [{"batch_id": batch_id, "item_id": each, "status": status, **fields} for each in ids]


async def test_every_page_reads_without_javascript_and_text_stays_text(settings: Settings) -> None:
    settings = settings.model_copy(update={"auth": "off"})
    await migrate(settings.database_url, settings.database_schema)
    async with stored_rows(settings) as rows, serving(settings) as api:
        await rows.batch("open", name="nightly", state="processing", expected=3, matched=1, succeeded=1,
                         first_result_at=rows.start, last_result_at=rows.start)  # fmt: skip
        await rows.manifest("open", "a", "b/../c", EVIL)
        await rows.item("open", "a", "succeeded")
        await rows.finalized("bad", name=EVIL, outcome="failed", total_items=1, failed=1, last_result_at=rows.start)
        await rows.item("bad", "i", "failed", error_message=EVIL, stack_trace=EVIL, output=json.dumps({"x": EVIL}))
        pages = {
            "/": ["open", "bad", "nightly", "1 succeeded, 2 missing"],
            "/?status=failed": ["bad"],
            "/?name=nightly": ["open"],
            "/batches/open": ["b/../c", "2 items have not answered", "processing", "Why isn"],
            "/batches/bad": ["All 1 failed", "Retry 1 items", "Timeline"],
            "/batches/bad/items?status=failed": ["/batches/bad/item?id=i"],
            "/batches/open/items?first=a&last=b/../c": ["missing", "b/../c"],
            "/batches/bad/item?id=i": ["failed", "partition 3, offset 0"],
            "/batches/open/item?id=b%2F..%2Fc": ["missing", "b/../c"],
            "/jobs": ["nightly"],
            "/system": ["Workers", "murmur2_random"],
        }
        for address, told in pages.items():
            answer = await api.client.get(address)
            assert answer.status_code == 200, f"{address}: {answer.text}"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert EVIL not in answer.text, address
            assert [each for each in told if each not in answer.text] == [], address
            assert not re.search(r"(?i)\son\w+=|style=|https?://(?!127\.0\.0\.1)", answer.text), "CSP would stop it"
        answer = await api.client.get("/batches/open/missing.csv")
        assert answer.text.splitlines() == ["item_id", f'"{EVIL}"'.replace('"owned"', '""owned""'), "b/../c"]
        assert "bad" not in re.findall(r'href="/batches/(\w+)"', (await api.client.get("/?name=nightly")).text)
        for address, status in {"/batches/none": 404, "/?status=odd": 422, "/?cursor=none": 404}.items():
            answer = await api.client.get(address)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")


async def test_whoever_is_not_signed_in_is_asked_to_and_led_back_here_only(settings: Settings) -> None:
    await migrate(settings.database_url, settings.database_schema)
    async with serving(settings.model_copy(update={"auth": "on"})) as api:
        answer = await api.client.get("/batches/x?find=y")
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2Fbatches%2Fx%3Ffind%3Dy")
        assert 'value="/batches/x?find=y"' in (await api.client.get(answer.headers["location"])).text
        for elsewhere in ("https://evil.example/", "//evil.example", "/\\evil.example"):
            text = (await api.client.get("/sign-in", params={"next": elsewhere})).text
            assert 'name="next" value="/"' in text
        refused = await api.client.post("/sign-in", data={"key": "rollcall_wrong", "next": "/"})
        assert refused.status_code == 401
        assert "not known" in refused.text


def _batch(**changes: Any) -> Batch:
    fields: dict[str, Any] = dict.fromkeys(Batch.model_fields)
    counts = ("revision generation answered succeeded partial failed skipped retrying missing unexpected created"
              " updated unchanged duplicates late")  # fmt: skip
    fields |= dict.fromkeys(counts.split(), 0)
    fields |= {"batch_id": "b", "status": "processing", "state": "processing", "sealed": True, "total": 100}
    fields |= {
        "first_result_at": NOW - timedelta(seconds=50),
        "last_result_at": NOW,
        "lag": Lag(records=0, lagging=False),
    }
    return Batch(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answered": 50, "missing": 50}, "about 50 s"),
        ({"answered": 50, "missing": 50, "lag": Lag(records=7, lagging=True)}, "lagging: 7 records"),
        ({"answered": 50, "missing": 50, "last_result_at": NOW - timedelta(minutes=5)}, "stalled: no result for 5 min"),
        ({"answered": 1, "missing": 99, "first_result_at": NOW}, "too early to say"),
        ({"first_result_at": None, "last_result_at": None}, "waiting for a first result"),
        ({"answered": 5, "sealed": False, "total": None}, "not sealed"),
        ({"answered": 100, "outcome": "completed", "finalized_by": "all_items_in", "status": "completed"}, ""),
    ],
)
async def test_what_is_to_go_is_said_in_words_where_no_number_would_be_true(changes: dict[str, Any], said: str) -> None:
    found = showing.eta(_batch(**changes), NOW)
    assert found.startswith(said)
    assert bool(found) == bool(said)


async def test_a_bar_is_in_proportion() -> None:
    parts = showing.segments(_batch(succeeded=50, partial=25, failed=15, missing=10))
    assert [(part.status, part.x, part.width) for part in parts] == [
        ("succeeded", 0, 500),
        ("partial", 500, 250),
        ("failed", 750, 150),
        ("missing", 900, 100),
    ]
    assert showing.segments(_batch()) == []


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        why = "no Chromium was found (Debian: apt install chromium): the pages are not tested in a browser"
        if os.environ.get("ROLLCALL_REQUIRE_BROWSER") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return found


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    program = chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


async def open_page(browser: Browser, url: str, **options: Any) -> tuple[Page, list[str]]:
    """A page, and what goes wrong in it."""
    page = await browser.new_page(**options)
    page.set_default_timeout(60_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    await page.goto(url)
    return page, problems


async def test_a_batch_is_followed_in_a_browser_to_its_end_and_retried(settings: Settings) -> None:
    expect.set_options(timeout=60_000)
    settings = settings.model_copy(update={"auth": "off"})
    ids = [f"invoice-{number:03}" for number in range(40)]
    async with browsing() as browser, running(settings) as product, serving(settings) as api:
        body = {"batch_id": "nightly-1", "name": "nightly", "item_ids": ids}
        submitted = await api.client.post("/api/batches", json=body)
        assert submitted.status_code in (201, 202), submitted.text
        await product.settled()

        page, problems = await open_page(browser, f"{api.url}/batches/nightly-1")
        await page.evaluate("window.here = true")
        await expect(page.locator("#status")).to_have_attribute("data-status", "pending")
        await expect(page.locator("#live")).to_have_text("live")
        await expect(page.locator("#missing-ids li")).to_have_count(40)

        await send(settings, *results("nightly-1", ids[:20], duration_ms=12.5))
        await expect(page.locator("#status .badge")).to_contain_text("processing")
        await expect(page.locator("#state svg rect.succeeded")).to_have_attribute("width", "500.0")
        await expect(page.locator("#missing-ids li")).to_have_count(20)

        failed = results("nightly-1", ids[36:], "failed", error={"code": "E_TAX", "message": EVIL})
        failed[0]["error"] = {"message": EVIL}
        await send(settings, *results("nightly-1", ids[20:36]), *failed)
        await expect(page.locator("#status .badge")).to_contain_text("completed with errors")
        await expect(page.locator("#failures code").nth(1)).to_have_text(EVIL)
        assert await page.evaluate("window.here"), "the page was loaded again"
        assert await page.title() == "nightly-1 · Rollcall"
        await keep(browser, api, "batch", "/batches/nightly-1")

        page.on("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Retry these 3").click()
        await page.wait_for_url(re.compile(r"/batches/nightly-1-retry-"))
        await expect(page.locator("#missing-ids li")).to_have_count(3)
        await expect(page.get_by_role("link", name="nightly-1", exact=True)).to_be_visible()
        assert problems == []

        for name, address in {"batches": "/", "jobs": "/jobs", "system": "/system",
                              "item": "/batches/nightly-1/item?id=invoice-036",
                              "items": "/batches/nightly-1/items"}.items():  # fmt: skip
            narrow, problems = await open_page(browser, api.url + address, viewport={"width": 360, "height": 800})
            assert await narrow.evaluate("document.documentElement.scrollWidth") <= 360, f"{address} is too wide"
            assert await narrow.title() != "owned"
            assert problems == []
            await narrow.close()
            await keep(browser, api, name, address)


async def keep(browser: Browser, api: ServedApi, name: str, address: str) -> None:
    """A picture of a page in both themes, where somebody wants them."""
    if not SCREENSHOTS:
        return
    for theme in ("light", "dark"):
        page = await browser.new_page(color_scheme=theme, viewport={"width": 1200, "height": 800})
        await page.goto(api.url + address)
        await page.screenshot(path=Path(SCREENSHOTS) / f"{name}-{theme}.png", full_page=True)
        await page.close()
