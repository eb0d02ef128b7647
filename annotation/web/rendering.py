"""Templates: everything that is put into a page is escaped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from annotation.guidelines import as_html
from annotation.refusals import RefusedError, TooManyAttemptsError
from annotation.web.text_blocks import text_blocks
from annotation.web.visitors import NotLoggedInError, Visitor, service_of
from data_contracts.ratings import Rating, SafetyLabel

RATING_WORDS = {
    Rating.significantly_better: "significantly better",
    Rating.better: "better",
    Rating.slightly_better: "slightly better",
    Rating.negligibly_better: "negligibly better / unsure",
}
SAFETY_WORDS = {
    SafetyLabel.chosen_safe_other_unsafe: "chosen safe, other unsafe",
    SafetyLabel.both_safe: "both safe",
    SafetyLabel.both_unsafe: "both unsafe",
}

templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters["blocks"] = text_blocks
templates.filters["markdown"] = as_html
templates.filters["percent"] = lambda share: f"{100 * share:.0f}\u00a0%"
templates.filters["clock"] = lambda at: at.strftime("%Y-%m-%d %H:%M") if at else "–"
templates.globals["RATINGS"] = RATING_WORDS
templates.globals["SAFETY_LABELS"] = SAFETY_WORDS


def page(
    request: Request, name: str, visitor: Visitor | None, status: int = 200, **context: Any
) -> HTMLResponse:
    """A template as a response."""
    settings = service_of(request).settings
    html = templates.get_template(name).render(
        settings=settings, visitor=visitor, path=request.url.path, **context
    )
    return HTMLResponse(html, status)


def is_htmx(request: Request) -> bool:
    """Whether the request asks for a part of the page that is already open."""
    return request.headers.get("hx-request") == "true"


def see(path: str) -> RedirectResponse:
    """Go on with a GET of another page."""
    return RedirectResponse(path, 303)


def refusal(request: Request, error: RefusedError) -> Response:
    """A refusal as a notice in the open page, as a page of its own, or as the way to log in."""
    is_reading = request.method in ("GET", "HEAD")
    if isinstance(error, NotLoggedInError) and is_reading and not is_htmx(request):
        return see("/login")
    headers: Mapping[str, str] = {}
    if isinstance(error, TooManyAttemptsError):
        headers = {"Retry-After": str(error.retry_after_seconds)}
    if is_htmx(request):
        response = page(request, "_notice.html", None, error.status, error=error)
        headers = {**headers, "HX-Retarget": "#notice", "HX-Reswap": "innerHTML"}
    else:
        response = page(request, "refusal.html", None, error.status, error=error)
    response.headers.update(headers)
    return response
