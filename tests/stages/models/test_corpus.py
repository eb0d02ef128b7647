"""Blocks of training text: exact shares, whole epochs, a pure function of the seed."""

import numpy as np
import pytest

from data_contracts.errors import UserError
from stages.models.corpus import BlockSampler

STREAMS = {"a": np.arange(0, 41, dtype=np.int32), "b": np.arange(100, 181, dtype=np.int32)}


def sampler(weights: dict[str, float], num_blocks: int = 400, seed: int = 0) -> BlockSampler:
    return BlockSampler(STREAMS, weights, num_blocks, sequence_length=10, seed=seed)


def test_a_block_is_one_longer_than_the_sequence_and_contiguous():
    block = sampler({}).block(0)
    assert len(block) == 11
    assert np.array_equal(np.diff(block), np.ones(10))


def test_weights_set_the_shares():
    shares = sampler({"a": 3, "b": 1}, num_blocks=4000).shares()
    assert shares["a"] == pytest.approx(0.75, abs=0.03)


def test_without_weights_sources_share_by_size():
    assert sampler({}, num_blocks=4000).shares()["b"] == pytest.approx(81 / 122, abs=0.03)


def test_every_epoch_of_a_source_visits_each_of_its_blocks_once():
    only_a = sampler({"a": 1}, num_blocks=12)
    starts = [int(only_a.block(i)[0]) for i in range(12)]
    for epoch in range(3):
        assert sorted(starts[4 * epoch : 4 * epoch + 4]) == [0, 10, 20, 30]


def test_any_block_can_be_asked_for_in_any_order():
    forward = [sampler({"a": 1, "b": 1}).block(i).tolist() for i in range(30)]
    one = sampler({"a": 1, "b": 1})
    assert [one.block(i).tolist() for i in reversed(range(30))] == forward[::-1]


def test_an_unknown_source_is_named():
    with pytest.raises(UserError, match="books"):
        sampler({"books": 1})


def test_a_source_shorter_than_a_sequence_is_named():
    with pytest.raises(UserError, match="tiny"):
        BlockSampler({"tiny": np.arange(5)}, {}, 3, sequence_length=10, seed=0)
