"""The pages: what they say without JavaScript, and in a real browser that they live."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, Dialog, Page, Route, async_playwright, expect

from api.access import digest, new_key
from api.models import Batch, Lag
from api.pages import showing
from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from store import access
from tests.harness.api import ServedApi, serving
from tests.harness.product import Product, running
from tests.harness.servers import Servers
from tests.harness.stored import StoredRows, stored_rows
from tests.harness.topics import produce

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCREENSHOTS = os.environ.get("ROLLCALL_SCREENSHOTS")
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
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
                         first_result_at=rows.start, last_result_at=rows.start,
                         metadata=json.dumps({"team": "blue"}))  # fmt: skip
        await whatever_the_system_shows(rows)
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
            "/?metadata=team:blue&opened_since=2026-11-22": ["open"],
            "/jobs": ["nightly", "/jobs?name=nightly"],
            "/jobs?name=nightly": ["Runs of nightly", "/batches/open"],
            "/system": ["No worker reads", "murmur2_random", "unknown type", "3 at 1,234", "2 finalized"],
            "/audit": ["cancel", "somebody", "/batches/open"],
            "/audit?batch_id=bad": ["Nothing was done"],
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
        for address, status in {"/batches/none": 404, "/?status=odd": 422, "/?cursor=none": 422,
                                "/?opened_since=soon": 422, "/audit?cursor=0": 422}.items():  # fmt: skip
            answer = await api.client.get(address)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")


async def whatever_the_system_shows(rows: StoredRows) -> None:
    topic = Topics(rows.settings.topic_prefix).events
    await rows.connection.execute(
        "INSERT INTO positions (topic, partition, next_offset, taken) VALUES ($1, 5, 7, '{\"3\": 1234}')", topic
    )
    await rows.connection.execute(
        "INSERT INTO dead_letters (topic, partition, record_offset, appended_at, reason, message, headers)"
        " SELECT $1, 5, n, now(), 'unknown_type', 'x', '[]' FROM generate_series(1, 3) n",
        topic,
    )
    await rows.connection.execute(
        "INSERT INTO outbox (id, channel, batch_id, revision, value, headers)"
        " SELECT 'e' || n, 'finalized', 'gone', n, '{}', '{}' FROM generate_series(1, 2) n"
    )
    await rows.connection.execute(
        "INSERT INTO audit (caller, action, batch_id, items) VALUES ('somebody', 'cancel', 'open', 2)"
    )


async def test_the_missing_and_a_slices_items_come_page_by_page_each_once(settings: Settings) -> None:
    settings = settings.model_copy(update={"auth": "off"})
    await migrate(settings.database_url, settings.database_schema)
    async with stored_rows(settings) as rows, serving(settings) as api:
        await rows.batch("b", expected=2_500)
        await rows.connection.execute(
            "INSERT INTO expected_items SELECT 'b', to_char(n, 'FM0000') FROM generate_series(0, 2499) n"
        )

        async def all_pages(address: str) -> list[str]:
            seen: list[str] = []
            while True:
                text = (await api.client.get(address)).text
                part = text.partition("grid-title")[0]
                seen += re.findall(r'item\?id=(\d{4})"', part)
                following = re.search(r'rel="next" href="(\?[^"#]*)', part)
                if following is None:
                    return seen
                address = address.partition("?")[0] + unescape(following[1])

        everybody = [f"{number:04}" for number in range(2_500)]
        assert await all_pages("/batches/b") == everybody
        assert await all_pages("/batches/b?find=24") == [each for each in everybody if "24" in each]
        assert await all_pages("/batches/b/items?first=0000&last=2400") == everybody[:2_401]
        text = (await api.client.get("/batches/b")).text
        tiles = re.findall(r'class="tile missing" href="/batches/b/items\?first=(\d+)&amp;last=(\d+)"', text)
        assert len(tiles) == 1_000
        assert (tiles[0][0], tiles[-1][1]) == ("0000", "2499")


async def test_whoever_is_not_signed_in_is_asked_to_and_led_back_here_only(settings: Settings) -> None:
    await migrate(settings.database_url, settings.database_schema)
    async with serving(settings.model_copy(update={"auth": "on"})) as api:
        answer = await api.client.get("/batches/x?find=y")
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2Fbatches%2Fx%3Ffind%3Dy")
        assert 'value="/batches/x?find=y"' in (await api.client.get(answer.headers["location"])).text
        for elsewhere in ("//[", "https://evil.example/", "//evil.example", "/\\evil.example"):
            text = (await api.client.get("/sign-in", params={"next": elsewhere})).text
            assert 'name="next" value="/"' in text
        refused = await api.client.post("/sign-in", data={"key": "rollcall_wrong", "next": "/"})
        assert refused.status_code == 401
        assert "not known" in refused.text


LAGGING = Lag(records=7, lagging=True, next_offset=1)


def _batch(**changes: Any) -> Batch:
    fields: dict[str, Any] = dict.fromkeys(Batch.model_fields)
    counts = ("revision generation answered succeeded partial failed skipped retrying missing unexpected created"
              " updated unchanged duplicates late")  # fmt: skip
    fields |= dict.fromkeys(counts.split(), 0)
    fields |= {"batch_id": "b", "status": "processing", "state": "processing", "sealed": True, "total": 100}
    fields |= {
        "first_result_at": NOW - timedelta(seconds=50),
        "last_result_at": NOW,
        "lag": Lag(records=0, lagging=False, next_offset=1),
    }
    return Batch(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answered": 50, "missing": 50}, "about 50 s"),
        ({"answered": 50, "missing": 50, "lag": LAGGING}, "about 50 s"),  # it keeps up
        (
            {"answered": 50, "last_result_at": NOW - timedelta(seconds=9), "lag": LAGGING},
            "lagging: 7 records",
        ),
        (
            {"first_result_at": None, "last_result_at": None, "lag": LAGGING},
            "lagging: 7 records",
        ),
        ({"answered": 50, "missing": 50, "last_result_at": NOW - timedelta(minutes=5)}, "stalled: no result for 5 min"),
        ({"answered": 1, "missing": 99, "first_result_at": NOW}, "too early to say"),
        ({"first_result_at": None, "last_result_at": None}, "waiting for a first result"),
        ({"answered": 5, "sealed": False, "total": None}, "not sealed"),
        (
            {
                "answered": 90,
                "missing": 10,
                "generation": 1,
                "last_result_at": NOW - timedelta(days=9),
                "reopened_at": NOW - timedelta(seconds=9),
            },
            "reopened",
        ),
        (
            {
                "answered": 90,
                "missing": 10,
                "generation": 1,
                "last_result_at": NOW - timedelta(days=9),
                "reopened_at": NOW - timedelta(minutes=5),
            },
            "stalled: no result for 5 min",
        ),
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


@dataclass(frozen=True)
class Live:
    """A browser before an API, beside a worker and a relay."""

    browser: Browser
    product: Product
    api: ServedApi


@pytest.fixture(scope="module")
async def live(servers: Servers) -> AsyncIterator[Live]:
    expect.set_options(timeout=60_000)
    unique = f"t{uuid.uuid4().hex[:7]}"
    settings = Settings(
        bootstrap_servers=servers.bootstrap_servers,
        database_url=servers.database_url,
        topic_prefix=f"{unique}.",
        database_schema=unique,
        auth="off",
    )
    async with browsing() as browser, running(settings) as product, serving(settings) as api:
        yield Live(browser, product, api)


async def submit(live: Live, batch_id: str, ids: Sequence[str], **fields: Any) -> None:
    body = {"batch_id": batch_id, "item_ids": ids, **fields}
    submitted = await live.api.client.post("/api/batches", json=body)
    assert submitted.status_code in (201, 202), submitted.text
    await live.product.settled()


async def test_a_batch_is_followed_in_a_browser_to_its_end_and_retried(live: Live) -> None:
    settings = live.product.settings
    ids = [f"invoice-{number:03}" for number in range(40)]
    await submit(live, "nightly-1", ids, name="nightly")

    page, problems = await open_page(live.browser, f"{live.api.url}/batches/nightly-1")
    await page.evaluate("window.here = true")
    await expect(page.locator("#status")).to_have_attribute("data-status", "pending")
    await expect(page.locator("#live")).to_have_text("live")
    await expect(page.locator("#missing-ids li")).to_have_count(40)

    await send(settings, *results("nightly-1", ids[:20], duration_ms=12.5))
    await expect(page.locator("#status .badge")).to_contain_text("processing")
    await expect(page.locator("#state svg rect.succeeded")).to_have_attribute("width", "500.0")
    await expect(page.locator("#missing-ids li")).to_have_count(20)

    failed = results("nightly-1", ids[36:], "failed")
    for number, each in enumerate(failed):
        each["error"] = {"message": f"no user {number}" if number else EVIL}
    await send(settings, *results("nightly-1", ids[20:36]), *failed)
    await expect(page.locator("#status .badge")).to_contain_text("completed with errors")
    await expect(page.locator("#failures code")).to_have_text(["no user <n>", EVIL])
    assert await page.evaluate("window.here"), "the page was loaded again"
    assert await page.title() == "nightly-1 · Rollcall"

    asked: list[str] = []

    async def accept(dialog: Dialog) -> None:
        asked.append(dialog.message)
        await dialog.accept()

    page.on("dialog", accept)
    await page.get_by_role("button", name="Retry these 3").click()
    await page.wait_for_url(re.compile(r"/batches/nightly-1-retry-"))
    assert "3 items" in asked[0]
    await expect(page.locator("#missing-ids li")).to_have_text(ids[37:])
    await expect(page.get_by_role("link", name="nightly-1", exact=True)).to_be_visible()
    assert problems == []
    await page.close()


async def test_a_retry_that_got_no_answer_is_not_made_twice_by_a_second_click(live: Live) -> None:
    await submit(live, "unanswered", ["a", "b"])
    await live.api.post("batches/unanswered/cancel")
    page, _ = await open_page(live.browser, f"{live.api.url}/batches/unanswered")
    page.on("dialog", lambda dialog: dialog.accept())
    button = page.get_by_role("button", name="Retry 2 items")

    async def lose(route: Route) -> None:
        await route.fetch()
        await route.fulfill(status=503, json={"detail": "it may have arrived"})

    await page.route("**/retry", lose)
    await button.click()
    await expect(page.locator("#said")).to_have_text("it may have arrived")
    await page.unroute("**/retry")
    await page.reload()
    await button.click()
    await page.wait_for_url(re.compile(r"/batches/unanswered-retry-"))
    opened = (await live.api.get("batches", limit=1_000))["batches"]
    assert len([each for each in opened if each["retry_of"] == "unanswered"]) == 1
    await page.close()


async def test_a_button_ends_the_revision_that_the_page_shows_and_nothing_that_was_reopened_since(live: Live) -> None:
    await submit(live, "ended", ["a", "b"])
    page, _ = await open_page(live.browser, f"{live.api.url}/batches/ended")
    await page.route("**/batches/ended", lambda route: route.abort())  # it is not fetched again: it stays as it is
    page.on("dialog", lambda dialog: dialog.accept())
    await live.api.post("batches/ended/cancel")
    await live.api.post("batches/ended/reopen")
    async with page.expect_request("**/cancel") as sent:
        await page.get_by_role("button", name="Cancel").click()
    request = await sent.value
    assert request.post_data_json == {"revision": 0}
    assert "idempotency-key" not in request.headers, "the API takes none for this"
    await expect(page.locator("#said")).to_contain_text("it ended and was reopened since")
    assert (await live.api.get("batches/ended"))["outcome"] is None
    await page.close()


async def test_the_missing_are_searched_on_the_server_and_copied_all(live: Live) -> None:
    settings = live.product.settings
    ids = [f"order-{number:04}" for number in range(1_500)]
    await submit(live, "orders", ids)
    context = await live.browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = await context.new_page()
    await page.goto(f"{live.api.url}/batches/orders")
    await expect(page.locator("#live")).to_have_text("live")
    await expect(page.locator("#missing-ids li")).to_have_count(100)

    await page.get_by_label("Search").fill("ORDER-14")
    await expect(page.locator("#missing-ids li").first).to_have_text("order-1400")
    assert page.url.endswith("?find=ORDER-14")
    await send(settings, *results("orders", ids[1_400:1_450]))
    await expect(page.locator("#missing-ids li")).to_have_text(ids[1_450:])  # still typing, and it is live
    await page.get_by_role("button", name="Copy those found").click()
    await expect(page.locator("#said")).to_have_text("50 ids copied")
    await page.get_by_label("Search").fill("")
    await page.get_by_role("button", name="Copy all").click()
    await expect(page.locator("#said")).to_have_text("1450 ids copied")
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied.split() == ids[:1_400] + ids[1_450:]
    await context.close()


async def test_the_keyboard_keeps_its_place_while_the_page_changes(live: Live) -> None:
    await submit(live, "typed", ["a", "b"])
    page, _ = await open_page(live.browser, live.api.url)
    await expect(page.locator("#live")).to_have_text("live")
    link = page.get_by_role("link", name="typed", exact=True)
    await link.focus()
    await send(live.product.settings, *results("typed", ["a"]))
    row = page.get_by_role("row").filter(has=link)
    await expect(row).to_contain_text("1 of 2")
    await expect(link).to_be_focused()
    await page.close()


async def test_whoever_signs_in_acts_without_reloading_is_audited_and_signs_out(live: Live) -> None:
    await submit(live, "guarded", ["a", "b"])
    guarded = live.product.settings.model_copy(update={"auth": "on"})
    key = new_key()
    async with serving(guarded) as api:
        async with api.context.writing() as connection:
            await access.create_key(connection, "night", "night shift", "admin", digest(key))
        context = await live.browser.new_context()
        page = await context.new_page()
        page.on("dialog", lambda dialog: dialog.accept())
        await page.goto(f"{api.url}/batches/guarded")
        await page.get_by_label("API key").fill(key)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator("h1")).to_have_text("guarded")
        await page.get_by_role("button", name="Cancel, 2 missing").click()
        await expect(page.locator("#status .badge")).to_contain_text("cancelled")
        await expect(page.locator("#said")).to_have_text("cancel: 2 items")
        await page.get_by_role("link", name="Audit").click()
        row = page.get_by_role("row").filter(has_text="guarded").filter(has_text="cancel")
        await expect(row).to_contain_text("night shift key night")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("API key")).to_be_visible()
        await context.close()


async def test_every_page_fits_a_narrow_screen_and_is_kept_in_both_themes(live: Live) -> None:
    async with stored_rows(live.product.settings) as rows:
        await scenery(rows)
    await submit(live, "import-8", [f"row-{number}" for number in range(20)], name="import")
    await send(live.product.settings, *results("import-8", [f"row-{number}" for number in range(13)]))
    await send(live.product.settings, {"batch_id": "import-8", "type": "batch.unheard_of"})
    await live.product.settled()
    pages = {
        "batches": "/",
        "batch": "/batches/import-7",
        "items": "/batches/import-7/items?first=customer/0000&last=customer/0300",
        "item": "/batches/import-7/item?id=customer/0017",
        "why": "/batches/import-8/why",
        "jobs": "/jobs",
        "runs": "/jobs?name=import",
        "system": "/system",
        "audit": "/audit",
        "sign-in": "/sign-in",
    }
    for name, address in pages.items():
        page, problems = await open_page(live.browser, live.api.url + address)
        assert await page.locator("h1").count() == 1, address
        for width, suffix in ((360, "-narrow"), (1280, "")):
            await page.set_viewport_size({"width": width, "height": 800})
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{address} is {wide} wide on {width}"
            for theme in THEMES if SCREENSHOTS else ():
                await page.emulate_media(color_scheme=theme)
                await page.screenshot(path=Path(SCREENSHOTS or "") / f"{name}-{theme}{suffix}.png", full_page=True)
        assert problems == [], address
        await page.close()


async def scenery(rows: StoredRows) -> None:
    """Batches of every kind, as some days leave them."""
    now, minutes = datetime.now(UTC), timedelta(minutes=1)
    for minute, (outcome, by) in enumerate(
        {"completed": "all_items_in", "failed": "aborted", "cancelled": "cancelled", "expired": "deadline"}.items()
    ):
        at = now - (300 - 60 * minute) * minutes
        done = 200 if outcome == "completed" else 50 * minute
        times = {"opened_at": at, "first_result_at": at, "last_result_at": at + minutes, "finalized_at": at + minutes}
        await rows.finalized(
            f"report-{minute}", **times, name="report", outcome=outcome, finalized_by=by, total_items=200,
            succeeded=done, completed_at=None,
        )  # fmt: skip
    at = now - 50 * minutes
    await rows.finalized(
        "import-7", name="import", outcome="completed_with_errors", finalized_by="forced", expected=3_000,
        matched=2_900, succeeded=2_400, partial=200, skipped=100, failed=200, created=2_000, updated=400,
        opened_at=at, first_result_at=at, last_result_at=at + 30 * minutes, finalized_at=at + 31 * minutes,
        completed_at=None, metadata=json.dumps({"team": "billing", "rows": 3000}), reason="the night is over",
    )  # fmt: skip
    await rows.connection.execute(
        "INSERT INTO expected_items"
        " SELECT 'import-7', 'customer/' || to_char(n, 'FM0000') FROM generate_series(0, 2999) n"
    )
    await rows.connection.execute(
        """
        INSERT INTO item_results (version, received_at, attempt, generation, batch_id, item_id, status, duration_ms,
                                  error_code, error_message, stack_trace, output, worker)
        SELECT n, $1::timestamptz + interval '30 minutes' * (1 - ((n % 97) / 97.0) ^ 2), 1, 0, 'import-7',
               'customer/' || to_char(n, 'FM0000'), status, n % 40,
               CASE WHEN status = 'failed' AND n % 3 = 0 THEN 'E_TAX' END,
               CASE WHEN status IN ('failed', 'partial') THEN 'no such country: ' || n END,
               CASE WHEN status = 'failed' THEN E'Traceback (most recent call last):\n  File "tax.py", line 12' END,
               json_build_object('transaction', 'tx-' || n, 'note', '<b>'), 'worker-' || n % 4
        FROM (SELECT n, CASE WHEN n % 290 < 20 AND n % 29 < 20 THEN 'failed' WHEN n / 300 = 6 THEN 'partial'
                             ELSE 'succeeded' END AS status FROM generate_series(0, 2899) n) made
        """,
        at,
    )


async def test_text_has_the_contrast_that_wcag_asks_for_in_both_themes() -> None:
    style = (Path(showing.__file__).parent / "static" / "rollcall.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    light, dark = (dict(re.findall(r"--(\w+): (#\w+)", theme)) for theme in themes)
    assert len(light) == len(dark) > 10
    for theme in (light, dark):
        for ground in ("paper", "panel"):
            for text in ("ink", "soft", "link", "good", "half", "bad", "busy"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
            for shape in ("good", "half", "bad", "skip", "none", "busy"):
                assert contrast(theme[shape], theme[ground]) >= 3, (shape, ground)


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
