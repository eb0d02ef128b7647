"""Who is asking, and whether they may: sessions, roles, CSRF."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Form, Request

from annotation.accounts import session_of
from annotation.refusals import RefusedError
from annotation.settings import AnnotationSettings
from annotation.storage.database import Database
from annotation.storage.schema import Role, User

COOKIE = "rlhf_session"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def utc_now() -> datetime:
    """The clock of the service."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Service:
    """What every route works with."""

    database: Database
    settings: AnnotationSettings
    now: Callable[[], datetime] = utc_now


@dataclass(frozen=True)
class Visitor:
    """A user who is logged in."""

    user: User
    csrf_token: str

    @property
    def is_lead(self) -> bool:
        """Whether the lead's pages are open to them."""
        return Role(self.user.role).rank >= Role.lead.rank

    @property
    def is_admin(self) -> bool:
        """Whether the admin's pages are open to them."""
        return self.user.role == Role.admin


class NotLoggedInError(RefusedError):
    """Nobody is logged in, or the session has ended."""

    status = 401


class NotAllowedError(RefusedError):
    """The role does not reach, or the request does not come from our own page."""

    status = 403


def service_of(request: Request) -> Service:
    """The service that an application was made for."""
    return request.app.state.service


def visitor_of(request: Request) -> Visitor | None:
    """Who is logged in in this browser."""
    service = service_of(request)
    token = request.cookies.get(COOKIE)
    if not token:
        return None
    with service.database.reading() as session:
        found = session_of(session, token, service.now())
    return None if found is None else Visitor(found.user, found.csrf_token)


def role_at_least(role: Role) -> Callable[..., Visitor]:
    """A dependency: a visitor of that role or above whose request comes from our own page.

    It raises NotLoggedInError or NotAllowedError.
    """

    def checked(request: Request, csrf: Annotated[str, Form()] = "") -> Visitor:
        visitor = visitor_of(request)
        if visitor is None:
            raise NotLoggedInError(
                "You are not logged in, or your session has ended",
                "Log in again; the item that you had is still with you",
            )
        if Role(visitor.user.role).rank < role.rank:
            raise NotAllowedError(f"This page is for the role {role.value}", "Ask an admin for it")
        if request.method not in SAFE_METHODS and not _same(csrf, visitor.csrf_token):
            raise NotAllowedError(
                "This request did not come from a page of this session",
                "Load the page again and repeat it",
            )
        return visitor

    checked.__name__ = f"require_{role.value}"
    return checked


def _same(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), expected.encode())


Annotator = Annotated[Visitor, Depends(role_at_least(Role.annotator))]
Lead = Annotated[Visitor, Depends(role_at_least(Role.lead))]
Admin = Annotated[Visitor, Depends(role_at_least(Role.admin))]
ServiceDep = Annotated[Service, Depends(service_of)]
