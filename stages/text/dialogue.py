"""Dialogues as token ids, with the mask of what is trained on (§3.1).

One turn of a dialogue, for vocabularies with separator pieces (those trained here)::

    <s> [INST] <<SYS>> system <</SYS>> user [/INST] assistant </s>

and for Llama's own vocabulary, where the separators are ordinary text, as Llama 2 wrote it::

    <s> "[INST] <<SYS>>\\nsystem\\n<</SYS>>\\n\\nuser [/INST]" "assistant" </s>

The system message belongs to the first turn. White space around system and user messages is
removed; responses are kept as they are. Prompt and response are tokenised apart, so that
`render_prompt(m) + render_response(a) == render_demonstration(m + [a]).tokens` always.

Literal control strings in messages never become control tokens. Text cannot encode to a control
piece; and where separators are ordinary text, a literal one in a message is spelled letter by
letter, which decodes to the same text but is another sequence of ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stages.text.tokenizer import SEPARATORS, Tokenizer, separator_spans

RESERVED = SEPARATORS
"""Strings with a meaning in rendered dialogues."""

Message = Mapping[str, Any]
"""role ("system", "user", "assistant"), content, and in demonstrations loss (bool)."""

Overlong = Literal["error", "drop"]
"""What becomes of a dialogue that the model's context does not hold."""


@dataclass(frozen=True)
class Rendered:
    """Token ids of a dialogue; `loss_mask` keeps answer tokens and their eos."""

    tokens: list[int]
    loss_mask: list[bool]


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids of a dialogue that ends with the user, ready for the response to follow.

    Raises ValueError when roles do not run ([system], user, assistant, …, user).
    """
    system, turns = split_turns(messages)
    if len(turns) % 2 == 0:
        raise ValueError("A prompt must end with a user message")
    tokens = _render_instruction(turns[0]["content"], tokenizer, system)
    for answer, question in zip(turns[1::2], turns[2::2], strict=True):
        tokens += render_response(answer["content"], tokenizer)
        tokens += _render_instruction(question["content"], tokenizer)
    return tokens


def render_response(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of an assistant message and its eos."""
    return [*_encode_content(text, tokenizer), tokenizer.eos_id]


def render_demonstration(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """Ids of a dialogue that ends with the assistant, and which of them are trained on.

    Assistant messages whose `loss` is absent or false are context only (§3.3 trains the last
    answer alone). Raises ValueError for any other order of roles.
    """
    system, turns = split_turns(messages)
    if len(turns) % 2 == 1:
        raise ValueError("A demonstration must end with an assistant message")
    tokens: list[int] = []
    loss_mask: list[bool] = []
    for question, answer in zip(turns[0::2], turns[1::2], strict=True):
        prompt = _render_instruction(question["content"], tokenizer, system)
        response = render_response(answer["content"], tokenizer)
        tokens += prompt + response
        loss_mask += [False] * len(prompt)
        loss_mask += [bool(answer.get("loss", False))] * len(response)
        system = None
    return Rendered(tokens, loss_mask)


def split_turns(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """The system message's content, and the alternating user and assistant messages.

    Raises ValueError when a role is out of place.
    """
    has_system = bool(messages) and messages[0]["role"] == "system"
    turns = messages[1:] if has_system else messages
    expected = ["user", "assistant"] * (len(turns) // 2 + 1)
    roles = [message["role"] for message in turns]
    if not roles or roles != expected[: len(roles)]:
        raise ValueError(
            "Messages must be an optional system message, then user and assistant in turn; "
            f"found {', '.join(m['role'] for m in messages) or 'none'}"
        )
    return (messages[0]["content"] if has_system else None), turns


def _render_instruction(content: str, tokenizer: Tokenizer, system: str | None = None) -> list[int]:
    """From bos to the separator after which the response starts."""
    content = content.strip()
    system = system.strip() if system else None
    separators = tokenizer.separators
    if separators is None:
        return [tokenizer.bos_id, *_instruction_as_text(content, tokenizer, system)]
    tokens = [tokenizer.bos_id, separators.begin_instruction]
    if system:
        tokens.append(separators.begin_system)
        tokens += tokenizer.encode(system)
        tokens.append(separators.end_system)
    tokens += tokenizer.encode(content)
    tokens.append(separators.end_instruction)
    return tokens


def _instruction_as_text(content: str, tokenizer: Tokenizer, system: str | None) -> list[int]:
    """Llama 2's own form, encoded as one string, with literal separators in it spelled out."""
    before = f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n" if system else "[INST] "
    spans = _shifted(separator_spans(content), len(before))
    if system:
        spans += _shifted(separator_spans(system), len("[INST] <<SYS>>\n"))
    return tokenizer.encode_spelled(f"{before}{content} [/INST]", spans)


def _encode_content(text: str, tokenizer: Tokenizer) -> list[int]:
    if tokenizer.separators is not None:
        return tokenizer.encode(text)
    return tokenizer.encode_spelled(text, separator_spans(text))


def _shifted(spans: list[tuple[int, int]], offset: int) -> list[tuple[int, int]]:
    return [(start + offset, end + offset) for start, end in spans]
