"""The client's wheel, alone in an environment: what it brings along, and that it works there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.product import Product

ROOT = Path(__file__).parents[2]

FOREIGN = {
    *("fastapi", "starlette", "flask", "django", "uvicorn", "faststream", "litestar", "aiohttp", "jinja2"),
    *("asyncpg", "psycopg", "psycopg2", "sqlalchemy", "alembic", "pydantic", "rollcall"),
}


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ROLLCALL_"))}
    done = subprocess.run(
        [str(each) for each in command], cwd=cwd, env=inherited | variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def uv() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        pytest.skip("uv is not here")
    return found


@dataclass(frozen=True)
class Installed:
    """The client's wheel, and an environment with nothing but it and what it needs."""

    wheel: Path
    environment: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """From the versions of the lock file."""
    directory = tmp_path_factory.mktemp("installed")
    run(uv(), "build", "--wheel", "--package", "rollcall-client", "--out-dir", directory, "--python", sys.executable)
    [wheel] = directory.glob("rollcall_client-*.whl")
    requirements, environment = directory / "requirements.txt", directory / "environment"
    export = ("export", "--frozen", "--no-dev", "--package", "rollcall-client", "--no-emit-workspace")
    run(uv(), *export, "--output-file", requirements)
    run(uv(), "venv", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    run(uv(), "pip", "install", "--python", python, "--requirement", requirements)
    run(uv(), "pip", "install", "--python", python, "--no-deps", wheel)
    return Installed(wheel, environment)


def test_the_wheel_brings_one_package_and_neither_web_framework_nor_database_driver(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as opened:
        top = {name.split("/")[0] for name in opened.namelist()}
        assert "rollcall_client/py.typed" in opened.namelist()
    assert {name for name in top if not name.endswith(".dist-info")} == {"rollcall_client"}
    run(uv(), "pip", "check", "--python", installed.python)
    listed = json.loads(run(uv(), "pip", "list", "--python", installed.python, "--format", "json"))
    names = {each["name"] for each in listed}
    assert "rollcall-client" in names
    assert names & FOREIGN == set()


APPLICATION = {
    "api/__init__.py": "from schemas import Row\n\ndef fetched(name: str) -> Row:\n    return Row(name)\n",
    "schemas/__init__.py": "class Row:\n    def __init__(self, name: str) -> None:\n        self.name = name\n",
    "store.py": "SEEN = []\n",
    "streams.py": "raise SystemExit('this one is the application's, and nobody asked for it')\n",
    "jobs/__init__.py": "",
    "jobs/nightly.py": """
        from api import fetched
        from rollcall_client.jobs import Created, Job, current
        from store import SEEN

        class Nightly(Job):
            concurrency = 2

            def items(self, **params):
                return [f"row-{number}" for number in range(int(params["count"]))]

            async def handle(self, item):
                SEEN.append(fetched(item).name)
                current().job_metrics["seen"] = len(SEEN)
                return Created(metrics={"letters": len(item)})
    """,
}


def test_it_works_beside_an_application_with_packages_of_the_same_names(
    installed: Installed, product: Product, tmp_path: Path
) -> None:
    for name, source in APPLICATION.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(source))
    imported = (
        "import api, jobs.nightly, schemas, rollcall_client, rollcall_client.sync, rollcall_client.jobs; "
        "print(rollcall_client.__version__, api.__file__, jobs.__file__)"
    )
    version, *theirs = run(installed.python, "-c", imported, cwd=tmp_path).split()
    assert version == "0.1.0"
    assert theirs == [str(tmp_path / "api" / "__init__.py"), str(tmp_path / "jobs" / "__init__.py")]
    settings = product.settings
    ran = run(
        installed.environment / "bin" / "rollcall-job",
        *("run", "jobs.nightly:Nightly", "--param", "count=40", "--partitions", "2", "--json"),
        cwd=tmp_path,
        ROLLCALL_BOOTSTRAP_SERVERS=settings.bootstrap_servers,
        ROLLCALL_TOPIC_PREFIX=settings.topic_prefix,
    )
    result = json.loads(ran)
    assert (result["status"], result["processed"], result["created"]) == ("COMPLETED", 40, 40)
    assert result["metrics"] == {"letters": sum(len(f"row-{n}") for n in range(40)), "seen": 40}
