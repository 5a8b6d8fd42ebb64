"""compose.yaml says what the service really has: its commands, its settings, and what waits for what."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from rollcall.cli import app
from rollcall.settings import Settings

COMPOSE = Path(__file__).parent.parent / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = yaml.safe_load(COMPOSE.read_text())
    services: dict[str, Any] = document["services"]
    return services


def _ours(services: dict[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in services.items() if "build" in service}


def test_every_service_has_an_image_or_is_built(services: dict[str, Any]) -> None:
    assert {"kafka", "postgres", "migrate", "rollcall"} <= services.keys()
    assert all("image" in service or "build" in service for service in services.values())
    assert services["postgres"]["image"] == "postgres:18"


@pytest.mark.parametrize("server", ["kafka", "postgres"])
def test_servers_have_a_health_check_and_keep_their_data(services: dict[str, Any], server: str) -> None:
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]

    assert services[server]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert any(volume.split(":")[0] in volumes for volume in services[server]["volumes"])


def test_rollcall_runs_only_on_a_migrated_database_and_healthy_servers(services: dict[str, Any]) -> None:
    waits_for = {name: each["condition"] for name, each in services["rollcall"]["depends_on"].items()}

    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert waits_for == {
        "kafka": "service_healthy",
        "postgres": "service_healthy",
        "migrate": "service_completed_successfully",
    }


def test_the_commands_exist(services: dict[str, Any]) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    for service in _ours(services).values():
        program, command, *_ = service["command"]
        assert program == "rollcall"
        assert command in commands


def test_the_settings_exist_and_their_values_are_accepted(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for service in _ours(services).values():
        environment: dict[str, str] = service["environment"]
        for name, value in environment.items():
            assert name.removeprefix("ROLLCALL_").lower() in Settings.model_fields
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value))
        Settings()  # type: ignore[call-arg]  # from the environment
