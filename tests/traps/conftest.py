"""What the traps share: a small vocabulary, and skips where a GPU is needed."""

import pytest
import torch

from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe
from trap_models import VOCAB

TEXTS = [f"The {noun} has {i} old walls.\n" for i in range(30) for noun in ("garden", "river")]


@pytest.fixture(scope="session")
def tokenizer():
    """As many pieces as the models embed."""
    return Tokenizer.from_bytes(train_bpe(TEXTS, VOCAB))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
