"""Who may use the service: users, roles, passwords, sessions, invitations."""

import hashlib
import ipaddress
import re
import secrets
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from annotation.labelling import without_nul
from annotation.refusals import NotThereError, RefusedError, TooManyAttemptsError
from annotation.storage.database import Database
from annotation.storage.schema import (
    AuditEntry,
    Invitation,
    LoginFailure,
    LoginSession,
    Role,
    User,
)

SESSION_LIFE = timedelta(hours=12)
INVITATION_LIFE = timedelta(days=7)
FAILURE_WINDOW = timedelta(minutes=15)
MAX_FAILURES = {"user": 5, "address": 30}
"""Failed log-ins in the window before the next one is refused; an office shares an address."""
MIN_PASSWORD_LENGTH = 12

_USERNAME = re.compile(r"[\w.@+-]{2,64}")
_hasher = PasswordHasher()
_hashing = threading.BoundedSemaphore(4)
"""One hash takes 64 MiB: a burst of log-ins must not take all memory."""
_NOBODY = (
    "$argon2id$v=19$m=65536,t=3,p=4$UZjWOA1sE+0Uw1fMvty2Hg"
    "$r+psi8RvXlRrWxjxYZZkAk/f2fU+ttaHDjX8rBhmpV8"
)
"""Checked when there is no such user, so that the answer takes as long; the password was drawn
and forgotten. Made at every start it would keep the page waiting, made at the first need it would
make that one answer take twice as long."""


@dataclass(frozen=True)
class LoggedIn:
    """A session's secrets, for the browser alone."""

    token: str
    user: User


# ---- users -----------------------------------------------------------------------------------


def create_user(
    session: Session, username: str, password: str, role: Role, now: datetime, actor: str
) -> User:
    """Add a user under a fresh pseudonym; raises RefusedError for an unfit name or password."""
    _check_credentials(session, username, password)
    user = User(
        username=username,
        pseudonym=f"annotator-{secrets.token_hex(4)}",
        role=role,
        password_hash=_hash(password),
        is_active=True,
        created_at=now,
    )
    session.add(user)
    try:
        session.flush()
    except IntegrityError:  # somebody took the name at the same moment
        raise _name_taken() from None
    audit(session, now, actor, "create user", f"{username} as {role}")
    return user


def change_user(
    session: Session, user_id: int, role: Role, is_active: bool, now: datetime, actor: User
) -> User:
    """Give a user another role or state; nobody demotes themselves.

    Their sessions end, and the links that they made and nobody has used: else a former admin would
    come back in by one.
    """
    user = session.get(User, user_id)
    if user is None:
        raise NotThereError("There is no such user", "Go back to the list of users")
    if user.id == actor.id:
        raise RefusedError("You cannot change your own role or state", "Ask another admin to do it")
    user.role, user.is_active = role, is_active
    session.execute(delete(LoginSession).where(LoginSession.user_id == user.id))
    unused = Invitation.created_by == user.id, Invitation.used_by.is_(None)
    session.execute(delete(Invitation).where(*unused))
    state = "active" if is_active else "inactive"
    audit(session, now, actor.username, "change user", f"{user.username}: {role}, {state}")
    return user


def _check_credentials(session: Session, username: str, password: str) -> None:
    if not _USERNAME.fullmatch(username):
        raise RefusedError(
            "This user name cannot be used",
            "Take 2 to 64 letters, digits, or any of . _ - + @",
        )
    if len(password) < MIN_PASSWORD_LENGTH or len(password) > 1_000:
        raise RefusedError(
            "The password is too short",
            f"Take at least {MIN_PASSWORD_LENGTH} characters; a sentence is easy to remember",
        )
    if session.scalar(select(func.count(User.id)).where(User.username == username)):
        raise _name_taken()


def _name_taken() -> RefusedError:
    return RefusedError("This user name is taken", "Choose another one")


# ---- log-in ------------------------------------------------------------------------------------


def log_in(
    database: Database, username: str, password: str, address: str, now: datetime
) -> LoggedIn:
    """A new session; raises RefusedError, or TooManyAttemptsError after too many failures.

    The attempt counts as a failure until it has succeeded, so that a burst of parallel attempts
    is limited as well. The slow hash runs outside any transaction.
    """
    username = without_nul(username[:64])
    subjects = [f"user:{username}", f"address:{_network(address)}"]
    with database.writing() as session:
        _refuse_too_many(session, subjects, now)
        session.add_all(LoginFailure(subject=subject, at=now) for subject in subjects)
        user = session.scalars(select(User).where(User.username == username)).one_or_none()
    is_right = _verify(user.password_hash if user else _NOBODY, password)
    with database.writing() as session:
        if user is not None and is_right and user.is_active:
            _forget_failures(session, subjects, now)
            audit(session, now, username, "log in", address)
            return _start_session(session, user, now)
        audit(session, now, username, "log-in refused", address)
    raise RefusedError("User name and password do not fit", "Try again")


def _network(address: str) -> str:
    """What one person has to themselves: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        given = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:100]
    if given.version == 4:
        return str(given)
    if given.ipv4_mapped:
        return str(given.ipv4_mapped)
    return str(ipaddress.ip_network((int(given), 64), strict=False))


def session_of(session: Session, token: str, now: datetime) -> LoginSession | None:
    """The live session of a cookie, with its active user."""
    found = session.get(LoginSession, _token_hash(token))
    if found is None or found.expires_at <= now or not found.user.is_active:
        return None
    return found


def log_out(session: Session, token: str) -> None:
    """End a session on the server; the cookie is worth nothing after that."""
    session.execute(delete(LoginSession).where(LoginSession.token_hash == _token_hash(token)))


def _start_session(session: Session, user: User, now: datetime) -> LoggedIn:
    session.execute(delete(LoginSession).where(LoginSession.expires_at <= now))
    token = secrets.token_urlsafe(32)
    session.add(
        LoginSession(
            token_hash=_token_hash(token),
            user_id=user.id,
            csrf_token=secrets.token_urlsafe(32),
            created_at=now,
            expires_at=now + SESSION_LIFE,
        )
    )
    return LoggedIn(token, user)


def _refuse_too_many(session: Session, subjects: list[str], now: datetime) -> None:
    for subject in subjects:
        times = session.scalars(
            select(LoginFailure.at)
            .where(LoginFailure.subject == subject, LoginFailure.at > now - FAILURE_WINDOW)
            .order_by(LoginFailure.at.desc())
        ).all()
        most = MAX_FAILURES[subject.partition(":")[0]]
        if len(times) >= most:
            wait = times[most - 1] + FAILURE_WINDOW - now
            raise TooManyAttemptsError(
                "Too many failed attempts to log in",
                f"Wait {int(wait.total_seconds()) // 60 + 1} minutes and try again",
                int(wait.total_seconds()) + 1,
            )


def _forget_failures(session: Session, subjects: list[str], now: datetime) -> None:
    """Of the user; and this attempt's own mark on the address."""
    user, address = subjects
    session.execute(delete(LoginFailure).where(LoginFailure.subject == user))
    session.execute(
        delete(LoginFailure).where(LoginFailure.subject == address, LoginFailure.at == now)
    )
    session.execute(delete(LoginFailure).where(LoginFailure.at <= now - FAILURE_WINDOW))


# ---- invitations -------------------------------------------------------------------------------


def invite(session: Session, role: Role, now: datetime, creator: User | None) -> str:
    """Token of a link with which one person makes an account within a week."""
    token = secrets.token_urlsafe(24)
    session.add(
        Invitation(
            token_hash=_token_hash(token),
            role=role,
            created_by=None if creator is None else creator.id,
            created_at=now,
            expires_at=now + INVITATION_LIFE,
        )
    )
    audit(session, now, creator.username if creator else "command line", "invite", role)
    return token


def invitation(session: Session, token: str, now: datetime) -> Invitation:
    """An invitation that can still be used, locked; raises NotThereError."""
    found = session.get(Invitation, _token_hash(token), with_for_update=True)
    if found is None or found.used_by is not None or found.expires_at <= now:
        raise NotThereError(
            "This invitation is not valid: it was used already, has run out, or never was",
            "Ask for a new link",
        )
    return found


def accept(session: Session, token: str, username: str, password: str, now: datetime) -> User:
    """Make the account that an invitation stands for; raises as its parts do."""
    found = invitation(session, token, now)
    user = create_user(session, username, password, Role(found.role), now, username[:64])
    found.used_by = user.id
    return user


# ---- audit -------------------------------------------------------------------------------------


def audit(session: Session, now: datetime, actor: str, action: str, subject: str) -> None:
    """Write down who did what."""
    session.add(AuditEntry(at=now, actor=actor[:64], action=action, subject=subject))


def _hash(password: str) -> str:
    with _hashing:
        return _hasher.hash(password)


def _verify(password_hash: str, password: str) -> bool:
    with _hashing:
        try:
            return _hasher.verify(password_hash, password[:1_000])
        except (VerifyMismatchError, InvalidHashError):  # an imported annotator has no hash
            return False


def _token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
