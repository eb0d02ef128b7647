"""Preference pairs: HH-RLHF transcripts, AlpacaEval annotations, chosen and rejected as in TRL."""

import math
import re

from data_contracts.ratings import Rating, SafetyLabel
from stages.importers.instructions import DOMAINS, instruction_of, prompt_messages
from stages.importers.reading import EmptyTextError, Record, in_order
from stages.importers.rows import Dropped, Message, Preference

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE_OF = {"Human": "user", "Assistant": "assistant"}

RATING_FROM_CERTAINTY = (
    (0.95, Rating.significantly_better),
    (0.80, Rating.better),
    (0.65, Rating.slightly_better),
    (0.50, Rating.negligibly_better),
)
"""The rating of an AlpacaEval pair from the judge's certainty 0.5 + |preference - 1.5|: the
probability that the preferred output is the better one. The steps are ours: thirds of the range
above a coin toss, with the last third kept for near-certainty."""


def hh(record: Record) -> Preference | Dropped:
    r"""`chosen` and `rejected`, each a whole dialogue as "\n\nHuman: …\n\nAssistant: …".

    The prompt is the longest common prefix of whole turns. Published files hold a few rows that
    differ in more than the last answer, or have an empty one: those are dropped.
    """
    chosen = _transcript(record, "chosen")
    rejected = _transcript(record, "rejected")
    return pair_of_dialogues(chosen, rejected)


def pair_of_dialogues(chosen: list[Message], rejected: list[Message]) -> Preference | Dropped:
    """Two dialogues that share all but the last assistant message, or why they are none."""
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    ours, theirs = chosen[common:], rejected[common:]
    if not ours and not theirs:
        return Dropped("identical_responses")
    answers = [*ours, *theirs]
    if len(ours) != 1 or len(theirs) != 1 or any(m["role"] != "assistant" for m in answers):
        return Dropped("differ_in_more_than_the_last_answer")
    messages = _merged(chosen[:common])
    if not in_order(messages) or messages[-1]["role"] != "user":
        return Dropped("roles_out_of_turn")
    if any(not m["content"].strip() for m in [*messages, *answers]):
        return Dropped("empty")
    return Preference(messages, ours[0]["content"], theirs[0]["content"])


def alpaca_eval(record: Record) -> Preference | Dropped:
    """`instruction`, `output_1`, `output_2`, and `preference` from 1.0 (first) to 2.0 (second).

    Ties, equal outputs and, as published files hold some, empty outputs and missing annotations
    are dropped.
    """
    preference = record.fields.get("preference")
    if preference is None:
        return Dropped("no_preference")
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        raise record.error("preference", "is not a number")
    if math.isnan(preference) or not 1 <= preference <= 2:
        raise record.error("preference", "is not from 1.0 to 2.0")
    if preference == 1.5:
        return Dropped("tie")
    try:
        outputs = record.text("output_1"), record.text("output_2")
    except EmptyTextError:
        return Dropped("empty")
    chosen, rejected = outputs if preference < 1.5 else outputs[::-1]
    if chosen == rejected:
        return Dropped("identical_responses")
    messages = [{"role": "user", "content": instruction_of(record)}]
    return Preference(
        messages,
        chosen,
        rejected,
        rating=rating_of(preference),
        annotator=record.optional_text("annotator"),
    )


def rating_of(preference: float) -> Rating:
    """The rating of an AlpacaEval preference in [1, 2] (see RATING_FROM_CERTAINTY)."""
    certainty = 0.5 + abs(preference - 1.5)
    return next(rating for least, rating in RATING_FROM_CERTAINTY if certainty >= least)


def pairs(record: Record) -> Preference | Dropped:
    """`prompt` (or `messages`), `chosen`, `rejected`, each text or a list of messages as in TRL.

    Without a prompt, or where chosen and rejected are whole dialogues, the prompt is what they
    share. Optional: rating, safety_label, annotator, domain, category.
    """
    chosen, rejected = (_response(record, field) for field in ("chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        pair = pair_of_dialogues(chosen, rejected)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        pair = _explicit_pair(record, chosen, rejected)
    else:
        raise record.error("rejected", "is not of the same form as 'chosen'")
    if isinstance(pair, Dropped):
        return pair
    return Preference(
        pair.messages,
        pair.chosen,
        pair.rejected,
        rating=record.choice("rating", tuple(Rating)),
        safety_label=record.choice("safety_label", tuple(SafetyLabel)),
        annotator=record.optional_text("annotator"),
        domain=record.choice("domain", DOMAINS),
        category=record.optional_text("category"),
    )


def _explicit_pair(record: Record, chosen: str, rejected: str) -> Preference | Dropped:
    if "prompt" not in record.fields and "messages" not in record.fields:
        remedy = "Add the prompt, or use format hh for transcripts with Human: and Assistant:"
        raise record.error("prompt", "is missing", remedy)
    if chosen == rejected:
        return Dropped("identical_responses")
    return Preference(prompt_messages(record), chosen, rejected)


def _response(record: Record, field: str) -> str | list[Message]:
    """An answer's text, or a dialogue of several messages."""
    if not isinstance(record.fields.get(field), list):
        return record.text(field)
    messages = record.message_list(record.fields[field], field)
    if len(messages) > 1:
        return messages
    if messages[0]["role"] != "assistant":
        raise record.error(field, "is not a message of the assistant")
    return messages[0]["content"]


def _transcript(record: Record, field: str) -> list[Message]:
    """The turns of a transcript, unmerged, without the white space around them."""
    text = record.text(field).replace("\r\n", "\n")
    before, *parts = _TURN.split("\n\n" + text.lstrip())
    if before or not parts:
        raise record.error(field, 'does not start with "Human:"')
    return [
        {"role": _ROLE_OF[name], "content": content.strip()}
        for name, content in zip(parts[0::2], parts[1::2], strict=True)
    ]


def _merged(messages: list[Message]) -> list[Message]:
    """Successive messages of one role as one, their paragraphs apart."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            content = f"{merged[-1]['content']}\n\n{message['content']}"
            merged[-1] = {"role": message["role"], "content": content}
        else:
            merged.append(message)
    return merged
