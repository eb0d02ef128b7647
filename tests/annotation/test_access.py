"""Who may do what, and what is refused: roles, CSRF, log-in, invitations, headers."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from annotation_world import (
    PASSWORD,
    START,
    Browser,
    Clock,
    add_user,
    browser,
    comparisons,
    publish_rows,
)
from argon2 import PasswordHasher
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import select

from annotation import accounts
from annotation.accounts import invite, log_in
from annotation.refusals import RefusedError, TooManyAttemptsError
from annotation.settings import AnnotationSettings
from annotation.storage.schema import AuditEntry, LoginSession, Role, User
from annotation.web.app import create_app
from annotation.web.visitors import Service

HASH_OF_NOBODY = accounts._NOBODY  # read before the tests' cheap hashes take its place

PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/login"),
    ("POST", "/login"),
    ("GET", "/invitations/{token}"),
    ("POST", "/invitations/{token}"),
}
"""Every other route needs a role, and its prefix says which."""


def role_for(path: str) -> Role:
    if path.startswith("/admin"):
        return Role.admin
    return Role.lead if path.startswith("/lead") else Role.annotator


def routes(app) -> list[tuple[str, str]]:
    found = []
    for route in app.routes:
        for inner in getattr(route, "routes", None) or [route]:
            if isinstance(inner, APIRoute):
                found += [(method, inner.path) for method in inner.methods]
    paths = app.openapi()["paths"]
    listed = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return sorted(set(found) | set(listed))


def request(somebody: Browser, method: str, path: str, csrf: str | None = None):
    filled = path.replace("{domain}", "helpfulness")
    filled = re.sub(r"\{(slot_id|item_id|week)\}", "1", filled).replace("{user_id}", "99")
    data = None
    if method == "POST":
        data = {
            "csrf": somebody.csrf if csrf is None else csrf,
            "submission_id": "submission-1",
            "choice": "left-better",
            "kind": "skip",
            "reason": "none",
            "state": "open",
            "role": "annotator",
            "markdown": "text",
            "prompt": "question",
        }
    return somebody.client.request(method, filled, data=data)


@pytest.fixture
def people(service, app) -> dict[str, Browser]:
    publish_rows(service.database, comparisons(3))
    return {role.value: browser(service, app, f"{role}-person", role) for role in Role}


def test_every_route_is_closed_to_lower_roles(app, people):
    walked = [route for route in routes(app) if route not in PUBLIC]
    assert len(walked) >= 22
    for method, path in walked:
        if path == "/logout":
            continue
        for role, somebody in people.items():
            status = request(somebody, method, path).status_code
            if Role(role).rank < role_for(path).rank:
                assert status == 403, (method, path, role)
            else:
                assert status != 403, (method, path, role)
                assert status < 500, (method, path, role)


def test_every_route_is_closed_to_strangers(app, people):
    stranger = Browser(app, "nobody")
    for method, path in routes(app):
        if (method, path) in PUBLIC:
            continue
        reply = request(stranger, method, path)
        if method == "GET":
            assert (reply.status_code, reply.headers["location"]) == (303, "/login"), path
        else:
            assert reply.status_code == 401, path


def test_every_change_needs_the_token_of_the_session(app, people):
    for method, path in routes(app):
        if method == "POST" and (method, path) not in PUBLIC:
            for token in ("", "guessed"):
                assert request(people["admin"], method, path, token).status_code == 403, path


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "http://[", "http://\xff]"])
def test_a_request_from_another_site_is_refused(app, people, origin):
    reply = people["annotator"].client.post(
        "/login",
        data={"username": "annotator-person", "password": PASSWORD},
        headers={"Origin": origin.encode("latin-1")},
    )
    assert reply.status_code == 403
    same = {"Origin": "http://annotation.test"}
    form = {"username": "annotator-person", "password": PASSWORD}
    assert people["annotator"].client.post("/login", data=form, headers=same).status_code == 303


def test_every_response_carries_the_security_headers(app, people):
    for path in ("/", "/login", "/nowhere", "/static/page.css", "/lead"):
        headers = people["annotator"].client.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
    assert people["annotator"].client.get("/").headers["cache-control"] == "no-store"


def test_a_body_that_is_too_large_is_refused(app, people):
    reply = people["annotator"].post("/undo", {"submission_id": "x" * 1_100_000})
    assert reply.status_code == 413


# ---- log-in ------------------------------------------------------------------------------------


def test_a_wrong_password_and_a_wrong_name_look_the_same(service, app):
    add_user(service.database, "ann")
    replies = [
        Browser(app, name).log_in("a wrong password") for name in ("ann", "nobody-of-this-name")
    ]
    assert [reply.status_code for reply in replies] == [422, 422]
    texts = [re.sub(r'value="[^"]*"', "", reply.text) for reply in replies]
    assert texts[0] == texts[1]


def test_text_that_a_database_cannot_keep_is_no_server_error(any_database):
    publish_rows(any_database, comparisons(1))
    service = Service(any_database, AnnotationSettings(), Clock())
    app = create_app(service)
    assert Browser(app, "nul\0name").log_in().status_code == 422
    ann = browser(service, app, "ann", Role.lead)
    page = ann.open()
    edited = {"edited_response": "with \0 and \ud800 in it".encode("utf-8", "replace").decode()}
    assert ann.label(page, **edited).status_code == 200
    assert ann.post("/lead/guidelines/safety", {"markdown": "with \0"}).status_code == 303


def test_guessing_is_slowed_and_the_right_password_waits_too(service, app, clock):
    add_user(service.database, "ann")
    ann = Browser(app, "ann")
    statuses = [ann.log_in(f"wrong password {i}").status_code for i in range(7)]
    assert statuses == [422] * 5 + [429] * 2
    refused = ann.log_in()
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 600
    clock.move(minutes=16)
    assert ann.log_in().status_code == 303


def test_an_address_cannot_try_one_password_on_everybody(service, app):
    names = [f"user{i}" for i in range(35)]
    statuses = [Browser(app, name).log_in("some password").status_code for name in names]
    assert statuses.count(422) == 30
    assert statuses[-1] == 429


def test_an_ipv6_network_is_one_address(service, app):
    """Its owner has 2**64 addresses, and must not have as many guesses."""
    now = service.now()
    for number in range(30):
        with pytest.raises(RefusedError, match="do not fit"):
            log_in(service.database, f"user{number}", "guessed", f"2001:db8::{number:x}", now)
    with pytest.raises(TooManyAttemptsError):
        log_in(service.database, "user30", "guessed", "2001:db8:0:0:ffff::1", now)
    with pytest.raises(RefusedError, match="do not fit"):
        log_in(service.database, "user31", "guessed", "2001:db8:0:1::1", now)


def test_logging_in_ends_the_session_that_the_browser_had(service, app):
    """A cookie that was planted in it, or that of whoever sat there before."""
    ann = browser(service, app, "ann")
    planted = dict(ann.client.cookies)
    assert ann.log_in().status_code == 303
    assert dict(ann.client.cookies) != planted
    old = TestClient(app, cookies=planted, follow_redirects=False)
    assert old.get("/").headers["location"] == "/login"


def test_log_out_ends_the_session_on_the_server(service, app):
    ann = browser(service, app, "ann")
    cookie = dict(ann.client.cookies)
    assert ann.post("/logout").status_code == 303
    stolen = TestClient(app, cookies=cookie, follow_redirects=False)
    assert stolen.get("/").headers["location"] == "/login"


def test_a_session_ends_by_itself(service, app, clock):
    ann = browser(service, app, "ann")
    clock.move(hours=13)
    assert ann.client.get("/").headers["location"] == "/login"


def test_the_database_holds_no_password_and_no_cookie(service, app):
    ann = browser(service, app, "ann")
    with service.database.reading() as session:
        user = session.scalars(select(User)).one()
        found = session.scalars(select(LoginSession)).one()
    assert user.password_hash.startswith("$argon2id$")
    assert found.token_hash not in dict(ann.client.cookies).values()


def test_the_cookie_is_out_of_reach_of_scripts(service, app):
    add_user(service.database, "ann")
    cookie = Browser(app, "ann").log_in().headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie


# ---- invitations and users ---------------------------------------------------------------------


def invitation_path(html: str) -> str:
    return re.search(r"http://annotation\.test(/invitations/[\w-]+)", html)[1]


def test_an_invitation_makes_one_account_with_its_role(service, app):
    admin = browser(service, app, "adm", Role.admin)
    path = invitation_path(admin.post("/admin/invitations", {"role": "lead"}).text)
    newcomer = Browser(app, "new")
    form = {"username": "new", "password": PASSWORD}
    assert newcomer.client.post(path, data=form).status_code == 303
    assert newcomer.client.get("/lead").status_code == 200
    again = Browser(app, "second").client.post(path, data=form | {"username": "second"})
    assert again.status_code == 404


def test_an_invitation_runs_out(service, app, clock):
    admin = browser(service, app, "adm", Role.admin)
    path = invitation_path(admin.post("/admin/invitations", {"role": "lead"}).text)
    clock.move(days=8)
    assert Browser(app, "late").client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("username", "password"),
    [("a b", PASSWORD), ("<script>", PASSWORD), ("new", "short"), ("adm", PASSWORD)],
)
def test_an_unfit_account_is_refused_and_the_invitation_stays(service, app, username, password):
    admin = browser(service, app, "adm", Role.admin)
    path = invitation_path(admin.post("/admin/invitations", {"role": "annotator"}).text)
    somebody = Browser(app, "new")
    form = {"username": username, "password": password}
    assert somebody.client.post(path, data=form).status_code == 422
    form = {"username": "new", "password": PASSWORD}
    assert somebody.client.post(path, data=form).status_code == 303


def test_a_name_that_two_people_take_at_once_is_one_of_theirs(any_database):
    app = create_app(Service(any_database, AnnotationSettings(), Clock()))
    with any_database.writing() as session:
        tokens = [invite(session, Role.annotator, START, None) for _ in range(4)]
    form = {"username": "ann", "password": PASSWORD}

    def join(token: str) -> int:
        return Browser(app, "ann").client.post(f"/invitations/{token}", data=form).status_code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(join, tokens)) == [303, 422, 422, 422]


def test_who_is_locked_out_is_out_at_once(service, app):
    admin = browser(service, app, "adm", Role.admin)
    ann = browser(service, app, "ann")
    with service.database.reading() as session:
        user = session.scalars(select(User).where(User.username == "ann")).one()
    admin.post(f"/admin/users/{user.id}", {"role": "annotator"})
    assert ann.client.get("/").headers["location"] == "/login"
    assert ann.log_in().status_code == 422


def test_who_is_locked_out_does_not_come_back_by_a_link_of_their_own(service, app):
    admin = browser(service, app, "adm", Role.admin)
    other = browser(service, app, "oth", Role.admin)
    kept = invitation_path(other.post("/admin/invitations", {"role": "admin"}).text)
    left = invitation_path(admin.post("/admin/invitations", {"role": "lead"}).text)
    with service.database.reading() as session:
        user = session.scalars(select(User).where(User.username == "oth")).one()
    admin.post(f"/admin/users/{user.id}", {"role": "annotator"})
    assert Browser(app, "new").client.get(kept).status_code == 404
    assert Browser(app, "new").client.get(left).status_code == 200


def test_the_audit_log_names_who_did_what(service, app):
    admin = browser(service, app, "adm", Role.admin)
    lead = browser(service, app, "lea", Role.lead)
    admin.post("/admin/invitations", {"role": "annotator"})
    lead.post("/lead/guidelines/safety", {"markdown": "New rules"})
    with service.database.reading() as session:
        entries = session.scalars(select(AuditEntry)).all()
    done = {(entry.actor, entry.action) for entry in entries}
    assert {("adm", "log in"), ("adm", "invite"), ("lea", "edit guideline")} <= done
    assert "edit guideline" in admin.client.get("/admin/audit").text


def test_a_name_that_nobody_has_costs_what_a_wrong_password_costs():
    """Its hash has the parameters of every hash that is made today."""
    assert not PasswordHasher().check_needs_rehash(HASH_OF_NOBODY)
