"""A Kafka of a controller and two brokers, whose coordinators can be moved from one broker to the other."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int16, Int32, Schema, String

from rollcall.embedded.kafka import EmbeddedKafka
from rollcall.embedded.servers import free_port
from tests.harness.waiting import eventually

CONTROLLER_ID = 1
BROKER_IDS = (2, 3)
MOVED_TIMEOUT_S = 30.0
WHOLE_TIMEOUT_S = 60.0

_JVM = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-Dorg.apache.logging.log4j.level=WARN"]
_EVERY_NODE = {
    "default.replication.factor": "2",
    # One partition each, whose leader coordinates every group, or every transactional id.
    "offsets.topic.replication.factor": "2",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "2",
    "transaction.state.log.num.partitions": "1",
    # Leaders move when a fault moves them.
    "auto.leader.rebalance.enable": "false",
}


@dataclass(frozen=True)
class Coordinated:
    """A key that some broker coordinates, and the topic the leader of which that is; `kind` is FindCoordinator's."""

    what: str
    key: str
    kind: int
    topic: str


def group(key: str) -> Coordinated:
    """A consumer group."""
    return Coordinated("group", key, 0, "__consumer_offsets")


def transactions(key: str) -> Coordinated:
    """A transactional id."""
    return Coordinated("transactions", key, 1, "__transaction_state")


@dataclass(frozen=True)
class Move:
    """That a coordinator has moved."""

    what: str
    before: int
    after: int
    by: str
    took_s: float

    def __str__(self) -> str:
        return f"{self.what} {self.before}>{self.after} by {self.by} in {self.took_s:.1f} s"


# Neither aiokafka 0.14 nor confluent-kafka 2.16 (whose elect_leaders always raises SystemError) can ask for this.
class _ElectLeadersResponse(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 43
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(("partition", Int32), ("error_code", Int16), ("error_message", String("utf-8"))),
                ),
            ),
        ),
    )


class _ElectLeadersRequestStruct(RequestStruct):  # type: ignore[misc]  # as above
    API_KEY = 43
    API_VERSION = 0
    RESPONSE_TYPE = _ElectLeadersResponse
    SCHEMA = Schema(
        ("topics", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))),
        ("timeout_ms", Int32),
    )


class _ElectLeadersRequest(Request[_ElectLeadersRequestStruct]):  # type: ignore[misc]  # as above
    """The preferred leaders of the first partitions of topics."""

    API_KEY = 43

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_ElectLeadersRequestStruct]) -> _ElectLeadersRequestStruct:
        return request_struct_class([(topic, [0]) for topic in self._topics], 10_000)


class _Node(EmbeddedKafka):
    """The controller, or a broker that finds it at its port."""

    # A broker that is to end in peace, and whose controller has ended too, waits for it for five minutes.
    death_signal = signal.SIGKILL

    def __init__(self, data_dir: Path, node_id: int, port: int, controller_port: int) -> None:
        self._controls = node_id == CONTROLLER_ID
        super().__init__(data_dir, (port, controller_port), jvm=_JVM)
        self.node_id = node_id
        if not self._controls:
            self.format_options = ("--no-initial-controllers",)

    def _write_properties(self) -> None:
        super()._write_properties()
        here = f"{'CONTROLLER' if self._controls else 'PLAINTEXT'}://127.0.0.1:{self.port}"
        properties = dict(line.split("=", 1) for line in self._properties.read_text().splitlines())
        properties |= _EVERY_NODE
        properties |= {"process.roles": "controller" if self._controls else "broker", "node.id": str(self.node_id)}
        properties |= {"listeners": here, "advertised.listeners": here}
        if self._controls:
            del properties["inter.broker.listener.name"]
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    async def _knows_itself(self) -> bool:
        # The controller answers brokers only.
        return self._controls or await super()._knows_itself()


class Cluster:
    """Started when a fault needs it; its data stay in `directory` for the next time."""

    def __init__(self, directory: Path) -> None:
        node_ids = (CONTROLLER_ID, *BROKER_IDS)
        controller_port = free_port(len(node_ids))
        self._nodes = {
            node_id: _Node(directory / str(node_id), node_id, port, controller_port)
            for port, node_id in enumerate(node_ids, controller_port)
        }
        for node in self._nodes.values():
            node.cluster_id = self._nodes[CONTROLLER_ID].cluster_id
        self.started = False

    @property
    def bootstrap_servers(self) -> str:
        """Both brokers."""
        return ",".join(self._nodes[node_id].bootstrap_servers for node_id in BROKER_IDS)

    async def start(self) -> None:
        """Start what is not running; returns when every replica is in sync."""
        self.started = True
        dead = [node for node in self._nodes.values() if node.child is None or node.child.returncode is not None]
        await asyncio.gather(*(node.start() for node in dead))
        await eventually(self._is_whole, WHOLE_TIMEOUT_S, message="both brokers hold all of every partition")

    async def stop(self) -> None:
        """Brokers first: they leave with the controller's help."""
        await asyncio.gather(*(self._nodes[node_id].stop() for node_id in BROKER_IDS))
        await self._nodes[CONTROLLER_ID].stop()
        self.started = False

    async def move(self, coordinated: Coordinated, random: Random) -> Move:
        """Have another broker coordinate it; returns once it does. Raises AssertionError where none does in time.

        The broker that did is dead then. Or, where another one is to by preference, that one is elected: then the
        former lives, and answers whoever still asks it that it does not coordinate this.
        """
        before: Any = await eventually(
            lambda: self.coordinator(coordinated), message=f"who coordinates {coordinated.key}"
        )
        begun = time.monotonic()
        if await self._preferred(coordinated.topic) != before and random.random() < 0.5:
            by = "election"
            await self.elect(coordinated.topic)
        else:
            by, stop = random.choice((("SIGTERM", self._nodes[before].stop), ("SIGKILL", self._nodes[before].kill)))
            await stop()

        async def elsewhere() -> int | None:
            after = await self.coordinator(coordinated)
            return after if after != before else None

        after: Any = await eventually(elsewhere, MOVED_TIMEOUT_S, message=f"{coordinated.what} move away from {before}")
        return Move(coordinated.what, before, after, by, time.monotonic() - begun)

    async def elect(self, *topics: str) -> None:
        """Have these internal topics led by the brokers that are to lead them by preference."""
        await self._ask(lambda admin: admin._send_request(_ElectLeadersRequest(topics)))

    async def coordinator(self, coordinated: Coordinated) -> int | None:
        """The broker that coordinates it, as brokers say; None while they do not know."""
        broker: int | None = await self._ask(lambda admin: admin.find_coordinator(coordinated.key, coordinated.kind))
        return broker

    async def committed(self, group_id: str) -> int | None:
        """The sum of a group's committed offsets; None while its coordinator does not say."""
        offsets = await self._ask(lambda admin: admin.list_consumer_group_offsets(group_id))
        return None if offsets is None else sum(each.offset for each in offsets.values())

    async def _preferred(self, topic: str) -> int | None:
        described = await self._ask(lambda admin: admin.describe_topics([topic]))
        return None if described is None else int(described[0]["partitions"][0]["replicas"][0])

    async def _is_whole(self) -> bool:
        described = await self._ask(lambda admin: admin.describe_topics())
        if described is None:
            return False
        return all(
            each["leader"] in BROKER_IDS and set(each["isr"]) == set(BROKER_IDS)
            for topic in described
            for each in topic["partitions"]
        )

    async def _ask(self, question: Callable[[AIOKafkaAdminClient], Awaitable[Any]]) -> Any:
        """What a living broker answers; None where none does."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._alive(), request_timeout_ms=5_000)
        try:
            await admin.start()
            return await question(admin)
        except (KafkaError, OSError):
            return None
        finally:
            await admin.close()

    def _alive(self) -> str:
        brokers = [self._nodes[node_id] for node_id in BROKER_IDS]
        return ",".join(each.bootstrap_servers for each in brokers if each.child is not None)
