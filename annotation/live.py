"""Prompts that an annotator writes: two model variants answer at once (§3.2.1).

Any OpenAI-compatible endpoint will do: our own `rlhf serve`, vLLM, or another.
"""

import asyncio
import hashlib
import json
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotation.batches import new_item, open_batch
from annotation.labelling import as_typed, without_nul
from annotation.refusals import NotThereError, RefusedError
from annotation.settings import AnnotationSettings, LiveModel
from annotation.storage.schema import LIVE_PREFIX, Batch, Entry, Item, Pick, Slot, SlotState, User
from annotation.work_queue import HOLD, current_labels, new_slot
from data_contracts.ratings import Domain

if TYPE_CHECKING:
    import httpx

_TIMEOUT_SECONDS = 120

_MOST_DRAWS = 3
"""Pairs that are drawn for one prompt: chance may give the same response twice, or an empty one."""

Messages = list[dict[str, str]]


class ModelUnavailableError(RefusedError):
    """A model endpoint does not answer as it should."""

    status = 502


@dataclass(frozen=True)
class Variant:
    """One live response and where it comes from."""

    text: str
    model: str
    temperature: float


async def two_responses(
    settings: AnnotationSettings, messages: Messages
) -> tuple[Variant, Variant]:
    """Responses of two variants, asked at once, in random order.

    Drawn again where there is nothing to compare. Raises ModelUnavailableError, and RefusedError
    where there is nothing to compare again and again.
    """
    if not settings.live_models:
        raise RefusedError("This service has no live models", "Label the items of the batch")
    import httpx  # where there are live models: the page comes back sooner without

    both = settings.live_models[0], settings.live_models[-1]
    async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
        for _ in range(_MOST_DRAWS):
            asked = (_ask(client, model, messages, settings.max_new_tokens) for model in both)
            variants = await asyncio.gather(*asked)
            texts = {variant.text.strip() for variant in variants}
            if len(texts) == len(both) and "" not in texts:
                random.SystemRandom().shuffle(variants)
                return variants[0], variants[1]
    raise RefusedError(
        "The two responses are the same, or one is empty: there is nothing to compare",
        "Send the prompt again, or change it",
    )


def dialogue(session: Session, user: User, after: int | None, prompt: str) -> Messages:
    """The messages to answer: a new dialogue, or one that goes on from a labelled item."""
    said = {"role": "user", "content": as_typed(prompt.strip())}
    return [said] if after is None else [*continued(session, user, after), said]


def continued(session: Session, user: User, item_id: int) -> Messages:
    """A dialogue up to the response that this user chose; raises NotThereError."""
    entry = session.scalars(
        select(Entry)
        .where(Entry.item_id == item_id, Entry.user_id == user.id, current_labels())
        .order_by(Entry.id.desc())
        .limit(1)
    ).one_or_none()
    if entry is None:
        raise NotThereError("There is no such dialogue of yours", "Begin a new one")
    item = entry.item
    chosen = item.response_a if entry.pick == Pick.a else item.response_b
    answer = {"role": "assistant", "content": entry.edited_response or chosen}
    return [*item.messages, answer]


def needed_batch(session: Session) -> Batch:
    """The batch that a written prompt goes into; raises RefusedError where none is open."""
    batch = open_batch(session)
    if batch is None:
        raise RefusedError("No batch is open now", "Ask your lead when the next one starts")
    return batch


def add_live_item(
    session: Session,
    user: User,
    domain: Domain,
    messages: Messages,
    variants: Sequence[Variant],
    now: datetime,
) -> Slot:
    """Put a live comparison into the open batch, held by the user who wrote its prompt."""
    batch = needed_batch(session)
    last = session.scalar(select(func.max(Item.position)).where(Item.week == batch.week)) or 0
    item = new_item(batch.week, last + 1, _comparison(domain, messages, variants), None)
    slot = new_slot(item, 1)
    slot.state, slot.holder_id, slot.held_until = SlotState.held, user.id, now + HOLD
    session.add_all([item, slot])
    session.flush()
    return slot


def _comparison(domain: Domain, messages: Messages, variants: Sequence[Variant]) -> dict[str, Any]:
    a, b = variants
    content = json.dumps([domain, messages], ensure_ascii=False, separators=(",", ":"))
    return {
        "comparison_id": f"{LIVE_PREFIX}{uuid.uuid4().hex}",
        "prompt_id": hashlib.sha256(content.encode()).hexdigest()[:32],
        "domain": domain,
        "category": None,
        "messages": messages,
        "response_a": a.text,
        "response_b": b.text,
        "model_a": a.model,
        "model_b": b.model,
        "temperature_a": a.temperature,
        "temperature_b": b.temperature,
    }


async def _ask(
    client: "httpx.AsyncClient", model: LiveModel, messages: Messages, max_new_tokens: int
) -> Variant:
    import httpx

    temperature = random.SystemRandom().choice(model.temperatures)
    headers = {"Authorization": f"Bearer {model.api_key}"} if model.api_key else {}
    body = {
        "model": model.model,
        "messages": messages,
        "temperature": temperature,
        "max_tokens": max_new_tokens,
    }
    try:
        url = f"{model.url.rstrip('/')}/chat/completions"
        reply = await client.post(url, json=body, headers=headers)
        reply.raise_for_status()
        text = reply.json()["choices"][0]["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelUnavailableError(
            f"The model {model.model} does not answer ({type(error).__name__})",
            "Try again in a while, or tell your lead; your prompt is still in the form",
        ) from error
    # half of a surrogate pair, which JSON may hold, is no text that can be kept
    whole = text.encode("utf-8", "replace").decode()
    return Variant(without_nul(whole), model.model, temperature)
