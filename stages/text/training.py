"""Training a SentencePiece BPE vocabulary as Llama 2's (§2.2)."""

import io
import re
from collections.abc import Iterable, Iterator

from sentencepiece import SentencePieceTrainer

from data_contracts.errors import UserError
from stages.text.tokenizer import SEPARATORS

CHUNK_CHARACTERS = 2000
"""SentencePiece drops training sentences of more than `max_sentence_length` bytes."""


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    character_coverage: float = 0.99995,
    separator_pieces: bool = True,
) -> bytes:
    """The content of a `tokenizer.model` with `vocab_size` pieces; same texts, same bytes.

    Digits stand alone, unknown characters become UTF-8 bytes, white space is kept as it is.
    Raises UserError, with the nearest size that works, when the texts are too few for the size
    or the size too small for the texts' alphabet.
    """
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_chunks(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            split_digits=True,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            allow_whitespace_only_pieces=True,
            pad_id=3,
            # Control pieces, unlike user-defined ones, are never matched in text.
            control_symbols=list(SEPARATORS) if separator_pieces else [],
            max_sentence_length=4 * CHUNK_CHARACTERS,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, vocab_size) from error
    return model.getvalue()


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    """Pieces of the texts that the trainer accepts: short, and without its reserved tab."""
    for text in texts:
        for part in text.split("\t"):
            for start in range(0, len(part), CHUNK_CHARACTERS):
                yield part[start : start + CHUNK_CHARACTERS]


def _explained(error: RuntimeError, vocab_size: int) -> UserError:
    message = str(error)
    if found := re.search(r"set it to a value <= (\d+)", message):
        return UserError(
            f"The documents are too few for a vocabulary of {vocab_size} pieces",
            f"Set vocab_size to {found[1]} or less, or supply more documents",
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"A vocabulary of {vocab_size} pieces cannot hold the documents' characters and 256 "
            "byte pieces",
            f"Set vocab_size to at least {found[1]}, or lower character_coverage",
        )
    return UserError(
        f"SentencePiece cannot train on these documents ({message.splitlines()[0]})",
        "Check that the documents table holds text",
    )
