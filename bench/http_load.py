"""A load of GET requests over kept connections, from a process of its own: `python -m bench.http_load PORT PATH N S`.

Prints JSON: requests a second, and milliseconds at the median and the 99th percentile. Each connection sends its next
request when it has the answer to the one before, so the latency is that of a server that is kept busy.
"""

import asyncio
import json
import sys
import time
from statistics import quantiles

import uvloop


async def load(port: int, path: str, connections: int, seconds: float) -> dict[str, float]:
    """The figures of so many connections asking for so long."""
    took: list[float] = []
    end = time.monotonic() + seconds
    await asyncio.gather(*(ask(port, path, end, took) for _ in range(connections)))
    percentiles = quantiles(took, n=100)
    return {"per_second": len(took) / seconds, "p50_ms": percentiles[49] * 1000, "p99_ms": percentiles[98] * 1000}


async def ask(port: int, path: str, end: float, took: list[float]) -> None:
    """Ask again and again until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    while (started := time.monotonic()) < end:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(head.decode())
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        took.append(time.monotonic() - started)
    writer.close()


if __name__ == "__main__":
    port, path, connections, seconds = sys.argv[1:]
    print(json.dumps(uvloop.run(load(int(port), path, int(connections), float(seconds)))))
