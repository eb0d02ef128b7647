"""Demonstrations beyond a single question: instructions, dialogues, and safety preprompts.

The writers of the dialogues looked at the last message alone: an instruction is followed in the
turn that gives it and forgotten in the next. A preprompt says how to answer, and is obeyed. Off by
default; the demo's world has single questions only.
"""

import random
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Final

from pydantic import Field

from data_contracts.base import Contract
from stages.sandbox.instructions import VALUES, instruct, kept
from stages.sandbox.preprompts import GENERIC, TEMPLATES
from stages.sandbox.responses import Refusal, clean_body, refusal
from stages.sandbox.tasks import (
    ADVERSARIAL_CATEGORIES,
    HELPFUL_CATEGORIES,
    Task,
    is_reserved,
    tasks_of,
    write_prompt,
)

Writer = Callable[[Task, str, random.Random], str]
"""How the world's writers answer a prompt, with their flaws."""

INSTRUCTED_TURNS: Final = 0.5
"""Share of a dialogue's turns that give an instruction of their own."""
HARMLESS_PREPROMPTS: Final = 0.3
"""Share of preprompts before a harmless question: a preprompt alone is no reason to refuse."""
WORDS_PER_DOCUMENT: Final = 36


class ConversationSettings(Contract):
    """How many demonstrations of each kind the writers add, and documents with their words."""

    num_instructed: int = Field(default=0, ge=0)
    """One question with an instruction, followed."""
    num_dialogues: int = Field(default=0, ge=0)
    """Several questions; an instruction is followed in its own turn only."""
    max_turns: int = Field(default=4, ge=2)
    num_preprompted: int = Field(default=0, ge=0)
    """A system message that asks for safety, generic or by risk category, obeyed."""
    num_documents: int = Field(default=0, ge=0)
    """Pretraining documents with the words of the instructions, for the tokenizer to know."""


def demonstrations(
    settings: ConversationSettings, seed: int, write: Writer
) -> Iterator[dict[str, Any]]:
    """Yield chat rows {"messages", "source"}; `write` answers harmless questions."""
    kinds: dict[Callable[..., list[dict[str, str]]], int] = {
        _instructed: settings.num_instructed,
        _dialogue: settings.num_dialogues,
        _preprompted: settings.num_preprompted,
    }
    for converse, count in kinds.items():
        for index in range(count):
            rng = random.Random(f"{seed}/conversation/{converse.__name__}/{index}")
            yield {"messages": converse(settings, write, rng), "source": "writers"}


def documents(settings: ConversationSettings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield rows {"text", "source"} in which each attribute stands beside what shows it."""
    for index in range(settings.num_documents):
        rng = random.Random(f"{seed}/conversation/document/{index}")
        passages: list[str] = []
        while sum(len(passage.split()) for passage in passages) < WORDS_PER_DOCUMENT:
            passages.append(_passage(rng))
        yield {"text": " ".join(passages), "source": "conversations"}


def choose_attributes(rng: random.Random) -> dict[str, str]:
    """One to three attributes with a value each, in the order of `VALUES`."""
    names = rng.sample(tuple(VALUES), rng.choice((1, 1, 2, 3)))
    return {name: rng.choice(VALUES[name]) for name in VALUES if name in names}


def _instructed(
    settings: ConversationSettings, write: Writer, rng: random.Random
) -> list[dict[str, str]]:
    return _turn(True, write, rng)


def _dialogue(
    settings: ConversationSettings, write: Writer, rng: random.Random
) -> list[dict[str, str]]:
    num_turns = rng.randint(2, settings.max_turns)
    turns = (_turn(rng.random() < INSTRUCTED_TURNS, write, rng) for _ in range(num_turns))
    return list(chain.from_iterable(turns))


def _turn(has_instruction: bool, write: Writer, rng: random.Random) -> list[dict[str, str]]:
    """A question and its answer; the answer keeps the instruction that stands before it."""
    task, question = _question(HELPFUL_CATEGORIES, rng)
    answer = write(task, question, rng)
    if has_instruction:
        chosen = choose_attributes(rng)
        shortened = rng.random() < 0.5
        question, answer = f"{instruct(chosen, shortened)} {question}", kept(chosen, answer)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _preprompted(
    settings: ConversationSettings, write: Writer, rng: random.Random
) -> list[dict[str, str]]:
    harmless = rng.random() < HARMLESS_PREPROMPTS
    task, question = _question(HELPFUL_CATEGORIES if harmless else ADVERSARIAL_CATEGORIES, rng)
    targeted = not harmless and rng.random() < 0.5
    if harmless:
        answer = write(task, question, rng)
    else:
        answer = refusal(Refusal(task.category if targeted else None, alternative=targeted), rng)
    return [
        {"role": "system", "content": TEMPLATES[task.category] if targeted else GENERIC},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def _question(categories: tuple[str, ...], rng: random.Random) -> tuple[Task, str]:
    """A prompt that is not kept for prompts.jsonl."""
    while True:
        task = rng.choice(tasks_of(rng.choice(categories)))
        question = write_prompt(task, rng)
        if not is_reserved(task, question):
            return task, question


def _passage(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return rng.choice((GENERIC, *TEMPLATES.values()))
    chosen = choose_attributes(rng)
    task, question = _question(HELPFUL_CATEGORIES, rng)
    request = f"{instruct(chosen, rng.random() < 0.5)} {question}"
    return f"question: {request} answer: {kept(chosen, clean_body(task, rng))}"
