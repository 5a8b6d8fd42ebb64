"""``/livez``, ``/readyz`` and ``/metrics``: what orchestrators and Prometheus ask, the same in every role."""

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from streams.health import Report, health


def routes() -> list[Route]:
    """The three routes, of this process."""
    return [*health_routes(), Route("/metrics", metrics)]


def health_routes() -> list[Route]:
    """Those that may be asked by anybody who can reach the API; metrics are for the port of their own."""
    return [Route("/livez", livez), Route("/readyz", readyz)]


async def livez(_: Request) -> Response:
    """200 while every loop comes round; 503 where one is stuck, and a restart would help."""
    return _answer(health.alive(), "alive", "stuck")


async def readyz(_: Request) -> Response:
    """200 where the process can do its work: database, broker, assignment; else 503 and which of them fails."""
    return _answer(await health.ready(), "ready", "not ready")


async def metrics(request: Request) -> Response:
    """All metrics of this process, in the format Prometheus asks for."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), headers={"content-type": content_type})


def _answer(report: Report, good: str, bad: str) -> Response:
    body = {"status": good if report.ok else bad, "details": report.details}
    return JSONResponse(body, 200 if report.ok else 503, headers={"cache-control": "no-store"})
