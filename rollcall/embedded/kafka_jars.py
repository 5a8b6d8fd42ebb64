"""Kafka's jars from Maven Central, resolved once and kept in the user's cache directory."""

from __future__ import annotations

import fcntl
import logging
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import platformdirs

from rollcall.embedded.servers import EmbeddedServerError

KAFKA_VERSION = "4.2.2"
_KAFKA = ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION)
# Kafka logs through slf4j and brings log4j-core, but leaves the bridge between them to its distribution.
_LOG_BRIDGE = ("org.apache.logging.log4j", "log4j-slf4j-impl")

LOCK_TIMEOUT_S = 900.0

Progress = Callable[[str], None]


def cache_directory() -> Path:
    """Where this version's jars are kept: `~/.cache/rollcall/kafka-<version>`, XDG_CACHE_HOME heeded."""
    return platformdirs.user_cache_path("rollcall") / f"kafka-{KAFKA_VERSION}"


def kafka_classpath(progress: Progress) -> list[Path]:
    """Kafka's jars, downloaded where they are missing; blocks, also while another process downloads them.

    `progress` is given one line when a download begins and when it ends. Raises `EmbeddedServerError`.
    """
    target = cache_directory()
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f"{target.name}.lock").open("w") as lock:
            _acquire(lock)
            if not target.exists():
                _install(target, progress)
    return sorted(target.glob("*.jar"))


def _acquire(lock: IO[str]) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"another process has been downloading Kafka for {LOCK_TIMEOUT_S / 60:g} minutes;"
                    f" it holds {lock.name}"
                ) from None
            time.sleep(0.1)


def _install(target: Path, progress: Progress) -> None:
    # jgo keeps a truncated download for ever, so its cache lives and dies with this attempt; the finished
    # directory appears in one rename.
    for abandoned in target.parent.glob(f"{target.name}.*/"):
        shutil.rmtree(abandoned, ignore_errors=True)
    progress(f"downloading Kafka {KAFKA_VERSION} from Maven Central (45 MB, once)")
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as work:
        jars = Path(work) / "jars"
        jars.mkdir()
        try:
            for jar in _download(Path(work) / "repository"):
                _verify(jar)
                shutil.copyfile(jar, jars / jar.name)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise EmbeddedServerError(
                f"Kafka {KAFKA_VERSION} could not be downloaded from Maven Central: {error}"
            ) from error
        jars.rename(target)
    progress(f"Kafka {KAFKA_VERSION} is in {target}")


def _download(repository: Path) -> list[Path]:
    # Imported here: only a download needs them, and they cost a third of a second.
    from jgo.maven import MavenContext
    from jgo.parse import Coordinate

    checksums = _ChecksumWarnings()
    logger = logging.getLogger("jgo")
    logger.addHandler(checksums)
    try:
        context = MavenContext(repo_cache=repository, timeout=60)

        def with_dependencies(group: str, artifact: str, version: str) -> list[Any]:
            wanted = context.create_dependency(
                Coordinate(groupId=group, artifactId=artifact, version=version, scope="compile")
            )
            inputs, transitive = context.resolver.resolve([wanted])
            runtime = [dependency for dependency in transitive if dependency.scope in {"compile", "runtime"}]
            return [dependency.artifact for dependency in [*inputs, *runtime]]

        artifacts = with_dependencies(*_KAFKA)
        log4j = next(each.version for each in artifacts if each.artifactId == "log4j-core")
        bridge = context.project(*_LOG_BRIDGE).at_version(log4j).artifact()
        jars = [artifact.resolve() for artifact in [*artifacts, bridge]]
    finally:
        logger.removeHandler(checksums)
    if checksums.mismatches:
        raise RuntimeError("; ".join(checksums.mismatches))
    return jars


def _verify(jar: Path) -> None:
    try:
        with zipfile.ZipFile(jar) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile as error:
        raise RuntimeError(f"{jar.name} is damaged: {error}") from error
    if broken:
        raise RuntimeError(f"{jar.name} is damaged: {broken}")


class _ChecksumWarnings(logging.Handler):
    """jgo compares each download with its published checksum, but only logs a mismatch: collect these."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.mismatches: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message if it is about a checksum."""
        message = record.getMessage()
        if "checksum mismatch" in message.lower():
            self.mismatches.append(message)
