"""Code in fences is a block of its own, and no text takes long to be looked through."""

import pytest

from annotation.web.text_blocks import Block, text_blocks


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("", []),
        ("words", [Block("words", False)]),
        (
            "see\n```py\nx = 1\n```\nthere",
            [Block("see\n", False), Block("```py\nx = 1\n```\n", True), Block("there", False)],
        ),
        ("```\n```", [Block("```\n```", True)]),
        ("```\na\n```  \nb", [Block("```\na\n```  \n", True), Block("b", False)]),
        ("```\nnever closed\n```py\n", [Block("```\nnever closed\n```py\n", False)]),
        (" ```\nx\n ```\n", [Block(" ```\nx\n ```\n", False)]),
        ("a\u2028```\nb\n```\n", [Block("a\u2028```\nb\n```\n", False)]),
        ("```a`b\n```\n", [Block("```a`b\n```\n", False)]),
    ],
)
def test_blocks(text, blocks):
    assert text_blocks(text) == blocks


@pytest.mark.timeout(60)
def test_a_megabyte_of_fences_that_nobody_closes_is_looked_through_at_once():
    """Looking for every opening's end took half an hour, in which the page answered nobody."""
    text = "```a\n" * 200_000
    assert text_blocks(text) == [Block(text, False)]
