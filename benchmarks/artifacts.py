"""What a stage reads from the store, made from random text: a tokenizer, models, tables."""

from bisect import bisect_right
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


@cache
def tokenizer(vocab_size: int) -> Tokenizer:
    """A SentencePiece vocabulary over made-up words."""
    return Tokenizer.from_bytes(train_bpe(_texts(vocab_size), vocab_size))


def _texts(vocab_size: int) -> Iterator[str]:
    """Text with enough words for such a vocabulary."""
    rng = np.random.default_rng(0)
    num_words = max(4000, 2 * vocab_size)
    syllables = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(num_words)]
    shares = 1 / np.arange(1, num_words + 1)  # as words of a language: a few common, many rare
    for text in rng.choice(words, (num_words // 4, 60), p=shares / shares.sum()):
        yield " ".join(text)


def prompt_rows(count: int, num_tokens: int, vocab_size: int) -> list[dict[str, Any]]:
    """Rows of the prompts table whose rendering has exactly so many tokens."""
    words = " ".join(_texts(vocab_size)).split()
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

    def length(content: str) -> int:
        return len(render_prompt([{"role": "user", "content": content}], vocabulary))

    fitting = bisect_right(
        range(1, num_tokens + 1), num_tokens, key=lambda n: length(" ".join(words[:n]))
    )
    content = " ".join(words[:fitting])
    for word in [*words[fitting:num_tokens], *"aaaaaaaaaaaaaaaa"]:
        if length(content) == num_tokens:
            break
        if length(f"{content} {word}") <= num_tokens:
            content = f"{content} {word}"
    assert length(content) == num_tokens, f"no text renders to {num_tokens} tokens"
    return content


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
