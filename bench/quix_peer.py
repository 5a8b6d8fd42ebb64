"""Quix Streams: a Python peer in an environment of its own, one process a worker."""

import asyncio
import shutil
import sys
from pathlib import Path

from aiokafka.admin import NewTopic

from bench.finalized import Finalized
from bench.measuring import Cpu, Measured, measure
from bench.product import still_there
from bench.running import Bed, stop_all
from bench.streams_peer import PeerMissingError
from rollcall.children import Child
from streams.kafka import KafkaConnection

SOURCE = Path(__file__).parent / "peers" / "quix_streams"
ENVIRONMENT = Path(sys.prefix) / "peers" / "quix"


async def install() -> Path:
    """The interpreter of its environment, made where it is missing. Raises PeerMissingError."""
    requirements, python = SOURCE / "requirements.txt", ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
        for step in (
            ("venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)),
            ("pip", "install", "--quiet", "--python", str(python), "--requirement", str(requirements)),
        ):
            try:
                process = await asyncio.create_subprocess_exec(
                    uv, *step, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
                )
            except FileNotFoundError:
                raise PeerMissingError("Quix Streams is left out: uv is not installed (make setup)") from None
            output, _ = await process.communicate()
            if process.returncode != 0:
                lines = output.decode().strip().splitlines()
                raise PeerMissingError(f"Quix Streams is left out: {lines[-1] if lines else 'uv failed'}")
        stamp.write_text(requirements.read_text())
    return python


async def run(
    bed: Bed, python: Path, topic: str, *, items: int, progress: int, batches: int, processes: int
) -> Measured:
    """Count a whole topic. ``progress`` is the sum of committed offsets at its end."""
    group = bed.new_name("quix-")
    output, state, log = f"{group}.finalized", bed.directory / group, bed.directory / f"{group}.log"
    kafka = KafkaConnection(bed.kafka.bootstrap_servers)
    admin = kafka.admin()
    await admin.start()
    await admin.create_topics([NewTopic(output, 3, 1)])
    children: list[Child] = []
    try:
        for number in range(processes):
            argv = [str(python), str(SOURCE / "count.py"), "--bootstrap", bed.kafka.bootstrap_servers, "--topic", topic]
            argv += ["--finalized", output, "--group", group, "--state", str(state / str(number))]
            children.append(await Child.spawn(argv, name="Quix Streams", log=log))

        async def applied() -> int:
            offsets = await admin.list_consumer_group_offsets(group)
            return sum(found.offset for found in offsets.values() if found.offset > 0)

        async with Finalized(kafka, output) as finalized:

            async def finished() -> bool:
                await finalized.read()
                return len(finalized.values) >= batches

            measured = await measure(
                items=items,
                progress=progress,
                applied=applied,
                finished=finished,
                alive=lambda: still_there(children),
                cpu=Cpu({"worker": [child.pid for child in children], "Kafka": bed.processes["Kafka"]}),
                memory_of=[child.pid for child in children],
            )
            await finalized.expect(batches, items // batches)
        return measured
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{log.read_text()[-2000:] if log.exists() else ''}") from None
    finally:
        await stop_all(children)
        names = [name for name in await admin.list_topics() if group in name]
        await admin.delete_topics(names)
        await admin.close()
        await asyncio.to_thread(shutil.rmtree, state, ignore_errors=True)
