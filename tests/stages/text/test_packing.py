import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.text.packing import pack


def slow_best_fit(lengths, capacity):
    """The plain twin: look at every bin."""
    bins, space = [], []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [b for b in range(len(bins)) if space[b] >= lengths[i]]
        if not fitting:
            bins.append([])
            space.append(capacity)
            fitting = [len(bins) - 1]
        best = min(fitting, key=lambda b: space[b])
        bins[best].append(i)
        space[best] -= lengths[i]
    return [sum(lengths[i] for i in b) for b in bins]


def test_by_hand():
    assert pack([4, 7, 3, 6, 10], 10) == [[4], [1, 2], [3, 0]]
    assert pack([], 10) == []


@given(st.lists(st.integers(1, 20), max_size=60))
def test_everything_is_packed_once_as_by_the_slow_twin(lengths):
    bins = pack(lengths, 20)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in b) for b in bins]
    assert all(load <= 20 for load in loads)
    assert sorted(loads) == sorted(slow_best_fit(lengths, 20))


@pytest.mark.parametrize("lengths", [[3, 11], [0]])
def test_what_fits_no_bin_is_named(lengths):
    with pytest.raises(ValueError, match=f"Document {len(lengths) - 1} has {lengths[-1]} tokens"):
        pack(lengths, 10)


def test_100_000_examples_fill_their_sequences():
    generator = random.Random(0)
    lengths = [min(4096, int(generator.lognormvariate(5.5, 1)) + 1) for _ in range(100_000)]
    bins = pack(lengths, 4096)
    assert sum(lengths) / (4096 * len(bins)) > 0.99
