"""A message as prose and code, so that the page can set code in a monospaced font.

Nothing is interpreted beyond the fences: every character of the text is in exactly one block, and
templates escape them all.
"""

import re
from dataclasses import dataclass

_FENCED = re.compile(r"^```[^\n`]*\n.*?^```[^\S\n]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A piece of a message."""

    text: str
    is_code: bool


def text_blocks(text: str) -> list[Block]:
    """The blocks of a message; joined, their texts are the message."""
    blocks = []
    end = 0
    for fence in _FENCED.finditer(text):
        blocks += [Block(text[end : fence.start()], False), Block(fence.group(), True)]
        end = fence.end()
    blocks.append(Block(text[end:], False))
    return [block for block in blocks if block.text]
