"""What the traps share: a small vocabulary, and skips where a GPU is needed."""

import pytest
import torch
from trap_models import VOCAB
from trap_ranks import of_one_rank, of_two_ranks

from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe

TEXTS = [f"The {noun} has {i} old walls.\n" for i in range(30) for noun in ("garden", "river")]


@pytest.fixture(scope="session")
def tokenizer():
    """As many pieces as the models embed."""
    return Tokenizer.from_bytes(train_bpe(TEXTS, VOCAB))


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory, tokenizer):
    """What each of two processes finds out, once for all the traps that ask."""
    folder = tmp_path_factory.mktemp("two_ranks")
    tokenizer.copy_to(folder)
    return of_two_ranks(folder, folder)


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory, tokenizer):
    """The same, by this process."""
    return of_one_rank(tmp_path_factory.mktemp("one_rank"), tokenizer)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
