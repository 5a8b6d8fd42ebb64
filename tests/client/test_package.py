"""The client's wheel, alone in an environment: what it brings along, and that it works there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FOREIGN = {
    *("fastapi", "starlette", "flask", "django", "uvicorn", "faststream", "litestar", "aiohttp", "jinja2"),
    *("asyncpg", "psycopg", "psycopg2", "sqlalchemy", "alembic", "pydantic", "rollcall"),
}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ROLLCALL_"))}
    done = subprocess.run(
        [str(each) for each in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def uv() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        pytest.skip("uv is not here")
    return found


def test_the_wheel_brings_one_package_and_neither_web_framework_nor_database_driver(tmp_path: Path) -> None:
    run(uv(), "build", "--wheel", "--package", "rollcall-client", "--out-dir", tmp_path, "--python", sys.executable)
    [wheel] = tmp_path.glob("rollcall_client-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        top = {name.split("/")[0] for name in opened.namelist()}
        assert "rollcall_client/py.typed" in opened.namelist()
    assert {name for name in top if not name.endswith(".dist-info")} == {"rollcall_client"}

    requirements, environment = tmp_path / "requirements.txt", tmp_path / "environment"
    export = ("export", "--frozen", "--no-dev", "--package", "rollcall-client", "--no-emit-workspace")
    run(uv(), *export, "--output-file", requirements)
    run(uv(), "venv", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    run(uv(), "pip", "install", "--python", python, "--requirement", requirements)
    run(uv(), "pip", "install", "--python", python, "--no-deps", wheel)
    run(uv(), "pip", "check", "--python", python)
    installed = {each["name"] for each in json.loads(run(uv(), "pip", "list", "--python", python, "--format", "json"))}
    assert "rollcall-client" in installed
    assert installed & FOREIGN == set()

    (tmp_path / "app").mkdir()
    for name in ("api", "schemas", "store", "streams", "handlers"):
        (tmp_path / "app" / f"{name}.py").write_text("raise SystemExit('the application has modules of these names')\n")
    imported = "import rollcall_client, rollcall_client.sync, rollcall_client.jobs; print(rollcall_client.__version__)"
    assert run(python, "-c", imported, cwd=tmp_path / "app").strip() == "0.1.0"
    assert "listen" in run(environment / "bin" / "rollcall-job", "--help", cwd=tmp_path / "app")
