"""The application: routes, static files, the guard around them, errors as pages."""

from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from annotation.refusals import NotThereError, RefusedError
from annotation.web.guard import Guard
from annotation.web.pages import access, admin, lead, tasks, writing
from annotation.web.rendering import refusal
from annotation.web.visitors import Service


def create_app(service: Service) -> FastAPI:
    """The annotation service over an open database."""
    # The schema is for tests (app.openapi()); strangers need no list of the routes.
    app = FastAPI(title=service.settings.product, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    for pages in (access, tasks, writing, lead, admin):
        app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    app.add_middleware(Guard)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def refused_fields(errors: list[Mapping[str, object]]) -> RefusedError:
    """Fields that are missing or of another form, by name; values are not repeated."""
    fields = sorted({str(loc[-1]) for e in errors if isinstance(loc := e.get("loc"), tuple)})
    return RefusedError(
        f"The form is not complete: {', '.join(fields)}", "Fill it in and send it again"
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refusal(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal(request, refused_fields(list(error.errors())))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return refusal(request, NotThereError("There is no such page", "Go to the start page"))
    return PlainTextResponse(str(error.detail), error.status_code, dict(error.headers or {}))
