"""Filling sequences with whole documents (§3.1)."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of `lengths` grouped into bins of at most `capacity` tokens.

    Longest first, each into the fullest bin that still takes it (ties: the earlier index, the
    newest bin), so the result depends on the arguments alone. Raises ValueError, naming the
    index, when a document is longer than a bin.
    """
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = defaultdict(list)
    spaces: list[int] = []  # sorted sizes that some bin has left: at most `capacity` of them
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if not 0 < length <= capacity:
            raise ValueError(
                f"Document {index} has {length} tokens; a sequence holds 1 to {capacity}: "
                "shorten or drop it, or raise the sequence length"
            )
        position = bisect_left(spaces, length)
        if position == len(spaces):
            bin_index, space = len(bins), capacity
            bins.append([])
        else:
            space = spaces[position]
            bin_index = by_space[space].pop()
            if not by_space[space]:
                del spaces[position]
        bins[bin_index].append(index)
        space -= length
        if space > 0:
            if not by_space[space]:
                insort(spaces, space)
            by_space[space].append(bin_index)
    return bins
