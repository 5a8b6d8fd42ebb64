"""The layers hold, and the service's wheel runs in an environment of its own, wherever it is called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import rollcall_native

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("ROLLCALL_") and name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
}


def run(*command: str | Path, cwd: Path = ROOT, timeout_s: float = 120) -> str:
    done = subprocess.run(
        [str(each) for each in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def uv() -> Path:
    found = SCRIPTS / "uv"
    if found.exists():
        return found
    elsewhere = shutil.which("uv")
    if elsewhere is None:
        pytest.skip("uv is not here")
    return Path(elsewhere)


def test_imports_run_down_the_floors() -> None:
    assert "0 broken" in run(SCRIPTS / "lint-imports", "--no-cache")


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """The `rollcall` of an environment that holds the built wheel and what it depends on, and nothing else."""
    # Not pytest's folder, which only its owner may enter: for root, PostgreSQL runs as somebody else.
    with tempfile.TemporaryDirectory(prefix="rollcall-package-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for package in ("rollcall", "rollcall-native"):
            run(uv(), "build", "--wheel", "--package", package, "--out-dir", folder, "--python", sys.executable)
        wheels = list(folder.glob("rollcall*.whl"))
        environment = folder / "environment"
        run(uv(), "venv", "--python", sys.executable, environment)
        requirements = folder / "requirements.txt"
        run(uv(), "export", "--frozen", "--no-dev", "--no-emit-workspace", "--output-file", requirements)
        python = environment / "bin" / "python"
        run(uv(), "pip", "install", "--python", python, "--requirement", requirements, timeout_s=300)
        run(uv(), "pip", "install", "--python", python, "--no-deps", *wheels)
        run(uv(), "pip", "check", "--python", python)
        yield environment / "bin" / "rollcall"


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A working directory that holds packages of the same names as ours."""
    for name in ("api", "schemas", "store", "streams", "handlers", "migrations"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a decoy was imported')\n")
    return tmp_path


def test_the_wheels_command_runs_beside_folders_of_the_same_names(installed: Path, decoys: Path) -> None:
    shown = run(installed, "--help", cwd=decoys)
    for command in ("demo", "up", "run", "migrate", "worker", "relay", "clock"):
        assert re.search(rf"\b{command}\b", shown)


def test_the_wheel_holds_the_migrations_and_no_tests(installed: Path) -> None:
    [packages] = (installed.parent.parent / "lib").glob("python*/site-packages")
    assert (packages / "migrations" / "versions" / "0001_the_stream.py").exists()
    assert (packages / "migrations" / "env.py").exists()
    assert not (packages / "tests").exists()
    assert not (packages / "bench").exists()


def test_the_wheels_bring_what_is_compiled(installed: Path, decoys: Path) -> None:
    code = "import rollcall_native; print(rollcall_native.compiled)"
    if os.environ.get(rollcall_native.SWITCH):
        pytest.skip("what is compiled is switched off")
    # Here, too, there may be no compiler; `tests/test_native.py` says where that is wrong.
    assert run(installed.parent / "python", "-P", "-c", code, cwd=decoys) == f"{rollcall_native.compiled}\n"


def test_without_a_compiler_the_wheel_holds_nothing_compiled(tmp_path: Path) -> None:
    source = tmp_path / "native"
    shutil.copytree(ROOT / "native", source, ignore=shutil.ignore_patterns("build", "*.so", "*.c"))
    build = (uv(), "build", "--wheel", "--out-dir", tmp_path, "--python", sys.executable, source)
    run("env", "CC=/nonexistent/cc", *build)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "rollcall_native/__init__.py" in names
    assert not [name for name in names if name.endswith((".so", ".dylib", ".pyd"))]


def test_the_wheel_runs_the_demo_beside_folders_of_the_same_names(installed: Path, decoys: Path) -> None:
    shown = run(installed, "demo", cwd=decoys, timeout_s=180)
    assert re.search(r"^[\d,]+ files in [\d,]+ batches: ", shown, re.MULTILINE), shown
    assert "completed" in shown
