"""The application: routes, static files, the guard around them, errors as pages."""

import logging
from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import DatabaseError, IntegrityError, InterfaceError, OperationalError
from starlette.exceptions import HTTPException

from annotation.refusals import NotThereError, NotYoursError, RefusedError, UnavailableError
from annotation.web.guard import Guard
from annotation.web.pages import access, admin, lead, tasks, writing
from annotation.web.rendering import refusal
from annotation.web.visitors import Service

_log = logging.getLogger(__name__)

_UNUSABLE = (OperationalError, InterfaceError, DatabaseError)
"""The last is what SQLite says of a damaged file."""


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
    app.add_exception_handler(IntegrityError, _conflict)
    for error in _UNUSABLE:
        app.add_exception_handler(error, _database_error)
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


async def _conflict(request: Request, error: Exception) -> Response:
    """Two requests made the same thing at the same moment; this one came second."""
    assert isinstance(error, IntegrityError)
    # by its kind alone: its message quotes what was sent
    _log.error("%s %s: %s", request.method, request.url.path, type(error.orig).__name__)
    return refusal(
        request, NotYoursError("Somebody did that at the same moment", "Load the page again")
    )


async def _database_error(request: Request, error: Exception) -> Response:
    """The database went away, is full, damaged or stays locked: nothing is acknowledged."""
    assert isinstance(error, DatabaseError | InterfaceError)
    if type(error) not in _UNUSABLE:
        raise error  # another kind of DatabaseError: a statement of ours is wrong
    _log.error("%s %s: %s", request.method, request.url.path, " ".join(str(error.orig).split()))
    return refusal(
        request,
        UnavailableError(
            "Not saved: the service cannot use its database now",
            "Send it again in a moment; nothing is counted twice",
        ),
    )
