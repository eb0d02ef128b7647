"""Getting in and out: log-in, log-out, invitations, the health check."""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from sqlalchemy import text

from annotation.accounts import SESSION_LIFE, LoggedIn, accept, invitation, log_in, log_out
from annotation.refusals import RefusedError
from annotation.web.fields import Text
from annotation.web.rendering import page, see
from annotation.web.visitors import COOKIE, Annotator, Service, ServiceDep, visitor_of

router = APIRouter()


@router.get("/healthz")
def health(service: ServiceDep) -> PlainTextResponse:
    """Whether the database answers."""
    with service.database.reading() as session:
        session.execute(text("SELECT 1"))
    return PlainTextResponse("ok")


@router.get("/login")
def login_page(request: Request) -> Response:
    """The log-in form."""
    if visitor_of(request) is not None:
        return see("/")
    return page(request, "login.html", None, error=None, username="")


@router.post("/login")
def login(request: Request, service: ServiceDep, username: Text, password: Text) -> Response:
    """Start a session, or show why not."""
    address = request.client.host if request.client else "unknown"
    try:
        logged_in = log_in(service.database, username, password, address, service.now())
    except RefusedError as error:
        response = page(request, "login.html", None, error.status, error=error, username=username)
        if retry_after := getattr(error, "retry_after_seconds", None):
            response.headers["Retry-After"] = str(retry_after)
        return response
    if earlier := request.cookies.get(COOKIE):  # somebody else's, or planted: it ends here
        with service.database.writing() as session:
            log_out(session, earlier)
    return _with_cookie(see("/"), logged_in, service)


@router.post("/logout")
def logout(request: Request, service: ServiceDep, visitor: Annotator) -> Response:
    """End the session, on the server too."""
    with service.database.writing() as session:
        log_out(session, request.cookies[COOKIE])
    response = see("/login")
    response.delete_cookie(COOKIE)
    return response


@router.get("/invitations/{token}")
def invitation_page(request: Request, service: ServiceDep, token: str) -> Response:
    """The form with which an invited person makes an account."""
    with service.database.reading() as session:
        role = invitation(session, token, service.now()).role
    return page(request, "invitation.html", None, role=role, error=None, username="")


@router.post("/invitations/{token}")
def accept_invitation(
    request: Request, service: ServiceDep, token: str, username: Text, password: Text
) -> Response:
    """Make the account and log in."""
    try:
        with service.database.writing() as session:
            accept(session, token, username, password, service.now())
    except RefusedError as error:
        with service.database.reading() as session:
            role = invitation(session, token, service.now()).role
        return page(
            request,
            "invitation.html",
            None,
            error.status,
            role=role,
            error=error,
            username=username,
        )
    address = request.client.host if request.client else "unknown"
    logged_in = log_in(service.database, username, password, address, service.now())
    return _with_cookie(see("/"), logged_in, service)


def _with_cookie(response: Response, logged_in: LoggedIn, service: Service) -> Response:
    response.set_cookie(
        COOKIE,
        logged_in.token,
        max_age=int(SESSION_LIFE.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=service.settings.secure_cookies,
    )
    return response
