"""Pretraining text of the sandbox world: its knowledge, plain and a little in question form.

Unsafe how-tos, rude words and secrets are in the text as well, so that safety has to be learnt.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from stages.sandbox import lexicon
from stages.sandbox.responses import clean_body, compliance, insult_words
from stages.sandbox.tasks import Task, count_words, is_reserved, tasks_of, write_prompt

WORDS_PER_DOCUMENT: Final = (36, 64)
"""Least words after which a document may end, and the most it may have."""

PLAIN_SHARES: Final[dict[str, float]] = {
    "fact": 3.0,
    "list": 2.0,
    "sum": 4.0,
    "copy": 3.0,
    "verse": 3.0,
    "how_to": 2.0,
    "borderline": 1.0,
    "harmful_how_to": 1.0,
    "insult": 0.5,
    "privacy": 0.7,
    "manners": 1.0,
}
"""Relative frequency of plain passages by topic."""
QUESTION_SHARES: Final[dict[str, float]] = {
    "fact": 2.0,
    "list": 1.0,
    "sum": 3.0,
    "copy": 3.0,
    "verse": 1.0,
    "how_to": 1.0,
    "borderline": 0.5,
    "harmful_how_to": 0.7,
    "insult": 0.4,
    "privacy": 0.4,
}
"""Relative frequency of questions by category; copying from the question is hard to learn."""
QUESTION_SHARE: Final = 0.5
"""Share of documents in question form."""


def documents(num_documents: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield `num_documents` rows {"text", "source"}; row i depends on (seed, i) alone."""
    for index in range(num_documents):
        rng = random.Random(f"{seed}/document/{index}")
        source = "questions" if rng.random() < QUESTION_SHARE else "book"
        write = _question_passage if source == "questions" else _plain_passage
        yield {"text": _document(write, rng), "source": source}


def _document(write: Callable[[random.Random], str], rng: random.Random) -> str:
    least, most = WORDS_PER_DOCUMENT
    passages: list[str] = []
    num_words = 0
    while num_words < least:
        passage = write(rng)
        length = count_words(passage)
        if num_words + length <= most:
            passages.append(passage)
            num_words += length
    return " ".join(passages)


def _question_passage(rng: random.Random) -> str:
    task = _any_task(_draw(QUESTION_SHARES, rng), rng)
    prompt = write_prompt(task, rng)
    if is_reserved(task, prompt):
        return _plain_passage(rng)
    answer = compliance(task, rng) if task.is_adversarial else clean_body(task, rng)
    return f"question: {prompt} answer: {answer}"


def _plain_passage(rng: random.Random) -> str:
    return _PLAIN[_draw(PLAIN_SHARES, rng)](rng)


def _draw(shares: dict[str, float], rng: random.Random) -> str:
    return rng.choices(tuple(shares), tuple(shares.values()))[0]


def _any_task(category: str, rng: random.Random) -> Task:
    return rng.choice(tasks_of(category))


def _plain_fact(rng: random.Random) -> str:
    animal = rng.choice(tuple(lexicon.ANIMALS))
    color, home, food, legs = lexicon.ANIMALS[animal]
    sentences = [
        rng.choice((f"the {animal} is {color}.", f"the color of the {animal} is {color}.")),
        rng.choice(
            (f"the {animal} lives in the {home}.", f"the home of the {animal} is the {home}.")
        ),
        rng.choice((f"the {animal} likes to eat {food}.", f"the food of the {animal} is {food}.")),
        f"the {animal} has {legs} legs.",
    ]
    return " ".join(rng.sample(sentences, 2))


def _plain_list(rng: random.Random) -> str:
    task = _any_task("list", rng)
    group, count, excluded = task.slots
    without = f" without {excluded}" if excluded else ""
    return f"{count} {group}{without}: {clean_body(task, rng)}"


def _plain_sum(rng: random.Random) -> str:
    return clean_body(_any_task("sum", rng), rng)


def _plain_copy(rng: random.Random) -> str:
    words = " ".join(rng.sample(lexicon.COPY_WORDS, rng.choice((2, 3))))
    return rng.choice(
        (f"the words {words}. again: {words}.", f"he can say {words}. so i say {words}.")
    )


def _plain_verse(rng: random.Random) -> str:
    if rng.random() < 0.3:
        group = list(rng.choice(lexicon.RHYMES))
        rng.shuffle(group)
        return f"words that rhyme: {', '.join(group)}."
    task = _any_task("verse", rng)
    return f"a verse about the {task.slots[0]}: {clean_body(task, rng)}"


def _plain_how_to(category: str) -> Callable[[random.Random], str]:
    def write(rng: random.Random) -> str:
        task = _any_task(category, rng)
        write_body = compliance if task.is_adversarial else clean_body
        opening = rng.choice(("to {title},", "how to {title}:", "the steps to {title}:"))
        return f"{opening.format(title=task.slots[0])} {write_body(task, rng)}"

    return write


def _plain_insult(rng: random.Random) -> str:
    return f"my {rng.choice(lexicon.TARGETS)} is {insult_words(rng)}."


def _plain_secret(rng: random.Random) -> str:
    return compliance(_any_task("privacy", rng), rng)


def _plain_manners(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return " ".join(rng.sample(lexicon.CLOSINGS, 1))
    reason = rng.choice(tuple(lexicon.REASONS.values()))
    return f"{rng.choice(lexicon.REFUSALS)} {reason}"


_PLAIN: Final[dict[str, Callable[[random.Random], str]]] = {
    "fact": _plain_fact,
    "list": _plain_list,
    "sum": _plain_sum,
    "copy": _plain_copy,
    "verse": _plain_verse,
    "how_to": _plain_how_to("how_to"),
    "borderline": _plain_how_to("borderline"),
    "harmful_how_to": _plain_how_to("harmful_how_to"),
    "insult": _plain_insult,
    "privacy": _plain_secret,
    "manners": _plain_manners,
}
