"""The HTTP application: routes, errors and limits put together."""

from fastapi import FastAPI

from api import batches, documents, operations, problems
from api.context import Context

PREFIX = "/api"


def create_app(context: Context) -> FastAPI:
    """The application over a context that is open for as long as it serves."""
    app = FastAPI(
        title="Rollcall",
        description="Tells you when a batch is done, exactly once, and who did not answer.",
        version="1",
        openapi_url="/openapi.json",
        # The stock pages load their scripts from a CDN.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    problems.add_handlers(app)
    app.include_router(batches.router, prefix=PREFIX)
    app.router.routes.extend([*operations.health_routes(), *documents.routes(context.topics)])
    return app
