"""Documents for those who talk with Rollcall by Kafka."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas.asyncapi import MEDIA_TYPE, text
from schemas.topics import Topics


def routes(topics: Topics) -> list[Route]:
    """``/docs/asyncapi``: the AsyncAPI 3 document of this installation's topics."""
    document = text(topics)

    async def asyncapi(_: Request) -> Response:
        return Response(document, media_type=MEDIA_TYPE)

    return [Route("/docs/asyncapi", asyncapi)]
