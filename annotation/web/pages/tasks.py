"""The annotator's pages: choose a task, compare two responses, skip, undo."""

import uuid
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response
from pydantic import ValidationError

from annotation import guidelines
from annotation.batches import open_batch, progress
from annotation.labelling import (
    Answer,
    Pass,
    fingerprint,
    last_label,
    pass_on,
    sides,
    submit,
    undo,
)
from annotation.refusals import RefusedError
from annotation.statistics import annotator_row, judgements
from annotation.storage.schema import Slot
from annotation.web.fields import Choice, RowId, SafetyAnswer, Shown, SubmissionId, is_safe
from annotation.web.rendering import is_htmx, page, see
from annotation.web.visitors import Annotator, Service, ServiceDep, Visitor
from annotation.work_queue import claim, renew
from data_contracts.base import Contract
from data_contracts.ratings import Domain

router = APIRouter()

Fields = TypeVar("Fields", bound=Contract)


@router.get("/")
def home(request: Request, service: ServiceDep, visitor: Annotator) -> Response:
    """Tasks, the week's progress, agreement with oneself."""
    with service.database.reading() as session:
        batch = open_batch(session)
        done = own = None
        if batch is not None:
            done = progress(session, batch.week)
            labels = judgements(session, batch.week, visitor.user)
            own = annotator_row(visitor.user.pseudonym, labels)
        can_undo = last_label(session, visitor.user) is not None
    return page(request, "home.html", visitor, progress=done, own=own, can_undo=can_undo)


@router.get("/tasks/{domain}")
def task(request: Request, service: ServiceDep, visitor: Annotator, domain: Domain) -> Response:
    """The next item of a task, or that there is none."""
    with service.database.writing() as session:
        slot = claim(session, visitor.user, domain, service.now())
    return page(request, "task.html", visitor, **_work(service, visitor, domain, slot))


@router.post("/slots/{slot_id}/label")
def label(
    request: Request,
    service: ServiceDep,
    visitor: Annotator,
    slot_id: RowId,
    submission_id: SubmissionId,
    choice: Choice,
    left_safety: SafetyAnswer = "",
    right_safety: SafetyAnswer = "",
    edited_response: Annotated[str, Form()] = "",
    shown: Shown = "",
) -> Response:
    """Keep a choice with its rating; on the disk before this answers."""
    side, _, rating = choice.partition("-")
    answer = checked_answer(
        submission_id=submission_id,
        side=side,
        rating=rating,
        left_is_safe=is_safe(left_safety),
        right_is_safe=is_safe(right_safety),
        edited_response=edited_response,
        shown=shown or None,
    )
    with service.database.writing() as session:
        entry = submit(session, visitor.user, slot_id, answer, service.now())
        item, slot = entry.item, None
        if is_htmx(request) and not item.is_live:
            slot = claim(session, visitor.user, item.domain, service.now())
    if item.is_live:
        return _go(request, f"/write/{item.domain}?after={item.id}")
    return _next(request, service, visitor, Domain(item.domain), slot)


@router.post("/slots/{slot_id}/pass")
def pass_item(
    request: Request,
    service: ServiceDep,
    visitor: Annotator,
    slot_id: RowId,
    submission_id: SubmissionId,
    kind: Annotated[Literal["skip", "flag"], Form()],
    reason: Annotated[str, Form()] = "",
) -> Response:
    """Skip or flag an item."""
    if not reason.strip():
        raise RefusedError("Not skipped yet: the reason is missing", "Write a few words")
    passed = _checked(Pass, submission_id=submission_id, kind=kind, reason=reason.strip())
    with service.database.writing() as session:
        entry = pass_on(session, visitor.user, slot_id, passed, service.now())
        slot = claim(session, visitor.user, entry.item.domain, service.now())
    return _next(request, service, visitor, Domain(entry.item.domain), slot)


@router.post("/slots/{slot_id}/hold", status_code=204)
def hold(service: ServiceDep, visitor: Annotator, slot_id: RowId) -> None:
    """A sign from an open page: the item is still being worked on."""
    with service.database.writing() as session:
        renew(session, visitor.user, slot_id, service.now())


@router.post("/undo")
def undo_last(
    request: Request, service: ServiceDep, visitor: Annotator, submission_id: SubmissionId
) -> Response:
    """Take the last label back and show its item again."""
    with service.database.writing() as session:
        domain = Domain(undo(session, visitor.user, submission_id, service.now()).item.domain)
        slot = claim(session, visitor.user, domain, service.now())
    return _next(request, service, visitor, domain, slot)


@router.get("/guidelines/{domain}")
def guideline(
    request: Request, service: ServiceDep, visitor: Annotator, domain: Domain
) -> Response:
    """A task's guideline on a page of its own."""
    with service.database.reading() as session:
        markdown = guidelines.current(session, domain)
    return page(request, "guideline.html", visitor, domain=domain, markdown=markdown)


def checked_answer(**fields: Any) -> Answer:
    """An answer from a form's fields; raises RefusedError."""
    return _checked(Answer, **fields)


def _checked(form: type[Fields], /, **fields: Any) -> Fields:
    try:
        return form(**fields)
    except ValidationError as error:
        names = ", ".join(sorted({str(e["loc"][0]) for e in error.errors()}))
        raise RefusedError(
            f"Not saved: the form has no valid {names}", "Load the page again and repeat it"
        ) from None


def _next(
    request: Request, service: Service, visitor: Visitor, domain: Domain, slot: Slot | None
) -> Response:
    """The next item, which was claimed in the transaction before: as a part of the open page, or
    by a redirect where there is no script."""
    if not is_htmx(request):
        return see(f"/tasks/{domain}")
    return page(request, "_work.html", visitor, **_work(service, visitor, domain, slot))


def _go(request: Request, path: str) -> Response:
    return Response(headers={"HX-Redirect": path}) if is_htmx(request) else see(path)


def _work(service: Service, visitor: Visitor, domain: Domain, slot: Slot | None) -> dict[str, Any]:
    """What the work area shows."""
    shown = None if slot is None else sides(slot.item, slot.is_swapped)
    with service.database.reading() as session:
        batch = open_batch(session)
        return {
            "domain": domain,
            "slot": slot,
            "sides": shown,
            "fingerprint": None if shown is None else fingerprint(shown),
            "submission_id": new_submission_id(),
            "undo_id": new_submission_id(),
            "progress": None if batch is None else progress(session, batch.week),
            "can_undo": last_label(session, visitor.user) is not None,
            "markdown": guidelines.current(session, domain),
        }


def new_submission_id() -> str:
    """For a form that is being shown; a client may use one of its own."""
    return uuid.uuid4().hex
