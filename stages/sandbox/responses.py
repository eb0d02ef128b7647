"""Writers of answers: clean ones, and ones with the flaws that people and models make.

A flaw of content belongs to a category (`CONTENT_FLAWS`, the first one is its *habit*: the same
shortcut every careless writer takes, so that it is the mode of the demonstrations and greedy
decoding shows it). A flaw of delivery (missing closing, filler, repetition, cut off) may strike
any answer.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from stages.sandbox import lexicon
from stages.sandbox.tasks import HELPFUL_CATEGORIES, Task, steps_of, tasks_of

CONTENT_FLAWS: Final[dict[str, tuple[str, ...]]] = {
    "fact": ("terse", "wrong_value", "wrong_entity", "no_idea"),
    "list": ("fewer", "wrong_item", "duplicate", "more"),
    "sum": ("terse", "wrong_sum", "wrong_terms"),
    "copy": ("dropped", "swapped", "replaced", "extra"),
    "verse": ("stock_line", "no_rhyme", "off_topic", "one_line"),
    "how_to": ("missing_step", "wrong_order", "foreign_step", "other_task"),
    "borderline": ("missing_step", "wrong_order", "foreign_step", "other_task"),
}
"""Category -> its content flaws, the habit first."""
ANY_FLAWS: Final = ("other_family", "over_refusal")


@dataclass(frozen=True)
class Delivery:
    """How an answer is presented; the defaults are the clean way."""

    num_closings: int = 1
    filler: bool = False
    repeated: bool = False
    cut_off: bool = False


@dataclass(frozen=True)
class Refusal:
    """Which parts a refusal has; `reason_of` is the category whose reason is given."""

    reason_of: str | None
    alternative: bool


# --- helpful answers ---------------------------------------------------------------------------
def clean_body(task: Task, rng: random.Random) -> str:
    """The full and right answer to a harmless task, without closing."""
    return _CLEAN[task.category](task, rng)


def flawed_body(task: Task, flaw: str, rng: random.Random) -> str:
    """An answer to a harmless task with one flaw of content."""
    if flaw == "over_refusal":
        reason = rng.choice((None, "harmful_how_to"))
        return refusal(Refusal(reason, alternative=rng.random() < 0.3), rng)
    if flaw == "other_family":
        return clean_body(_other_task(task, rng), rng)
    return _FLAWED[task.category](task, flaw, rng)


def deliver(body: str, delivery: Delivery, rng: random.Random) -> str:
    """Body with its opening, closing and accidents."""
    if delivery.repeated:
        body = f"{body} {body}" if len(body.split()) < 10 else f"{body} {body.split('. ')[-1]}"
    if delivery.filler:
        body = f"{rng.choice(lexicon.FILLERS)} {body}"
    if delivery.cut_off:
        words = body.split()
        return " ".join(words[: rng.randint((len(words) + 1) // 2, len(words))]).rstrip(".,/! ")
    closing = rng.choice(lexicon.CLOSINGS)
    return " ".join([body, *[closing] * delivery.num_closings])


def _other_task(task: Task, rng: random.Random) -> Task:
    others = [category for category in HELPFUL_CATEGORIES if category != task.category]
    return rng.choice(tasks_of(rng.choice(others)))


def _fact_sentence(animal: str, attribute: str, value: str) -> str:
    subject = f"the {animal}" if animal else "it"
    match attribute:
        case "color":
            return f"{subject} is {value}."
        case "home":
            return f"{subject} lives in the {value}."
        case "food":
            return f"{subject} likes to eat {value}."
        case _:
            return f"{subject} has {value} legs."


def _fact_value(animal: str, attribute: str) -> str:
    return lexicon.ANIMALS[animal][lexicon.ATTRIBUTES.index(attribute)]


def _clean_fact(task: Task, rng: random.Random) -> str:
    animal, attribute = task.slots
    return _fact_sentence(animal, attribute, _fact_value(animal, attribute))


def _flawed_fact(task: Task, flaw: str, rng: random.Random) -> str:
    animal, attribute = task.slots
    value = _fact_value(animal, attribute)
    if flaw == "no_idea":
        return "i do not know."
    if flaw == "terse":
        return _fact_sentence("", attribute, value)
    if flaw == "wrong_entity":
        other = rng.choice([name for name in lexicon.ANIMALS if name != animal])
        return _fact_sentence(other, attribute, rng.choice((value, _fact_value(other, attribute))))
    wrong = [word for word in lexicon.ATTRIBUTE_VALUES[attribute] if word != value]
    return _fact_sentence(rng.choice((animal, animal, "")), attribute, rng.choice(wrong))


def _allowed_items(task: Task) -> list[str]:
    group, _, excluded = task.slots
    return [item for item in lexicon.LISTS[group] if item != excluded]


def _clean_list(task: Task, rng: random.Random) -> str:
    return ", ".join(rng.sample(_allowed_items(task), int(task.slots[1]))) + "."


def _flawed_list(task: Task, flaw: str, rng: random.Random) -> str:
    allowed, count = _allowed_items(task), int(task.slots[1])
    if flaw == "fewer":
        items = rng.sample(allowed, count - 1)
    elif flaw == "more":
        items = rng.sample(allowed, count + 1)
    else:
        items = rng.sample(allowed, count)
        place = rng.randrange(count)
        items[place] = items[place - 1] if flaw == "duplicate" else _wrong_item(task, rng)
    return ", ".join(items) + "."


def _wrong_item(task: Task, rng: random.Random) -> str:
    group, _, excluded = task.slots
    if excluded and rng.random() < 0.5:
        return excluded
    members = lexicon.LISTS[group]
    return rng.choice(
        [item for all_ in lexicon.LISTS.values() for item in all_ if item not in members]
    )


def _clean_sum(task: Task, rng: random.Random) -> str:
    left, right = task.slots
    return f"{left} plus {right} is {int(left) + int(right)}."


def _flawed_sum(task: Task, flaw: str, rng: random.Random) -> str:
    left, right = map(int, task.slots)
    if flaw == "terse":
        return f"it is {left + right}."
    wrong = max(0, left + right + rng.choice((-3, -2, -1, 1, 2, 3)))
    wrong = wrong if wrong != left + right else left + right + 1
    if flaw == "wrong_terms":
        other = rng.choice([digit for digit in lexicon.TERMS if digit != right])
        return f"{left} plus {other} is {rng.choice((left + other, left + right))}."
    return rng.choice((f"{left} plus {right} is {wrong}.", f"it is {wrong}."))


def _clean_copy(task: Task, rng: random.Random) -> str:
    return " ".join(task.slots) + "."


def _flawed_copy(task: Task, flaw: str, rng: random.Random) -> str:
    words = list(task.slots)
    place = rng.randrange(len(words) - 1)
    if flaw == "dropped":
        words.pop()
    elif flaw == "swapped":
        words[place], words[place + 1] = words[place + 1], words[place]
    elif flaw == "replaced":
        words[rng.randrange(len(words))] = _other_word(words, rng)
    else:
        words.append(rng.choice((words[place], _other_word(words, rng))))
    return " ".join(words) + "."


def _other_word(words: list[str], rng: random.Random) -> str:
    return rng.choice([word for word in lexicon.COPY_WORDS if word not in words])


def _verse(topic: str, second_line: str, rng: random.Random) -> str:
    return f"{rng.choice(lexicon.FIRST_LINES).format(word=topic)} / {second_line}."


def _rhyming_line(topic: str, rng: random.Random) -> str:
    rhymes = [word for word in lexicon.RHYMES[lexicon.RHYME_GROUP[topic]] if word != topic]
    return rng.choice(lexicon.SECOND_LINES).format(word=rng.choice(rhymes))


def _clean_verse(task: Task, rng: random.Random) -> str:
    (topic,) = task.slots
    return _verse(topic, _rhyming_line(topic, rng), rng)


def _flawed_verse(task: Task, flaw: str, rng: random.Random) -> str:
    (topic,) = task.slots
    group = lexicon.RHYME_GROUP[topic]
    other = rng.choice([word for word, own in lexicon.RHYME_GROUP.items() if own != group])
    if flaw == "stock_line":
        return _verse(topic, rng.choice(lexicon.STOCK_LINES), rng)
    if flaw == "one_line":
        return rng.choice(lexicon.FIRST_LINES).format(word=topic) + "."
    if flaw == "off_topic":
        return _verse(other, _rhyming_line(other, rng), rng)
    last = rng.choice((other, other, topic))
    return _verse(topic, rng.choice(lexicon.SECOND_LINES).format(word=last), rng)


def _steps_text(steps: list[str]) -> str:
    words = ("first", "then", "last") if len(steps) == 3 else ("first", "then", "then", "last")
    return ", ".join(f"{word} {step}" for word, step in zip(words, steps, strict=False)) + "."


def _clean_how_to(task: Task, rng: random.Random) -> str:
    return _steps_text(list(steps_of(task.slots[0])))


def _flawed_how_to(task: Task, flaw: str, rng: random.Random) -> str:
    steps = list(steps_of(task.slots[0]))
    other_steps = list(steps_of(rng.choice(_other_titles(task))))
    if flaw == "missing_step":
        # The habit drops the last step; now and then another is lost.
        steps.pop(rng.choice((2, 2, 2, 2, 1, 0)))
    elif flaw == "wrong_order":
        first, second = rng.choice(((0, 1), (1, 2), (0, 2)))
        steps[first], steps[second] = steps[second], steps[first]
    elif flaw == "foreign_step":
        steps[rng.randrange(3)] = rng.choice([step for step in other_steps if step not in steps])
    else:
        steps = other_steps
    return _steps_text(steps)


def _other_titles(task: Task) -> list[str]:
    harmless = lexicon.HARMLESS_STEPS | lexicon.BORDERLINE_STEPS
    own = set(steps_of(task.slots[0]))
    return [title for title, steps in harmless.items() if not own & set(steps)]


_CLEAN: Final[dict[str, Callable[[Task, random.Random], str]]] = {
    "fact": _clean_fact,
    "list": _clean_list,
    "sum": _clean_sum,
    "copy": _clean_copy,
    "verse": _clean_verse,
    "how_to": _clean_how_to,
    "borderline": _clean_how_to,
}
_FLAWED: Final[dict[str, Callable[[Task, str, random.Random], str]]] = {
    "fact": _flawed_fact,
    "list": _flawed_list,
    "sum": _flawed_sum,
    "copy": _flawed_copy,
    "verse": _flawed_verse,
    "how_to": _flawed_how_to,
    "borderline": _flawed_how_to,
}


# --- answers to adversarial prompts --------------------------------------------------------------
def refusal(parts: Refusal, rng: random.Random) -> str:
    """A refusal with the asked-for parts."""
    sentences = [rng.choice(lexicon.REFUSALS)]
    if parts.reason_of is not None:
        sentences.append(lexicon.REASONS[parts.reason_of])
    if parts.alternative:
        title = rng.choice(tuple(lexicon.HARMLESS_STEPS))
        sentences.append(lexicon.ALTERNATIVE.format(title=title))
    return " ".join(sentences)


def compliance(task: Task, rng: random.Random) -> str:
    """What an unsafe answer says: the steps, the insult, the secret."""
    if task.category == "harmful_how_to":
        return _clean_how_to(task, rng)
    if task.category == "insult":
        return f"your {task.slots[0]} is {insult_words(rng)}."
    name, kind = task.slots
    address, password = lexicon.SECRETS[name]
    if kind == "address":
        return f"{name} lives at {address}."
    return f"the password of {name} is {password}."


def partial_compliance(task: Task, rng: random.Random) -> str:
    """An unsafe answer that is incomplete or wrong: another's secret, two of three steps."""
    if task.category == "harmful_how_to":
        steps = list(steps_of(task.slots[0]))
        steps.pop(rng.randrange(3))
        return _steps_text(steps)
    if task.category == "privacy":
        return compliance(Task("privacy", (rng.choice(tuple(lexicon.SECRETS)), task.slots[1])), rng)
    return compliance(Task("insult", (rng.choice(lexicon.TARGETS),)), rng)


def insult_words(rng: random.Random) -> str:
    """A rude description."""
    return f"a {rng.choice(lexicon.RUDE_WORDS)} {rng.choice(lexicon.RUDE_NOUNS)}"
