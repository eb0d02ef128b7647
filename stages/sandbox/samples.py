"""Pairs of answers such as models of every version sample: what open preference data looks like.

A reward model meets samples of SFT (mostly flawed) and of late RLHF versions (nearly clean), so the
flaws are drawn at a random level. Pairs are of three kinds: one answers the prompt and the other a
sibling of it (relevance), the two differ in one aspect only, or they are independent draws.
"""

import random
from dataclasses import dataclass, replace
from typing import Final

from stages.sandbox.lexicon import LIST_SIZES
from stages.sandbox.responses import (
    ANY_FLAWS,
    CONTENT_FLAWS,
    Delivery,
    Refusal,
    clean_body,
    compliance,
    deliver,
    flawed_body,
    partial_compliance,
    refusal,
)
from stages.sandbox.tasks import (
    ADVERSARIAL_CATEGORIES,
    HELPFUL_CATEGORIES,
    Task,
    count_words,
    tasks_of,
)

MAX_ANSWER_WORDS: Final = 30
"""Longer samples are cut there, as a sampler's length limit does."""
PAIR_KINDS: Final = {"relevance": 0.40, "one_aspect": 0.35, "independent": 0.25}
"""Shares of the pairs of harmless tasks. Whether an answer fits its question is a skill that a tiny
reward model begins to learn at about 3,000 such pairs (10,000 open pairs have as many); with fewer
it stays blind to it (accuracy 0.5), while habits and closings take it a few hundred.
"""


@dataclass(frozen=True)
class _Profile:
    """All choices behind one answer to a harmless task."""

    flaw: str | None
    delivery: Delivery
    slip: str | None
    """A word-level accident: a word dropped, replaced or doubled, or another answer's end."""
    wording: int
    """Seed of the free choices; two profiles that share it share their words."""


def sample_pair(task: Task, rng: random.Random, safety: bool = False) -> tuple[str, str]:
    """Two answers to a task, in random order; they may come out equal.

    `safety` draws more refusals and some unsafe answers for harmless tasks.
    """
    if task.is_adversarial:
        return _adversarial_answer(task, rng), _adversarial_answer(task, rng)
    pair = _harmless_pair(task, rng)
    if safety and rng.random() < 0.5:
        pair[0] = _out_of_place(task, rng)
    rng.shuffle(pair)
    return pair[0], pair[1]


# --- harmless tasks ------------------------------------------------------------------------------
def _harmless_pair(task: Task, rng: random.Random) -> list[str]:
    (kind,) = rng.choices(tuple(PAIR_KINDS), tuple(PAIR_KINDS.values()))
    first = _profile(task, rng)
    if kind == "relevance":
        return [_answer(task, first), _answer(_sibling(task, rng), first)]
    second = _mutated(first, task, rng) if kind == "one_aspect" else _profile(task, rng)
    return [_answer(task, first), _answer(task, second)]


def _sibling(task: Task, rng: random.Random) -> Task:
    """Another task of the category; of a list, the same one with another count.

    (Two lists of animals share members, so that the answer to one is half right for the other.)
    """
    if task.category == "list":
        group, own_count, excluded = task.slots
        counts = [str(size) for size in LIST_SIZES if str(size) != own_count]
        return Task("list", (group, rng.choice(counts), excluded))
    tasks = tasks_of(task.category)
    while (other := rng.choice(tasks)) == task:
        pass
    return other


def _profile(task: Task, rng: random.Random) -> _Profile:
    level = rng.uniform(0.1, 0.8)
    return _Profile(
        flaw=_flaw(task, rng) if rng.random() < level else None,
        delivery=Delivery(
            num_closings=_num_closings(level, rng),
            filler=rng.random() < 0.25 * level,
            repeated=rng.random() < 0.08 * level,
            cut_off=rng.random() < 0.08 * level,
        ),
        slip=_slip_kind(rng) if rng.random() < 0.4 * level else None,
        wording=rng.getrandbits(32),
    )


def _flaw(task: Task, rng: random.Random) -> str:
    """The category's habit in a fifth, any family's in a tenth, else one of its other flaws.

    Habits are learnt from few pairs; to see that an answer is about something else than what was
    asked takes the most.
    """
    habit, *others = CONTENT_FLAWS[task.category]
    chance = rng.random()
    if chance < 0.2:
        return habit
    return rng.choice(others) if chance < 0.9 else rng.choice(ANY_FLAWS)


def _num_closings(level: float, rng: random.Random) -> int:
    if rng.random() >= level:
        return 1
    return rng.choice((0, 0, 0, 2))


def _slip_kind(rng: random.Random) -> str:
    return rng.choice(("drop", "replace", "double", "wander", "wander"))


def _mutated(profile: _Profile, task: Task, rng: random.Random) -> _Profile:
    """The same answer but for one aspect; content in four of five cases."""
    wording = profile.wording if rng.random() < 0.6 else rng.getrandbits(32)
    delivery = profile.delivery
    chance = rng.random()
    if chance < 0.8:
        flaw = _flaw(task, rng) if profile.flaw is None or rng.random() < 0.3 else None
        return replace(profile, flaw=flaw, wording=wording)
    if chance < 0.88:
        num_closings = rng.choice([n for n in (0, 1, 1, 2) if n != delivery.num_closings])
        delivery = replace(delivery, num_closings=num_closings)
    elif chance < 0.91:
        delivery = replace(delivery, filler=not delivery.filler)
    elif chance < 0.93:
        delivery = replace(delivery, repeated=not delivery.repeated)
    elif chance < 0.95:
        delivery = replace(delivery, cut_off=not delivery.cut_off)
    else:
        return replace(profile, slip=None if profile.slip else _slip_kind(rng), wording=wording)
    return replace(profile, delivery=delivery, wording=wording)


def _answer(task: Task, profile: _Profile) -> str:
    rng = random.Random(profile.wording)
    flaw = profile.flaw
    body = flawed_body(task, flaw, rng) if flaw is not None else clean_body(task, rng)
    if profile.slip is not None:
        body = _with_slip(body, profile.slip, rng)
    return _limited(deliver(body, profile.delivery, rng))


def _with_slip(body: str, kind: str, rng: random.Random) -> str:
    words = body.split()
    place = rng.randrange(len(words))
    if kind == "drop":
        words = words[:place] + words[place + 1 :] or words
    elif kind == "double":
        words.insert(place, words[place])
    elif kind == "replace":
        words[place] = rng.choice(_foreign_words(rng))
    else:
        # As a model at temperature 1 does: it starts one answer and ends in another.
        foreign = _foreign_words(rng)
        words = words[:place] + foreign[rng.randrange(len(foreign)) :]
    return " ".join(words)


def _foreign_words(rng: random.Random) -> list[str]:
    return clean_body(rng.choice(tasks_of(rng.choice(HELPFUL_CATEGORIES))), rng).split()


def _limited(answer: str) -> str:
    words = answer.split()
    while count_words(" ".join(words)) > MAX_ANSWER_WORDS:
        words.pop()
    return " ".join(words)


def _out_of_place(task: Task, rng: random.Random) -> str:
    """A refusal of a harmless request, or now and then an unsafe answer to it."""
    if rng.random() < 0.75:
        reason = rng.choice((None, *ADVERSARIAL_CATEGORIES[:1] * 2))
        return refusal(Refusal(reason, alternative=rng.random() < 0.4), rng)
    return compliance(rng.choice(tasks_of(rng.choice(ADVERSARIAL_CATEGORIES))), rng)


# --- adversarial tasks ---------------------------------------------------------------------------
def _adversarial_answer(task: Task, rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.50:
        text = _refusal_sample(task, rng)
    elif chance < 0.75:
        text = compliance(task, rng)
    elif chance < 0.85:
        text = partial_compliance(task, rng)
    elif chance < 0.92:
        # The refusal that helps all the same.
        text = f"{refusal(Refusal(None, alternative=False), rng)} {compliance(task, rng)}"
    else:
        category = rng.choice(HELPFUL_CATEGORIES)
        text = clean_body(rng.choice(tasks_of(category)), rng)
    delivery = Delivery(
        num_closings=rng.choices((0, 1, 2), (0.8, 0.17, 0.03))[0],
        filler=rng.random() < 0.05,
        repeated=rng.random() < 0.05,
        cut_off=rng.random() < 0.05,
    )
    return _limited(deliver(text, delivery, rng))


def _refusal_sample(task: Task, rng: random.Random) -> str:
    wrong = [category for category in ADVERSARIAL_CATEGORIES if category != task.category]
    reason = rng.choices((None, task.category, rng.choice(wrong)), (0.4, 0.5, 0.1))[0]
    return refusal(Refusal(reason, alternative=rng.random() < 0.5), rng)
