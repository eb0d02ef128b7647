"""The admin's pages: users, invitations, the audit log."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response
from sqlalchemy import select

from annotation.accounts import INVITATION_LIFE, change_user, invite
from annotation.storage.schema import AuditEntry, Role, User
from annotation.web.fields import RowId
from annotation.web.rendering import page, see
from annotation.web.visitors import Admin, ServiceDep

router = APIRouter(prefix="/admin")

AUDIT_ROWS = 500


@router.get("/users")
def users(request: Request, service: ServiceDep, visitor: Admin) -> Response:
    """Everybody who may log in, and the form for an invitation."""
    with service.database.reading() as session:
        found = session.scalars(select(User).order_by(User.username)).all()
    return page(request, "users.html", visitor, users=found, roles=list(Role), link=None)


@router.post("/invitations")
def make_invitation(
    request: Request, service: ServiceDep, visitor: Admin, role: Annotated[Role, Form()]
) -> Response:
    """A link, shown once."""
    with service.database.writing() as session:
        token = invite(session, role, service.now(), visitor.user)
        found = session.scalars(select(User).order_by(User.username)).all()
    link = f"{str(request.base_url).rstrip('/')}/invitations/{token}"
    return page(
        request,
        "users.html",
        visitor,
        users=found,
        roles=list(Role),
        link=link,
        days=INVITATION_LIFE.days,
    )


@router.post("/users/{user_id}")
def edit_user(
    service: ServiceDep,
    visitor: Admin,
    user_id: RowId,
    role: Annotated[Role, Form()],
    is_active: Annotated[bool, Form()] = False,
) -> Response:
    """Another role, or no access any more; the user's sessions end."""
    with service.database.writing() as session:
        change_user(session, user_id, role, is_active, service.now(), visitor.user)
    return see("/admin/users")


@router.get("/audit")
def audit_log(request: Request, service: ServiceDep, visitor: Admin) -> Response:
    """Who did what, newest first."""
    with service.database.reading() as session:
        entries = session.scalars(
            select(AuditEntry).order_by(AuditEntry.id.desc()).limit(AUDIT_ROWS)
        ).all()
    return page(request, "audit.html", visitor, entries=entries)
