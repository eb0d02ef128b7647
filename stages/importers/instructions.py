"""Demonstrations and documents of one record each: Alpaca, question and answer, chat, text."""

from stages.importers.reading import Record
from stages.importers.rows import Demonstration, Document, Message, Prompt

SPLITS = ("train", "validation", "test")
DOMAINS = ("helpfulness", "safety")


def text(record: Record) -> Document:
    """A plain document, or a JSON row with the field `text`."""
    return Document(record.text("text"))


def alpaca(record: Record) -> Demonstration:
    """`instruction`, optional `input`, `output`."""
    return _single_turn(instruction_of(record), record.text("output"))


def qa(record: Record) -> Demonstration:
    """`question`, `answer`."""
    return _single_turn(record.text("question"), record.text("answer"))


def chat(record: Record) -> Demonstration:
    """`messages` of role and content; a message's optional `loss: false` makes it context only."""
    messages = record.messages("messages", last_role="assistant")
    marks = [item.get("loss") for item in record.fields["messages"]]
    if any(not (mark is None or isinstance(mark, bool)) for mark in marks):  # 0 is no false
        raise record.error("messages[].loss", "is not true or false")
    learned = [
        message["role"] == "assistant" and mark is not False
        for message, mark in zip(messages, marks, strict=True)
    ]
    if not any(learned):
        raise record.error("messages", "sets loss to false on every answer")
    return Demonstration(messages, learned)


def prompts(record: Record) -> Prompt:
    """`prompt` (text) or `messages`; optional `domain`, `category`, `split`."""
    return Prompt(
        prompt_messages(record),
        domain=record.choice("domain", DOMAINS),
        category=record.optional_text("category"),
        split=record.choice("split", SPLITS),
    )


def prompt_messages(record: Record) -> list[Message]:
    """The dialogue in `messages` or `prompt`, the latter as text or as a list of messages."""
    field = "messages" if "messages" in record.fields else "prompt"
    if isinstance(record.fields.get(field), list):
        return record.messages(field, last_role="user")
    return [{"role": "user", "content": record.text(field)}]


def instruction_of(record: Record) -> str:
    """`instruction`, and under it `input` where there is one."""
    given = record.optional_text("input")
    instruction = record.text("instruction")
    return f"{instruction}\n\n{given}" if given else instruction


def _single_turn(question: str, answer: str) -> Demonstration:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return Demonstration(messages, [False, True])
