"""A message as prose and code, so that the page can set code in a monospaced font.

Nothing is interpreted beyond the fences: every character of the text is in exactly one block, and
templates escape them all.
"""

import io
import re
from dataclasses import dataclass

_OPENING = re.compile(r"```[^\n`]*\n")
_CLOSING = re.compile(r"```[^\S\n]*\n?")


@dataclass(frozen=True)
class Block:
    """A piece of a message."""

    text: str
    is_code: bool


def text_blocks(text: str) -> list[Block]:
    """The blocks of a message; joined, their texts are the message.

    Each line is looked at once: a fence that nobody closes is prose, and a message may have many.
    """
    blocks: list[Block] = []
    prose: list[str] = []
    code: list[str] = []
    for line in io.StringIO(text, newline="\n"):  # splitlines() splits at more than newlines
        if code:
            code.append(line)
            if _CLOSING.fullmatch(line):
                blocks += [Block("".join(prose), False), Block("".join(code), True)]
                prose, code = [], []
        elif _OPENING.fullmatch(line):
            code.append(line)
        else:
            prose.append(line)
    blocks.append(Block("".join(prose + code), False))
    return [block for block in blocks if block.text]
