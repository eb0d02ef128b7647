"""Token shards as flat streams, and blocks drawn from them with sampling weights (§2.2)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_contracts.errors import UserError
from data_contracts.parquet import iter_batches
from data_contracts.tables import CONTRACTS
from stages.models.batches import shuffled


@dataclass(frozen=True)
class TokenStreams:
    """Each source's documents laid end to end (BOS … EOS each), as int32 arrays."""

    train: dict[str, np.ndarray]
    validation: np.ndarray
    validation_bytes: int

    @classmethod
    def read(cls, folder: Path) -> "TokenStreams":
        """Read every shard of a token_shards artifact."""
        train: dict[str, list[np.ndarray]] = {}
        validation: list[np.ndarray] = []
        num_bytes = 0
        for batch in iter_batches(folder, CONTRACTS["token_shards"]):
            is_train = np.array([s == "train" for s in batch.column("split").to_pylist()])
            offsets = batch.column("tokens").offsets.to_numpy()
            flat = batch.column("tokens").values.to_numpy()
            for i, source in enumerate(batch.column("source").to_pylist()):
                piece = flat[offsets[i] : offsets[i + 1]]
                (train.setdefault(source, []) if is_train[i] else validation).append(piece)
            num_bytes += int(batch.column("num_bytes").to_numpy()[~is_train].sum())
        streams = {source: np.concatenate(pieces) for source, pieces in sorted(train.items())}
        held_out = np.concatenate(validation) if validation else np.empty(0, np.int32)
        return cls(streams, held_out, num_bytes)

    def validation_blocks(
        self, sequence_length: int, num_blocks: int
    ) -> tuple[list[np.ndarray], float]:
        """Evenly spread held-out blocks of sequence_length + 1 tokens, and bytes per token."""
        available = (len(self.validation) - 1) // sequence_length
        if available < 1:
            return [], 1.0
        count = min(num_blocks, available)
        starts = np.linspace(0, available - 1, count).astype(int) * sequence_length
        blocks = [self.validation[s : s + sequence_length + 1] for s in starts]
        return blocks, self.validation_bytes / len(self.validation)


class BlockSampler:
    """Which block of which source is the n-th training sequence of the whole run.

    Sources are drawn with their weights; inside a source blocks come in a shuffled order that
    changes every epoch. All of it follows from the seed, so a resumed run needs only its step.
    """

    def __init__(
        self,
        streams: dict[str, np.ndarray],
        weights: dict[str, float],
        num_blocks: int,
        sequence_length: int,
        seed: int,
    ) -> None:
        self._names = list(streams)
        shares = _shares(streams, weights)
        self._streams = [streams[name] for name in self._names]
        self._length = sequence_length
        self._seed = seed
        self._sizes = [(len(stream) - 1) // sequence_length for stream in self._streams]
        for name, size, share in zip(self._names, self._sizes, shares, strict=True):
            if share > 0 and size < 1:
                raise UserError(
                    f"Source {name} has fewer than {sequence_length + 1} tokens, not one sequence",
                    "Add text to it, shorten pretrain.sequence_length, or give it weight 0",
                )
        rng = np.random.default_rng([seed, 0])
        self._choices = rng.choice(len(shares), size=num_blocks, p=shares).astype(np.int16)
        self._position = _occurrences(self._choices, len(shares))
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def block(self, index: int) -> np.ndarray:
        """Training sequence `index` of the run: sequence_length + 1 tokens."""
        source, start = self._place(index)
        return self._streams[source][start : start + self._length + 1]

    def block_id(self, index: int) -> str:
        """The source of that sequence and its first token there, e.g. "web:40960"."""
        source, start = self._place(index)
        return f"{self._names[source]}:{start}"

    def shares(self) -> dict[str, float]:
        """The share of sequences that each source really gets."""
        counts = np.bincount(self._choices, minlength=len(self._names))
        return {n: float(c) / len(self._choices) for n, c in zip(self._names, counts, strict=True)}

    def _place(self, index: int) -> tuple[int, int]:
        source = int(self._choices[index])
        epoch, offset = divmod(int(self._position[index]), self._sizes[source])
        return source, int(self._order(source, epoch)[offset]) * self._length

    def _order(self, source: int, epoch: int) -> np.ndarray:
        if self._orders.get(source, (-1, None))[0] != epoch:
            self._orders[source] = (epoch, shuffled(self._sizes[source], self._seed, source, epoch))
        return self._orders[source][1]


def _shares(streams: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    unknown = sorted(name for name, weight in weights.items() if weight and name not in streams)
    if unknown:
        raise UserError(
            f"source_weights names {', '.join(unknown)}, but the corpus has {', '.join(streams)}",
            "Correct pretrain.source_weights or ingest that source",
        )
    if not streams:
        raise UserError("The corpus has no training documents", "Ingest a documents source")
    raw = np.array([weights.get(n, 0.0) if weights else len(streams[n]) for n in streams], float)
    if raw.sum() <= 0:
        raise UserError("All source_weights are 0", "Give at least one source a weight above 0")
    return raw / raw.sum()


def _occurrences(choices: np.ndarray, num_sources: int) -> np.ndarray:
    """For each draw, how often its source was drawn before."""
    position = np.empty(len(choices), np.int64)
    for source in range(num_sources):
        drawn = np.flatnonzero(choices == source)
        position[drawn] = np.arange(len(drawn))
    return position
