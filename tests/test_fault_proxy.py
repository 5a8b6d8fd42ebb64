"""The fault rounds' proxy: what it does not deliver it does not take, and what it took arrives, if late."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.faults.proxy import Proxy
from tests.harness.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

LARGE = b"x" * (32 * 1024 * 1024)


class Sink:
    """A server that reads all there is and says nothing."""

    def __init__(self) -> None:
        self.read = 0
        self.ended = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024 * 1024):
            self.read += len(data)
        self.ended += 1
        writer.close()


@pytest.fixture
async def sink() -> AsyncIterator[tuple[Sink, Proxy]]:
    sink = Sink()
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0)
    proxy = Proxy(lambda: server.sockets[0].getsockname()[1])
    await proxy.start()
    yield sink, proxy
    await proxy.stop()
    server.close()


async def test_who_sends_into_a_black_hole_has_to_wait_until_it_is_healed(sink: tuple[Sink, Proxy]) -> None:
    server, proxy = sink
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    await eventually(lambda: server.read == 5)
    proxy.black_hole()
    writer.write(LARGE)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(writer.drain(), 1)
    assert server.read == 5
    proxy.heal()
    await asyncio.wait_for(writer.drain(), 30)
    await eventually(lambda: server.read == 5 + len(LARGE))
    writer.close()


async def test_what_a_client_that_has_gone_sent_into_a_stalled_connection_arrives_after_all(
    sink: tuple[Sink, Proxy],
) -> None:
    server, proxy = sink
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    await eventually(lambda: server.read == 5)
    proxy.stall()
    writer.write(b"late")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert server.ended == 0
    proxy.heal()
    await eventually(lambda: server.ended == 1)
    assert server.read == len(b"hellolate")
