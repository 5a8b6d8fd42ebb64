"""Kafka Streams: built with Maven from bench/peers/kafka_streams, run in a JVM of its own beside the servers."""

import asyncio
import shutil
from pathlib import Path

from aiokafka.admin import NewTopic

from bench.finalized import Finalized
from bench.measuring import Cpu, Measured, measure
from bench.product import still_there
from bench.running import Bed
from rollcall.children import Child
from streams.kafka import KafkaConnection

SOURCE = Path(__file__).parent / "peers" / "kafka_streams"
JVM = ["-Xms2g", "-Xmx2g", "-XX:+UseParallelGC"]
LOG_LEVEL = "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"
START_TIMEOUT_S = 60.0


class PeerMissingError(Exception):
    """This peer cannot run here; the message says why, in one line."""


async def build() -> str:
    """The class path of the peer, built where its source is newer. Raises PeerMissingError."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise PeerMissingError(
                f"Kafka Streams is left out: {program} is not installed (Java 17 and Maven are needed)"
            )
    jar = SOURCE / "target" / "kafka-streams-peer-1.jar"
    sources = [SOURCE / "pom.xml", *SOURCE.glob("src/**/*.java")]
    if not jar.exists() or jar.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        maven = await asyncio.create_subprocess_exec(
            *("mvn", "--batch-mode", "--quiet", "package"),
            cwd=SOURCE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await maven.communicate()
        if maven.returncode != 0:
            lines = [line for line in output.decode().splitlines() if line.strip()]
            raise PeerMissingError(f"Kafka Streams is left out: Maven failed: {lines[0] if lines else 'no output'}")
    return f"{jar}:{SOURCE / 'target' / 'lib'}/*"


class Streams:
    """One run of it on a topic, from the beginning, under an application id of its own."""

    def __init__(
        self, bed: Bed, classpath: str, topic: str, *, partitions: int, threads: int, **options: object
    ) -> None:
        self.application = bed.new_name("streams-")
        self.finalized = f"{self.application}.finalized"
        self.state = bed.directory / self.application
        self._kafka = KafkaConnection(bed.kafka.bootstrap_servers)
        self._log = bed.directory / f"{self.application}.log"
        self._classpath = classpath
        self._topic = topic
        self._arguments = {
            "application": self.application,
            "bootstrap": bed.kafka.bootstrap_servers,
            "topics": topic,
            "finalized": self.finalized,
            "partitions": partitions,
            "threads": threads,
            "state": self.state,
            **options,
        }
        self.child: Child | None = None

    async def start(self) -> Child:
        """Start it and return when it runs."""
        admin = self._kafka.admin()
        await admin.start()
        await admin.create_topics([NewTopic(self.finalized, 3, 1)])
        await admin.close()
        arguments = [f"{name}={value}" for name, value in self._arguments.items()]
        argv = ["java", *JVM, LOG_LEVEL, "-cp", self._classpath, "rollcall.bench.Main", *arguments]
        self.child = await Child.spawn(argv, name="Kafka Streams", log=self._log)
        async with asyncio.timeout(START_TIMEOUT_S):
            while "\nRUNNING" not in f"\n{self._log.read_text()}":
                self.alive()
                await asyncio.sleep(0.02)
        return self.child

    def alive(self) -> None:
        assert self.child is not None
        if self.child.returncode is not None:
            raise RuntimeError(f"Kafka Streams ended with {self.child.returncode}:\n{self._log.read_text()[-2000:]}")
        still_there([self.child])

    async def stop(self) -> None:
        if self.child is not None:
            await self.child.stop(15)
        # Its topics go with it, so that the broker has no more to keep for one contender than for another.
        admin = self._kafka.admin()
        await admin.start()
        names = [name for name in await admin.list_topics() if name.startswith(f"{self.application}-")]
        await admin.delete_topics([*names, self.finalized])
        await admin.close()
        await asyncio.to_thread(shutil.rmtree, self.state, ignore_errors=True)


async def run(
    bed: Bed,
    classpath: str,
    topic: str,
    *,
    items: int,
    progress: int,
    batches: int,
    threads: int,
    partitions: int,
    **options: object,
) -> Measured:
    """Count a whole topic. ``progress`` is the sum of committed offsets at its end."""
    streams = Streams(bed, classpath, topic, threads=threads, partitions=partitions, **options)
    kafka = KafkaConnection(bed.kafka.bootstrap_servers)
    admin = kafka.admin()
    await admin.start()
    try:
        child = await streams.start()

        async def applied() -> int:
            offsets = await admin.list_consumer_group_offsets(streams.application)
            counted = {topic, f"{streams.application}-home-repartition"}
            return sum(found.offset for at, found in offsets.items() if at.topic in counted and found.offset > 0)

        async with Finalized(kafka, streams.finalized) as finalized:

            async def finished() -> bool:
                await finalized.read()
                return len(finalized.values) >= batches

            measured = await measure(
                items=items,
                progress=progress,
                applied=applied,
                finished=finished,
                alive=streams.alive,
                cpu=Cpu({"worker": [child.pid], "Kafka": bed.processes["Kafka"]}),
                memory_of=[child.pid],
            )
            await finalized.expect(batches, items // batches)
        return measured
    finally:
        await admin.close()
        await streams.stop()
