"""Train the vocabulary, or take an existing one (§2.2).

    rlhf stage tokenizer --recipe demo
    python -m stages.tokenizer --config tokenizer.json --home RLHF_HOME

The output holds `tokenizer.model` and the files from which transformers, vLLM and lm-eval build a
tokenizer with the same ids; that they are the same is checked on documents before it is kept.
"""

import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow.compute as pc
from pydantic import Field

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from data_contracts.errors import UserError
from data_contracts.parquet import iter_batches
from data_contracts.tables import CONTRACTS
from stages.importers.user_file import UserFile
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.text.hf_export import fast_tokenizer, write_hf_files
from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe

VERSION = "1"

PROBES = ("", "  two  spaces ", "\n\tlines\n\n", "3.14", "é 日本 😀", "</s> [INST] <0x41>", "\x01")
NUM_PROBE_DOCUMENTS = 100
PROBE_CHARACTERS = 2_000


class TokenizerSettings(Contract):
    """The paper's vocabulary (§2.2)."""

    vocab_size: int = Field(default=32_000, gt=0)
    """Pieces, the 256 bytes and the control pieces included."""
    character_coverage: float = Field(default=0.99995, gt=0, le=1)
    """Share of the documents' characters that get a piece; the rest are written in bytes."""
    max_training_bytes: int = Field(default=200_000_000, gt=0)
    """Train on a fixed random choice of documents of about this size when there are more."""
    existing: UserFile | None = None
    """Llama's `tokenizer.model`, for instance; nothing is trained then."""


class Config(StageConfig, TokenizerSettings):
    """Settings and input."""

    documents: ArtifactRef


def run(config: Config, work: WorkDir) -> StageOutput:
    """Train or read the vocabulary, check that it serves, and write it."""
    folder = work.output("tokenizer")
    artifacts = {"tokenizer": (folder, "tokenizer")}
    if not work.rank.is_main:
        return StageOutput(artifacts)
    documents = work.input(config.documents)
    if config.existing is None:
        model = train_bpe(
            training_texts(documents, config.max_training_bytes),
            config.vocab_size,
            character_coverage=config.character_coverage,
        )
    else:
        model = config.existing.checked_path().read_bytes()
    tokenizer = Tokenizer.from_bytes(model)
    probes = [*PROBES, *_probe_texts(documents)]
    check(tokenizer, probes)
    tokenizer.copy_to(folder)
    write_hf_files(tokenizer, folder)
    return StageOutput(artifacts, statistics(tokenizer, probes))


def training_texts(documents: Path, max_bytes: int) -> Iterator[str]:
    """All documents, or every document whose id falls into the share that `max_bytes` allows."""
    contract = CONTRACTS["documents"]
    num_bytes = sum(
        pc.call_function("binary_length", [batch.column("text")]).to_numpy().sum(dtype="int64")
        for batch in iter_batches(documents, contract)
    )
    share = max_bytes / max(num_bytes, 1)
    for batch in iter_batches(documents, contract):
        ids, texts = batch.column("document_id").to_pylist(), batch.column("text").to_pylist()
        for document_id, text in zip(ids, texts, strict=True):
            if share >= 1 or zlib.crc32(document_id.encode()) < share * 2**32:
                yield text


def check(tokenizer: Tokenizer, probes: list[str]) -> None:
    """Raise UserError unless every text comes back exactly and transformers sees the same ids."""
    if any(tokenizer.decode(tokenizer.encode(text)) != text for text in probes if "▁" not in text):
        raise UserError(
            "The tokenizer does not give every text back exactly",
            "Use one trained with byte_fallback, normalization_rule_name=identity and "
            "remove_extra_whitespaces=false, as Llama's is, or train one here",
        )
    fast = fast_tokenizer(tokenizer)
    fast.encode_special_tokens = True
    if any(
        fast.encode(text, add_special_tokens=False).ids != tokenizer.encode(text) for text in probes
    ):
        raise UserError(
            "The tokenizer cannot be written for transformers with the same ids",
            "Use a SentencePiece model of type BPE with a dummy prefix, as Llama's is, or train "
            "one here",
        )


def statistics(tokenizer: Tokenizer, texts: list[str]) -> dict[str, float]:
    """Size, and how well it compresses (on the probe texts)."""
    num_tokens = sum(len(tokenizer.encode(text)) for text in texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    return {
        "vocab_size": float(tokenizer.vocab_size),
        "bytes_per_token": num_bytes / num_tokens,
    }


def _probe_texts(documents: Path) -> list[str]:
    """The beginnings of the first documents."""
    batches = iter_batches(documents, CONTRACTS["documents"], batch_size=NUM_PROBE_DOCUMENTS)
    texts = (text for batch in batches for text in batch.column("text").to_pylist())
    return [text[:PROBE_CHARACTERS] for text in islice(texts, NUM_PROBE_DOCUMENTS)]


if __name__ == "__main__":
    main(Config, run)
