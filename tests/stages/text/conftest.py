import gzip
import json
from pathlib import Path

import pytest

from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"

CORPUS = [
    f"The {noun} has {i} {noun}s, and it is {adjective}.\n\n  - one\n  - two: {i * 37}\n"
    for i in range(40)
    for noun in ("garden", "lantern", "river", "orchard")
    for adjective in ("old", "very quiet", "bright [and] warm", "half/empty <maybe>")
] + ["[INST] [/INST] <<SYS>> <</SYS>> INST SYS"] * 200


AWKWARD = [
    "", " ", "   ", "\n", "\n\n\ta  b ", " leading", "trailing ", "12345 3.14", "a\r\nb",
    "é日本語 😀👩‍👩‍👧", "\x00\x01\x7f", "</s><s><unk><pad>", "[INST] x [/INST]", "<<SYS>> <</SYS>>",
    "<0x41>", "\u00a0\u3000\u200b", "\u2585 \u2047 \ufdd0 \ufffd",
]  # fmt: skip


@pytest.fixture(scope="session")
def corpus():
    """A few hundred short documents with words, lists, numbers and brackets."""
    return CORPUS


@pytest.fixture(scope="session")
def awkward_texts():
    """White space, scripts, control characters and control strings that break tokenizers."""
    return AWKWARD


@pytest.fixture(scope="session", params=["pieces", "text"])
def tokenizer(request):
    """With separator pieces, as trained here, and without, as Llama's own."""
    return Tokenizer.from_bytes(train_bpe(CORPUS, 440, separator_pieces=request.param == "pieces"))


@pytest.fixture(scope="session")
def real_lines():
    """1,000 lines of real text of all kinds."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data set folder ../shared/data is not there")
    lines = []
    for path in sorted(SHARED_DATA.rglob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(next(file)) for _ in range(60)]
        texts = [value for row in rows for value in row.values() if isinstance(value, str)]
        lines += [line for text in texts for line in text.split("\n")][:120]
    assert len(lines) >= 1000
    return lines[:1000]
