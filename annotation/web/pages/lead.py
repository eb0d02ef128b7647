"""The lead's pages: how the batch stands, what annotators disagree about, guidelines, export."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from annotation import guidelines, statistics, work_queue
from annotation.accounts import audit
from annotation.batches import (
    all_delivered,
    delivered,
    preference_rows,
    progress,
    set_state,
    standing,
)
from annotation.labelling import adjudicate
from annotation.refusals import NotThereError, NotYoursError
from annotation.statistics import Judgement, disagreements, judgements
from annotation.storage.schema import Batch, BatchState, Entry, EntryKind, Item
from annotation.web.fields import (
    Choice,
    RowId,
    SafetyAnswer,
    SubmissionId,
    Week,
    WeekQuery,
    is_safe,
)
from annotation.web.pages.tasks import checked_answer, new_submission_id
from annotation.web.rendering import page, see
from annotation.web.visitors import Lead, Service, ServiceDep, Visitor
from data_contracts.ratings import Domain

router = APIRouter(prefix="/lead")

SHOWN_DISAGREEMENTS = 20

TEST_FRACTION = 0.1
"""Share of prompts in an export's test split, as the stage collect_preferences has by default."""


@router.get("")
def board(request: Request, service: ServiceDep, visitor: Lead, week: WeekQuery = None) -> Response:
    """Progress, throughput, agreement and distributions of one batch."""
    with service.database.reading() as session:
        batches = session.scalars(select(Batch).order_by(Batch.week.desc())).all()
        chosen = week if week is not None else (batches[0].week if batches else None)
        context = {} if chosen is None else _figures(session, chosen)
    return page(request, "lead.html", visitor, batches=batches, week=chosen, **context)


def _figures(session: Session, week: int) -> dict[str, Any]:
    from annotation.consensus import agreement  # numpy and scipy: a second that only leads wait for

    labels = judgements(session, week)
    entries = delivered(session, week) + standing(session, week)
    return {
        "progress": progress(session, week),
        "annotators": statistics.by_annotator(labels),
        "agreement": agreement(labels),
        "ratings": statistics.shares(labels, "rating"),
        "safety_labels": statistics.shares(labels, "safety_label"),
        "paper_safety_shares": statistics.PAPER_SAFETY_SHARES,
        "num_undecided": len(_undecided(session, week)),
        "table_6": statistics.table_6(preference_rows(entries, week, TEST_FRACTION), "domain"),
        "flags": _passes(session, week),
    }


@router.get("/weeks")
def weeks(request: Request, service: ServiceDep, visitor: Lead) -> Response:
    """Statistics of every delivery so far."""
    with service.database.reading() as session:
        table_26 = statistics.table_6(all_delivered(session, TEST_FRACTION), "batch")
    return page(request, "weeks.html", visitor, table_26=table_26)


def _passes(session: Session, week: int) -> Sequence[Entry]:
    """Skips and flags of a batch, newest first, of items that are still in it."""
    return session.scalars(
        select(Entry)
        .join(Item, Entry.item_id == Item.id)
        .where(Item.week == week, ~Item.is_retired)
        .where(Entry.kind.in_([EntryKind.skip, EntryKind.flag]))
        .order_by(Entry.kind, Entry.id.desc())
        .limit(100)
    ).all()


@router.get("/batches/{week}/disagreements")
def disagreement_page(request: Request, service: ServiceDep, visitor: Lead, week: Week) -> Response:
    """Items whose labels contradict each other and that wait for a decision."""
    with service.database.reading() as session:
        progress(session, week)  # a week without a batch is no page
        found = _undecided(session, week)
        shown = list(found)[:SHOWN_DISAGREEMENTS]
        waiting = [(session.get_one(Item, item_id), found[item_id]) for item_id in shown]
    context = {"week": week, "num_waiting": len(found), "error": None}
    return _to_decide(request, visitor, waiting, **context)


def _to_decide(
    request: Request,
    visitor: Visitor,
    waiting: list[tuple[Item, list[Judgement]]],
    status: int = 200,
    **context: Any,
) -> Response:
    """Items with their labels, each over a form for a decision."""
    context["submission_ids"] = [new_submission_id() for _ in waiting]
    return page(request, "disagreements.html", visitor, status, waiting=waiting, **context)


def _undecided(session: Session, week: int) -> dict[int, list[Judgement]]:
    """Disagreements of a batch that wait for a decision, by item."""
    decision = exists().where(Entry.item_id == Item.id, Entry.kind == EntryKind.adjudication)
    settled = set(session.scalars(select(Item.id).where(Item.week == week, decision)))
    found = disagreements(judgements(session, week))
    return {item_id: labels for item_id, labels in found.items() if item_id not in settled}


@router.post("/items/{item_id}/decision")
def decide(
    request: Request,
    service: ServiceDep,
    visitor: Lead,
    item_id: RowId,
    submission_id: SubmissionId,
    choice: Choice,
    safety_a: SafetyAnswer = "",
    safety_b: SafetyAnswer = "",
) -> Response:
    """The lead's decision; it is delivered in place of the labels."""
    side, _, rating = choice.partition("-")
    answer = checked_answer(
        submission_id=submission_id,
        side=side,
        rating=rating,
        left_is_safe=is_safe(safety_a),
        right_is_safe=is_safe(safety_b),
    )
    try:
        with service.database.writing() as session:
            item = _item(session, item_id)
            adjudicate(session, visitor.user, item, answer, service.now())
            audit(session, service.now(), visitor.user.username, "decide", item.comparison_id)
    except NotYoursError as error:
        return _decide_again(request, service, visitor, item_id, error)
    return see(f"/lead/batches/{item.week}/disagreements")


def _decide_again(
    request: Request, service: Service, visitor: Visitor, item_id: int, error: NotYoursError
) -> Response:
    """An item whose decision was not kept, with a new form: what is decided already is not in the
    list any more."""
    with service.database.reading() as session:
        item = session.get_one(Item, item_id)
        labels = disagreements(judgements(session, item.week)).get(item_id, [])
        num_waiting = len(_undecided(session, item.week))
    context = {"week": item.week, "num_waiting": num_waiting, "error": error}
    return _to_decide(request, visitor, [(item, labels)], error.status, **context)


@router.post("/items/{item_id}/retirement")
def retire(service: ServiceDep, visitor: Lead, item_id: RowId) -> Response:
    """Take an item out of its batch."""
    with service.database.writing() as session:
        item = _item(session, item_id)
        work_queue.retire(session, item)
        audit(session, service.now(), visitor.user.username, "retire", item.comparison_id)
    return see(f"/lead?week={item.week}")


@router.post("/batches/{week}/state")
def change_state(
    service: ServiceDep, visitor: Lead, week: Week, state: Annotated[BatchState, Form()]
) -> Response:
    """Close a batch, or open it again."""
    with service.database.writing() as session:
        set_state(session, week, state, service.now(), visitor.user.username)
    return see(f"/lead?week={week}")


@router.get("/batches/{week}/preferences.jsonl")
def export(service: ServiceDep, visitor: Lead, week: Week) -> Response:
    """Delivered and standing labels as JSON lines in the columns of the preferences contract."""
    with service.database.writing() as session:
        progress(session, week)
        audit(session, service.now(), visitor.user.username, "export", f"batch {week}")
    with service.database.reading() as session:
        entries = delivered(session, week) + standing(session, week)
        rows = preference_rows(entries, week, TEST_FRACTION)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    name = f"preferences-{week}.jsonl"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(lines, media_type="application/jsonl; charset=utf-8", headers=headers)


@router.get("/guidelines/{domain}")
def guideline_form(
    request: Request, service: ServiceDep, visitor: Lead, domain: Domain
) -> Response:
    """A task's guideline, to edit."""
    with service.database.reading() as session:
        markdown = guidelines.current(session, domain)
    return page(request, "guideline_form.html", visitor, domain=domain, markdown=markdown)


@router.post("/guidelines/{domain}")
def edit_guideline(
    service: ServiceDep,
    visitor: Lead,
    domain: Domain,
    markdown: Annotated[str, Form(max_length=200_000)],
) -> Response:
    """Put a new edition in force."""
    with service.database.writing() as session:
        guidelines.edit(session, domain, markdown, visitor.user, service.now())
    return see(f"/guidelines/{domain}")


def _item(session: Session, item_id: int) -> Item:
    item = session.get(Item, item_id, with_for_update=True)
    if item is None:
        raise NotThereError("There is no such item", "Go back to the list")
    return item
