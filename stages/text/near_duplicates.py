"""Finding documents that say almost the same, by MinHash (§2.2's data cleaning)."""

from collections.abc import Hashable

from datasketch import MinHash, MinHashLSH

from data_contracts.splits import normalised

SHINGLE_WORDS = 5
NUM_PERMUTATIONS = 128
"""Standard error of an estimated similarity: 1/sqrt(128) = 0.09."""


class NearDuplicates:
    """Remembers texts, half a kilobyte each, and recognises those that resemble one of them.

    Similarity is the Jaccard index of the sets of five-word shingles, case and spacing aside.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS)
        self._sketches: dict[Hashable, MinHash] = {}

    def repeats(self, text: str) -> bool:
        """Whether an earlier text resembles this one; if none does, it is remembered."""
        sketch = MinHash(num_perm=NUM_PERMUTATIONS, seed=1)
        sketch.update_batch(_shingles(text))
        candidates = (self._sketches[key] for key in self._index.query(sketch))
        if any(sketch.jaccard(other) >= self._threshold for other in candidates):
            return True
        key = len(self._sketches)
        self._index.insert(key, sketch)
        self._sketches[key] = sketch
        return False


def _shingles(text: str) -> list[bytes]:
    words = normalised(text).split()
    count = max(len(words) - SHINGLE_WORDS + 1, 1)
    return [" ".join(words[i : i + SHINGLE_WORDS]).encode() for i in range(count)]
