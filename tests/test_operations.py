"""Metrics and health of real processes: what they count is what happened, and what is said of them is so."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from handlers.records import Disposition
from rollcall import operations
from rollcall.cli import run
from rollcall.settings import Settings
from schemas.topics import Topics, home_partition
from streams import health as healths
from streams.health import Health, NotReadyError
from streams.metrics import DEAD, FORWARDED, REPEATED_FORWARD
from tests.harness.commands import rollcall, start
from tests.harness.operations import get, health, promtool, samples, scrape, value, with_free_port
from tests.harness.product import Product, running
from tests.harness.tables import table_rows
from tests.harness.topics import create_topic, drain, produce
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMETHEUS = Path(__file__).parents[1] / "deploy" / "prometheus"
PARTITIONS = 4
DISPOSITIONS = (*map(str, Disposition), FORWARDED, DEAD, REPEATED_FORWARD)


@dataclass(frozen=True)
class _Message:
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def _message(batch_id: str, **fields: object) -> _Message:
    return _Message(batch_id.encode(), json.dumps({"batch_id": batch_id, **fields}).encode())


def _result(batch_id: str, item_id: str, status: str = "succeeded", **fields: object) -> _Message:
    return _message(batch_id, item_id=item_id, status=status, **fields)


async def test_what_was_read_and_published_is_counted_by_what_it_did(settings: Settings) -> None:
    worker_settings, relay_settings = with_free_port(settings), with_free_port(settings)
    topics = Topics(settings.topic_prefix)
    await create_topic(settings.bootstrap_servers, topics.events, partitions=PARTITIONS)
    async with running(worker_settings, workers=1, relay=False) as product:
        relay = Product(relay_settings)
        try:
            await relay.start_relay()
            done = [
                _message("done", type="batch.opened", item_ids=["a", "b"]),
                _result("done", "a", "failed", attempt=2),
                _result("done", "a", "failed", attempt=2),
                _result("done", "a", "succeeded", attempt=1),
                _result("done", "not-on-the-list"),
                _result("done", "b"),
                _result("done", "b", "failed", attempt=2),
            ]
            still_open = [_message("open", type="batch.opened", total_items=5), _result("open", "a")]
            broken = [_Message(b"broken", b"{"), _Message(b"broken", None)]
            await produce(settings.bootstrap_servers, topics.events, [*done, *still_open, *broken])
            misplaced = _result("misplaced", "a")
            wrong = (home_partition("misplaced", PARTITIONS) + 1) % PARTITIONS
            await produce(settings.bootstrap_servers, topics.events, [misplaced], partition=wrong)
            await product.settled()

            text = await scrape(worker_settings)
            found = samples(text)
            counted = {each: value(found, "rollcall_records_total", disposition=each) for each in DISPOSITIONS}
            assert counted == {
                "accepted": 5 + 1,  # two openings, a, b, open's a; and misplaced's, read again at home
                "duplicate": 1,
                "superseded": 1,
                "unexpected": 1,
                "late": 1,
                "no_effect": 0,
                "pruned": 0,
                "summary_requested": 0,
                "forwarded": 1,
                "dead": 2,
                "repeated_forward": 0,
            }
            log = await drain(settings.bootstrap_servers, topics.events)
            assert sum(counted.values()) == len(log) == value(found, "rollcall_micro_batch_records_sum")
            assert value(found, "rollcall_dead_letters_total", reason="invalid_json") == 2
            assert value(found, "rollcall_finalization_seconds_count") == 1
            assert value(found, "rollcall_micro_batch_seconds_count") >= 1
            read = {dict(labels)["partition"] for name, labels in found if name == "rollcall_partition_assigned"}
            assert read == {str(number) for number in range(PARTITIONS)}
            for batch_id in ("done", "open", "misplaced", "not-on-the-list"):
                assert f'"{batch_id}"' not in text, "an id as a label: as many series as there are batches"
            promtool("check", "metrics", stdin=text)

            async def watched() -> bool:
                found = samples(await scrape(relay_settings))
                assert value(found, "rollcall_open_batches", state="processing") == 2
                assert value(found, "rollcall_outbox_records", topic="finalized") == 0
                assert value(found, "rollcall_unpublished_dead_letters") == 0
                assert [value(found, "rollcall_lag_records", partition=str(each)) for each in range(PARTITIONS)] == [
                    0
                ] * PARTITIONS
                return True

            await eventually(watched, 30, interval_s=0.5)
            text = await scrape(relay_settings)
            found = samples(text)
            assert value(found, "rollcall_leading", role="relay") == 1
            events = len(await table_rows(settings, "outbox", "seq"))
            assert value(found, "rollcall_published_records_total", queue="events") == events >= 1
            assert value(found, "rollcall_published_records_total", queue="dead-letters") == 2
            assert value(found, "rollcall_publication_seconds_count") == 1
            assert 0 < value(found, "rollcall_oldest_open_batch_age_seconds") < 600
            assert not any(name.startswith("rollcall_micro_batch") for name, _ in found), "a relay reads no results"
            promtool("check", "metrics", stdin=text)
            _assert_alerts_ask_for_what_there_is(text + await scrape(worker_settings))

            # Where no worker is left, somebody else must say that the lag grows.
            await product.stop()
            await produce(settings.bootstrap_servers, topics.events, still_open * 3)
            home = str(home_partition("open", PARTITIONS))

            async def lags() -> bool:
                return value(samples(await scrape(relay_settings)), "rollcall_lag_records", partition=home) == 6

            await eventually(lags, 30, interval_s=0.5)
        finally:
            await relay.stop()


def _assert_alerts_ask_for_what_there_is(text: str) -> None:
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"\b(?:rollcall|process)_\w+", rule["expr"])}
    there = {name for name, _ in samples(text)} | set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert asked - there == set()


async def test_promtool_accepts_the_alerts_and_they_fire_when_they_should() -> None:
    promtool("check", "rules", "alerts.yml", cwd=PROMETHEUS)
    promtool("test", "rules", "alerts.test.yml", cwd=PROMETHEUS)


async def test_every_alert_is_tested_both_ways_and_explained() -> None:
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
    tested = [
        (each["alertname"], bool(each.get("exp_alerts")))
        for test in yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]
        for each in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in rules}
    assert {name for name, fires in tested if fires} == names
    assert {name for name, fires in tested if not fires} == names
    handbook = (PROMETHEUS.parents[1] / "docs" / "operations.md").read_text()
    assert [name for name in names if f"`{name}`" not in handbook] == []


async def test_prometheus_is_told_of_every_port_of_a_run_with_as_many_workers_as_by_default() -> None:
    workers = inspect.signature(run).parameters["workers"].default
    ports = [str(9464 + number) for number in range(1 + len(("relay", "clock", "api")) + workers)]
    root = PROMETHEUS.parents[1]
    assert re.findall(r"rollcall-1:(\d+)", (root / "docs" / "operations.md").read_text()) == ports
    published = yaml.safe_load((root / "compose.yaml").read_text())["services"]["rollcall"]["ports"]
    assert f"127.0.0.1:{ports[0]}-{ports[-1]}:{ports[0]}-{ports[-1]}" in published


async def test_a_worker_is_ready_once_it_may_work_on_what_it_was_assigned(settings: Settings) -> None:
    settings = with_free_port(settings)
    async with running(settings, workers=1, relay=False):

        async def ready() -> bool:
            status, details = await health(settings, "/readyz")
            assert (status, details) == (200, dict.fromkeys(("assignment", "broker", "database"), "ok"))
            return True

        await eventually(ready, 30, interval_s=0.5)
        status, details = await health(settings, "/livez")
        assert status == 200
        assert details.keys() == {"read", "flush"}
        assert (await rollcall(settings, "health")).stdout == "alive\n"
        assert (await rollcall(settings, "health", "--ready")).stdout == "ready\n"


async def test_a_process_whose_database_is_away_is_alive_but_not_ready(settings: Settings) -> None:
    settings = with_free_port(settings, database_url="postgresql+asyncpg://nobody@127.0.0.1:1/none")
    product = Product(settings)
    try:
        await product.start_worker()
        await eventually(lambda: get(settings, "/livez"))
        status, details = await health(settings, "/readyz")
        assert status == 503
        assert details["broker"] == "ok"
        assert details["database"] == "failed: ConnectionRefusedError"
        assert details["start-up"] != "ok"
        assert (await health(settings, "/livez"))[0] == 200
        done = await rollcall(settings, "health", "--ready")
        assert done.exit_code == 1
        assert re.fullmatch(r"rollcall: http://\S+/readyz says: not ready \(.*database: failed.*\)\n", done.stderr)
    finally:
        await product.stop()


async def test_a_whole_installation_is_as_well_as_each_of_its_processes(settings: Settings) -> None:
    settings = with_free_port(settings, api_port=0, auth="off")
    async with running(settings, workers=0, relay=False):
        process = await start(settings, "run", "--workers", "1")
        try:

            async def ready() -> bool:
                status, details = await health(settings, "/readyz")
                assert details.keys() == {"processes", "relay-1", "clock-2", "api-3", "worker-4"}, details
                assert status == 200, details
                return True

            await eventually(ready, 60, interval_s=0.5)
            assert (await health(settings, "/livez"))[1].keys() == {"relay-1", "clock-2", "api-3", "worker-4"}
            assert value(samples(await scrape(settings)), "process_start_time_seconds") > 0
            assert (await health(settings, "/livez", behind=4))[1].keys() == {"read", "flush"}
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.communicate(), 60)


async def test_a_port_that_is_taken_ends_a_process_with_one_clear_line(settings: Settings) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    async with taken:
        done = await rollcall(settings.model_copy(update={"metrics_port": port}), "worker")
    assert done.exit_code == 2
    assert done.stderr == (
        f"rollcall: cannot serve metrics at 127.0.0.1:{port} (Address already in use):"
        " set ROLLCALL_METRICS_PORT to a free port, or to 0 for any\n"
    )


async def test_a_client_that_sends_nothing_or_takes_nothing_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "TURN_TIMEOUT_S", 1.0)
    nowhere = Settings(bootstrap_servers="127.0.0.1:1", database_url="postgresql+asyncpg://nobody@127.0.0.1:1/none")
    settings = with_free_port(nowhere, metrics_host="127.0.0.1")
    async with operations.serving(settings):
        address = (settings.metrics_host, settings.metrics_port)
        reader, writer = await asyncio.open_connection(*address)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        with socket.create_connection(address) as takes_nothing:
            takes_nothing.setblocking(False)

            def is_cut_off() -> bool:
                try:
                    takes_nothing.send(b"GET /metrics HTTP/1.1\r\nHost: us\r\n\r\n" * 100)
                except BlockingIOError:
                    return False
                except (ConnectionResetError, BrokenPipeError):
                    return True
                return False

            await eventually(is_cut_off, interval_s=0.01)
        assert (await get(settings, "/livez"))[0] == 200


async def test_nobody_to_ask_is_no_health(settings: Settings) -> None:
    done = await rollcall(with_free_port(settings), "health")
    assert done.exit_code == 1
    assert "does not answer" in done.stderr
    done = await rollcall(settings, "health")
    assert done.exit_code == 2
    assert "ROLLCALL_METRICS_PORT is not set" in done.stderr


async def test_a_loop_that_stopped_coming_round_is_no_life(monkeypatch: pytest.MonkeyPatch) -> None:
    of_this = Health()
    of_this.beat("flush")
    of_this.beat("read")
    assert of_this.alive().ok
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + healths.LOOP_TIMEOUT_S + 1)
    assert not of_this.alive().ok
    of_this.beat("flush")
    assert not of_this.alive().ok
    of_this.wait("read")  # for the flush, which comes round
    assert of_this.alive().ok
    of_this.beat("read")
    of_this.end("flush")
    assert of_this.alive().details.keys() == {"read"}


async def test_readiness_is_not_asked_of_the_servers_more_often_than_it_matters() -> None:
    calls: Counter[str] = Counter()

    async def passes() -> None:
        calls["passes"] += 1

    async def fails() -> None:
        calls["fails"] += 1
        raise NotReadyError("not yet")

    of_this = Health({"good": passes, "bad": fails})
    reports = await asyncio.gather(*(of_this.ready() for _ in range(50)))
    assert not any(report.ok for report in reports)
    assert reports[0].details == {"good": "ok", "bad": "not yet"}
    assert calls == {"passes": 1, "fails": 1}
