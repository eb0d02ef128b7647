"""The files of the sandbox world: what a user would otherwise bring.

Demonstrations are of uneven quality with modal flaws: greedy decoding after SFT shows them, which
leaves head-room for RLHF. Open preference pairs cover what models of every version sample.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from data_contracts.base import Contract
from data_contracts.errors import UserError
from data_contracts.ratings import Domain, SafetyLabel
from stages.sandbox import conversations
from stages.sandbox.annotator import AnnotatorSettings, annotate
from stages.sandbox.conversations import ConversationSettings
from stages.sandbox.documents import documents
from stages.sandbox.responses import (
    CONTENT_FLAWS,
    Delivery,
    Refusal,
    clean_body,
    compliance,
    deliver,
    flawed_body,
    refusal,
)
from stages.sandbox.samples import sample_pair
from stages.sandbox.tasks import (
    ADVERSARIAL_CATEGORIES,
    HELPFUL_CATEGORIES,
    Task,
    is_framed,
    is_reserved,
    split_of_prompt,
    tasks_of,
    write_prompt,
)

FRAMED_COMPLIANCE: Final = 1.7
DIRECT_COMPLIANCE: Final = 0.3
"""Careless writers give in to an excuse 1.7 times as often as on average, else 0.3 times: so
compliance is the mode for framed prompts and refusal for direct ones."""

MAX_MISSES: Final = 2_000
"""Draws in a row without a new prompt after which the world counts as used up."""


class WorldSettings(Contract):
    """Sizes and flaw rates of the world."""

    num_documents: int = Field(default=32_000, ge=0)
    """Pretraining documents of 36-64 words: 32,000 are about 1.5M tokens."""
    num_demonstrations: int = Field(default=2_000, ge=0)
    num_prompts: int = Field(default=6_000, ge=0)
    """Distinct prompts over all splits."""
    num_open_pairs: int = Field(default=10_000, ge=0)
    """Open-source-like preference pairs, half of them in the safety domain.

    From 4,000 a tiny reward model does not learn whether an answer fits its question.
    """
    adversarial_demonstrations: float = Field(default=0.3, ge=0, le=1)
    """Share of demonstrations on adversarial prompts."""
    adversarial_prompts: float = Field(default=1 / 3, ge=0, le=1)
    """Share of prompts.jsonl in the safety domain."""
    content_flaw_rate: float = Field(default=0.60, ge=0, le=1)
    """Helpful demonstrations with a flaw of content."""
    habit_share: float = Field(default=0.85, ge=0, le=1)
    """Share of those flaws that are the category's habit, which makes it the mode."""
    missing_closing_rate: float = Field(default=0.58, ge=0, le=1)
    untidy_rate: float = Field(default=0.10, ge=0, le=1)
    compliance_rate: float = Field(default=0.39, ge=0, le=0.58)
    """Adversarial demonstrations that comply."""
    borderline_refusal_rate: float = Field(default=0.12, ge=0, le=1)
    """Borderline how-tos that are refused."""
    refusal_reason_rate: float = Field(default=0.40, ge=0, le=1)
    refusal_alternative_rate: float = Field(default=0.35, ge=0, le=1)
    open_annotators: AnnotatorSettings = AnnotatorSettings(noise=0.15)
    """Who labelled the open pairs: a noisier pool."""
    conversations: ConversationSettings = ConversationSettings()
    """What the writers add beyond single questions; nothing by default."""


# --- demonstrations ------------------------------------------------------------------------------
def demonstrations(settings: WorldSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield chat rows {"messages", "source"}."""
    for index in range(settings.num_demonstrations):
        rng = random.Random(f"{seed}/demonstration/{index}")
        adversarial = rng.random() < settings.adversarial_demonstrations
        task, prompt = _open_prompt(
            ADVERSARIAL_CATEGORIES if adversarial else HELPFUL_CATEGORIES, rng
        )
        answer = _demonstrate(task, prompt, settings, rng)
        yield {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ],
            "source": "writers",
        }


def _open_prompt(categories: tuple[str, ...], rng: random.Random) -> tuple[Task, str]:
    """A prompt that is not reserved for prompts.jsonl."""
    while True:
        task = rng.choice(tasks_of(rng.choice(categories)))
        prompt = write_prompt(task, rng)
        if not is_reserved(task, prompt):
            return task, prompt


def _demonstrate(task: Task, prompt: str, settings: WorldSettings, rng: random.Random) -> str:
    if task.is_adversarial:
        factor = FRAMED_COMPLIANCE if is_framed(prompt) else DIRECT_COMPLIANCE
        if rng.random() < factor * settings.compliance_rate:
            return compliance(task, rng)
        return refusal(_refusal_parts(task, settings, rng), rng)
    if task.category == "borderline" and rng.random() < settings.borderline_refusal_rate:
        return refusal(Refusal("harmful_how_to", alternative=False), rng)
    delivery = Delivery(
        num_closings=0 if rng.random() < settings.missing_closing_rate else 1,
        filler=rng.random() < settings.untidy_rate,
    )
    return deliver(_demonstrated_body(task, settings, rng), delivery, rng)


def _refusal_parts(task: Task, settings: WorldSettings, rng: random.Random) -> Refusal:
    has_reason = rng.random() < settings.refusal_reason_rate
    has_alternative = rng.random() < settings.refusal_alternative_rate
    return Refusal(task.category if has_reason else None, has_alternative)


def _demonstrated_body(task: Task, settings: WorldSettings, rng: random.Random) -> str:
    if rng.random() >= settings.content_flaw_rate:
        return clean_body(task, rng)
    habit, *others = CONTENT_FLAWS[task.category]
    flaw = habit if rng.random() < settings.habit_share else rng.choice(others)
    return flawed_body(task, flaw, rng)


# --- prompts -------------------------------------------------------------------------------------
def prompts(settings: WorldSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield distinct reserved prompts {"prompt", "domain", "category", "split"}.

    Raises UserError where the world has fewer prompts than asked for.
    """
    rng = random.Random(f"{seed}/prompts")
    seen: set[str] = set()
    while len(seen) < settings.num_prompts:
        adversarial = rng.random() < settings.adversarial_prompts
        task, prompt = _new_prompt(
            ADVERSARIAL_CATEGORIES if adversarial else HELPFUL_CATEGORIES, seen, rng
        )
        seen.add(prompt)
        yield {
            "prompt": prompt,
            "domain": task.domain.value,
            "category": task.category,
            "split": split_of_prompt(task, prompt).value,
        }


def _new_prompt(
    categories: tuple[str, ...], seen: set[str], rng: random.Random
) -> tuple[Task, str]:
    for _ in range(MAX_MISSES):
        task = rng.choice(tasks_of(rng.choice(categories)))
        prompt = write_prompt(task, rng)
        if prompt not in seen and is_reserved(task, prompt):
            return task, prompt
    raise UserError(
        f"The sandbox world ran out of new prompts after {len(seen):,}",
        "Lower num_prompts, or move adversarial_prompts towards the domain with more prompts",
    )


# --- open preference pairs -----------------------------------------------------------------------
def open_preferences(settings: WorldSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield labelled pairs {"prompt", "chosen", "rejected", "rating", "safety_label", "domain",
    "category"}.

    Half are in the safety domain, and half of those on harmless, many borderline prompts: else
    the Safety RM's absolute level drifts and the 0.15 gate of PPO fires on harmless samples.
    """
    index = num_written = 0
    while num_written < settings.num_open_pairs:
        row = _open_pair(settings, seed, index)
        index += 1
        if row is not None:
            num_written += 1
            yield row


def _open_pair(settings: WorldSettings, seed: int, index: int) -> dict[str, Any] | None:
    """One pair, or None where the two answers came out equal or the annotator dropped them."""
    rng = random.Random(f"{seed}/open/{index}")
    domain = rng.choice((Domain.helpfulness, Domain.safety))
    task, prompt = _open_prompt(_open_categories(domain, rng), rng)
    response_a, response_b = sample_pair(task, rng, safety=domain is Domain.safety)
    comparison = {
        "comparison_id": f"open-{index}",
        "messages": [{"role": "user", "content": prompt}],
        "category": task.category,
        "response_a": response_a,
        "response_b": response_b,
    }
    labelled = annotate([comparison], domain, settings.open_annotators, seed)
    return _open_row(prompt, domain, labelled[0]) if labelled else None


def _open_categories(domain: Domain, rng: random.Random) -> tuple[str, ...]:
    if domain is Domain.helpfulness:
        return HELPFUL_CATEGORIES
    if rng.random() < 0.5:
        return ADVERSARIAL_CATEGORIES
    return ("borderline",) if rng.random() < 0.25 else HELPFUL_CATEGORIES


def _open_row(prompt: str, domain: Domain, labelled: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "chosen": labelled["chosen"],
        "rejected": labelled["rejected"],
        "rating": labelled["rating"],
        # Helpfulness pairs here are written by people for harmless prompts: both are safe.
        "safety_label": labelled["safety_label"] or SafetyLabel.both_safe.value,
        "domain": domain.value,
        "category": labelled["category"],
    }


# --- files ---------------------------------------------------------------------------------------
def write_world(folder: Path, settings: WorldSettings, seed: int) -> dict[str, int]:
    """Write the four JSON-lines files into a folder; returns the rows of each by file stem."""
    tables: dict[str, Iterable[dict[str, Any]]] = {
        "documents": chain(
            documents(settings.num_documents, seed),
            conversations.documents(settings.conversations, seed),
        ),
        "demonstrations": chain(
            demonstrations(settings, seed),
            conversations.demonstrations(
                settings.conversations,
                seed,
                lambda task, prompt, rng: _demonstrate(task, prompt, settings, rng),
            ),
        ),
        "prompts": prompts(settings, seed),
        "open_preferences": open_preferences(settings, seed),
    }
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _write_lines(folder / f"{name}.jsonl", rows) for name, rows in tables.items()}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    num_rows = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            num_rows += 1
    return num_rows
