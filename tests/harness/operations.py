"""A process's metrics and health, as Prometheus and an orchestrator ask for them; and Prometheus' own promtool."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rollcall.embedded.servers import free_port
from rollcall.settings import Settings

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

PORTS = 6
"""Of a run and its processes."""


def with_free_port(settings: Settings, **changes: Any) -> Settings:
    """The same settings with a port for metrics that is free just now, as are the few behind it.

    None that the system gives to connections: one of those may have it by the time that it is listened on.
    """
    return settings.model_copy(update={"metrics_port": free_port(PORTS), **changes})


async def get(settings: Settings, path: str, *, behind: int = 0) -> tuple[int, str]:
    """Status and body of an answer; an AssertionError where nobody listens (yet)."""
    url = f"http://127.0.0.1:{settings.metrics_port + behind}{path}"
    return await asyncio.to_thread(_get, url)


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        raise AssertionError(f"{url}: {error}") from error


async def health(settings: Settings, path: str, *, behind: int = 0) -> tuple[int, dict[str, str]]:
    """Status and details of `/livez` or `/readyz`."""
    status, body = await get(settings, path, behind=behind)
    details: dict[str, str] = json.loads(body)["details"]
    return status, details


async def scrape(settings: Settings) -> str:
    status, text = await get(settings, "/metrics")
    assert status == 200, text
    return text


def samples(text: str) -> Samples:
    """Every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def promtool(*arguments: str, stdin: str | None = None, cwd: Path | None = None) -> str:
    """Run promtool, which must be content; what it says. Where there is none the test is skipped, and says so."""
    path = shutil.which("promtool")
    if path is None:
        why = "promtool is not installed (Debian and Ubuntu: apt install prometheus)"
        if os.environ.get("ROLLCALL_REQUIRE_PROMTOOL") == "1":
            pytest.fail(why)
        pytest.skip(why)
    done = subprocess.run(
        [path, *arguments], input=stdin, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said
