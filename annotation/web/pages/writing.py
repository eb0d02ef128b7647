"""Writing a prompt, or going on with a dialogue, answered by live models."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from annotation.live import (
    Messages,
    Variant,
    add_live_item,
    continued,
    dialogue,
    needed_batch,
    two_responses,
)
from annotation.refusals import RefusedError
from annotation.web.fields import AfterField, AfterQuery
from annotation.web.rendering import page, see
from annotation.web.visitors import Annotator, ServiceDep
from data_contracts.ratings import Domain

router = APIRouter()


@router.get("/write/{domain}")
def writing_page(
    request: Request,
    service: ServiceDep,
    visitor: Annotator,
    domain: Domain,
    after: AfterQuery = None,
) -> Response:
    """The form for a prompt; with `after`, below the dialogue that it goes on with."""
    messages = []
    if after is not None:
        with service.database.reading() as session:
            messages = continued(session, visitor.user, after)
    return page(
        request,
        "write.html",
        visitor,
        domain=domain,
        after=after,
        messages=messages,
        prompt="",
        error=None,
    )


@router.post("/write/{domain}")
async def write(
    request: Request,
    service: ServiceDep,
    visitor: Annotator,
    domain: Domain,
    prompt: Annotated[str, Form(max_length=50_000)],
    after: AfterField = None,
) -> Response:
    """Ask both models, and put their answers before the annotator.

    No thread is held while the models write, so that slow ones do not stop everybody's labels.
    """

    def opened() -> Messages:
        with service.database.reading() as session:
            return dialogue(session, visitor.user, after, prompt)

    def checked() -> None:
        if not prompt.strip():
            raise RefusedError("The prompt is empty", "Write what you want to ask")
        with service.database.reading() as session:
            needed_batch(session)

    def kept(variants: tuple[Variant, Variant]) -> None:
        with service.database.writing() as session:
            add_live_item(session, visitor.user, domain, messages, variants, service.now())

    messages = await run_in_threadpool(opened)
    try:
        await run_in_threadpool(checked)
        await run_in_threadpool(kept, await two_responses(service.settings, messages))
    except RefusedError as error:
        return page(
            request,
            "write.html",
            visitor,
            error.status,
            domain=domain,
            after=after,
            messages=messages[:-1],
            prompt=prompt,
            error=error,
        )
    return see(f"/tasks/{domain}")
