"""What a stage reads from the store, made from random text: a tokenizer, models, tables."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from data_contracts.artifacts import ArtifactRef
from data_contracts.parquet import write_table
from data_contracts.store import Store
from data_contracts.tables import CONTRACTS
from kernels.heads import RewardModel
from kernels.hf_layout import save_causal, save_reward
from kernels.model import CausalLM
from stages.models.folders import CHECKPOINT_KIND, special_ids
from stages.text.dialogue import render_prompt
from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe

_NUM_WORDS = 4000


@cache
def tokenizer(vocab_size: int) -> Tokenizer:
    """A SentencePiece vocabulary over made-up words."""
    return Tokenizer.from_bytes(train_bpe(_texts(), vocab_size))


def _texts() -> Iterator[str]:
    rng = np.random.default_rng(0)
    syllables = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(_NUM_WORDS)]
    shares = 1 / np.arange(1, _NUM_WORDS + 1)  # as words of a language: a few common, many rare
    for _ in range(1000):
        yield " ".join(rng.choice(words, 60, p=shares / shares.sum()))


def prompt_rows(count: int, num_tokens: int, vocab_size: int) -> list[dict[str, Any]]:
    """Rows of the prompts table whose rendering has exactly so many tokens."""
    words = " ".join(_texts()).split()
    rows = []
    for i in range(count):
        content = _of_length(words[i * num_tokens :], num_tokens, tokenizer(vocab_size))
        rows.append(
            {
                "prompt_id": f"q{i}",
                "domain": ("helpfulness", "safety")[i % 2],
                "source": "random",
                "split": "train",
                "category": None,
                "messages": [{"role": "user", "content": content}],
            }
        )
    return rows


def _of_length(words: list[str], num_tokens: int, vocabulary: Tokenizer) -> str:
    """Words, and in the end single letters, that render to exactly so many tokens."""
    content = ""
    for word in [*words[:num_tokens], *"aaaaaaaaaaaaaaaa"]:
        longer = f"{content} {word}".strip()
        messages = [{"role": "user", "content": longer}]
        length = len(render_prompt(messages, vocabulary))
        content = longer if length <= num_tokens else content
        if length == num_tokens:
            return content
    raise AssertionError(f"no text renders to {num_tokens} tokens")


def publish_table(store: Store, name: str, rows: list[dict[str, Any]]) -> ArtifactRef:
    """Rows under the contract of this name."""
    with TemporaryDirectory() as folder:
        write_table(Path(folder) / "part-0.parquet", rows, CONTRACTS[name])
        return store.publish(Path(folder), CONTRACTS[name].kind)


def publish_tokenizer(store: Store, vocab_size: int) -> ArtifactRef:
    """The tokenizer alone."""
    with TemporaryDirectory() as folder:
        tokenizer(vocab_size).copy_to(Path(folder))
        return store.publish(Path(folder), "tokenizer")


def publish_model(store: Store, model: CausalLM | RewardModel) -> ArtifactRef:
    """A model and its tokenizer in Hugging Face layout."""
    vocabulary = tokenizer(model.config.vocab_size)
    save = save_causal if isinstance(model, CausalLM) else save_reward
    with TemporaryDirectory() as folder:
        save(Path(folder), model.config, model.state_dict(), **special_ids(vocabulary))
        vocabulary.copy_to(Path(folder))
        return store.publish(Path(folder), CHECKPOINT_KIND)
