"""Pages from templates, and errors as pages."""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.access import Caller, Role
from api.pages import showing
from api.problems import Problem

HERE = Path(str(files("api.pages")))

_templates = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["as_json"] = showing.as_json
_templates.globals.update(
    icons=showing.ICONS,
    segments=showing.segments,
    bar_text=showing.bar_text,
    eta=showing.eta,
    duration=showing.duration,
    age=showing.age,
    batch_url=showing.batch_url,
    item_url=showing.item_url,
    bar_width=showing.BAR_WIDTH,
    admin=Role.ADMIN,
)


class PageRoute(APIRoute):
    """A page's errors are pages, and whoever is not signed in is asked to."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps the handler."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Problem as problem:
                if problem.status == 401 and request.url.path != "/sign-in":
                    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                    return RedirectResponse(f"/sign-in?next={quote(wanted, safe='')}", 303)
                return rendered(request, "problem.html", None, problem.status, detail=problem.detail)
            except RequestValidationError:
                return rendered(request, "problem.html", None, 422, detail="the address has a value that cannot be")

        return answer


def rendered(request: Request, template: str, caller: Caller | None, code: int = 200, **values: Any) -> Response:
    """A template as an answer; ``caller`` is None where nobody is known."""
    text = _templates.get_template(template).render(
        **values, request=request, caller=caller, now=datetime.now(UTC), path=request.url.path, status_code=code
    )
    return HTMLResponse(text, code)
