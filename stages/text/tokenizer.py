"""SentencePiece BPE in front of every model (§2.2).

Text round-trips exactly: newlines, tabs, leading and repeated spaces, control characters and
anything outside the vocabulary (as UTF-8 bytes). One exception is inherited from SentencePiece:
U+2581, its own mark for a space, reads as a space.

Control pieces (`<s>`, `</s>`, `<pad>`, and the separators `[INST]` … where the vocabulary has
them) are never the result of encoding text: a literal "</s>" in a document is ordinary
characters. Only `stages.text.dialogue` and the corpus stage place control ids.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sentencepiece import SentencePieceProcessor

from data_contracts.errors import UserError

MODEL_FILE = "tokenizer.model"
FOLDER_FILES = (
    MODEL_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a folder may hold for us and for transformers; `copy_to` carries those that exist."""

SEPARATORS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
"""Around instructions and system messages (§3.1); single pieces in vocabularies trained here."""


@dataclass(frozen=True)
class Separators:
    """Ids of the four separator pieces."""

    begin_instruction: int
    end_instruction: int
    begin_system: int
    end_system: int


class Tokenizer:
    """A SentencePiece model; Llama's own `tokenizer.model` and those trained here."""

    def __init__(self, model: bytes, folder: Path | None = None) -> None:
        self._processor = SentencePieceProcessor(model_proto=model)
        self._model = model
        self._folder = folder
        self.vocab_size: int = self._processor.get_piece_size()
        self.unk_id: int = self._processor.unk_id()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        own_pad: int = self._processor.pad_id()
        self.pad_id = own_pad if own_pad >= 0 else self.unk_id
        """Llama's own vocabulary has no padding piece: <unk>, which byte fallback never emits."""
        self.separators = self._find_separators()

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tokenizer.model` in `folder` (or that file itself).

        Raises UserError when it is missing, is no SentencePiece model, or lacks bos or eos.
        """
        path = Path(folder)
        path = path / MODEL_FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(
                f"{path} does not exist",
                f"Put the SentencePiece file {MODEL_FILE} there",
            )
        return cls.from_bytes(path.read_bytes(), path.parent)

    @classmethod
    def from_bytes(cls, model: bytes, folder: Path | None = None) -> "Tokenizer":
        """A tokenizer from the content of a `tokenizer.model`; same errors as `load`."""
        where = str(folder / MODEL_FILE) if folder else MODEL_FILE
        try:
            tokenizer = cls(model, folder)
        except RuntimeError as error:
            raise UserError(
                f"{where} is not a SentencePiece model", "Supply Llama's or another BPE model"
            ) from error
        if tokenizer.bos_id < 0 or tokenizer.eos_id < 0:
            raise UserError(
                f"{where} has no pieces for beginning and end of text",
                "Train it with bos_id and eos_id, or leave `existing` out to train one here",
            )
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of `text` with Llama's dummy space in front, without bos and eos; "" gives []."""
        return self._processor.encode(text)

    def encode_many(self, texts: list[str], num_threads: int = 1) -> list[np.ndarray]:
        """`encode` of each text as int32, without the cost of a Python object for each id."""
        return self._processor.encode(texts, num_threads=num_threads, return_type="numpy")

    def encode_spelled(self, text: str, spans: list[tuple[int, int]]) -> list[int]:
        """`encode`, with every piece that touches a character span cut into single characters.

        The ids decode to the same text but never contain the usual pieces of the spans.
        """
        if not spans:
            return self.encode(text)
        found = self._processor.encode(text, return_type="offset_mapping")
        ids: list[int] = []
        for piece_id, piece, (start, end) in zip(
            found["ids"], found["pieces"], found["offsets"], strict=True
        ):
            touches = any(start < stop and first < end for first, stop in spans)
            ids += self._letters(piece) if touches and not self.is_byte(piece_id) else [piece_id]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; control pieces give nothing, invalid UTF-8 from byte pieces U+FFFD."""
        return self._processor.decode(ids)

    def piece(self, piece_id: int) -> str:
        """The vocabulary entry, with "▁" for a space."""
        return self._processor.id_to_piece(piece_id)

    def score(self, piece_id: int) -> float:
        """Merge priority: SentencePiece merges the highest score first."""
        return self._processor.get_score(piece_id)

    def is_control(self, piece_id: int) -> bool:
        """True for pieces that no text encodes to."""
        return self._processor.is_control(piece_id)

    def is_byte(self, piece_id: int) -> bool:
        """True for the 256 byte-fallback pieces."""
        return self._processor.is_byte(piece_id)

    def copy_to(self, folder: Path) -> None:
        """Write `tokenizer.model` and, where this was loaded with them, transformers' files."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self._model)
        for name in FOLDER_FILES[1:]:
            if self._folder is not None and (self._folder / name).is_file():
                shutil.copyfile(self._folder / name, folder / name)

    def _find_separators(self) -> Separators | None:
        ids = [self._processor.piece_to_id(piece) for piece in SEPARATORS]
        if all(self.is_control(i) for i in ids):
            return Separators(*ids)
        return None

    def _letters(self, piece: str) -> list[int]:
        ids: list[int] = []
        for letter in piece:
            letter_id = self._processor.piece_to_id(letter)
            if letter_id != self.unk_id:
                ids.append(letter_id)
            else:
                ids += [self._processor.piece_to_id(f"<0x{b:02X}>") for b in letter.encode()]
        return ids


def separator_spans(text: str) -> list[tuple[int, int]]:
    """Where `text` literally contains one of the separators, as (start, end) in characters."""
    return [match.span() for match in _SEPARATOR.finditer(text)]


_SEPARATOR = re.compile("|".join(re.escape(piece) for piece in SEPARATORS))
